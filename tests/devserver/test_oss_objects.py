"""What OSS does with parts and objects."""

from __future__ import annotations

import base64
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastcrc import crc64

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer
from uploader.devserver.crc import combine_all
from uploader.devserver.oss_part_list import multipart_etag

from .clients import PART, Oss, Vod, etag, part_list, start_upload


def upload(oss: Oss, bodies: list[bytes]) -> tuple[str, list[tuple[int, str]]]:
    upload_id = oss.initiate()
    parts = []
    for number, body in enumerate(bodies, 1):
        reply = oss.put_part(upload_id, number, body)
        assert reply.status == 200, reply.body
        parts.append((number, reply.headers["etag"]))
    return upload_id, parts


BODIES = [PART, bytes(200_000), b"end"]
WHOLE = b"".join(BODIES)


def test_a_part_is_answered_with_its_checksums(oss: Oss) -> None:
    reply = oss.put_part(oss.initiate(), 1)
    assert reply.headers["etag"] == etag()
    assert reply.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(PART))
    md5 = hashlib.md5(PART, usedforsecurity=False).digest()
    assert reply.headers["content-md5"] == base64.b64encode(md5).decode()
    assert len(reply.headers["x-oss-request-id"]) == 24
    assert reply.headers["server"] == "AliyunOSS"
    assert int(reply.headers["x-oss-server-time"]) >= 1


def test_a_completed_object_is_the_parts_in_order(server: DevServer, oss: Oss) -> None:
    upload_id, parts = upload(oss, BODIES)
    reply = oss.complete(upload_id, parts)
    assert reply.status == 200, reply.body
    assert reply.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(WHOLE))
    assert reply.headers["etag"].strip('"').endswith("-3")
    assert oss.call("GET").body == WHOLE == server.object_bytes(oss.video_id)
    assert server.stats.completes == 1
    assert server.open_upload_count == 0


def test_the_etag_of_a_multipart_object_is_osss_and_not_s3s() -> None:
    # The formula over upper-case hex was confirmed against objects of the live service.
    names = [hashlib.md5(body, usedforsecurity=False).hexdigest() for body in BODIES]
    joined = "".join(names).upper().encode()
    expected = hashlib.md5(joined, usedforsecurity=False).hexdigest().upper() + "-3"
    assert multipart_etag(f'"{name}"' for name in names) == expected


@pytest.mark.parametrize("sizes", [[1], [0, 5], [102_400] * 7 + [3], [1, 2, 3, 4_000_000]])
def test_combined_crcs_are_the_crc_of_the_whole(sizes: list[int]) -> None:
    pieces = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    combined = combine_all((crc64.xz(piece), len(piece)) for piece in pieces)
    assert combined == crc64.xz(b"".join(pieces))


@pytest.mark.parametrize("number", ["0", "10001", "x", "-1"])
def test_part_numbers_are_1_to_10000(oss: Oss, number: str) -> None:
    reply = oss.put_part(oss.initiate(), number)
    assert (reply.status, reply.code) == (400, "InvalidArgument")
    assert reply.element("ArgumentName") == "partNumber"


def test_part_10000_is_accepted(oss: Oss) -> None:
    assert oss.put_part(oss.initiate(), 10_000).status == 200


def test_a_part_over_5_gib_is_too_large(server: DevServer, oss: Oss) -> None:
    server.set_options(drain_before_refusal=False)
    upload_id = oss.initiate()
    params = {"partNumber": "1", "uploadId": upload_id}
    target, headers = oss.signed("PUT", params, {})
    head = f"PUT {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    answer = _raw(oss, head + f"Host: 127.0.0.1\r\nContent-Length: {5 * 1024**3 + 1}\r\n\r\n")
    assert b"EntityTooLarge" in answer


def _raw(oss: Oss, text: str) -> bytes:
    import socket

    host, port = oss.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(text.encode())
        return sock.recv(65536)


def _break_off(oss: Oss, text: str) -> None:
    import socket

    host, port = oss.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(text.encode())


