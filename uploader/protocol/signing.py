"""Signs requests: for OSS with STS credentials, for VOD and IMS with the caller's AccessKey.

oss2 computes those for OSS and sends nothing; the tests compare the others with Alibaba Cloud's
SDKs. The clock and the nonce are arguments: every attempt has a signature of its own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import importlib.util
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from uploader.errors import ConfigurationError
from uploader.protocol.trust import oss_region
from uploader.protocol.wire import BytesBody, Operation, Request, SignedRequest

if TYPE_CHECKING:
    from uploader.protocol.grants import StsCredentials, UploadTarget
    from uploader.protocol.vod import AccessKey

# --- OSS --------------------------------------------------------------------------------

_OSS2 = "uploader.protocol._oss2"


@dataclass(frozen=True, slots=True)
class OssDialect:
    """How requests to an OSS endpoint are signed and addressed.

    Attributes:
        region: of V4 signatures, "cn-shanghai" (not "oss-cn-shanghai"); None takes it
            from the endpoint's name. CNAME and acceleration endpoints do not contain it.
        signature: "v4", or "v1" for old private deployments. OSS refuses V1 for accounts
            made since 2025-03 and buckets made since 2025-09.
        is_cname: the endpoint is a domain bound to the bucket, which is not put before it.
        endpoint: where requests go in place of the address's endpoint, which still says the
            region to sign for; a checked origin. None: the address's.
    """

    region: str | None = None
    signature: Literal["v4", "v1"] = "v4"
    is_cname: bool = False
    endpoint: str | None = None


def sign_oss(
    operation: Operation[Any],
    credentials: StsCredentials,
    *,
    at: datetime,
    generation: int,
    dialect: OssDialect,
) -> SignedRequest:
    """Sign for the server's time `at` (aware UTC).

    The region of a V4 signature is the dialect's, else that of the address's endpoint, else of
    the dialect's; the region that VOD names beside the credentials is its own and only used last,
    because an account's bucket may be in another one.

    Raises:
        ConfigurationError: the region is not known.
    """
    request = operation.request
    region = dialect.region or oss_region(request.endpoint) or oss_region(dialect.endpoint or "")
    region = region or credentials.region
    if region is None and dialect.signature == "v4":
        raise ConfigurationError(
            f"The region of {request.endpoint} is not known, and V4 signatures need it.",
            next_step="Pass --oss-region, for example cn-shanghai.",
        )
    signable = _Signable(request.method, dict(request.params), dict(request.headers), region)
    add_signature = _add_v4 if dialect.signature == "v4" else _add_v1
    signable.headers["x-oss-security-token"] = credentials.security_token
    add_signature(signable, request.bucket, request.key, credentials, at.astimezone(UTC))
    return SignedRequest(
        method=request.method,
        url=_url(request, dialect),
        headers=signable.headers,
        body=request.body,
        generation=generation,
        needs_md5=operation.needs_md5,
    )


@dataclass(slots=True)
class _Signable:
    """The part of `oss2.http.Request` that its signers look at."""

    method: str
    params: dict[str, str]
    headers: dict[str, str]
    region: str | None = None
    product: str = "oss"
    cloudbox_id: None = None


def _add_v4(
    request: _Signable, bucket: str, key: str, credentials: StsCredentials, at: datetime
) -> None:
    """`oss2.ProviderAuthV4._sign_request` with the time as an argument."""
    key_id, date_time = credentials.access_key_id, at.strftime("%Y%m%dT%H%M%SZ")
    request.headers["x-oss-date"] = date_time
    request.headers["x-oss-content-sha256"] = "UNSIGNED-PAYLOAD"
    auth = _oss2_auth()
    keys = _Keys(credentials.access_key_secret)
    signature = auth.ProviderAuthV4(None)._ProviderAuthV4__make_signature(
        request, bucket, key, None, keys, date_time
    )
    scope = f"{date_time[:8]}/{request.region}/oss/aliyun_v4_request"
    request.headers["authorization"] = (
        f"OSS4-HMAC-SHA256 Credential={key_id}/{scope}, Signature={signature}"
    )


def _add_v1(
    request: _Signable, bucket: str, key: str, credentials: StsCredentials, at: datetime
) -> None:
    """`oss2.ProviderAuth._sign_request`; OSS accepts `x-oss-date` in place of `Date`."""
    key_id = credentials.access_key_id
    request.headers["x-oss-date"] = format_datetime(at, usegmt=True)
    keys = _Keys(credentials.access_key_secret)
    auth = _oss2_auth().ProviderAuth(None)
    signature = auth._ProviderAuth__make_signature(request, bucket, key, keys)
    request.headers["authorization"] = f"OSS {key_id}:{signature}"


@dataclass(frozen=True, slots=True)
class _Keys:
    """The part of `oss2.credentials.Credentials` that the signers used here look at."""

    access_key_secret: str = field(repr=False)

    def get_access_key_secret(self) -> str:
        return self.access_key_secret


@functools.cache
def _oss2_auth() -> Any:  # noqa: ANN401 - oss2 has no types
    """Import `oss2.auth` at the first signature, and no other module that it can do without.

    `oss2/__init__` imports its client, resumable uploads, encryption and the VOD SDK's core.
    `oss2.credentials` imports requests, for the class of static credentials (`_Keys` is ours), and
    `oss2.utils` imports cffi and pycparser: it runs when it is used, by V1 signatures alone. With
    all of these the import takes 0.3 s, without them 0.01 s. The names are our own, so the
    application's `oss2` is not affected.
    """
    package = ModuleType(_OSS2)
    found = importlib.util.find_spec("oss2")
    package.__path__ = list(found.submodule_search_locations or ()) if found else []
    credentials = ModuleType(f"{_OSS2}.credentials")
    credentials.__dict__["StaticCredentialsProvider"] = _Keys
    sys.modules |= {_OSS2: package, credentials.__name__: credentials}
    package.__dict__["utils"] = _imported_when_used(f"{_OSS2}.utils")
    auth = importlib.import_module(f"{_OSS2}.auth")
    # At DEBUG oss2 logs the string to sign with the SecurityToken, which must never be logged.
    logging.getLogger(auth.__name__).setLevel(logging.WARNING)
    return auth


def _imported_when_used(name: str) -> ModuleType:
    """The recipe of `importlib.util.LazyLoader`."""
    spec: Any = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _url(request: Request, dialect: OssDialect) -> str:
    """Encode exactly once, the way oss2 does it: "/" in keys becomes "%2F"."""
    base = bucket_url(request, dialect)
    query = "&".join(
        quote(name, safe="") + ("=" + quote(value, safe="") if value else "")
        for name, value in request.params.items()
    )
    url = f"{base}/{quote(request.key, safe='')}"
    return f"{url}?{query}" if query else url


def bucket_url(target: Request | UploadTarget, dialect: OssDialect) -> str:
    """Return the URL of a bucket, without a slash at its end."""
    endpoint = dialect.endpoint or target.endpoint
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if dialect.is_cname:
        return endpoint
    if host == "localhost" or host.replace(".", "").isdigit() or ":" in host:
        return f"{endpoint}/{target.bucket}"  # an IP address has no subdomains
    return f"{parts.scheme}://{target.bucket}.{parts.netloc}"


# --- VOD and IMS ------------------------------------------------------------------------

ApiSignature = Literal["acs3", "v2"]
"""ACS3-HMAC-SHA256, or the signature of the RPC style before (HMAC-SHA1), which Alibaba Cloud's
documents call V2 and discontinued."""

_SYSTEM_PARAMS = frozenset({"Action", "Version", "Format"})

_MAX_QUERY_SIZE = 4096
"""The SDKs send all parameters in the query. A description of 1,024 Chinese characters would make
a URL of 9 KB, which not every gateway accepts: a longer query is sent as a form."""

_FORM = "application/x-www-form-urlencoded"


def sign_rpc(
    operation: Operation[Any],
    key: AccessKey,
    *,
    at: datetime,
    nonce: str,
    generation: int,
    signature: ApiSignature = "acs3",
) -> SignedRequest:
    """Sign for the server's time `at` (aware UTC)."""
    time = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    signed = _signed_acs3 if signature == "acs3" else _signed_v2
    url, headers, form = signed(operation.request, key, time, nonce)
    return SignedRequest(
        method=operation.request.method,
        url=url,
        headers=headers,
        body=BytesBody(form.encode()),
        generation=generation,
    )


