"""`vodup push` as scripts use it."""

from __future__ import annotations

import base64
import http.server
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from uploader.cli.flags import PushFlags
from uploader.cli.push import push
from uploader.cli.run import finish
from uploader.devserver import DevServer, Fault

from .conftest import MIB, SLOWLY, Cli, Ended, interrupt, is_under_way

FINISHED = (
    "type video_id upload_id bucket object_key size crc64 etag part_count resumed_part_count "
    "renewal_count retry_count verified_by seconds key sent_bytes source congestion endpoint"
).split()
FAILED = (
    "type video_id error message code request_id resumable next_step exit_code source"
).split()


def _assert_failed(ended: Ended, code: int, *words: str) -> None:
    """It ended with `code`, printed what failed and what to do next, and no traceback."""
    assert ended.code == code, ended.err
    assert "vodup: " in ended.err
    assert "next: " in ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def test_a_file_is_uploaded_and_the_sentence_names_its_video(cli: Cli) -> None:
    path = cli.file()

    ended = cli.run("push", path.name, "--title", "A movie")

    assert ended.code == 0, ended.err
    [video_id] = [v for v in cli.server.videos if v in ended.out]
    assert cli.server.object_bytes(video_id) == path.read_bytes()
    assert cli.server.videos[video_id].title == "A movie"


def test_parameters_of_create_are_kept_for_a_later_run(cli: Cli) -> None:
    """The first run reaches no VOD; the second has only the record."""
    cli.file()
    cli.server.faults.replace(
        [
            Fault(
                action="error", operation="CreateUploadVideo", status=503, code="ServiceUnAvailable"
            )
        ]
    )
    words = "--set NewParameter=a=b --set Other=x --generate-thumbnail false".split()
    first = cli.run("push", "movie.mp4", *words, "--enable-first-frame-cover", "TRUE",
                    "--retry-for", "0")  # fmt: skip
    assert first.code == 5, first.err

    assert cli.run("resume", "--all").code == 0
    created = cli.server.stats.created_with[-1]
    assert (created["NewParameter"], created["Other"]) == ("a=b", "x")
    assert (created["EnableFirstFrameCover"], created["GenerateThumbnail"]) == ("true", "false")


@pytest.mark.parametrize(
    ("text", "word"), [("Title=x", "has a field"), ("Title", "NAME=VALUE"), ("a b=c", "no name")]
)
def test_a_parameter_that_vodup_sets_itself_is_refused(cli: Cli, text: str, word: str) -> None:
    cli.file()
    video_ids = set(cli.server.videos)
    _assert_failed(cli.run("push", "movie.mp4", "--set", text), 2, word)
    assert set(cli.server.videos) == video_ids


def test_a_playlist_is_uploaded_with_its_segments_as_one_video(cli: Cli) -> None:
    for number in range(3):
        cli.file(f"segment{number}.ts", size=200_000 + number)
    playlist = cli.folder / "index.m3u8"
    lines = "".join(f"#EXTINF:4,\nsegment{n}.ts\n" for n in range(3))
    playlist.write_text(f"#EXTM3U\n{lines}#EXT-X-ENDLIST\n")

    ended = cli.run("push", "index.m3u8", "--json")

    assert ended.code == 0, ended.err
    folder = ended.last["object_key"].rpartition("/")[0]
    stored = cli.server.objects(ended.last["video_id"])
    objects = {key: data for key, data in stored.items() if key.startswith(f"{folder}/")}
    assert len(objects) == 4 == ended.last["part_count"]
    assert objects[ended.last["object_key"]] == playlist.read_bytes()


def test_stdout_has_only_json_lines(cli: Cli) -> None:
    cli.file()

    ended = cli.run("push", "movie.mp4", "--json")

    assert ended.code == 0, ended.err
    assert ended.lines[0]["type"] == "upload.started"
    assert ended.last["type"] == "upload.finished"
    assert set(FINISHED) <= ended.last.keys()
    assert ended.last["source"] == "movie.mp4"
    assert isinstance(ended.last["crc64"], str)
    assert ended.last["crc64"].isdecimal()


