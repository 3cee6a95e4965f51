"""VOD's operations, and what VOD accepts of a video (API version 2017-03-21, RPC style)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from uploader.errors import InvalidGrant
from uploader.protocol.decode import decode_answer
from uploader.protocol.documents import (
    MalformedDocument,
    clean_text,
    decimal,
    parse_json,
    parse_xml,
)
from uploader.protocol.grants import UploadGrant
from uploader.protocol.wire import Operation, Request, Response, refusal, unusable
from uploader.redaction import remember

T = TypeVar("T")

_VERSION = "2017-03-21"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """The caller's own key, long-lived or STS. It has no repr."""

    id: str = field(repr=False)
    secret: str = field(repr=False)
    security_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        remember(self.secret, self.security_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoMeta:
    """The description of a video (VOD API: CreateUploadVideo).

    Attributes:
        title: up to 128 characters; None: the file's name, as far as VOD allows it.
        file_name: with an extension VOD supports; None: the source's name.
        description: up to 1,024 characters.
        cover_url: of a picture.
        cate_id: category.
        tags: up to 16 of at most 32 characters.
        template_group_id, workflow_id: transcoding; a workflow wins over a template group.
        storage_location: the bucket's domain as VOD's console shows it.
        app_id: default "app-1000000".
        reference_id: your own id, `[A-Za-z0-9_-]{6,64}`, unique in your account. If set,
            vodup uses it instead of its own to find the video again when an answer is lost.
        user_data: JSON text (message callback, extend, acceleration).
        enable_first_frame_cover: whether the first frame becomes the cover.
        generate_thumbnail: whether a thumbnail is made. VOD documents no details of either.
        extra: further parameters of the operation by their names, such as one that VOD has added
            since; none that a field or vodup itself sets.
    """

    title: str | None = None
    file_name: str | None = None
    description: str | None = None
    cover_url: str | None = None
    cate_id: int | None = None
    tags: tuple[str, ...] = ()
    template_group_id: str | None = None
    workflow_id: str | None = None
    storage_location: str | None = None
    app_id: str | None = None
    reference_id: str | None = None
    user_data: str | None = None
    enable_first_frame_cover: bool | None = None
    generate_thumbnail: bool | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """As JSON, for the checkpoint and for commands."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        given = {name: value for name, value in fields.items() if value not in (None, "", (), {})}
        return json.dumps(given)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what `to_text` has written."""
        given = json.loads(text)
        known = {name: given[name] for name in cls.__slots__ if name in given}
        return cls(**{**known, "tags": tuple(known.get("tags", ()))})


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """VOD's own record of a video's source file.

    Attributes:
        status: "Uploading", "Normal", "UploadFail", "Deleted", ... (VOD API:
            GetMezzanineInfo). A multipart upload that stopped stays "Uploading". IMS has
            "Init", "Preparing", "PrepareFail" and "Normal" (IMS API: GetMediaInfo).
        size: bytes; 0 or None while there is no file.
        file_url: a signed URL of the source file, when VOD gives one.
        video_id: None where the answer does not name it.
    """

    status: str
    size: int | None
    file_url: str | None = field(default=None, repr=False)
    video_id: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether VOD has the file: refreshing the video is then the overwrite API.

        A size of 0 says that there is none, whatever the status; of a damaged video, for
        example, which VOD refuses to refresh.
        """
        if self.status in {"Preparing", "PrepareFail"}:  # of IMS: may mean either
            return bool(self.size)
        return self.size != 0 and self.status not in {"Uploading", "UploadFail", "Init"}


# --- operations ------------------------------------------------------------------


def create_upload_video(
    endpoint: str, meta: VideoMeta, *, file_name: str, file_size: int, reference_id: str
) -> Operation[UploadGrant]:
    """Make a video and get its VideoId, address and credentials.

    Not repeatable after an unknown outcome: it makes a second video. `reference_id`
    finds the first again (`refresh_upload_video(reference_id=...)`).
    """
    params = {
        "Title": meta.title or title_of(file_name),
        "FileName": meta.file_name or file_name,
        "FileSize": str(file_size) if file_size else None,
        "Description": meta.description,
        "CoverURL": meta.cover_url,
        "CateId": None if meta.cate_id is None else str(meta.cate_id),
        "Tags": ",".join(meta.tags),
        "TemplateGroupId": meta.template_group_id,
        "WorkflowId": meta.workflow_id,
        "StorageLocation": meta.storage_location,
        "AppId": meta.app_id,
        "ReferenceId": meta.reference_id or reference_id,
        "UserData": meta.user_data,
        "EnableFirstFrameCover": _boolean(meta.enable_first_frame_cover),
        "GenerateThumbnail": _boolean(meta.generate_thumbnail),
        **meta.extra,
    }
    return rpc_operation(endpoint, "CreateUploadVideo", params, parse_grant, is_repeatable=False)


def _boolean(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()


def title_of(file_name: str, *, max_bytes: int = 512) -> str:
    """Return a title that VOD accepts, made of a file's name.

    At most 128 characters, and `max_bytes` of UTF-8; none of four UTF-8 bytes (emoji), no
    control characters (VOD API: CreateUploadVideo, IllegalCharacters).
    """
    kept = "".join(char for char in file_name if " " <= char <= "\uffff" and char != "\x7f")
    cut = kept.strip()[: _MAX_LENGTHS["title"]].encode(errors="ignore")[:max_bytes]
    return cut.decode(errors="ignore") or "video"


def refresh_upload_video(
    endpoint: str, *, video_id: str | None = None, reference_id: str | None = None
) -> Operation[UploadGrant]:
    """Get new credentials for a video. For a finished video this opens an overwrite."""
    params = {"VideoId": video_id, "ReferenceId": reference_id}
    return rpc_operation(endpoint, "RefreshUploadVideo", params, parse_grant)


def get_mezzanine_info(
    endpoint: str, video_id: str | None = None, *, reference_id: str | None = None
) -> Operation[VideoFacts]:
    """Read VOD's record of the source file."""
    params = {"VideoId": video_id, "ReferenceId": reference_id, "OutputType": "oss"}
    return rpc_operation(endpoint, "GetMezzanineInfo", params, _parse_mezzanine)


def rpc_operation(
    endpoint: str,
    action: str,
    params: Mapping[str, str | None],
    parse: Callable[[str, Response], T],
    *,
    version: str = _VERSION,
    is_repeatable: bool = True,
) -> Operation[T]:
    """A call in RPC style, without the parameters that are None or empty."""
    given = {name: value for name, value in params.items() if value}
    request = Request(
        method="POST",
        endpoint=endpoint,
        params={"Action": action, "Version": version, "Format": "JSON", **given},
    )
    return Operation(
        name=action,
        request=request,
        parse=functools.partial(parse, action),
        is_repeatable=is_repeatable,
    )


# --- what VOD accepts -------------------------------------------------------------

# "VOD: Overview of media upload": the formats of video and of audio files.
EXTENSIONS = frozenset(
    """
    3gp asf avi dat dv flv f4v gif m2t m3u8 m4v mj2 mjpeg mkv mov mp4 mpe mpg mpeg mts ogg qt rm
    rmvb swf ts vob wmv webm aac ac3 acm amr ape caf flac m4a mp3 ra wav wma aiff
    """.split()
)

# VOD API: CreateUploadVideo.
_MAX_LENGTHS = {"title": 128, "description": 1024}
_MAX_TAG_COUNT = 16
_MAX_TAG_LENGTH = 32
_REFERENCE_ID = re.compile(r"[A-Za-z0-9_-]{6,64}")
_UNSENDABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters, and what Python makes of bytes that are not UTF-8."""
_PARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z0-9]+)*")
_OWN_PARAMETERS = frozenset(
    # Of every call, and in lower case: a gateway may not care.
    "action version format accesskeyid securitytoken timestamp signature signaturemethod "
    "signaturenonce signatureversion signaturetype "
    # Of CreateUploadVideo and CreateUploadMedia.
    "title filename filesize description coverurl cateid tags templategroupid workflowid "
    "storagelocation appid referenceid userdata enablefirstframecover generatethumbnail fileinfo "
    "mediametadata postprocessconfig uploadtargetconfig".split()
)
_BEYOND_PLANE_0 = re.compile(r"[\U00010000-\U0010ffff]")
_TEXTS = (
    "title description cover_url template_group_id workflow_id storage_location app_id file_name"
).split()


def refuses_name(file_name: str) -> bool:
    """Whether CreateUploadVideo would answer `InvalidFileName.Extension`."""
    return file_name.rpartition(".")[2].lower() not in EXTENSIONS or "." not in file_name


def unsendable_in(meta: VideoMeta) -> str | None:
    """Say which field no service can be given; None if all can."""
    texts = {name: getattr(meta, name) for name in (*_TEXTS, "reference_id", "user_data")}
    for name in meta.extra:
        if not _PARAMETER.fullmatch(name):
            return f"extra: {clean_text(name, 80)!r} is no name of a parameter"
        if name.lower() in _OWN_PARAMETERS:
            return f"extra: {name} is set by vodup, or has a field (and a flag) of its own"
    texts |= meta.extra
    for name, text in (*texts.items(), *(("tags", tag) for tag in meta.tags)):
        if text is not None and is_unsendable(text):
            return f"{name} has control characters or is not UTF-8 text"
    return None


def is_unsendable(text: str) -> bool:
    """Whether a text has control characters (but tabs and line ends), or is not UTF-8."""
    return _UNSENDABLE.search(text) is not None


def problem_of(meta: VideoMeta) -> str | None:
    """Say why CreateUploadVideo would refuse this description; None when nothing is known."""
    if (problem := unsendable_in(meta)) is not None:
        return problem
    for name in _TEXTS:
        value = getattr(meta, name)
        if value is not None and (problem := _text_problem(name, value)) is not None:
            return problem
    if (problem := _tags_problem(meta.tags)) is not None:
        return problem
    if meta.reference_id is not None and not _REFERENCE_ID.fullmatch(meta.reference_id):
        return "reference_id must be 6 to 64 letters, digits, _ or -"
    if meta.cate_id is not None and meta.cate_id < 0:
        return "cate_id must not be negative"
    if meta.user_data is not None and not _is_object(meta.user_data):
        return "user_data must be a JSON object"
    return None


def _text_problem(name: str, value: str) -> str | None:
    most = _MAX_LENGTHS.get(name, 2048)
    if len(value) > most:
        return f"{name} has {len(value):,} characters, VOD accepts {most:,}"
    if _BEYOND_PLANE_0.search(value):
        return f"{name} has characters VOD refuses (emoji)"
    return None


def _tags_problem(tags: tuple[str, ...]) -> str | None:
    if len(tags) > _MAX_TAG_COUNT:
        return f"there are {len(tags)} tags, VOD accepts {_MAX_TAG_COUNT}"
    for tag in tags:
        if len(tag) > _MAX_TAG_LENGTH:
            return f"a tag has {len(tag)} characters, VOD accepts {_MAX_TAG_LENGTH}"
        if "," in tag or _BEYOND_PLANE_0.search(tag):
            return "a tag has characters VOD refuses (commas, emoji)"
    return None


def _is_object(text: str | bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# --- answers ---------------------------------------------------------------------


def parse_grant(action: str, response: Response) -> UploadGrant:
    """Read an id, an address and credentials.

    Raises:
        ServiceError: the call was refused.
        InvalidGrant: VOD's answer does not hold a grant that can be used.
        TransportError: it is not VOD's answer, or was cut.
    """
    require_success(action, response)
    try:
        return decode_answer(response.body)
    except InvalidGrant as error:
        if b"UploadA" in response.body and _is_object(response.body):
            raise InvalidGrant(
                f"The answer to {action} cannot be used: {error.message}",
                next_step="Check the endpoint and the network (a proxy that changes answers?), "
                "then run the same command again; report it if it stays.",
            ) from None
        # A captive portal answers 200, too.
        raise unusable(action, error.message.removesuffix(".")) from error


def _parse_mezzanine(action: str, response: Response) -> VideoFacts:
    require_success(action, response)
    fields = _fields(response.body, "Mezzanine")
    facts = facts_of(action, *(fields.get(name) for name in ("Status", "Size", "FileURL")))
    video_id = fields.get("VideoId")
    return replace(facts, video_id=video_id) if isinstance(video_id, str) and video_id else facts


def facts_of(action: str, status: object, size: object, file_url: object) -> VideoFacts:
    """Read the three facts as VOD and IMS give them.

    Raises:
        TransportError: there is no status, which must not pass for a finished video, or the
            size is not a number.
    """
    if not isinstance(status, str) or not status:
        raise unusable(action, "it has no status")
    try:
        return VideoFacts(
            status=clean_text(status, 40),
            size=None if size is None or size == "" else decimal(str(size)),
            file_url=file_url if isinstance(file_url, str) and file_url else None,
        )
    except MalformedDocument as error:
        raise unusable(action, str(error)) from error


def require_success(action: str, response: Response) -> None:
    """Raise an error unless the service has carried the call out.

    Raises:
        ServiceError: it refused the call, or redirected it.
    """
    if response.status != 200:
        fields = _fields(response.body)
        code, message, request_id = (
            value if isinstance(value := fields.get(name), str) else ""
            for name in ("Code", "Message", "RequestId")
        )
        raise refusal(response, action, code=code, message=message, request_id=request_id)


def _fields(body: bytes, inside: str = "") -> dict[str, Any]:
    """Read a flat answer, or the object `inside`; in either format: a gateway may ignore `Format`.

    Empty when there is none.
    """
    try:
        answer = parse_json(body)
        found = answer.get(inside) if inside else answer
        return found if isinstance(found, dict) else {}
    except MalformedDocument:
        pass
    try:
        children = parse_xml(body).iterfind(f"{inside}/*" if inside else "*")
        return {child.tag: child.text for child in children}
    except MalformedDocument:
        return {}
