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
    InvalidGrant,
    PermissionDenied,
    ServiceError,
    SourceChanged,
    TransportError,
    VideoGone,
    VodupError,
)
from uploader.protocol.failures import (
    APP_SERVER,
    IMS,
    OSS,
    VOD,
    Meaning,
    Service,
    is_outcome_known,
    is_target_refused,
    is_temporary,
    is_vanished,
)

R, S, N, C, F = Meaning.RETRY, Meaning.SLOW_DOWN, Meaning.RENEW, Meaning.FIX_CLOCK, Meaning.FATAL
P, B = Meaning.REPAIR, Meaning.BAD_PARAMETER
REGIONS = ["0002-00000226", "0002-00000228"]
SERVICES = [OSS, VOD, IMS, APP_SERVER]


def refused(status: int, code: str, ec: str = "") -> ServiceError:
    return ServiceError(
        "It was refused.",
        operation="UploadPart",
        status=status,
        code=code,
        ec=ec,
        request_id="5C3D",
    ).located(video_id="c6a2", phase="send")


# (status, code, with fresh credentials, with aged ones). OSS doc "Error codes".
OSS_CODES = [
    (403, "SecurityTokenExpired", N, N),
    (403, "InvalidAccessKeyId", N, N),
    (403, "InvalidSecurityToken", N, N),
    (403, "AccessKeyIdAndSecurityTokenNotMatch", N, N),
    (403, "AccessDenied", F, N),
    (400, "PublicEndpointForbidden", F, F),
    (400, "0048-00000401", F, F),
    (403, "SignatureDoesNotMatch", F, N),
    (403, "", F, N),
    (403, "RequestTimeTooSkewed", C, C),
    (403, "SecurityTokenNotSupported", F, F),
    (403, "UserDisable", F, F),
    (403, "InDebt", F, F),
    (403, "InDebtOverdue", F, F),
    (403, "BucketDisable", F, F),
    (403, "SecondLevelDomainForbidden", F, F),
    (403, "PermanentRedirect", F, F),
    (404, "NoSuchUpload", Meaning.VANISHED, Meaning.VANISHED),
    (404, "NoSuchBucket", Meaning.NO_TARGET, Meaning.NO_TARGET),
    (404, "NoSuchKey", Meaning.ABSENT, Meaning.ABSENT),
    (400, "InvalidPart", P, P),
    (400, "InvalidPartOrder", P, P),
    (400, "EntityTooSmall", P, P),
    (400, "EntityTooLarge", F, F),
    (400, "InlineDataTooLarge", F, F),
    (400, "InvalidDigest", R, R),
    (400, "InvalidCRC64", R, R),
    (400, "IncompleteBody", R, R),
    (400, "RequestTimeout", S, S),
    (400, "MalformedXML", F, F),
    (400, "InvalidArgument", F, F),
    (400, "FilePartNotExist", P, P),
    (400, "FilePartStale", P, P),
    (411, "MissingContentLength", F, F),
    (409, "FileAlreadyExists", Meaning.EXISTS, Meaning.EXISTS),
    (409, "FileImmutable", F, F),
    (400, "ObjectAlreadyExists", F, F),
    (409, "PartAlreadyExist", F, F),
    (409, "PartNotSequential", F, F),
    (203, "CallbackFailed", Meaning.STORED, Meaning.STORED),
    (500, "InternalError", R, R),
    (503, "ServiceUnavailable", S, S),
    (503, "SlowDown", S, S),
    (503, "UploadTrafficRateLimitExceeded", S, S),
    (503, "TotalQpsLimitExceeded", S, S),
    (503, "MetaOperationQpsLimitExceeded", S, S),
    (503, "ActiveRequestLimitExceeded", S, S),
    (503, "CpuLimitExceeded", S, S),
    (503, "QpsLimitExceeded", S, S),
    (302, "Redirected", F, F),
]