def test_quiet_prints_only_the_video_id(cli: Cli) -> None:
    cli.file()

    ended = cli.run("push", "movie.mp4", "-q")

    assert ended.out.strip() in cli.server.videos
    assert ended.err == ""


def test_the_same_command_again_sends_nothing(cli: Cli) -> None:
    cli.file()
    first = cli.run("push", "movie.mp4", "--json").last
    before = cli.server.stats.snapshot()["requests"]

    again = cli.run("push", "movie.mp4", "--json")

    assert again.code == 0
    assert again.last["video_id"] == first["video_id"]
    assert (again.last["is_earlier_result"], again.last["sent_bytes"]) == (True, 0)
    assert cli.server.stats.snapshot()["requests"] == before


def test_after_kill_9_the_same_command_continues(cli: Cli, slow_server: DevServer) -> None:
    path = cli.file(size=12 * MIB)
    running = cli.start("push", path.name, *SLOWLY)
    started = running.until(lambda event: event["type"] == "upload.started")
    running.until(is_under_way)
    running.process.kill()
    assert running.ended().code == -signal.SIGKILL
    slow_server.set_options(bandwidth=None)

    ended = cli.run("push", path.name, *SLOWLY)

    assert ended.code == 0, ended.err
    assert ended.last["video_id"] == started["video_id"]
    assert ended.last["upload_id"] == started["upload_id"]
    assert ended.last["resumed_part_count"] >= 2
    assert slow_server.object_bytes(started["video_id"]) == path.read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_gracefully_and_the_upload_is_resumable(
    cli: Cli, slow_server: DevServer, number: signal.Signals, code: int
) -> None:
    path = cli.file(size=12 * MIB)

    stopped = interrupt(cli.start("push", path.name, *SLOWLY), number)

    assert stopped.code == code
    assert set(FAILED) <= stopped.last.keys()
    assert (stopped.last["error"], stopped.last["exit_code"]) == ("Interrupted", code)
    assert stopped.last["resumable"] is True
    slow_server.set_options(bandwidth=None)
    ended = cli.run("resume", "--all", "--json")
    assert ended.code == 0, ended.err
    assert ended.last["video_id"] == stopped.last["video_id"]
    assert ended.last["resumed_part_count"] >= 2


def test_ctrl_c_prints_the_progress(cli: Cli, slow_server: DevServer) -> None:
    cli.file(size=12 * MIB)
    stored = slow_server.stats.parts_stored
    running = cli.start("push", "movie.mp4", "--part-size=1M", "--concurrency=2")
    deadline = time.monotonic() + 20
    while slow_server.stats.parts_stored < stored + 3 and time.monotonic() < deadline:
        time.sleep(0.05)

    running.process.send_signal(signal.SIGINT)
    ended = running.ended()

    assert ended.code == 130
    assert re.search(r"Interrupted: movie.mp4, \d+ of 12 parts uploaded", ended.err)
    assert "same command" in ended.err
    assert "Traceback" not in ended.err


def test_the_second_signal_stops_at_once(cli: Cli, slow_server: DevServer) -> None:
    cli.file(size=12 * MIB)
    running = cli.start("push", "movie.mp4", *SLOWLY)
    running.until(is_under_way)
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)

    assert running.ended().code in {130, 143}


