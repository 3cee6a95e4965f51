"""Credentials that run out: renewed once for all, in every operation, and never for ever."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from uploader import (
    CredentialsRejected,
    CredentialsRenewed,
    InvalidGrant,
    PermissionDenied,
    ServiceError,
    TransportError,
    UploadResult,
    VideoGone,
    VodupError,
    decode_grant,
)
from uploader.devserver import DevServer, DevServerOptions, Fault

from .harness import PART, Desk, created


def expire(operation: str, *, part: int | None = None, attempt: int | None = None) -> Fault:
    """Everything VOD has issued for the video ends just before this request."""
    return Fault(action="expire_credentials", operation=operation, part=part, attempt=attempt)


async def test_sixteen_refused_parts_renew_once(desk: Desk) -> None:
    desk.server.set_options(check_expiry_at_end=True, bandwidth=20e6)
    desk.order(*(expire("UploadPart", part=part, attempt=1) for part in (20, 40, 60, 80, 100)))
    movie = desk.file(120 * PART)

    result = await desk.push(movie, concurrency=16)

    await desk.assert_stored(result, movie)
    desk.assert_faults_struck()
    stats, parts = desk.server.stats, desk.requests("UploadPart")
    refused = [request for request in parts if request.code == "SecurityTokenExpired"]
    assert len(refused) > 5, "more than one part was in flight"
    assert stats.refreshes == result.renewal_count == 5
    assert len(desk.events_of(CredentialsRenewed)) == 5
    assert len(parts) == 120 + len(refused)
    assert stats.parts_sent_twice == 0
    assert (stats.creates, stats.initiates, stats.completes) == (1, 1, 1)


async def test_an_expiry_whose_refusals_never_arrive_is_found(desk: Desk) -> None:
    # The answer is dropped by our kernel when the peer resets the connection behind it.
    lost = Fault(action="lose_refusal", operation="UploadPart", count=None)
    desk.order(expire("UploadPart", part=3, attempt=1), lost)
    movie = desk.file(8 * PART)

    result = await desk.push(movie, concurrency=4)

    await desk.assert_stored(result, movie)
    assert desk.server.stats.refreshes == result.renewal_count == 1
    assert {request.code for request in desk.requests("ListParts")} >= {"SecurityTokenExpired"}


async def test_credentials_are_renewed_before_they_run_out(desk: Desk) -> None:
    # Their stated lifetime is one second; they live a little longer, time to renew.
    desk.server.set_options(
        credential_ttl_s=1.6, expiration_s=1, expire_utc_time=False, connection_bandwidth=80e3
    )
    movie = desk.file(60 * PART)

    result = await desk.push(movie, concurrency=16)

    await desk.assert_stored(result, movie)
    stats = desk.server.stats
    assert stats.refreshes >= 5
    assert stats.expired_refusals == 0
    assert desk.count("UploadPart") == 60
    assert (stats.creates, stats.initiates) == (1, 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_two_gibibytes_outlive_five_credentials(tmp_path: Path) -> None:
    options = DevServerOptions(
        discard_bodies=True, credential_ttl_s=2.0, expiration_s=3000, expire_utc_time=False,
        check_expiry_at_end=True, bandwidth=150e6,
    )  # fmt: skip
    async with DevServer(options) as server:
        desk = Desk(server, tmp_path)
        movie = tmp_path / "sparse.mp4"
        movie.touch()
        with movie.open("r+b") as file:
            file.truncate(2 << 30)
            file.seek(1 << 30)
            file.write(b"in the middle")

        result = await desk.push(movie, concurrency=16, part_size=1 << 20)

        stats = server.stats
        parts = desk.requests("UploadPart")
        refused = [request for request in parts if request.status == 403]
        generations = {request.generation for request in refused}
        assert result.verified_by == "crc64"
        assert len(generations) >= 5
        assert stats.refreshes == len(generations)
        assert stats.parts_sent_twice == 0
        assert len(parts) == result.part_count + len(refused)
        assert (stats.creates, stats.initiates, stats.completes) == (1, 1, 1)


# --- in every operation ------------------------------------------------------------------


async def initiate(desk: Desk, *faults: Fault) -> None:
    desk.order(*faults)
    await stored(desk, await desk.push(desk.file(3 * PART)))


async def list_parts(desk: Desk, *faults: Fault) -> None:
    movie = desk.file(5 * PART)
    await desk.interrupted(movie, after=3)
    desk.order(*faults)
    await stored(desk, await desk.push(movie))


async def head(desk: Desk, *faults: Fault) -> None:
    desk.order(Fault(action="missing_crc", operation="CompleteMultipartUpload"), *faults)
    result = await desk.push(desk.file(3 * PART))
    await stored(desk, result)
    assert result.verified_by == "crc64-head"


async def put(desk: Desk, *faults: Fault) -> None:
    desk.order(*faults)
    await stored(desk, await desk.push(desk.file(PART)))


async def abort(desk: Desk, *faults: Fault) -> None:
    record = await desk.interrupted(desk.file(5 * PART), after=3)
    desk.order(*faults)
    async with desk.uploader() as up:
        await up.abort(record.key)
    assert desk.server.open_upload_count == 0


async def stored(desk: Desk, result: UploadResult) -> None:
    await desk.assert_stored(result, desk.folder / "movie.mp4")


OPERATIONS = {
    "InitiateMultipartUpload": initiate,
    "UploadPart": initiate,
    "ListParts": list_parts,
    "CompleteMultipartUpload": initiate,
    "HeadObject": head,
    "PutObject": put,
    "AbortMultipartUpload": abort,
}


@pytest.mark.parametrize("grace_s", [1800, 0], ids=["SecurityTokenExpired", "InvalidAccessKeyId"])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_expiry_in_any_operation_costs_one_renewal(
    desk: Desk, operation: str, grace_s: int
) -> None:
    desk.server.set_options(expired_grace_s=grace_s)

    await OPERATIONS[operation](desk, expire(operation))

    desk.assert_faults_struck()
    refused = [r for r in desk.requests(operation) if r.status == 403]
    expected = "InvalidAccessKeyId" if grace_s == 0 else "SecurityTokenExpired"
    assert {request.code for request in refused} == {expected}
    assert len(desk.events_of(CredentialsRenewed)) == (2 if OPERATIONS[operation] in later else 1)
    assert desk.server.stats.creates == 1


later = (list_parts, abort)
"""A second run renews once to begin with: it has no credentials."""


# --- an end to it ------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["SecurityTokenExpired", "InvalidAccessKeyId"])
async def test_credentials_refused_for_ever_end_it(desk: Desk, code: str) -> None:
    desk.order(Fault(action="error", operation="UploadPart", status=403, code=code, count=None))
    movie = desk.file(20 * PART)

    error = await desk.fail(movie, concurrency=16)

    assert isinstance(error, CredentialsRejected)
    assert error.is_resumable
    assert desk.server.stats.refreshes <= 3
    desk.order()
    await desk.assert_stored(await desk.push(movie), movie)


async def test_renewed_credentials_that_have_expired_already_end_it(desk: Desk) -> None:
    desk.server.set_options(refreshed_already_expired=True)
    desk.order(expire("UploadPart", part=3))

    error = await desk.fail(desk.file(6 * PART))

    assert isinstance(error, CredentialsRejected)
    assert desk.server.stats.refreshes <= 3


async def test_a_part_that_outlives_three_credentials_is_no_refusal(desk: Desk) -> None:
    """Renewing ahead while one part is under way must not count as being refused."""
    desk.server.set_options(expiration_s=1, expire_utc_time=False)
    desk.order(Fault(action="slow", operation="UploadPart", part=1, delay_s=4.0))
    movie = desk.file(3 * PART)

    result = await desk.push(movie, concurrency=1, stall_timeout_s=10.0)

    await desk.assert_stored(result, movie)
    assert result.renewal_count >= 3


async def test_a_grant_that_cannot_be_renewed_says_what_to_do(desk: Desk) -> None:
    answer = await created(desk.server)
    grant = decode_grant(answer["UploadAddress"], answer["UploadAuth"], video_id=answer["VideoId"])
    desk.order(expire("UploadPart", part=3))
    movie = desk.file(6 * PART)

    async with desk.uploader_without_provider() as up:
        with pytest.raises(CredentialsRejected, match="--grant"):
            await up.upload(movie, grant=grant)

    fresh = await desk.push(movie, video_id=answer["VideoId"])
    await desk.assert_stored(fresh, movie)


# --- VOD in trouble ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        Fault(action="error", status=400, code="Throttling.User", count=4),
        Fault(action="error", status=503, code="ServiceUnAvailable", count=4),
        Fault(action="html", status=502, count=4),
        Fault(action="slow", delay_s=0.2),
    ],
    ids=["throttled", "unavailable", "proxy", "slow"],
)
async def test_the_upload_continues_while_vod_fails(desk: Desk, trouble: Fault) -> None:
    """The old credentials still work: no part waits for the new ones."""
    desk.server.set_options(expiration_s=2, expire_utc_time=False, connection_bandwidth=1e6)
    desk.order(
        dataclasses.replace(trouble, operation="RefreshUploadVideo"),
        Fault(action="delay", operation="RefreshUploadVideo", delay_s=0.2, count=4),
    )
    movie = desk.file(90 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.renewal_count >= 1
    refreshes = desk.requests("RefreshUploadVideo")
    last = 0 if trouble.action == "slow" else trouble.count or 0
    began, ended = refreshes[0].started_at, refreshes[last].ended_at
    assert [r for r in desk.requests("UploadPart") if began <= r.started_at <= ended]


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (Fault(action="error", status=400, code="Throttling.User", count=None), ServiceError),
        (Fault(action="error", status=503, code="ServiceUnAvailable", count=None), ServiceError),
        (Fault(action="reset", count=None), TransportError),
        (Fault(action="html", status=200, count=None), TransportError),
    ],
    ids=["throttled", "unavailable", "reset", "portal"],
)
async def test_vod_dead_after_the_expiry_is_temporary(
    desk: Desk, trouble: Fault, kind: type[VodupError]
) -> None:
    desk.order(
        expire("UploadPart", part=5), dataclasses.replace(trouble, operation="RefreshUploadVideo")
    )
    movie = desk.file(9 * PART)

    error = await desk.fail(movie, concurrency=1)

    assert isinstance(error, kind)
    assert error.is_temporary
    assert error.is_resumable
    assert error.video_id
    desk.order()
    result = await desk.push(movie)
    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 4
    assert desk.server.stats.creates == 1


@pytest.mark.parametrize("what", ["deleted", "damaged"])
async def test_a_video_that_is_gone_is_never_made_again(desk: Desk, what: str) -> None:
    movie = desk.file(9 * PART)
    record = await desk.interrupted(movie, after=3)
    assert record.video_id is not None
    if what == "deleted":
        desk.server.delete_video(record.video_id)
    else:
        desk.server.damage_video(record.video_id)

    errors = [await desk.fail(movie) for _ in range(2)]

    assert all(isinstance(error, VideoGone) for error in errors)
    assert {error.video_id for error in errors} == {record.video_id}
    assert desk.server.stats.creates == 1
    assert (await desk.record()).upload_id == record.upload_id
    assert await desk.acked_part_numbers() == {1, 2, 3}


async def test_the_upload_of_a_video_that_is_gone_can_be_aborted(desk: Desk) -> None:
    """`VideoGone` says to do so; no credentials are to be had for it any more."""
    movie = desk.file(9 * PART)
    record = await desk.interrupted(movie, after=3)
    assert record.video_id is not None
    desk.server.delete_video(record.video_id)

    async with desk.uploader() as up:
        await up.abort(record.key)

    result = await desk.push(movie)
    assert result.video_id != record.video_id


async def test_a_missing_permission_to_refresh_is_reported(desk: Desk) -> None:
    desk.server.set_options(denied_vod_operations=["RefreshUploadVideo"])
    desk.order(expire("UploadPart", part=3))
    movie = desk.file(6 * PART)

    error = await desk.fail(movie)

    assert isinstance(error, PermissionDenied)
    assert error.code == "Forbidden.RAM"
    assert "RefreshUploadVideo" in error.message
    assert error.request_id
    assert (await desk.record()).upload_id is not None


async def test_a_grant_for_another_video_is_not_used(desk: Desk) -> None:
    desk.server.set_options(refresh_video_id="different")
    desk.order(expire("UploadPart", part=3))

    error = await desk.fail(desk.file(6 * PART))

    assert isinstance(error, InvalidGrant)
    assert {request.generation for request in desk.requests("UploadPart")} == {1}


async def test_an_answer_without_a_video_id_is_for_the_requested_video(desk: Desk) -> None:
    desk.server.set_options(refresh_video_id="absent")
    desk.order(expire("UploadPart", part=3))
    movie = desk.file(6 * PART)

    await desk.assert_stored(await desk.push(movie), movie)
