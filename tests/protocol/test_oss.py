"""Requests OSS accepts byte for byte, and answers read without believing too much."""

from __future__ import annotations

import base64
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import (
    IntegrityError,
    ServiceError,
    TransportError,
    VodupError,
)
from uploader.protocol.grants import StsCredentials, UploadTarget
from uploader.protocol.oss import (
    ListedPart,
    ObjectFacts,
    PartAnswer,
    PartsPage,
    abort_multipart_upload,
    complete_multipart_upload,
    head_object,
    initiate_multipart_upload,
    list_parts,
    put_object,
    read_signed_url,
    upload_part,
)
from uploader.protocol.plan import Part
from uploader.protocol.wire import BytesBody, Operation, Response, SentBody

TOKEN = "CAIStOkEnCaNaRy4711+/=abc"
CREDENTIALS = StsCredentials("STS.id4711", "secret4711", TOKEN)
AT = datetime(2026, 11, 22, 9, 3, 54, tzinfo=UTC)
UPLOAD_ID = "0004B9894A22E5B1888A1E29F8236E2D"
BODY = BytesBody(b"part")
KEYS = [
    "sv/a.mp4",
    "a b+c&d=e?f#g%h/中文 é~!*'().mp4",
    "x//y",
    "😀.mp4",
    "%2F%41",
]


def target(key: str = "sv/a.mp4") -> UploadTarget:
    return UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "bkt", key)


def every_operation(key: str) -> list[Operation[Any]]:
    to, notification = target(key), {"x-oss-notification": "eyJ9"}
    return [
        initiate_multipart_upload(to, notification),
        upload_part(to, UPLOAD_ID, Part(17, 0, 4), BODY),
        put_object(to, BODY, notification),
        list_parts(to, UPLOAD_ID, marker=1000),
        complete_multipart_upload(to, UPLOAD_ID, [(1, "A")], notification),
        abort_multipart_upload(to, UPLOAD_ID),
        head_object(to),
    ]


# --- requests ------------------------------------------------------------------------


def test_operations_ask_for_what_the_api_names() -> None:
    requests = [
        (op.name, op.request.method, dict(op.request.params)) for op in every_operation("k")
    ]
    upload = {"uploadId": UPLOAD_ID}
    assert requests == [
        ("InitiateMultipartUpload", "POST", {"uploads": ""}),
        ("UploadPart", "PUT", {"partNumber": "17", **upload}),
        ("PutObject", "PUT", {}),
        ("ListParts", "GET", {**upload, "part-number-marker": "1000", "max-parts": "1000"}),
        ("CompleteMultipartUpload", "POST", upload),
        ("AbortMultipartUpload", "DELETE", upload),
        ("HeadObject", "HEAD", {}),
    ]


def test_complete_lists_exactly_the_given_parts() -> None:
    operation = complete_multipart_upload(target(), UPLOAD_ID, [(1, "AB"), (2, "<&>")])
    assert isinstance(operation.request.body, BytesBody)
    assert operation.request.body.data == (
        b"<CompleteMultipartUpload>"
        b"<Part><PartNumber>1</PartNumber><ETag>AB</ETag></Part>"
        b"<Part><PartNumber>2</PartNumber><ETag>&lt;&amp;&gt;</ETag></Part>"
        b"</CompleteMultipartUpload>"
    )
    assert operation.answer_timeout_s >= 300
    headers = operation.request.headers
    assert headers["content-type"] == "application/xml"
    assert not [name for name in headers if "complete-all" in name]


def test_initiate_sends_an_empty_body_and_the_notification() -> None:
    operation = initiate_multipart_upload(target(), {"x-oss-notification": "eyJ9"})
    assert operation.request.body == BytesBody(b"")
    assert operation.request.headers["x-oss-notification"] == "eyJ9"


def test_a_url_of_vods_is_read_by_its_first_byte() -> None:
    operation = read_signed_url("https://h/a%2Fb?Signature=x")
    request = operation.request
    assert (request.method, request.endpoint) == ("GET", "https://h/a%2Fb?Signature=x")
    assert request.headers == {"range": "bytes=0-0"}


# --- successes -----------------------------------------------------------------------

XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = ' xmlns="http://doc.oss-cn-hangzhou.aliyuncs.com"'
INITIATED = f"""{XML}<InitiateMultipartUploadResult{{}}>
  <EncodingType>url</EncodingType>
  <Bucket>bkt</Bucket>
  <Key>sv%2Fa.mp4</Key>
  <UploadId>{UPLOAD_ID}</UploadId>
</InitiateMultipartUploadResult>"""
LISTED = f"""{XML}<ListPartsResult{{}}>
  <Bucket>bkt</Bucket>
  <Key>sv/a.mp4</Key>
  <UploadId>{UPLOAD_ID}</UploadId>
  <StorageClass>Standard</StorageClass>
  <PartNumberMarker>0</PartNumberMarker>
  <NextPartNumberMarker>2</NextPartNumberMarker>
  <MaxParts>1000</MaxParts>
  <IsTruncated>false</IsTruncated>
  <Part>
    <PartNumber>1</PartNumber>
    <LastModified>2023-11-22T05:42:34.000Z</LastModified>
    <ETag>"CF3F46D505093571E916FCDD4967AAAA"</ETag>
    <HashCrc64ecma>12066172435287683848</HashCrc64ecma>
    <Size>102400</Size>
  </Part>
  <Part>
    <PartNumber>2</PartNumber>
    <ETag>&quot;BF3F46D505093571E916FCDD4967AAAA&quot;</ETag>
    <Size>7</Size>
  </Part>
</ListPartsResult>"""
COMPLETED = f"""{XML}<CompleteMultipartUploadResult{{}}>
  <Location>http://bkt.oss-cn-shanghai.aliyuncs.com/sv/a.mp4</Location>
  <Bucket>bkt</Bucket>
  <Key>sv/a.mp4</Key>
  <ETag>"1C787C506EABFB9B45EAAA8DB039F4B2-2"</ETag>
</CompleteMultipartUploadResult>"""

INITIATE = initiate_multipart_upload(target())
LIST = list_parts(target(), UPLOAD_ID)
COMPLETE = complete_multipart_upload(target(), UPLOAD_ID, [(1, "A")])
ABORT = abort_multipart_upload(target(), UPLOAD_ID)
HEAD = head_object(target())
GET = read_signed_url("https://h/x")
UPLOAD = upload_part(target(), UPLOAD_ID, Part(1, 0, 4), BODY)
PUT = put_object(target(), BODY)
EVERY: list[Operation[Any]] = [INITIATE, LIST, COMPLETE, ABORT, HEAD, GET, UPLOAD, PUT]
IDS = [operation.name for operation in EVERY]


