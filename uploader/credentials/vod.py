"""Grants of ApsaraVideo VOD itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uploader.credentials.caller import CallerProvider, CallerSigner
from uploader.credentials.contract import (
    GrantSource,
    Network,
    NewVideo,
    ReferenceUsed,
    of_video,
)
from uploader.errors import (
    ConfigurationError,
    CredentialsRejected,
    PermissionDenied,
    ServiceError,
    TransportError,
    VideoGone,
    VodupError,
)
from uploader.log import get_logger
from uploader.protocol import vod
from uploader.protocol.failures import VOD, is_outcome_known
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import VideoFacts

if TYPE_CHECKING:
    from uploader.protocol.media import MediaKind

_CREATE_ATTEMPTS: Final = 3

_ABOUT_REFERENCE: Final = re.compile(r"reference|duplicat|exist", re.I)

_CHECK_CONSOLE: Final = (
    "Check in the VOD console whether the video was created, because this region cannot look it "
    "up by ReferenceId. If it was, pass its VideoId (--video-id), else run `vodup abort`; then "
    "run again."
)


_ALLOW_LOOKING: Final = (
    "If a video with this ReferenceId exists already, allow vod:GetMezzanineInfo, so that it can "
    "be compared; or pass --key NAME to create another video. Then run again."
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
                if not may_exist and is_outcome_known(failure):
                    return await self._find_earlier(reference_id, failure)
                may_exist = True
                # It may have been created, or this was a duplicate: never a second video.
                if found := await self._find(reference_id, is_ours=is_ours):
                    return found
                last = failure
        raise last

    async def _find_earlier(self, reference_id: str, refusal: VodupError) -> UploadGrant:
        """Return a grant for the video that a run whose checkpoint is lost has created.

        Which code a ReferenceId gets that is used already is not documented, so every refusal
        that may be about it leads here; it is raised again where there is no such video.

        Raises:
            ReferenceUsed: the video is finished or gone.
        """
        if refusal.is_temporary or not (
            isinstance(refusal, ServiceError) or VOD.is_bad_parameter(refusal)
        ):
            raise refusal
        try:
            # Before a grant is requested: for a finished video that is the overwrite API.
            facts = await self._facts_of_reference(reference_id)
            found = None if facts and facts.is_finished else await self._refresh(reference_id)
        except VideoGone:
            facts, found = None, None
        except VodupError as error:
            if VOD.lacks_permission(error):
                refusal.next_step = _ALLOW_LOOKING
            raise refusal from None
        if facts is not None and facts.is_finished and facts.video_id is not None:
            raise ReferenceUsed(reference_id, facts.video_id, facts)
        if found is not None:
            if facts is not None and facts.video_id is not None:
                found = of_video(found, facts.video_id)
            get_logger().warning("video.continued", video_id=found.video_id)
            return found
        if facts is None and _ABOUT_REFERENCE.search(f"{refusal.code} {refusal.message}"):
            raise ReferenceUsed(reference_id, None, None) from refusal
        raise refusal

    async def _facts_of_reference(self, reference_id: str) -> VideoFacts | None:
        """None where VOD has no file: it may know the video nevertheless."""
        operation = vod.get_mezzanine_info(self._endpoint, reference_id=reference_id)
        try:
            return await self._session.call(operation)
        except VideoGone:
            return None

    async def _find(self, reference_id: str, *, is_ours: bool) -> UploadGrant | None:
        """Return a grant for the video of this ReferenceId; None if there is none.

        Raises where that cannot be found out, as in a region that does not know
        ReferenceId yet: the video may exist, and a second one must not be created. `is_ours`:
        vodup has made the ReferenceId; should the video be finished after all, its object is
        compared and not replaced (`upload.parts`).
        """
        try:
            grant = await self._refresh(reference_id)
        except VideoGone:
            return None
        except VodupError as error:
            if VOD.is_bad_parameter(error):
                error.next_step = _CHECK_CONSOLE
            raise
        try:
            facts = await self.facts(grant.video_id or "")
        except PermissionDenied as error:
            if not is_ours or not VOD.lacks_permission(error):
                raise
            return grant
        if facts is not None and facts.is_finished:
            raise ReferenceUsed(reference_id, grant.video_id, facts)
        return grant

    async def _refresh(self, reference_id: str) -> UploadGrant:
        operation = vod.refresh_upload_video(self._endpoint, reference_id=reference_id)
        grant = await self._session.call(operation)
        if grant.video_id is None:
            raise TransportError("RefreshUploadVideo did not return the VideoId.", is_sent=True)
        return grant

    async def renew(self, video_id: str) -> UploadGrant:
        """Call RefreshUploadVideo."""
        operation = vod.refresh_upload_video(self._endpoint, video_id=video_id)
        return of_video(await self._session.call(operation), video_id)

    async def create_media(self, kind: MediaKind, video: NewVideo) -> UploadGrant:
        """Call CreateUploadImage or CreateUploadAttachedMedia."""
        from uploader.protocol.media import create_upload_media  # few uploads need it

        operation = create_upload_media(
            self._endpoint, kind, video.meta, file_name=video.file_name, file_size=video.file_size
        )
        return await self._session.call(operation)

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Call GetMezzanineInfo."""
        return await self._session.call(vod.get_mezzanine_info(self._endpoint, video_id))


class MediaSource:
    """A `GrantSource` for one image or attached media, whose credentials nothing renews."""

    def __init__(self, grants: GrantSource | None, kind: MediaKind) -> None:
        """Check what issues grants.

        Raises:
            ConfigurationError: it is not VOD itself.
        """
        if not isinstance(grants, _VodSource):
            raise ConfigurationError(
                "Images and attached media need calls to VOD with an AccessKey.",
                next_step="Set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, "
                "and leave out --auth-command, --auth-url and --service ims.",
            )
        self._grants, self._kind = grants, kind

    async def create(self, video: NewVideo) -> UploadGrant:
        """Create the media."""
        return await self._grants.create_media(self._kind, video)

    async def renew(self, video_id: str) -> UploadGrant:
        """Raise: no operation does that."""
        raise CredentialsRejected(f"No operation of VOD renews the credentials of {video_id}.")

    async def facts(self, video_id: str) -> VideoFacts | None:
        """Nothing reads it as a video."""
        return None
