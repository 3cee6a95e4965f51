"""`demo`: a real upload that is killed halfway, with credentials that keep expiring.

The development server and both uploads are processes of their own, as if a user had started them.
The results are read from the server, not from the uploader.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, cast

from uploader import units
from uploader.cli import run
from uploader.cli.flags import DemoFlags
from uploader.cli.printing import err, out, out_json
from uploader.errors import ConfigurationError, VodupError
from uploader.protocol import vod
from uploader.protocol.signing import sign_rpc
from uploader.protocol.wire import BytesBody, Response

_UPLOAD_S: Final = 26.0
"""How long the upload should take; the server's bandwidth follows from it."""

_LIVES: Final = 5
"""How many times the credentials expire meanwhile."""

_KILL_AT: Final = 0.45
_CONNECTIONS: Final = 8
_PARTS: Final = 128
"""So many that a part takes less time than the credentials live."""

_SPARE_SIZE: Final = 64 * units.MIB
_BLOCK_SIZE: Final = 4 * units.MIB
_READY_S: Final = 20.0
_STOP_S: Final = 5.0


@dataclass(slots=True)
class DemoPush:
    """One run of `vodup push`. Mutable while it runs."""

    events: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def last(self, kind: str) -> dict[str, Any]:
        """The newest event of a type; empty if there is none."""
        return next((e for e in reversed(self.events) if e["type"] == kind), {})

    @property
    def renewal_count(self) -> int:
        """Credentials renewed by this run."""
        return int(self.last("credentials.renewed").get("renewal_count", 0))

    @property
    def share(self) -> float:
        """How much is uploaded, from 0 to 1."""
        progress = self.last("upload.progress")
        return float(progress["done_bytes"] / progress["size"]) if progress else 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that must hold, and what was measured."""

    name: str
    holds: bool
    seen: str


def demo(flags: DemoFlags) -> int:
    """Run the demo; returns 0 only if everything that is claimed holds."""
    say: Callable[[str], None] = err if flags.json else out
    with _cleaning_up_on_signals(), _folder(flags) as folder:
        show = _Demo(folder, flags.size, say)
        claims = show.run()
        seconds = show.seconds
    holds = all(claim.holds for claim in claims)
    if flags.json:
        facts = {"ok": holds, "seconds": round(seconds, 1), "claims": [*map(asdict, claims)]}
        out_json(facts)
    else:
        for claim in claims:
            status = "ok    " if claim.holds else "FAILED"
            out("", f"  {status} {claim.name}", f"         {claim.seen}")
        result = "All checks passed" if holds else "Some checks FAILED"
        out("", f"{result} in {units.duration(seconds)}.")
    return run.DONE if holds else run.FAILED


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _cleaning_up_on_signals() -> Iterator[None]:
    """Raise at Ctrl-C and SIGTERM, where a command usually ends at once."""
    with _handled(_interrupt):
        yield


def _interrupt(number: int, _: FrameType | None) -> None:
    raise run.Interrupted(signal.Signals(number))


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back until the block has ended: started processes are known, and ended."""
    received: list[int] = []
    with _handled(lambda number, _: received.append(number)):
        yield
    if received:
        signal.raise_signal(received[0])


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, former in zip(_SIGNALS, before, strict=True):
            signal.signal(number, former)