def answer(body: str | bytes, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body.encode() if isinstance(body, str) else body
    return Response(status, {"x-oss-request-id": "6A7D", **named}, data, SentBody(4, 77))


@pytest.mark.parametrize("namespace", ["", NAMESPACE])
def test_initiated(namespace: str) -> None:
    assert INITIATE.parse(answer(INITIATED.format(namespace))) == UPLOAD_ID


@pytest.mark.parametrize("namespace", ["", NAMESPACE])
def test_listed(namespace: str) -> None:
    assert LIST.parse(answer(LISTED.format(namespace))) == PartsPage(
        parts=(
            ListedPart(1, 102400, "CF3F46D505093571E916FCDD4967AAAA", 12066172435287683848),
            ListedPart(2, 7, "BF3F46D505093571E916FCDD4967AAAA", None),
        ),
        next_marker=None,
    )


def test_a_truncated_page_names_the_next() -> None:
    page = LIST.parse(answer(LISTED.format("").replace("false", "true")))
    assert page.next_marker == 2


def test_an_empty_list_is_a_list() -> None:
    assert LIST.parse(answer("<ListPartsResult/>")) == PartsPage((), None)


@pytest.mark.parametrize("namespace", ["", NAMESPACE])
def test_completed(namespace: str) -> None:
    response = answer(COMPLETED.format(namespace), x_oss_hash_crc64ecma="12066172435287683848")
    etag = "1C787C506EABFB9B45EAAA8DB039F4B2-2"
    assert COMPLETE.parse(response) == ObjectFacts(etag, 12066172435287683848, None, "6A7D")


def test_completed_without_proof() -> None:
    facts = COMPLETE.parse(answer("<CompleteMultipartUploadResult/>"))
    assert facts == ObjectFacts(None, None, None, "6A7D")


def test_aborted() -> None:
    assert ABORT.parse(answer("", 204)) is None
    with pytest.raises(TransportError, match="its status is 200"):
        ABORT.parse(answer("", 200))


def test_head() -> None:
    headers = {"etag": '"AB"', "x-oss-hash-crc64ecma": "5", "content-length": "102400"}
    assert HEAD.parse(Response(200, headers, b"")) == ObjectFacts("AB", 5, 102400, "")


def test_head_of_an_object_without_a_crc() -> None:
    assert HEAD.parse(answer("")) == ObjectFacts(None, None, None, "6A7D")


def test_the_answer_for_the_first_byte_has_the_size_of_the_whole() -> None:
    response = answer("x", 206, content_length="1", content_range="bytes 0-0/102400", etag='"A"')
    assert GET.parse(response).size == 102400
    assert GET.parse(answer("x", 206, content_range="bytes 0-0/*")).size is None
    assert GET.parse(answer("x", 200, content_length="1")).size == 1


_ODD = ["-1", "1_0", "+5", " ", "0x10", "٣", "1.0", "9" * 21, "9" * 5000, "nan"]


@pytest.mark.parametrize("odd", _ODD)
def test_odd_numbers_in_headers_are_no_numbers(odd: str) -> None:
    assert HEAD.parse(answer("", content_length=odd, x_oss_hash_crc64ecma=odd)) == ObjectFacts(
        None, None, None, "6A7D"
    )
    assert GET.parse(answer("", 206, content_range=f"bytes 0-0/{odd}")).size is None


@pytest.mark.parametrize("odd", [*_ODD, ""])
@pytest.mark.parametrize("tag", ["PartNumber", "Size"])
def test_odd_numbers_in_a_list_make_it_unusable(odd: str, tag: str) -> None:
    body = re.sub(rf"<{tag}>[0-9]+<", f"<{tag}>{odd}<", LISTED.format(""))
    with pytest.raises(TransportError, match="not usable"):
        LIST.parse(answer(body))


def test_an_odd_crc_or_marker_makes_a_list_unusable() -> None:
    for known in ("12066172435287683848", ">2<"):
        with pytest.raises(TransportError, match="not usable"):
            LIST.parse(answer(LISTED.format("").replace(known, ">x<" if ">" in known else "x")))


# --- stored bytes --------------------------------------------------------------------


@pytest.mark.parametrize("operation", [UPLOAD, PUT], ids=lambda operation: operation.name)
def test_stored_with_the_same_crc(operation: Operation[Any]) -> None:
    response = answer("", etag='"ab"', x_oss_hash_crc64ecma="77")
    assert operation.parse(response) == PartAnswer("ab", 77, "6A7D", SentBody(4, 77))


@pytest.mark.parametrize("operation", [UPLOAD, PUT], ids=lambda operation: operation.name)
def test_another_crc_is_other_bytes(operation: Operation[Any]) -> None:
    with pytest.raises(IntegrityError) as caught:
        operation.parse(answer("", etag='"ab"', x_oss_hash_crc64ecma="78"))
    assert caught.value.request_id == "6A7D"


@pytest.mark.parametrize("md5", ["AB", "ab"])
def test_without_a_crc_the_md5_is_compared(md5: str) -> None:
    stored = Response(200, {"etag": '"Ab"'}, b"", SentBody(4, 77, md5))
    assert UPLOAD.parse(stored) == PartAnswer("Ab", None, "", stored.sent)
    other = Response(200, {"etag": '"Ac"'}, b"", SentBody(4, 77, md5))
    with pytest.raises(IntegrityError):
        UPLOAD.parse(other)


def test_the_crc_counts_where_the_etag_is_no_md5() -> None:
    encrypted = Response(
        200, {"etag": '"KMS"', "x-oss-hash-crc64ecma": "77"}, b"", SentBody(4, 77, "AB")
    )
    assert UPLOAD.parse(encrypted).crc64 == 77


def test_without_crc_and_md5_nothing_is_compared() -> None:
    assert UPLOAD.parse(answer("", etag='"ab"')).crc64 is None


@pytest.mark.parametrize("size", [0, 3, 5])
@pytest.mark.parametrize("operation", [UPLOAD, PUT], ids=lambda operation: operation.name)
def test_a_success_that_came_early_is_none(operation: Operation[Any], size: int) -> None:
    headers = {"etag": '"ab"', "x-oss-hash-crc64ecma": "77"}
    with pytest.raises(TransportError, match="before the body was sent"):
        operation.parse(Response(200, headers, b"", SentBody(size, 77)))


@pytest.mark.parametrize("etag", ["", '""', " "])
def test_stored_without_an_etag_is_not_usable(etag: str) -> None:
    with pytest.raises(TransportError, match="no ETag"):
        UPLOAD.parse(answer("", etag=etag, x_oss_hash_crc64ecma="77"))


# --- refusals ------------------------------------------------------------------------


def error_body(code: str, *more: str, attributes: str = "") -> str:
    return f"""{XML}<Error{attributes}>
  <Code>{code}</Code>
  <Message>The reason for {code}.</Message>
  <RequestId>6A7D67BB6CC4843538EAEA6A</RequestId>
  <HostId>bkt.oss-cn-shanghai.aliyuncs.com</HostId>
  {"".join(more)}
  <EC>0002-00000007</EC>
  <RecommendDoc>https://api.aliyun.com/troubleshoot?q=0002-00000007</RecommendDoc>
</Error>"""


_ECHO = f"<SecurityToken>{TOKEN}</SecurityToken>"
REFUSALS = [
    (403, "SecurityTokenExpired", _ECHO),
    (403, "InvalidAccessKeyId", "<OSSAccessKeyId>STS.id4711</OSSAccessKeyId>"),
    (404, "NoSuchUpload", f"<UploadId>{UPLOAD_ID}</UploadId>"),
    (400, "InvalidArgument", "<ArgumentName>x</ArgumentName><ArgumentValue>y</ArgumentValue>"),
    (
        403,
        "RequestTimeTooSkewed",
        "<MaxAllowedSkewMilliseconds>900000</MaxAllowedSkewMilliseconds>"
        "<RequestTime>2022-09-04T07:11:37.000Z</RequestTime>"
        "<ServerTime>2022-09-04T08:11:37.000Z</ServerTime>",
    ),
    (
        403,
        "SignatureDoesNotMatch",
        "<SignatureProvided>abc</SignatureProvided><OSSAccessKeyId>STS.id4711</OSSAccessKeyId>"
        f"<StringToSign>PUT\nx-oss-security-token:{TOKEN}</StringToSign>"
        f"<StringToSignBytes>{TOKEN.encode().hex(' ')}</StringToSignBytes>{_ECHO}",
    ),
    (
        400,
        "EntityTooSmall",
        "<MinSizeAllowed>102400</MinSizeAllowed><ProposedSize>1</ProposedSize>"
        "<PartNumber>1</PartNumber><ETag>AB</ETag>",
    ),
    (409, "PartAlreadyExist", "<PartNumber>1</PartNumber><PartEtag>AB</PartEtag>"),
    (203, "CallbackFailed", ""),
    (503, "SlowDown", ""),
]


@pytest.mark.parametrize("attributes", ["", NAMESPACE])
@pytest.mark.parametrize(("status", "code", "more"), REFUSALS, ids=[r[1] for r in REFUSALS])
@pytest.mark.parametrize("operation", EVERY, ids=IDS)
def test_refusals_name_code_reason_and_request_and_nothing_more(
    operation: Operation[Any], status: int, code: str, more: str, attributes: str
) -> None:
    headers = {"date": "Sun, 22 Nov 2026 09:03:54 GMT", "retry-after": "7"}
    body = error_body(code, more, attributes=attributes).encode()
    with pytest.raises(ServiceError) as caught:
        operation.parse(Response(status, headers, body, SentBody(4, 77)))
    error = caught.value
    assert (error.status, error.code, error.ec) == (status, code, "0002-00000007")
    assert error.request_id == "6A7D67BB6CC4843538EAEA6A"
    assert error.server_epoch_s == AT.timestamp()
    assert error.retry_after_s == 7
    assert f"({status} {code}, request 6A7D67BB6CC4843538EAEA6A)" in error.message
    assert f"The reason for {code}." in error.message
    everything = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert "tOkEnCaNaRy" not in everything
    assert TOKEN.encode().hex(" ") not in everything


def test_the_headers_request_id_and_code_count_where_the_body_has_none() -> None:
    with pytest.raises(ServiceError) as caught:
        UPLOAD.parse(answer("<Error><Code>X</Code></Error>", 403, x_oss_ec="0003-1"))
    assert (caught.value.request_id, caught.value.ec) == ("6A7D", "0003-1")


def test_head_is_refused_in_a_header() -> None:
    packed = base64.b64encode(error_body("SecurityTokenExpired", _ECHO).encode()).decode()
    with pytest.raises(ServiceError) as caught:
        HEAD.parse(answer("", 403, x_oss_err=packed))
    assert (caught.value.code, caught.value.ec) == ("SecurityTokenExpired", "0002-00000007")
    assert "tOkEnCaNaRy" not in str(caught.value)


@pytest.mark.parametrize("packed", ["", "%%%", "AAAA", base64.b64encode(b"<Er").decode()])
def test_head_refused_without_a_readable_reason(packed: str) -> None:
    with pytest.raises(ServiceError) as caught:
        HEAD.parse(answer("", 403, x_oss_err=packed))
    assert (caught.value.status, caught.value.code) == (403, "")
    with pytest.raises(ServiceError) as caught:
        HEAD.parse(answer("", 404, x_oss_err=packed))
    assert caught.value.code == "NoSuchKey"


_PROXY = "<html><head><title>502 Bad Gateway</title></head><body>canary<hr>nginx</body></html>"


@pytest.mark.parametrize("body", [_PROXY, "", "\xff\xfe", "<Error><Code>X</Co", "{}", "<x/>"])
@pytest.mark.parametrize("operation", EVERY, ids=IDS)
def test_answers_of_others_are_refusals_without_a_code(
    operation: Operation[Any], body: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        operation.parse(answer(body.encode("latin-1"), 502))
    assert (caught.value.status, caught.value.code) == (502, "")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("operation", EVERY, ids=IDS)
def test_redirects_are_refused(operation: Operation[Any], status: int) -> None:
    with pytest.raises(ServiceError, match="never followed") as caught:
        operation.parse(answer("", status, location="https://evil.example/canary"))
    assert caught.value.code == "Redirected"
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("operation", [INITIATE, LIST, COMPLETE], ids=IDS[:3])
class TestSuccessesThatAreNone:
    def test_an_error_document(self, operation: Operation[Any]) -> None:
        with pytest.raises(ServiceError) as caught:
            operation.parse(answer(error_body("InternalError", _ECHO)))
        assert (caught.value.status, caught.value.code) == (200, "InternalError")
        assert "tOkEnCaNaRy" not in str(caught.value)

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "{}",
            _PROXY,
            "<Other/>",
            INITIATED.format("")[:150],
            LISTED.format("")[:-1],
            COMPLETED.format("")[:-20],
            "<!DOCTYPE x [<!ENTITY a 'b'>]>" + INITIATED.format("").removeprefix(XML),
        ],
    )
    def test_documents_of_another_kind(self, operation: Operation[Any], body: str) -> None:
        with pytest.raises(TransportError, match="not usable") as caught:
            operation.parse(answer(body))
        assert caught.value.is_sent
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("upload_id", ["", "<UploadId/>", "<UploadId>  </UploadId>"])
def test_initiated_without_an_upload_id(upload_id: str) -> None:
    body = f"<InitiateMultipartUploadResult>{upload_id}</InitiateMultipartUploadResult>"
    with pytest.raises(TransportError, match="no UploadId"):
        INITIATE.parse(answer(body))


