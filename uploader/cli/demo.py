"""`vodup demo`: a real upload, killed in the middle, with credentials that keep expiring.

Everything runs as a user would run it: the development server and both uploads are
processes of their own. What is claimed at the end is read from the server, not from us.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from uploader import units
from uploader.cli import run
from uploader.cli.flags import DemoFlags
from uploader.cli.printing import err, out
from uploader.errors import ConfigurationError, VodupError
from uploader.protocol import vod
from uploader.protocol.signing import sign_rpc
from uploader.protocol.wire import BytesBody, Response
from uploader.threads import in_thread

__all__ = ["demo"]

_UPLOAD_S: Final = 26.0
"""How long the upload should take: the server's bandwidth is chosen for that."""

_LIVES: Final = 5
"""How many times the credentials expire meanwhile."""

_KILL_AT: Final = 0.45
_CONNECTIONS: Final = 8
_PARTS: Final = 128
"""Small enough that a part takes less time than the credentials live."""

_MIN_SIZE: Final = 64 * units.MIB
_PIECE: Final = 4 * units.MIB
_READY_S: Final = 20.0

_TIED_COMMAND: Final = """
import os, sys, threading

def end_with_the_demo():
    os.read(0, 1)  # nobody writes: this returns when the demo is gone, however it went
    os.kill(os.getpid(), 9)

threading.Thread(target=end_with_the_demo, daemon=True).start()
from uploader.cli import main
main()
"""
"""`vodup` for as long as the demo lives: nobody is left to stop an upload it has begun."""


