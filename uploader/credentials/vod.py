"""Grants of ApsaraVideo VOD itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from uploader.credentials.caller import AccessKeys, CallerSigner, access_key_from_env
from uploader.credentials.contract import GrantSource, Network, NewVideo, of_video, vod_call
from uploader.errors import (
    OverwriteRefused,
    TransportError,
    VideoGone,
    VodupError,
)
from uploader.protocol import vod
from uploader.protocol.failures import VOD, is_outcome_known
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import AccessKey, VideoFacts
from uploader.session import Session

_CREATE_ATTEMPTS = 3

_LOOK_YOURSELF = (
    "Look in the VOD console whether the video was made, for its ReferenceId cannot be asked for "
    "here: if it was, pass its VideoId (--video-id), else run `vodup abort`; then run again."
)


@dataclass(frozen=True, slots=True)
class VodProvider:
    """ApsaraVideo VOD, called with the caller's own AccessKey.

    Attributes:
        access_key: a key, or a callable (plain or async) that returns the newest one.
        region: of the VOD service, for example "cn-shanghai". Videos of another region
            are not found.
        endpoint: overrides "https://vod.<region>.aliyuncs.com".
    """

    access_key: AccessKey | AccessKeys = field(repr=False)
    region: str = "cn-shanghai"
    endpoint: str | None = None

    @classmethod
    def from_env(cls, *, region: str | None = None, endpoint: str | None = None) -> VodProvider:
        """Take the AccessKey from ALIBABA_CLOUD_ACCESS_KEY_ID, _SECRET and _SECURITY_TOKEN.

        Without them, the default chain of alibabacloud-credentials is asked (config
        files, ECS role, OIDC), if that package is installed. Region and endpoint default
        to VODUP_REGION and VODUP_VOD_ENDPOINT.

        Raises:
            CallerNotAuthenticated: there is neither.
        """
        return cls(
            access_key_from_env(),
            region or os.environ.get("VODUP_REGION") or "cn-shanghai",
            endpoint or os.environ.get("VODUP_VOD_ENDPOINT") or None,
        )

    @property
    def scope(self) -> str:
        """For example "https://vod.cn-shanghai.aliyuncs.com"."""
        return self.endpoint or f"https://vod.{self.region}.aliyuncs.com"

    def connect(self, network: Network) -> GrantSource:
        """Check the endpoint; nothing is sent yet."""
        return _VodSource(network.trust.check_vod_endpoint(self.scope), self.access_key, network)


class _VodSource:
    """A `GrantSource` on VOD's API."""

    def __init__(self, endpoint: str, access_key: AccessKey | AccessKeys, network: Network) -> None:
        self._endpoint = endpoint
        self._session = Session(
            network.transport,
            CallerSigner(access_key, network.clock),
            clock=network.clock,
            service=VOD,
            slot=lambda: vod_call(network.pace),
            retry=network.retry,
            on_retry=network.on_retry,
        )

    async def create(self, video: NewVideo) -> UploadGrant:
        """Make the video, or find the one that an attempt without an answer has made."""
        operation = vod.create_upload_video(
            self._endpoint,
            video.meta,
            file_name=video.file_name,
            file_size=video.file_size,
            reference_id=video.reference_id,
        )
        reference_id = operation.request.params["ReferenceId"]
        if video.is_repeat and (found := await self._find(reference_id)):
            return found
        has_doubt = video.is_repeat
        for _ in range(_CREATE_ATTEMPTS):
            try:
                return await self._session.call(operation)
            except VodupError as failure:
                has_doubt = has_doubt or not is_outcome_known(failure)
                if not has_doubt:
                    raise
                # Perhaps carried out, or a duplicate of what was: never a second video.
                if found := await self._find(reference_id):
                    return found
                last = failure
        raise last

    async def _find(self, reference_id: str) -> UploadGrant | None:
        """Return a grant for the video of this ReferenceId; None if there is none.

        Where that cannot be told, as in a region that does not know ReferenceId yet, it
        raises: the video may exist, and a second one must not be made.
        """
        operation = vod.refresh_upload_video(self._endpoint, reference_id=reference_id)
        try:
            grant = await self._session.call(operation)
        except VideoGone:
            return None
        except VodupError as error:
            if error.code.startswith(("MissingParameter", "InvalidParameter")):
                error.next_step = _LOOK_YOURSELF
            raise
        if grant.video_id is None:
            raise TransportError("RefreshUploadVideo did not tell the VideoId.", is_sent=True)
        facts = await self.facts(grant.video_id)
        if facts is not None and not facts.is_waiting:
            raise OverwriteRefused(
                f"The ReferenceId {reference_id} belongs to the finished video {grant.video_id}.",
                video_id=grant.video_id,
            )
        return grant

    async def renew(self, video_id: str) -> UploadGrant:
        """Call RefreshUploadVideo."""
        operation = vod.refresh_upload_video(self._endpoint, video_id=video_id)
        return of_video(await self._session.call(operation), video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Call GetMezzanineInfo."""
        return await self._session.call(vod.get_mezzanine_info(self._endpoint, video_id))
