"""Presigned URLs: those VOD returns for source files, and those that upload credentials sign.

Sources: "OSS: Add signatures to URLs (V1)", "OSS: V4 signatures in presigned URLs", EC pages
0002-00000215, 217, 226 and 232.
"""

from __future__ import annotations

import hmac
import math
import re

from .answers import Refusal
from .backend import Backend
from .encoding import percent_encode
from .oss_keys import check_expiry, known_credential
from .signatures import (
    OSS_V4,
    OssAuthorization,
    SignedRequest,
    oss_v1_signature,
    oss_v1_string_to_sign,
    oss_v4_signature,
    oss_v4_string_to_sign,
    parse_http_date,
)
from .storage import Credential

_LIFE_S = 1800  # "VOD API: GetMezzanineInfo", AuthTimeout
_LONGEST_S = 604_800


def signed_url(backend: Backend, bucket: str, object_key: str) -> str:
    """A URL with which anyone may GET the object for half an hour."""
    expires = str(int(backend.now()) + _LIFE_S)
    resource = f"/{bucket}/{object_key}"
    signature = _v1_signature(
        backend.access_key_secret, SignedRequest("GET", resource, (), {}), expires
    )
    named = {"Expires": expires, "OSSAccessKeyId": backend.access_key_id, "Signature": signature}
    query = "&".join(f"{name}={percent_encode(value)}" for name, value in named.items())
    return f"{backend.oss_endpoint}{percent_encode(resource, safe='/')}?{query}"


def query_value(request: SignedRequest, name: str) -> str:
    """A parameter; the first counts if it comes twice."""
    return next((value for key, value in request.query if key == name), "")


def is_signed_url(request: SignedRequest) -> bool:
    """Whether the signature is in the query rather than in a header."""
    return any(name in ("OSSAccessKeyId", "x-oss-signature") for name, _ in request.query)


def check_signed_url(backend: Backend, request: SignedRequest) -> Credential:
    """Check access of a request with a signed URL, by the caller's key or by STS credentials.

    What the caller's key signs covers that object alone.

    Raises: Refusal as OSS words it.
    """
    if query_value(request, "x-oss-signature-version"):
        return _check_v4(backend, request)
    return _check_v1(backend, request)


def _check_v1(backend: Backend, request: SignedRequest) -> Credential:
    if "v1" not in backend.options.signature_versions:
        raise Refusal(
            "AccessDenied",
            "The bucket does not support the V1 signature. Use the V4 signature.",
            ec="0002-00000080",
        )
    token = query_value(request, "security-token")
    credential = _credential(backend, request, query_value(request, "OSSAccessKeyId"), token)
    expires = query_value(request, "Expires")
    if not expires.isdecimal() or int(expires) < backend.now():
        raise _expired()
    expected = _v1_signature(credential.secret, request, expires)
    if not hmac.compare_digest(expected.encode(), query_value(request, "Signature").encode()):
        raise Refusal("SignatureDoesNotMatch")
    return credential


def _check_v4(backend: Backend, request: SignedRequest) -> Credential:
    authorization = _v4_authorization(request)
    token = query_value(request, "x-oss-security-token")
    credential = _credential(backend, request, authorization.access_key_id, token)
    _check_v4_time(backend, request, authorization)
    if authorization.region != backend.options.region:
        raise _invalid("Invalid signing region in x-oss-credential.", "0002-00000226")
    if (authorization.product, authorization.request_type) != ("oss", "aliyun_v4_request"):
        raise _invalid("Invalid signing product in x-oss-credential.")
    date = query_value(request, "x-oss-date")
    unsigned = tuple(pair for pair in request.query if pair[0] != "x-oss-signature")
    signable = SignedRequest(request.method, request.resource, unsigned, request.headers)
    text = oss_v4_string_to_sign(signable, authorization, date)
    expected = oss_v4_signature(credential.secret, authorization, text)
    if not hmac.compare_digest(expected.encode(), authorization.signature.encode()):
        raise Refusal("SignatureDoesNotMatch", fields={"StringToSign": text})
    return credential


def _v4_authorization(request: SignedRequest) -> OssAuthorization:
    if query_value(request, "x-oss-signature-version") != OSS_V4:
        raise _invalid("Invalid x-oss-signature-version.")
    pieces = query_value(request, "x-oss-credential").split("/")
    if len(pieces) != 5:
        raise _invalid("x-oss-credential is missing or malformed.", "0002-00000217")
    access_key_id, date, region, product, request_type = pieces
    additional = query_value(request, "x-oss-additional-headers").lower()
    return OssAuthorization(
        "v4",
        access_key_id,
        query_value(request, "x-oss-signature"),
        date=date,
        region=region,
        product=product,
        request_type=request_type,
        additional_headers=tuple(filter(None, additional.split(";"))),
    )


def _check_v4_time(
    backend: Backend, request: SignedRequest, authorization: OssAuthorization
) -> None:
    """``x-oss-expires`` is a number of seconds from ``x-oss-date`` on."""
    life = query_value(request, "x-oss-expires")
    if not life:
        raise _invalid("x-oss-expires is missing.", "0002-00000215")
    if not (re.fullmatch("[0-9]{1,7}", life) and 1 <= int(life) <= _LONGEST_S):
        raise _invalid("x-oss-expires must be from 1 to 604800.", "0002-00000232")
    date = query_value(request, "x-oss-date")
    try:
        signed_at = parse_http_date(date).timestamp()
    except ValueError:
        raise _invalid("Invalid signing date in x-oss-date.") from None
    if authorization.date != date[:8]:
        raise _invalid("Invalid signing date in x-oss-credential.")
    if signed_at + int(life) < backend.now():
        raise _expired()


def _credential(
    backend: Backend, request: SignedRequest, access_key_id: str, token: str
) -> Credential:
    if access_key_id != backend.access_key_id:
        credential = known_credential(backend, access_key_id, token)
        check_expiry(backend, credential)  # whichever ends first
        return credential
    return Credential(
        access_key_id=backend.access_key_id,
        secret=backend.access_key_secret,
        token="",
        video_id="",
        generation=0,
        scopes=(request.resource.removeprefix("/"),),
        issued_at=0,
        expires_at=math.inf,
    )


def _expired() -> Refusal:
    return Refusal("AccessDenied", "Request has expired.", ec="0002-00000069")


def _invalid(message: str, ec: str = "") -> Refusal:
    return Refusal("InvalidArgument", message, ec=ec)


def _v1_signature(secret: str, request: SignedRequest, expires: str) -> str:
    """V1 with the instant of expiry in the place of the date."""
    headers = {k: v for k, v in request.headers.items() if k != "x-oss-date"} | {"date": expires}
    dated = SignedRequest(request.method, request.resource, request.query, headers)
    return oss_v1_signature(secret, oss_v1_string_to_sign(dated))
