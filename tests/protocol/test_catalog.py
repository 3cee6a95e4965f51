"""Search, deletion, registration and pulls: as the official client sends and reads them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
from alibabacloud_vod20170321 import models as m

from uploader.errors import ConfigurationError
from uploader.protocol import catalog
from uploader.protocol.catalog import match_of
from uploader.protocol.vod import VideoMeta
from uploader.protocol.wire import Operation, Response

ENDPOINT = "https://vod.cn-shanghai.aliyuncs.com"


def parsed(operation: Operation[Any], fields: object) -> Any:  # noqa: ANN401
    return operation.parse(Response(200, {}, json.dumps(fields).encode()))


def sent(operation: Operation[Any]) -> dict[str, str]:
    own = {"Action", "Version", "Format"}
    return {name: value for name, value in operation.request.params.items() if name not in own}


def test_conditions_are_written_as_the_documentation_has_them() -> None:
    assert match_of(statuses=["Normal", "Uploading"]) == "Status in ('Normal','Uploading')"
    assert match_of(title="x", after="A", before="B") == (
        "Title = 'x' and CreationTime = ['A','B']"
    )
    assert match_of(after="A") == "CreationTime = ['A',)"
    assert match_of() == ""
    with pytest.raises(ConfigurationError, match="cannot search"):
        match_of(title="o'clock")


def test_a_page_is_searched_and_read() -> None:
    operation = catalog.search_media(ENDPOINT, "Title = 'x'", page=3, scroll_token="T")
    expected = m.SearchMediaRequest(
        search_type="video", match="Title = 'x'", page_no=3, page_size=100, scroll_token="T",
        sort_by="CreationTime:Desc", fields="Title,Status,CreationTime,Size,Duration,CoverURL",
    )  # fmt: skip
    assert sent(operation) == {name: str(value) for name, value in expected.to_map().items()}
    video = {"VideoId": "v", "Status": "Normal", "Size": 5}
    page = parsed(operation, {"Total": 9, "ScrollToken": "U", "MediaList": [{"Video": video}, {}]})
    assert (page.total, page.scroll_token) == (9, "U")
    assert [(v.video_id, v.size) for v in page.videos] == [("v", 5)]


def test_videos_that_were_not_deleted_are_named() -> None:
    operation = catalog.delete_videos(ENDPOINT, ["a", "b", "c"])
    assert sent(operation) == m.DeleteVideoRequest(video_ids="a,b,c").to_map()
    answer = {"NonExistVideoIds": ["a"], "ForbiddenVideoIds": ["c"]}
    assert parsed(operation, answer) == {"a", "c"}
    assert parsed(operation, {}) == frozenset()
    parts = catalog.delete_multipart_upload(ENDPOINT, "a")
    expected = m.DeleteMultipartUploadRequest(media_id="a", media_type="video")
    assert sent(parts) == expected.to_map()


def test_objects_are_registered_with_their_titles() -> None:
    meta = VideoMeta(template_group_id="g", tags=("x",), cate_id=3)
    operation = catalog.register_media(ENDPOINT, {"https://b.oss/k.mp4": "k.mp4"}, meta)
    entry = {"FileURL": "https://b.oss/k.mp4", "Title": "k.mp4", "Tags": "x", "CateId": "3"}
    params = sent(operation)
    assert json.loads(params.pop("RegisterMetadatas")) == [entry]
    assert params == {"TemplateGroupId": "g"}
    answer = {
        "RegisteredMediaList": [{"FileURL": "u", "MediaId": "v", "NewRegister": True}],
        "FailedFileURLs": ["w"],
    }
    assert parsed(operation, answer) == ((catalog.Registered("u", "v", True),), ("w",))
    assert parsed(operation, {}) == ((), ())


def test_urls_are_encoded_before_they_are_joined() -> None:
    url = "https://h/a,b.mp4?x=1&y=2"
    operation = catalog.upload_media_by_url(ENDPOINT, [url], VideoMeta(), session_id="S")
    params = sent(operation)
    assert params["UploadURLs"] == "https%3A%2F%2Fh%2Fa%2Cb.mp4%3Fx%3D1%26y%3D2"
    assert unquote(params["UploadURLs"]) == url
    assert json.loads(params["UploadMetadatas"]) == [{"SourceURL": url, "Title": "a,b.mp4"}]
    assert params["SessionId"] == "S"
    assert not operation.is_repeatable
    assert parsed(operation, {"UploadJobs": [{"JobId": "j", "SourceURL": url}]}) == {url: "j"}


def test_the_state_of_a_pull_is_read() -> None:
    operation = catalog.get_url_uploads(ENDPOINT, job_ids=["j", "k"])
    assert sent(operation) == m.GetURLUploadInfosRequest(job_ids="j,k").to_map()
    entry = m.GetURLUploadInfosResponseBodyURLUploadInfoList(
        job_id="j", upload_url="u", status="DOWNLOAD_FAIL", file_size="7", error_code="E",
        error_message="M", creation_time="T",
    )  # fmt: skip
    (pull,) = parsed(operation, {"URLUploadInfoList": [entry.to_map()]})
    assert (pull.has_failed, pull.is_done, pull.error, pull.size) == (True, False, "E: M", 7)
    done = entry.to_map() | {"Status": "SUCCESS", "MediaId": "v"}
    (pull,) = parsed(operation, {"URLUploadInfoList": [done]})
    assert (pull.has_failed, pull.is_done, pull.video_id) == (False, True, "v")