@dataclass(slots=True)
class Run:
    """One run of `vodup push`, as its JSON lines told it. Mutable while it runs."""

    events: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def last(self, kind: str) -> dict[str, Any]:
        """The newest line of a type; empty if there is none."""
        return next((e for e in reversed(self.events) if e["type"] == kind), {})

    @property
    def renewal_count(self) -> int:
        """Credentials renewed by this run."""
        return int(self.last("credentials.renewed").get("renewal_count", 0))


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that must hold, and what was seen of it."""

    name: str
    holds: bool
    seen: str


def demo(flags: DemoFlags) -> int:
    """Show it, and return 0 only if everything that is claimed holds."""
    say: Callable[[str], None] = err if flags.json else out
    with _folder(flags.size, keep=flags.keep) as folder:
        return run.run_async(_Demo(folder, flags.size, say, flags.json).run())


@contextlib.contextmanager
def _folder(byte_count: int, *, keep: bool) -> Iterator[Path]:
    """A temporary folder that holds the file twice, as sent and as received."""
    folder = Path(tempfile.mkdtemp(prefix="vodup-demo-"))
    try:
        free = shutil.disk_usage(folder).free
        if free < 2 * byte_count + _MIN_SIZE:
            raise ConfigurationError(
                f"The demo needs {units.size(2 * byte_count)} in {folder.parent}, which has "
                f"{units.size(free)}.",
                next_step="Pass a smaller --size, or set TMPDIR to a larger disk.",
            )
        yield folder
    finally:
        if keep:
            err(f"Kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    """One demonstration. Mutable: when it began, what it has seen."""

    def __init__(self, folder: Path, size: int, say: Callable[[str], None], as_json: bool) -> None:
        self._folder, self._size, self._say, self._as_json = folder, size, say, as_json
        self._file = folder / "movie.mp4"
        self._bandwidth = int(size / _UPLOAD_S)
        self._part_size = -(-size // _PARTS)
        self._ttl_s = round(_UPLOAD_S / _LIVES, 1)
        self._began = time.monotonic()
        self._env: dict[str, str] = {}
        self._server = ""

    def _tell(self, words: str) -> None:
        self._say(f"[{time.monotonic() - self._began:5.1f} s] {words}")

    async def run(self) -> int:
        self._tell(f"making a file of {units.size(self._size)} of random bytes: {self._file}")
        sha256 = await in_thread(_write_random, self._file, self._size)
        self._tell(f"its SHA-256 is {sha256}")
        async with self._devserver():
            self._tell(f"$ vodup push {self._file.name}")
            first = await self._push(kill_at=_KILL_AT)
            crash = await self._look_at_crash(first)
            self._tell(f"$ vodup push {self._file.name}      (the same command again)")
            second = await self._push()
            claims = await self._claims(sha256, first, second, crash)
        return self._report(claims)

    # --- the server --------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _devserver(self) -> AsyncIterator[None]:
        words = [f"--bandwidth={self._bandwidth}", f"--credential-ttl={self._ttl_s}"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "uploader.devserver", *words, f"--data={self._folder / 'server'}"),
            "--until-stdin-ends",  # whatever ends the demo, its server does not outlive it
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_clean_environment(),
        )
        try:
            async with asyncio.timeout(_READY_S):
                ready = json.loads(await _output_of(process).readline())
            self._server, self._env = ready["vod_endpoint"], ready["env"]
            self._tell(
                f"a local VOD and OSS is up: {units.rate(self._bandwidth)}, credentials live "
                f"{self._ttl_s} s (the real ones: 3,000 s)"
            )
            yield
        finally:
            await _stop(process)

    async def _ask(self, path: str) -> Any:  # noqa: ANN401 - JSON
        return await in_thread(_get_json, self._server, path)

    # --- the uploads -------------------------------------------------------------------

    async def _push(self, *, kill_at: float | None = None) -> Run:
        """Run `vodup push` and narrate it; with `kill_at`, SIGKILL it at that share."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _TIED_COMMAND, "push", str(self._file), "--json"),
            f"--state={self._folder / 'state.db'}",
            f"--concurrency={_CONNECTIONS}",
            f"--part-size={self._part_size}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_clean_environment() | self._env,
        )
        run = Run()
        try:
            async for line in _output_of(process):
                event = json.loads(line)
                run.events.append(event)
                self._narrate(run, event)
                if kill_at is not None and _share_done(event) >= kill_at:
                    process.kill()
                    break
            run.exit_code = await process.wait()
        finally:
            await _stop(process)
        return run

    def _narrate(self, run: Run, event: dict[str, Any]) -> None:
        match event["type"]:
            case "upload.started":
                self._tell(_started(event))
            case "credentials.renewed":
                self._tell(f"credentials about to expire: renewed{_how_far(run)}")
            case "parts.adopted":
                self._tell(
                    f"{units.count(event['part_count'], 'part')} had arrived without our knowing: "
                    "proved against the file and kept"
                )
            case "upload.finished":
                self._tell(f"stored; verified by {event['verified_by']}, {event['crc64']}")
            case "upload.failed":
                self._tell(f"failed: {event['message']}")

    async def _look_at_crash(self, run: Run) -> dict[str, Any]:
        """See what the server has at the moment of the crash."""
        if run.exit_code != -signal.SIGKILL:
            raise VodupError(f"The first upload ended by itself ({run.exit_code}).")
        video_id = run.last("upload.started")["video_id"]
        await asyncio.sleep(0.5)  # its connections break
        video = await self._ask(f"videos/{video_id}")
        parts = video["uploads"][0]["parts"]
        self._tell(
            f"kill -9: the process is gone in the middle; OSS holds {len(parts)} whole parts "
            f"({units.size(sum(part['size'] for part in parts))})"
        )
        return {"parts": len(parts), "upload_id": video["uploads"][0]["upload_id"]}

    # --- what it proves ----------------------------------------------------------------

    async def _claims(
        self, sha256: str, first: Run, second: Run, crash: dict[str, Any]
    ) -> list[Claim]:
        begun, result = first.last("upload.started"), second.last("upload.finished")
        stats = await self._ask("stats")
        read_back = await in_thread(self._read_back, begun["video_id"])
        lives = len(stats["bytes_by_generation"])
        return [
            Claim("the second run finished, verified", second.exit_code == 0, _proof(result)),
            Claim(
                "the VideoId is the same",
                result.get("video_id") == begun["video_id"] and stats["creates"] == 1,
                f"{result.get('video_id')}; videos made: {stats['creates']}",
            ),
            Claim(
                "the UploadId is the same",
                result.get("upload_id") == crash["upload_id"] and stats["initiates"] == 1,
                f"{result.get('upload_id')}; uploads begun: {stats['initiates']}",
            ),
            Claim(
                "no part that OSS had was sent again",
                stats["bytes_sent_twice"] == 0
                and result.get("resumed_part_count") == crash["parts"],
                f"{result.get('resumed_part_count')} of {result.get('part_count')} parts resumed, "
                f"bytes of whole parts sent twice: {stats['bytes_sent_twice']}",
            ),
            self._rework(stats),
            Claim(
                "credentials expired on the way",
                lives > _LIVES - 2,
                f"{lives} sets were used, {first.renewal_count} + {second.renewal_count} renewals",
            ),
            Claim(
                "the object is the file, byte for byte",
                read_back == sha256,
                f"read back through the URL VOD gives for it: SHA-256 {read_back}",
            ),
        ]

    def _read_back(self, video_id: str) -> str:
        """Read the object the way its owner would: ask VOD for a URL, and GET that."""
        key = vod.AccessKey(
            id=self._env["ALIBABA_CLOUD_ACCESS_KEY_ID"],
            secret=self._env["ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
        )
        operation = vod.get_mezzanine_info(self._env["VODUP_VOD_ENDPOINT"], video_id)
        now, nonce = datetime.now(UTC), secrets.token_hex(16)
        asked = sign_rpc(operation, key, at=now, nonce=nonce, generation=0)
        with _answer("POST", asked.url, cast("BytesBody", asked.body).data, asked.headers) as told:
            facts = operation.parse(Response(told.status, {}, told.read()))
        with _answer("GET", facts.file_url or "") as stored:
            return hashlib.file_digest(stored, "sha256").hexdigest()

    def _rework(self, stats: dict[str, Any]) -> Claim:
        """Parts under way at the crash had to be sent again; nothing else."""
        twice = sum(stats["bytes_by_part"].values()) - self._size
        most = _CONNECTIONS * self._part_size
        return Claim(
            "what was under way at the crash is all that was lost",
            0 <= twice <= most,
            f"{units.size(twice)} were sent twice; the most possible is {_CONNECTIONS} "
            f"connections × {units.size(self._part_size)}",
        )

    def _report(self, claims: list[Claim]) -> int:
        holds = all(claim.holds for claim in claims)
        seconds = time.monotonic() - self._began
        if self._as_json:
            told = {"ok": holds, "seconds": round(seconds, 1), "claims": [*map(asdict, claims)]}
            out(json.dumps(told))
            return run.DONE if holds else run.FAILED
        self._say("")
        for claim in claims:
            self._say(f"  {'ok    ' if claim.holds else 'BROKEN'} {claim.name}")
            self._say(f"         {claim.seen}")
        self._say("")
        verdict = "All of it holds" if holds else "Something does not hold"
        self._say(f"{verdict}; {units.duration(seconds)}.")
        return run.DONE if holds else run.FAILED


def _started(event: dict[str, Any]) -> str:
    parts = units.count(event["part_count"], "part")
    if not event["is_resumed"]:
        return f"VideoId {event['video_id']}, UploadId {event['upload_id']}, {parts}"
    return (
        f"continuing VideoId {event['video_id']}: {event['resumed_part_count']} of {parts} "
        f"({units.size(event['done_bytes'])}) need not be sent"
    )


def _how_far(run: Run) -> str:
    share = _share_done(run.last("upload.progress") or {"type": ""})
    return f", at {100 * share:.0f} %" if share else ""


def _proof(result: dict[str, Any]) -> str:
    if not result:
        return "it did not finish"
    return f"verified by {result['verified_by']}: CRC-64 {result['crc64']}, {result['size']} bytes"


def _share_done(event: dict[str, Any]) -> float:
    if event["type"] != "upload.progress":
        return 0.0
    return float(event["done_bytes"] / event["size"])


def _write_random(path: Path, size: int) -> str:
    """Write bytes that do not compress; the same ones for the same size."""
    digest = hashlib.sha256()
    generator = random.Random(size)
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            piece = generator.randbytes(min(_PIECE, size - start))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _clean_environment() -> dict[str, str]:
    """The environment without anything that would change what is shown."""
    ours = ("VODUP_", "ALIBABA_CLOUD_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}


def _output_of(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise RuntimeError("it was started without a pipe")
    return process.stdout


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(5):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _get_json(endpoint: str, path: str) -> Any:  # noqa: ANN401
    with _answer("GET", f"{endpoint}/_vodup/{path}") as answer:
        body = answer.read()
    if answer.status != 200:
        raise VodupError(f"The development server answered {answer.status} to {path}.")
    return json.loads(body)


@contextlib.contextmanager
def _answer(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, dict(headers or {}))
        yield connection.getresponse()
    finally:
        connection.close()
