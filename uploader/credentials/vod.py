"""Grants of ApsaraVideo VOD itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uploader.credentials.caller import CallerProvider, CallerSigner
from uploader.credentials.contract import GrantSource, Network, NewVideo, of_video
from uploader.errors import (
    OverwriteRefused,
    PermissionDenied,
    TransportError,
    VideoGone,
    VodupError,
)
from uploader.protocol import vod
from uploader.protocol.failures import VOD, is_outcome_known
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import VideoFacts

_CREATE_ATTEMPTS: Final = 3

_CHECK_CONSOLE: Final = (
    "Check in the VOD console whether the video was created, because this region cannot look it "
    "up by ReferenceId. If it was, pass its VideoId (--video-id), else run `vodup abort`; then "
    "run again."
)


@dataclass(frozen=True, slots=True)
class VodProvider(CallerProvider):
    """ApsaraVideo VOD, called with the caller's own AccessKey."""

    HOST = "vod"
    ENDPOINT_VARIABLE = "VODUP_VOD_ENDPOINT"

    def connect(self, network: Network) -> GrantSource:
        """Check the endpoint. Sends nothing."""
        return _VodSource(network.trust.check_endpoint("VOD", self.scope), self, network)


class _VodSource:
    """A `GrantSource` on VOD's API."""

    def __init__(self, endpoint: str, provider: VodProvider, network: Network) -> None:
        self._endpoint = endpoint
        self._session = network.session(CallerSigner(provider, network.clock), VOD)

    async def create(self, video: NewVideo) -> UploadGrant:
        """Create the video, or find the one that an attempt without an answer has created."""
        operation = vod.create_upload_video(
            self._endpoint,
            video.meta,
            file_name=video.file_name,
            file_size=video.file_size,
            reference_id=video.reference_id,
        )
        reference_id = operation.request.params["ReferenceId"]
        is_ours = video.meta.reference_id is None
        if video.is_repeat and (found := await self._find(reference_id, is_ours=is_ours)):
            return found
        may_exist = video.is_repeat
        for _ in range(_CREATE_ATTEMPTS):
            try:
                return await self._session.call(operation)
            except VodupError as failure:
                may_exist = may_exist or not is_outcome_known(failure)
                if not may_exist:
                    raise
                # It may have been created, or this was a duplicate: never a second video.
                if found := await self._find(reference_id, is_ours=is_ours):
                    return found
                last = failure
        raise last

    async def _find(self, reference_id: str, *, is_ours: bool) -> UploadGrant | None:
        """Return a grant for the video of this ReferenceId; None if there is none.

        Raises where that cannot be found out, as in a region that does not know
        ReferenceId yet: the video may exist, and a second one must not be created. `is_ours`:
        vodup has drawn the ReferenceId, so nothing was sent to that video yet.
        """
        operation = vod.refresh_upload_video(self._endpoint, reference_id=reference_id)
        try:
            grant = await self._session.call(operation)
        except VideoGone:
            return None
        except VodupError as error:
            if VOD.is_bad_parameter(error):
                error.next_step = _CHECK_CONSOLE
            raise
        if grant.video_id is None:
            raise TransportError("RefreshUploadVideo did not return the VideoId.", is_sent=True)
        try:
            facts = await self.facts(grant.video_id)
        except PermissionDenied as error:
            if not is_ours or not VOD.lacks_permission(error):
                raise
            return grant
        if facts is not None and facts.is_finished:
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
