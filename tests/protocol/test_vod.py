"""Calls of VOD's API: signed as documented, and answers in every shape they come in."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import InvalidGrant, ServiceError, TransportError, VodupError
from uploader.protocol.vod import (
    AccessKey,
    VideoFacts,
    VideoMeta,
    create_upload_video,
    get_mezzanine_info,
    problem_of,
    refresh_upload_video,
    refuses_name,
)
from uploader.protocol.wire import Operation, Response

ENDPOINT = "https://vod.cn-shanghai.aliyuncs.com"
VIDEO_ID = "c6a23a870c8c4ffcd40cbd3813311111"
KEY = AccessKey(id="testAccessKeyId", secret="testAccessKeySecret")
STS_KEY = replace(KEY, security_token="CAIStOkEn4711+/=")
AT = datetime(2026, 11, 22, 9, 3, 54, tzinfo=UTC)
HOSTILE = "a b+c&d=e?f#g%h/中文 é~!*'() 😀"
FULL = VideoMeta(
    title=HOSTILE,
    file_name="b.mov",
    description="d",
    cover_url="https://h/c.png",
    cate_id=0,
    tags=("x", "y"),
    template_group_id="t",
    workflow_id="w",
    storage_location="bkt.oss-cn-shanghai.aliyuncs.com",
    app_id="app-1000000",
    reference_id="mine-01",
    user_data='{"Extend": {"a": "b"}}',
    enable_first_frame_cover=True,
    generate_thumbnail=False,
    extra={"NewParameter": "x y"},
)


def create(meta: VideoMeta = FULL) -> Operation[Any]:
    return create_upload_video(
        ENDPOINT, meta, file_name="a.mp4", file_size=9, reference_id="vodup-1"
    )


REFRESH = refresh_upload_video(ENDPOINT, video_id=VIDEO_ID)
FACTS = get_mezzanine_info(ENDPOINT, VIDEO_ID)
EVERY = [create(), REFRESH, FACTS]
IDS = [operation.name for operation in EVERY]


def own_params(operation: Operation[Any]) -> dict[str, str]:
    """The parameters of the call, without those that every call has."""
    system = {"Action", "Version", "Format"}
    return {k: value for k, value in operation.request.params.items() if k not in system}


# --- parameters ----------------------------------------------------------------------


def test_create_sends_all_fields() -> None:
    operation = create()
    assert operation.request.params == {
        "Action": "CreateUploadVideo",
        "Version": "2017-03-21",
        "Format": "JSON",
        "Title": HOSTILE,
        "FileName": "b.mov",
        "FileSize": "9",
        "Description": "d",
        "CoverURL": "https://h/c.png",
        "CateId": "0",
        "Tags": "x,y",
        "TemplateGroupId": "t",
        "WorkflowId": "w",
        "StorageLocation": "bkt.oss-cn-shanghai.aliyuncs.com",
        "AppId": "app-1000000",
        "ReferenceId": "mine-01",
        "UserData": '{"Extend": {"a": "b"}}',
        "EnableFirstFrameCover": "true",
        "GenerateThumbnail": "false",
        "NewParameter": "x y",
    }
    assert not operation.is_repeatable


def test_create_sends_no_empty_fields() -> None:
    assert own_params(create(VideoMeta())) == {
        "Title": "a.mp4",
        "FileName": "a.mp4",
        "FileSize": "9",
        "ReferenceId": "vodup-1",
    }


def test_the_other_calls_may_be_repeated() -> None:
    requests = [(op.name, op.is_repeatable, own_params(op)) for op in EVERY[1:]]
    assert requests == [
        ("RefreshUploadVideo", True, {"VideoId": VIDEO_ID}),
        ("GetMezzanineInfo", True, {"VideoId": VIDEO_ID, "OutputType": "oss"}),
    ]
    by_reference = refresh_upload_video(ENDPOINT, reference_id="vodup-1")
    assert own_params(by_reference) == {"ReferenceId": "vodup-1"}


def test_meta_as_text_leaves_out_empty_fields() -> None:
    assert VideoMeta().to_text() == "{}"
    assert json.loads(VideoMeta(title="é", tags=("x",), cate_id=0).to_text()) == {
        "title": "é",
        "tags": ["x"],
        "cate_id": 0,
    }


def test_meta_is_read_back_as_it_was_written() -> None:
    for meta in (FULL, VideoMeta()):
        assert VideoMeta.from_text(meta.to_text()) == meta


@pytest.mark.parametrize(
    "name",
    ["Action", "action", "Title", "ReferenceId", "SignatureNonce", "AccessKeyId", "FileInfo",
     "", "a b", "a&b", "a=b", "1a", "é", "A..B", "A\n"],
)  # fmt: skip
def test_further_parameters_do_not_replace_those_of_vodup(name: str) -> None:
    problem = problem_of(VideoMeta(extra={name: "x"}))
    assert problem is not None
    assert problem.startswith("extra: ")
    assert problem.isprintable()


def test_further_parameters_have_names_as_the_api_has_them() -> None:
    assert problem_of(VideoMeta(extra={"NewParameter": "x", "List.1.Name2": "é"})) is None
    assert problem_of(VideoMeta(extra={"NewParameter": "\0"})) is not None


# --- what VOD accepts ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.b.MOV", ".ts", "film.aiff"])
def test_names_with_a_known_extension_are_accepted(name: str) -> None:
    assert not refuses_name(name)


@pytest.mark.parametrize("name", ["mp4", "a.mp4.", "a.txt", ""])
def test_names_without_one_are_refused(name: str) -> None:
    assert refuses_name(name)


@pytest.mark.parametrize(
    "meta",
    [
        VideoMeta(),
        VideoMeta(title="x" * 128, description="y" * 1024, tags=("t" * 32,) * 16),
        VideoMeta(reference_id="a-_4Z6", cate_id=0, user_data='{"a": 1}', cover_url="u" * 2048),
    ],
)
def test_descriptions_within_the_limits_are_accepted(meta: VideoMeta) -> None:
    assert problem_of(meta) is None


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        (VideoMeta(title="x" * 129), "title has 129 characters, VOD accepts 128"),
        (VideoMeta(description="x" * 1025), "description has 1,025 characters, VOD accepts 1,024"),
        (VideoMeta(cover_url="x" * 2049), "cover_url has 2,049 characters, VOD accepts 2,048"),
        (VideoMeta(title="a😀"), "title has characters VOD refuses (emoji)"),
        (VideoMeta(app_id="\x07"), "app_id has control characters or is not UTF-8 text"),
        (
            VideoMeta(file_name="\udcff.mp4"),
            "file_name has control characters or is not UTF-8 text",
        ),
        (VideoMeta(tags=("a", "\x7f")), "tags has control characters or is not UTF-8 text"),
        (
            VideoMeta(user_data='{"a": "\udcff"}'),
            "user_data has control characters or is not UTF-8 text",
        ),
        (VideoMeta(tags=("t",) * 17), "there are 17 tags, VOD accepts 16"),
        (VideoMeta(tags=("t" * 33,)), "a tag has 33 characters, VOD accepts 32"),
        (
            VideoMeta(tags=("a", "b,c")),
            "a tag has characters VOD refuses (commas, emoji)",
        ),
        (VideoMeta(reference_id="short"), "reference_id must be 6 to 64 letters, digits, _ or -"),
        (VideoMeta(cate_id=-1), "cate_id must not be negative"),
        (VideoMeta(user_data="[]"), "user_data must be a JSON object"),
        (VideoMeta(user_data="{"), "user_data must be a JSON object"),
    ],
)
def test_descriptions_that_vod_would_refuse_are_recognised(meta: VideoMeta, problem: str) -> None:
    assert problem_of(meta) == problem


# --- answers -------------------------------------------------------------------------


def packed(fields: Mapping[str, str]) -> str:
    return base64.b64encode(json.dumps(fields).encode()).decode()


ADDRESS = packed(
    {"Endpoint": "https://oss-cn-shanghai.aliyuncs.com", "Bucket": "bkt", "FileName": "sv/a.mp4"}
)
AUTH = packed(
    {"AccessKeyId": "STS.id", "AccessKeySecret": "canary", "SecurityToken": "canary"}
    | {"ExpireUTCTime": "2026-11-22T10:03:54Z", "Expiration": "3600", "Region": "cn-shanghai"}
)
GRANT = {
    "RequestId": "8906582E",
    "VideoId": VIDEO_ID,
    "UploadAddress": ADDRESS,
    "UploadAuth": AUTH,
}


def as_xml(root: str, fields: Mapping[str, str]) -> bytes:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><{root}>{inner}</{root}>'.encode()


def answer(body: object, status: int = 200, **headers: str) -> Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


@pytest.mark.parametrize("operation", EVERY[:2], ids=IDS[:2])
@pytest.mark.parametrize("body", [GRANT, as_xml("CreateUploadVideoResponse", GRANT)])
def test_a_grant_is_read_from_json_and_xml(operation: Operation[Any], body: object) -> None:
    grant = operation.parse(answer(body))
    assert (grant.video_id, grant.request_id) == (VIDEO_ID, "8906582E")
    assert (grant.target.bucket, grant.target.object_key) == ("bkt", "sv/a.mp4")
    assert grant.credentials.life_s == 3600


PORTAL = b"<!doctype html><html><body>canary: please log in</body></html>"


@pytest.mark.parametrize("operation", EVERY, ids=IDS)
@pytest.mark.parametrize(
    "body", [PORTAL, b"<html><body>canary</body></html>", b"", b"{", b"[]", b"{}", b"\xff"]
)
def test_an_answer_that_is_not_vods_leaves_the_outcome_open(
    operation: Operation[Any], body: bytes
) -> None:
    with pytest.raises(TransportError, match=f"{operation.name} is not usable") as caught:
        operation.parse(answer(body))
    assert caught.value.is_sent
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_an_answer_without_an_auth_is_not_usable() -> None:
    for name in ("UploadAddress", "UploadAuth"):
        body = {key: value for key, value in GRANT.items() if key != name}
        with pytest.raises(InvalidGrant, match=name):
            REFRESH.parse(answer(body))


@pytest.mark.parametrize("operation", EVERY[:2], ids=IDS[:2])
@pytest.mark.parametrize(
    "body",
    [
        json.dumps(GRANT).replace("{", '{"RequestId": "", ', 1).encode(),
        GRANT | {"UploadAddress": "canary"},
        GRANT | {"VideoId": "a\nb"},
    ],
    ids=["repeated key", "not base64", "control character"],
)
def test_a_grant_of_vod_that_cannot_be_used_is_no_passing_trouble(
    operation: Operation[Any], body: object
) -> None:
    with pytest.raises(InvalidGrant, match=f"The answer to {operation.name} cannot be") as caught:
        operation.parse(answer(body))
    assert "canary" not in "".join(traceback.format_exception(caught.value))


# --- what VOD knows of a video -------------------------------------------------------


def mezzanine(**fields: object) -> Response:
    return answer({"RequestId": "8906582E", "Mezzanine": fields})


def test_facts_are_read() -> None:
    url = "https://bkt.oss-cn-shanghai.aliyuncs.com/sv/a.mp4?Signature=canary"
    facts = FACTS.parse(mezzanine(Status="Normal", Size=102400, FileURL=url, Duration="1.5"))
    assert facts == VideoFacts("Normal", 102400, url)
    assert "canary" not in repr(facts)


def test_facts_are_read_from_xml() -> None:
    body = as_xml(
        "GetMezzanineInfoResponse",
        {"Mezzanine": "<Status>Uploading</Status><Size>0</Size><FileURL/>"},
    )
    assert FACTS.parse(answer(body)) == VideoFacts("Uploading", 0, None)


@pytest.mark.parametrize("size", ["102400", 102400])
def test_a_size_is_a_number_or_its_text(size: object) -> None:
    assert FACTS.parse(mezzanine(Status="Normal", Size=size)).size == 102400


@pytest.mark.parametrize("size", [None, ""])
def test_a_size_may_be_missing(size: object) -> None:
    assert FACTS.parse(mezzanine(Status="Normal", Size=size)).size is None
    assert FACTS.parse(mezzanine(Status="Normal")).size is None


@pytest.mark.parametrize("size", [-1, 1.5, True, [1], {"a": 1}, "1_0", "x", "9" * 5000])
def test_an_odd_size_is_not_usable(size: object) -> None:
    with pytest.raises(TransportError, match="not usable"):
        FACTS.parse(mezzanine(Status="Normal", Size=size))


@pytest.mark.parametrize("status", [None, "", 0, True, ["Normal"], {"a": "b"}])
def test_without_a_status_nothing_is_known(status: object) -> None:
    with pytest.raises(TransportError, match="not usable"):
        FACTS.parse(mezzanine(Status=status, Size=1))


@pytest.mark.parametrize("value", [None, [], "Normal", 0, {}])
def test_without_facts_nothing_is_known(value: object) -> None:
    with pytest.raises(TransportError, match="not usable"):
        FACTS.parse(answer({"RequestId": "8906582E", "Mezzanine": value}))


@pytest.mark.parametrize("url", [None, "", 0, ["https://h"], {"a": "b"}])
def test_an_odd_url_is_no_url(url: object) -> None:
    assert FACTS.parse(mezzanine(Status="Normal", FileURL=url)).file_url is None


@pytest.mark.parametrize(
    ("status", "size", "is_finished"),
    [
        ("Uploading", None, False),
        ("Uploading", 12, False),
        ("UploadFail", None, False),
        ("UploadSucc", 12, True),
        ("Normal", 12, True),
        ("Normal", None, True),
        ("Normal", 0, False),
        ("SomethingNew", None, True),
    ],
)
def test_a_video_is_finished_once_vod_has_its_file(
    status: str, size: int | None, is_finished: bool
) -> None:
    assert VideoFacts(status, size).is_finished is is_finished


# --- refusals ------------------------------------------------------------------------

ERROR = {
    "RequestId": "8906582E-B5C8",
    "HostId": "vod.cn-shanghai.aliyuncs.com",
    "Code": "InvalidVideo.NotFound",
    "Message": "The video not exist.",
    "Recommend": "https://canary",
}


@pytest.mark.parametrize("body", [ERROR, as_xml("Error", ERROR)], ids=["json", "xml"])
@pytest.mark.parametrize("operation", EVERY, ids=IDS)
def test_refusals_name_code_reason_and_request(operation: Operation[Any], body: object) -> None:
    date = "Sun, 22 Nov 2026 09:03:54 GMT"
    with pytest.raises(ServiceError) as caught:
        operation.parse(answer(body, 404, date=date, retry_after="7"))
    error = caught.value
    assert error.message == (
        f"{operation.name} was refused (404 InvalidVideo.NotFound, request 8906582E-B5C8): "
        "The video not exist."
    )
    assert (error.operation, error.status) == (operation.name, 404)
    assert (error.code, error.request_id) == ("InvalidVideo.NotFound", "8906582E-B5C8")
    assert error.server_epoch_s == AT.timestamp()
    assert error.retry_after_s == 7
    assert "canary" not in repr(vars(error))


@pytest.mark.parametrize("body", [PORTAL, b"", b"{", b'{"Code": 5}', b"<x", b"\xff", b"[]"])
@pytest.mark.parametrize("status", [400, 502])
def test_refusals_of_others_have_no_code(status: int, body: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        REFRESH.parse(answer(body, status))
    assert (caught.value.status, caught.value.code) == (status, "")
    assert "without a code" in caught.value.message
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_named(status: int) -> None:
    with pytest.raises(ServiceError, match="redirects are never followed") as caught:
        REFRESH.parse(answer(PORTAL, status))
    assert (caught.value.status, caught.value.code) == (status, "Redirected")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("status", "is_page"), [(200, True), (403, True), (502, False)])
def test_a_web_page_is_recognised(status: int, is_page: bool) -> None:
    page = answer(PORTAL, status, content_type="text/html; charset=utf-8")
    assert page.is_web_page
    with pytest.raises((ServiceError, TransportError)) as caught:
        REFRESH.parse(page)
    if status != 200:  # the session names it there
        assert ("with a web page" in caught.value.message) == is_page
        assert ("log in" in caught.value.next_step) == is_page
    assert "canary" not in str(caught.value)


def test_hostile_texts_are_harmless_to_show() -> None:
    body = {"Code": "A\x1b[2J", "Message": "x" * 5000 + "\n\u202e", "RequestId": "\u2028"}
    with pytest.raises(ServiceError) as caught:
        REFRESH.parse(answer(body, 400))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Mezzanine", "Status", "Size", "FileURL", "Code", "UploadAuth"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(EVERY), st.sampled_from([200, 204, 302, 400, 503]), _JSON)
def test_any_answer_is_a_value_or_one_of_our_errors(
    operation: Operation[Any], status: int, body: object
) -> None:
    try:
        operation.parse(answer(body, status))
    except VodupError:
        return
    assert status == 200