def test_a_second_process_is_refused_with_6(cli: Cli, slow_server: DevServer) -> None:
    cli.file(size=12 * MIB)
    running = cli.start("push", "movie.mp4", *SLOWLY)
    running.until(is_under_way)
    slow_server.set_options(bandwidth=MIB // 4)

    ended = cli.run("push", "movie.mp4")

    running.process.kill()
    running.ended()
    _assert_failed(ended, 6)


def test_failures_are_separate_and_share_a_code(cli: Cli) -> None:
    cli.file()

    ended = cli.run("push", "missing.mp4", "movie.mp4", "--json")

    ends = {line["source"]: line for line in ended.lines if "exit_code" in line or "crc64" in line}
    assert ended.code == 4
    assert ends["movie.mp4"]["type"] == "upload.finished"
    assert ends["missing.mp4"]["error"] == "SourceUnreadable"
    assert set(FAILED) <= ends["missing.mp4"].keys()


def test_missing_and_empty_files_are_4(cli: Cli) -> None:
    (cli.folder / "empty.mp4").touch()

    _assert_failed(cli.run("push", "missing.mp4", "empty.mp4"), 4, "missing.mp4 does not", "empty")


def test_a_changed_file_is_4(cli: Cli) -> None:
    cli.file()
    assert cli.run("push", "movie.mp4").code == 0
    cli.file(seed=b"other")

    _assert_failed(cli.run("push", "movie.mp4"), 4, "changed")


def test_no_credentials_are_3(cli: Cli) -> None:
    cli.file()
    nobody = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": ""}

    _assert_failed(cli.run("push", "movie.mp4", env=nobody), 3)


def test_an_unknown_video_is_1_and_no_other_is_created(cli: Cli) -> None:
    cli.file()
    before = len(cli.server.videos)

    ended = cli.run("push", "movie.mp4", "--video-id", "0" * 32)

    _assert_failed(ended, 1, "InvalidVideo.NotFound")
    assert len(cli.server.videos) == before


def test_an_unsupported_extension_is_2(cli: Cli) -> None:
    cli.file("movie.bin")

    _assert_failed(cli.run("push", "movie.bin"), 2, "--file-name")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "No files given"),
        ({"paths": ("a", "b"), "title": "both"}, "--title can only be used with a single file"),
        ({"paths": ("a", "b"), "key": "both"}, "--key can only be used with a single file"),
        ({"paths": ("a", "./a")}, "given twice"),
        ({"paths": ("a",), "grant": "missing.json"}, "cannot read missing.json"),
        ({"paths": ("a",), "allow_host": ("https://x",)}, "not a plain host name"),
    ],
)
def test_usage_errors_are_2_with_a_sentence_printed_once(
    capfd: pytest.CaptureFixture[str], given: dict[str, Any], sentence: str
) -> None:
    code = finish(lambda: push(PushFlags(**given, state="memory")))

    printed = capfd.readouterr()
    assert code == 2
    assert printed.err.count(sentence) == 1
    assert printed.err.count("next: ") == 1


def test_an_unknown_flag_and_an_unknown_level_are_2(cli: Cli) -> None:
    assert cli.run("push", "a.mp4", "--no-verify").code == 2
    _assert_failed(cli.run("push", "a.mp4", "--log-level=loud"), 2, "--log-level")


def test_flags_come_from_the_environment(cli: Cli) -> None:
    cli.file()

    ended = cli.run("push", "movie.mp4", env={"VODUP_BWLIMIT": "fast"})
    _assert_failed(ended, 2, "--bwlimit: expected bytes per second")

    ended = cli.run("push", "movie.mp4", env={"VODUP_JSON": "1", "VODUP_PART_SIZE": "1M"})
    assert ended.last["part_count"] >= 3


# --- grants ----------------------------------------------------------------------------


def _answer(cli: Cli, name: str = "movie.mp4", **fields: str) -> dict[str, str]:
    """An answer of CreateUploadVideo, with some fields of its address replaced."""
    from tests.devserver.clients import Vod

    answer = Vod(cli.server).ok("CreateUploadVideo", Title="t", FileName=name)
    address = json.loads(base64.b64decode(answer["UploadAddress"]))
    answer["UploadAddress"] = base64.b64encode(json.dumps(address | fields).encode()).decode()
    return answer


def _save(cli: Cli, answer: dict[str, str]) -> Path:
    path = cli.folder / "grant.json"
    path.write_text(json.dumps(answer))
    return path


