"""VOD's operations on what it holds: videos, and images and attached media (2017-03-21).

Lists nest differently from operation to operation, and numbers come as numbers or as text ("VOD
SDK: models"), so everything here reads both. What is unknown is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from uploader.errors import ConfigurationError
from uploader.protocol.documents import MalformedDocument, clean_text, parse_json
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import (
    VideoMeta,
    parse_grant,
    require_success,
    rpc_operation,
    title_of,
)
from uploader.protocol.wire import Operation, Response, unusable

_EXTENSIONS: Final[Mapping[str, frozenset[str]]] = {
    "image:default": frozenset("png jpg jpeg gif heic webp".split()),
    "image:cover": frozenset("png jpg jpeg gif heic webp".split()),
    "attached:watermark": frozenset("png gif apng mov".split()),
    "attached:subtitle": frozenset("srt ass stl ttml vtt".split()),
    "attached:material": frozenset("jpg gif png mp4 mat zip apk".split()),
}
"""VOD API: CreateUploadImage, CreateUploadAttachedMedia."""

MAX_VIDEO_IDS: Final = 20
"""Of one GetVideoInfos or DeleteVideo (VOD API)."""

PLAYABLE: Final = "Normal"
FAILED_STATUSES: Final = frozenset({"TranscodeFail", "UploadFail", "Blocked", "ProduceFail"})
"""Of a video, for good ("VOD: Video status"). All but these and "Normal" may change by itself."""

_MAX_ANSWER: Final = 1024 * 1024
_MAX_URL: Final = 4096


@dataclass(frozen=True, slots=True)
class MediaKind:
    """What a file is at VOD that is no video.

    Attributes:
        name: "image:default" (shown in VOD's console), "image:cover", "attached:subtitle",
            "attached:watermark" or "attached:material"; "image" is "image:default".
    """

    name: str

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ConfigurationError: there is no such kind.
        """
        if self.name == "image":
            object.__setattr__(self, "name", "image:default")
        if self.name not in _EXTENSIONS:
            raise ConfigurationError(
                f"{clean_text(self.name, 40)!r} is no kind of media.",
                next_step=f"Write image, {', '.join(_EXTENSIONS)}.",
            )

    def __str__(self) -> str:
        return self.name

    @property
    def is_image(self) -> bool:
        """Whether it is an image, with an ImageId; else attached media, with a MediaId."""
        return self.name.startswith("image:")

    def extension_of(self, file_name: str) -> str:
        """Return the extension of a file, in lower case.

        Raises:
            ConfigurationError: VOD takes no such file as this kind.
        """
        extension = file_name.rpartition(".")[2].lower()
        if "." in file_name and extension in _EXTENSIONS[self.name]:
            return extension
        raise ConfigurationError(
            f"VOD takes no file like {clean_text(file_name, 80)} as {self.name}.",
            next_step=f"Its extension must be {', '.join(sorted(_EXTENSIONS[self.name]))}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMedia:
    """An image or attached media at VOD (VOD API: GetImageInfo, GetAttachedMediaInfo).

    Attributes:
        url: of the CDN where the account has a domain, else of OSS.
        status: "Uploading", "Normal" or "UploadFail".
    """

    media_id: str
    kind: MediaKind
    url: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """VOD's record of a video (VOD API: GetVideoInfos).

    Attributes:
        status: "Uploading", "UploadSucc", "Transcoding", "Checking", "Normal" (it plays),
            "TranscodeFail", "UploadFail", "Blocked", or one that VOD has added since.
        size: bytes; None where VOD does not say.
        duration_s: None until VOD has analysed the video.
        created_at: as VOD writes it, "2026-11-30T08:00:00Z".
    """

    video_id: str
    status: str
    title: str = ""
    size: int | None = None
    duration_s: float | None = None
    cover_url: str = field(default="", repr=False)
    created_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayStream:
    """One way to play a video (VOD API: GetPlayInfo).

    Attributes:
        url: may be signed, so that whoever has it can play the video until it expires.
        definition: "FD", "LD", "SD", "HD", "OD" (the source itself), "2K", "4K", "AUTO", ...
        bitrate: Kbit/s.
    """

    url: str = field(repr=False)
    format: str
    definition: str
    size: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    bitrate: float | None = None


def create_upload_media(
    endpoint: str, kind: MediaKind, meta: VideoMeta, *, file_name: str, file_size: int
) -> Operation[UploadGrant]:
    """Create an image or attached media and get its id, address and credentials.

    No operation renews these. One whose answer is lost is created again: what the first one has
    created stays without a file.
    """
    extension, title = kind.extension_of(file_name), meta.title or file_name
    cate_id = None if meta.cate_id is None else str(meta.cate_id)
    own: dict[str, str | None]
    shared = {
        "Title": title_of(title, max_bytes=128),
        "Description": meta.description,
        "Tags": ",".join(meta.tags),
        "StorageLocation": meta.storage_location,
        "UserData": meta.user_data,
        "AppId": meta.app_id,
    }
    use = kind.name.partition(":")[2]
    if kind.is_image:
        own = {"ImageType": use, "ImageExt": extension, "OriginalFileName": file_name}
        own["CateId"] = cate_id
        return rpc_operation(endpoint, "CreateUploadImage", own | shared, parse_grant)
    own = {"BusinessType": use, "MediaExt": extension, "FileName": file_name, "CateIds": cate_id}
    own["FileSize"] = str(file_size)
    return rpc_operation(endpoint, "CreateUploadAttachedMedia", own | shared, parse_grant)


def get_media(endpoint: str, kind: MediaKind, media_id: str) -> Operation[StoredMedia]:
    """Read an image or attached media."""
    if kind.is_image:
        action, params = "GetImageInfo", {"ImageId": media_id}
    else:
        action, params = "GetAttachedMediaInfo", {"MediaIds": media_id}

    def parse(action: str, response: Response) -> StoredMedia:
        fields = answer(action, response)
        found = fields.get("ImageInfo") if kind.is_image else None
        entry = next(iter(objects(fields, "AttachedMediaList")), found)
        if not isinstance(entry, dict) or not text(entry, "URL", _MAX_URL):
            raise unusable(action, "it names no URL")
        url, status = text(entry, "URL", _MAX_URL), text(entry, "Status", 40)
        return StoredMedia(media_id=media_id, kind=kind, url=url, status=status)

    return rpc_operation(endpoint, action, params, parse)


def set_cover(endpoint: str, video_id: str, cover_url: str) -> Operation[None]:
    """Set the cover of a video (VOD API: UpdateVideoInfo)."""
    params = {"VideoId": video_id, "CoverURL": cover_url}
    return rpc_operation(endpoint, "UpdateVideoInfo", params, require_success)


def get_video_infos(endpoint: str, video_ids: Sequence[str]) -> Operation[dict[str, VideoInfo]]:
    """Read up to `MAX_VIDEO_IDS` videos, by VideoId; what VOD does not know is left out."""
    return rpc_operation(
        endpoint, "GetVideoInfos", {"VideoIds": ",".join(video_ids)}, _parse_video_infos
    )


def get_play_info(endpoint: str, video_id: str) -> Operation[tuple[PlayStream, ...]]:
    """Read the ways to play a video; refused unless its status is "Normal"."""
    return rpc_operation(endpoint, "GetPlayInfo", {"VideoId": video_id}, _parse_play_info)


def get_transcode_summary(endpoint: str, video_id: str) -> Operation[tuple[str, ...]]:
    """Read why the newest transcoding of a video failed: codes and messages, each once."""
    return rpc_operation(
        endpoint, "GetTranscodeSummary", {"VideoIds": video_id}, _parse_transcode_summary
    )


# --- answers ---------------------------------------------------------------------


def _parse_video_infos(action: str, response: Response) -> dict[str, VideoInfo]:
    found = [video_of(action, entry) for entry in objects(answer(action, response), "VideoList")]
    return {info.video_id: info for info in found}


def video_of(action: str, entry: Mapping[str, Any]) -> VideoInfo:
    """Read a video as GetVideoInfos and SearchMedia give it.

    Raises:
        TransportError: it has no id or no status.
    """
    status = text(entry, "Status", 40)
    if not status or not text(entry, "VideoId"):
        raise unusable(action, "a video has no status or no VideoId")
    return VideoInfo(
        video_id=text(entry, "VideoId"),
        status=status,
        title=text(entry, "Title"),
        size=whole(entry, "Size"),
        duration_s=number(entry, "Duration"),
        cover_url=text(entry, "CoverURL", _MAX_URL),
        created_at=text(entry, "CreationTime", 40),
    )


def _parse_play_info(action: str, response: Response) -> tuple[PlayStream, ...]:
    found = objects(answer(action, response), "PlayInfoList", "PlayInfo")
    return tuple(
        PlayStream(
            url=text(entry, "PlayURL", _MAX_URL),
            format=text(entry, "Format", 20),
            definition=text(entry, "Definition", 20),
            size=whole(entry, "Size"),
            duration_s=number(entry, "Duration"),
            width=whole(entry, "Width"),
            height=whole(entry, "Height"),
            bitrate=number(entry, "Bitrate"),
        )
        for entry in found
        if text(entry, "PlayURL") and text(entry, "Status") != "Invisible"
    )


def _parse_transcode_summary(action: str, response: Response) -> tuple[str, ...]:
    reasons: dict[str, None] = {}
    for task in objects(answer(action, response), "TranscodeSummaryList"):
        for job in objects(task, "TranscodeJobInfoSummaryList"):
            reason = ": ".join(filter(None, (text(job, "ErrorCode"), text(job, "ErrorMessage"))))
            if reason:
                reasons[reason] = None
    return tuple(reasons)


def answer(action: str, response: Response) -> Mapping[str, Any]:
    """Return the fields of an answer.

    Raises:
        ServiceError: the call was refused.
        TransportError: it is not VOD's answer, or was cut.
    """
    require_success(action, response)
    try:
        return parse_json(response.body, max_bytes=_MAX_ANSWER, max_depth=12)
    except MalformedDocument as error:
        problem = str(error)
    raise unusable(action, problem)


def objects(fields: Mapping[str, Any], name: str, inner: str = "") -> list[Mapping[str, Any]]:
    """Return the objects of a list, which may be in the field `inner` of an object."""
    found = fields.get(name)
    if isinstance(found, dict):
        found = found.get(inner)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text(fields: Mapping[str, Any], name: str, most: int = 300) -> str:
    """Return a text as it can be shown; "" where there is none."""
    found = fields.get(name)
    return clean_text(found, most) if isinstance(found, str) else ""


def number(fields: Mapping[str, Any], name: str) -> float | None:
    """Return a number of 0 or more, written as one or as text; None where there is none."""
    found = fields.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        value = float(found)
    except ValueError:
        return None
    return value if 0 <= value < 1e18 else None


def whole(fields: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number, as `number`."""
    found = number(fields, name)
    return None if found is None else int(found)
