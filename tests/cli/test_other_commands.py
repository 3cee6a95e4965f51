"""Everything but `push`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.devserver.clients import Vod
from uploader.cli.doctor import _congestion
from uploader.cli.flags import CleanFlags, ResumeFlags
from uploader.cli.push import resume
from uploader.cli.records import clean
from uploader.credentials import Network
from uploader.devserver import DevServer
from uploader.errors import ConfigurationError

from .conftest import MIB, SLOWLY, VODUP, Cli, interrupt


@pytest.fixture
def stopped(cli: Cli, slow_server: DevServer) -> str:
    """The VideoId of an upload that was stopped in the middle."""
    cli.file(size=12 * MIB)
    ended = interrupt(cli.start("push", "movie.mp4", "--key=film", *SLOWLY), signal.SIGTERM)
    slow_server.set_options(bandwidth=None)
    return str(ended.last["video_id"])


def test_an_unfinished_upload_through_its_life(cli: Cli, stopped: str) -> None:
    shown = cli.run("status", "film", "--json").last
    assert (shown["key"], shown["state"], shown["video_id"]) == ("film", "uploading", stopped)
    assert 2 <= shown["acked_part_count"] < shown["part_count"]
    assert shown["source"] == str(cli.folder / "movie.mp4")
    table = cli.run("status").out
    assert stopped in table
    assert "uploading" in table

    refused = cli.run("clean", "film")
    assert refused.code == 2
    assert "--force" in refused.err

    resumed = cli.run("resume", stopped, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.last["key"] == "film"

    verified = cli.run("verify", "movie.mp4", "--key=film")
    assert verified.code == 0, verified.err
    assert str(resumed.last["crc64"]) in verified.out

    assert "Would remove the record film" in cli.run("clean", "--done", "--dry-run").out
    assert cli.run("clean", "--done", "--older-than=1h").out == "Nothing to clean.\n"
    assert "Removed the record film" in cli.run("clean", "--done").out
    assert cli.run("status").out.startswith("No uploads recorded")


def test_abort_removes_the_parts(cli: Cli, stopped: str) -> None:
    before = cli.server.stats.aborts

    ended = cli.run("abort", stopped)

    assert ended.code == 0, ended.err
    assert cli.server.stats.aborts == before + 1
    assert cli.run("resume", "film").code == 2
    assert cli.run("clean", "--aborted", "-q").code == 0


def test_a_removed_upload_is_an_orphan_until_it_is_aborted(cli: Cli, stopped: str) -> None:
    forgotten = cli.run("clean", "film", "--force")
    assert "--orphans" in forgotten.err
    before = cli.server.stats.aborts

    ended = cli.run("clean", "--orphans")

    assert ended.code == 0, ended.err
    assert cli.server.stats.aborts == before + 1
    assert cli.run("clean", "--orphans").out == "Nothing to clean.\n"


def test_names_without_a_record_are_2_with_a_sentence(cli: Cli) -> None:
    for command in ("resume", "abort", "status"):
        ended = cli.run(command, "nobody")

        assert ended.code == 2, ended.err
        assert "vodup: No upload 'nobody' is recorded." in ended.err
        assert "next: " in ended.err
        assert "Traceback" not in ended.err


def test_a_command_with_too_few_flags_is_a_usage_error() -> None:
    with pytest.raises(ConfigurationError, match="Nothing selected"):
        clean(CleanFlags())
    with pytest.raises(ConfigurationError, match="Name the uploads"):
        resume(ResumeFlags())


def test_verify_detects_a_changed_file(cli: Cli) -> None:
    cli.file()
    assert cli.run("push", "movie.mp4").code == 0
    cli.file(seed=b"other")

    ended = cli.run("verify", "movie.mp4")

    assert ended.code == 1
    assert "CRC-64" in ended.err


# --- inspect ---------------------------------------------------------------------------


def test_inspect_shows_everything_but_secrets(cli: Cli) -> None:
    answer = Vod(cli.server).ok("CreateUploadVideo", Title="t", FileName="a.mp4")
    auth = json.loads(base64.b64decode(answer["UploadAuth"]))

    ended = cli.run("inspect", "-", "--json", stdin=json.dumps(answer))

    assert ended.code == 0, ended.err
    shown = ended.last
    assert shown["video_id"] == answer["VideoId"]
    assert shown["is_trusted"] is True
    assert 2900 < shown["remaining_s"] <= 3000
    for name in ("AccessKeySecret", "SecurityToken", "AccessKeyId"):
        assert auth[name] not in ended.out


def test_inspect_takes_the_bare_pair_and_reports_distrust(cli: Cli) -> None:
    answer = Vod(cli.server).ok("CreateUploadVideo", Title="t", FileName="a.mp4")
    pair = f"{answer['UploadAddress']}\n{answer['UploadAuth']}\n"

    ended = cli.run("inspect", stdin=pair, env={"VODUP_ALLOW_LOOPBACK_HTTP": "0"})

    assert ended.code == 7
    assert "Refusing to send credentials" in ended.out


def test_inspect_of_nonsense_is_3(cli: Cli) -> None:
    assert cli.run("inspect", stdin="hello").code == 3


# --- doctor, devserver, version --------------------------------------------------------


def test_doctor_reports_that_everything_is_in_order(cli: Cli) -> None:
    ended = cli.run("doctor", "--json")

    found = {line["name"]: line for line in ended.lines}
    assert ended.code == 0, ended.out
    assert {"versions", "credentials", "state", "VOD", "AccessKey", "congestion"} <= found.keys()
    assert found["credentials"]["detail"].endswith("ALIBABA_CLOUD_ACCESS_KEY_ID")
    assert cli.server.access_key_id not in ended.out


@pytest.mark.parametrize(
    ("has_bbr", "status", "detail"),
    [(True, "ok", "bbr is available for long distances"), (False, "warning", "modprobe tcp_bbr")],
)
def test_doctor_reports_whether_the_kernel_has_bbr(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, has_bbr: bool, status: str, detail: str
) -> None:
    monkeypatch.setattr("uploader.cli.doctor.may_use_congestion", lambda name: has_bbr)
    network = SimpleNamespace(transport=SimpleNamespace(congestion=lambda: "cubic"))

    found = _congestion(cast("Network", network))

    assert (found.name, found.status) == ("congestion", status)
    assert detail in found.detail


def test_doctor_names_a_wrong_key_and_a_dead_endpoint(cli: Cli) -> None:
    wrong = cli.run("doctor", env={"ALIBABA_CLOUD_ACCESS_KEY_SECRET": "wrong"})
    assert wrong.code == 3
    assert "failed   AccessKey" in wrong.out

    dead = cli.run("doctor", env={"VODUP_VOD_ENDPOINT": "http://127.0.0.1:9"})
    assert dead.code == 5
    assert "failed   VOD" in dead.out


def test_devserver_prints_one_line_and_ends_quietly(cli: Cli) -> None:
    words = ["devserver", "--bandwidth=25M", "--credential-ttl=5", "--data=--"]
    with subprocess.Popen(
        [*VODUP, *words], cwd=cli.folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()

    assert ready["env"]["VODUP_VOD_ENDPOINT"] == ready["vod_endpoint"]
    assert (process.returncode, rest) == (0, "")


def test_version(cli: Cli) -> None:
    assert cli.run("version").out.startswith("vodup ")
    assert cli.run("version", "--json").last["vodup"]


# --- demo ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_proves_what_it_claims(cli: Cli) -> None:
    ended = cli.run("demo", "--size", "128M", "--json", timeout_s=180)

    assert ended.code == 0, ended.out + ended.err
    assert ended.last["ok"] is True
    assert [claim["holds"] for claim in ended.last["claims"]] == [True] * 7


def test_a_demo_that_is_killed_leaves_no_process(cli: Cli) -> None:
    """Neither its server nor the upload it had started."""
    cli.env = cli.env | {"TMPDIR": str(cli.folder)}
    running = cli.start("demo", "--size", "64M", "--json")
    assert running.process.stderr is not None
    for line in running.process.stderr:
        if "VideoId" in line:
            break
    running.process.kill()

    try:
        assert _within(20, lambda: processes_below(cli.folder) == set())
    finally:
        for pid in processes_below(cli.folder):
            os.kill(pid, signal.SIGKILL)
        assert running.ended().code == -signal.SIGKILL


def processes_below(folder: Path) -> set[int]:
    """Processes whose command line names a file in a folder."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in path.read_bytes():
                found.add(int(path.parent.name))
    return found


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def test_a_state_that_was_put_aside_is_reported_at_the_end_and_by_doctor(cli: Cli) -> None:
    movie = cli.file(size=1000)
    first = cli.run("push", movie.name, "--json")
    state = cli.folder / "state.db"
    state.write_bytes(b"garbage" * 1000)

    ended = cli.run("push", movie.name, "--json")

    assert ended.code == 0, ended.err
    assert ended.last["video_id"] == first.last["video_id"]
    *_, last = ended.err.splitlines()
    assert last.startswith("vodup: state file ")
    assert "state.db.corrupt-1" in last
    found = [line for line in cli.run("doctor", "--json").lines if line["status"] == "warning"]
    assert any("put aside" in line["detail"] for line in found if line["name"] == "state")
    state.write_bytes(b"garbage" * 1000)
    found = [line for line in cli.run("doctor", "--json").lines if line["name"] == "uploads"]
    assert "state.db.corrupt-2" in found[0]["detail"]
    (cli.folder / "m.csv").write_text(f"path\n{movie.name}\n")
    state.write_bytes(b"garbage" * 1000)
    batch = cli.run("ingest", "m.csv", "-q")
    assert batch.code == 0, batch.err
    assert "state.db.corrupt-3" in batch.err.splitlines()[-1]


def test_a_new_video_beside_an_earlier_one_is_reported(cli: Cli) -> None:
    movie = cli.file(size=1000)
    first = cli.run("push", movie.name, "--json").last["video_id"]
    status = movie.stat()
    movie.write_bytes(b"x" * 1000)
    os.utime(movie, ns=(status.st_atime_ns, status.st_mtime_ns))
    (cli.folder / "state.db").unlink()

    ended = cli.run("push", movie.name)

    assert f"is video {first}, with other content; creating a new video" in ended.err
    (cli.folder / "state.db").unlink()
    movie.write_bytes(b"y" * 1000)
    os.utime(movie, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cli.run("push", movie.name, "--json").last["earlier_video_id"]


def test_the_video_of_a_lost_checkpoint_is_reported(cli: Cli) -> None:
    movie = cli.file(size=1000)
    first = cli.run("push", movie.name, "--json").last["video_id"]
    (cli.folder / "state.db").unlink()

    ended = cli.run("push", movie.name)

    assert f"a run whose checkpoint is lost has uploaded it as video {first}" in ended.err
    cli.server.delete_video(first)
    (cli.folder / "state.db").unlink()
    assert "the video of a run whose checkpoint is lost is gone" in cli.run("push", movie.name).err
