"""Computes valid signatures, written from the specifications alone.

Sources: "OSS: Include signatures in the Authorization header (V1)", "OSS: V4 signature",
"Alibaba Cloud: RPC signature mechanism (V1)", "Alibaba Cloud: V3 request body and signature".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .encoding import Pairs, encode_query, percent_encode

OSS_V4 = "OSS4-HMAC-SHA256"
ACS_V3 = "ACS3-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"

# "OSS: Include signatures in the Authorization header", the sub-resources that are signed.
_V1_SUBRESOURCES = frozenset(
    """
    acl uploads location cors logging website referer lifecycle delete append tagging objectMeta
    uploadId partNumber security-token position img style styleName replication
    replicationProgress replicationLocation cname bucketInfo comp qos live status vod startTime
    endTime symlink x-oss-process response-content-type response-content-language
    response-expires response-cache-control response-content-disposition
    response-content-encoding callback callback-var x-oss-traffic-limit sequential versioning
    versions versionId policy requestPayment encryption worm wormId wormExtend restore
    x-oss-request-payer asyncFetch inventory inventoryId continuation-token transferAcceleration
    """.split()
)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """The signed side of a request, decoded once.

    ``resource`` is OSS's canonical resource (``/bucket/key``) and ``/`` for VOD.
    ``headers`` have lower-case names.
    """

    method: str
    resource: str
    query: Pairs
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OssAuthorization:
    """A parsed ``Authorization`` header of OSS; ``version`` is ``"v1"`` or ``"v4"``."""

    version: str
    access_key_id: str
    signature: str
    date: str = ""
    region: str = ""
    product: str = ""
    request_type: str = ""
    additional_headers: tuple[str, ...] = ()

    @property
    def scope(self) -> str:
        """The V4 scope: ``date/region/product/aliyun_v4_request``."""
        return "/".join((self.date, self.region, self.product, self.request_type))


def parse_oss_authorization(value: str) -> OssAuthorization:
    """Parse either version.

    Raises: ValueError when it is neither.
    """
    scheme, _, rest = value.partition(" ")
    if scheme == "OSS":
        access_key_id, _, signature = rest.strip().partition(":")
        if access_key_id and signature:
            return OssAuthorization("v1", access_key_id, signature)
    if scheme == OSS_V4:
        return _parse_v4(rest)
    raise ValueError("unknown Authorization header")


def _parse_v4(rest: str) -> OssAuthorization:
    fields = _comma_fields(rest)
    pieces = fields.get("Credential", "").split("/")
    if len(pieces) != 5 or not fields.get("Signature"):
        raise ValueError("malformed V4 Authorization header")
    access_key_id, date, region, product, request_type = pieces
    additional = fields.get("AdditionalHeaders", "")
    return OssAuthorization(
        "v4",
        access_key_id,
        fields["Signature"],
        date=date,
        region=region,
        product=product,
        request_type=request_type,
        additional_headers=tuple(name.lower() for name in additional.split(";") if name),
    )


def _comma_fields(text: str) -> dict[str, str]:
    """``A=1, B=2`` in any order, with or without the blank."""
    pieces = (piece.strip().partition("=") for piece in text.split(","))
    return {name: value for name, _, value in pieces}


def oss_v1_string_to_sign(request: SignedRequest) -> str:
    """The text OSS V1 signs."""
    headers = request.headers
    date = headers.get("x-oss-date", headers.get("date", ""))
    head = [request.method, headers.get("content-md5", ""), headers.get("content-type", ""), date]
    oss = sorted(f"{k}:{v.strip()}\n" for k, v in headers.items() if k.startswith("x-oss-"))
    return "\n".join(head) + "\n" + "".join(oss) + _v1_resource(request)


def _v1_resource(request: SignedRequest) -> str:
    signed = sorted(pair for pair in request.query if pair[0] in _V1_SUBRESOURCES)
    if not signed:
        return request.resource
    return request.resource + "?" + "&".join(f"{k}={v}" if v else k for k, v in signed)


def oss_v1_signature(secret: str, string_to_sign: str) -> str:
    """base64(HMAC-SHA1)."""
    return _hmac_sha1(secret, string_to_sign)


def oss_v4_string_to_sign(
    request: SignedRequest, authorization: OssAuthorization, date: str
) -> str:
    """The text OSS V4 signs; ``date`` as ``20261122T090354Z``."""
    canonical = _v4_canonical_request(request, authorization.additional_headers)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return f"{OSS_V4}\n{date}\n{authorization.scope}\n{digest}"


def _v4_canonical_request(request: SignedRequest, additional: tuple[str, ...]) -> str:
    return "\n".join(
        (
            request.method,
            percent_encode(request.resource, safe="/"),
            encode_query(request.query, bare_empty=True),
            "".join(_v4_header_lines(request.headers, additional)),
            ";".join(sorted(additional)),
            request.headers.get("x-oss-content-sha256", UNSIGNED_PAYLOAD),
        )
    )


def _v4_header_lines(headers: Mapping[str, str], additional: tuple[str, ...]) -> Iterable[str]:
    for name in sorted(headers):
        if name.startswith("x-oss-") or name in ("content-type", "content-md5", *additional):
            yield f"{name}:{headers[name].strip()}\n"


def oss_v4_signature(secret: str, authorization: OssAuthorization, string_to_sign: str) -> str:
    """hex(HMAC-SHA256) under the key derived from the scope."""
    key = ("aliyun_v4" + secret).encode()
    for piece in authorization.scope.split("/"):
        key = hmac.digest(key, piece.encode(), "sha256")
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def oss_v4_date(headers: Mapping[str, str]) -> str:
    """The signing time of a V4 request as ``20261122T090354Z``, or an empty string."""
    if "x-oss-date" in headers:
        return headers["x-oss-date"]
    try:
        return parsedate_to_datetime(headers.get("date", "")).strftime("%Y%m%dT%H%M%SZ")
    except ValueError:
        return ""


def parse_http_date(text: str) -> datetime:
    """An HTTP date or ISO 8601 basic date as an aware instant.

    Raises: ValueError when it is neither.
    """
    if text.endswith("Z") and "T" in text:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return parsedate_to_datetime(text).astimezone(UTC)


def rpc_string_to_sign(method: str, parameters: Pairs) -> str:
    """The text of VOD's RPC signature V1; form fields of a POST belong to the parameters."""
    unsigned = tuple(pair for pair in parameters if pair[0] != "Signature")
    query = percent_encode(encode_query(unsigned, bare_empty=False))
    return f"{method}&%2F&{query}"


