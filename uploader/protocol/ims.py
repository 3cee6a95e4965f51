"""Operations of Intelligent Media Services around an upload (API version 2020-11-09, RPC style).

The same shape as VOD's: an id, an UploadAddress and an UploadAuth; uploads go to VOD's storage.
There is no ReferenceId, so a media whose answer was lost cannot be found again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from uploader.errors import ConfigurationError
from uploader.protocol.documents import MalformedDocument, parse_json
from uploader.protocol.grants import UploadGrant
from uploader.protocol.vod import (
    VideoFacts,
    VideoMeta,
    facts_of,
    parse_grant,
    require_success,
    rpc_operation,
    title_of,
)
from uploader.protocol.wire import Operation, Response, unusable

_VERSION: Final = "2020-11-09"
_AUDIO: Final = frozenset(
    "aac ac3 acm aiff amr ape caf flac m4a mp3 ra wav wma".split()  # VOD: formats of audio files
)


def create_upload_media(
    endpoint: str, meta: VideoMeta, *, file_name: str, file_size: int
) -> Operation[UploadGrant]:
    """Make a media and get its MediaId, address and credentials (IMS API: CreateUploadMedia).

    Not repeatable after an unknown outcome: it makes a second media, and nothing finds the
    first again.

    Raises:
        ConfigurationError: a field of `meta` is not one of IMS, or the name has no extension.
    """
    _require_known(meta)
    stem, dot, extension = (meta.file_name or file_name).rpartition(".")
    if not dot or not extension or not stem:
        raise ConfigurationError(
            "IMS requires a file name with an extension.", next_step="Pass one with --file-name."
        )
    file_info = {
        "Type": "audio" if extension.lower() in _AUDIO else "video",
        "Name": stem,
        "Size": file_size or None,
        "Ext": extension,
    }
    described = {
        "Title": meta.title or title_of(file_name),
        "Description": meta.description,
        "CateId": meta.cate_id,
        "Tags": ",".join(meta.tags),
        "BusinessType": "general",
        "CoverURL": meta.cover_url,
    }
    params = {
        "AppId": meta.app_id,
        "FileInfo": _json(file_info),
        "MediaMetaData": _json(described),
        "PostProcessConfig": _json(
            {"ProcessType": "Workflow", "ProcessID": meta.workflow_id} if meta.workflow_id else {}
        ),
        "UploadTargetConfig": _json(
            {"StorageType": "oss", "StorageLocation": meta.storage_location}
            if meta.storage_location
            else {}
        ),
        "UserData": meta.user_data,
        **meta.extra,
    }
    return rpc_operation(
        endpoint, "CreateUploadMedia", params, parse_grant, version=_VERSION, is_repeatable=False
    )


def _require_known(meta: VideoMeta) -> None:
    if meta.template_group_id or meta.reference_id:
        raise ConfigurationError("IMS has no template groups and no ReferenceIds.")
    if meta.enable_first_frame_cover is not None or meta.generate_thumbnail is not None:
        raise ConfigurationError("IMS has no EnableFirstFrameCover and no GenerateThumbnail.")


def _json(fields: Mapping[str, object]) -> str | None:
    given = {name: value for name, value in fields.items() if value not in (None, "")}
    return json.dumps(given) if given else None


def refresh_upload_media(endpoint: str, media_id: str) -> Operation[UploadGrant]:
    """Get new credentials for a media (IMS API: RefreshUploadMedia)."""
    params = {"MediaId": media_id}
    return rpc_operation(endpoint, "RefreshUploadMedia", params, parse_grant, version=_VERSION)


def get_media_info(endpoint: str, media_id: str) -> Operation[VideoFacts]:
    """Read IMS's record of the source file (IMS API: GetMediaInfo)."""
    params = {"MediaId": media_id, "OutputType": "oss"}
    return rpc_operation(endpoint, "GetMediaInfo", params, _parse_media_info, version=_VERSION)


def _parse_media_info(action: str, response: Response) -> VideoFacts:
    require_success(action, response)
    try:
        info = _object(parse_json(response.body).get("MediaInfo"))
    except MalformedDocument as error:
        raise unusable(action, str(error)) from error
    files = info.get("FileInfoList")
    first = files[0] if isinstance(files, list) and files else None
    file = _object(_object(first).get("FileBasicInfo"))
    status = _object(info.get("MediaBasicInfo")).get("Status")
    return facts_of(action, status, file.get("FileSize"), file.get("FileUrl"))


def _object(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}
