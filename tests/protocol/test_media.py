"""VOD's answers about what it holds, in every nesting and number form they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from alibabacloud_vod20170321 import models as m

from uploader.errors import ServiceError, TransportError
from uploader.protocol import media
from uploader.protocol.media import PlayStream, VideoInfo
from uploader.protocol.wire import Operation, Response

ENDPOINT = "https://vod.cn-shanghai.aliyuncs.com"


def parsed(operation: Operation[Any], fields: object, status: int = 200) -> Any:  # noqa: ANN401
    return operation.parse(Response(status, {}, json.dumps(fields).encode()))


def test_videos_are_read_by_their_ids_as_the_official_client_does() -> None:
    operation = media.get_video_infos(ENDPOINT, ["a1", "b2"])
    sent = m.GetVideoInfosRequest(video_ids="a1,b2").to_map()
    assert {k: operation.request.params[k] for k in sent} == sent
    entry = m.GetVideoInfosResponseBodyVideoList(
        video_id="a1", status="Normal", title="t", size=5, duration=1.5, cover_url="https://c/1.png",
        creation_time="2026-11-30T08:00:00Z",
    )  # fmt: skip
    answer = {"VideoList": [entry.to_map(), "odd"], "NonExistVideoIds": ["b2"]}
    assert parsed(operation, answer) == {
        "a1": VideoInfo(
            video_id="a1", status="Normal", title="t", size=5, duration_s=1.5,
            cover_url="https://c/1.png", created_at="2026-11-30T08:00:00Z",
        )
    }  # fmt: skip


@pytest.mark.parametrize("entry", [{"VideoId": "a1"}, {"Status": "Normal"}])
def test_a_video_without_an_id_or_a_status_is_no_answer(entry: dict[str, str]) -> None:
    with pytest.raises(TransportError, match="no status or no VideoId"):
        parsed(media.get_video_infos(ENDPOINT, ["a1"]), {"VideoList": [entry]})


def test_the_ways_to_play_are_nested_and_their_numbers_are_text() -> None:
    operation = media.get_play_info(ENDPOINT, "a1")
    entry = m.GetPlayInfoResponseBodyPlayInfoListPlayInfo(
        play_url="https://cdn/a.m3u8?auth_key=1-2-3-4", format="m3u8", definition="HD", size=7,
        duration="12.5", width=1280, height=720, bitrate="900.5", status="Normal",
    )  # fmt: skip
    hidden = entry.to_map() | {"Status": "Invisible"}
    answer = {"PlayInfoList": {"PlayInfo": [entry.to_map(), hidden, {"Format": "mp4"}]}}
    (stream,) = parsed(operation, answer)
    assert stream == PlayStream(
        url="https://cdn/a.m3u8?auth_key=1-2-3-4", format="m3u8", definition="HD", size=7,
        duration_s=12.5, width=1280, height=720, bitrate=900.5,
    )  # fmt: skip
    assert "auth_key" not in repr(stream), "the URL may be signed"
    assert parsed(operation, {}) == ()


def test_the_reasons_of_a_failed_transcoding_are_named_once() -> None:
    job = {"ErrorCode": "Bad", "ErrorMessage": "The file is bad"}
    task = {"TranscodeJobInfoSummaryList": [job, job, {"TranscodeJobStatus": "TranscodeSuccess"}]}
    operation = media.get_transcode_summary(ENDPOINT, "a1")
    assert parsed(operation, {"TranscodeSummaryList": [task]}) == ("Bad: The file is bad",)


def test_a_refusal_and_a_broken_answer_are_errors() -> None:
    operation = media.get_play_info(ENDPOINT, "a1")
    with pytest.raises(ServiceError, match=r"Forbidden\.IllegalStatus"):
        parsed(operation, {"Code": "Forbidden.IllegalStatus", "Message": "no"}, 403)
    with pytest.raises(TransportError, match="not usable"):
        operation.parse(Response(200, {}, b'{"PlayInfoList": '))


@pytest.mark.parametrize(
    ("found", "value"),
    [(3, 3), ("3", 3), ("3.9", 3), (True, None), ("x", None), (-1, None), (None, None), ([], None),
     ("nan", None), ("inf", None)],
)  # fmt: skip
def test_numbers_come_in_many_forms(found: object, value: int | None) -> None:
    assert media.whole({"Size": found}, "Size") == value
