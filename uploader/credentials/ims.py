"""Grants of Intelligent Media Services, whose MediaIds are to it what VideoIds are to VOD."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from uploader.credentials.caller import AccessKeys, CallerSigner, access_key_from_env
from uploader.credentials.contract import GrantSource, Network, NewVideo, of_video, vod_call
from uploader.errors import ConfigurationError, VodupError
from uploader.protocol import ims
from uploader.protocol.failures import IMS, is_outcome_known
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import AccessKey, VideoFacts
from uploader.session import Session

__all__ = ["ImsProvider"]

_LOOK_YOURSELF: Final = (
    "Look in the IMS console whether it was made: if it was, pass its MediaId (--video-id), else "
    "run `vodup abort`; then run again."
)


@dataclass(frozen=True, slots=True)
class ImsProvider:
    """Intelligent Media Services, called with the caller's own AccessKey.

    Its media lie in VOD's storage, and everything an upload promises holds for them. One thing
    is missing: CreateUploadMedia takes no id of ours, so when its answer is lost nobody can ask
    whether a media was made. The upload ends then, and asks for a look at the console.

    Attributes:
        access_key: a key, or a callable (plain or async) that returns the newest one.
        region: "cn-shanghai", "cn-beijing" or "cn-shenzhen" (IMS API: CreateUploadMedia).
        endpoint: overrides "https://ice.<region>.aliyuncs.com".
    """

    access_key: AccessKey | AccessKeys = field(repr=False)
    region: str = "cn-shanghai"
    endpoint: str | None = None

    @classmethod
    def from_env(cls, *, region: str | None = None, endpoint: str | None = None) -> ImsProvider:
        """Take the AccessKey and the region from where `VodProvider.from_env` takes them.

        The endpoint defaults to VODUP_IMS_ENDPOINT.

        Raises:
            CallerNotAuthenticated: there is no AccessKey.
        """
        return cls(
            access_key_from_env(),
            region or os.environ.get("VODUP_REGION") or "cn-shanghai",
            endpoint or os.environ.get("VODUP_IMS_ENDPOINT") or None,
        )

    @property
    def scope(self) -> str:
        """For example "https://ice.cn-shanghai.aliyuncs.com"."""
        return self.endpoint or f"https://ice.{self.region}.aliyuncs.com"

    def connect(self, network: Network) -> GrantSource:
        """Check the endpoint; nothing is sent yet."""
        return _ImsSource(network.trust.check_ims_endpoint(self.scope), self.access_key, network)


class _ImsSource:
    """A `GrantSource` on the API of IMS."""

    def __init__(self, endpoint: str, access_key: AccessKey | AccessKeys, network: Network) -> None:
        self._endpoint = endpoint
        self._session = Session(
            network.transport,
            CallerSigner(access_key, network.clock),
            clock=network.clock,
            service=IMS,
            slot=lambda: vod_call(network.pace),
            retry=network.retry,
            on_retry=network.on_retry,
        )

    async def create(self, video: NewVideo) -> UploadGrant:
        """Make the media; never a second one."""
        if video.is_repeat:
            raise ConfigurationError(
                "An earlier run may have made this media, and IMS cannot be asked whether it did.",
                next_step=_LOOK_YOURSELF,
            )
        operation = ims.create_upload_media(
            self._endpoint, video.meta, file_name=video.file_name, file_size=video.file_size
        )
        try:
            return await self._session.call(operation)
        except VodupError as failure:
            if not is_outcome_known(failure):
                failure.next_step = _LOOK_YOURSELF
            raise

    async def renew(self, video_id: str) -> UploadGrant:
        """Call RefreshUploadMedia."""
        operation = ims.refresh_upload_media(self._endpoint, video_id)
        return of_video(await self._session.call(operation), video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Call GetMediaInfo."""
        return await self._session.call(ims.get_media_info(self._endpoint, video_id))
