"""Listing and deleting objects, and the ways of addressing them, through both SDKs of OSS."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from typing import Any

import alibabacloud_oss_v2 as v2
import oss2
import pytest

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

from .clients import PART, Oss, Vod, send, start_upload
from .test_calibration import bucket, v2_config

KEYS = [f"sv/{folder}/{name}" for folder in "abc" for name in ("é 1.mp4", "2.mp4")]
CNAME = "media.example.test"


@pytest.fixture
def server() -> Iterator[DevServer]:
    options = DevServerOptions(allowed_actions=("ListObjects", "DeleteObject"), cname=CNAME)
    with ThreadedDevServer(options) as threaded:
        yield threaded.server


@pytest.fixture
def oss(server: DevServer) -> Oss:
    """Its credentials cover the whole folder, as those of an HLS package."""
    backend = server.backend
    video = backend.new_media("sv/index.m3u8", title="t", file_name="index.m3u8")
    backend.storage.save_video(video)
    credential = backend.issue_credential(video, (f"{video.bucket}/sv/",))
    return Oss(
        endpoint=server.oss_endpoint,
        bucket=video.bucket,
        key=video.object_key,
        access_key_id=credential.access_key_id,
        secret=credential.secret,
        token=credential.token,
        video_id=video.video_id,
    )


@pytest.fixture
def filled(oss: Oss) -> Oss:
    for key in KEYS:
        assert oss.call("PUT", body=PART, key=key).status == 200
    return oss


def test_oss2_lists_page_by_page(filled: Oss) -> None:
    client = bucket(filled, "v4")
    for iterator in (oss2.ObjectIterator, oss2.ObjectIteratorV2):
        found = list(iterator(client, prefix="sv/", max_keys=2))
        assert [each.key for each in found] == sorted(KEYS)
        assert {each.size for each in found} == {len(PART)}
        folders = list(iterator(client, prefix="sv/", delimiter="/", max_keys=1))
        assert [each.key for each in folders] == ["sv/a/", "sv/b/", "sv/c/"]
        assert all(each.is_prefix() for each in folders)
    assert client.list_objects(marker="sv/a/é 1.mp4", max_keys=1).object_list[0].key == KEYS[3]
    assert client.list_objects(prefix="nothing").object_list == []
    assert client.list_objects_v2(start_after=sorted(KEYS)[-1]).object_list == []
    for folder in ("sv/a/", "sv/b/"):
        listed = client.list_objects(prefix="sv/", delimiter="/", marker=folder)
        assert folder not in listed.prefix_list


def test_alibabacloud_oss_v2_lists_and_deletes(filled: Oss) -> None:
    client = v2.Client(v2_config(filled))
    paginator = client.list_objects_v2_paginator(limit=4)
    request = v2.ListObjectsV2Request(bucket=filled.bucket, fetch_owner=True)
    pages = list(paginator.iter_page(request))
    assert [each.key for page in pages for each in page.contents or []] == sorted(KEYS)
    assert [page.is_truncated for page in pages] == [True, False]
    client.delete_object(v2.DeleteObjectRequest(bucket=filled.bucket, key=KEYS[0]))
    names = [v2.DeleteObject(key=key) for key in KEYS[1:3]]
    result = client.delete_multiple_objects(
        v2.DeleteMultipleObjectsRequest(bucket=filled.bucket, objects=names)
    )
    assert [each.key for each in result.deleted_objects or []] == KEYS[1:3]
    left = client.list_objects(v2.ListObjectsRequest(bucket=filled.bucket))
    assert [each.key for each in left.contents or []] == sorted(KEYS[3:])


def test_oss2_deletes(filled: Oss) -> None:
    client = bucket(filled, "v1")
    assert client.delete_object("sv/never-there").status == 204
    assert client.batch_delete_objects(KEYS[:2]).deleted_keys == KEYS[:2]
    assert not client.object_exists(KEYS[0])
    assert client.object_exists(KEYS[2])


def test_what_a_deletion_must_have(filled: Oss) -> None:
    body = b"<Delete><Object><Key>" + KEYS[0].encode() + b"</Key></Object></Delete>"
    cases: list[tuple[bytes, dict[str, str], str, str]] = [
        (body, {}, "InvalidArgument", "0016-00000606"),
        (body, {"content-md5": md5(b"other")}, "InvalidDigest", "0042-00000106"),
        (b"<Delete></Delete>", {}, "MalformedXML", "0042-00000205"),
        (b"<Delete><Object/></Delete>", {}, "MalformedXML", "0016-00000613"),
        (b"no XML", {}, "MalformedXML", "0042-00000205"),
        (body.replace(b"sv/", b"elsewhere/"), {}, "AccessDenied", "0003-00000001"),
    ]
    for content, headers, code, ec in cases:
        given = headers or ({} if ec == "0016-00000606" else {"content-md5": md5(content)})
        reply = filled.call("POST", {"delete": ""}, content, given, key="")
        assert (reply.code, reply.headers["x-oss-ec"]) == (code, ec)
    quiet = body.replace(b"<Object>", b"<Quiet>true</Quiet><Object>", 1)
    reply = filled.call("POST", {"delete": ""}, quiet, {"content-md5": md5(quiet)}, key="")
    assert (reply.status, reply.body) == (200, b"")
    assert filled.call("HEAD", key=KEYS[0]).status == 404


def md5(data: bytes) -> str:
    return str(oss2.utils.content_md5(data))


def test_parameters_of_a_listing_are_checked(filled: Oss) -> None:
    for params in (
        {"max-keys": "0"},
        {"max-keys": "1001"},
        {"list-type": "3"},
        {"list-type": "2", "continuation-token": "?"},
    ):
        assert filled.call("GET", params, key="").code == "InvalidArgument"
    assert filled.call("GET", {"unheard": ""}, key="").code == "AccessDenied"


def test_the_policy_of_vod_refuses_both(server: DevServer) -> None:
    server.set_options(allowed_actions=())
    oss = start_upload(Vod(server))
    oss.call("PUT", body=PART)
    client = bucket(oss, "v4")
    for call in (
        lambda: client.delete_object(oss.key),
        lambda: client.batch_delete_objects([oss.key]),
        client.list_objects,
        client.list_objects_v2,
    ):
        with pytest.raises(oss2.exceptions.AccessDenied):
            call()
    assert server.object_bytes(oss.video_id) == PART
    server.set_options(allowed_actions=("DeleteObject",))
    assert oss.call("DELETE", key="sv/other").status == 403


# --- addressing ----------------------------------------------------------------------------


@pytest.fixture
def _names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        here = str(host).endswith((".localhost", CNAME))
        return real("127.0.0.1" if here else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("_names_of_this_machine")
@pytest.mark.parametrize("version", ["v1", "v4"])
@pytest.mark.parametrize("style", ["path", "virtual", "cname"])
def test_a_bucket_is_addressed_in_three_ways(
    server: DevServer, oss: Oss, version: str, style: str
) -> None:
    port = server.oss_endpoint.rpartition(":")[2]
    hosts = {"path": "127.0.0.1", "virtual": "oss-cn-shanghai.localhost", "cname": CNAME}
    provider = oss2.credentials.StaticCredentialsProvider(oss.access_key_id, oss.secret, oss.token)
    auth = {"v1": oss2.ProviderAuth, "v4": oss2.ProviderAuthV4}[version](provider)
    client = oss2.Bucket(
        auth,
        f"http://{hosts[style]}:{port}",
        oss.bucket,
        region="cn-shanghai",
        is_cname=style == "cname",
    )
    client.put_object(KEYS[0], PART)
    assert client.get_object(KEYS[0]).read() == PART
    assert [each.key for each in client.list_objects().object_list] == [KEYS[0]]
    config = v2_config(oss)
    config.endpoint = f"http://{hosts[style]}:{port}"
    config.use_path_style, config.use_cname = style == "path", style == "cname"
    got = v2.Client(config).get_object(v2.GetObjectRequest(bucket=oss.bucket, key=KEYS[0]))
    assert got.body is not None
    assert got.body.content == PART


def test_a_region_that_is_wrong_has_its_ec(server: DevServer, oss: Oss) -> None:
    server.set_options(bucket_region_header=True)
    wrong = dataclasses.replace(oss, region="cn-beijing")
    reply = wrong.call("GET")
    assert (reply.code, reply.headers["x-oss-ec"]) == ("InvalidArgument", "0002-00000228")
    provider = oss2.credentials.StaticCredentialsProvider(oss.access_key_id, oss.secret, oss.token)
    auth = oss2.ProviderAuthV4(provider)
    client = oss2.Bucket(auth, server.oss_endpoint, oss.bucket, region="cn-beijing")
    url = client.sign_url("GET", oss.key, 60)
    signed = send(server.oss_endpoint, "GET", url.partition(server.oss_endpoint)[2], {}, None)
    assert (signed.code, signed.headers["x-oss-ec"]) == ("InvalidArgument", "0002-00000226")
    for answer in (reply, signed):
        assert answer.headers["x-oss-bucket-region"] == "oss-cn-shanghai"
