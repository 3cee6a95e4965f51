"""What the tests run in processes of their own, to be killed, frozen or raced."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Coroutine

from uploader.errors import VodupError
from uploader.state import PartAck, Phase, SqlState, UploadRecord

RECORD = UploadRecord(key="movie", phase=Phase.UPLOADING, source="/m", fingerprint="f", size=9)


def say(*words: object) -> None:
    print(*words, flush=True)


def part(number: int) -> PartAck:
    return PartAck(number, 8 << 20, f"ETAG-{number}", 2**64 - number)


async def ack_forever(url: str, callers: str) -> None:
    """Print each part's number once its ack has returned."""

    async def one(first: int) -> None:
        for number in range(first, 1 << 30, int(callers)):
            await journal.add_part(part(number))
            say(number)

    async with SqlState(url) as store, store.claim("movie") as journal:
        if journal.record is None:
            await journal.create_record(RECORD)
        first = max(journal.acks, default=0) + 1
        async with asyncio.TaskGroup() as group:
            for caller in range(int(callers)):
                group.create_task(one(first + caller))


async def hold(url: str, ttl_s: str) -> None:
    """Hold the upload until stdin ends."""
    async with SqlState(url, lease_ttl_s=float(ttl_s)) as store, store.claim("movie") as journal:
        if journal.record is None:
            await journal.create_record(RECORD)
        await journal.add_part(part(1))
        say("holding")
        await asyncio.to_thread(sys.stdin.read)


async def write_after_freeze(url: str, ttl_s: str) -> None:
    """Try every write as soon as a line arrives; the loop is blocked until then."""
    async with SqlState(url, lease_ttl_s=float(ttl_s)) as store, asyncio.TaskGroup() as group:
        try:
            async with store.claim("movie") as journal:
                await journal.create_record(RECORD)
                say("holding")
                sys.stdin.readline()
                for write in (
                    journal.add_part(part(99)),
                    journal.record_error("zombie"),
                    journal.restart(),
                    journal.set_upload_id("zombie", plan="v1 8M"),
                ):
                    group.create_task(attempt(write))
                await asyncio.sleep(30)
        except VodupError as error:
            say("block", type(error).__name__)


async def attempt(write: Coroutine[object, object, object]) -> None:
    try:
        say("written", await write)
    except VodupError as error:
        say(type(error).__name__)


async def race(url: str) -> None:
    """Claim whenever a line arrives; hold for as long as a rival needs to try."""
    async with SqlState(url) as store:
        say("ready")
        while await asyncio.to_thread(sys.stdin.readline):
            try:
                async with store.claim("movie"):
                    say("won")
                    await asyncio.to_thread(sys.stdin.readline)
                say("released")
            except VodupError as error:
                say(type(error).__name__)
                await asyncio.to_thread(sys.stdin.readline)
                say("released")


async def fill(url: str, limit: str) -> None:
    """Ack until the file may not grow any more, then let it grow again."""
    async with SqlState(url) as store, store.claim("movie") as journal:
        await journal.create_record(RECORD)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        written = 0
        try:
            for number in range(1, 100_000):
                await journal.add_part(part(number))
                written = number
        except VodupError as error:
            say(type(error).__name__, written)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await journal.add_part(part(written + 1))
        say("written", written + 1)


async def forget_to_close(url: str) -> None:
    """Leave without closing anything."""
    store = await SqlState(url).__aenter__()
    say(await store.find(key="movie"))


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
