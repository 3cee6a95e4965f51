"""A server, a file and one library: what a situation is played on."""

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

import oss2
from aliyunsdkcore.auth.composer import rpc_signature_composer

from benchmarks.before.driver import Job
from benchmarks.before.environments import python_of
from benchmarks.measure import ROOT
from uploader.devserver import DevServer, DevServerOptions, Fault, ThreadedDevServer

__all__ = ["PART_SIZE", "Ended", "Running", "Stage", "Stranger"]

PART_SIZE = 256 * 1024
PART_COUNT = 24
CONNECTIONS = 3
LIMIT_S = 150.0
"""Longer than any time-out the libraries have: who has not ended by then waits for ever."""

_DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        how: "returned", "error", "killed" or "hung".
        error, sentence: the exception's class and text.
        output: all it printed, logs at DEBUG included.
    """

    how: str
    error: str = ""
    sentence: str = ""
    video_id: str = ""
    output: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.error}" if self.how == "error" else self.how


class Running:
    """A process that uploads. Mutable: it ends."""

    def __init__(self, argv: list[str]) -> None:
        self._began_s = time.monotonic()
        self._process = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._chunks: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._chunks.extend(self._process.stdout)

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Wait for the end; who takes longer than the limit is killed and counts as hung."""
        is_hung = False
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            is_hung = True
            self.kill()
            code = self._process.wait()
        self._reader.join(10)
        output, seconds = "".join(self._chunks), time.monotonic() - self._began_s
        if is_hung or code == -signal.SIGKILL:
            return Ended("hung" if is_hung else "killed", output=output, seconds=seconds)
        # A library may still complain on its way out, so the line need not be the last.
        lines = [line for line in output.splitlines() if line.startswith('{"ended"')]
        answer = (
            json.loads(lines[-1]) if lines else {"ended": "error", "error": f"exit code {code}"}
        )
        return Ended(
            answer["ended"],
            answer.get("error", ""),
            answer.get("message", ""),
            answer.get("video_id", ""),
            output,
            seconds,
        )


