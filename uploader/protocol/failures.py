"""What a failure means and what to do about it: the one table of error codes.

The code decides, never the status alone: VOD sends throttling as HTTP 400, and OSS sends a
read timeout as 400. Each row cites where it is known from; a new code is one new line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from uploader import errors
from uploader.errors import ServiceError, TransportError, VodupError


class Meaning(Enum):
    """What a failure means, and so what to do."""

    RETRY = auto()  # send the same request again, after a pause
    SLOW_DOWN = auto()  # the same, and send fewer requests at a time
    RENEW = auto()  # get other credentials, then send it again
    FIX_CLOCK = auto()  # sign for the server's time, then send it again
    FIX_REGION = auto()  # sign for the region that the answer names, then send it again
    VANISHED = auto()  # the multipart upload does not exist any more: start another one
    REPAIR = auto()  # OSS holds other parts than those listed: list them, send what differs
    STORED = auto()  # the object is stored nevertheless: read its headers
    ABSENT = auto()  # there is no such object
    EXISTS = auto()  # there is an object already, and this request was not to replace it
    NO_TARGET = auto()  # there is no such bucket
    NOT_ALLOWED = auto()  # the caller's RAM policy does not contain the operation
    BAD_PARAMETER = auto()  # the service does not know a parameter or its value
    FATAL = auto()  # retrying does not help


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known of one code.

    Attributes:
        meaning: None: decided by the HTTP status.
        error: raised in place of the `ServiceError` once nothing helps.
        next_step: advice for that error; {service} and {action} (of RAM) are filled in.
        may_be_expiry: with credentials that were near their end, a 403 means RENEW.
    """

    meaning: Meaning | None = None
    error: type[VodupError] | None = None
    next_step: str | None = None
    may_be_expiry: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """One service, and what its error codes mean.

    Attributes:
        rows: by code, by OSS's EC number, which is more exact, or by the first word of a dotted
            code ("Throttling.*").
        ram_prefix: of its actions in RAM policies.
        rejected_next_step: advice where ever newer credentials are refused; None: the row's.
    """

    name: str
    rows: Mapping[str, _Row]
    rejected_next_step: str | None = None
    ram_prefix: str = ""

    def meaning(self, failure: VodupError, *, is_aged: bool = False) -> Meaning:
        """Return what a failure of a call means.

        `is_aged`: the credentials that signed it were near their end or are replaced by now.
        """
        if isinstance(failure, TransportError):
            return Meaning.SLOW_DOWN if failure.is_timeout else Meaning.RETRY
        if isinstance(failure, errors.IntegrityError | errors.InvalidGrant):
            return Meaning.RETRY
        if not isinstance(failure, ServiceError):
            return Meaning.FATAL
        row = self._row(failure.code, failure.ec)
        if row.meaning is not None:
            return row.meaning
        if row.may_be_expiry and is_aged and failure.status == 403:
            return Meaning.RENEW
        return _by_status(failure.status)

    def final_error(self, failure: VodupError) -> VodupError:
        """Return the error to raise for `failure`: itself, or one that callers catch apart."""
        if not isinstance(failure, ServiceError):
            return failure
        row = self._row(failure.code, failure.ec)
        next_step = row.next_step and row.next_step.format(
            service=self.name, action=f"{self.ram_prefix}:{failure.operation}"
        )
        return _as_error(row.error, failure.message, next_step, failure)

    def rejected_error(self, failure: VodupError, *, renewal_count: int) -> VodupError:
        """Return the error to raise when one call is refused with ever newer credentials."""
        if self.rejected_next_step is None:
            return self.final_error(failure)
        return _as_error(
            errors.CredentialsRejected,
            f"{failure.message} So were {renewal_count} credentials in a row.",
            self.rejected_next_step,
            failure,
        )

    def is_bad_parameter(self, error: VodupError) -> bool:
        """Whether a parameter was refused, also where `final_error` made this of the failure."""
        return self._row(error.code).meaning is Meaning.BAD_PARAMETER

    def lacks_permission(self, error: VodupError) -> bool:
        """Whether the key is valid, and a RAM policy does not contain the operation."""
        return self._row(error.code).meaning is Meaning.NOT_ALLOWED

    def _row(self, code: str, ec: str = "") -> _Row:
        first_word = code.partition(".")[0]
        keys = (ec or code, code, f"{first_word}.*")
        return next((self.rows[key] for key in keys if key in self.rows), _Row())


