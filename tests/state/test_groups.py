"""Writes of many uploads share transactions, and no upload notices the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.state.conftest import record, set_video
from uploader.errors import StateError, UploadLocked
from uploader.state import Phase, SqlState


@asynccontextmanager
async def held_up(store: SqlState) -> AsyncIterator[None]:
    """Whatever is written in the block waits for its end, and then goes together."""
    assert store._opened is not None
    go_on = threading.Event()

    def wait() -> None:
        go_on.wait(10)

    store._opened.worker.submit(wait)
    try:
        yield
        await asyncio.sleep(0.05)
    finally:
        go_on.set()


async def begun(store: SqlState, *keys: str) -> list[bool | Exception]:
    """Claim and create each at the same time; how each went."""

    async def one(key: str) -> bool:
        async with store.claim(key) as journal:
            await journal.create_record(record(key))
            return True

    tasks = [asyncio.ensure_future(one(key)) for key in keys]
    return await asyncio.gather(*tasks, return_exceptions=True)  # type: ignore[return-value]


def commits_of(store: SqlState) -> list[int]:
    """The sizes of the store's commits from now on."""
    assert store._opened is not None
    sizes: list[int] = []
    commits = store._opened.commits
    carried_out = commits._commit

    def counted(writes: Sequence[Any]) -> Sequence[Any]:
        sizes.append(len(writes))
        return carried_out(writes)

    commits._commit = counted
    return sizes


async def test_uploads_that_wait_share_a_commit(tmp_path: Path) -> None:
    async with SqlState(tmp_path / "s" / "state.db") as store:
        sizes = commits_of(store)
        async with held_up(store):
            running = asyncio.ensure_future(begun(store, *"abcdefgh"))
            await asyncio.sleep(0)
        assert await running == [True] * 8
        assert sizes[0] == 8
        assert len(sizes) < 8
        assert len([status async for status in store.uploads()]) == 8


async def test_leases_of_many_uploads_share_commits_though_they_come_one_by_one(
    tmp_path: Path,
) -> None:
    async def claimed(store: SqlState, key: str) -> None:
        async with store.claim(key):
            pass

    async def one_by_one(store: SqlState) -> int:
        sizes = commits_of(store)
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(claimed(store, f"late-{number}"))
                await asyncio.sleep(0.004)
        return len(sizes)

    async with SqlState(tmp_path / "s" / "state.db") as store, AsyncExitStack() as stack:
        for number in range(8):
            await stack.enter_async_context(store.claim(f"open-{number}"))
        assert await one_by_one(store) <= 4


async def test_a_write_that_fails_fails_alone(tmp_path: Path) -> None:
    async with SqlState(tmp_path / "s" / "state.db") as store, AsyncExitStack() as stack:
        one = await stack.enter_async_context(store.claim("one"))
        two = await stack.enter_async_context(store.claim("two"))
        three = await stack.enter_async_context(store.claim("three"))
        for journal, key in ((one, "one"), (two, "two"), (three, "three")):
            await journal.create_record(record(key, phase=Phase.NEW))
        await set_video(one, "v")
        async with held_up(store):
            taken = asyncio.ensure_future(set_video(two, "v"))
            free = asyncio.ensure_future(set_video(three, "w"))
            await asyncio.sleep(0)
        with pytest.raises(StateError):
            await taken
        await free
        found = await store.find(video_id="w")
        assert found is not None
        assert found.key == "three"


async def test_a_claim_that_fails_takes_no_other_claim_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s" / "state.db"
    async with SqlState(path) as mine, SqlState(path) as other, other.claim("held"):
        async with held_up(mine):
            running = asyncio.ensure_future(begun(mine, "free", "held", "fine"))
            await asyncio.sleep(0)
        free, held, fine = await running
        assert (free, fine) == (True, True)
        assert isinstance(held, UploadLocked)


async def test_a_claim_that_was_rolled_back_gives_back_nobody_elses_lease(tmp_path: Path) -> None:
    path = tmp_path / "s" / "state.db"
    async with SqlState(path) as mine, SqlState(path) as other, other.claim("held"):
        with pytest.raises(UploadLocked):
            async with mine.claim("held"):
                pass
        # The next epoch is the one that the failed claim had counted.
        async with other.claim("second") as second:
            with pytest.raises(UploadLocked):
                async with mine.claim("held"):
                    pass
            await second.create_record(record("second"))  # LeaseLost, had it been dropped


async def test_a_cancelled_claim_in_a_shared_commit_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "s" / "state.db"
    async with SqlState(path) as mine, SqlState(path) as other:
        async with held_up(mine):
            running = [asyncio.ensure_future(begun(mine, key)) for key in ("gone", "stays")]
            await asyncio.sleep(0)
            running[0].cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running[0]
        assert await running[1] == [True]
        async with other.claim("gone") as journal:
            await journal.create_record(record("gone"))
