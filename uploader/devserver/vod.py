"""The VOD API: the operations around an upload.

Sources: "VOD API: CreateUploadVideo, RefreshUploadVideo, GetMezzanineInfo, GetVideoInfo,
DeleteMultipartUpload", "IMS API: CreateUploadMedia, RefreshUploadMedia, GetMediaInfo".
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from . import metadata
from .answers import VOD_ERRORS, Answer, Refusal
from .backend import Backend, http_date, iso_date
from .encoding import Node, Pairs, parse_query, render_xml, split_target
from .exchange import Exchange
from .grants import grant
from .oss_signed_url import signed_url
from .signatures import SignedRequest
from .storage import Video
from .vod_access import IMS_OPERATIONS, Gateway, VodCall
from .vod_checks import MAX_TITLE_LENGTH, Fields, check_extension, check_tags, checked_metadata
from .vod_events import Events
from .vod_library import SHOWN_DETAILS, Library, video_fields
from .vod_pull import Pull

_REFERENCE_ID = re.compile(r"[A-Za-z0-9_-]{6,64}")
_VIDEO_ID = re.compile(r"[0-9a-f]{32}")

_VOD_HOME, _IMS_HOME = "sv", "ims"
"""Where the files of each service are stored; neither accepts the other's ids."""


class VodService:
    """The VOD API behind one port."""

    name = "vod"

    def __init__(self, backend: Backend, events: Events, pull: Pull) -> None:
        self._backend = backend
        self._storage = backend.storage
        self._gateway = Gateway(backend)
        self._metadata = metadata.Metadata()
        self._operations: Mapping[str, Callable[[VodCall], Fields]] = {
            "CreateUploadVideo": self._create,
            "RefreshUploadVideo": self._refresh,
            "GetMezzanineInfo": self._mezzanine_info,
            "GetVideoInfo": self._video_info,
            "DeleteMultipartUpload": self._delete_multipart,
            "CreateUploadMedia": self._create_media,
            "RefreshUploadMedia": self._refresh_media,
            "GetMediaInfo": self._media_info,
            **Library(backend, events).operations,
            **pull.operations,
        }

    # what `front` calls

    async def describe(self, exchange: Exchange) -> None:
        """Read a whole call and identify it; nothing is checked yet."""
        exchange.body = await exchange.read_body()
        call, record = _parse_call(exchange), exchange.record
        record.operation = call.operation
        names = ("VideoId", "MediaId", "ReferenceId")
        record.subject = next(filter(None, map(call.parameter, names)), "")
        if call.signed.resource.startswith(metadata.ROOT):
            record.operation, record.subject = "Metadata", call.signed.resource
        record.signature_version = "v3" if call.is_v3 else "v1"
        exchange.wants_json = _is_json(call)

    async def perform(self, exchange: Exchange) -> Answer:
        """Check a call and perform it."""
        call = _parse_call(exchange)
        if call.signed.resource.startswith(metadata.ROOT):
            return self._metadata.answer(call.signed, self._backend.options.machine_region)
        if call.signed.method not in ("GET", "POST") or call.signed.resource != "/":
            raise Refusal("InvalidAction.NotFound")
        self._gateway.admit(call)
        operation = self._operations.get(call.operation)
        if operation is None:
            raise Refusal("InvalidAction.NotFound")
        fields = operation(call)
        exchange.record.video_id = str(fields.get("VideoId") or fields.get("MediaId") or "")
        fields = {"RequestId": self.request_id(), **fields}
        return self._render(call.operation + "Response", fields, 200, exchange.wants_json)

    def refuse(self, exchange: Exchange, refusal: Refusal, request_id: str) -> Answer:
        """The error document of the API."""
        row = refusal.row(VOD_ERRORS)
        fields: Fields = {
            "RequestId": request_id,
            "HostId": f"vod.{self._backend.options.region}.aliyuncs.com",
            "Code": refusal.code,
            "Message": row.message,
            "Recommend": f"https://api.aliyun.com/troubleshoot?q={refusal.code}&product=vod",
        }
        answer = self._render("Error", fields, row.status, exchange.wants_json)
        return dataclasses.replace(answer, code=refusal.code)

    def decorate(self, exchange: Exchange, request_id: str) -> dict[str, str]:
        """Headers every answer of the API has."""
        return {"Date": http_date(self._backend.now()), "x-acs-request-id": request_id}

    def request_id(self) -> str:
        """A UUID in capitals."""
        return self._backend.ids.uuid("request").upper()

    # operations

    def _create(self, call: VodCall) -> Fields:
        file_name = checked_metadata(call)
        reference_id = call.parameter("ReferenceId") or None
        if reference_id is not None:
            known = self._duplicate(reference_id)
            if known is not None:
                return self._granted(known)
        video = self._new_video(call.parameter("Title"), file_name, reference_id)
        given = ((name, call.parameter(name)) for name in SHOWN_DETAILS)
        video = dataclasses.replace(video, details=tuple(pair for pair in given if pair[1]))
        self._backend.stats.creates += 1
        self._backend.stats.created_with.append(dict(call.parameters))
        return self._granted(video)

    def _duplicate(self, reference_id: str) -> Video | None:
        if not _REFERENCE_ID.fullmatch(reference_id):
            raise Refusal("InvalidParameter", "The specified ReferenceId is not valid.")
        known = self._storage.video_by_reference(reference_id)
        if known is not None and self._backend.options.duplicate_reference == "error":
            code = self._backend.options.duplicate_reference_code
            raise Refusal(code, "The specified ReferenceId already exists.", status=400)
        return known

    def _new_video(
        self,
        title: str,
        file_name: str,
        reference_id: str | None = None,
        *,
        home: str = _VOD_HOME,
    ) -> Video:
        key = self._backend.media_key(home, file_name)
        return self._backend.new_media(
            key, title=title, file_name=file_name, reference_id=reference_id
        )

    def _refresh(self, call: VodCall) -> Fields:
        video = self._existing_video(call)
        if video.status == "Damaged":
            raise Refusal("InvalidVideo.Damaged")
        stats = self._backend.stats
        stats.refreshes += 1
        stats.refreshes_by_video[video.video_id] += 1
        stats.overwrite_refreshes += video.status != "Uploading"
        return self._granted(dataclasses.replace(video, refresh_count=video.refresh_count + 1))

    def _granted(self, video: Video) -> Fields:
        video = dataclasses.replace(video, generation=video.generation + 1)
        self._storage.save_video(video)
        address, auth = grant(self._backend, video)
        answer: Fields = {"VideoId": video.video_id, "UploadAddress": address, "UploadAuth": auth}
        variation = self._backend.options.refresh_video_id
        if video.generation > 1 and variation == "absent":
            del answer["VideoId"]
        if video.generation > 1 and variation == "different":
            answer["VideoId"] = self._backend.ids.hex("other media", 16)
        return answer

    def _mezzanine_info(self, call: VodCall) -> Fields:
        video = self._existing_video(call)
        stored = self._storage.object(video.bucket, video.object_key)
        status = "Uploading" if video.status == "Uploading" else "Normal"
        mezzanine: Fields = {
            "VideoId": video.video_id,
            "Status": status,
            "Size": stored.size if stored else 0,
            "CreationTime": iso_date(video.created_at),
            "FileName": video.object_key,
            "OutputType": "oss",
        }
        if stored and self._backend.options.file_url:
            mezzanine["FileURL"] = signed_url(self._backend, stored.bucket, stored.object_key)
        return {"Mezzanine": mezzanine}

    def _video_info(self, call: VodCall) -> Fields:
        return {"Video": video_fields(self._backend, self._existing_video(call))}

    def _delete_multipart(self, call: VodCall) -> Fields:
        if call.parameter("MediaType") != "video":
            raise Refusal("InvalidParameter", "The specified MediaType is not valid.")
        video = self._find_video(call.parameter("MediaId"), "")
        for upload in self._storage.uploads(video.bucket):
            if upload.object_key == video.object_key:
                self._storage.remove_upload(upload.upload_id)
                self._backend.stats.aborts += 1
        return {}

    # operations of IMS: the same uploads under other names

    def _create_media(self, call: VodCall) -> Fields:
        file, described = _json_parameter(call, "FileInfo"), _json_parameter(call, "MediaMetaData")
        for name in ("Type", "Name", "Ext"):
            if not file.get(name):
                raise Refusal("MissingParameter", f"FileInfo.{name} is mandatory for this action.")
        if not described.get("Title") or not described.get("BusinessType"):
            raise Refusal("MissingParameter", "MediaMetaData needs Title and BusinessType.")
        if file["Type"] not in ("video", "audio") or len(described["Title"]) > MAX_TITLE_LENGTH:
            raise Refusal("InvalidParameter", "FileInfo or MediaMetaData is not valid.")
        check_tags(str(described.get("Tags", "")))
        file_name = f"{file['Name']}.{file['Ext']}"
        check_extension(file_name)
        media = self._new_video(described["Title"], file_name, home=_IMS_HOME)
        self._backend.stats.creates += 1
        return _as_media(self._granted(media))

    def _refresh_media(self, call: VodCall) -> Fields:
        return _as_media(self._refresh(call))

    def _media_info(self, call: VodCall) -> Fields:
        media = self._existing_video(call)
        stored = self._storage.object(media.bucket, media.object_key)
        status = "Init" if media.status == "Uploading" else "Normal"
        info: Fields = {
            "MediaId": media.video_id,
            "MediaBasicInfo": {"MediaId": media.video_id, "Title": media.title, "Status": status},
        }
        if stored:
            file: Fields = {"FileName": media.file_name, "FileSize": str(stored.size)}
            if self._backend.options.file_url:
                file["FileUrl"] = signed_url(self._backend, stored.bucket, stored.object_key)
            files: list[Fields] = [{"FileBasicInfo": file}]
            info["FileInfoList"] = files
        return {"MediaInfo": info}

    def _existing_video(self, call: VodCall) -> Video:
        is_media = call.operation in IMS_OPERATIONS
        name, home = ("MediaId", _IMS_HOME) if is_media else ("VideoId", _VOD_HOME)
        video_id, reference_id = call.parameter(name), call.parameter("ReferenceId")
        if not video_id and not reference_id:
            raise Refusal("MissingParameter", f"{name} is mandatory for this action.")
        video = self._find_video(video_id, reference_id)
        if not video.object_key.startswith(f"{home}/"):
            raise Refusal("InvalidVideo.NotFound")
        return video

    def _find_video(self, video_id: str, reference_id: str) -> Video:
        if video_id:
            video = self._storage.video(video_id) if _VIDEO_ID.fullmatch(video_id) else None
        else:
            video = self._storage.video_by_reference(reference_id)
        if video is None or video.status == "Deleted":
            raise Refusal("InvalidVideo.NotFound")
        return video

    # documents

    def _render(self, root: str, fields: Fields, status: int, as_json: bool) -> Answer:
        if as_json:
            body = json.dumps(fields, ensure_ascii=False).encode()
            return Answer(status, body, content_type="application/json;charset=utf-8")
        body = render_xml(Node(root, _nodes(fields)))
        return Answer(status, body, content_type="text/xml;charset=utf-8")


