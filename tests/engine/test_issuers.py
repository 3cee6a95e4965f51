"""What holds for uploads to VOD holds for those to IMS: the same engine, other words."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from uploader import (
    AccessKey,
    CallerNotAuthenticated,
    ConfigurationError,
    GrantProvider,
    ImsProvider,
    InvalidGrant,
    OverwriteRefused,
    RetryPolicy,
    UntrustedEndpoint,
    UploadTargetChanged,
    VideoGone,
    VideoMeta,
    VodProvider,
)
from uploader.devserver import DevServer, Fault
from uploader.errors import TransportError
from uploader.protocol.signing import ApiSignature
from uploader.protocol.trust import TrustPolicy

from .harness import LOOPBACK, PART, Desk, until

PATIENT = RetryPolicy(patience_s=600, base_s=0.01, cap_s=0.05)
META = VideoMeta(title="A film")
EXPIRE = Fault(action="expire_credentials", operation="UploadPart", part=4)


@dataclass(frozen=True)
class Issuer:
    """Who hands out grants, and what its operations are called."""

    kind: type[VodProvider] | type[ImsProvider]
    create: str
    refresh: str
    facts: str

    def at(
        self,
        server: DevServer,
        secret: str | None = None,
        signature: ApiSignature = "acs3",
        token: str | None = None,
    ) -> GrantProvider:
        secret = secret or server.access_key_secret
        key = AccessKey(id=server.access_key_id, secret=secret, security_token=token)
        return self.kind(key, endpoint=server.vod_endpoint, signature=signature)


VOD = Issuer(VodProvider, "CreateUploadVideo", "RefreshUploadVideo", "GetMezzanineInfo")
IMS = Issuer(ImsProvider, "CreateUploadMedia", "RefreshUploadMedia", "GetMediaInfo")
both = pytest.mark.parametrize("issuer", [VOD, IMS], ids=["vod", "ims"])


@both
@pytest.mark.parametrize("size", [PART // 2, 7 * PART + 3], ids=["put", "parts"])
async def test_a_file_becomes_one_video(desk: Desk, issuer: Issuer, size: int) -> None:
    movie = desk.file(size)
    provider = issuer.at(desk.server)

    result = await desk.push(movie, provider=provider, meta=VideoMeta(title="A film", tags=("a",)))
    again = await desk.push(movie, provider=provider)

    await desk.assert_stored(result, movie)
    assert desk.server.videos[result.video_id].title == "A film"
    assert again.is_earlier_result
    assert (desk.count(issuer.create), desk.server.stats.completes) == (1, 1 if size > PART else 0)
    assert (await desk.record()).scope == provider.scope


@both
async def test_expired_credentials_are_renewed_in_the_middle(desk: Desk, issuer: Issuer) -> None:
    movie = desk.file(8 * PART)
    desk.order(EXPIRE)

    result = await desk.push(movie, provider=issuer.at(desk.server))

    await desk.assert_stored(result, movie)
    assert result.renewal_count == desk.count(issuer.refresh) == 1
    assert len(desk.server.videos) == 1


@both
async def test_the_next_run_resumes_the_same_video(desk: Desk, issuer: Issuer) -> None:
    movie = desk.file(8 * PART)
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=5.0, part=6))
    async with desk.uploader(issuer.at(desk.server), concurrency=1) as up:
        task = asyncio.create_task(up.upload(movie))
        await until(lambda: desk.server.stats.parts_stored >= 5)
        task.cancel()
        await asyncio.wait([task])
    desk.order()
    begun = await desk.record()

    result = await desk.push(movie, provider=issuer.at(desk.server))

    await desk.assert_stored(result, movie)
    assert (result.video_id, result.upload_id) == (begun.video_id, begun.upload_id)
    assert result.resumed_part_count >= 5
    assert desk.count(issuer.create) == 1


@both
async def test_a_moved_upload_is_never_followed_silently(desk: Desk, issuer: Issuer) -> None:
    desk.server.set_options(refresh_target="key", refresh_scope="refreshed")
    desk.order(EXPIRE)

    error = await desk.fail(desk.file(8 * PART), provider=issuer.at(desk.server), concurrency=1)

    assert isinstance(error, UploadTargetChanged)


@both
async def test_a_grant_for_another_video_is_not_used(desk: Desk, issuer: Issuer) -> None:
    desk.server.set_options(refresh_video_id="different")
    desk.order(EXPIRE)

    error = await desk.fail(desk.file(8 * PART), provider=issuer.at(desk.server))

    assert isinstance(error, InvalidGrant)


@both
async def test_a_finished_video_is_not_overwritten_without_permission(
    desk: Desk, issuer: Issuer
) -> None:
    provider = issuer.at(desk.server)
    result = await desk.push(desk.file(2 * PART), provider=provider)

    error = await desk.fail(
        desk.file(2 * PART, "other.mp4", seed=1),
        provider=provider,
        video_id=result.video_id,
        state=desk.folder / "elsewhere" / "vodup.db",
    )

    assert isinstance(error, OverwriteRefused)
    assert desk.count(issuer.facts) >= 1
    assert desk.server.stats.overwrite_refreshes == 0


@both
@pytest.mark.parametrize("signature", ["acs3", "v2"])
async def test_calls_have_the_signature_of_the_provider(
    desk: Desk, issuer: Issuer, signature: ApiSignature
) -> None:
    """A long description goes into the body with either."""
    desk.server.set_options(api_signatures=[signature], caller_security_token=True)
    movie, meta = desk.file(7 * PART), VideoMeta(title="a b+c*~'()", description="说" * 1024)
    desk.order(EXPIRE)
    token = desk.server.env["ALIBABA_CLOUD_SECURITY_TOKEN"]
    provider = issuer.at(desk.server, signature=signature, token=token)

    result = await desk.push(movie, provider=provider, meta=meta)

    await desk.assert_stored(result, movie)
    assert result.renewal_count == 1


@both
@pytest.mark.parametrize("signature", ["acs3", "v2"])
async def test_a_wrong_key_is_distinguished_from_other_errors(
    desk: Desk, issuer: Issuer, signature: ApiSignature
) -> None:
    wrong = issuer.at(desk.server, secret="wrong", signature=signature)
    error = await desk.fail(desk.file(PART), provider=wrong)
    assert isinstance(error, CallerNotAuthenticated)


@both
async def test_throttled_calls_wait(desk: Desk, issuer: Issuer) -> None:
    desk.order(
        Fault(action="error", operation=issuer.create, status=400, code="Throttling.User", count=2)
    )
    movie = desk.file(PART)
    await desk.assert_stored(await desk.push(movie, provider=issuer.at(desk.server)), movie)
    assert len(desk.server.videos) == 1


@pytest.mark.parametrize(("one", "other"), [(VOD, IMS), (IMS, VOD)], ids=["vod", "ims"])
async def test_neither_knows_the_ids_of_the_other(desk: Desk, one: Issuer, other: Issuer) -> None:
    movie = desk.file(8 * PART)
    desk.order(Fault(action="error", operation="UploadPart", status=403, code="AccessDenied"))
    await desk.fail(movie, provider=one.at(desk.server), key="film")
    desk.order(EXPIRE)

    error = await desk.fail(movie, provider=other.at(desk.server), key="film")

    assert isinstance(error, VideoGone)
    assert len(desk.server.videos) == 1
    desk.order()
    await desk.assert_stored(
        await desk.push(movie, provider=one.at(desk.server), key="film"), movie
    )


async def test_a_media_that_may_have_been_made_is_not_made_twice(desk: Desk) -> None:
    """IMS takes no id of ours: the media of a lost answer cannot be looked up."""
    movie, provider = desk.file(2 * PART), IMS.at(desk.server)
    desk.order(Fault(action="reset", operation=IMS.create, after_bytes=0))
    desk.order(Fault(action="drop_answer", operation=IMS.create))

    lost = await desk.fail(movie, provider=provider)
    again = await desk.fail(movie, provider=provider)

    assert isinstance(lost, TransportError)
    assert isinstance(again, ConfigurationError)
    assert "IMS console" in lost.next_step
    assert "--video-id" in again.next_step
    (media,) = desk.server.videos
    result = await desk.push(movie, provider=provider, video_id=media)
    await desk.assert_stored(result, movie)
    assert len(desk.server.videos) == 1


@pytest.mark.parametrize(
    "meta",
    [
        VideoMeta(template_group_id="t"),
        VideoMeta(reference_id="ours-1"),
        VideoMeta(file_name="film"),
    ],
)
async def test_metadata_that_ims_does_not_know_is_refused_before_any_request(
    desk: Desk, meta: VideoMeta
) -> None:
    error = await desk.fail(desk.file(PART), provider=IMS.at(desk.server), meta=meta)
    assert isinstance(error, ConfigurationError)
    assert desk.server.stats.requests.total() == 0


@pytest.mark.parametrize(
    "endpoint", ["https://vod.cn-shanghai.aliyuncs.com", "https://ice.example.com"]
)
async def test_only_ims_is_trusted_as_ims(desk: Desk, endpoint: str) -> None:
    error = await desk.fail(
        desk.file(PART), provider=ImsProvider(AccessKey(id="a", secret="b"), endpoint=endpoint)
    )
    assert isinstance(error, UntrustedEndpoint)
    assert (
        ImsProvider(AccessKey(id="a", secret="b"), "cn-beijing").scope
        == "https://ice.cn-beijing.aliyuncs.com"
    )
    for good in ("https://ice.cn-shanghai.aliyuncs.com", "https://ice.aliyuncs.com"):
        assert TrustPolicy().check_endpoint("IMS", good) == good
    assert LOOPBACK.check_endpoint("IMS", desk.server.vod_endpoint) == desk.server.vod_endpoint


async def test_a_grant_that_cannot_be_used_is_requested_once_more(desk: Desk) -> None:
    desk.order(Fault(action="repeated_key", operation=VOD.create))
    movie = desk.file(PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert len(desk.server.videos) == 1


async def test_grants_that_can_never_be_used_end_soon(desk: Desk) -> None:
    names = (VOD.create, VOD.refresh)
    desk.order(*(Fault(action="repeated_key", operation=name, count=None) for name in names))
    movie = desk.file(4 * PART)

    error = await desk.fail(movie, retry=PATIENT)

    assert isinstance(error, InvalidGrant)
    assert error.is_resumable
    assert not error.is_temporary
    assert (desk.count(VOD.create), desk.count(VOD.refresh)) == (1, 2)
    desk.order()
    await desk.assert_stored(await desk.push(movie), movie)
    assert len(desk.server.videos) == 1


async def test_a_media_whose_grant_cannot_be_used_is_not_created_again(desk: Desk) -> None:
    desk.order(Fault(action="repeated_key", operation=IMS.create))
    provider = IMS.at(desk.server)

    error = await desk.fail(desk.file(PART), provider=provider, meta=META, retry=PATIENT)

    assert isinstance(error, InvalidGrant)
    assert "IMS console" in error.next_step
    assert desk.count(IMS.create) == 1


@both
async def test_a_renewal_that_can_never_be_used_ends_soon(desk: Desk, issuer: Issuer) -> None:
    desk.order(EXPIRE, Fault(action="repeated_key", operation=issuer.refresh, count=None))
    movie, provider = desk.file(7 * PART), issuer.at(desk.server)

    error = await desk.fail(movie, provider=provider, meta=META, retry=PATIENT)

    assert isinstance(error, InvalidGrant)
    assert desk.count(issuer.refresh) == 2
