"""VOD's operations: build, sign, parse (API version 2017-03-21, RPC style).

aliyunsdkcore signs, and is the oracle of the tests for what is signed; it sends nothing.
The nonce and the timestamp are arguments: a repeated request needs new ones, or the gateway
answers `SignatureNonceUsed`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

from uploader.errors import InvalidGrant, ServiceError, TransportError
from uploader.protocol.documents import (
    MalformedDocument,
    clean_text,
    decimal,
    parse_json,
    parse_xml,
)
from uploader.protocol.grants import UploadGrant, decode_answer
from uploader.protocol.wire import BytesBody, Operation, Request, Response, SignedRequest

__all__ = [
    "AccessKey",
    "VideoFacts",
    "VideoMeta",
    "create_upload_video",
    "delete_multipart_upload",
    "get_mezzanine_info",
    "parse_grant",
    "refresh_upload_video",
    "require_success",
    "rpc_operation",
    "sign",
    "title_of",
    "unusable",
]

T = TypeVar("T")

_VERSION = "2017-03-21"
_MAX_TITLE_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """The caller's own key, long-lived or STS. It has no repr."""

    id: str = field(repr=False)
    secret: str = field(repr=False)
    security_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoMeta:
    """What CreateUploadVideo is told of a video (VOD API: CreateUploadVideo).

    Attributes:
        title: up to 128 characters; None takes the file's name, as far as VOD allows it.
        file_name: with an extension VOD supports; None takes the source's name.
        description: up to 1,024 characters.
        cover_url: of a picture.
        cate_id: category.
        tags: up to 16 of at most 32 characters.
        template_group_id, workflow_id: transcoding; a workflow wins over a template group.
        storage_location: the bucket's domain as VOD's console shows it.
        app_id: default "app-1000000".
        reference_id: your own id, `[A-Za-z0-9_-]{6,64}`, unique in your account. Given
            one, vodup uses it instead of its own to find a lost answer again.
        user_data: JSON text (message callback, extend, acceleration).
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

    def to_text(self) -> str:
        """As JSON, for the checkpoint and for commands."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        given = {name: value for name, value in fields.items() if value not in (None, "", ())}
        return json.dumps(given)


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """VOD's own record of a video's source file.

    Attributes:
        status: "Uploading", "Normal", "UploadFail", "Deleted", ... (VOD API:
            GetMezzanineInfo). A multipart upload that stopped stays "Uploading". IMS says
            "Init", "Preparing", "PrepareFail" and "Normal" (IMS API: GetMediaInfo).
        size: bytes; 0 or None while there is no file.
        file_url: a signed URL of the source file, when VOD gives one.
    """

    status: str
    size: int | None
    file_url: str | None = field(default=None, repr=False)

    @property
    def is_waiting(self) -> bool:
        """Whether VOD still waits for the file: a refresh is then no overwrite."""
        if self.status in {"Preparing", "PrepareFail"}:  # of IMS: may mean either
            return not self.size
        return self.status in {"Uploading", "UploadFail", "Init"}


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
    }
    return rpc_operation(endpoint, "CreateUploadVideo", params, parse_grant, is_repeatable=False)


def title_of(file_name: str) -> str:
    """Make of a file's name a title VOD takes.

    At most 128 characters; none of four UTF-8 bytes (emoji), no control characters (VOD
    API: CreateUploadVideo, IllegalCharacters).
    """
    kept = "".join(char for char in file_name if " " <= char <= "\uffff" and char != "\x7f")
    return kept.strip()[:_MAX_TITLE_LENGTH] or "video"


def refresh_upload_video(
    endpoint: str, *, video_id: str | None = None, reference_id: str | None = None
) -> Operation[UploadGrant]:
    """Get new credentials for a video. For a finished video this opens an overwrite."""
    params = {"VideoId": video_id, "ReferenceId": reference_id}
    return rpc_operation(endpoint, "RefreshUploadVideo", params, parse_grant)


def get_mezzanine_info(endpoint: str, video_id: str) -> Operation[VideoFacts]:
    """Ask what VOD knows of the source file."""
    params = {"VideoId": video_id, "OutputType": "oss"}
    return rpc_operation(endpoint, "GetMezzanineInfo", params, _parse_mezzanine)


def delete_multipart_upload(endpoint: str, video_id: str) -> Operation[None]:
    """Let VOD remove the parts of an unfinished upload (10 calls a second an account)."""
    params = {"MediaId": video_id, "MediaType": "video"}
    return rpc_operation(endpoint, "DeleteMultipartUpload", params, _parse_nothing)


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


# --- signing ---------------------------------------------------------------------

_SYSTEM_PARAMS = frozenset({"Action", "Version", "Format"})


