"""Acks share commits while the next parts are sent; few of them can be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from uploader.devserver import Fault
from uploader.state import PartAck, SqlState
from uploader.state.commits import AckWrite
from uploader.state.sql import _SqlClaim
from uploader.state.thread import StoreThread

from .harness import PART, Desk, until

MOST_AT_STAKE = 64


async def test_a_state_that_stalls_stops_the_sending_soon(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    concurrency = 4
    go_on = asyncio.Event()
    keep = _SqlClaim.add_ack

    async def stall(self: _SqlClaim, part: PartAck, *, patience_s: float = 0.0) -> None:
        await go_on.wait()
        await keep(self, part, patience_s=patience_s)

    monkeypatch.setattr(_SqlClaim, "add_ack", stall)
    movie = desk.file(120 * PART)
    async with desk.uploader(concurrency=concurrency) as up:
        task = asyncio.create_task(up.upload(movie))
        most = MOST_AT_STAKE + concurrency
        await until(lambda: desk.server.stats.parts_stored >= MOST_AT_STAKE)
        await asyncio.sleep(0.2)
        assert MOST_AT_STAKE <= desk.server.stats.parts_stored <= most
        go_on.set()
        await desk.assert_stored(await task, movie)
        assert desk.server.stats.bytes_sent_twice == 0


async def test_acks_share_commits_and_the_last_does_not_wait(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts at a time, 20 ms each: one commit holds the acks of several rounds."""
    sizes: list[int] = []
    commit = StoreThread._commit

    def recorded(self: StoreThread, writes: Sequence[Any]) -> Sequence[Any]:
        if any(isinstance(write, AckWrite) for write in writes):
            sizes.append(len(writes))
        return commit(self, writes)

    monkeypatch.setattr(StoreThread, "_commit", recorded)
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=0.02, count=None))
    movie = desk.file(100 * PART)
    async with desk.uploader(concurrency=2) as up:
        result = await up.upload(movie)
    await desk.assert_stored(result, movie)
    assert sum(sizes) == 100
    assert len(sizes) <= 60
    assert desk.count("ListParts") == 1


@pytest.mark.parametrize("why", ["denied", "few"])
async def test_acks_that_no_list_shows_are_committed_before_the_next_part(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    waited: list[float] = []
    keep = _SqlClaim.add_ack

    async def recorded(self: _SqlClaim, part: PartAck, *, patience_s: float = 0.0) -> None:
        waited.append(patience_s)
        await keep(self, part, patience_s=patience_s)

    monkeypatch.setattr(_SqlClaim, "add_ack", recorded)
    if why == "denied":
        desk.server.set_options(denied_operations=("ListParts",))
    movie = desk.file((80 if why == "denied" else 60) * PART)

    await desk.assert_stored(await desk.push(movie, concurrency=4), movie)

    assert set(waited) == {0.0}
    assert desk.count("ListParts") == (why == "denied")


async def test_acks_of_a_cancelled_upload_are_kept(desk: Desk) -> None:
    """Also those that were waiting for company when it was cancelled."""
    movie = desk.file(80 * PART)
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=5.0, part=11))
    async with desk.uploader(concurrency=1) as up:
        task = asyncio.create_task(up.upload(movie))
        await until(lambda: desk.count("UploadPart") == 11)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with SqlState(desk.state_path) as state:
        (status,) = [status async for status in state.uploads()]
    assert status.acked_part_count == 10