# VOD doc "Public error codes", and those of CreateUploadVideo and RefreshUploadVideo.
VOD_CODES = [
    (404, "InvalidVideo.NotFound", F),
    (400, "InvalidVideo.Damaged", F),
    (400, "InvalidFileName.Extension", F),
    (400, "InvalidParameter.FileName", B),
    (400, "IllegalCharacters", F),
    (400, "LengthExceededMax", F),
    (400, "TagsExceededMax", F),
    (404, "InvalidTemplateGroupId.NotFound", F),
    (404, "InvalidStorage.NotFound", F),
    (403, "Forbidden.InitFailed", Meaning.NOT_ALLOWED),
    (503, "AddVideoFailed", R),
    (400, "MissingParameter", B),
    (400, "InvalidParameter", B),
    (400, "InvalidParameter.ReferenceId", B),
    (400, "MissingParameter.VideoId", B),
    (403, "OperationDenied", F),
    (403, "OperationDenied.Suspended", F),
    (403, "Forbidden", Meaning.NOT_ALLOWED),
    (403, "Forbidden.RAM", Meaning.NOT_ALLOWED),
    (403, "NoPermission", Meaning.NOT_ALLOWED),
    (400, "Throttling", S),
    (400, "Throttling.User", S),
    (400, "Throttling.Api", S),
    (400, "Throttling.SomethingNew", S),
    (500, "InternalError", R),
    (503, "ServiceUnAvailable", R),
    (503, "ServiceUnavailable", R),
    (400, "InvalidTimeStamp.Expired", C),
    (400, "InvalidTimeStamp.Format", F),
    (400, "SignatureNonceUsed", R),
    (400, "SignatureDoesNotMatch", F),
    (400, "IncompleteSignature", F),
    (404, "InvalidAccessKeyId.NotFound", N),
    (400, "InvalidAccessKeyId.Inactive", F),
    (403, "InvalidSecurityToken.Expired", N),
    (400, "UnsupportedOperation", F),
]


@pytest.mark.parametrize(
    ("status", "code", "fresh", "aged"), OSS_CODES, ids=[row[1] for row in OSS_CODES]
)
def test_codes_of_oss(status: int, code: str, fresh: Meaning, aged: Meaning) -> None:
    failure = refused(status, code)
    assert OSS.meaning(failure) is OSS.meaning(failure, is_aged=False) is fresh
    assert OSS.meaning(failure, is_aged=True) is aged


@pytest.mark.parametrize(
    ("status", "code", "meaning"), VOD_CODES, ids=[row[1] for row in VOD_CODES]
)
@pytest.mark.parametrize("is_aged", [False, True])
@pytest.mark.parametrize("service", [VOD, IMS], ids=["VOD", "IMS"])
def test_codes_of_vod(
    status: int, code: str, meaning: Meaning, is_aged: bool, service: Service
) -> None:
    assert service.meaning(refused(status, code), is_aged=is_aged) is meaning


def test_every_row_of_the_tables_is_tested() -> None:
    tested = {row[1] for row in OSS_CODES} | {"0002-00000212", "0002-00000080", *REGIONS}
    assert OSS.rows.keys() <= tested
    tested = {row[1] for row in VOD_CODES} | {f"{row[1].split('.')[0]}.*" for row in VOD_CODES}
    assert VOD.rows.keys() <= tested


@pytest.mark.parametrize("code", ["Throttling.User", "InvalidTimeStamp.Expired"])
def test_the_code_decides_whatever_the_status(code: str) -> None:
    assert len({VOD.meaning(refused(status, code)) for status in (400, 403, 500, 503)}) == 1


def test_a_code_means_nothing_to_the_other_service() -> None:
    assert OSS.meaning(refused(400, "Throttling.User")) is F
    assert VOD.meaning(refused(404, "NoSuchUpload")) is F
    assert VOD.meaning(refused(403, "SecurityTokenExpired")) is F


def test_a_date_v4_cannot_read_is_a_skewed_clock() -> None:
    assert OSS.meaning(refused(400, "InvalidArgument", ec="0002-00000212")) is C
    assert OSS.meaning(refused(400, "InvalidArgument", ec="0002-00000227")) is F


@pytest.mark.parametrize("ec", REGIONS)
def test_a_region_that_is_not_the_buckets_is_signed_anew(ec: str) -> None:
    assert OSS.meaning(refused(400, "InvalidArgument", ec=ec)) is Meaning.FIX_REGION


@pytest.mark.parametrize(
    ("code", "ec"), [("PublicEndpointForbidden", ""), ("AccessDenied", "0048-00000401")]
)
@pytest.mark.parametrize("is_aged", [False, True])
def test_a_closed_public_endpoint_is_no_matter_of_credentials(
    code: str, ec: str, is_aged: bool
) -> None:
    failure = refused(400, code, ec=ec)
    assert OSS.meaning(failure, is_aged=is_aged) is F
    assert type(OSS.final_error(failure)) is ConfigurationError


