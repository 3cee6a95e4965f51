"""Clients that are not ours accept the server, and it accepts them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import alibabacloud_oss_v2 as v2
import oss2
import pytest
from alibabacloud_oss_v2 import aio
from alibabacloud_tea_openapi.models import Config
from alibabacloud_vod20170321 import models
from alibabacloud_vod20170321.client import Client as VodClient
from fastcrc import crc64

from uploader.devserver import DevServer

from .clients import PART, Oss, Vod

BODIES = [PART, bytes(150_000), b"the end"]
WHOLE = b"".join(BODIES)


def bucket(oss: Oss, version: str) -> oss2.Bucket:
    credentials = oss2.credentials.StaticCredentialsProvider(
        oss.access_key_id, oss.secret, oss.token
    )
    auth = (oss2.ProviderAuthV4 if version == "v4" else oss2.ProviderAuth)(credentials)
    return oss2.Bucket(auth, oss.endpoint, oss.bucket, region="cn-shanghai")


# oss2


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_oss2_uploads_in_parts(server: DevServer, oss: Oss, version: str) -> None:
    client = bucket(oss, version)
    upload_id = client.init_multipart_upload(oss.key).upload_id
    parts = []
    for number, body in enumerate(BODIES, 1):
        result = client.upload_part(oss.key, upload_id, number, body)  # checks the CRC itself
        info = oss2.models.PartInfo(number, result.etag, size=len(body), part_crc=result.crc)
        parts.append(info)
    listed = list(oss2.PartIterator(client, oss.key, upload_id, max_parts=2))
    assert [(p.part_number, p.etag, p.size) for p in listed] == [
        (p.part_number, p.etag, p.size) for p in parts
    ]
    done = client.complete_multipart_upload(oss.key, upload_id, parts)
    assert done.crc == crc64.xz(WHOLE)
    assert client.head_object(oss.key).etag == done.etag
    assert client.get_object(oss.key).read() == WHOLE
    assert (
        client.get_object(oss.key, byte_range=(102_399, 252_401)).read() == WHOLE[102_399:252_402]
    )


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_oss2_puts_lists_and_aborts(oss: Oss, version: str) -> None:
    client = bucket(oss, version)
    assert client.put_object(oss.key, b"small").crc == crc64.xz(b"small")
    assert client.get_object_meta(oss.key).content_length == 5
    upload_id = client.init_multipart_upload(oss.key).upload_id
    uploads = client.list_multipart_uploads(prefix=oss.key).upload_list
    assert [(u.key, u.upload_id) for u in uploads] == [(oss.key, upload_id)]
    client.abort_multipart_upload(oss.key, upload_id)
    with pytest.raises(oss2.exceptions.NoSuchUpload):
        client.list_parts(oss.key, upload_id)


def test_oss2s_resumable_upload_goes_on_where_it_stopped(
    server: DevServer, oss: Oss, tmp_path: Path
) -> None:
    source = tmp_path / "movie.mp4"
    source.write_bytes(WHOLE * 2)
    store = oss2.ResumableStore(root=str(tmp_path))
    options = {"store": store, "multipart_threshold": 1, "part_size": 102_400, "num_threads": 1}
    fault = {"operation": "UploadPart", "part": 3, "action": "error", "code": "AccessDenied"}
    server.faults.replace([fault])
    with pytest.raises(oss2.exceptions.AccessDenied):
        oss2.resumable_upload(bucket(oss, "v4"), oss.key, str(source), **options)
    oss2.resumable_upload(bucket(oss, "v4"), oss.key, str(source), **options)
    assert server.object_bytes(oss.video_id) == WHOLE * 2
    assert server.stats.initiates == 1
    assert server.stats.bytes_sent_twice == 0


def test_oss2_reads_our_errors(server: DevServer, oss: Oss) -> None:
    client = bucket(oss, "v4")
    with pytest.raises(oss2.exceptions.NotFound):
        client.head_object(oss.key)
    server.expire_credentials()
    with pytest.raises(oss2.exceptions.ServerError) as caught:
        client.init_multipart_upload(oss.key)
    assert (caught.value.status, caught.value.code) == (403, "SecurityTokenExpired")
    assert caught.value.ec == "0002-00000007"


# alibabacloud-oss-v2


def v2_config(oss: Oss) -> v2.config.Config:

    config = v2.config.load_default()
    config.credentials_provider = v2.credentials.StaticCredentialsProvider(
        oss.access_key_id, oss.secret, oss.token
    )
    config.region = "cn-shanghai"
    config.endpoint = oss.endpoint
    config.use_path_style = True
    return config


def test_oss_v2_uploads_a_file(server: DevServer, oss: Oss, tmp_path: Path) -> None:

    source = tmp_path / "movie.mp4"
    source.write_bytes(WHOLE * 2)
    client = v2.Client(v2_config(oss))
    request = v2.PutObjectRequest(bucket=oss.bucket, key=oss.key)
    uploader = client.uploader(part_size=102_400, parallel_num=2)
    result = uploader.upload_file(request, str(source))
    assert result.hash_crc64 == str(crc64.xz(WHOLE * 2))
    assert server.object_bytes(oss.video_id) == WHOLE * 2
    assert {r.signature_version for r in server.stats.log if r.service == "oss"} == {"v4"}


def test_oss_v2_lists_pages_and_reads_errors(oss: Oss) -> None:

    client = v2.Client(v2_config(oss))
    upload_id = oss.initiate()
    for number in (1, 2, 3):
        oss.put_part(upload_id, number, b"x")
    pages = client.list_parts_paginator(limit=2).iter_page(
        v2.ListPartsRequest(bucket=oss.bucket, key=oss.key, upload_id=upload_id)
    )
    parts = [part for page in pages for part in page.parts]
    assert [part.part_number for part in parts] == [1, 2, 3]
    assert {part.hash_crc64 for part in parts} == {str(crc64.xz(b"x"))}
    with pytest.raises(v2.exceptions.OperationError) as caught:
        client.head_object(v2.HeadObjectRequest(bucket=oss.bucket, key=oss.key))
    assert caught.value.unwrap().code == "NoSuchKey"


async def test_the_async_client_of_oss_v2_uploads_in_parts(server: DevServer, oss: Oss) -> None:

    names = {"bucket": oss.bucket, "key": oss.key}
    client = aio.AsyncClient(v2_config(oss))
    try:
        begun = await client.initiate_multipart_upload(v2.InitiateMultipartUploadRequest(**names))
        parts = []
        for number, body in enumerate(BODIES, 1):
            sent = await client.upload_part(
                v2.UploadPartRequest(
                    **names, upload_id=begun.upload_id, part_number=number, body=body
                )
            )
            parts.append(v2.UploadPart(part_number=number, etag=sent.etag))
        done = await client.complete_multipart_upload(
            v2.CompleteMultipartUploadRequest(
                **names,
                upload_id=begun.upload_id,
                complete_multipart_upload=v2.CompleteMultipartUpload(parts=parts),
            )
        )
    finally:
        await client.close()
    assert done.hash_crc64 == str(crc64.xz(WHOLE))
    assert server.object_bytes(oss.video_id) == WHOLE


# VOD


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_acs_client_calls_vod(server: DevServer, method: str) -> None:
    from aliyunsdkcore.client import AcsClient
    from aliyunsdkcore.request import CommonRequest

    client = AcsClient(server.access_key_id, server.access_key_secret, "cn-shanghai")
    request = CommonRequest()
    request.set_domain(server.vod_endpoint.removeprefix("http://"))
    request.set_protocol_type("http")
    request.set_version("2017-03-21")
    request.set_action_name("CreateUploadVideo")
    request.set_method(method)
    request.set_accept_format("json")
    request.add_query_param("Title", "中文 *~+ title")
    request.add_query_param("FileName", "movie.mp4")
    answer = json.loads(client.do_action_with_exception(request))
    assert server.videos[answer["VideoId"]].title == "中文 *~+ title"


def test_acs_client_reads_our_errors(server: DevServer) -> None:
    from aliyunsdkcore.acs_exception.exceptions import ServerException
    from aliyunsdkcore.client import AcsClient
    from aliyunsdkcore.request import CommonRequest

    client = AcsClient(server.access_key_id, "wrong", "cn-shanghai")
    request = CommonRequest()
    request.set_domain(server.vod_endpoint.removeprefix("http://"))
    request.set_protocol_type("http")
    request.set_version("2017-03-21")
    request.set_action_name("RefreshUploadVideo")
    request.set_method("POST")
    with pytest.raises(ServerException) as caught:
        client.do_action_with_exception(request)
    assert caught.value.http_status == 400
    assert caught.value.error_code in ("SignatureDoesNotMatch", "InvalidAccessKeySecret")


def generated_client(server: DevServer) -> VodClient:
    return VodClient(
        Config(
            access_key_id=server.access_key_id,
            access_key_secret=server.access_key_secret,
            endpoint=server.vod_endpoint.removeprefix("http://"),
            protocol="HTTP",
        )
    )


def test_the_generated_vod_client_creates_refreshes_and_asks(server: DevServer) -> None:
    client = generated_client(server)
    created = client.create_upload_video(
        models.CreateUploadVideoRequest(title="中文 *~+", file_name="movie.mp4", tags="a,b")
    ).body
    refreshed = client.refresh_upload_video(
        models.RefreshUploadVideoRequest(video_id=created.video_id)
    ).body
    assert refreshed.video_id == created.video_id
    info = client.get_mezzanine_info(models.GetMezzanineInfoRequest(video_id=created.video_id))
    assert info.body.mezzanine.status == "Uploading"
    assert {r.signature_version for r in server.stats.log} == {"v3"}


async def test_the_generated_vod_client_reads_our_errors(server: DevServer) -> None:
    client = generated_client(server)
    request = models.RefreshUploadVideoRequest(video_id="0" * 32)
    with pytest.raises(Exception, match=r"InvalidVideo\.NotFound") as caught:
        await asyncio.to_thread(client.refresh_upload_video, request)
    assert getattr(caught.value, "status_code", getattr(caught.value, "statusCode", 0)) == 404


def test_the_fixture_client_is_signed_by_alibaba(vod: Vod) -> None:
    assert vod.ok("CreateUploadVideo", Title="t", FileName="a.mp4")["VideoId"]
