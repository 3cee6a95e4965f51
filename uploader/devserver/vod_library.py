"""What VOD holds: reading, searching, changing and deleting it; pictures and attached media.

Sources: "VOD API: GetVideoInfos, GetPlayInfo, GetTranscodeSummary, SearchMedia, UpdateVideoInfo,
DeleteVideo, GetUploadDetails, CreateUploadImage, CreateUploadAttachedMedia, GetImageInfo,
GetAttachedMediaInfo, RegisterMedia".
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .answers import Refusal
from .backend import Backend, iso_date
from .grants import grant
from .oss_signed_url import signed_url
from .storage import Video
from .vod_access import VodCall
from .vod_checks import Fields, check_characters, check_tags
from .vod_events import Events

SHOWN_DETAILS: Final = (
    "Description", "Tags", "CateId", "CoverURL", "TemplateGroupId", "UserData",
)  # fmt: skip
"""Parameters of CreateUploadVideo and UpdateVideoInfo that are shown again."""

_MAX_IDS: Final = 20
_IMAGE_EXTENSIONS: Final = frozenset("png jpg jpeg gif heic webp".split())
_ATTACHED: Final[Mapping[str, frozenset[str]]] = {
    "watermark": frozenset("png gif apng mov".split()),
    "subtitle": frozenset("srt ass stl ttml vtt".split()),
    "material": frozenset("jpg gif png mp4 mat zip apk".split()),
}
_PLAYABLE_AS_IT_IS: Final = frozenset("mp4 flv mp3 m3u8 webm".split())
_BAD_SOURCE: Final[Fields] = {
    "TranscodeJobStatus": "TranscodeFail",
    "ErrorCode": "InvalidParameter.ResourceContentBad",
    "ErrorMessage": "The resource operated InputFile is bad",
}
_CONDITION: Final = re.compile(
    r"(?P<name>\w+)\s*(?:=\s*'(?P<one>[^']*)'|in\s*\((?P<many>[^()]*)\)"
    r"|=\s*(?P<open>[(\[])\s*'(?P<from>[^']*)'\s*,\s*(?:'(?P<to>[^']*)')?\s*(?P<close>[)\]]))"
)


class Library:
    """Operations on what is stored; ``operations`` has them by name."""

    def __init__(self, backend: Backend, events: Events) -> None:
        self._events = events
        self._backend = backend
        self._storage = backend.storage
        self.operations: Mapping[str, Callable[[VodCall], Fields]] = {
            "GetVideoInfos": self._video_infos,
            "GetPlayInfo": self._play_info,
            "GetTranscodeSummary": self._transcode_summary,
            "SearchMedia": self._search,
            "UpdateVideoInfo": self._update,
            "DeleteVideo": self._delete,
            "GetUploadDetails": self._upload_details,
            "CreateUploadImage": self._create_image,
            "GetImageInfo": self._image_info,
            "CreateUploadAttachedMedia": self._create_attached,
            "GetAttachedMediaInfo": self._attached_infos,
            "RegisterMedia": self._register,
        }

    # videos

    def _videos(self) -> list[Video]:
        every = self._storage.videos()
        return [v for v in every if v.object_key.startswith("sv/") and v.status != "Deleted"]

    def _named(self, call: VodCall) -> tuple[list[Video], Fields]:
        """The videos of ``VideoIds`` or ``ReferenceIds``, and the lists of those not found.

        Raises: Refusal when there are too many, or none exists.
        """
        ids = _listed(call, "VideoIds")
        names = [] if ids else _listed(call, "ReferenceIds")
        if not ids and not names:
            raise Refusal("MissingParameter", "VideoIds is mandatory for this action.")
        if len(ids) + len(names) > _MAX_IDS:
            raise Refusal("VideoIdsExceededMax")
        by_id = {video.video_id: video for video in self._videos()}
        by_name = {video.reference_id: video for video in by_id.values()}
        found = [by_id[i] for i in ids if i in by_id] + [by_name[n] for n in names if n in by_name]
        if not found:
            raise Refusal("InvalidVideo.NotFound")
        missing: Fields = {
            "NonExistVideoIds": [i for i in ids if i not in by_id],
            "NonExistReferenceIds": [n for n in names if n not in by_name],
        }
        return found, missing

    def _one(self, call: VodCall) -> Video:
        video_id, name = call.parameter("VideoId"), call.parameter("ReferenceId")
        if not video_id and not name:
            raise Refusal("MissingParameter", "VideoId is mandatory for this action.")
        for video in self._videos():
            if video.video_id == video_id or (not video_id and video.reference_id == name):
                return video
        raise Refusal("InvalidVideo.NotFound")

    def _video_infos(self, call: VodCall) -> Fields:
        found, missing = self._named(call)
        return {"VideoList": [video_fields(self._backend, video) for video in found], **missing}

    def _play_info(self, call: VodCall) -> Fields:
        video = self._one(call)
        status = self._backend.status_of(video)
        if status != "Normal":
            message = f"Status of the video is illegal. Current Status is {status}."
            raise Refusal("Forbidden.IllegalStatus", message)
        stored = self._storage.object(video.bucket, video.object_key)
        extension = video.object_key.rpartition(".")[2]
        is_source = video.detail("TemplateGroupId") == "VOD_NO_TRANSCODE"
        if stored is None or (is_source and extension not in _PLAYABLE_AS_IT_IS):
            raise Refusal("InvalidVideo.NoneStream")
        stream: Fields = {
            "PlayURL": signed_url(self._backend, stored.bucket, stored.object_key),
            "Format": extension if is_source else "mp4",
            "Definition": "OD" if is_source else "HD",
            "StreamType": "video",
            "Size": stored.size,
            "Status": "Normal",
            "JobId": video.video_id,
        }
        base: Fields = {
            "VideoId": video.video_id,
            "Title": video.title,
            "Status": status,
            "MediaType": "video",
            "CoverURL": video.detail("CoverURL"),
            "CreationTime": iso_date(video.created_at),
        }
        return {"VideoBase": base, "PlayInfoList": {"PlayInfo": [stream]}}

    def _transcode_summary(self, call: VodCall) -> Fields:
        found, missing = self._named(call)
        summaries: list[Fields] = [
            {
                "VideoId": video.video_id,
                "TranscodeStatus": "CompleteAllFail",
                "TranscodeJobInfoSummaryList": [_BAD_SOURCE],
            }
            for video in found
            if self._backend.status_of(video) == "TranscodeFail"
        ]
        return {"TranscodeSummaryList": summaries, **missing}

    def _search(self, call: VodCall) -> Fields:
        if (call.parameter("SearchType") or "video") != "video":
            raise Refusal("InvalidParameter", "Only videos can be searched here.")
        matches = _matcher(call.parameter("Match"))
        hits = [video_fields(self._backend, video) for video in self._videos()]
        hits = [hit for hit in hits if matches(hit)]
        order = call.parameter("SortBy") or "CreationTime:Desc"
        if order not in ("CreationTime:Desc", "CreationTime:Asc"):
            raise Refusal("InvalidParameter", "The specified SortBy is not valid.")
        hits.sort(key=lambda hit: str(hit["CreationTime"]), reverse=order.endswith("Desc"))
        size, number = _number(call, "PageSize", 10, 100), _number(call, "PageNo", 1, 500)
        page = hits[(number - 1) * size : number * size]
        return {"Total": len(hits), "MediaList": [_found(hit, call) for hit in page]}

    def _update(self, call: VodCall) -> Fields:
        video = self._one(call)
        check_tags(call.parameter("Tags"))
        for name in ("Title", "Description", "Tags"):
            check_characters(call.parameter(name))
        given = {name: value for name, value in call.parameters if name in SHOWN_DETAILS}
        details = dict(video.details) | given
        title = call.parameter("Title") or video.title
        self._storage.save_video(
            dataclasses.replace(video, title=title, details=tuple(details.items()))
        )
        return {}

    def _delete(self, call: VodCall) -> Fields:
        found, missing = self._named(call)
        for video in found:
            for upload in self._storage.uploads(video.bucket):
                if upload.object_key == video.object_key:
                    self._storage.remove_upload(upload.upload_id)
            self._storage.remove_object(video.bucket, video.object_key)
            self._storage.save_video(dataclasses.replace(video, status="Deleted"))
            self._events.deleted(video)
        return {**missing, "ForbiddenVideoIds": []}

    def _upload_details(self, call: VodCall) -> Fields:
        ids = _listed(call, "MediaIds")
        if not ids:
            raise Refusal("MissingParameter", "MediaIds is mandatory for this action.")
        if len(ids) > _MAX_IDS:
            raise Refusal("LimitExceeded.MediaIds")
        by_id = {video.video_id: video for video in self._videos()}
        found: list[Fields] = []
        for video in (by_id[i] for i in ids if i in by_id):
            shown = video_fields(self._backend, video)
            found.append(
                {
                    "MediaId": video.video_id,
                    "Title": video.title,
                    "FileSize": shown["Size"],
                    "UploadSize": shown["Size"],
                    "Status": shown["Status"],
                    "CreationTime": shown["CreationTime"],
                }
            )
        return {
            "UploadDetails": found,
            "NonExistMediaIds": [i for i in ids if i not in by_id],
        }

    # pictures and attached media: no operation refreshes their credentials

    def _create_image(self, call: VodCall) -> Fields:
        kind = call.parameter("ImageType")
        if kind not in ("default", "cover"):
            raise Refusal("InvalidParameter", "The specified ImageType is not valid.")
        extension = call.parameter("ImageExt") or "png"
        if extension not in _IMAGE_EXTENSIONS:
            raise Refusal("InvalidParameter", "The specified ImageExt is not valid.")
        key = f"image/{kind}/{self._backend.ids.hex('key', 16).upper()}-6-2.{extension}"
        image, fields = self._new(call, key)
        return {"ImageId": image, "ImageURL": fields["FileURL"], **fields}

    def _create_attached(self, call: VodCall) -> Fields:
        kind = call.parameter("BusinessType")
        if kind not in _ATTACHED:
            raise Refusal("InvalidParameter", "The specified BusinessType is not valid.")
        extension = call.parameter("MediaExt") or call.parameter("FileName").rpartition(".")[2]
        if extension not in _ATTACHED[kind]:
            raise Refusal("InvalidParameter", "The specified MediaExt is not valid.")
        key = f"{kind}/{self._backend.ids.hex('key', 16)}.{extension}"
        media, fields = self._new(call, key)
        return {"MediaId": media, "MediaURL": fields["FileURL"], **fields}

    def _new(self, call: VodCall, object_key: str) -> tuple[str, Fields]:
        title = call.parameter("Title")
        check_tags(call.parameter("Tags"))
        check_characters(title)
        media = dataclasses.replace(
            self._backend.new_media(
                object_key,
                title=title,
                file_name=call.parameter("OriginalFileName") or call.parameter("FileName"),
                details=_given(call),
            ),
            generation=1,
        )
        self._storage.save_video(media)
        address, auth = grant(self._backend, media)
        fields: Fields = {
            "FileURL": self._backend.url_of(media),
            "UploadAddress": address,
            "UploadAuth": auth,
        }
        return media.video_id, fields

    def _image_info(self, call: VodCall) -> Fields:
        image = self._storage.video(call.parameter("ImageId"))
        if image is None or not image.object_key.startswith("image/"):
            raise Refusal("InvalidImage.NotFound")
        return {"ImageInfo": {"ImageId": image.video_id, **self._attached_fields(image)}}

    def _attached_infos(self, call: VodCall) -> Fields:
        ids = _listed(call, "MediaIds")
        kinds = tuple(f"{kind}/" for kind in _ATTACHED)
        every = {v.video_id: v for v in self._storage.videos() if v.object_key.startswith(kinds)}
        found: list[Fields] = []
        for media in (every[i] for i in ids if i in every):
            kind = media.object_key.partition("/")[0]
            found.append({"MediaId": media.video_id, "Type": kind, **self._attached_fields(media)})
        missing = [i for i in ids if i not in every]
        return {"AttachedMediaList": found, "NonExistMediaIds": missing}

    def _attached_fields(self, media: Video) -> Fields:
        return {
            "Title": media.title,
            "Status": "Uploading" if media.status == "Uploading" else "Normal",
            "URL": self._backend.url_of(media),
            "CreationTime": iso_date(media.created_at),
        }

    # media that are in a bucket already

    def _register(self, call: VodCall) -> Fields:
        registered: list[Fields] = []
        failed: list[str] = []
        for entry in _registrations(call):
            url = str(entry.get("FileURL", ""))
            found = re.fullmatch(r"https?://[^/]+/(.+)", url)
            key = (found.group(1) if found else "").removeprefix(f"{self._backend.bucket}/")
            if self._storage.object(self._backend.bucket, key) is None:
                failed.append(url)
                continue
            known = next((v for v in self._storage.videos() if v.object_key == key), None)
            video = known or self._registered(key, str(entry["Title"]), call)
            registered.append(
                {
                    "FileURL": url,
                    "MediaId": video.video_id,
                    "NewRegister": known is None,
                }
            )
        return {"RegisteredMediaList": registered, "FailedFileURLs": failed}

    def _registered(self, object_key: str, title: str, call: VodCall) -> Video:
        """Without a template it is never transcoded, and stays as it is."""
        template = call.parameter("TemplateGroupId")
        video = self._backend.new_media(
            object_key,
            title=title,
            file_name=object_key,
            status="Uploaded" if template else "UploadSucc",
            details=_given(call),
        )
        video = dataclasses.replace(video, object_prefix="")
        self._storage.save_video(video)
        if template:
            self._events.transcode(video)
        return video


def video_fields(backend: Backend, video: Video) -> Fields:
    """A video as GetVideoInfo shows it."""
    stored = backend.storage.object(video.bucket, video.object_key)
    shown: Fields = {
        "VideoId": video.video_id,
        "Title": video.title,
        "Status": backend.status_of(video),
        "Size": stored.size if stored else 0,
        "CreationTime": iso_date(video.created_at),
        "CreateTime": iso_date(video.created_at),
        "StorageLocation": f"{video.bucket}.oss-{backend.options.region}.aliyuncs.com",
        "AppId": "app-1000000",
        **dict(video.details),
    }
    if video.reference_id:
        shown["ReferenceId"] = video.reference_id
    return shown


def _given(call: VodCall) -> tuple[tuple[str, str], ...]:
    pairs = ((name, call.parameter(name)) for name in SHOWN_DETAILS)
    return tuple(pair for pair in pairs if pair[1])


def _listed(call: VodCall, name: str) -> list[str]:
    return [item for item in call.parameter(name).split(",") if item]


def _number(call: VodCall, name: str, default: int, most: int) -> int:
    text = call.parameter(name) or str(default)
    if not (text.isdecimal() and 1 <= int(text) <= most):
        raise Refusal("InvalidParameter", f"The specified {name} is not valid.")
    return int(text)


def _found(hit: Fields, call: VodCall) -> Fields:
    """The requested fields of a hit, and those that are always there."""
    wanted = {"VideoId", *call.parameter("Fields").split(",")}
    return {
        "MediaId": hit["VideoId"],
        "MediaType": "video",
        "CreationTime": hit["CreationTime"],
        "Video": {name: value for name, value in hit.items() if name in wanted},
    }


def _registrations(call: VodCall) -> list[dict[str, Any]]:
    try:
        entries = json.loads(call.parameter("RegisterMetadatas"))
    except ValueError:
        entries = None
    is_list = isinstance(entries, list) and 1 <= len(entries) <= 10
    if not is_list or not all(isinstance(e, dict) and e.get("Title") for e in entries):
        raise Refusal("InvalidParameter", "The specified RegisterMetadatas is not valid.")
    return list(entries)


# --- SearchMedia's conditions --------------------------------------------------------------


def _matcher(text: str) -> Callable[[Fields], bool]:
    """``A and B``, each ``Name = 'x'``, ``Name in ('x','y')`` or ``Name = ('from','to')``.

    Raises: Refusal for all else; OSS's "or" is not played.
    """
    pieces = re.split(r"\s+and\s+", text.strip(), flags=re.IGNORECASE) if text.strip() else []
    conditions = [_condition(piece) for piece in pieces]
    return lambda hit: all(condition(hit) for condition in conditions)


def _condition(piece: str) -> Callable[[Fields], bool]:
    found = _CONDITION.fullmatch(piece.strip())
    if found is None:
        message = f"The parameter Match.{piece} has an error syntax."
        raise Refusal("ErrorMatchSyntax", message)
    name = found["name"]
    if found["open"]:
        low, high = found["from"], found["to"] or "9999"
        with_low, with_high = found["open"] == "[", found["close"] == "]"
        return lambda hit: (
            low < str(hit.get(name, "")) < high
            or (with_low and str(hit.get(name, "")) == low)
            or (with_high and str(hit.get(name, "")) == high)
        )
    wanted = [found["one"]] if found["one"] is not None else re.findall("'([^']*)'", found["many"])
    if name in ("Title", "Tags", "Description"):
        return lambda hit: any(text in str(hit.get(name, "")) for text in wanted)
    return lambda hit: str(hit.get(name, "")) in wanted
