"""Starting, stopping, administration, the command line."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest
from fastcrc import crc64

import uploader.devserver
from uploader import AccessKey, TrustPolicy, Uploader, VodProvider
from uploader.devserver import DevServer, DevServerOptions, Fault, ThreadedDevServer
from uploader.devserver.__main__ import main

from .clients import PART, Oss, Reply, Vod, etag, send, start_upload


def admin(server: DevServer, method: str, path: str, value: object = None) -> Reply:
    body = None if value is None else json.dumps(value).encode()
    token = {"X-Vodup-Token": server.admin_token}
    return send(server.vod_endpoint, method, f"/_vodup/{path}", token, body)


def shown(server: DevServer, path: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    reply = admin(server, "GET", path)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def test_the_package_imports_nothing_else_of_the_distribution_and_no_sdk() -> None:
    folder = Path(uploader.devserver.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            tops = {name.partition(".")[0] for name in names}
            allowed = sys.stdlib_module_names | {"aiohttp", "fastcrc", "trustme", "yarl"}
            allowed |= {"pytest"} if path.stem == "pytest_plugin" else set()
            assert tops <= allowed, f"{path.name} imports {tops - allowed}"
        assert "from .." not in path.read_text()


async def test_nothing_runs_after_exit_even_under_faults() -> None:
    tasks, threads = asyncio.all_tasks(), threading.active_count()
    async with DevServer(faults=[Fault(action="hang", count=None)]) as server:
        folder = server.backend.storage.folder
        host, port = server.oss_endpoint.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PUT /b/k?partNumber=1&uploadId=U HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            while not server.stats.log:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.01)
    writer.close()
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == tasks
    assert threading.active_count() <= threads + 1
    assert not folder.exists()


async def test_a_zombie_does_not_outlive_the_server() -> None:
    tasks = asyncio.all_tasks()
    zombie = Fault(action="zombie", delay_s=60)
    async with DevServer(faults=[zombie]) as server:
        vod = Vod(server)
        with pytest.raises(Exception, match=r"reset|closed|disconnected"):
            await asyncio.to_thread(vod.call, "CreateUploadVideo", Title="t", FileName="a.mp4")
    assert asyncio.all_tasks() == tasks
    assert server.stats.creates == 0


def test_a_server_that_was_not_started_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        DevServer().stats  # noqa: B018


def test_a_failure_to_start_reaches_the_caller(server: DevServer) -> None:
    port = int(server.vod_endpoint.rpartition(":")[2])
    with (
        pytest.raises(OSError, match="address already in use"),
        ThreadedDevServer(DevServerOptions(port=port)),
    ):
        pass


def test_only_knobs_can_be_turned() -> None:
    options = DevServerOptions()
    assert options.changed(denied_operations=["ListParts"]).denied_operations == ("ListParts",)
    with pytest.raises(ValueError, match="not changeable: host"):
        options.changed(host="0.0.0.0")
    with pytest.raises(ValueError, match="nonsense"):
        options.changed(nonsense=1)


# administration


def test_stats_count_what_happened(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    oss.put_part(upload_id, 1)
    oss.put_part(upload_id, 1)
    stats = shown(server, "stats")
    assert stats["requests"]["UploadPart"] == 2
    assert stats["bytes_by_part"] == {f"{upload_id}/1": 2 * len(PART)}
    assert (stats["parts_sent_twice"], stats["bytes_sent_twice"]) == (1, len(PART))
    assert stats["open_uploads"] == 1
    assert stats["creates"] == 1


def test_requests_are_logged_with_connection_and_generation(server: DevServer, oss: Oss) -> None:
    oss.put_part(oss.initiate(), 1)
    create, initiate, part = shown(server, "requests")
    assert create["operation"] == "CreateUploadVideo"
    assert (part["operation"], part["part_number"], part["status"]) == ("UploadPart", 1, 200)
    assert (part["generation"], part["body_bytes"]) == (1, len(PART))
    assert part["connection"] != initiate["connection"]
    assert part["video_id"] == oss.video_id
    assert part["ended_at"] >= part["started_at"]


def test_the_request_log_has_a_ceiling(server: DevServer, oss: Oss) -> None:
    server.set_options(request_log_size=3)
    for _ in range(5):
        oss.call("HEAD")
    assert len(server.stats.log) == 3
    assert server.stats.requests["HeadObject"] == 5


def test_a_video_is_shown_with_its_object_and_uploads(server: DevServer, oss: Oss) -> None:
    import hashlib

    upload_id = oss.initiate()
    oss.put_part(upload_id, 1)
    video = shown(server, f"videos/{oss.video_id}")
    assert (video["status"], video["object"]) == ("Uploading", None)
    assert video["uploads"][0]["upload_id"] == upload_id
    assert video["uploads"][0]["parts"][0]["etag"] == etag().strip('"')
    oss.complete(upload_id, [(1, etag())])
    video = shown(server, f"videos/{oss.video_id}")
    assert (video["status"], video["uploads"]) == ("Normal", [])
    assert video["object_key"] == oss.key
    assert video["object"]["size"] == len(PART)
    assert video["object"]["crc64"] == crc64.xz(PART)
    assert video["object"]["sha256"] == hashlib.sha256(PART).hexdigest()


def test_faults_options_and_expiry_can_be_set_over_http(server: DevServer, oss: Oss) -> None:
    assert admin(server, "POST", "faults", [{"action": "html"}]).status == 200
    assert oss.call("HEAD").status == 502
    assert shown(server, "stats")["faults_consumed"] == {"html": 1}
    assert admin(server, "POST", "options", {"crc_headers": False}).status == 200
    assert "x-oss-hash-crc64ecma" not in oss.put_part(oss.initiate(), 1).headers
    assert shown(server, "options")["crc_headers"] is False
    assert admin(server, "POST", "expire").status == 200
    assert oss.call("HEAD").code == "SecurityTokenExpired"


@pytest.mark.parametrize(
    ("method", "path", "value", "status"),
    [
        ("GET", "nothing", None, 404),
        ("GET", "videos/none", None, 404),
        ("POST", "nothing", {}, 404),
        ("POST", "options", {"nonsense": 1}, 400),
        ("POST", "faults", [{"action": "explode"}], 400),
        ("POST", "faults", {"action": "hang"}, 400),
    ],
)
def test_administration_refuses_nonsense(
    server: DevServer, method: str, path: str, value: object, status: int
) -> None:
    assert admin(server, method, path, value).status == status


# the command


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "uploader.devserver", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout: IO[str] = process.stdout  # type: ignore[assignment]
    try:
        yield process, json.loads(stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_one_ready_line_and_stops_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    with command("--data", str(tmp_path), "--credential-ttl", "7") as (process, ready):
        assert set(ready) == {"vod_endpoint", "oss_endpoint", "env", "admin_token"}
        assert ready["env"]["VODUP_VOD_ENDPOINT"] == ready["vod_endpoint"]
        assert ready["env"]["VODUP_ALLOW_LOOPBACK_HTTP"] == "1"
        assert _get(ready, "options")["credential_ttl_s"] == 7
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")
    assert (tmp_path / "devserver.sqlite3").exists()


def test_tls_is_served_with_a_certificate_for_loopback(tmp_path: Path) -> None:
    with ThreadedDevServer(DevServerOptions(tls=True, data_dir=tmp_path)) as threaded:
        server = threaded.server
        assert server.vod_endpoint.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=server.env["VODUP_CA_FILE"])
        url = server.oss_endpoint + "/_vodup/stats"
        request = urllib.request.Request(url, headers={"X-Vodup-Token": server.admin_token})  # noqa: S310 - our own URL
        with urllib.request.urlopen(request, context=context) as answer:  # noqa: S310
            assert json.load(answer)["creates"] == 0


def test_oss_has_a_name_and_a_certificate_for_the_hosts_of_buckets() -> None:
    host = "oss-cn-shanghai.localhost"
    with ThreadedDevServer(DevServerOptions(tls=True, oss_host=host)) as threaded:
        server = threaded.server
        port = urlsplit(server.oss_endpoint).port
        assert server.oss_endpoint == f"https://{host}:{port}"
        assert server.backend.oss_endpoint == server.oss_endpoint
        context = ssl.create_default_context(cafile=server.env["VODUP_CA_FILE"])
        for name in (host, f"{server.backend.bucket}.{host}"):
            with (
                socket.create_connection(("127.0.0.1", port)) as plain,
                context.wrap_socket(plain, server_hostname=name),
            ):
                pass


def test_the_command_reads_faults_and_further_options(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text(json.dumps([{"action": "html", "operation": "CreateUploadVideo"}]))
    options = '{"duplicate_reference": "same_video"}'
    with command("--faults", str(script), "--options", options) as (_, ready):
        assert _get(ready, "options")["duplicate_reference"] == "same_video"
        assert _get(ready, "stats")["faults_consumed"] == {"html": 0}


@pytest.mark.parametrize(
    ("further", "words"),
    [
        ("[]", "no JSON object"),
        ('{"data_dir": 3}', "3 is none of"),
        ('{"credential_ttl_s": NaN}', "nan is not float"),
        ('{"tls": "x"}', "'x' is not bool"),
        ('{"forbid_overwrite": "maybe"}', "'maybe' is not"),
        ('{"cors": [{"x": 1}]}', "cors: "),
        ('{"host": ""}', "every address of this machine"),
        ('{"port": 70000}', "port must be 0-65535"),
    ],
)
def test_odd_options_are_named(
    further: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--options", further]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("script", ["null", "{}", "[7]", '[{"action": ["reset"]}]', "[{}]"])
def test_odd_faults_are_named(
    tmp_path: Path, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faults.json").write_text(script)
    assert main(["--faults", str(tmp_path / "faults.json")]) == 2
    assert "fault" in capsys.readouterr().err


def test_only_a_pipe_ends_the_command_with_its_parent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("uploader.devserver.__main__.STDIN", nothing.fileno())
        assert main(["--until-stdin-ends"]) == 2
    assert "needs a pipe" in capsys.readouterr().err


def test_the_command_names_a_wrong_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uploader.devserver", "--options", '{"nonsense": 1}'],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_crash_of_the_server_loses_no_part(tmp_path: Path) -> None:
    with command("--data", str(tmp_path)) as (process, ready):
        server = _Endpoint(ready)
        oss = start_upload(Vod(server))  # type: ignore[arg-type]
        upload_id = oss.initiate()
        assert oss.put_part(upload_id, 1).status == 200
        process.kill()
        process.wait()
    with command("--data", str(tmp_path)) as (_, ready):
        oss = replace(oss, endpoint=ready["oss_endpoint"])
        assert oss.complete(upload_id, [(1, etag())]).status == 200
        assert oss.call("GET").body == PART


def _get(ready: dict[str, Any], path: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    token = {"X-Vodup-Token": ready["admin_token"]}
    return json.loads(send(ready["vod_endpoint"], "GET", f"/_vodup/{path}", token, None).body)


class _Endpoint:
    """What the raw VOD client needs to know of a server in another process."""

    def __init__(self, ready: dict[str, Any]) -> None:
        self.vod_endpoint = ready["vod_endpoint"]
        self.access_key_id = ready["env"]["ALIBABA_CLOUD_ACCESS_KEY_ID"]
        self.access_key_secret = ready["env"]["ALIBABA_CLOUD_ACCESS_KEY_SECRET"]


async def test_a_server_on_ipv6_is_used_like_any_other(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    movie = tmp_path / "movie.mp4"
    movie.write_bytes(PART)
    async with DevServer(DevServerOptions(host="::1")) as server:
        assert server.vod_endpoint.startswith("http://[::1]:")
        key = AccessKey(id=server.access_key_id, secret=server.access_key_secret)
        provider = VodProvider(key, endpoint=server.vod_endpoint)
        trust = TrustPolicy(allow_loopback=True)
        async with Uploader(provider, state="memory", trust=trust) as up:
            result = await up.upload(movie)
        assert server.object_bytes(result.video_id) == PART
        assert result.endpoint == server.oss_endpoint