@pytest.mark.parametrize(
    ("header", "body", "region"),
    [
        ("oss-cn-beijing", "", "cn-beijing"),
        ("cn-beijing", "<Region>cn-shenzhen</Region>", "cn-beijing"),
        ("", "<Region>us-west-1</Region>", "us-west-1"),
        ("", "", None),
        ("oss-cn-beijing/x", "", None),
        ("", "<Region>../../x</Region>", None),
    ],
)
def test_the_region_that_a_refusal_names(header: str, body: str, region: str | None) -> None:
    refused = Response(400, {"x-oss-bucket-region": header}, f"<Error>{body}</Error>".encode())
    with pytest.raises(ServiceError) as caught:
        UPLOAD.parse(refused)
    assert caught.value.oss_region == region


def test_hostile_texts_are_harmless_to_show() -> None:
    body = f"<Error><Code>A\x1b</Code><Message>{'x' * 5000}\n\u202e</Message></Error>"
    body = body.replace("\x1b", "&#155;")
    with pytest.raises(ServiceError) as caught:
        UPLOAD.parse(answer(body, 403))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


@given(
    st.sampled_from(EVERY),
    st.integers(100, 599),
    st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
    st.dictionaries(
        st.sampled_from(
            "etag x-oss-hash-crc64ecma content-length content-range x-oss-err date retry-after "
            "x-oss-request-id x-oss-ec".split()
        ),
        st.text(max_size=30),
    ),
)
def test_any_answer_is_a_value_or_one_of_our_errors(
    operation: Operation[Any], status: int, body: bytes, headers: dict[str, str]
) -> None:
    parse: Callable[[Response], object] = operation.parse
    try:
        parse(Response(status, headers, body, SentBody(4, 77)))
    except VodupError:
        assert status != 204 or operation is not ABORT
