"""Grants of Intelligent Media Services. Its MediaIds are what VideoIds are in VOD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uploader.credentials.caller import CallerProvider, CallerSigner
from uploader.credentials.contract import GrantSource, Network, NewVideo, of_video
from uploader.errors import ConfigurationError, VodupError
from uploader.protocol import ims
from uploader.protocol.failures import IMS, is_outcome_known
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import VideoFacts

_CHECK_CONSOLE: Final = (
    "Check in the IMS console whether it was created. If it was, pass its MediaId (--video-id), "
    "else run `vodup abort`; then run again."
)


@dataclass(frozen=True, slots=True)
class ImsProvider(CallerProvider):
    """Intelligent Media Services, called with the caller's own AccessKey.

    Its media are stored in VOD's storage, and all promises of an upload hold for them, but
    for one: CreateUploadMedia takes no id of ours. When its answer is lost, nothing can find
    out whether a media was created; the upload fails and requests a check in the console.
    """

    HOST = "ice"
    ENDPOINT_VARIABLE = "VODUP_IMS_ENDPOINT"

    def connect(self, network: Network) -> GrantSource:
        """Check the endpoint. Sends nothing."""
        return _ImsSource(network.trust.check_endpoint("IMS", self.scope), self, network)


class _ImsSource:
    """A `GrantSource` on the API of IMS."""

    def __init__(self, endpoint: str, provider: ImsProvider, network: Network) -> None:
        self._endpoint = endpoint
        self._session = network.session(CallerSigner(provider, network.clock), IMS)

    async def create(self, video: NewVideo) -> UploadGrant:
        """Create the media; never a second one."""
        if video.is_repeat:
            raise ConfigurationError(
                "An earlier run may have created this media, and IMS cannot look it up.",
                next_step=_CHECK_CONSOLE,
            )
        operation = ims.create_upload_media(
            self._endpoint, video.meta, file_name=video.file_name, file_size=video.file_size
        )
        try:
            return await self._session.call(operation)
        except VodupError as failure:
            if not is_outcome_known(failure):
                failure.next_step = _CHECK_CONSOLE
            raise

    async def renew(self, video_id: str) -> UploadGrant:
        """Call RefreshUploadMedia."""
        operation = ims.refresh_upload_media(self._endpoint, video_id)
        return of_video(await self._session.call(operation), video_id)

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Call GetMediaInfo."""
        return await self._session.call(ims.get_media_info(self._endpoint, video_id))
