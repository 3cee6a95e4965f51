"""Who may do what on OSS: key, token, expiry, date, signature, policy, in the order OSS checks."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from .answers import Refusal
from .backend import Backend, iso_date
from .oss_keys import check_expiry, known_credential
from .oss_signed_url import check_signed_url, is_signed_url, query_value
from .signatures import (
    OssAuthorization,
    SignedRequest,
    oss_v1_signature,
    oss_v1_string_to_sign,
    oss_v4_date,
    oss_v4_signature,
    oss_v4_string_to_sign,
    parse_http_date,
    parse_oss_authorization,
)
from .storage import Credential

WRONG_REGION = ("0002-00000228", "0002-00000226")
"""The ECs of a region that is not the bucket's, in the header and in a URL."""
ACTIONS = {
    "ListObjects": "ListObjects",
    "ListObjectsV2": "ListObjects",
    "DeleteObject": "DeleteObject",
    "DeleteMultipleObjects": "DeleteObject",
}
"""The action of a policy that an operation needs, where uploads do not need it."""
MAX_SKEW_S = 900  # "OSS: RequestTimeTooSkewed", 15 minutes


@dataclass(frozen=True, slots=True)
class OssTarget:
    """What a request is about; ``operation`` decides which permission it needs."""

    operation: str
    bucket: str
    object_key: str


def check_access(backend: Backend, target: OssTarget, request: SignedRequest) -> Credential:
    """Check access of a request and return the credentials it was signed with.

    Raises: Refusal as OSS words it.
    """
    if is_signed_url(request):
        if "authorization" in request.headers:
            raise Refusal("InvalidArgument", "Only one way of signing is allowed.")
        credential = check_signed_url(backend, request)
        _check_bucket(backend, target)
        _check_policy(backend, target, credential)
        return credential
    authorization = _parse_authorization(request)
    token = request.headers.get("x-oss-security-token") or query_value(request, "security-token")
    credential = known_credential(backend, authorization.access_key_id, token)
    check_expiry(backend, credential)
    _check_date(backend, authorization, request)
    _check_version(backend, authorization)
    if authorization.version == "v4":
        _check_v4_scope(backend, authorization, oss_v4_date(request.headers))
    _check_signature(authorization, request, credential)
    _check_bucket(backend, target)
    _check_policy(backend, target, credential)
    return credential


def _parse_authorization(request: SignedRequest) -> OssAuthorization:
    value = request.headers.get("authorization")
    if value is None:
        raise Refusal(
            "AccessDenied",
            "You have no right to access this object because of bucket acl.",
            ec="0003-00000001",
        )
    try:
        return parse_oss_authorization(value)
    except ValueError:
        raise Refusal(
            "InvalidArgument", "Authorization header is invalid.", ec="0002-00000225"
        ) from None


def _check_date(backend: Backend, authorization: OssAuthorization, request: SignedRequest) -> None:
    text = request.headers.get("x-oss-date", request.headers.get("date", ""))
    if not text:
        raise Refusal(
            "AccessDenied", "OSS authentication requires a valid Date.", ec="0002-00000503"
        )
    try:
        signed_at = parse_http_date(text).timestamp()
    except ValueError:
        raise _bad_signing_date(authorization) from None
    if backend.skew_s(signed_at) > MAX_SKEW_S:
        raise _skewed(signed_at, backend.now())


def _bad_signing_date(authorization: OssAuthorization) -> Refusal:
    if authorization.version == "v4":
        return Refusal(
            "InvalidArgument",
            "Invalid signing date in Authorization header.",
            ec="0002-00000212",
        )
    return Refusal("AccessDenied", "OSS authentication requires a valid Date.", ec="0002-00000503")


def _skewed(signed_at: float, now: float) -> Refusal:
    return Refusal(
        "RequestTimeTooSkewed",
        fields={
            "MaxAllowedSkewMilliseconds": str(MAX_SKEW_S * 1000),
            "RequestTime": iso_date(signed_at, millis=True),
            "ServerTime": iso_date(now, millis=True),
        },
    )


def _check_version(backend: Backend, authorization: OssAuthorization) -> None:
    if authorization.version in backend.options.signature_versions:
        return
    if authorization.version == "v1":
        raise Refusal(
            "AccessDenied",
            "The bucket does not support the V1 signature. Use the V4 signature.",
            ec="0002-00000080",
        )
    raise Refusal("InvalidArgument", "Unsupported Authorization type.")


def _check_signature(
    authorization: OssAuthorization, request: SignedRequest, credential: Credential
) -> None:
    if authorization.version == "v1":
        text = oss_v1_string_to_sign(request)
        expected = oss_v1_signature(credential.secret, text)
    else:
        text = oss_v4_string_to_sign(request, authorization, oss_v4_date(request.headers))
        expected = oss_v4_signature(credential.secret, authorization, text)
    if not hmac.compare_digest(expected.encode(), authorization.signature.encode()):
        raise _signature_mismatch(authorization, text)


def _check_v4_scope(backend: Backend, authorization: OssAuthorization, date: str) -> None:
    # The scope names the day, OSS's region and the product.
    if authorization.date != date[:8]:
        raise _bad_signing_date(authorization)
    if authorization.region != backend.options.region:
        raise Refusal(
            "InvalidArgument",
            "Invalid signing region in Authorization header.",
            ec=WRONG_REGION[0],
        )
    if (authorization.product, authorization.request_type) != ("oss", "aliyun_v4_request"):
        raise Refusal(
            "InvalidArgument",
            "Invalid signing product in Authorization header.",
            ec="0002-00000227",
        )


def _signature_mismatch(authorization: OssAuthorization, text: str) -> Refusal:
    encoded = text.encode("utf-8", "surrogateescape")
    return Refusal(
        "SignatureDoesNotMatch",
        fields={
            "OSSAccessKeyId": authorization.access_key_id,
            "SignatureProvided": authorization.signature,
            "StringToSign": encoded.decode("utf-8", "replace"),
            "StringToSignBytes": encoded.hex(" ").upper(),
        },
    )


def _check_bucket(backend: Backend, target: OssTarget) -> None:
    if target.bucket not in (backend.bucket, backend.other_bucket):
        raise Refusal("NoSuchBucket", fields={"BucketName": target.bucket})


def _check_policy(backend: Backend, target: OssTarget, credential: Credential) -> None:
    denied = target.operation in backend.options.denied_operations
    action = ACTIONS.get(target.operation)
    denied |= action is not None and action not in backend.options.allowed_actions
    in_scope = (
        credential.may_touch(target.bucket, target.object_key)
        if target.object_key
        else credential.may_list(target.bucket)
    )
    if denied or not in_scope:
        raise Refusal("AccessDenied")
