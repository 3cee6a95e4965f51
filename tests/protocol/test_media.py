"""VOD's answers about what it holds, in every nesting and number form they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from alibabacloud_vod20170321 import models as m

from uploader.errors import ServiceError, TransportError
from uploader.protocol import media
from uploader.protocol.media import MediaKind, PlayStream, VideoInfo
from uploader.protocol.vod import VideoMeta
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


@pytest.mark.parametrize(
    ("kind", "name", "sent"),
    [
        (
            "image",
            "a.PNG",
            m.CreateUploadImageRequest(
                image_type="default", image_ext="png", original_file_name="a.PNG", title="t",
                tags="x,y", cate_id=5, description="d", storage_location="b", user_data="{}",
                app_id="app-1",
            ),
        ),
        (
            "attached:subtitle",
            "a.zh.srt",
            m.CreateUploadAttachedMediaRequest(
                business_type="subtitle", media_ext="srt", file_name="a.zh.srt", title="t",
                tags="x,y", cate_ids="5", description="d", storage_location="b", user_data="{}",
                app_id="app-1", file_size="9",
            ),
        ),
    ],
)  # fmt: skip
def test_media_are_created_with_the_official_clients_parameters(
    kind: str,
    name: str,
    sent: Any,  # noqa: ANN401
) -> None:
    meta = VideoMeta(
        title="t", tags=("x", "y"), cate_id=5, description="d", storage_location="b",
        user_data="{}", app_id="app-1",
    )  # fmt: skip
    operation = media.create_upload_media(
        ENDPOINT, MediaKind(kind), meta, file_name=name, file_size=9
    )
    expected = {k: str(v) for k, v in sent.to_map().items()}
    params = operation.request.params
    fixed = {"Action", "Version", "Format"}
    assert {k: v for k, v in params.items() if k not in fixed} == expected
    assert f"CreateUpload{'Image' if kind == 'image' else 'AttachedMedia'}" == params["Action"]


def test_a_title_is_cut_to_the_bytes_that_vod_takes() -> None:
    meta = VideoMeta(title="字" * 60)
    operation = media.create_upload_media(
        ENDPOINT, MediaKind("image"), meta, file_name="a.png", file_size=1
    )
    assert operation.request.params["Title"] == "字" * 42


def test_where_media_are_is_read() -> None:
    image, attached = MediaKind("image:cover"), MediaKind("attached:material")
    operation = media.get_media(ENDPOINT, image, "i1")
    assert operation.request.params["ImageId"] == m.GetImageInfoRequest(image_id="i1").image_id
    fields = {"ImageInfo": {"URL": "https://c/a.png", "Status": "Normal"}}
    assert parsed(operation, fields).url == "https://c/a.png"
    operation = media.get_media(ENDPOINT, attached, "m1")
    assert operation.request.params["MediaIds"] == "m1"
    entry = {"URL": "https://c/a.zip", "Status": "Uploading"}
    assert parsed(operation, {"AttachedMediaList": [entry]}).status == "Uploading"
    with pytest.raises(TransportError, match="no URL"):
        parsed(operation, {"AttachedMediaList": [], "NonExistMediaIds": ["m1"]})


def test_a_cover_is_set_with_the_video_id_alone() -> None:
    operation = media.set_cover(ENDPOINT, "v1", "https://c/a.png")
    sent = m.UpdateVideoInfoRequest(video_id="v1", cover_url="https://c/a.png").to_map()
    assert sent.items() <= operation.request.params.items()
    assert parsed(operation, {"RequestId": "R"}) is None
