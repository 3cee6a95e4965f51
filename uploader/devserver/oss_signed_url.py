"""Presigned URLs, as VOD returns them for source files.

Source: "OSS: Add signatures to URLs (V1)".
"""

from __future__ import annotations

import hmac
import math

from .answers import Refusal
from .backend import Backend
from .encoding import percent_encode
from .signatures import SignedRequest, oss_v1_signature, oss_v1_string_to_sign
from .storage import Credential

_LIFE_S = 1800  # "VOD API: GetMezzanineInfo", AuthTimeout


def signed_url(backend: Backend, bucket: str, object_key: str) -> str:
    """A URL with which anyone may GET the object for half an hour."""
    expires = str(int(backend.now()) + _LIFE_S)
    resource = f"/{bucket}/{object_key}"
    signature = _signature(backend, SignedRequest("GET", resource, (), {}), expires)
    named = {"Expires": expires, "OSSAccessKeyId": backend.access_key_id, "Signature": signature}
    query = "&".join(f"{name}={percent_encode(value)}" for name, value in named.items())
    return f"{backend.oss_endpoint}{percent_encode(resource, safe='/')}?{query}"


def is_signed_url(request: SignedRequest) -> bool:
    """Whether the signature is in the query rather than in a header."""
    return "authorization" not in request.headers and any(
        name == "OSSAccessKeyId" for name, _ in request.query
    )


def check_signed_url(backend: Backend, request: SignedRequest) -> Credential:
    """Check access of a request with a signed URL; the credential covers that object alone.

    Raises: Refusal as OSS words it.
    """
    query = dict(request.query)
    if query["OSSAccessKeyId"] != backend.access_key_id:
        raise Refusal("InvalidAccessKeyId", fields={"OSSAccessKeyId": query["OSSAccessKeyId"]})
    expires = query.get("Expires", "")
    if not expires.isdecimal() or int(expires) < backend.now():
        raise Refusal("AccessDenied", "Request has expired.", ec="0002-00000069")
    expected = _signature(backend, request, expires)
    if not hmac.compare_digest(expected.encode(), query.get("Signature", "").encode()):
        raise Refusal("SignatureDoesNotMatch")
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


def _signature(backend: Backend, request: SignedRequest, expires: str) -> str:
    """V1 with the instant of expiry in the place of the date."""
    headers = {k: v for k, v in request.headers.items() if k != "x-oss-date"} | {"date": expires}
    dated = SignedRequest(request.method, request.resource, request.query, headers)
    return oss_v1_signature(backend.access_key_secret, oss_v1_string_to_sign(dated))
