"""Requests to IMS, and how its answers are read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from uploader.errors import ConfigurationError, ServiceError, TransportError
from uploader.protocol import ims
from uploader.protocol.vod import VideoFacts, VideoMeta
from uploader.protocol.wire import Response

AT = "https://ice.cn-shanghai.aliyuncs.com"


def test_a_media_is_described_in_json() -> None:
    meta = VideoMeta(
        title="A film", description="Long.", cate_id=7, tags=("a", "b"), cover_url="https://h/c.png",
        workflow_id="w1", storage_location="s.oss", app_id="app-1", user_data="{}",
    )  # fmt: skip
    operation = ims.create_upload_media(AT, meta, file_name="film.part.MP4", file_size=12)

    params = dict(operation.request.params)
    assert not operation.is_repeatable
    assert (params["Action"], params["Version"]) == ("CreateUploadMedia", "2020-11-09")
    assert json.loads(params["FileInfo"]) == {
        "Type": "video", "Name": "film.part", "Size": 12, "Ext": "MP4"
    }  # fmt: skip
    assert json.loads(params["MediaMetaData"]) == {
        "Title": "A film", "Description": "Long.", "CateId": 7, "Tags": "a,b",
        "BusinessType": "general", "CoverURL": "https://h/c.png",
    }  # fmt: skip
    assert json.loads(params["PostProcessConfig"]) == {"ProcessType": "Workflow", "ProcessID": "w1"}
    assert json.loads(params["UploadTargetConfig"]) == {
        "StorageType": "oss", "StorageLocation": "s.oss"
    }  # fmt: skip
    assert (params["AppId"], params["UserData"]) == ("app-1", "{}")


def test_empty_fields_are_not_sent() -> None:
    operation = ims.create_upload_media(AT, VideoMeta(), file_name="talk.mp3", file_size=0)
    params = dict(operation.request.params)
    assert json.loads(params["FileInfo"]) == {"Type": "audio", "Name": "talk", "Ext": "mp3"}
    assert json.loads(params["MediaMetaData"]) == {"Title": "talk.mp3", "BusinessType": "general"}
    assert params.keys() == {"Action", "Version", "Format", "FileInfo", "MediaMetaData"}


def test_further_parameters_are_sent_as_they_are() -> None:
    meta = VideoMeta(extra={"EntityId": "e"})
    operation = ims.create_upload_media(AT, meta, file_name="film.mp4", file_size=1)
    assert operation.request.params["EntityId"] == "e"


@pytest.mark.parametrize(
    "meta",
    [
        VideoMeta(template_group_id="t"),
        VideoMeta(reference_id="r"),
        VideoMeta(generate_thumbnail=False),
        VideoMeta(enable_first_frame_cover=True),
    ],
)
def test_fields_that_ims_does_not_have_are_refused(meta: VideoMeta) -> None:
    with pytest.raises(ConfigurationError, match="IMS has no"):
        ims.create_upload_media(AT, meta, file_name="film.mp4", file_size=1)


def test_an_answer_that_is_no_json_is_not_usable() -> None:
    operation = ims.get_media_info(AT, "m1")
    with pytest.raises(TransportError, match="GetMediaInfo is not usable"):
        operation.parse(Response(200, {}, b"<html>"))


@pytest.mark.parametrize("name", ["film", "film.", ".mp4"])
def test_a_name_without_an_extension_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="extension"):
        ims.create_upload_media(AT, VideoMeta(), file_name=name, file_size=1)


def facts(info: Any, status: int = 200) -> VideoFacts:  # noqa: ANN401 - any JSON
    operation = ims.get_media_info(AT, "m1")
    return operation.parse(Response(status, {}, json.dumps({"MediaInfo": info}).encode()))


def info_of(status: object, **file: object) -> dict[str, Any]:
    return {"MediaBasicInfo": {"Status": status}, "FileInfoList": [{"FileBasicInfo": file}]}


def test_what_ims_knows_of_a_file() -> None:
    assert facts(info_of("Normal", FileSize="12", FileUrl="https://u")) == VideoFacts(
        "Normal", 12, "https://u"
    )
    assert facts({"MediaBasicInfo": {"Status": "Init"}}) == VideoFacts("Init", None)
    assert facts({"MediaBasicInfo": {"Status": "Init"}, "FileInfoList": []}).size is None
    assert facts(info_of("Preparing", FileSize="")).size is None


@pytest.mark.parametrize(
    ("status", "size", "is_finished"),
    [
        ("Init", None, False),
        ("Preparing", None, False),
        ("Preparing", 12, True),
        ("PrepareFail", 0, False),
        ("PrepareFail", 12, True),
        ("Normal", 12, True),
        ("Normal", None, True),
    ],
)
def test_a_media_is_finished_once_ims_has_its_file(
    status: str, size: int | None, is_finished: bool
) -> None:
    assert VideoFacts(status, size).is_finished is is_finished


@pytest.mark.parametrize(
    "info",
    [
        None,
        [],
        {},
        {"MediaBasicInfo": []},
        info_of(""),
        info_of(7),
        info_of("Normal", FileSize="x"),
    ],
)
def test_an_answer_without_a_status_is_not_usable(info: object) -> None:
    with pytest.raises(TransportError, match="GetMediaInfo is not usable"):
        facts(info)


def test_a_refusal_is_raised() -> None:
    with pytest.raises(ServiceError, match="GetMediaInfo was refused"):
        facts({}, status=404)


def test_credentials_are_requested_by_media_id() -> None:
    params = dict(ims.refresh_upload_media(AT, "m1").request.params)
    assert (params["Action"], params["MediaId"]) == ("RefreshUploadMedia", "m1")