def rpc_signature(secret: str, string_to_sign: str) -> str:
    """base64(HMAC-SHA1) with the key ``secret&``."""
    return _hmac_sha1(secret + "&", string_to_sign)


@dataclass(frozen=True, slots=True)
class AcsAuthorization:
    """A parsed ``Authorization: ACS3-HMAC-SHA256`` header."""

    access_key_id: str
    signed_headers: tuple[str, ...]
    signature: str


def parse_acs_authorization(value: str) -> AcsAuthorization:
    """Parse a V3 header.

    Raises: ValueError when it is not one.
    """
    scheme, _, rest = value.partition(" ")
    fields = _comma_fields(rest)
    if scheme != ACS_V3 or not {"Credential", "SignedHeaders", "Signature"} <= fields.keys():
        raise ValueError("malformed V3 Authorization header")
    signed = tuple(fields["SignedHeaders"].split(";"))
    return AcsAuthorization(fields["Credential"], signed, fields["Signature"])


def acs_string_to_sign(request: SignedRequest, signed_headers: tuple[str, ...]) -> str:
    """The text V3 signs."""
    lines = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in signed_headers)
    canonical = "\n".join(
        (
            request.method,
            request.resource,
            encode_query(request.query, bare_empty=False),
            lines,
            ";".join(signed_headers),
            request.headers.get("x-acs-content-sha256", ""),
        )
    )
    return f"{ACS_V3}\n{hashlib.sha256(canonical.encode()).hexdigest()}"


def acs_signature(secret: str, string_to_sign: str) -> str:
    """hex(HMAC-SHA256)."""
    return hmac.digest(secret.encode(), string_to_sign.encode(), "sha256").hex()


def _hmac_sha1(key: str, text: str) -> str:
    digest = hmac.digest(key.encode(), text.encode("utf-8", "surrogateescape"), "sha1")
    return base64.b64encode(digest).decode("ascii")
