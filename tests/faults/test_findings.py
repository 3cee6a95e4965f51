"""What the matrix has found, each in its smallest form."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from uploader import ServiceError, SourceUnreadable, StateUnavailable
from uploader.devserver import DevServer, Fault
from uploader.state import MemoryState

from ..engine.harness import PART, Desk
from .local import FailingState


@pytest.fixture
async def server() -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def desk(server: DevServer, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path)


LOST_COMPLETE = Fault(action="drop_answer", operation="CompleteMultipartUpload")


async def test_a_portals_page_is_no_word_about_the_object(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    desk.order(LOST_COMPLETE, Fault(action="html", status=200, operation="HeadObject"))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()
    assert desk.server.stats.completes == 1


async def test_a_missing_bucket_is_not_a_missing_object(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    desk.order(LOST_COMPLETE, Fault(action="error", operation="HeadObject", code="NoSuchBucket"))

    error = await desk.fail(movie)
    result = await desk.push(movie)

    assert isinstance(error, ServiceError)
    assert error.code == "NoSuchBucket"
    assert desk.server.stats.completes == 1
    await desk.assert_stored(result, movie)


async def test_a_portals_page_does_not_abort(desk: Desk) -> None:
    record = await desk.interrupted(desk.file(3 * PART), after=2)
    desk.order(Fault(action="html", status=200, operation="AbortMultipartUpload"))

    async with desk.uploader() as up:
        await up.abort(record.key)

    desk.assert_faults_struck()
    assert desk.server.open_upload_count == 0


async def test_a_put_whose_callback_failed_is_stored(desk: Desk) -> None:
    movie = desk.file(PART)
    desk.order(Fault(action="callback_failed", operation="PutObject"))

    result = await desk.push(movie)

    desk.assert_faults_struck()
    await desk.assert_stored(result, movie)
    assert desk.server.stats.puts == 1


@pytest.mark.parametrize("how", ["write fails", "write is not reported", "taken over"])
async def test_an_upload_that_cannot_be_written_down_is_not_left_behind(
    desk: Desk, how: str
) -> None:
    movie = desk.file(3 * PART)
    state = FailingState(MemoryState())
    state.arm("upload-id", how)

    error = await desk.fail(movie, state=state)

    assert error.is_resumable
    assert desk.server.open_upload_count == 0
    state.disarm()
    await desk.assert_stored(await desk.push(movie, state=state), movie)


async def test_the_original_put_back_is_taken_although_nothing_was_confirmed(desk: Desk) -> None:
    movie = desk.file(PART)
    state = MemoryState()
    desk.order(Fault(action="error", operation="PutObject", status=400, code="Odd"))
    assert (await desk.fail(movie, state=state)).code == "Odd"
    os.utime(movie)

    result = await desk.push(movie, state=state)

    await desk.assert_stored(result, movie)


async def test_a_missing_source_says_where_it_failed(desk: Desk) -> None:
    error = await desk.fail(desk.folder / "missing.mp4")

    assert isinstance(error, SourceUnreadable)
    assert error.phase == "open"


async def test_a_full_disk_is_reported_as_such(desk: Desk) -> None:
    state = FailingState(MemoryState())
    state.arm("create", "write fails")

    error = await desk.fail(desk.file(PART), state=state)

    assert isinstance(error, StateUnavailable)
    assert (error.phase, error.is_temporary) == ("create", True)
