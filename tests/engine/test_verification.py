"""Success means: OSS's figures over the object equal ours over what we sent."""

from __future__ import annotations

import pytest

from uploader import IntegrityError, RequestRetried, RetryPolicy, TransportError
from uploader.devserver import Fault
from uploader.state import Phase

from .harness import PART, Desk, assert_overwrite_helps

PATIENT = RetryPolicy(patience_s=600, base_s=0.01, cap_s=0.05)
SIZES = pytest.mark.parametrize("size", [4 * PART, PART], ids=["parts", "put"])


@SIZES
async def test_without_any_crc_the_etag_over_our_md5s_is_the_proof(desk: Desk, size: int) -> None:
    desk.server.set_options(crc_headers=False, list_crc=False)
    movie = desk.file(size)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "etag"


@SIZES
async def test_the_etag_is_a_proof_where_looking_is_denied_too(desk: Desk, size: int) -> None:
    desk.server.set_options(crc_headers=False, denied_operations=["HeadObject"])
    movie = desk.file(size)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "etag"


async def test_parts_of_an_earlier_run_count_in_the_etag(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    await desk.interrupted(movie, after=3)
    desk.server.set_options(crc_headers=False)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (result.verified_by, result.resumed_part_count) == ("etag", 3)


async def test_md5s_that_are_missing_behind_others_are_made_up_for(desk: Desk) -> None:
    """The first run gets no CRC, the second gets one, and Complete has none again."""
    desk.server.set_options(crc_headers=False)
    movie = desk.file(6 * PART)
    await desk.interrupted(movie, after=3)
    desk.server.set_options(crc_headers=True)
    desk.order(
        Fault(action="missing_crc", operation="CompleteMultipartUpload", count=None),
        Fault(action="missing_crc", operation="HeadObject", count=None),
    )

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert (result.verified_by, result.resumed_part_count) == ("etag", 3)
    desk.assert_faults_struck()


async def test_neither_crc_nor_etag_is_no_success(desk: Desk) -> None:
    desk.server.set_options(crc_headers=False, denied_operations=["HeadObject"])
    desk.order(Fault(action="missing_etag", operation="CompleteMultipartUpload"))

    movie = desk.file(4 * PART)

    error = await desk.fail(movie)

    assert (await desk.record()).phase is not Phase.DONE
    await assert_overwrite_helps(desk, movie, error)


@pytest.mark.parametrize("operation", ["UploadPart", "PutObject"])
@pytest.mark.parametrize("action", ["wrong_crc", "flip_bit", "missing_etag"])
async def test_an_answer_that_contradicts_our_crc_once_is_repaired(
    desk: Desk, operation: str, action: str
) -> None:
    desk.order(Fault(action=action, operation=operation, attempt=1))
    movie = desk.file(PART if operation == "PutObject" else 4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()
    assert [retry.operation for retry in desk.events_of(RequestRetried)] == [operation]


@SIZES
async def test_a_wrong_etag_without_a_crc_is_repaired(desk: Desk, size: int) -> None:
    desk.server.set_options(crc_headers=False)
    operation = "PutObject" if size == PART else "UploadPart"
    desk.order(Fault(action="wrong_etag", operation=operation, attempt=1))
    movie = desk.file(size)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()


@pytest.mark.parametrize(
    ("operation", "action", "request_count"),
    [
        ("UploadPart", "wrong_crc", 5),
        ("UploadPart", "flip_bit", 5),
        # The second is refused: it must not replace what is there, and that is compared first.
        ("PutObject", "flip_bit", 7),
    ],
)
async def test_answers_that_always_contradict_our_crc_are_no_success(
    desk: Desk, operation: str, action: str, request_count: int
) -> None:
    desk.order(Fault(action=action, operation=operation, count=None))
    movie = desk.file(PART if operation == "PutObject" else 4 * PART)

    error = await desk.fail(movie, retry=PATIENT, concurrency=1)

    assert isinstance(error, IntegrityError)
    assert not error.is_temporary
    assert desk.count(operation) == request_count, "waiting longer would not change the answer"
    assert desk.server.stats.completes == 0
    desk.order()
    await desk.assert_stored(await desk.push(movie), movie)


@SIZES
async def test_a_wrong_etag_for_ever_ends_in_bounded_time(desk: Desk, size: int) -> None:
    desk.server.set_options(crc_headers=False)
    operation = "PutObject" if size == PART else "UploadPart"
    desk.order(Fault(action="wrong_etag", operation=operation, count=None))

    error = await desk.fail(desk.file(size), retry=PATIENT, concurrency=1)

    assert isinstance(error, IntegrityError)
    assert desk.count(operation) == 6, "the first answer only shows that MD5s are needed"


async def test_a_bit_that_rots_in_a_stored_part_is_found_and_repaired_by_the_next_run(
    desk: Desk,
) -> None:
    desk.order(Fault(action="rot", operation="UploadPart", part=2))
    movie = desk.file(4 * PART)

    error = await desk.fail(movie)

    assert isinstance(error, IntegrityError)
    assert error.request_id
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert result.video_id == error.video_id


async def test_a_bit_that_rots_is_found_by_the_etag_alone(desk: Desk) -> None:
    desk.server.set_options(crc_headers=False)
    desk.order(Fault(action="wrong_etag", operation="CompleteMultipartUpload", count=None))

    assert isinstance(await desk.fail(desk.file(4 * PART)), IntegrityError)


async def test_one_wrong_crc_of_the_whole_is_worth_a_second_look(desk: Desk) -> None:
    desk.order(Fault(action="wrong_crc", operation="CompleteMultipartUpload"))
    movie = desk.file(4 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.verified_by == "crc64-head"


@pytest.mark.parametrize("operation", ["UploadPart", "PutObject"])
async def test_a_success_before_the_body_was_read_is_none(desk: Desk, operation: str) -> None:
    desk.order(
        Fault(action="early_answer", operation=operation, status=200, close="fin", attempt=1)
    )
    size = 20 * PART if operation == "PutObject" else 60 * PART
    movie = desk.file(size)

    result = await desk.push(movie, part_size=20 * PART)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()


async def test_a_success_that_always_comes_too_early_is_an_error(desk: Desk) -> None:
    desk.order(
        Fault(action="early_answer", operation="UploadPart", status=200, close="fin", count=None)
    )

    error = await desk.fail(desk.file(60 * PART), part_size=20 * PART)

    assert isinstance(error, TransportError | IntegrityError)
    assert desk.server.stats.completes == 0


@pytest.mark.parametrize("version", ["v1", "v4"])
@SIZES
async def test_either_signature_version_will_do(desk: Desk, version: str, size: int) -> None:
    desk.server.set_options(signature_versions=[version])
    movie = desk.file(size)

    result = await desk.push(movie, signature=version)

    await desk.assert_stored(result, movie)
    assert {r.signature_version for r in desk.server.stats.log if r.service == "oss"} == {version}


@pytest.mark.parametrize(("ours", "theirs"), [("v1", "v4"), ("v4", "v1")])
async def test_the_other_signature_version_is_named(desk: Desk, ours: str, theirs: str) -> None:
    desk.server.set_options(signature_versions=[theirs])

    error = await desk.fail(desk.file(2 * PART), signature=ours)

    assert "--signature" in error.next_step


async def test_verifying_again_reads_the_source_and_looks_at_the_object(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    result = await desk.push(movie)

    async with desk.uploader() as up:
        facts = await up.verify(movie)
        assert desk.server.stats.overwrite_refreshes == 0
        assert facts.crc64 == result.crc64
        desk.order(Fault(action="wrong_crc", operation="GetObject", count=None))
        with pytest.raises(IntegrityError):
            await up.verify(movie)