def sign(
    operation: Operation[Any], key: AccessKey, *, at: datetime, nonce: str, generation: int
) -> SignedRequest:
    """Sign with signature version 1.0 (HMAC-SHA1) for the server's time `at`.

    The call's own parameters travel in a form body, for a description may be longer
    than a URL should be; they are part of the signed set all the same.
    """
    params = operation.request.params
    form = {name: value for name, value in params.items() if name not in _SYSTEM_PARAMS}
    query = {
        **{name: params[name] for name in _SYSTEM_PARAMS},
        "AccessKeyId": key.id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureType": "",
        "SignatureNonce": nonce,
        "Timestamp": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if key.security_token:
        query["SecurityToken"] = key.security_token
    query, form = _encoded(query), _encoded(form)
    signature = _signature(operation.request.method, {**query, **form}, key.secret)
    words = "&".join(query.values())
    return SignedRequest(
        method=operation.request.method,
        url=f"{operation.request.endpoint}/?{words}&Signature={_quoted(signature)}",
        headers={"content-type": "application/x-www-form-urlencoded"},
        body=BytesBody("&".join(form.values()).encode()),
        generation=generation,
    )


def _signature(method: str, encoded: Mapping[str, str], secret: str) -> str:
    """VOD doc "Signature method": the encoded pairs by name, encoded once more.

    The SDK's composer takes three times as long, half of what a small file's call to VOD
    costs; the tests compare with it.
    """
    canonical = "&".join([encoded[name] for name in sorted(encoded)])
    twice = canonical.replace("%", "%25").replace("=", "%3D").replace("&", "%26")
    signature: str = _hmac_sha1()(f"{method}&%2F&{twice}", secret + "&")
    return signature


@functools.cache
def _hmac_sha1() -> Any:  # noqa: ANN401 - aliyunsdkcore has no types
    """Import aliyunsdkcore at the first call to VOD, not before."""
    from aliyunsdkcore.auth.algorithm import sha_hmac1

    return sha_hmac1.get_sign_string


def _encoded(params: Mapping[str, str]) -> dict[str, str]:
    """Each pair as it goes into a query, by its plain name."""
    return {name: f"{_quoted_name(name)}={_quoted(value)}" for name, value in params.items()}


def _quoted(value: str) -> str:
    return value if value.isascii() and value.isalnum() else quote(value, safe="~")


_quoted_name = functools.lru_cache(maxsize=64)(quote)  # names only: values may be secret


# --- answers ---------------------------------------------------------------------


def parse_grant(action: str, response: Response) -> UploadGrant:
    """Read an id, an address and credentials."""
    require_success(action, response)
    try:
        return decode_answer(response.body)
    except InvalidGrant as error:
        # A captive portal answers 200, too: what is not VOD's answer is not an answer.
        raise TransportError(
            f"The answer to {action} is not usable: {error.message}", is_sent=True
        ) from error


def _parse_mezzanine(action: str, response: Response) -> VideoFacts:
    require_success(action, response)
    fields = _mezzanine_fields(response.body)
    status, size, url = (fields.get(name) for name in ("Status", "Size", "FileURL"))
    if not isinstance(status, str) or not status:
        # What is not told must not be taken for a finished video.
        raise unusable(action)
    try:
        return VideoFacts(
            status=clean_text(status, 40),
            size=None if size is None or size == "" else decimal(str(size)),
            file_url=url if isinstance(url, str) and url else None,
        )
    except MalformedDocument as error:
        raise unusable(action) from error


def _mezzanine_fields(body: bytes) -> dict[str, Any]:
    """Read the facts in either format; empty when there are none."""
    try:
        found = parse_json(body).get("Mezzanine")
        return found if isinstance(found, dict) else {}
    except MalformedDocument:
        pass
    try:
        return {child.tag: child.text for child in parse_xml(body).iterfind("Mezzanine/*")}
    except MalformedDocument:
        return {}


def _parse_nothing(action: str, response: Response) -> None:
    require_success(action, response)
    if not _plain_fields(response.body).get("RequestId"):
        raise unusable(action)


def unusable(action: str) -> TransportError:
    """The error for an answer that is none."""
    return TransportError(f"The answer to {action} is not usable.", is_sent=True)


def require_success(action: str, response: Response) -> None:
    """Raise what the service says against the call.

    Raises:
        ServiceError: it said no, or sent us elsewhere.
    """
    if response.status == 200:
        return
    if 300 <= response.status < 400:
        raise ServiceError(
            f"{action} was redirected ({response.status}); redirects are never followed.",
            operation=action,
            status=response.status,
            code="Redirected",
            next_step="Check the endpoint and the network (a proxy or login page?).",
        )
    told = _plain_fields(response.body)
    code = clean_text(told.get("Code", ""), 80)
    request_id = clean_text(told.get("RequestId", ""), 60)
    said = clean_text(told.get("Message", ""), 200)
    message = f"{action} was refused ({response.status} {code or 'without a code'}"
    message += f", request {request_id})" if request_id else ")"
    raise ServiceError(
        f"{message}: {said}" if said else f"{message}.",
        operation=action,
        status=response.status,
        code=code,
        request_id=request_id,
        server_epoch_s=response.server_epoch_s,
        retry_after_s=response.retry_after_s,
    )


def _plain_fields(body: bytes) -> dict[str, str]:
    """Read a flat answer in either format: a gateway may ignore `Format`."""
    try:
        return {k: v for k, v in parse_json(body).items() if isinstance(v, str)}
    except MalformedDocument:
        pass
    try:
        return {child.tag: child.text or "" for child in parse_xml(body)}
    except MalformedDocument:
        return {}