def _as_error(
    error: type[VodupError] | None, message: str, next_step: str | None, failure: VodupError
) -> VodupError:
    if error is None:
        return failure
    return error(
        message,
        next_step=next_step,
        video_id=failure.video_id,
        phase=failure.phase,
        code=failure.code,
        request_id=failure.request_id,
    )


def _by_status(status: int) -> Meaning:
    """For codes that are not documented, and for answers of proxies, which have none."""
    if status in {429, 503}:
        return Meaning.SLOW_DOWN
    if status >= 500 or status == 408:
        return Meaning.RETRY
    return Meaning.FATAL


# --- the rows ---------------------------------------------------------------------------


def _each(row: _Row, codes: str) -> dict[str, _Row]:
    """One row for several codes, separated by spaces."""
    return dict.fromkeys(codes.split(), row)


_RETRY = _Row(Meaning.RETRY)
_BUSY = _Row(Meaning.SLOW_DOWN)
_EXPIRED = _Row(Meaning.RENEW)
_OTHER_CLOCK = _Row(Meaning.FIX_CLOCK)
_OTHER_PARTS = _Row(Meaning.REPAIR)

_NO_UPLOAD_RIGHTS = _Row(
    error=errors.PermissionDenied,
    next_step="This UploadAuth does not allow it: ask its issuer for upload rights on this object, "
    "then run the same command again.",
    may_be_expiry=True,
)
_CHECK_SIGNATURE: Final = "Check --oss-region and --signature; report the request id if it stays."
_OTHER_REGION = _Row(Meaning.FIX_REGION, errors.PermissionDenied, _CHECK_SIGNATURE)
_NO_PUBLIC_ENDPOINT = _Row(
    Meaning.FATAL,
    errors.ConfigurationError,
    "OSS does not let this account use its public endpoint for this bucket. Bind a domain to the "
    "bucket and pass --oss-endpoint https://THAT-DOMAIN; on ECS in the bucket's region pass "
    "--oss-endpoint internal. Then run the same command again.",
)
_OLD_SIGNATURE = _Row(
    error=errors.PermissionDenied,
    next_step="This bucket requires another signature version: pass --signature v4 (or v1 for old "
    "private deployments).",
)
_PAY = _Row(
    error=errors.PermissionDenied,
    next_step="Settle the account's state in the console, then run the same command again.",
)
_NO_VIDEO = _Row(
    error=errors.VideoGone,
    next_step="Check the VideoId and that the region is the video's own. The checkpoint is kept "
    "and no other video was created; `vodup abort` aborts this upload.",
)
_CHECK_KEY: Final = (
    "Check ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET (OSS_* variables are "
    "not used for VOD), then run the same command again."
)
_KEY_REFUSED = _Row(error=errors.CallerNotAuthenticated, next_step=_CHECK_KEY)
_KEY_EXPIRED = _Row(Meaning.RENEW, errors.CallerNotAuthenticated, _CHECK_KEY)
_NO_RAM_RIGHTS = _Row(
    Meaning.NOT_ALLOWED,
    errors.PermissionDenied,
    "Allow the action {action} in a RAM policy of this user or role, then run the same command "
    "again. AliyunVODUploadAuth contains CreateUploadVideo and RefreshUploadVideo only.",
)
_NOT_ACTIVATED = _Row(
    error=errors.PermissionDenied,
    next_step="{service} is not activated for this account: activate it in its console, then run "
    "the same command again.",
)
_CORRECT_META: Final = (
    "Correct the parameters of CreateUploadVideo (--title, --file-name with a video's extension, "
    "--description, --tags, ...), then run again."
)
_BAD_META = _Row(error=errors.ConfigurationError, next_step=_CORRECT_META)
_BAD_PARAMETER = _Row(Meaning.BAD_PARAMETER, errors.ConfigurationError, _CORRECT_META)