@pytest.mark.parametrize("code", ["", "NobodyKnowsThis", "Nobody.Knows"])
@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        *((status, R) for status in (408, 500, 502, 504, 599)),
        *((status, S) for status in (429, 503)),
        *((status, F) for status in (200, 203, 302, 400, 401, 404, 409, 499)),
    ],
)
def test_unknown_codes_are_judged_by_status(
    code: str, service: Service, status: int, meaning: Meaning
) -> None:
    assert service.meaning(refused(status, code)) is meaning
    assert service.meaning(refused(status, code), is_aged=True) is meaning


@pytest.mark.parametrize("status", [400, 404])
def test_only_a_403_of_aged_credentials_may_be_an_expiry(status: int) -> None:
    assert OSS.meaning(refused(status, "AccessDenied"), is_aged=True) is F
    assert OSS.meaning(refused(503, "AccessDenied"), is_aged=True) is S


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_failures_without_an_answer(service: Service) -> None:
    for is_sent in (False, True):
        assert service.meaning(TransportError("Reset.", is_sent=is_sent)) is R
        late = TransportError("No byte for 30 s.", is_sent=is_sent, is_timeout=True)
        assert service.meaning(late) is S
    assert service.meaning(IntegrityError("Other bytes.")) is R
    assert service.meaning(InvalidGrant("No FileName.")) is R
    assert service.meaning(SourceChanged("Shorter.")) is F
    assert service.meaning(CredentialsRejected("No more.")) is F


_CODES = st.sampled_from(
    [row[1] for row in OSS_CODES] + [row[1] for row in VOD_CODES] + ["Throttling.*", "*", ".*"]
) | st.text(max_size=20)
_FAILURES = st.builds(
    refused, st.integers(), _CODES, st.sampled_from(["", "0002-00000212", "0002-00000080"])
)


@given(_FAILURES, st.sampled_from(SERVICES), st.booleans())
def test_every_refusal_has_a_meaning_and_an_error(
    failure: ServiceError, service: Service, is_aged: bool
) -> None:
    assert isinstance(service.meaning(failure, is_aged=is_aged), Meaning)
    assert isinstance(is_outcome_known(failure), bool)
    error = service.final_error(failure)
    assert error.message == failure.message
    assert error.next_step
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
        (InvalidGrant("The grant of a video that was created."), False),
    ],
)
def test_only_a_plain_no_is_a_known_outcome(failure: VodupError, is_known: bool) -> None:
    assert is_outcome_known(failure) is is_known


def test_only_no_such_upload_means_that_an_upload_has_vanished() -> None:
    assert is_vanished(refused(404, "NoSuchUpload"))
    assert not is_vanished(refused(404, "NoSuchKey"))
    assert not is_vanished(refused(403, "SecurityTokenExpired"))
    assert not is_vanished(TransportError("Reset.", is_sent=True))


