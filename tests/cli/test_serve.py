"""The command, driven by curl and Node, killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .conftest import MIB, VODUP, Cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "serve.mjs"


@contextmanager
def serving(cli: Cli) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    words = ("serve", "--listen", "0", "--token-file", "token", "--jobs", "serve.db", "--json")
    process = subprocess.Popen(
        [*VODUP, *words], cwd=cli.folder, env=cli.env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def curl(cli: Cli, *words: str) -> dict[str, object]:
    token = (cli.folder / "token").read_text().strip()
    command = ["curl", "-sS", "-m", "60", "-H", f"Authorization: Bearer {token}", *words]
    done = subprocess.run(command, cwd=cli.folder, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_and_a_killed_service_goes_on(cli: Cli) -> None:
    cli.file("movie.mp4", 40 * MIB)
    cli.server.set_options(bandwidth=8 * MIB)
    with serving(cli) as (url, _):
        job = curl(cli, f"{url}/v1/uploads", "-d", '{"path": "movie.mp4", "title": "A film"}')
        before = cli.server.stats.parts_stored
        wait_until(lambda: cli.server.stats.parts_stored >= before + 2)  # and then SIGKILL
    cli.server.set_options(bandwidth=None)
    with serving(cli) as (url, process):
        one = f"{url}/v1/uploads/{job['id']}"
        wait_until(lambda: curl(cli, one)["status"] == "done")
        result = curl(cli, one)["result"]
        body = curl(cli, "-T", "movie.mp4", f"{url}/v1/videos?file_name=body.mp4")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0

    assert isinstance(result, dict)
    assert result["resumed_part_count"] >= 1
    assert body["crc64"] == result["crc64"]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_example_for_node_uploads_and_follows(cli: Cli) -> None:
    cli.file("movie.mp4", 3 * MIB)
    with serving(cli) as (url, _):
        done = subprocess.run(
            ["node", os.fspath(EXAMPLE), url, "token", "movie.mp4"],
            cwd=cli.folder, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        refused = subprocess.run(
            ["node", os.fspath(EXAMPLE), url, "token", "none.mp4"],
            cwd=cli.folder, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    assert json.loads(done.stdout)["status"] == "done", done.stderr
    assert "SourceUnreadable" in refused.stderr