def test_a_grant_needs_no_access_key(cli: Cli) -> None:
    path = cli.file()
    answer = _answer(cli)
    nobody = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": ""}

    ended = cli.run("push", "movie.mp4", "--grant", "-", "-q", stdin=json.dumps(answer), env=nobody)

    assert ended.code == 0, ended.err
    assert ended.out.strip() == answer["VideoId"]
    assert cli.server.object_bytes(answer["VideoId"]) == path.read_bytes()


def test_a_hostile_endpoint_in_a_grant_is_7(cli: Cli) -> None:
    cli.file()
    grant = _save(cli, _answer(cli, Endpoint="https://oss-cn-shanghai.aliyuncs.com.evil.example"))

    _assert_failed(cli.run("push", "movie.mp4", "--grant", str(grant)), 7)


def test_an_incomplete_grant_is_3(cli: Cli) -> None:
    cli.file()
    (cli.folder / "grant.json").write_text('{"VideoId": "abc"}')

    _assert_failed(cli.run("push", "movie.mp4", "--grant", "grant.json"), 3)


def test_loopback_is_refused_unless_allowed(cli: Cli) -> None:
    cli.file()

    ended = cli.run("push", "movie.mp4", env={"VODUP_ALLOW_LOOPBACK_HTTP": "0"})

    _assert_failed(ended, 7)


def test_an_auth_command_provides_grants(cli: Cli) -> None:
    path = cli.file()
    answer = _answer(cli)
    script = f"cat {_save(cli, answer)}"
    (cli.folder / "grants.sh").write_text(script)
    nobody = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": ""}

    ended = cli.run("push", "movie.mp4", "-q", "--auth-command", "sh grants.sh", env=nobody)

    assert ended.code == 0, ended.err
    assert cli.server.object_bytes(answer["VideoId"]) == path.read_bytes()


class _AppServer(http.server.BaseHTTPRequestHandler):
    """Returns one grant to those who know the token."""

    answer: ClassVar[dict[str, str]]
    requests: ClassVar[list[dict[str, str]]]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append(request)
        is_known = self.headers["authorization"] == "Bearer app-token"
        body = json.dumps(self.answer).encode() if is_known else b"{}"
        self.send_response(200 if is_known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def test_a_command_is_run_after_each_upload(cli: Cli, tmp_path: Path) -> None:
    cli.file()
    script = tmp_path / "note.sh"
    script.write_text('echo "$VODUP_STATUS $VODUP_FILE $VODUP_VIDEO_ID" >> "$1"; cat >> "$1"\n')
    command = f"sh '{script}' '{tmp_path / 'notes'}'"

    ended = cli.run("push", "movie.mp4", "--json", "--on-finished", command)
    assert ended.code == 0, ended.err
    assert cli.run("push", "none.mp4", env={"VODUP_ON_FINISHED": command}).code == 4

    first, result, second, _ = (tmp_path / "notes").read_text().splitlines()
    assert first == f"verified {cli.folder / 'movie.mp4'} {ended.last['video_id']}"
    assert json.loads(result)["result"]["size"] == ended.last["size"]
    assert second.split()[:2] == ["failed", str(cli.folder / "none.mp4")]


def test_a_command_that_fails_after_an_upload_is_9(cli: Cli) -> None:
    cli.file()
    ended = cli.run("push", "movie.mp4", "--on-finished", "false")
    assert ended.code == 9
    assert "Uploaded movie.mp4 → video" in ended.out
    assert "false failed with exit status 1" in ended.err
    _assert_failed(cli.run("push", "movie.mp4", "--on-finished", "'"), 2, "--on-finished")


def test_hooks_of_installed_packages_run_unless_disabled(cli: Cli, tmp_path: Path) -> None:
    cli.file()
    site = tmp_path / "site"
    about = site / "house-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: house\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vodup.hooks]\nhouse = house:HOOKS\n")
    (site / "house.py").write_text(
        "from uploader import Hooks, PolicyError\n"
        "def forbid(planned):\n"
        "    raise PolicyError(f'{planned.source} stays here.')\n"
        "HOOKS = Hooks(before_create=forbid)\n"
    )
    env = {"PYTHONPATH": str(site)}
    before = set(cli.server.videos)

    _assert_failed(cli.run("push", "movie.mp4", env=env), 7, "movie.mp4 stays here")
    assert set(cli.server.videos) == before
    assert cli.run("push", "movie.mp4", "--no-installed-hooks", env=env).code == 0


