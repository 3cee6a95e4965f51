"""The URL VOD gives for a source file: it reads that object, for a while, and nothing else."""

from __future__ import annotations

from urllib.parse import urlsplit

import alibabacloud_oss_v2 as v2
import oss2
import pytest

from uploader.devserver import DevServer

from .clients import PART, Oss, Reply, Vod, etag, send
from .test_calibration import bucket, v2_config


def file_url(vod: Vod, oss: Oss) -> str:
    url = vod.ok("GetMezzanineInfo", VideoId=oss.video_id)["Mezzanine"]["FileURL"]
    assert isinstance(url, str)
    return url


def stored(oss: Oss) -> None:
    upload_id = oss.initiate()
    assert oss.put_part(upload_id, 1).status == 200
    assert oss.complete(upload_id, [(1, etag())]).status == 200


def get(oss: Oss, url: str, method: str = "GET") -> Reply:
    parts = urlsplit(url)
    headers = {"range": "bytes=0-0"}
    return send(oss.endpoint, method, f"{parts.path}?{parts.query}", headers, None)


def test_it_reads_the_object_and_tells_its_checksum(vod: Vod, oss: Oss) -> None:
    stored(oss)

    reply = get(oss, file_url(vod, oss))

    assert (reply.status, reply.body) == (206, PART[:1])
    assert reply.headers["content-range"] == f"bytes 0-0/{len(PART)}"
    assert reply.headers["x-oss-hash-crc64ecma"]


def test_one_that_oss2_has_signed_is_good(oss: Oss, server: DevServer) -> None:
    stored(oss)
    auth = oss2.Auth(server.access_key_id, server.access_key_secret)

    url = oss2.Bucket(auth, oss.endpoint, oss.bucket).sign_url("GET", oss.key, 60)

    assert get(oss, url).status == 206


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("Signature=", "Signature=A", "SignatureDoesNotMatch"),
        ("OSSAccessKeyId=L", "OSSAccessKeyId=M", "InvalidAccessKeyId"),
        ("Expires=", "Expires=9", "SignatureDoesNotMatch"),
        ("Expires=1", "Expires=0", "AccessDenied"),
    ],
)
def test_any_other_url_is_refused(vod: Vod, oss: Oss, old: str, new: str, code: str) -> None:
    stored(oss)
    url = file_url(vod, oss)
    assert old in url

    assert get(oss, url.replace(old, new)).code == code


def test_it_is_for_reading_only(vod: Vod, oss: Oss) -> None:
    stored(oss)

    assert get(oss, file_url(vod, oss), "HEAD").status == 403


def test_there_is_none_before_there_is_a_file_or_where_it_is_switched_off(
    vod: Vod, oss: Oss, server: DevServer
) -> None:
    assert "FileURL" not in vod.ok("GetMezzanineInfo", VideoId=oss.video_id)["Mezzanine"]
    stored(oss)
    server.set_options(file_url=False)
    assert "FileURL" not in vod.ok("GetMezzanineInfo", VideoId=oss.video_id)["Mezzanine"]


# --- URLs that upload credentials sign -----------------------------------------------------


def by_url(
    oss: Oss, url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> Reply:
    parts = urlsplit(url)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return send(oss.endpoint, method, f"{parts.path}?{parts.query}", named, body)


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_oss2_signs_urls_with_a_token(oss: Oss, server: DevServer, version: str) -> None:
    client = bucket(oss, version)
    put = client.sign_url("PUT", oss.key, 60, headers={"Content-Type": "video/mp4"})
    assert by_url(oss, put, "PUT", PART).code == "SignatureDoesNotMatch"  # without that header
    assert by_url(oss, put, "PUT", PART, content_type="video/mp4").status == 200
    assert by_url(oss, client.sign_url("GET", oss.key, 60)).body == PART
    upload_id = oss.initiate()
    numbered = {"uploadId": upload_id, "partNumber": "1"}
    part = client.sign_url("PUT", oss.key, 60, params=numbered)
    assert by_url(oss, part, "PUT", PART).headers["etag"] == etag()


def test_alibabacloud_oss_v2_signs_urls_with_a_token(oss: Oss) -> None:
    client = v2.Client(v2_config(oss))
    put = client.presign(v2.PutObjectRequest(bucket=oss.bucket, key=oss.key))
    assert by_url(oss, put.url or "", "PUT", PART).status == 200
    get = client.presign(v2.GetObjectRequest(bucket=oss.bucket, key=oss.key))
    assert by_url(oss, get.url or "").body == PART


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_a_url_reaches_no_further_than_its_credentials(
    oss: Oss, server: DevServer, version: str
) -> None:
    client = bucket(oss, version)
    oss.call("PUT", body=PART)
    other = client.sign_url("GET", "another.mp4", 60)
    assert by_url(oss, other).code == "AccessDenied"
    good = client.sign_url("GET", oss.key, 60)
    server.set_options(denied_operations=["GetObject"])
    assert by_url(oss, good).code == "AccessDenied"
    server.set_options(denied_operations=[])
    server.expire_credentials()
    assert by_url(oss, good).code == "SecurityTokenExpired"


@pytest.mark.parametrize(
    ("old", "new", "code", "ec"),
    [
        ("x-oss-signature=", "x-oss-signature=0", "SignatureDoesNotMatch", "0002-00000040"),
        ("x-oss-expires=60", "x-oss-expires=61", "SignatureDoesNotMatch", "0002-00000040"),
        ("x-oss-expires=60", "x-oss-expires=604801", "InvalidArgument", "0002-00000232"),
        ("x-oss-expires=60", "x-oss-expires=", "InvalidArgument", "0002-00000215"),
        ("x-oss-credential=", "x-oss-credential=A", "InvalidAccessKeyId", "0002-00000902"),
        ("x-oss-credential=", "x-oss-other=", "InvalidArgument", "0002-00000217"),
        ("cn-shanghai", "cn-beijing", "InvalidArgument", "0002-00000226"),
        ("OSS4-HMAC-SHA256", "OSS5", "InvalidArgument", "0042-00000101"),
        ("x-oss-security-token=", "x-oss-security-token=A", "InvalidSecurityToken", ""),
    ],
)
def test_a_changed_v4_url_is_refused(oss: Oss, old: str, new: str, code: str, ec: str) -> None:
    url = bucket(oss, "v4").sign_url("GET", oss.key, 60)
    assert old in url
    reply = by_url(oss, url.replace(old, new))
    assert reply.code == code
    assert not ec or reply.element("EC") == ec


def test_a_v4_url_ends_in_time(oss: Oss, server: DevServer) -> None:
    url = bucket(oss, "v4").sign_url("GET", oss.key, 60)
    server.set_options(clock_offset_s=61)
    assert (by_url(oss, url).code, by_url(oss, url).element("EC")) == (
        "AccessDenied",
        "0002-00000069",
    )


def test_a_request_is_signed_in_one_way(oss: Oss) -> None:
    url = bucket(oss, "v4").sign_url("GET", oss.key, 60)
    _, headers = oss.signed("GET", {}, {})
    reply = by_url(oss, url, authorization=headers["authorization"])
    assert reply.code == "InvalidArgument"