@dataclass
class Stage:
    """One library with a server of its own. Mutable: the server, and the job's credentials."""

    library: str
    folder: Path
    part_size: int = PART_SIZE
    options: DevServerOptions = field(default_factory=DevServerOptions)

    def __enter__(self) -> Self:
        (self.folder / "checkpoints").mkdir()
        self.path = self.folder / "movie.mp4"
        self.content = random.Random(7).randbytes(self.part_size * PART_COUNT)
        self.path.write_bytes(self.content)
        self._thread = ThreadedDevServer(self.options)
        self._thread.__enter__()
        self.job = self._new_job()
        self.server.stats.creates = 0
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.__exit__(None, None, None)

    @property
    def server(self) -> DevServer:
        """The server."""
        return self._thread.server

    @property
    def makes_videos(self) -> bool:
        """Whether the library speaks to VOD itself."""
        return self.library in ("vodup", "voduploadsdk")

    def order(self, *faults: Fault) -> None:
        """Order misbehaviour in place of what was ordered before."""
        self.server.faults.replace(faults)

    def start(self) -> Running:
        """Begin an upload."""
        if self.library == "vodup":
            python = sys.executable
        else:
            name = "aiooss2" if self.library == "aiooss2" else "libraries"
            python = str(python_of(name))
        return Running([python, str(_DRIVER), self.library, json.dumps(vars(self.job))])

    def run(self) -> Ended:
        """Upload."""
        return self.start().wait()

    def killed_after(self, part_count: int) -> Ended:
        """Upload slowly, and kill -9 once so many parts are stored."""
        self.server.set_options(connection_bandwidth=2.0 * self.part_size)
        running = self.start()
        self.wait_for(lambda: self.server.stats.parts_stored >= part_count or running.is_over)
        running.kill()
        ended = running.wait()
        self.server.set_options(connection_bandwidth=None)
        return ended

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for something at the server."""
        ends_s = time.monotonic() + LIMIT_S
        while not condition() and time.monotonic() < ends_s:
            time.sleep(0.01)

    # --- the account's side -------------------------------------------------------------

    def _new_job(self) -> Job:
        """A grant from CreateUploadVideo, for libraries that know OSS only."""
        return self._job_of(self._call("CreateUploadVideo", Title="A movie", FileName="movie.mp4"))

    def renew(self) -> None:
        """New credentials for the same video, as a careful caller gets them."""
        self.job = self._job_of(self._call("RefreshUploadVideo", VideoId=self.job.video_id))

    def _call(self, action: str, **params: str) -> dict[str, Any]:
        server = self.server
        values = {"Action": action, "Version": "2017-03-21", **params}
        target, _ = rpc_signature_composer.get_signed_url(
            values, server.access_key_id, server.access_key_secret, "JSON", "GET", {}
        )
        with urlopen(server.vod_endpoint + target) as answer:  # noqa: S310  # loopback
            return dict(json.load(answer))

    def _job_of(self, answer: dict[str, Any]) -> Job:
        address, auth = (
            json.loads(base64.b64decode(answer[name])) for name in ("UploadAddress", "UploadAuth")
        )
        return Job(
            path=str(self.path),
            folder=str(self.folder / "checkpoints"),
            endpoint=address["Endpoint"],
            bucket=address["Bucket"],
            key=address["FileName"],
            access_key_id=auth["AccessKeyId"],
            access_key_secret=auth["AccessKeySecret"],
            security_token=auth["SecurityToken"],
            video_id=answer["VideoId"],
            vod_endpoint=self.server.vod_endpoint,
            account_id=self.server.access_key_id,
            account_secret=self.server.access_key_secret,
            part_size=self.part_size,
            connections=CONNECTIONS,
        )

    def overwrite_part(self, number: int) -> None:
        """Somebody else stores other bytes of the same size under the same UploadId."""
        requests = [r for r in self.server.stats.log if r.operation == "UploadPart"]
        if not requests:
            return
        if self.makes_videos:
            answer = self._call("RefreshUploadVideo", VideoId=requests[-1].video_id)
            self.job = self._job_of(answer)
        job, other = self.job, random.Random(8).randbytes(self.part_size)
        auth = oss2.StsAuth(
            job.access_key_id, job.access_key_secret, job.security_token, auth_version="v4"
        )
        bucket = oss2.Bucket(auth, job.endpoint, job.bucket, region="cn-shanghai")
        bucket.upload_part(job.key, requests[-1].upload_id, number, other)

    # --- what became of it --------------------------------------------------------------

    def objects(self) -> list[bytes]:
        """The objects there are, of any video."""
        found = []
        for video_id in self.server.videos:
            try:
                found.append(self.server.object_bytes(video_id))
            except LookupError:
                continue
        return found

    @property
    def is_stored(self) -> bool:
        """Whether exactly one object is there, and it is the file as it was first."""
        return self.objects() == [self.content]

    @property
    def video_count(self) -> int:
        """How many videos the library has made, or the one it was given."""
        return self.server.stats.creates if self.makes_videos else 1

    @property
    def sent_bytes(self) -> int:
        """Bytes of parts that arrived, whole or not."""
        return self.server.stats.part_bytes + self.server.stats.partial_bytes

    @property
    def twice_bytes(self) -> int:
        """What arrived beyond the file's own bytes."""
        return max(0, self.sent_bytes - len(self.content))

    def leaked(self, ended: Ended) -> list[str]:
        """Which kinds of secrets are in what it printed or left in files."""
        kinds = []
        left = b"".join(p.read_bytes() for p in self.folder.rglob("*") if p.is_file())
        job, output = self.job, ended.output
        tokens = [secret for secret in self.server.secrets() if secret != job.account_secret]
        if any(secret in ended.sentence for secret in tokens):
            kinds.append("a secret in the exception's text")
        if any(secret in output for secret in (*tokens, job.account_secret)):
            kinds.append("a secret in the log")
        if "Signature=" in output:
            kinds.append("a signature in the log")
        if any(secret.encode() in left for secret in (*tokens, job.account_secret)):
            kinds.append("a secret in a file")
        return kinds


class Stranger:
    """Another host that takes whatever it is sent. Mutable: what it has been sent."""

    def __init__(self) -> None:
        self.header_names: set[str] = set()
        self.request_count = 0
        self.body_bytes = 0
        stranger = self

        class Taking(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                stranger.request_count += 1
                stranger.header_names |= {name.lower() for name in self.headers}
                size = int(self.headers.get("content-length") or 0)
                stranger.body_bytes += len(self.rfile.read(size))
                self.send_response(200)
                self.send_header("ETag", '"taken"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET = do_PUT

            def log_message(self, *args: object) -> None:
                """Nobody wants to know."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
        # Another name than the server's: to a client it is another host.
        self.url = f"http://localhost:{self._server.server_port}/taken"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