def test_an_app_server_provides_grants_for_its_token(cli: Cli) -> None:
    path = cli.file()
    _AppServer.answer, _AppServer.requests = _answer(cli), []
    env = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": "",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "",
        "VODUP_AUTH_URL_TOKEN": "app-token",
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _AppServer) as app:
        threading.Thread(target=app.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{app.server_port}/grants"
        ended = cli.run("push", "movie.mp4", "-q", "--auth-url", url, env=env)
        env["VODUP_AUTH_URL_TOKEN"] = "wrong"
        refused = cli.run("push", "movie.mp4", "--key=2", "--auth-url", url, env=env)
        app.shutdown()

    assert ended.code == 0, ended.err
    assert cli.server.object_bytes(_AppServer.answer["VideoId"]) == path.read_bytes()
    assert _AppServer.requests[0]["action"] == "create"
    assert _AppServer.requests[0]["file_name"] == "movie.mp4"
    _assert_failed(refused, 3, "401", "VODUP_AUTH_URL_TOKEN")


# --- secrets ---------------------------------------------------------------------------


def test_no_secret_is_printed_at_debug(cli: Cli) -> None:
    cli.file()
    grant = _save(cli, _answer(cli))
    denied = ("--key", "denied")
    runs = [
        cli.run("push", "movie.mp4", "--log-level=debug"),
        cli.run("push", "movie.mp4", "--log-level=debug", "--json", "--key=other"),
        cli.run("push", "movie.mp4", "--log-level=debug", "--grant", str(grant), "--key=granted"),
        cli.run("inspect", str(grant), "--log-level=debug"),
        cli.run("doctor", "--log-level=debug"),
    ]
    cli.server.set_options(denied_operations=("PutObject", "InitiateMultipartUpload"))
    runs.append(cli.run("push", "movie.mp4", "--log-level=debug", *denied))
    cli.server.set_options(denied_operations=())

    printed = "".join(run.out + run.err for run in runs)
    assert [run.code for run in runs] == [0, 0, 0, 0, 0, 3], printed
    assert "upload.finished" in printed
    for secret in cli.server.secrets():
        assert secret not in printed
    assert "Traceback" not in printed


# --- control characters ------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\nFAKE: all is well\u202egnp.exe"


@pytest.mark.parametrize(
    ("operation", "code"), [("CreateUploadVideo", "Forbidden.RAM"), ("PutObject", "AccessDenied")]
)
@pytest.mark.parametrize("words", [("--json",), ("--log-level", "debug")])
def test_messages_of_a_server_cannot_control_the_terminal(
    cli: Cli, operation: str, code: str, words: tuple[str, ...]
) -> None:
    cli.file()
    fault = Fault(
        action="error", operation=operation, status=403, code=code,
        message=HOSTILE, count=None,
    )  # fmt: skip
    cli.server.faults.replace([fault])

    ended = cli.run("push", "movie.mp4", *words)
    cli.server.faults.replace([])

    assert ended.code != 0
    assert operation in ended.err + ended.out
    assert_no_control(ended)


def test_file_names_cannot_control_the_terminal(cli: Cli) -> None:
    name = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e.mp4"
    cli.file(name)

    ended = cli.run("push", name)
    listed = cli.run("status")
    missing = cli.run("push", f"no-{name}")

    for end in (ended, listed, missing):
        assert_no_control(end)


def assert_no_control(ended: Ended) -> None:
    for character in "\x1b\x07\x9b\u202e\r":
        assert character not in ended.err + ended.out, repr(ended.err + ended.out)
    assert not any(line.startswith("FAKE") for line in (ended.err + ended.out).splitlines())
