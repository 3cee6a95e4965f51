"""The URL VOD gives for a source file: it reads that object, for a while, and nothing else."""

from __future__ import annotations

from urllib.parse import urlsplit

import oss2
import pytest

from uploader.devserver import DevServer

from .clients import PART, Oss, Reply, Vod, etag, send


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
