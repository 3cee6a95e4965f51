"""Objects stored with one request replace nothing that another run has stored."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from uploader import OverwriteRefused, PermissionDenied, ServiceError
from uploader.devserver import Fault
from uploader.devserver.stats import RequestRecord

from .harness import PART, Desk, content, created, until
from .test_packages import hls

PUT = "PutObject"
INITIATE = "InitiateMultipartUpload"


async def killed_while_putting(desk: Desk, movie: Path, *, delay_s: float = 0.4) -> RequestRecord:
    """Run until the first PutObject is on its way, and kill the run; returns that request.

    It arrives `delay_s` later. The same run repeats it, in vain.
    """
    desk.order(
        Fault(action="zombie", operation=PUT, attempt=1, delay_s=delay_s),
        Fault(action="hang", operation=PUT, attempt=2),
    )
    run = asyncio.create_task(desk.push(movie, concurrency=1))
    await until(lambda: desk.count(PUT) == 2)
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    desk.order()
    return desk.requests(PUT)[0]


async def test_a_late_put_of_a_killed_run_replaces_no_newer_object(desk: Desk) -> None:
    movie = desk.file(PART)
    late = await killed_while_putting(desk, movie, delay_s=0.9)
    desk.file(PART, seed=1)

    result = await desk.push(movie)

    assert not late.ended_at, "it is to arrive last"
    await until(lambda: late.ended_at > 0)
    await desk.assert_stored(result, movie)
    assert desk.server.stats.creates == 1
    assert desk.server.stats.puts == 1


async def test_a_late_put_of_the_same_bytes_is_no_conflict(desk: Desk) -> None:
    """It arrives after the newer run has looked, and before the newer run's own."""
    movie = desk.file(PART)
    late = await killed_while_putting(desk, movie)
    desk.order(Fault(action="delay", operation=PUT, delay_s=0.8))

    result = await desk.push(movie)

    assert late.status in {0, 200}
    assert result.verified_by == "crc64-head"
    await desk.assert_stored(result, movie)
    assert desk.server.stats.puts == 1


async def test_an_older_object_of_the_upload_is_replaced(desk: Desk) -> None:
    """The late one of before the change arrives between the newer run's look and its own."""
    movie = desk.file(PART)
    await killed_while_putting(desk, movie)
    desk.file(PART, seed=1)
    desk.order(Fault(action="delay", operation=PUT, delay_s=0.8))

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.puts == 2


async def test_an_older_object_that_was_seen_is_replaced_at_once(desk: Desk) -> None:
    movie = desk.file(PART)
    late = await killed_while_putting(desk, movie)
    await until(lambda: late.ended_at > 0)
    video = next(iter(desk.server.videos))
    desk.server.reopen_video(video)
    desk.file(PART, seed=1)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.count(PUT) == 3, "no protected one was tried first"