OSS: Final = Service(
    "OSS",
    {
        # Expired STS credentials. OSS doc "0002-00000007"; after a while the key id is
        # forgotten altogether and the code changes: OSS doc "0002-00000002".
        "SecurityTokenExpired": _EXPIRED,
        "InvalidAccessKeyId": _EXPIRED,
        # The token belongs to another key id: a half-replaced pair. OSS docs "0002-00000006",
        # "0002-00000004".
        "InvalidSecurityToken": _EXPIRED,
        "AccessKeyIdAndSecurityTokenNotMatch": _EXPIRED,
        # OSS may report an expiry like this while its nodes disagree; with fresh credentials it is
        # final. The official JS SDK treats SignatureDoesNotMatch as an expiry.
        "AccessDenied": _NO_UPLOAD_RIGHTS,
        "SignatureDoesNotMatch": _Row(
            error=errors.PermissionDenied, next_step=_CHECK_SIGNATURE, may_be_expiry=True
        ),
        "": _Row(may_be_expiry=True),
        # The clock differs by more than 15 minutes. OSS doc "0002-00000504"; for V4 signatures
        # the code is InvalidArgument, "Invalid signing date in Authorization header".
        "RequestTimeTooSkewed": _OTHER_CLOCK,
        "0002-00000212": _OTHER_CLOCK,
        "InvalidArgument": _Row(error=errors.PermissionDenied, next_step=_CHECK_SIGNATURE),
        # Signed for another region than the bucket's. OSS docs "0002-00000226" (seen with headers,
        # too) and "0002-00000228". Where the host does not contain the region, it is a guess.
        **_each(_OTHER_REGION, "0002-00000226 0002-00000228"),
        # OSS doc "Access OSS via custom domain name": accounts made since 2025-03-20 may not use
        # public endpoints of regions in the Chinese mainland. Status 400.
        **_each(_NO_PUBLIC_ENDPOINT, "PublicEndpointForbidden 0048-00000401"),
        # V1 signatures are switched off for this bucket.
        "0002-00000080": _OLD_SIGNATURE,
        **_each(_PAY, "UserDisable InDebt InDebtOverdue"),
        # Aborted, completed, or removed by a lifecycle rule. OSS docs "0042-00000104" and others.
        "NoSuchUpload": _Row(Meaning.VANISHED),
        "NoSuchBucket": _Row(Meaning.NO_TARGET),
        "NoSuchKey": _Row(Meaning.ABSENT),
        # The answer to x-oss-forbid-overwrite. OSS API: PutObject; OSS doc "0026-00000002".
        "FileAlreadyExists": _Row(Meaning.EXISTS),
        # What OSS holds is not what the request lists. OSS API: CompleteMultipartUpload.
        **_each(_OTHER_PARTS, "InvalidPart InvalidPartOrder EntityTooSmall"),
        **_each(_OTHER_PARTS, "FilePartNotExist FilePartStale"),
        # With status 203: the object is there, the callback to VOD failed. OSS doc "Callback".
        "CallbackFailed": _Row(Meaning.STORED),
        # The body was damaged or cut short on its way (OSS API: UploadPart), or the socket was
        # idle for too long, which OSS reports as HTTP 400.
        **_each(_RETRY, "InvalidDigest InvalidCRC64 IncompleteBody InternalError"),
        "RequestTimeout": _BUSY,
        # OSS doc "OSS performance limits and QPS": all are 503.
        **_each(_BUSY, "ServiceUnavailable SlowDown UploadTrafficRateLimitExceeded"),
        **_each(_BUSY, "TotalQpsLimitExceeded MetaOperationQpsLimitExceeded QpsLimitExceeded"),
        **_each(_BUSY, "ActiveRequestLimitExceeded CpuLimitExceeded"),
    },
    # Sending a part may take longer than credentials live; a smaller part would succeed.
    rejected_next_step="Use a smaller --part-size or more bandwidth: a part must be sent within "
    "the life of one credential. Then run the same command again.",
)