def test_content_md5_is_checked(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    wrong = base64.b64encode(bytes(16)).decode()
    reply = oss.put_part(upload_id, 1, Content_MD5=wrong)
    assert (reply.status, reply.code) == (400, "InvalidDigest")
    assert server.stats.parts_stored == 0
    right = base64.b64encode(hashlib.md5(PART, usedforsecurity=False).digest()).decode()
    assert oss.put_part(upload_id, 1, Content_MD5=right).status == 200


def test_a_claimed_crc_is_checked(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    reply = oss.put_part(upload_id, 1, x_oss_hash_crc64ecma="1")
    assert (reply.status, reply.code) == (400, "InvalidCRC64")
    assert server.stats.parts_stored == 0
    claimed = str(crc64.xz(PART))
    assert oss.put_part(upload_id, 1, x_oss_hash_crc64ecma=claimed).status == 200


def test_complete_names_parts_between_1_and_10000(oss: Oss) -> None:
    upload_id, parts = upload(oss, [PART])
    for number in (0, 10_001):
        assert oss.complete(upload_id, [(number, etag())]).code == "InvalidPartOrder"
    other = part_list(parts).replace(b"CompleteMultipartUpload", b"Other")
    assert oss.call("POST", {"uploadId": upload_id}, other).code == "MalformedXML"


def test_a_part_can_be_sent_again_and_the_last_one_counts(server: DevServer, oss: Oss) -> None:
    upload_id, _ = upload(oss, [PART, PART])
    second = oss.put_part(upload_id, 2, b"other").headers["etag"]
    assert oss.complete(upload_id, [(1, etag()), (2, second)]).status == 200
    assert server.object_bytes(oss.video_id) == PART + b"other"
    assert server.stats.parts_sent_twice == 1
    assert server.stats.bytes_sent_twice == 5


def test_completing_takes_its_time_and_a_part_replaced_meanwhile_counts(
    server: DevServer, oss: Oss
) -> None:
    upload_id, parts = upload(oss, BODIES)
    server.set_options(complete_delay_s=0.5)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        completing = pool.submit(oss.complete, upload_id, parts)
        time.sleep(0.2)
        assert oss.put_part(upload_id, 1, BODIES[0]).status == 200
        assert completing.result().status == 200
    assert time.monotonic() - began >= 0.5
    assert server.object_bytes(oss.video_id) == WHOLE


def test_a_body_that_breaks_off_is_not_stored(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    target, headers = oss.signed("PUT", {"partNumber": "1", "uploadId": upload_id}, {})
    head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    _break_off(oss, head + f"Content-Length: {len(PART)}\r\n\r\nonly this")
    _until(lambda: server.stats.partial_bytes == 9)
    assert oss.list_parts(upload_id).elements("PartNumber") == []
    assert list((server.backend.storage.folder / "bodies").iterdir()) == []


def _until(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_stops_sending_is_timed_out_with_400(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.set_options(body_idle_timeout_s=0.1)
    target, headers = oss.signed("PUT", {"partNumber": "1", "uploadId": upload_id}, {})
    import socket

    host, port = oss.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
        head += "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        sock.sendall(head.encode() + b"\r\nfour")
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"RequestTimeout" in answer


def test_a_put_without_length_is_refused(oss: Oss) -> None:
    target, headers = oss.signed("PUT", {"partNumber": "1", "uploadId": oss.initiate()}, {})
    head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    assert b"MissingContentLength" in _raw(oss, head + "\r\n")


def test_size_is_judged_at_complete_only(oss: Oss) -> None:
    upload_id, parts = upload(oss, [PART[:-1], PART])
    reply = oss.complete(upload_id, parts)
    assert (reply.status, reply.code) == (400, "EntityTooSmall")
    assert reply.element("ProposedSize") == str(len(PART) - 1)
    assert reply.element("PartNumber") == "1"


@pytest.mark.parametrize("claimed", ['"' + "0" * 32 + '"', "junk"])
def test_complete_with_a_wrong_etag_is_an_invalid_part(oss: Oss, claimed: str) -> None:
    upload_id, _ = upload(oss, [PART])
    assert oss.complete(upload_id, [(1, claimed)]).code == "InvalidPart"


def test_complete_with_a_part_that_is_not_there_is_an_invalid_part(oss: Oss) -> None:
    upload_id, parts = upload(oss, [PART])
    assert oss.complete(upload_id, [*parts, (2, etag())]).code == "InvalidPart"


@pytest.mark.parametrize("numbers", [(2, 1), (1, 1)])
def test_complete_lists_parts_in_ascending_order(oss: Oss, numbers: tuple[int, int]) -> None:
    upload_id, _ = upload(oss, [PART, PART])
    reply = oss.complete(upload_id, [(number, etag()) for number in numbers])
    assert reply.code == "InvalidPartOrder"


@pytest.mark.parametrize("shape", [str.lower, str.upper, lambda text: text.strip('"')])
def test_etags_are_compared_without_case_and_quotes(oss: Oss, shape: object) -> None:
    upload_id, parts = upload(oss, [PART])
    shaped = [(number, shape(name)) for number, name in parts]  # type: ignore[operator]
    assert oss.complete(upload_id, shaped).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<x",
        b"<Other/>",
        part_list([]),
        b"<CompleteMultipartUpload><Part/></CompleteMultipartUpload>",
    ],
)
def test_complete_with_a_malformed_list_is_refused(oss: Oss, body: bytes) -> None:
    upload_id, _ = upload(oss, [PART])
    reply = oss.call("POST", {"uploadId": upload_id}, body)
    assert (reply.status, reply.code) == (400, "MalformedXML")


@pytest.mark.parametrize(
    "part", ["<PartNumber>x</PartNumber><ETag>e</ETag>", "<PartNumber>1</PartNumber>"]
)
def test_every_listed_part_has_a_number_and_an_etag(oss: Oss, part: str) -> None:
    upload_id, _ = upload(oss, [PART])
    body = f"<CompleteMultipartUpload><Part>{part}</Part></CompleteMultipartUpload>"
    assert oss.call("POST", {"uploadId": upload_id}, body.encode()).code == "MalformedXML"


def test_a_part_list_has_a_size_limit(oss: Oss) -> None:
    upload_id, parts = upload(oss, [PART])
    body = part_list(parts) + b" " * 8 * 1024**2
    assert oss.call("POST", {"uploadId": upload_id}, body).code == "MalformedXML"


def test_content_md5_of_a_simple_put_is_checked(oss: Oss) -> None:
    wrong = base64.b64encode(bytes(16)).decode()
    assert oss.call("PUT", {}, b"x", {"Content-MD5": wrong}).code == "InvalidDigest"
    assert oss.call("HEAD").code == "NoSuchKey"


def test_complete_all_takes_whatever_is_there(server: DevServer, oss: Oss) -> None:
    upload_id, _ = upload(oss, [PART, b"x"])
    headers = {"x-oss-complete-all": "yes"}
    both = oss.call("POST", {"uploadId": upload_id}, part_list([(1, etag())]), headers)
    assert (both.status, both.headers["x-oss-ec"]) == (400, "0042-00000216")
    assert oss.call("POST", {"uploadId": upload_id}, None, headers).status == 200
    assert server.object_bytes(oss.video_id) == PART + b"x"


def test_forbid_overwrite_protects_an_object(oss: Oss) -> None:
    assert oss.call("PUT", {}, b"first").status == 200
    upload_id, parts = upload(oss, [PART])
    reply = oss.complete(upload_id, parts, x_oss_forbid_overwrite="true")
    assert (reply.status, reply.code) == (409, "FileAlreadyExists")
    assert oss.call("GET").body == b"first"
    assert oss.complete(upload_id, parts).status == 200


def test_forbid_overwrite_is_checked_when_an_upload_starts_and_when_an_object_is_stored(
    server: DevServer, oss: Oss
) -> None:
    header = {"x-oss-forbid-overwrite": "true"}
    assert oss.call("PUT", {}, b"first", header).status == 200
    for reply in (
        oss.call("PUT", {}, b"second", header),
        oss.call("POST", {"uploads": ""}, b"", header),
    ):
        assert (reply.status, reply.code) == (409, "FileAlreadyExists")
        assert reply.headers["x-oss-ec"] == "0026-00000002"
    assert oss.call("PUT", {}, b"third", {"x-oss-forbid-overwrite": "false"}).status == 200
    odd = oss.call("PUT", {}, b"fourth", {"x-oss-forbid-overwrite": "yes"})
    assert (odd.status, odd.code) == (400, "InvalidArgument")
    assert server.object_bytes(oss.video_id) == b"third"


@pytest.mark.parametrize(
    ("option", "status"), [("ignored", 200), ("denied", 403), ("invalid", 400)]
)
def test_forbid_overwrite_may_be_ignored_or_refused(
    server: DevServer, oss: Oss, option: str, status: int
) -> None:
    server.set_options(forbid_overwrite=option)
    for _ in range(2):
        reply = oss.call("PUT", {}, b"again", {"x-oss-forbid-overwrite": "true"})
        assert reply.status == status
    assert oss.call("PUT", {}, b"plain").status == 200


def test_an_upload_id_is_gone_after_complete_and_abort(oss: Oss) -> None:
    done, parts = upload(oss, [PART])
    oss.complete(done, parts)
    dropped, _ = upload(oss, [PART])
    assert oss.abort(dropped).status == 204
    for upload_id in (done, dropped):
        replies = [
            oss.put_part(upload_id, 1),
            oss.list_parts(upload_id),
            oss.complete(upload_id, parts),
            oss.abort(upload_id),
        ]
        assert {(reply.status, reply.code) for reply in replies} == {(404, "NoSuchUpload")}
        assert replies[0].element("UploadId") == upload_id


def test_abort_deletes_the_bodies(server: DevServer, oss: Oss) -> None:
    upload_id, _ = upload(oss, [PART, PART])
    oss.abort(upload_id)
    assert list((server.backend.storage.folder / "bodies").iterdir()) == []


def test_two_uploads_of_one_key_do_not_mix(server: DevServer, oss: Oss) -> None:
    first, parts = upload(oss, [PART])
    second, _ = upload(oss, [b"x" * 102_400])
    assert oss.complete(first, parts).status == 200
    assert server.object_bytes(oss.video_id) == PART
    assert oss.list_parts(second).elements("PartNumber") == ["1"]


def test_sequential_uploads_take_parts_in_order_and_once(oss: Oss) -> None:
    upload_id = oss.initiate(sequential="")
    assert oss.put_part(upload_id, 2).code == "PartNotSequential"
    assert oss.put_part(upload_id, 1).status == 200
    again = oss.put_part(upload_id, 1)
    assert (again.status, again.code) == (409, "PartAlreadyExist")
    assert again.element("PartEtag") == etag().strip('"')


def test_parts_are_listed_in_pages(server: DevServer, oss: Oss) -> None:
    upload_id, _ = upload(oss, [b"x"] * 5)
    page = oss.list_parts(upload_id, max_parts="2", part_number_marker="1")
    assert page.elements("PartNumber") == ["2", "3"]
    assert page.element("NextPartNumberMarker") == "3"
    assert page.element("IsTruncated") == "true"
    rest = oss.list_parts(upload_id, part_number_marker="3")
    assert rest.elements("PartNumber") == ["4", "5"]
    assert rest.element("IsTruncated") == "false"
    assert rest.elements("HashCrc64ecma") == [str(crc64.xz(b"x"))] * 2
    server.set_options(list_page_size=1, list_crc=False)
    short = oss.list_parts(upload_id)
    assert short.elements("PartNumber") == ["1"]
    assert short.elements("HashCrc64ecma") == []


@pytest.mark.parametrize("value", ["0", "1001", "x"])
def test_max_parts_is_1_to_1000(oss: Oss, value: str) -> None:
    assert oss.list_parts(oss.initiate(), max_parts=value).code == "InvalidArgument"


def test_keys_are_encoded_on_request(oss: Oss) -> None:
    reply = oss.list_parts(oss.initiate(), encoding_type="url")
    assert reply.element("Key") == oss.key.replace("/", "%2F")
    assert reply.element("EncodingType") == "url"


def test_head_shows_the_object_and_errors_in_a_header(oss: Oss) -> None:
    missing = oss.call("HEAD")
    assert (missing.status, missing.code, missing.body) == (404, "NoSuchKey", b"")
    upload_id, parts = upload(oss, BODIES)
    oss.complete(upload_id, parts)
    reply = oss.call("HEAD")
    assert reply.headers["content-length"] == str(len(WHOLE))
    assert reply.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(WHOLE))
    assert reply.headers["x-oss-object-type"] == "Multipart"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bytes=0-0", WHOLE[:1]),
        ("bytes=102390-102410", WHOLE[102_390:102_411]),
        ("bytes=-4", WHOLE[-4:]),
        ("bytes=302398-", WHOLE[302_398:]),
    ],
)
def test_ranges_cross_part_borders(oss: Oss, spec: str, expected: bytes) -> None:
    upload_id, parts = upload(oss, BODIES)
    oss.complete(upload_id, parts)
    reply = oss.call("GET", headers={"Range": spec})
    assert (reply.status, reply.body) == (206, expected)


