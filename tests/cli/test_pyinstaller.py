"""A bundle of PyInstaller's, made without any flag, does what the command does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uploader.devserver import DevServer

from .conftest import Cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = "from uploader.cli import main\n\nmain()\n"
LEFT_OUT = (
    "alibabacloud_credentials celery fsspec numpy opentelemetry pandas psycopg pyarrow".split()
)
"""What is installed for other tests, and would make the bundle large."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "script.py").write_text(SCRIPT)
    excluded = [f"--exclude-module={name}" for name in LEFT_OUT]
    build = [sys.executable, "-m", "PyInstaller", "--name=vodup", *excluded, "script.py"]
    # What it caches belongs to this test.
    env = os.environ | {"PYINSTALLER_CONFIG_DIR": str(folder / "cache")}
    done = subprocess.run(build, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "dist" / "vodup" / "vodup"


@pytest.fixture
def bundled(bundle: Path, server: DevServer, tmp_path: Path) -> Iterator[Cli]:
    """The bundle and its own development server; no source of ours is on its path."""
    command = [str(bundle), "devserver", "--until-stdin-ends"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield Cli(server, tmp_path, ready["env"], (str(bundle),))
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize("signature", ["v4", "v1"])
@pytest.mark.parametrize("size", [40_000, 3_000_000])
def test_a_bundle_uploads_with_both_signatures(bundled: Cli, signature: str, size: int) -> None:
    bundled.file("movie.mp4", size)

    ended = bundled.run(
        "push", "movie.mp4", "--json", "--part-size", "1M", "--signature", signature
    )

    assert ended.code == 0, ended.err
    assert ended.last["type"] == "upload.finished"
    assert ended.last["part_count"] == (1 if size == 40_000 else 3)


def test_a_bundle_has_its_version_its_checks_and_its_pages(bundled: Cli) -> None:
    """Its metadata, its hidden imports and its data files."""
    (bundled.folder / "films").mkdir()
    for number in range(3):
        bundled.file(f"films/{number}.mp4", 40_000 + number)

    assert bundled.run("version").out.startswith("vodup ")
    doctor = bundled.run("doctor")
    assert doctor.code == 0, doctor.out
    assert "oss2 2." in doctor.out
    ingest = bundled.run("ingest", "-r", "films", "--html", "report.html", "--json")
    assert ingest.code == 0, ingest.err
    assert "<html" in (bundled.folder / "report.html").read_text()
    assert bundled.run("status").out.count(" done ") == 3


def test_commands_of_a_bundle_load_the_libraries_of_the_system(bundled: Cli) -> None:
    bundled.file("movie.mp4", 40_000)
    script = 'echo "${LD_LIBRARY_PATH-unset}" > path'

    ended = bundled.run("push", "movie.mp4", "--on-finished", f"sh -c '{script}'")

    assert ended.code == 0, ended.err
    outside = os.environ.get("LD_LIBRARY_PATH", "unset")
    assert (bundled.folder / "path").read_text() == f"{outside}\n"


def test_the_demo_runs_from_a_bundle(bundled: Cli) -> None:
    ended = bundled.run("demo", "--size", "64M", "--json", timeout_s=180)

    assert ended.code == 0, ended.out + ended.err
    assert ended.last["ok"] is True