def _signed_acs3(
    request: Request, key: AccessKey, time: str, nonce: str
) -> tuple[str, dict[str, str], str]:
    """Return URL, headers and body. Alibaba Cloud doc "V3 request body and signature"."""
    query, form = _canonical(_call_params(request)), ""
    if len(query) > _MAX_QUERY_SIZE:
        query, form = "", query
    headers = {
        "host": urlsplit(request.endpoint).netloc,
        "x-acs-action": request.params["Action"],
        "x-acs-version": request.params["Version"],
        "x-acs-date": time,
        "x-acs-signature-nonce": nonce,
        "x-acs-content-sha256": hashlib.sha256(form.encode()).hexdigest(),
    }
    if form:
        headers["content-type"] = _FORM
    if key.security_token:
        headers["x-acs-accesskey-id"] = key.id
        headers["x-acs-security-token"] = key.security_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    hashed = headers["x-acs-content-sha256"]
    canonical = f"{request.method}\n/\n{query}\n{lines}\n{names}\n{hashed}"
    text = f"ACS3-HMAC-SHA256\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(key.secret.encode(), text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"ACS3-HMAC-SHA256 Credential={key.id},SignedHeaders={names},Signature={signature}"
    )
    del headers["host"]  # the transport sends it, with this value
    headers["accept"] = "application/json"
    return f"{request.endpoint}/?{query}" if query else f"{request.endpoint}/", headers, form


