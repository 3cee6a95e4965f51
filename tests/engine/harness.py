"""An account, a folder and uploaders that share one checkpoint: what every test here needs."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from uploader import (
    AccessKey,
    Event,
    RetryPolicy,
    TrustPolicy,
    UnverifiedCompletion,
    Uploader,
    UploadOptions,
    UploadRecord,
    UploadResult,
    VodProvider,
    VodupError,
)
from uploader.devserver import DevServer, Fault
from uploader.devserver.stats import RequestRecord
from uploader.sources import AnySource
from uploader.state import Phase, StateStore, open_state
from uploader.uploader import AnyProvider

from ..devserver.clients import Vod, granted

PART = 100 * 1024
"""The smallest part OSS takes."""

QUICK = RetryPolicy(patience_s=1.2, first_contact_patience_s=1.2, base_s=0.01, cap_s=0.05)
LOOPBACK = TrustPolicy(allow_loopback=True)

E = TypeVar("E", bound=Event)


def options(**changes: Any) -> UploadOptions:
    """Small parts, four connections, short patience."""
    quick: dict[str, Any] = {
        "part_size": PART,
        "concurrency": 4,
        "retry": QUICK,
        "stall_timeout_s": 5.0,
        "vod_calls_per_s": 200.0,
    }
    return UploadOptions(**quick | changes)


def content(size: int, *, seed: int = 0) -> bytes:
    """Bytes that differ from part to part."""
    return random.Random(seed).randbytes(size)


@dataclass
class Desk:
    """One user's place: a server, a folder, one state store, and the events."""

    server: DevServer
    folder: Path
    events: list[Event] = field(default_factory=list)

    @property
    def state_path(self) -> Path:
        return self.folder / "state" / "vodup.db"

    def file(self, size: int, name: str = "movie.mp4", *, seed: int = 0) -> Path:
        path = self.folder / name
        path.write_bytes(content(size, seed=seed))
        return path

    def provider(self) -> VodProvider:
        key = AccessKey(id=self.server.access_key_id, secret=self.server.access_key_secret)
        return VodProvider(key, endpoint=self.server.vod_endpoint)

    def uploader(
        self,
        provider: AnyProvider | None = None,
        *,
        state: StateStore | str | Path | None = None,
        trust: TrustPolicy = LOOPBACK,
        **changes: Any,
    ) -> Uploader:
        """An uploader as a new process would make it."""
        return Uploader(
            provider or self.provider(),
            state=state or self.state_path,
            options=options(**changes),
            trust=trust,
            on_event=self.events.append,
        )

    def uploader_without_provider(self) -> Uploader:
        return Uploader(state=self.state_path, options=options(), trust=LOOPBACK)

    async def push(
        self, source: AnySource, *, provider: AnyProvider | None = None, **given: Any
    ) -> UploadResult:
        """Upload with an uploader of its own, as one run of a command does.

        `given` goes to `Uploader.upload` where it knows the name, else to the options.
        """
        known = {"meta", "video_id", "grant", "key", "overwrite", "on_event"}
        arguments = {name: given.pop(name) for name in known & given.keys()}
        async with self.uploader(provider, **given) as up:
            return await up.upload(source, **arguments)

    async def fail(self, source: AnySource, **given: Any) -> VodupError:
        """Upload and return the error it must end with; nothing untyped is caught."""
        try:
            result = await self.push(source, **given)
        except VodupError as error:
            return error
        raise AssertionError(f"this must not succeed: {result}")

    async def record(self, **by: str) -> UploadRecord:
        """The record of the only upload, or of the one named."""
        async with open_state(self.state_path) as store:
            if by:
                found = await store.find(**by)
                assert found is not None
                return found
            (status,) = [status async for status in store.uploads()]
            return status.record

    async def acked_part_numbers(self) -> set[int]:
        """The parts of which the checkpoint holds acks."""
        record = await self.record()
        async with open_state(self.state_path) as store, store.claim(record.key) as checkpoint:
            return set(checkpoint.acks)

    def events_of(self, kind: type[E]) -> list[E]:
        """The events of one type, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def count(self, operation: str) -> int:
        """Requests of one operation so far."""
        return self.server.stats.requests[operation]

    def requests(self, operation: str) -> list[RequestRecord]:
        return [record for record in self.server.stats.log if record.operation == operation]

    def order(self, *faults: Fault) -> None:
        """Order misbehaviour; forgets what was ordered before."""
        self.server.faults.replace(faults)

    def assert_faults_struck(self) -> None:
        """A test must not pass because its fault never happened."""
        assert not self.server.faults.unconsumed

    async def assert_stored(self, result: UploadResult, source: Path | bytes) -> None:
        """The object is byte for byte the source, and nothing is left open."""
        data = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        assert await self.server.object_sha256(result.video_id) == hashlib.sha256(data).hexdigest()
        assert result.size == len(data)
        assert self.server.open_upload_count == 0

    async def interrupted(self, source: Path, *, after: int, **given: Any) -> UploadRecord:
        """Run until `after` parts have arrived and then fail; returns the record.

        The first part is refused for good, so nothing can complete.
        """
        self.order(
            Fault(
                action="error",
                operation="UploadPart",
                part=after + 1,
                count=None,
                status=400,
                code="InvalidArgument",
            ),
        )
        error = await self.fail(source, concurrency=1, **given)
        assert error.code == "InvalidArgument"
        self.assert_faults_struck()
        self.order()
        return await self.record()


async def until(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 20) -> None:
    """Wait for something that happens in other tasks."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.005)


async def assert_overwrite_helps(
    desk: Desk, source: Path, error: VodupError, **given: Any
) -> UploadResult:
    """Do what the next step of an `UnverifiedCompletion` says; it must end verified."""
    assert isinstance(error, UnverifiedCompletion)
    assert "--overwrite" in error.next_step
    result = await desk.push(source, overwrite=True, **given)
    await desk.assert_stored(result, source)
    assert (await desk.record()).phase is Phase.DONE
    return result


async def called(server: DevServer, action: str, **params: str) -> dict[str, Any]:
    """The answer of a VOD call made outside of vodup: by an app server, for example."""
    return await asyncio.to_thread(Vod(server).ok, action, **params)


async def created(server: DevServer) -> dict[str, Any]:
    return await called(server, "CreateUploadVideo", Title="A title", FileName="movie.mp4")


async def refreshed(server: DevServer, video_id: str) -> dict[str, Any]:
    return await called(server, "RefreshUploadVideo", VideoId=video_id)


async def foreign_part(desk: Desk, number: int) -> None:
    """Another client stores other bytes of the same size under our UploadId."""
    record = await desk.record()
    client = granted(await refreshed(desk.server, record.video_id or ""))
    other = content(PART, seed=99)
    reply = await asyncio.to_thread(client.put_part, record.upload_id or "", number, other)
    assert reply.status == 200
