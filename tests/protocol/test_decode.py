"""UploadAddress and UploadAuth in every form they are seen in, and in none else."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import pickle
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.errors import InvalidGrant
from uploader.protocol.decode import decode_answer, decode_grant, encode_answer
from uploader.protocol.grants import (
    StsCredentials,
    UploadGrant,
    UploadTarget,
    is_video_id,
    mask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Payload: TypeAlias = Any  # right or wrong: that is the question

VIDEO_ID = "c6a23a870c8c4ffcd40cbd3813311111"
SECRET = "Hw7fN4cAnArYsEcReT4711aBcDeFgHiJkLmNoPqRsTuV"
TOKEN = "CAIS" + "tOkEnCaNaRy4711+/=" * 50
ADDRESS: dict[str, Any] = {
    "Endpoint": "https://oss-cn-shanghai.aliyuncs.com",
    "Bucket": "outin-92fc3d2b8f5011e8a4a500163e1c35d5",
    "FileName": "sv/23867cb3-1739af2345b/23867cb3-1739af2345b.mp4",
}
AUTH: dict[str, Any] = {
    "SecurityToken": TOKEN,
    "AccessKeyId": "STS.NTzCanary4711abcdefghijkl",
    "AccessKeySecret": SECRET,
    "ExpireUTCTime": "2020-07-29T15:20:31Z",
    "Expiration": "3600",
    "Region": "cn-shanghai",
}


def b64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return base64.b64encode(data).decode()


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


GRANT = decode_grant(b64(ADDRESS), b64(AUTH), video_id=VIDEO_ID)


def _auth(**fields: object) -> StsCredentials:
    return decode_grant(b64(ADDRESS), b64(AUTH | fields)).credentials


# --- the pair -------------------------------------------------------------------------


def test_every_field_is_read() -> None:
    assert GRANT.video_id == VIDEO_ID
    assert GRANT.target.endpoint == "https://oss-cn-shanghai.aliyuncs.com"
    assert GRANT.target.bucket == ADDRESS["Bucket"]
    assert GRANT.target.object_key == ADDRESS["FileName"]
    assert GRANT.target.object_prefix is None
    credentials = GRANT.credentials
    assert credentials.access_key_id == AUTH["AccessKeyId"]
    assert credentials.access_key_secret == SECRET
    assert credentials.security_token == TOKEN
    assert credentials.expires_at == datetime(2020, 7, 29, 15, 20, 31, tzinfo=UTC)
    assert credentials.life_s == 3600
    assert credentials.region == "cn-shanghai"
    assert not GRANT.was_swapped


@pytest.mark.parametrize(
    ("address", "auth"),
    [
        (ADDRESS, AUTH),
        (json.dumps(ADDRESS), json.dumps(AUTH, indent=2)),
        (b64(ADDRESS).encode(), b64(AUTH).encode()),
        (b64(ADDRESS).rstrip("="), b64(AUTH).rstrip("=")),
        (f"  {b64(ADDRESS)}\n", base64.encodebytes(json.dumps(AUTH).encode())),
        (b64(json.dumps(ADDRESS, indent=1).encode()), b64(json.dumps(AUTH).encode() + b"\r\n")),
        (b64({**ADDRESS, "New": {"a": [1]}}), b64({**AUTH, "Other": None})),
        ({k[0].lower() + k[1:]: v for k, v in ADDRESS.items()}, b64(AUTH)),
        ({"endpoint": ADDRESS["Endpoint"], "bucket": ADDRESS["Bucket"],
          "file_name": ADDRESS["FileName"]}, b64(AUTH)),
    ],
)  # fmt: skip
def test_tolerated_variants_mean_the_same(address: Payload, auth: Payload) -> None:
    assert decode_grant(address, auth, video_id=VIDEO_ID) == GRANT


def test_line_breaks_inside_strings_are_dropped() -> None:
    broken = json.dumps(AUTH).replace(TOKEN, f"{TOKEN[:60]}\r\n{TOKEN[60:]}").encode()
    assert decode_grant(b64(ADDRESS), b64(broken)).credentials.security_token == TOKEN


def test_the_url_safe_alphabet_is_read_when_used_throughout() -> None:
    address = {**ADDRESS, "FileName": "视频>>>???~~~.mp4"}
    safe = base64.urlsafe_b64encode(json.dumps(address, ensure_ascii=False).encode())
    assert b"-" in safe or b"_" in safe
    assert decode_grant(safe, b64(AUTH)).target.object_key == "视频>>>???~~~.mp4"


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1))
def test_any_printable_key_survives_the_way(key: str) -> None:
    assert decode_grant(b64({**ADDRESS, "FileName": key}), AUTH).target.object_key == key


def test_a_swapped_pair_is_recognised() -> None:
    swapped = decode_grant(b64(AUTH), b64(ADDRESS), video_id=VIDEO_ID)
    assert swapped.was_swapped
    assert (swapped.target, swapped.credentials) == (GRANT.target, GRANT.credentials)


@pytest.mark.parametrize(
    "endpoint", ["oss-cn-shanghai.aliyuncs.com", "https://oss-cn-shanghai.aliyuncs.com/"]
)
def test_an_endpoint_gets_its_scheme_and_loses_its_slash(endpoint: str) -> None:
    grant = decode_grant({**ADDRESS, "Endpoint": endpoint}, AUTH)
    assert grant.target.endpoint == "https://oss-cn-shanghai.aliyuncs.com"


def test_the_prefix_for_hls_is_kept() -> None:
    assert decode_grant({**ADDRESS, "ObjectPrefix": "sv/a/"}, AUTH).target.object_prefix == "sv/a/"


# --- expiry ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "2020-07-29T15:20:31Z",
        "2020-07-29t15:20:31z",
        "2020-07-29 15:20:31",
        "2020-07-29T15:20:31.000Z",
        "2020-07-29T15:20:31.000000000Z",
        "2020-07-29T23:20:31+08:00",
        "2020-07-29T23:20:31+0800",
        "2020-07-29T15:20:31",
        " 2020-07-29T15:20:31Z ",
    ],
)
def test_an_instant_is_read_as_utc(text: str) -> None:
    expires_at = _auth(ExpireUTCTime=text).expires_at
    assert expires_at == datetime(2020, 7, 29, 15, 20, 31, tzinfo=UTC)
    assert expires_at is not None
    assert expires_at.utcoffset() is not None


def test_an_instant_without_an_offset_does_not_follow_the_local_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "XXX-8")
    time.tzset()
    try:
        expires_at = _auth(ExpireUTCTime="2020-07-29T15:20:31").expires_at
    finally:
        monkeypatch.undo()
        time.tzset()
    assert expires_at == datetime(2020, 7, 29, 15, 20, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", None, "soon", "2020-07-29", "2020-13-01T00:00:00Z", "2020-07-29T15:20:31+99:99",
     "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "٢٠٢٠-07-29T15:20:31Z", "3600"],
)  # fmt: skip
def test_an_unreadable_instant_is_no_hint(text: str | None) -> None:
    assert _auth(ExpireUTCTime=text).expires_at is None


def test_a_date_in_expiration_counts_where_expireutctime_is_absent() -> None:
    auth = without(AUTH, "ExpireUTCTime") | {"Expiration": "2020-07-29T15:20:31Z"}
    credentials = decode_grant(ADDRESS, auth).credentials
    assert credentials.expires_at == datetime(2020, 7, 29, 15, 20, 31, tzinfo=UTC)
    assert credentials.life_s is None


@pytest.mark.parametrize(
    ("value", "life_s"),
    [
        ("3600", 3600),
        (3600, 3600),
        (3600.5, 3600.5),
        ("3000.0", 3000),
        (" 900 ", 900),
        ("86400", 86400),
        ("86401", None),
        ("1596036031", None),
        (1596036031, None),
        (10**300, None),
        ("0", None),
        (0, None),
        ("-1", None),
        (-1, None),
        ("1e3", None),
        ("٣٦٠٠", None),
        ("", None),
        (None, None),
        ("soon", None),
        ("9" * 500, None),
    ],
)
def test_a_lifetime_is_read_if_it_can_be_one(value: object, life_s: float | None) -> None:
    assert _auth(Expiration=value).life_s == life_s


# --- refusals -------------------------------------------------------------------------

BAD_PAYLOADS = [
    ("", "empty"),
    ("   \n", "empty"),
    ("not base64!", "not base64"),
    ("%7B%7D", "not base64"),
    ('"' + b64(ADDRESS) + '"', "not base64"),
    (b64(ADDRESS)[:-3] + "=a=", "not base64"),
    (b64(ADDRESS) + "===", "not base64"),
    (b64(ADDRESS)[:5], "not base64"),
    (b64(ADDRESS)[:40], "JSON"),
    (b64(ADDRESS)[:8] + "\x00" + b64(ADDRESS)[8:], "not base64"),
    (b64(ADDRESS)[:8] + "é" + b64(ADDRESS)[8:], "not base64"),
    ("\ud800", "not base64"),
    ("+-" + b64(ADDRESS), "mixes"),
    ("A" * 20_000, "longer"),
    ("{" + " " * 70_000, "longer"),
    (b64(b"<html></html>"), "JSON"),
    (b64(b"[]"), "JSON object"),
    (b64(b"null"), "JSON object"),
    (b64(b'{"a":1,"a":2}'), "twice"),
    (b64(b'{"Bucket":"a","bucket":"b"}'), "twice"),
    (b64(b'\xef\xbb\xbf{"Bucket":"a"}'), "byte order mark"),
    (b64(b'{"Bucket":"\xff"}'), "UTF-8"),
    (b64(b'{"Bucket":"\\ud800"}'), "surrogate"),
    (b64(b'{"Bucket":NaN}'), "NaN"),
    (b64(b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}"), "nested"),
    (b64({}), "has no Endpoint"),
    (b64(without(ADDRESS, "Endpoint")), "has no Endpoint"),
    (b64(without(ADDRESS, "Bucket")), "has no Bucket"),
    (b64(without(ADDRESS, "FileName")), "has no FileName"),
    (b64({**ADDRESS, "Bucket": ""}), "has no Bucket"),
    (b64({**ADDRESS, "Bucket": None}), "has no Bucket"),
    (b64({**ADDRESS, "Bucket": 5}), "not text"),
    (b64({**ADDRESS, "Bucket": ["a"]}), "not text"),
    (b64({**ADDRESS, "FileName": {"a": 1}}), "not text"),
    (b64({**ADDRESS, "FileName": "a\u0000b"}), "control"),
    (b64({**ADDRESS, "FileName": "a\u007fb"}), "control"),
    (b64({**ADDRESS, "FileName": "a" * 9000}), "longer"),
    (b64({**ADDRESS, "ObjectPrefix": 1}), "not text"),
    (b64(AUTH), "both an UploadAuth"),
    (5, "neither text"),
    (None, "neither text"),
    (["a"], "neither text"),
]


@pytest.mark.parametrize(("address", "why"), BAD_PAYLOADS)
def test_a_bad_address_is_refused_with_a_reason(address: Payload, why: str) -> None:
    with pytest.raises(InvalidGrant, match=why) as caught:
        decode_grant(address, b64(AUTH))
    assert "UploadAddress" in caught.value.message
    assert caught.value.next_step.startswith("Pass ")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (without(AUTH, "SecurityToken"), "has no SecurityToken"),
        (without(AUTH, "AccessKeyId"), "has no AccessKeyId"),
        (without(AUTH, "AccessKeySecret"), "has no AccessKeySecret"),
        ({**AUTH, "SecurityToken": ""}, "has no SecurityToken"),
        ({**AUTH, "SecurityToken": 1}, "not text"),
        ({**AUTH, "SecurityToken": "a b"}, "characters"),
        ({**AUTH, "SecurityToken": "a\r\nHost: evil\t"}, "characters|control"),
        ({**AUTH, "AccessKeyId": "STS.é"}, "characters"),
        ({**AUTH, "ExpireUTCTime": 5}, "not text"),
        ({**AUTH, "ExpireUTCTime": ["a"]}, "not text"),
        ({**AUTH, "Expiration": True}, "not text"),
        ({**AUTH, "Expiration": {}}, "not text"),
        ({**AUTH, "Region": "evil.com/"}, "region"),
        ({**AUTH, "Region": "cn-" + "a" * 40}, "region"),
        ({**AUTH, "Region": 5}, "not text"),
        (ADDRESS, "both an UploadAddress"),
    ],
)
def test_a_bad_auth_is_refused_with_a_reason(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidGrant, match=why) as caught:
        decode_grant(b64(ADDRESS), b64(fields))
    assert "UploadAuth" in caught.value.message


def test_a_line_break_in_a_mapping_is_refused() -> None:
    # Only text had its line breaks removed; a mapping is taken at its word.
    with pytest.raises(InvalidGrant, match="control"):
        decode_grant(ADDRESS, {**AUTH, "SecurityToken": "a\r\nHost: evil"})


@pytest.mark.parametrize("video_id", ["", "a b", "a/b", "a\n", "é", "a" * 65, "../a"])
def test_a_video_id_has_its_form(video_id: str) -> None:
    assert not is_video_id(video_id)
    with pytest.raises(InvalidGrant, match="VideoId"):
        decode_grant(ADDRESS, AUTH, video_id=video_id)


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


@pytest.mark.parametrize(
    "auth",
    [
        f"{{{SECRET}",
        f"{SECRET}!",
        json.dumps({**AUTH, "SecurityToken": f"{SECRET} {SECRET}"}),
        json.dumps({**AUTH, "Region": SECRET}),
        b64(json.dumps(AUTH).encode()[:-1] + b"\xff}"),
        f"{SECRET}\ud800",
    ],
)
def test_no_refusal_carries_a_value(auth: str) -> None:
    with pytest.raises(InvalidGrant) as caught:
        decode_grant(ADDRESS, auth)
    for link in _chain(caught.value):
        held = f"{link!r} {vars(link)} {getattr(link, 'object', '')} {getattr(link, 'doc', '')}"
        assert "4711" not in held


# --- to the last character ---------------------------------------------------------------


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_a_text_may_have_64_kib(size: int) -> None:
    text = json.dumps(ADDRESS)
    text = text + " " * (size - len(text))
    if size > 65_536:
        with pytest.raises(InvalidGrant):
            decode_grant(text, AUTH)
    else:
        assert decode_grant(text, AUTH).target == GRANT.target


@pytest.mark.parametrize("size", [12_285, 12_288, 12_291])
def test_base64_may_have_16_kib(size: int) -> None:
    text = json.dumps(ADDRESS).encode()
    packed = base64.b64encode(text + b" " * (size - len(text)))
    if len(packed) > 16_384:
        with pytest.raises(InvalidGrant):
            decode_grant(packed, AUTH)
    else:
        assert decode_grant(packed, AUTH).target == GRANT.target


@pytest.mark.parametrize("size", [8_191, 8_192, 8_193])
def test_a_field_may_have_8_kib(size: int) -> None:
    address = {**ADDRESS, "FileName": "a" * size}
    if size > 8_192:
        with pytest.raises(InvalidGrant):
            decode_grant(address, AUTH)
    else:
        assert len(decode_grant(address, AUTH).target.object_key) == size


@pytest.mark.parametrize("length", [31, 32, 33, 34])
def test_a_region_may_have_32_characters(length: int) -> None:
    auth = {**AUTH, "Region": "a" * length}
    if length > 32:
        with pytest.raises(InvalidGrant):
            decode_grant(ADDRESS, auth)
    else:
        assert decode_grant(ADDRESS, auth).credentials.region == "a" * length


def test_every_letter_of_a_key_survives_the_dropping_of_line_breaks() -> None:
    address = {**ADDRESS, "FileName": "sv/XrXnX\\r\\n.mp4"}
    assert decode_grant(b64(address), AUTH).target.object_key == "sv/XrXnX\\r\\n.mp4"


@pytest.mark.parametrize(
    ("value", "life_s"), [("0.5", 0.5), (1, 1.0), (86_400, 86_400.0), ("86400", 86_400.0)]
)
def test_a_life_may_be_half_a_second_or_a_day(value: object, life_s: float) -> None:
    assert _auth(Expiration=value).life_s == life_s


def test_an_instant_is_in_utc_itself_and_not_just_equal() -> None:
    assert _auth(ExpireUTCTime="2020-07-29T23:20:31+08:00").expires_at == datetime(
        2020, 7, 29, 15, 20, 31, tzinfo=UTC
    )
    expires_at = _auth(ExpireUTCTime="2020-07-29T23:20:31+08:00").expires_at
    assert expires_at is not None
    assert expires_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("value", "request_id"),
    [("A" * 100, "A" * 100), ("A" * 101, "A" * 99 + "…"), (7, ""), (None, "")],
)
def test_a_request_id_is_text_of_at_most_100_characters(value: object, request_id: str) -> None:
    fields = {"UploadAddress": b64(ADDRESS), "UploadAuth": b64(AUTH), "RequestId": value}
    assert decode_answer(fields).request_id == request_id


def test_an_empty_element_is_an_empty_field() -> None:
    parts = f"<UploadAddress>{b64(ADDRESS)}</UploadAddress><UploadAuth>{b64(AUTH)}</UploadAuth>"
    assert decode_answer(f"<R>{parts}<RequestId/></R>").request_id == ""


# --- whole answers --------------------------------------------------------------------

ANSWER = {
    "RequestId": "25818875-5F78-4AF6-D7393642CA58",
    "VideoId": VIDEO_ID,
    "UploadAddress": b64(ADDRESS),
    "UploadAuth": b64(AUTH),
}
XML = "".join(f"<{name}>{value}</{name}>" for name, value in ANSWER.items())


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        json.dumps(ANSWER),
        json.dumps(ANSWER, indent=4).encode() + b"\n",
        {"CreateUploadVideoResponse": ANSWER},
        json.dumps({"RefreshUploadVideoResponse": ANSWER}),
        {"statusCode": 200, "headers": {"a": "b"}, "body": ANSWER},
        {"code": "0", "data": ANSWER},
        {"requestId": ANSWER["RequestId"], "videoId": VIDEO_ID,
         "uploadAddress": ANSWER["UploadAddress"], "uploadAuth": ANSWER["UploadAuth"]},
        {"request_id": ANSWER["RequestId"], "video_id": VIDEO_ID,
         "upload_address": ANSWER["UploadAddress"], "upload_auth": AUTH},
        {**ANSWER, "UploadAddress": ADDRESS, "UploadAuth": AUTH},
        f"<RefreshUploadVideoResponse>\n  {XML}</RefreshUploadVideoResponse>",
        f'<?xml version="1.0" encoding="UTF-8"?><R xmlns="urn:x">{XML}</R>'.encode(),
    ],
)  # fmt: skip
def test_an_answer_is_read_in_every_wrapping(answer: Payload) -> None:
    grant = decode_answer(answer)
    assert grant.request_id == ANSWER["RequestId"]
    assert grant == UploadGrant(VIDEO_ID, GRANT.target, GRANT.credentials, grant.request_id)


def test_an_answer_without_a_video_id_is_fine() -> None:
    assert decode_answer(without(ANSWER, "VideoId")).video_id is None


def test_a_swapped_answer_is_recognised() -> None:
    swapped = {"UploadAddress": b64(AUTH), "UploadAuth": b64(ADDRESS)}
    assert decode_answer(swapped).was_swapped


@pytest.mark.parametrize(
    "answer",
    [
        {"Code": "InvalidVideo.NotFound", "Message": "secret-4711", "RequestId": "R-1"},
        '{"Code":"InvalidVideo.NotFound","Message":"secret-4711","RequestId":"R-1"}',
        {"Error": {"Code": "InvalidVideo.NotFound", "RequestId": "R-1"}},
        "<Error><Code>InvalidVideo.NotFound</Code><RequestId>R-1</RequestId></Error>",
    ],
)
def test_an_error_answer_is_named_by_its_code(answer: Payload) -> None:
    with pytest.raises(InvalidGrant) as caught:
        decode_answer(answer)
    assert "InvalidVideo.NotFound" in caught.value.message
    assert "R-1" in caught.value.message
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "JSON"),
        ("null", "JSON"),
        ("[]", "JSON"),
        ("{", "JSON"),
        ({}, "no UploadAddress"),
        ({"VideoId": VIDEO_ID}, "no UploadAddress"),
        (without(ANSWER, "UploadAuth"), "no UploadAuth"),
        ({**ANSWER, "UploadAuth": ""}, "no UploadAuth"),
        ({**ANSWER, "UploadAuth": 5}, "neither text"),
        ({**ANSWER, "VideoId": 5}, "not text"),
        ({**ANSWER, "VideoId": "../x"}, "VideoId"),
        ({**ANSWER, "upload_auth": "x"}, "twice"),
        ({"a": ANSWER, "b": ANSWER}, "no UploadAddress"),
        ({"Code": "\x1b[2J"}, "unreadable"),
        ("<html><body>Sign in</body></html>", "web page"),
        ("<!DOCTYPE html>\n<html></html>", "web page"),
        ("<R><UploadAuth>a</UploadAuth><UploadAuth>b</UploadAuth></R>", "twice"),
        ("<R><UploadAuth>", "XML"),
        ('<!DOCTYPE R [<!ENTITY a "b">]><R>&a;</R>', "DOCTYPE"),
        (5, "neither text"),
        (None, "neither text"),
    ],
)
def test_a_bad_answer_is_refused_with_a_reason(answer: Payload, why: str) -> None:
    with pytest.raises(InvalidGrant, match=why):
        decode_answer(answer)


# --- secrets --------------------------------------------------------------------------


def test_credentials_show_nothing() -> None:
    shown = f"{GRANT} {GRANT!r} {GRANT.credentials} {GRANT.credentials:}"
    assert "StsCredentials(***)" in shown
    assert "4711" not in shown


@pytest.mark.parametrize("write_down", [pickle.dumps, copy.copy, copy.deepcopy])
def test_credentials_are_not_copied_or_pickled(write_down: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="never written down"):
        write_down(GRANT.credentials)
    with pytest.raises(TypeError, match="never written down"):
        pickle.dumps(GRANT)


def test_a_masked_grant_shows_everything_but_secrets() -> None:
    assert mask(GRANT) == {
        "video_id": VIDEO_ID,
        "endpoint": "https://oss-cn-shanghai.aliyuncs.com",
        "bucket": ADDRESS["Bucket"],
        "object_key": ADDRESS["FileName"],
        "object_prefix": None,
        "access_key_id": "STS.NTz…",
        "expires_at": "2020-07-29T15:20:31+00:00",
        "life_s": 3600.0,
        "region": "cn-shanghai",
        "request_id": "",
        "was_swapped": False,
    }


def test_a_grant_without_an_end_is_masked_without_one() -> None:
    assert mask(decode_grant(ADDRESS, without(AUTH, "ExpireUTCTime")))["expires_at"] is None


@pytest.mark.parametrize(
    ("length", "shown"), [(15, "…"), (16, "STS.aaa…"), (17, "STS.aaa…"), (28, "STS.aaa…")]
)
def test_only_a_long_access_key_id_shows_its_beginning(length: int, shown: str) -> None:
    auth = {**AUTH, "AccessKeyId": "STS." + "a" * (length - 4)}
    assert mask(decode_grant(ADDRESS, auth))["access_key_id"] == shown


def test_a_short_access_key_id_is_masked_as_a_whole() -> None:
    assert mask(decode_grant(ADDRESS, {**AUTH, "AccessKeyId": "shortone"}))["access_key_id"] == "…"


# --- fuzz -----------------------------------------------------------------------------

_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ADDRESS, *AUTH, *ANSWER, "Code", "x", "X"]), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=500)
@given(_JUNK, _JUNK)
def test_grant_fuzz_ends_in_a_grant_or_a_refusal(address: Payload, auth: Payload) -> None:
    for one, other in ((address, auth), (address, AUTH), (ADDRESS, auth)):
        with contextlib.suppress(InvalidGrant):
            assert isinstance(decode_grant(one, other), UploadGrant)
    with contextlib.suppress(InvalidGrant):
        assert isinstance(decode_answer(address), UploadGrant)


@settings(max_examples=400)
@given(st.data())
def test_damaged_text_ends_in_a_grant_or_a_refusal(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([b64(AUTH), json.dumps(ANSWER), f"<R>{XML}</R>"])).encode()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.binary(max_size=3)) + text[at + 1 :]
    for decode in (lambda: decode_grant(ADDRESS, damaged), lambda: decode_answer(damaged)):
        with contextlib.suppress(InvalidGrant):
            assert isinstance(decode(), UploadGrant)


@given(
    life_s=st.none() | st.integers(1, 86_400).map(float),
    prefix=st.none() | st.just("sv/a/"),
    region=st.none() | st.just("cn-shanghai"),
    expires_at=st.none() | st.datetimes(datetime(2026, 1, 1), datetime(2040, 1, 1)),
)
def test_what_an_app_server_encodes_is_decoded_to_the_same(
    life_s: float | None, prefix: str | None, region: str | None, expires_at: datetime | None
) -> None:
    at = expires_at and expires_at.replace(microsecond=0, tzinfo=UTC)
    target = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-a", "sv/a/a.mp4", prefix)
    credentials = StsCredentials("STS.id", "secret", "token", at, life_s, region)
    grant = UploadGrant("a" * 32, target, credentials, "REQUEST")
    assert decode_answer(encode_answer(grant)) == grant


@pytest.mark.parametrize("kind", ["text", "mapping"])
def test_no_variable_of_a_failed_decoding_is_kept(kind: str) -> None:
    """Error reporters send the variables of every frame an error came through."""
    auth = {"AccessKeyId": "STS.x", "AccessKeySecret": "top-secret", "SecurityToken": 7}
    given = base64.b64encode(json.dumps(auth).encode()).decode() if kind == "text" else auth
    with pytest.raises(InvalidGrant) as caught:
        decode_grant({"Endpoint": "https://oss-cn-shanghai.aliyuncs.com"}, given)

    error = caught.value
    frame = error.__traceback__ and error.__traceback__.tb_next
    seen = []
    while frame is not None:
        seen.append(repr(frame.tb_frame.f_locals))
        frame = frame.tb_next
    assert seen
    assert "top-secret" not in "".join(seen)
    assert str(given) not in "".join(seen)
    assert error.__cause__ is error.__context__ is None