def _signed_v2(
    request: Request, key: AccessKey, time: str, nonce: str
) -> tuple[str, dict[str, str], str]:
    """Return URL, headers and body. VOD doc "Signature method".

    The call's own parameters are sent in a form body, because a description may be longer than
    a URL should be; they are signed as well.
    """
    form = _call_params(request)
    query = {
        **{name: request.params[name] for name in _SYSTEM_PARAMS},
        "AccessKeyId": key.id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureType": "",
        "SignatureNonce": nonce,
        "Timestamp": time,
    }
    if key.security_token:
        query["SecurityToken"] = key.security_token
    signature = _v2_signature(request.method, {**query, **form}, key.secret)
    url = f"{request.endpoint}/?{_canonical(query)}&Signature={_quoted(signature)}"
    return url, {"content-type": _FORM}, _canonical(form)


def _v2_signature(method: str, params: Mapping[str, str], secret: str) -> str:
    text = f"{method}&%2F&{_quoted(_canonical(params))}"
    digest = hmac.digest(f"{secret}&".encode(), text.encode(), "sha1")
    return base64.b64encode(digest).decode()


def _call_params(request: Request) -> dict[str, str]:
    """The parameters of the call, without those that every call has."""
    return {name: value for name, value in request.params.items() if name not in _SYSTEM_PARAMS}


def _canonical(params: Mapping[str, str]) -> str:
    """The pairs by name, percent-encoded as RFC 3986 has it; sent exactly as they are signed."""
    return "&".join([f"{_quoted_name(name)}={_quoted(params[name])}" for name in sorted(params)])


def _quoted(value: str) -> str:
    return value if value.isascii() and value.isalnum() else quote(value, safe="~")


_quoted_name = functools.lru_cache(maxsize=64)(quote)  # names only: values may be secret