VOD: Final = Service(
    "VOD",
    {
        # VOD API: public error codes. Throttling comes as HTTP 400.
        **_each(_BUSY, "Throttling Throttling.*"),
        **_each(_RETRY, "InternalError ServiceUnAvailable ServiceUnavailable AddVideoFailed"),
        # A repeated request is signed with a new nonce and time, so these cannot persist.
        "SignatureNonceUsed": _RETRY,
        "InvalidTimeStamp.Expired": _OTHER_CLOCK,
        # The caller's own STS credentials: its provider may have newer ones.
        **_each(_KEY_EXPIRED, "InvalidSecurityToken.Expired InvalidAccessKeyId.NotFound"),
        **_each(_KEY_REFUSED, "SignatureDoesNotMatch IncompleteSignature"),
        "InvalidAccessKeyId.Inactive": _KEY_REFUSED,
        **_each(_NO_RAM_RIGHTS, "Forbidden Forbidden.RAM Forbidden.InitFailed NoPermission"),
        # VOD API: error codes, "Your account does not open VOD service yet."; in arrears.
        "OperationDenied": _NOT_ACTIVATED,
        "OperationDenied.Suspended": _PAY,
        **_each(_NO_VIDEO, "InvalidVideo.NotFound InvalidVideo.Damaged"),
        **_each(_BAD_META, "InvalidFileName.Extension IllegalCharacters LengthExceededMax"),
        **_each(_BAD_META, "TagsExceededMax InvalidTemplateGroupId.NotFound"),
        "InvalidStorage.NotFound": _BAD_META,
        **_each(_BAD_PARAMETER, "MissingParameter InvalidParameter InvalidParameter.FileName"),
        **_each(_Row(Meaning.BAD_PARAMETER), "InvalidParameter.* MissingParameter.*"),
    },
    ram_prefix="vod",
)

IMS: Final = Service("IMS", VOD.rows, ram_prefix="ice")
"""Intelligent Media Services answer with the codes of VOD."""

APP_SERVER: Final = Service(
    "app server",
    {
        "HTTP401": _Row(
            error=errors.CallerNotAuthenticated,
            next_step="Check the token for the auth URL (VODUP_AUTH_URL_TOKEN), then run the same "
            "command again.",
        ),
        "HTTP403": _Row(
            error=errors.PermissionDenied,
            next_step="Ask the operator of the auth URL for permission to upload this video, then "
            "run the same command again.",
        ),
    },
)
"""The caller's own service that issues grants (--auth-url). Only its HTTP status is known."""


# --- questions about failures -----------------------------------------------------------


def is_vanished(failure: VodupError) -> bool:
    """Whether the multipart upload does not exist any more."""
    return OSS.meaning(failure) is Meaning.VANISHED


def is_target_refused(failure: VodupError) -> bool:
    """Whether OSS refuses the bucket or the key, rather than this one request."""
    return isinstance(failure, errors.PermissionDenied) or OSS.meaning(failure) is Meaning.NO_TARGET


def is_outcome_known(failure: VodupError) -> bool:
    """Whether the service certainly did not carry the request out."""
    if isinstance(failure, TransportError):
        return not failure.is_sent
    if isinstance(failure, ServiceError):
        return failure.status < 500 or failure.status == 503
    return not isinstance(failure, errors.InvalidGrant)


def is_temporary(failure: ServiceError) -> bool:
    """Whether the service, whichever it was, was only busy or broken."""
    passing = {Meaning.RETRY, Meaning.SLOW_DOWN}
    return any(service.meaning(failure) in passing for service in (OSS, VOD))
