"""What VOD holds, as Alibaba Cloud's generated client reads, searches, changes and deletes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from alibabacloud_tea_openapi.exceptions import AlibabaCloudException
from alibabacloud_vod20170321 import models as m

from uploader.devserver import DevServer

from .clients import PART, Oss, Vod, decoded, granted
from .test_calibration import generated_client

if TYPE_CHECKING:
    from alibabacloud_vod20170321.client import Client as VodClient


@pytest.fixture
def client(server: DevServer) -> VodClient:
    return generated_client(server)


def uploaded(vod: Vod, title: str, **params: str) -> Oss:
    answer = vod.ok("CreateUploadVideo", Title=title, FileName="movie.mp4", **params)
    oss = granted(answer)
    assert oss.call("PUT", body=PART).status == 200
    return oss


def refused(call: Any, request: Any) -> str:  # noqa: ANN401
    with pytest.raises(AlibabaCloudException) as caught:
        call(request)
    return str(caught.value.code)


def test_many_videos_are_read_at_once(vod: Vod, client: VodClient) -> None:
    one, two = uploaded(vod, "one", ReferenceId="reference-1", Tags="a,b"), uploaded(vod, "two")
    ids = f"{one.video_id},{two.video_id},{'0' * 32}"
    body = client.get_video_infos(m.GetVideoInfosRequest(video_ids=ids)).body
    assert [(video.title, video.size) for video in body.video_list] == [
        ("one", len(PART)),
        ("two", len(PART)),
    ]
    assert body.video_list[0].tags == "a,b"
    assert body.non_exist_video_ids == ["0" * 32]
    by_name = m.GetVideoInfosRequest(reference_ids="reference-1")
    assert client.get_video_infos(by_name).body.video_list[0].video_id == one.video_id
    unknown = m.GetVideoInfosRequest(video_ids="0" * 32)
    assert refused(client.get_video_infos, unknown) == "InvalidVideo.NotFound"
    many = m.GetVideoInfosRequest(video_ids=",".join(["0" * 32] * 21))
    assert refused(client.get_video_infos, many) == "VideoIdsExceededMax"


def test_only_a_transcoded_video_plays(vod: Vod, client: VodClient, server: DevServer) -> None:
    oss = granted(vod.ok("CreateUploadVideo", Title="t", FileName="movie.mp4"))
    request = m.GetPlayInfoRequest(video_id=oss.video_id)
    assert refused(client.get_play_info, request) == "Forbidden.IllegalStatus"
    server.set_options(processing_s=600)
    oss.call("PUT", body=PART)
    assert refused(client.get_play_info, request) == "Forbidden.IllegalStatus"
    server.set_options(processing_s=0)
    (stream,) = client.get_play_info(request).body.play_info_list.play_info
    assert (stream.format, stream.definition, stream.size) == ("mp4", "HD", len(PART))
    assert stream.play_url.startswith("http://127.0.0.1")
    server.set_options(status_after_upload="TranscodeFail")
    assert refused(client.get_play_info, request) == "Forbidden.IllegalStatus"


def test_without_transcoding_the_source_plays_at_once(
    vod: Vod, client: VodClient, server: DevServer
) -> None:
    server.set_options(processing_s=600)
    oss = uploaded(vod, "t", TemplateGroupId="VOD_NO_TRANSCODE")
    played = client.get_play_info(m.GetPlayInfoRequest(video_id=oss.video_id)).body
    assert played.play_info_list.play_info[0].definition == "OD"


def test_videos_are_searched(vod: Vod, client: VodClient, server: DevServer) -> None:
    first, second = uploaded(vod, "the first film"), uploaded(vod, "the second film")
    waiting = granted(vod.ok("CreateUploadVideo", Title="it's waiting", FileName="a.mp4"))

    def found(match: str, **given: Any) -> list[str]:
        request = m.SearchMediaRequest(match=match, fields="Title,Status", **given)
        return [media.media_id for media in client.search_media(request).body.media_list]

    assert set(found("Title = 'film'")) == {first.video_id, second.video_id}
    assert found("Status in ('Uploading') and Title in ('waiting')") == [waiting.video_id]
    assert found("CreationTime = ('2020-01-01T00:00:00Z','2020-01-02T00:00:00Z')") == []
    assert len(found("CreationTime = ['2020-01-01T00:00:00Z',)", page_size=2)) == 2
    assert len(found("", page_size=2, page_no=2)) == 1
    for wrong in ("Title like 'x'", "Title = 'a' or Title = 'b'", "Title = 'a"):
        assert refused(client.search_media, m.SearchMediaRequest(match=wrong)) == "ErrorMatchSyntax"


def test_what_is_given_is_overwritten_and_the_rest_stays(vod: Vod, client: VodClient) -> None:
    oss = uploaded(vod, "before", Description="a description")
    change = m.UpdateVideoInfoRequest(video_id=oss.video_id, title="after", cover_url="http://x/y")
    client.update_video_info(change)
    video = client.get_video_info(m.GetVideoInfoRequest(video_id=oss.video_id)).body.video
    assert (video.title, video.description, video.cover_url) == (
        "after",
        "a description",
        "http://x/y",
    )


def test_a_deleted_video_is_gone_with_its_file(
    vod: Vod, client: VodClient, server: DevServer
) -> None:
    oss = uploaded(vod, "t")
    oss.initiate()
    body = client.delete_video(m.DeleteVideoRequest(video_ids=f"{oss.video_id},x")).body
    assert body.non_exist_video_ids == ["x"]
    assert server.open_upload_count == 0
    assert oss.call("HEAD").status == 404
    gone = m.GetVideoInfoRequest(video_id=oss.video_id)
    assert refused(client.get_video_info, gone) == "InvalidVideo.NotFound"


def test_a_picture_is_uploaded_and_not_refreshed(vod: Vod, client: VodClient) -> None:
    made = client.create_upload_image(
        m.CreateUploadImageRequest(image_type="cover", image_ext="jpg", title="a cover")
    ).body
    assert decoded(made.upload_address)["FileName"].startswith("image/cover/")
    answer = {
        "VideoId": made.image_id,
        "UploadAddress": made.upload_address,
        "UploadAuth": made.upload_auth,
    }
    oss = granted(answer)
    info = m.GetImageInfoRequest(image_id=made.image_id)
    assert client.get_image_info(info).body.image_info.status == "Uploading"
    assert oss.call("PUT", body=b"a picture").status == 200
    assert client.get_image_info(info).body.image_info.status == "Normal"
    assert vod.call("RefreshUploadVideo", VideoId=made.image_id).code == "InvalidVideo.NotFound"
    wrong = m.CreateUploadImageRequest(image_type="poster")
    assert refused(client.create_upload_image, wrong) == "InvalidParameter"


def test_attached_media_are_uploaded_and_read_back(client: VodClient) -> None:
    made = client.create_upload_attached_media(
        m.CreateUploadAttachedMediaRequest(business_type="subtitle", media_ext="srt", title="zh")
    ).body
    answer = {
        "VideoId": made.media_id,
        "UploadAddress": made.upload_address,
        "UploadAuth": made.upload_auth,
    }
    assert granted(answer).call("PUT", body=b"1\n00:00").status == 200
    read = client.get_attached_media_info(
        m.GetAttachedMediaInfoRequest(media_ids=f"{made.media_id},x")
    ).body
    assert [(each.media_id, each.status) for each in read.attached_media_list] == [
        (made.media_id, "Normal")
    ]
    assert read.non_exist_media_ids == ["x"]
    wrong = m.CreateUploadAttachedMediaRequest(business_type="subtitle", media_ext="mp4")
    assert refused(client.create_upload_attached_media, wrong) == "InvalidParameter"


def test_an_object_is_registered_once(vod: Vod, client: VodClient) -> None:
    oss = granted(vod.ok("CreateUploadVideo", Title="t", FileName="movie.m3u8"))
    prefix = oss.key.rpartition("/")[0]
    assert oss.call("PUT", body=PART, key=f"{prefix}/film.mp4").status == 200
    entry = {"FileURL": f"https://bucket.oss.example.com/{prefix}/film.mp4", "Title": "a film"}
    absent = {"FileURL": "https://bucket.oss.example.com/none.mp4", "Title": "none"}
    request = m.RegisterMediaRequest(register_metadatas=json.dumps([entry, absent]))
    body = client.register_media(request).body
    assert [each.new_register for each in body.registered_media_list] == [True]
    assert body.failed_file_urls == [absent["FileURL"]]
    again = client.register_media(request).body.registered_media_list[0]
    assert (again.new_register, again.media_id) == (False, body.registered_media_list[0].media_id)
    video = client.get_video_info(m.GetVideoInfoRequest(video_id=again.media_id)).body.video
    assert video.status == "UploadSucc"


def test_details_of_uploads(vod: Vod, client: VodClient) -> None:
    oss = uploaded(vod, "t")
    request = m.GetUploadDetailsRequest(media_ids=f"{oss.video_id},x", media_type="video")
    body = client.get_upload_details(request).body
    assert [(each.media_id, each.upload_size) for each in body.upload_details] == [
        (oss.video_id, len(PART))
    ]
    assert body.non_exist_media_ids == ["x"]
