"""Decodes UploadAddress and UploadAuth, alone or in a whole answer of VOD.

Both are base64 of JSON (VOD doc "Upload URLs and credentials"):

    UploadAddress {"Endpoint", "Bucket", "FileName"[, "ObjectPrefix"]}
    UploadAuth    {"AccessKeyId", "AccessKeySecret", "SecurityToken",
                   "ExpireUTCTime", "Expiration", "Region"}

Decoding is lenient where official clients and documents differ from each other, and strict
where a wrong guess would send bytes or credentials to the wrong place. No message quotes a
value: any of them may be a secret.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ParamSpec

from uploader.errors import InvalidGrant, VodupError, without_frames
from uploader.protocol.documents import MalformedDocument, clean_text, parse_json, parse_xml
from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget, is_video_id

# A real UploadAuth has about 2 kB of base64, its SecurityToken about 960 characters.
MAX_BASE64_SIZE = 16 * 1024
MAX_JSON_SIZE = 64 * 1024
MAX_FIELD_LENGTH = 8 * 1024
# RAM issues STS credentials for at most 12 hours (RAM doc "AssumeRole"); a number beyond
# a day is a date or a mistake, not a lifetime.
MAX_LIFE_S = 24 * 3600.0

_ADDRESS_KEYS = frozenset({"endpoint", "bucket", "filename"})
_AUTH_KEYS = frozenset({"accesskeyid", "accesskeysecret", "securitytoken"})
_ANSWER_KEYS = frozenset({"uploadaddress", "uploadauth"})

_REGION = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_ERROR_CODE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_HEADER_SAFE = re.compile(r"[!-~]+")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?"
)

_Document = str | bytes | Mapping[str, Any]


P = ParamSpec("P")


def _frameless(decode: Callable[P, UploadGrant]) -> Callable[P, UploadGrant]:
    """Raise errors without the frames that hold the secrets in their variables."""

    @functools.wraps(decode)
    def decoded(*given: P.args, **named: P.kwargs) -> UploadGrant:
        try:
            return decode(*given, **named)
        except VodupError as error:
            failure = error
        del given, named  # this frame stays
        raise without_frames(failure)

    return decoded


@_frameless
def decode_grant(
    address: str | bytes | Mapping[str, Any],
    auth: str | bytes | Mapping[str, Any],
    *,
    video_id: str | None = None,
) -> UploadGrant:
    """Decode an UploadAddress and an UploadAuth.

    Each is the base64 text, its JSON, or a mapping of its fields. Tolerated: white space
    and missing padding in base64, line breaks inside JSON, camelCase or snake_case names,
    unknown fields, and the pair in the wrong order.

    Raises:
        InvalidGrant: naming the part that is wrong and what to do.
    """
    first = _fields(address, "UploadAddress")
    second = _fields(auth, "UploadAuth")
    kinds = _kind(first), _kind(second)
    if kinds[0] is not None and kinds[0] == kinds[1]:
        raise InvalidGrant(f"UploadAddress and UploadAuth are both an {kinds[0]}.")
    was_swapped = kinds == ("UploadAuth", "UploadAddress")
    if was_swapped:
        first, second = second, first
    grant = UploadGrant(video_id, _target(first), _credentials(second), was_swapped=was_swapped)
    if video_id is not None and not is_video_id(video_id):
        raise InvalidGrant(
            "The VideoId is not one: it has 1 to 64 letters, digits, '_' or '-'.",
            next_step="Pass the VideoId exactly as CreateUploadVideo returned it.",
        )
    return grant


@_frameless
def decode_answer(answer: str | bytes | Mapping[str, Any]) -> UploadGrant:
    """Decode a whole answer of CreateUploadVideo, RefreshUploadVideo or their like at IMS.

    JSON, XML (the API's default format) or a mapping; flat or wrapped in one more object
    ("CreateUploadVideoResponse", an SDK's "body", an app server's "data"). A file with
    just UploadAddress, UploadAuth and VideoId will do.

    Raises:
        InvalidGrant: also for an answer that reports an error, naming its code.
    """
    fields = _unwrapped(_answer_mapping(answer))
    _refuse_error_answer(fields)
    for name in ("UploadAddress", "UploadAuth"):
        if not fields.get(name.lower()):
            raise InvalidGrant(f"The answer has no {name}.")
    video_id = _optional_text(fields, "VideoId", "the answer")
    video_id = video_id or _optional_text(fields, "MediaId", "the answer")
    video_id = video_id or _optional_text(fields, "ImageId", "the answer")
    grant = decode_grant(fields["uploadaddress"], fields["uploadauth"], video_id=video_id)
    return replace(grant, request_id=_request_id(fields))


def encode_answer(grant: UploadGrant) -> dict[str, str]:
    """Encode a grant so that `decode_answer` reads it: for app servers that issue grants.

    The texts hold the credentials: send them over TLS, only to the owner of the upload, and
    store them nowhere.
    """
    target, credentials = grant.target, grant.credentials
    at = credentials.expires_at
    address = {
        "Endpoint": target.endpoint,
        "Bucket": target.bucket,
        "FileName": target.object_key,
        "ObjectPrefix": target.object_prefix,
    }
    auth = {
        "AccessKeyId": credentials.access_key_id,
        "AccessKeySecret": credentials.access_key_secret,
        "SecurityToken": credentials.security_token,
        "Expiration": None if credentials.life_s is None else str(int(credentials.life_s)),
        "ExpireUTCTime": at.strftime("%Y-%m-%dT%H:%M:%SZ") if at is not None else None,
        "Region": credentials.region,
    }
    answer = {
        "VideoId": grant.video_id,
        "RequestId": grant.request_id,
        "UploadAddress": _packed(address),
        "UploadAuth": _packed(auth),
    }
    return {name: text for name, text in answer.items() if text}


def _packed(fields: Mapping[str, str | None]) -> str:
    given = {name: value for name, value in fields.items() if value}
    return base64.b64encode(json.dumps(given).encode()).decode()


# --- from text to fields --------------------------------------------------------------


def _fields(value: _Document, part: str) -> dict[str, Any]:
    """Return the fields of one part, by lower-case name without "_"."""
    if isinstance(value, Mapping):
        return _folded(value, part)
    if not isinstance(value, str | bytes):
        raise InvalidGrant(f"{part} is neither text nor a mapping of its fields.")
    text = _stripped_bytes(value, part)
    data = text if text.startswith(b"{") else _base64_decoded(text, part)
    try:
        # Official Java code removes line breaks from the decoded text, inside of strings
        # too; they have been seen.
        unbroken = data.translate(None, b"\r\n")
        return _folded(parse_json(unbroken, max_bytes=MAX_JSON_SIZE), part)
    except MalformedDocument as error:
        raise InvalidGrant(f"{part} does not hold the JSON it should: {error}.") from None


def _folded(fields: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Make "UploadAuth", "uploadAuth" and "upload_auth" the same name."""
    folded: dict[str, Any] = {}
    for name, value in fields.items():
        key = str(name).replace("_", "").lower()
        if key in folded:
            raise InvalidGrant(f"{part} has the same field twice, in different spelling.")
        folded[key] = value
    return folded


def _stripped_bytes(value: str | bytes, part: str) -> bytes:
    if len(value) > MAX_JSON_SIZE:
        raise InvalidGrant(f"{part} is longer than {MAX_JSON_SIZE} characters.")
    # Half a surrogate pair gets through here and fails as base64 or JSON later: an error
    # of encode() would carry the value itself.
    data = value.encode(errors="surrogatepass") if isinstance(value, str) else value
    return data.strip()


def _base64_decoded(text: bytes, part: str) -> bytes:
    """Decode base64, dropping white space only: Python's default drops any junk."""
    packed = text.translate(None, b" \t\r\n\v\f")
    if not packed:
        raise InvalidGrant(f"{part} is empty.")
    if len(packed) > MAX_BASE64_SIZE:
        raise InvalidGrant(f"{part} is longer than {MAX_BASE64_SIZE} characters of base64.")
    body = _standard_alphabet(packed, part).rstrip(b"=")
    if len(packed) - len(body) > 2:
        raise InvalidGrant(f"{part} is not base64: it has too much padding.")
    try:
        return base64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidGrant(
            f"{part} is not base64: it was cut, or holds characters that do not belong there."
        ) from None


def _standard_alphabet(packed: bytes, part: str) -> bytes:
    """Translate the URL-safe alphabet, if it is used throughout."""
    if not re.search(rb"[-_]", packed):
        return packed
    if re.search(rb"[+/]", packed):
        raise InvalidGrant(f"{part} mixes the two alphabets of base64.")
    return packed.translate(bytes.maketrans(b"-_", b"+/"))


def _kind(fields: Mapping[str, Any]) -> str | None:
    if _AUTH_KEYS & fields.keys():
        return "UploadAuth"
    return "UploadAddress" if _ADDRESS_KEYS & fields.keys() else None


# --- from fields to values ------------------------------------------------------------


def _target(fields: Mapping[str, Any]) -> UploadTarget:
    endpoint = _required_text(fields, "Endpoint", "UploadAddress")
    return UploadTarget(
        endpoint=(endpoint if "://" in endpoint else f"https://{endpoint}").removesuffix("/"),
        bucket=_required_text(fields, "Bucket", "UploadAddress"),
        object_key=_required_text(fields, "FileName", "UploadAddress"),
        object_prefix=_optional_text(fields, "ObjectPrefix", "UploadAddress"),
    )


def _credentials(fields: Mapping[str, Any]) -> StsCredentials:
    expiration = _expiration(fields)
    expires_at = _optional_text(fields, "ExpireUTCTime", "UploadAuth")
    return StsCredentials(
        access_key_id=_header_text(fields, "AccessKeyId"),
        access_key_secret=_header_text(fields, "AccessKeySecret"),
        # Never optional: without it the keys would be taken for long-lived ones.
        security_token=_header_text(fields, "SecurityToken"),
        # Older answers carry the date in Expiration; the official mobile SDKs read that
        # field first and let a non-empty ExpireUTCTime override it.
        expires_at=_instant(expires_at or expiration),
        life_s=_life_s(expiration),
        region=_region(fields),
    )


def _required_text(fields: Mapping[str, Any], name: str, part: str) -> str:
    text = _optional_text(fields, name, part)
    if text is None:
        raise InvalidGrant(f"{part} has no {name}.")
    return text


def _optional_text(fields: Mapping[str, Any], name: str, part: str) -> str | None:
    """Return a text field; None when it is absent, null or empty."""
    value = fields.get(name.lower())
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidGrant(f"{name} in {part} is not text.")
    if len(value) > MAX_FIELD_LENGTH:
        raise InvalidGrant(f"{name} in {part} is longer than {MAX_FIELD_LENGTH} characters.")
    if _CONTROL.search(value):
        raise InvalidGrant(f"{name} in {part} holds control characters.")
    return value


def _header_text(fields: Mapping[str, Any], name: str) -> str:
    """Return a credential. All of them go into headers: visible ASCII only."""
    text = _required_text(fields, name, "UploadAuth")
    if not _HEADER_SAFE.fullmatch(text):
        raise InvalidGrant(f"{name} in UploadAuth holds characters that no credential has.")
    return text


def _region(fields: Mapping[str, Any]) -> str | None:
    """Return the VOD region. It becomes part of a host name, so it must look like one."""
    region = _optional_text(fields, "Region", "UploadAuth")
    if region is None:
        return None
    if len(region) > 32 or not _REGION.fullmatch(region):
        raise InvalidGrant("Region in UploadAuth is not a region such as cn-shanghai.")
    return region


def _expiration(fields: Mapping[str, Any]) -> str | None:
    """Return Expiration as text: it comes as a string of seconds or as a number."""
    value = fields.get("expiration")
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A huge number must not become a text of thousands of digits.
        return f"{value}" if abs(value) <= MAX_LIFE_S else None
    return _optional_text(fields, "Expiration", "UploadAuth")


def _life_s(expiration: str | None) -> float | None:
    if expiration is None or not _SECONDS.fullmatch(expiration.strip()):
        return None
    life_s = float(expiration)
    return life_s if 0 < life_s <= MAX_LIFE_S else None


def _instant(text: str | None) -> datetime | None:
    """Read an ISO 8601 instant; without an offset it is UTC.

    An unreadable one is None, not an error: an expiry is only a hint. The credentials are
    renewed early then, and OSS decides when they have expired.
    """
    if text is None or not _INSTANT.fullmatch(text.strip()):
        return None
    try:
        instant = datetime.fromisoformat(text.strip().upper())
        aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        return aware.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# --- whole answers --------------------------------------------------------------------


def _answer_mapping(answer: _Document) -> Mapping[str, Any]:
    if isinstance(answer, Mapping):
        return answer
    if not isinstance(answer, str | bytes):
        raise InvalidGrant("The answer is neither text nor a mapping.")
    data = _stripped_bytes(answer, "The answer")
    try:
        return _xml_fields(data) if data.startswith(b"<") else parse_json(data)
    except MalformedDocument as error:
        message = f"This is not an answer of VOD (expected JSON or XML): {error}."
        raise InvalidGrant(message) from None


def _xml_fields(data: bytes) -> dict[str, Any]:
    if re.match(rb"<(?:!doctype\s+)?html\b", data, re.IGNORECASE):
        raise InvalidGrant(
            "The answer is a web page, not VOD's: something on the way answered instead.",
            next_step="Check for a login page or a proxy, then run the same command again.",
        )
    fields: dict[str, Any] = {}
    for child in parse_xml(data, max_bytes=MAX_JSON_SIZE):
        if child.tag in fields:
            raise MalformedDocument("it has the same element twice")
        fields[child.tag] = (child.text or "").strip()
    return fields


def _unwrapped(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object that holds the grant: the answer or the only one inside that does."""
    fields = _folded(answer, "The answer")
    if _ANSWER_KEYS & fields.keys():
        return fields
    inner = [_folded(v, "The answer") for v in fields.values() if isinstance(v, Mapping)]
    holders = [candidate for candidate in inner if (_ANSWER_KEYS | {"code"}) & candidate.keys()]
    return holders[0] if len(holders) == 1 else fields


def _refuse_error_answer(fields: Mapping[str, Any]) -> None:
    """Refuse an answer that reports an error: {"Code", "Message", "RequestId", ...}."""
    code = fields.get("code")
    if not isinstance(code, str) or _ANSWER_KEYS & fields.keys():
        return
    named = code if _ERROR_CODE.fullmatch(code) else "unreadable"
    request_id = _request_id(fields)
    about = f" (request {request_id})" if request_id else ""
    raise InvalidGrant(
        f"The answer is an error of VOD, code {named}{about}, and holds no grant.",
        next_step="Look the code up in VOD's documentation, correct the cause, then request a "
        "new answer.",
    )


def _request_id(fields: Mapping[str, Any]) -> str:
    value = fields.get("requestid")
    return clean_text(value, 100) if isinstance(value, str) else ""