@contextmanager
def _folder(flags: DemoFlags) -> Iterator[Path]:
    """A temporary folder with space for the file twice, as sent and as received."""
    folder = Path(tempfile.gettempdir(), f"vodup-demo-{secrets.token_hex(8)}")
    try:
        folder.mkdir(0o700)
        free = shutil.disk_usage(folder).free
        if free < 2 * flags.size + _SPARE_SIZE:
            raise ConfigurationError(
                f"The demo needs {units.size(2 * flags.size)} in {folder.parent}, which has "
                f"{units.size(free)} left.",
                next_step="Pass a smaller --size, or set TMPDIR to a larger disk.",
            )
        yield folder
    finally:
        if flags.keep:
            err(f"Kept: {folder}")
        else:
            with _uninterrupted():
                shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    """One demonstration. Mutable: when it began, its server."""

    def __init__(self, folder: Path, size: int, say: Callable[[str], None]) -> None:
        self._folder, self._size, self._print = folder, size, say
        self._file = folder / "movie.mp4"
        self._part_size = -(-size // _PARTS)
        self._began_s = time.monotonic()
        self._env: dict[str, str] = {}
        self._token: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    def _say(self, sentence: str) -> None:
        self._print(f"[{self.seconds:5.1f} s] {sentence}")

    def run(self) -> list[Claim]:
        """Upload, kill, upload again; returns what that proves."""
        self._say(f"Writing {units.size(self._size)} of random bytes to {self._file}.")
        sha256 = _write_random(self._file, self._size)
        self._say(f"SHA-256 of the file: {sha256}")
        with self._devserver():
            self._say(f"$ vodup push {self._file.name}")
            first = self._push(kill_at=_KILL_AT)
            crash = self._look_at_crash(first)
            self._say(f"$ vodup push {self._file.name}      (the same command again)")
            return self._claims(sha256, first, self._push(), crash)

    @contextmanager
    def _devserver(self) -> Iterator[None]:
        bandwidth, ttl_s = int(self._size / _UPLOAD_S), round(_UPLOAD_S / _LIVES, 1)
        words = [
            *("devserver", f"--data={self._folder / 'server'}"),
            *(f"--bandwidth={bandwidth}", f"--credential-ttl={ttl_s}"),
            "--until-stdin-ends",  # however the demo ends, its server does not outlive it
        ]
        with _process(words, _clean_environment()) as process:
            too_late = threading.Timer(_READY_S, process.kill)
            too_late.daemon = True  # an interrupted demo does not wait for it
            too_late.start()
            line = cast("IO[bytes]", process.stdout).readline()
            too_late.cancel()
            if not line:
                raise VodupError("The development server did not start.")
            ready = json.loads(line)
            self._env, self._token = ready["env"], {"X-Vodup-Token": ready["admin_token"]}
            self._say(
                f"A local VOD and OSS server is ready: {units.rate(bandwidth)}, credentials "
                f"expire after {ttl_s} s (in production: 3,000 s)."
            )
            yield

    def _get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        url = f"{self._env['VODUP_VOD_ENDPOINT']}/_vodup/{path}"
        with _request(url, headers=self._token) as answer:
            return json.load(answer)

    def _push(self, *, kill_at: float = 2.0) -> DemoPush:
        """Run `vodup push` and narrate it; SIGKILL it at that share of the file."""
        words = [
            *("push", str(self._file), "--json"),
            "--retry-for=5s",  # should the demo be killed, its server ends, and so does this
            f"--state={self._folder / 'state.db'}",
            f"--concurrency={_CONNECTIONS}",
            f"--part-size={self._part_size}",
        ]
        pushed = DemoPush()
        with _process(words, _clean_environment() | self._env) as process:
            for line in cast("IO[bytes]", process.stdout):
                pushed.events.append(json.loads(line))
                self._narrate(pushed, pushed.events[-1])
                if pushed.share >= kill_at:
                    process.kill()
                    break
            pushed.exit_code = process.wait()
        return pushed

    def _narrate(self, pushed: DemoPush, event: dict[str, Any]) -> None:
        match event["type"]:
            case "upload.started":
                parts = units.count(event["part_count"], "part")
                done = f"{event['resumed_part_count']} of {parts} already uploaded"
                verb, rest = ("Resuming", done) if event["is_resumed"] else ("Uploading", parts)
                self._say(f"{verb} VideoId {event['video_id']}: {rest}.")
            case "credentials.renewed":
                self._say(f"Credentials renewed before they expire, at {100 * pushed.share:.0f} %.")
            case "parts.adopted":
                parts = units.count(event["part_count"], "part")
                self._say(f"OSS has {parts} that were not recorded; compared with the file, kept.")
            case "upload.finished":
                self._say(f"Uploaded; verified by {event['verified_by']}: {event['crc64']}.")
            case "upload.failed":
                self._say(f"Failed: {event['message']}")

    def _look_at_crash(self, pushed: DemoPush) -> dict[str, Any]:
        """Return what the server has at the moment of the crash."""
        if pushed.exit_code != -signal.SIGKILL:
            raise VodupError(f"The first upload ended by itself ({pushed.exit_code}).")
        time.sleep(0.5)  # its connections break
        video = self._get(f"videos/{pushed.last('upload.started')['video_id']}")
        parts = video["uploads"][0]["parts"]
        size = units.size(sum(part["size"] for part in parts))
        self._say(f"kill -9: the process is gone; OSS has {len(parts)} complete parts ({size}).")
        return {"parts": len(parts), "upload_id": video["uploads"][0]["upload_id"]}

    def _claims(
        self, sha256: str, first: DemoPush, second: DemoPush, crash: dict[str, Any]
    ) -> list[Claim]:
        video_id, result = first.last("upload.started")["video_id"], second.last("upload.finished")
        stats = self._get("stats")
        read_back = self._read_back(video_id)
        lives = len(stats["bytes_by_generation"])
        repeated = sum(stats["bytes_by_part"].values()) - self._size
        most = _CONNECTIONS * self._part_size
        return [
            Claim(
                "The second run finished, verified",
                second.exit_code == 0,
                f"verified by {result.get('verified_by')}: CRC-64 {result.get('crc64')}",
            ),
            Claim(
                "The VideoId stayed the same",
                result.get("video_id") == video_id and stats["creates"] == 1,
                f"{result.get('video_id')}; videos created: {stats['creates']}",
            ),
            Claim(
                "The UploadId stayed the same",
                result.get("upload_id") == crash["upload_id"] and stats["initiates"] == 1,
                f"{result.get('upload_id')}; multipart uploads: {stats['initiates']}",
            ),
            Claim(
                "No part that OSS had was sent again",
                stats["bytes_sent_twice"] == 0
                and result.get("resumed_part_count") == crash["parts"],
                f"{result.get('resumed_part_count')} of {result.get('part_count')} parts resumed; "
                f"bytes of complete parts sent twice: {stats['bytes_sent_twice']}",
            ),
            Claim(
                "Only parts in transit at the crash were lost",
                0 <= repeated <= most,
                f"{units.size(repeated)} sent twice; the limit is {_CONNECTIONS} connections × "
                f"{units.size(self._part_size)}",
            ),
            Claim(
                "Credentials expired during the upload",
                lives > _LIVES - 2,
                f"{lives} sets used; {first.renewal_count} + {second.renewal_count} renewals",
            ),
            Claim(
                "The object equals the file, byte for byte",
                read_back == sha256,
                f"read through the URL from VOD: SHA-256 {read_back}",
            ),
        ]

    def _read_back(self, video_id: str) -> str:
        """Read the object as its owner would: get a URL from VOD, and download it."""
        key = vod.AccessKey(
            id=self._env["ALIBABA_CLOUD_ACCESS_KEY_ID"],
            secret=self._env["ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
        )
        operation = vod.get_mezzanine_info(self._env["VODUP_VOD_ENDPOINT"], video_id)
        now, nonce = datetime.now(UTC), secrets.token_hex(16)
        signed = sign_rpc(operation, key, at=now, nonce=nonce, generation=0)
        body = cast("BytesBody", signed.body).data
        with _request(signed.url, body, signed.headers) as answer:
            facts = operation.parse(Response(answer.status, {}, answer.read()))
        with _request(facts.file_url or "") as stored:
            return hashlib.file_digest(stored, "sha256").hexdigest()


def _write_random(path: Path, size: int) -> str:
    """Write bytes that do not compress, the same ones for the same size; return their SHA-256."""
    digest = hashlib.sha256()
    generator = random.Random(size)
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK_SIZE):
            block = generator.randbytes(min(_BLOCK_SIZE, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _clean_environment() -> dict[str, str]:
    """The environment without anything that would change the demo."""
    ours = ("VODUP_", "ALIBABA_CLOUD_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}


@contextmanager
def _process(words: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `vodup` with these words for as long as the block."""
    is_bundle = getattr(sys, "frozen", False)  # its executable is vodup, and has no -c
    vodup = () if is_bundle else ("-c", "from uploader.cli import main; main()")
    process: subprocess.Popen[bytes] | None = None
    try:
        with _uninterrupted():
            process = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, *vodup, *words],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        yield process
    finally:
        if process is not None:
            with _uninterrupted(), process:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_S)
                process.kill()


def _request(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - an HTTPResponse, to be closed
    """Send a request to the development server, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, dict(headers or {}))  # noqa: S310 - http, ours
    return opener.open(request, timeout=60)