def _nodes(fields: Fields) -> list[Node]:
    return [Node(name, _content(value)) for name, value in fields.items()]


def _content(
    value: str | int | Fields | list[Fields] | list[str],
) -> list[Node] | str | int:
    if isinstance(value, list):
        return [Node("Item", _content(item)) for item in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return _nodes(value) if isinstance(value, dict) else value


def _parse_call(exchange: Exchange) -> VodCall:
    request = exchange.request
    raw_path, raw_query = split_target(request.raw_path)
    query = parse_query(raw_query, plus_is_space=True)
    headers = {name.lower(): value for name, value in request.headers.items()}
    signed = SignedRequest(request.method, raw_path, query, headers)
    return VodCall(signed, query + _form(headers, exchange.body), exchange.body)


def _form(headers: Mapping[str, str], body: bytes) -> Pairs:
    if "x-www-form-urlencoded" not in headers.get("content-type", ""):
        return ()
    return parse_query(body.decode("utf-8", "surrogateescape"), plus_is_space=True)


def _is_json(call: VodCall) -> bool:
    """XML is the default of the RPC style; V3 requests are answered in JSON."""
    wanted = call.parameter("Format")
    return wanted.upper() == "JSON" if wanted else call.is_v3


def _as_media(fields: Fields) -> Fields:
    return {"MediaId" if name == "VideoId" else name: value for name, value in fields.items()}


def _json_parameter(call: VodCall, name: str) -> dict[str, Any]:
    try:
        found = json.loads(call.parameter(name))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refusal("InvalidParameter", f"The specified {name} is not valid.")
    return found