def test_a_simple_put_is_an_object(server: DevServer, oss: Oss) -> None:
    reply = oss.call("PUT", {}, b"small")
    assert reply.headers["etag"] == etag(b"small")
    assert oss.call("HEAD").headers["x-oss-object-type"] == "Normal"
    assert server.object_bytes(oss.video_id) == b"small"


def test_open_uploads_are_listed_and_paged(oss: Oss) -> None:
    ids = sorted(oss.initiate() for _ in range(3))
    bucket = {"uploads": "", "prefix": oss.key}
    page = oss.call("GET", {**bucket, "max-uploads": "2"}, key="")
    assert page.elements("UploadId") == ids[:2]
    marker = {"key-marker": oss.key, "upload-id-marker": ids[1]}
    assert oss.call("GET", {**bucket, **marker}, key="").elements("UploadId") == ids[2:]


def test_crc_headers_can_be_missing(server: DevServer, oss: Oss) -> None:
    server.set_options(crc_headers=False)
    upload_id = oss.initiate()
    part = oss.put_part(upload_id, 1)
    assert "x-oss-hash-crc64ecma" not in part.headers
    done = oss.complete(upload_id, [(1, etag())])
    assert "x-oss-hash-crc64ecma" not in done.headers


def test_documents_may_have_a_namespace(server: DevServer, oss: Oss) -> None:
    server.set_options(xml_namespace=True)
    assert b'xmlns="http://doc.oss-cn-hangzhou.aliyuncs.com"' in oss.list_parts("none").body


