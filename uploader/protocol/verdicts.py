"""Which failure means what. Pure tables; each row cites where it is known from.

    RETRY           the same request again, after a pause
    SLOW_DOWN       the same, and with fewer requests at a time
    RENEW           other credentials, then again
    FIX_CLOCK       sign for the server's time, then again
    RESTART_UPLOAD  the multipart upload is gone; the engine decides what that means
    GIVE_UP         nothing we can do helps

Decided by code, never by status alone: VOD sends throttling as HTTP 400, and OSS sends
a read timeout as 400.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    IntegrityError,
    PermissionDenied,
    ServiceError,
    TransportError,
    VideoGone,
    VodupError,
)

__all__ = ["Verdict", "classify", "is_outcome_known", "is_vanished", "meaning"]


class Verdict(Enum):
    """What to do about a failure."""

    RETRY = auto()
    SLOW_DOWN = auto()
    RENEW = auto()
    FIX_CLOCK = auto()
    RESTART_UPLOAD = auto()
    GIVE_UP = auto()


_R, _S, _N, _C, _U, _G = Verdict

_OSS: dict[str, Verdict] = {
    # Expired STS credentials. OSS doc "0002-00000007"; after a while the key id is
    # forgotten altogether and the code changes: OSS doc "0002-00000002".
    "SecurityTokenExpired": _N,
    "InvalidAccessKeyId": _N,
    # The token belongs to another key id: a half-replaced pair. OSS docs "0002-00000006",
    # "0002-00000004".
    "InvalidSecurityToken": _N,
    "AccessKeyIdAndSecurityTokenNotMatch": _N,
    # The clock differs by more than 15 minutes. OSS doc "0002-00000504".
    "RequestTimeTooSkewed": _C,
    # Aborted, completed, or removed by a lifecycle rule. OSS docs "0042-00000104" and others.
    "NoSuchUpload": _U,
    # The body was damaged or cut short on its way (OSS API: UploadPart), or the socket
    # was idle for too long, which OSS reports as HTTP 400.
    "InvalidDigest": _R,
    "InvalidCRC64": _R,
    "IncompleteBody": _R,
    "RequestTimeout": _R,
    "InternalError": _R,
    # OSS doc "OSS performance limits and QPS": all are 503.
    "ServiceUnavailable": _S,
    "SlowDown": _S,
    "UploadTrafficRateLimitExceeded": _S,
    "TotalQpsLimitExceeded": _S,
    "MetaOperationQpsLimitExceeded": _S,
    "ActiveRequestLimitExceeded": _S,
    "CpuLimitExceeded": _S,
    "QpsLimitExceeded": _S,
}

_VOD: dict[str, Verdict] = {
    # VOD API: public error codes. Throttling comes as HTTP 400.
    "Throttling": _S,
    "Throttling.User": _S,
    "Throttling.Api": _S,
    "InternalError": _R,
    "ServiceUnAvailable": _R,
    "ServiceUnavailable": _R,
    "AddVideoFailed": _R,
    # A repeated request is signed with a new nonce and time, so these cannot persist.
    "SignatureNonceUsed": _R,
    "InvalidTimeStamp.Expired": _C,
    # The caller's own STS credentials: its provider may have newer ones.
    "InvalidSecurityToken.Expired": _N,
    "InvalidAccessKeyId.NotFound": _N,
}

_RENEW_IF_AGED = frozenset(
    # May be how an expiry looks while OSS's parts disagree; with fresh credentials they
    # are what they say. The official JS SDK takes SignatureDoesNotMatch for an expiry.
    {"AccessDenied", "SignatureDoesNotMatch", ""}
)

_SKEW_EC = "0002-00000212"
"""InvalidArgument "Invalid signing date in Authorization header": skew, to V4."""


def classify(failure: VodupError, *, is_vod: bool, is_aged: bool = False) -> Verdict:
    """Decide what a failure of a call means.

    `is_aged` tells whether the credentials that signed it were near their end or have
    been replaced since: only then is a vague refusal worth a renewal.
    """
    if isinstance(failure, TransportError | IntegrityError):
        return Verdict.RETRY
    if not isinstance(failure, ServiceError):
        return Verdict.GIVE_UP
    table = _VOD if is_vod else _OSS
    if failure.code in table:
        return table[failure.code]
    if is_vod and failure.code.startswith("Throttling"):
        return Verdict.SLOW_DOWN
    if failure.ec == _SKEW_EC:
        return Verdict.FIX_CLOCK
    if failure.status == 403 and is_aged and failure.code in _RENEW_IF_AGED:
        return Verdict.RENEW
    return _by_status(failure.status)


def _by_status(status: int) -> Verdict:
    """For codes nobody documented, and for answers of proxies, which have none."""
    if status in {429, 503}:
        return Verdict.SLOW_DOWN
    if status >= 500 or status == 408:
        return Verdict.RETRY
    return Verdict.GIVE_UP


def is_outcome_known(failure: VodupError) -> bool:
    """Whether the service certainly did not carry the request out."""
    if isinstance(failure, TransportError):
        return not failure.is_sent
    if isinstance(failure, ServiceError):
        return failure.status < 500 or failure.status == 503
    return True


def is_vanished(failure: VodupError) -> bool:
    """Whether the multipart upload is gone."""
    return isinstance(failure, ServiceError) and _OSS.get(failure.code) is Verdict.RESTART_UPLOAD


@dataclass(frozen=True, slots=True)
class _Meaning:
    error: type[VodupError]
    next_step: str


_ASK_UPLOAD_RIGHTS = (
    "This UploadAuth does not allow it: ask its issuer for upload rights on this object, "
    "then run the same command again."
)
_CHECK_VIDEO = (
    "Check the VideoId and that the region is the video's own. The checkpoint is kept and no "
    "other video was created; `vodup abort` gives this upload up."
)
_CHECK_KEY = (
    "Check ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET (OSS_* variables are "
    "not used for VOD), then run the same command again."
)
_GRANT_RAM = (
    "Give this RAM user or role the VOD action named above (system policy AliyunVODFullAccess or "
    "AliyunVodUploadAuth), then run the same command again."
)
_CORRECT_META = (
    "Correct what CreateUploadVideo is told (--title, --file-name with a video's extension, "
    "--description, --tags, ...), then run again."
)
_PAY = "Settle the account's state in the console, then run the same command again."
_OLD_SIGNATURE = (
    "This bucket takes another signature version: pass --signature v4 (or v1 for old private "
    "deployments)."
)

_MEANINGS: dict[tuple[bool, str], _Meaning] = {
    (False, "AccessDenied"): _Meaning(PermissionDenied, _ASK_UPLOAD_RIGHTS),
    (False, "SignatureDoesNotMatch"): _Meaning(
        PermissionDenied, "Check --oss-region and --signature; report the request id if it stays."
    ),
    (False, "InvalidArgument"): _Meaning(
        PermissionDenied, "Check --oss-region and --signature; report the request id if it stays."
    ),
    (False, "UserDisable"): _Meaning(PermissionDenied, _PAY),
    (False, "InDebt"): _Meaning(PermissionDenied, _PAY),
    (False, "InDebtOverdue"): _Meaning(PermissionDenied, _PAY),
    **{
        (True, code): _Meaning(ConfigurationError, _CORRECT_META)
        for code in (
            "InvalidFileName.Extension",
            "InvalidParameter.FileName",
            "IllegalCharacters",
            "LengthExceededMax",
            "TagsExceededMax",
            "InvalidTemplateGroupId.NotFound",
            "InvalidStorage.NotFound",
            "MissingParameter",
            "InvalidParameter",
        )
    },
    (True, "InvalidVideo.NotFound"): _Meaning(VideoGone, _CHECK_VIDEO),
    (True, "InvalidVideo.Damaged"): _Meaning(VideoGone, _CHECK_VIDEO),
    (True, "SignatureDoesNotMatch"): _Meaning(CallerNotAuthenticated, _CHECK_KEY),
    (True, "IncompleteSignature"): _Meaning(CallerNotAuthenticated, _CHECK_KEY),
    (True, "InvalidAccessKeyId.NotFound"): _Meaning(CallerNotAuthenticated, _CHECK_KEY),
    (True, "InvalidAccessKeyId.Inactive"): _Meaning(CallerNotAuthenticated, _CHECK_KEY),
    (True, "InvalidSecurityToken.Expired"): _Meaning(CallerNotAuthenticated, _CHECK_KEY),
    (True, "Forbidden"): _Meaning(PermissionDenied, _GRANT_RAM),
    (True, "Forbidden.RAM"): _Meaning(PermissionDenied, _GRANT_RAM),
    (True, "Forbidden.InitFailed"): _Meaning(PermissionDenied, _GRANT_RAM),
    (True, "NoPermission"): _Meaning(PermissionDenied, _GRANT_RAM),
    (True, "OperationDenied"): _Meaning(PermissionDenied, _PAY),
    (True, "OperationDenied.Suspended"): _Meaning(PermissionDenied, _PAY),
}


def meaning(failure: VodupError, *, is_vod: bool) -> VodupError:
    """Return the error to raise for a failure that nothing helped against.

    It is the failure itself unless its code is one that callers want to catch apart.
    """
    if not isinstance(failure, ServiceError):
        return failure
    row = _MEANINGS.get((is_vod, failure.code))
    if failure.ec == "0002-00000080":  # V1 signatures are switched off for this bucket
        row = _Meaning(PermissionDenied, _OLD_SIGNATURE)
    if row is None:
        return failure
    return row.error(
        failure.message,
        next_step=row.next_step,
        video_id=failure.video_id,
        phase=failure.phase,
        code=failure.code,
        request_id=failure.request_id,
    )
