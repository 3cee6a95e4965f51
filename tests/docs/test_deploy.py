"""The recipes in docs/deploy do what docs/deploy/index.md says of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.gates import cli_page
from tests.pages import DOCS, free_port
from uploader.cli.app import app
from uploader.devserver import DevServerOptions, ThreadedDevServer

ROOT = DOCS.parent
DEPLOY = DOCS / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("vodup-*.*"))
MANIFESTS = sorted(path.name for path in DEPLOY.glob("kubernetes-*.yaml"))
OTHER_VARIABLES = {"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "HOME"}


def parses(words: list[str]) -> None:
    """Read a command line as `vodup` does, and run nothing."""
    command = app.commands[words[0]]
    with click.Context(app, info_name="vodup") as parent:
        command.make_context(words[0], [*words[1:]], parent=parent)


def container(name: str) -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / name).read_text())["spec"]["template"]["spec"]["containers"]
    (only,) = found
    return dict(only)


def dockerfile() -> list[str]:
    """The instructions, each on one line."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_container_gets_arguments_and_variables_that_exist(name: str) -> None:
    found = container(name)
    parses(found["args"])
    variables = {each["name"] for each in found["env"]}
    assert variables <= cli_page.variables().keys() | OTHER_VARIABLES
    assert found["securityContext"]["readOnlyRootFilesystem"]


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_a_service_runs_a_command_that_exists(name: str) -> None:
    unit = (DEPLOY / name).read_text().replace("\\\n", "")
    (command,) = re.findall(r"^ExecStart=\S+/vodup (.*)$", unit, re.MULTILINE)
    parses(shlex.split(command))
    variables = re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)
    names = {each.partition("=")[0] for line in variables for each in shlex.split(line)}
    assert names <= cli_page.variables().keys() | OTHER_VARIABLES


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    for unit in UNITS:  # a timer needs its service
        text = (DEPLOY / unit).read_text().replace("/opt/vodup/bin/vodup", "/bin/true")
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_runs_as_a_user_without_rights() -> None:
    last = "\n".join(dockerfile()).rpartition("\nFROM ")[2]
    assert "\nUSER 10001\n" in last
    assert container("kubernetes-job.yaml")
    for name in MANIFESTS:
        pod = yaml.safe_load((DEPLOY / name).read_text())["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == 10001


@pytest.mark.parametrize(("variable", "is_healthy"), [("", True), ("0.0.0.0:{port}", False)])
def test_the_health_check_asks_for_metrics_that_are_served(variable: str, is_healthy: bool) -> None:
    (check,) = [line.partition("CMD ")[2] for line in dockerfile() if "HEALTHCHECK" in line]
    environment = {**os.environ, "VODUP_METRICS_PORT": variable.format(port=free_port())}
    done = subprocess.run(
        [sys.executable, *json.loads(check)[1:]], env=environment, capture_output=True
    )
    assert (done.returncode == 0) is is_healthy


# --- what takes long ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_stage_of_the_image_installs_the_command(tmp_path: Path) -> None:
    """Its steps, in a folder in place of the container; only what it copies is there."""
    where = tmp_path / "src"
    where.mkdir()
    stage = "\n".join(dockerfile()).split("\nFROM ")[0].splitlines()
    for line in stage:
        kind, _, rest = line.partition(" ")
        if kind == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, where / target)
                else:
                    shutil.copy(ROOT / source, where)
        elif kind == "RUN":
            script = rest.replace("/opt/vodup", str(tmp_path / "vodup"))
            script = script.replace("python -m venv", f"{sys.executable} -m venv")
            environment = {**os.environ, "EXTRAS": "cluster,credentials,metrics"}
            subprocess.run(["sh", "-ec", script], cwd=where, env=environment, check=True)
    printed = subprocess.check_output([tmp_path / "vodup/bin/vodup", "version"], text=True)
    assert printed.startswith("vodup ")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_action_uploads_and_returns_the_video_id(tmp_path: Path) -> None:
    action = yaml.safe_load((DEPLOY / "action.yml").read_text())
    (tmp_path / "movie.mp4").write_bytes(b"movie" * 1000)
    title = "A $(touch broken) \"title\"; 'x'"
    values = {"package": str(ROOT), "path": "movie.mp4", "title": title, "region": "cn-shanghai"}
    with ThreadedDevServer(DevServerOptions()) as running:
        common = {
            **os.environ,
            **running.server.env,
            "VODUP_STATE": str(tmp_path / "state.db"),
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
        }
        for step in action["runs"]["steps"]:
            own = {
                name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text)
                for name, text in step["env"].items()
            }
            assert "${{" not in step["run"]
            subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step["run"]],
                cwd=tmp_path, env=common | own, check=True,
            )  # fmt: skip
        (video,) = running.server.videos.values()
        assert (tmp_path / "output").read_text() == f"video-id={video.video_id}\n"
        assert video.title == title
    assert not (tmp_path / "broken").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_and_sdist_are_sound_and_can_be_installed(tmp_path: Path) -> None:
    tools, dist = tmp_path / "tools/bin/python", tmp_path / "dist"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "tools"], check=True)
    subprocess.run([tools, "-m", "pip", "install", "-q", "build", "twine"], check=True)
    subprocess.run([tools, "-m", "build", "-o", dist, ROOT], check=True, capture_output=True)
    files = sorted(dist.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    subprocess.run([tools, "-m", "twine", "check", "--strict", *files], check=True)
    for path in files:
        place = tmp_path / path.suffix.strip(".")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin/pip", "install", "-q", path], check=True)
        typed = "import uploader, pathlib; p = pathlib.Path(uploader.__file__).parent; "
        check = f"{typed}assert (p / 'py.typed').exists(); import vodup; vodup.Uploader"
        subprocess.run([place / "bin/python", "-c", check], cwd=tmp_path, check=True)
        subprocess.run([place / "bin/vodup", "version"], check=True)
