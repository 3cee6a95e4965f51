"""Which failure means what: every code of the services' documents has its row here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    CredentialsRejected,
    IntegrityError,
    PermissionDenied,
    ServiceError,
    SourceChanged,
    TransportError,
    VideoGone,
    VodupError,
)
from uploader.protocol.verdicts import Verdict, classify, is_outcome_known, is_vanished, meaning

R, S, N = Verdict.RETRY, Verdict.SLOW_DOWN, Verdict.RENEW
C, U, G = Verdict.FIX_CLOCK, Verdict.RESTART_UPLOAD, Verdict.GIVE_UP


def refused(status: int, code: str, ec: str = "") -> ServiceError:
    return ServiceError(
        "It was refused.",
        operation="UploadPart",
        status=status,
        code=code,
        ec=ec,
        request_id="5C3D",
        video_id="c6a2",
        phase="send",
    )


# (status, code, with fresh credentials, with aged ones). OSS doc "Error codes".
OSS = [
    (403, "SecurityTokenExpired", N, N),
    (403, "InvalidAccessKeyId", N, N),
    (403, "InvalidSecurityToken", N, N),
    (403, "AccessKeyIdAndSecurityTokenNotMatch", N, N),
    (403, "AccessDenied", G, N),
    (403, "SignatureDoesNotMatch", G, N),
    (403, "", G, N),
    (403, "RequestTimeTooSkewed", C, C),
    (403, "SecurityTokenNotSupported", G, G),
    (403, "UserDisable", G, G),
    (403, "InDebt", G, G),
    (403, "InDebtOverdue", G, G),
    (403, "BucketDisable", G, G),
    (403, "SecondLevelDomainForbidden", G, G),
    (403, "PermanentRedirect", G, G),
    (404, "NoSuchUpload", U, U),
    (404, "NoSuchBucket", G, G),
    (404, "NoSuchKey", G, G),
    (400, "InvalidPart", G, G),
    (400, "InvalidPartOrder", G, G),
    (400, "EntityTooSmall", G, G),
    (400, "EntityTooLarge", G, G),
    (400, "InlineDataTooLarge", G, G),
    (400, "InvalidDigest", R, R),
    (400, "InvalidCRC64", R, R),
    (400, "IncompleteBody", R, R),
    (400, "RequestTimeout", R, R),
    (400, "MalformedXML", G, G),
    (400, "InvalidArgument", G, G),
    (400, "FilePartNotExist", G, G),
    (400, "FilePartStale", G, G),
    (411, "MissingContentLength", G, G),
    (409, "FileAlreadyExists", G, G),
    (409, "FileImmutable", G, G),
    (400, "ObjectAlreadyExists", G, G),
    (409, "PartAlreadyExist", G, G),
    (409, "PartNotSequential", G, G),
    (203, "CallbackFailed", G, G),
    (500, "InternalError", R, R),
    (503, "ServiceUnavailable", S, S),
    (503, "SlowDown", S, S),
    (503, "UploadTrafficRateLimitExceeded", S, S),
    (503, "TotalQpsLimitExceeded", S, S),
    (503, "MetaOperationQpsLimitExceeded", S, S),
    (503, "ActiveRequestLimitExceeded", S, S),
    (503, "CpuLimitExceeded", S, S),
    (503, "QpsLimitExceeded", S, S),
    (302, "Redirected", G, G),
]

# VOD doc "Public error codes", and those of CreateUploadVideo and RefreshUploadVideo.
VOD = [
    (404, "InvalidVideo.NotFound", G),
    (400, "InvalidVideo.Damaged", G),
    (400, "InvalidFileName.Extension", G),
    (400, "InvalidParameter.FileName", G),
    (400, "IllegalCharacters", G),
    (400, "LengthExceededMax", G),
    (400, "TagsExceededMax", G),
    (404, "InvalidTemplateGroupId.NotFound", G),
    (404, "InvalidStorage.NotFound", G),
    (403, "Forbidden.InitFailed", G),
    (503, "AddVideoFailed", R),
    (400, "MissingParameter", G),
    (400, "InvalidParameter", G),
    (403, "OperationDenied", G),
    (403, "OperationDenied.Suspended", G),
    (403, "Forbidden", G),
    (403, "Forbidden.RAM", G),
    (403, "NoPermission", G),
    (400, "Throttling", S),
    (400, "Throttling.User", S),
    (400, "Throttling.Api", S),
    (400, "Throttling.SomethingNew", S),
    (500, "InternalError", R),
    (503, "ServiceUnAvailable", R),
    (503, "ServiceUnavailable", R),
    (400, "InvalidTimeStamp.Expired", C),
    (400, "InvalidTimeStamp.Format", G),
    (400, "SignatureNonceUsed", R),
    (400, "SignatureDoesNotMatch", G),
    (400, "IncompleteSignature", G),
    (404, "InvalidAccessKeyId.NotFound", N),
    (400, "InvalidAccessKeyId.Inactive", G),
    (403, "InvalidSecurityToken.Expired", N),
    (400, "UnsupportedOperation", G),
]


@pytest.mark.parametrize(("status", "code", "fresh", "aged"), OSS, ids=[row[1] for row in OSS])
def test_codes_of_oss(status: int, code: str, fresh: Verdict, aged: Verdict) -> None:
    failure = refused(status, code)
    assert classify(failure, is_vod=False, is_aged=False) is fresh
    assert classify(failure, is_vod=False, is_aged=True) is aged


@pytest.mark.parametrize(("status", "code", "verdict"), VOD, ids=[row[1] for row in VOD])
@pytest.mark.parametrize("is_aged", [False, True])
def test_codes_of_vod(status: int, code: str, verdict: Verdict, is_aged: bool) -> None:
    assert classify(refused(status, code), is_vod=True, is_aged=is_aged) is verdict


@pytest.mark.parametrize("code", ["Throttling.User", "InvalidTimeStamp.Expired"])
def test_the_code_decides_whatever_the_status(code: str) -> None:
    verdicts = {classify(refused(status, code), is_vod=True) for status in (400, 403, 500, 503)}
    assert len(verdicts) == 1


def test_a_code_means_nothing_to_the_other_service() -> None:
    assert classify(refused(400, "Throttling.User"), is_vod=False) is G
    assert classify(refused(404, "NoSuchUpload"), is_vod=True) is G
    assert classify(refused(403, "SecurityTokenExpired"), is_vod=True) is G


def test_a_date_v4_cannot_read_is_a_skewed_clock() -> None:
    failure = refused(400, "InvalidArgument", ec="0002-00000212")
    assert classify(failure, is_vod=False) is C
    assert classify(refused(400, "InvalidArgument", ec="0002-00000226"), is_vod=False) is G


@pytest.mark.parametrize("code", ["", "NobodyKnowsThis"])
@pytest.mark.parametrize("is_vod", [False, True])
@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((status, R) for status in (408, 500, 502, 504, 599)),
        *((status, S) for status in (429, 503)),
        *((status, G) for status in (200, 203, 302, 400, 401, 404, 409, 499)),
    ],
)
def test_unknown_codes_are_judged_by_status(
    code: str, is_vod: bool, status: int, verdict: Verdict
) -> None:
    assert classify(refused(status, code), is_vod=is_vod) is verdict
    assert classify(refused(status, code), is_vod=is_vod, is_aged=True) is verdict


@pytest.mark.parametrize("is_vod", [False, True])
def test_failures_without_an_answer(is_vod: bool) -> None:
    for is_sent in (False, True):
        assert classify(TransportError("Reset.", is_sent=is_sent), is_vod=is_vod) is R
    assert classify(IntegrityError("Other bytes."), is_vod=is_vod) is R
    assert classify(SourceChanged("Shorter."), is_vod=is_vod) is G
    assert classify(CredentialsRejected("No more."), is_vod=is_vod) is G


_CODES = st.sampled_from([row[1] for row in OSS] + [row[1] for row in VOD]) | st.text(max_size=20)
_FAILURES = st.builds(
    refused, st.integers(), _CODES, st.sampled_from(["", "0002-00000212", "0002-00000080"])
)


@given(_FAILURES, st.booleans(), st.booleans())
def test_every_refusal_has_a_verdict_and_a_meaning(
    failure: ServiceError, is_vod: bool, is_aged: bool
) -> None:
    assert isinstance(classify(failure, is_vod=is_vod, is_aged=is_aged), Verdict)
    assert isinstance(is_outcome_known(failure), bool)
    error = meaning(failure, is_vod=is_vod)
    assert error.message == failure.message
    assert (error.code, error.request_id) == (failure.code, "5C3D")
    assert (error.video_id, error.phase) == ("c6a2", "send")


# --- outcomes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "is_known"),
    [
        (TransportError("No route.", is_sent=False), True),
        (TransportError("Reset.", is_sent=True), False),
        (refused(400, "Throttling.User"), True),
        (refused(403, "Forbidden"), True),
        (refused(404, "InvalidVideo.NotFound"), True),
        (refused(500, "InternalError"), False),
        (refused(502, ""), False),
        (refused(503, "ServiceUnAvailable"), True),
        (refused(504, ""), False),
        (IntegrityError("Other bytes."), True),
    ],
)
def test_only_a_plain_no_is_a_known_outcome(failure: VodupError, is_known: bool) -> None:
    assert is_outcome_known(failure) is is_known


def test_only_no_such_upload_says_that_an_upload_has_vanished() -> None:
    assert is_vanished(refused(404, "NoSuchUpload"))
    assert not is_vanished(refused(404, "NoSuchKey"))
    assert not is_vanished(refused(403, "SecurityTokenExpired"))
    assert not is_vanished(TransportError("Reset.", is_sent=True))


# --- meanings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_vod", "code", "kind", "advice"),
    [
        (False, "AccessDenied", PermissionDenied, "upload rights"),
        (False, "SignatureDoesNotMatch", PermissionDenied, "--oss-region"),
        (False, "InvalidArgument", PermissionDenied, "--oss-region"),
        (False, "UserDisable", PermissionDenied, "Settle"),
        (False, "InDebt", PermissionDenied, "Settle"),
        (False, "InDebtOverdue", PermissionDenied, "Settle"),
        (True, "InvalidVideo.NotFound", VideoGone, "no other video was created"),
        (True, "InvalidVideo.Damaged", VideoGone, "no other video was created"),
        (True, "SignatureDoesNotMatch", CallerNotAuthenticated, "ALIBABA_CLOUD_ACCESS_KEY_ID"),
        (True, "IncompleteSignature", CallerNotAuthenticated, "ALIBABA_CLOUD_ACCESS_KEY_ID"),
        (True, "InvalidAccessKeyId.NotFound", CallerNotAuthenticated, "ACCESS_KEY_ID"),
        (True, "InvalidAccessKeyId.Inactive", CallerNotAuthenticated, "ACCESS_KEY_ID"),
        (True, "InvalidSecurityToken.Expired", CallerNotAuthenticated, "ACCESS_KEY_ID"),
        (True, "Forbidden", PermissionDenied, "RAM"),
        (True, "Forbidden.RAM", PermissionDenied, "RAM"),
        (True, "Forbidden.InitFailed", PermissionDenied, "RAM"),
        (True, "NoPermission", PermissionDenied, "RAM"),
        (True, "OperationDenied", PermissionDenied, "Settle"),
        (True, "OperationDenied.Suspended", PermissionDenied, "Settle"),
        (True, "InvalidFileName.Extension", ConfigurationError, "--file-name"),
        (True, "InvalidParameter.FileName", ConfigurationError, "--title"),
        (True, "IllegalCharacters", ConfigurationError, "--title"),
        (True, "LengthExceededMax", ConfigurationError, "--title"),
        (True, "TagsExceededMax", ConfigurationError, "--tags"),
        (True, "InvalidTemplateGroupId.NotFound", ConfigurationError, "--title"),
        (True, "InvalidStorage.NotFound", ConfigurationError, "--title"),
        (True, "MissingParameter", ConfigurationError, "--title"),
        (True, "InvalidParameter", ConfigurationError, "--title"),
    ],
)
def test_codes_that_callers_catch_apart(
    is_vod: bool, code: str, kind: type[VodupError], advice: str
) -> None:
    error = meaning(refused(403, code), is_vod=is_vod)
    assert type(error) is kind
    assert advice in error.next_step


@pytest.mark.parametrize("is_vod", [False, True])
def test_other_failures_mean_themselves(is_vod: bool) -> None:
    for failure in (refused(404, "NoSuchBucket"), TransportError("Reset.", is_sent=True)):
        assert meaning(failure, is_vod=is_vod) is failure


def test_v1_signatures_that_are_switched_off_have_advice_of_their_own() -> None:
    error = meaning(refused(403, "AccessDenied", ec="0002-00000080"), is_vod=False)
    assert type(error) is PermissionDenied
    assert "--signature v4" in error.next_step


def test_credentials_nobody_speaks_of_are_fresh() -> None:
    failure = ServiceError("No.", operation="UploadPart", status=403, code="AccessDenied")
    assert classify(failure, is_vod=False) is Verdict.GIVE_UP
    assert classify(failure, is_vod=False, is_aged=True) is Verdict.RENEW