@pytest.mark.parametrize("may_look", [True, False])
async def test_a_lost_answer_is_settled_in_the_same_run(desk: Desk, may_look: bool) -> None:
    if not may_look:
        desk.server.set_options(denied_operations=("HeadObject",))
    desk.order(Fault(action="drop_answer", operation=PUT))
    movie = desk.file(PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == ("crc64-head" if may_look else "crc64")
    assert desk.server.stats.puts == (1 if may_look else 2)


@pytest.mark.parametrize("crc_headers", [True, False])
async def test_a_damaged_object_of_the_same_run_is_replaced(desk: Desk, crc_headers: bool) -> None:
    desk.server.set_options(crc_headers=crc_headers)
    desk.order(Fault(action="flip_bit", operation=PUT), Fault(action="drop_answer", operation=PUT))
    movie = desk.file(PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.puts == 2


async def test_answers_that_contradict_an_intact_object_are_settled_by_a_look(desk: Desk) -> None:
    desk.order(Fault(action="wrong_crc", operation=PUT, count=None))
    movie = desk.file(PART)

    result = await desk.push(movie)

    assert result.verified_by == "crc64-head"
    await desk.assert_stored(result, movie)


async def stored_by_another(desk: Desk, video_id: str) -> bytes:
    """Another client stores an object that VOD has not noticed yet."""
    other = content(2 * PART, seed=9)
    elsewhere = replace(desk, folder=desk.folder / "elsewhere")
    elsewhere.folder.mkdir()
    await elsewhere.push(elsewhere.file(2 * PART, seed=9), video_id=video_id)
    desk.server.reopen_video(video_id)
    return other


@pytest.mark.parametrize("may_look", [True, False])
async def test_an_object_of_another_upload_is_not_replaced(desk: Desk, may_look: bool) -> None:
    answer = await created(desk.server)
    other = await stored_by_another(desk, answer["VideoId"])
    if not may_look:
        desk.server.set_options(denied_operations=("HeadObject",))
    movie = desk.file(PART)

    error = await desk.fail(movie, video_id=answer["VideoId"])

    assert isinstance(error, OverwriteRefused)
    assert "--overwrite" in error.next_step
    assert desk.server.object_bytes(answer["VideoId"]) == other
    result = await desk.push(movie, video_id=answer["VideoId"], overwrite=True)
    await desk.assert_stored(result, movie)


async def test_an_object_that_is_gone_again_is_stored(desk: Desk) -> None:
    desk.order(Fault(action="error", operation=PUT, status=409, code="FileAlreadyExists"))
    movie = desk.file(PART)

    await desk.assert_stored(await desk.push(movie), movie)


async def test_a_bucket_that_never_replaces_is_an_error(desk: Desk) -> None:
    desk.order(
        Fault(action="error", operation=PUT, status=409, code="FileAlreadyExists", count=None)
    )

    error = await desk.fail(desk.file(PART))

    assert (error.code, desk.count(PUT)) == ("FileAlreadyExists", 2)


@pytest.mark.parametrize(
    ("answer", "size", "operation"),
    [("denied", PART, PUT), ("invalid", PART, PUT), ("denied", 2 * PART, INITIATE)],
)
async def test_where_the_header_is_refused_it_is_left_out_and_reported(
    desk: Desk, answer: str, size: int, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    desk.server.set_options(forbid_overwrite=answer)
    films = [desk.file(size, f"{number}.mp4", seed=number) for number in range(3)]

    with caplog.at_level(logging.WARNING):
        async with desk.uploader() as up:
            results = [await up.upload(film) for film in films]

    for result, film in zip(results, films, strict=True):
        await desk.assert_stored(result, film)
    assert desk.count(operation) == 4, "the refusal is remembered"
    (record,) = [each for each in caplog.records if each.message.startswith("object.not_protected")]
    assert record.levelno == logging.WARNING
    assert vars(record)["bucket"] == results[0].bucket


async def test_two_uploads_at_once_report_the_refused_header_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.server.set_options(forbid_overwrite="denied")
    desk.order(Fault(action="delay", operation=PUT, delay_s=0.2, count=2))
    films = [desk.file(PART, f"{number}.mp4", seed=number) for number in range(2)]

    with caplog.at_level(logging.WARNING):
        async with desk.uploader() as up, asyncio.TaskGroup() as group:
            for film in films:
                group.create_task(up.upload(film))

    names = [each.message.partition(":")[0] for each in caplog.records]
    assert names.count("object.not_protected") == 1


async def test_a_put_that_is_denied_altogether_is_denied(desk: Desk) -> None:
    desk.server.set_options(denied_operations=(PUT,))

    error = await desk.fail(desk.file(PART))

    assert isinstance(error, PermissionDenied)
    assert desk.count(PUT) == 2


async def test_other_refusals_are_not_repeated_without_the_header(desk: Desk) -> None:
    desk.order(Fault(action="error", operation=PUT, status=400, code="EntityTooLarge"))

    error = await desk.fail(desk.file(PART))

    assert isinstance(error, ServiceError)
    assert desk.count(PUT) == 1


async def test_members_of_a_package_are_protected_too(desk: Desk) -> None:
    """A member is on its way when the run is killed, and the package is finished without it."""
    main = hls(desk.folder / "package")
    late = await killed_while_putting(desk, main)

    result = await desk.push(main)

    stored = desk.server.stats.puts
    await until(lambda: late.ended_at > 0)
    assert desk.server.stats.puts == stored == result.part_count


async def test_members_with_lost_answers_are_settled(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    desk.order(Fault(action="drop_answer", operation=PUT, every=7, count=3))

    result = await desk.push(main)

    assert desk.server.stats.puts == result.part_count
    desk.assert_faults_struck()