# --- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "code", "kind", "advice"),
    [
        (OSS, "AccessDenied", PermissionDenied, "upload rights"),
        (OSS, "SignatureDoesNotMatch", PermissionDenied, "--oss-region"),
        (OSS, "InvalidArgument", PermissionDenied, "--oss-region"),
        (OSS, "UserDisable", PermissionDenied, "Settle"),
        (OSS, "InDebt", PermissionDenied, "Settle"),
        (OSS, "InDebtOverdue", PermissionDenied, "Settle"),
        (VOD, "InvalidVideo.NotFound", VideoGone, "no other video was created"),
        (VOD, "InvalidVideo.Damaged", VideoGone, "no other video was created"),
        (VOD, "SignatureDoesNotMatch", CallerNotAuthenticated, "ALIBABA_CLOUD_ACCESS_KEY_ID"),
        (VOD, "IncompleteSignature", CallerNotAuthenticated, "ALIBABA_CLOUD_ACCESS_KEY_ID"),
        (VOD, "InvalidAccessKeyId.NotFound", CallerNotAuthenticated, "ACCESS_KEY_ID"),
        (VOD, "InvalidAccessKeyId.Inactive", CallerNotAuthenticated, "ACCESS_KEY_ID"),
        (VOD, "InvalidSecurityToken.Expired", CallerNotAuthenticated, "ACCESS_KEY_ID"),
        (VOD, "Forbidden", PermissionDenied, "the action vod:UploadPart"),
        (VOD, "Forbidden.RAM", PermissionDenied, "the action vod:UploadPart"),
        (VOD, "Forbidden.InitFailed", PermissionDenied, "the action vod:UploadPart"),
        (VOD, "NoPermission", PermissionDenied, "the action vod:UploadPart"),
        (VOD, "OperationDenied", PermissionDenied, "VOD is not activated"),
        (IMS, "OperationDenied", PermissionDenied, "IMS is not activated"),
        (IMS, "Forbidden", PermissionDenied, "the action ice:UploadPart"),
        (VOD, "OperationDenied.Suspended", PermissionDenied, "Settle"),
        (VOD, "InvalidFileName.Extension", ConfigurationError, "--file-name"),
        (VOD, "InvalidParameter.FileName", ConfigurationError, "--title"),
        (VOD, "IllegalCharacters", ConfigurationError, "--title"),
        (VOD, "LengthExceededMax", ConfigurationError, "--title"),
        (VOD, "TagsExceededMax", ConfigurationError, "--tags"),
        (VOD, "InvalidTemplateGroupId.NotFound", ConfigurationError, "--title"),
        (VOD, "InvalidStorage.NotFound", ConfigurationError, "--title"),
        (VOD, "MissingParameter", ConfigurationError, "--title"),
        (VOD, "InvalidParameter", ConfigurationError, "--title"),
    ],
)
def test_codes_that_callers_catch_apart(
    service: Service, code: str, kind: type[VodupError], advice: str
) -> None:
    error = service.final_error(refused(403, code))
    assert type(error) is kind
    assert advice in error.next_step


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_other_failures_are_raised_as_they_are(service: Service) -> None:
    for failure in (refused(404, "NoSuchBucket"), TransportError("Reset.", is_sent=True)):
        assert service.final_error(failure) is failure


def test_v1_signatures_that_are_switched_off_have_advice_of_their_own() -> None:
    failure = refused(403, "AccessDenied", ec="0002-00000080")
    error = OSS.final_error(failure)
    assert type(error) is PermissionDenied
    assert "--signature v4" in error.next_step
    assert OSS.meaning(failure, is_aged=True) is F, "other credentials would not help"


def test_credentials_that_oss_refuses_again_and_again_ask_for_smaller_parts() -> None:
    error = OSS.rejected_error(refused(403, "SecurityTokenExpired"), renewal_count=5)
    assert type(error) is CredentialsRejected
    assert error.message == "It was refused. So were 5 credentials in a row."
    assert "--part-size" in error.next_step
    assert (error.code, error.request_id) == ("SecurityTokenExpired", "5C3D")


def test_keys_that_vod_refuses_again_and_again_ask_for_another_key() -> None:
    error = VOD.rejected_error(refused(400, "InvalidSecurityToken.Expired"), renewal_count=5)
    assert type(error) is CallerNotAuthenticated
    assert error.message == "It was refused."


# --- questions ------------------------------------------------------------------------


def test_a_refused_target_is_another_matter_than_a_refused_request() -> None:
    assert is_target_refused(PermissionDenied("No."))
    assert is_target_refused(refused(404, "NoSuchBucket"))
    assert not is_target_refused(refused(404, "NoSuchUpload"))
    assert not is_target_refused(refused(503, "SlowDown"))


@pytest.mark.parametrize(
    ("failure", "is_passing"),
    [
        (refused(503, "SlowDown"), True),
        (refused(400, "Throttling.User"), True),
        (refused(400, "RequestTimeout"), True),
        (refused(500, ""), True),
        (refused(403, "SecurityTokenExpired"), False),
        (refused(404, "NoSuchBucket"), False),
        (refused(400, ""), False),
    ],
)
def test_failures_that_pass_by_themselves(failure: ServiceError, is_passing: bool) -> None:
    assert is_temporary(failure) is is_passing


@pytest.mark.parametrize("code", ["InvalidParameter", "InvalidParameter.Any", "MissingParameter"])
def test_a_refused_parameter_is_recognised_in_the_final_error_too(code: str) -> None:
    failure = refused(400, code)
    assert VOD.is_bad_parameter(failure)
    assert VOD.is_bad_parameter(VOD.final_error(failure))
    assert not VOD.is_bad_parameter(refused(404, "InvalidVideo.NotFound"))