def test_discarded_bodies_keep_size_and_checksums(server: DevServer, oss: Oss) -> None:
    server.set_options(discard_bodies=True)
    upload_id, parts = upload(oss, BODIES)
    reply = oss.complete(upload_id, parts)
    assert reply.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(WHOLE))
    assert list((server.backend.storage.folder / "bodies").iterdir()) == []
    assert oss.call("GET").body == bytes(len(WHOLE))


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    options = DevServerOptions(data_dir=tmp_path)
    with ThreadedDevServer(options) as first:
        before = first.server.access_key_id
        oss = start_upload(Vod(first.server))
        upload_id, parts = upload(oss, [PART])
    with ThreadedDevServer(options) as second:
        from dataclasses import replace

        oss = replace(oss, endpoint=second.server.oss_endpoint)
        assert second.server.access_key_id == before
        last = oss.put_part(upload_id, 2, b"end").headers["etag"]
        assert oss.complete(upload_id, [*parts, (2, last)]).status == 200
        assert second.server.object_bytes(oss.video_id) == PART + b"end"


def test_the_traffic_limit_slows_a_part_down(oss: Oss) -> None:
    upload_id = oss.initiate()
    started = time.monotonic()
    reply = oss.put_part(upload_id, 1, x_oss_traffic_limit="1638400")  # 204,800 bytes a second
    assert reply.status == 200
    assert 0.4 <= time.monotonic() - started < 2


def test_bandwidth_is_shared(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.set_options(bandwidth=409_600)
    started = time.monotonic()
    assert oss.put_part(upload_id, 1).status == 200
    assert 0.2 <= time.monotonic() - started < 2


def test_bodies_nothing_refers_to_are_deleted(server: DevServer, oss: Oss) -> None:
    bodies = server.backend.storage.folder / "bodies"
    upload_id, parts = upload(oss, [PART, PART, b"unused"])
    assert oss.complete(upload_id, parts[:2]).status == 200
    assert len(list(bodies.iterdir())) == 2
    assert oss.call("PUT", {}, b"instead").status == 200
    assert len(list(bodies.iterdir())) == 1
