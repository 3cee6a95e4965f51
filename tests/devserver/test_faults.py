"""Every fault does what it says, is counted, and ends when it is spent."""

from __future__ import annotations

import gzip
import http.client
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastcrc import crc64

from uploader.devserver import DevServer, Fault, FaultScript
from uploader.devserver.faults import ACTIONS

from .clients import PART, Oss, Vod, etag, granted

Prepared = tuple[bytes, bytes]


def put_request(oss: Oss, upload_id: str, number: int = 1, body: bytes = PART) -> Prepared:
    """Head and body of a signed UploadPart, for a raw socket."""
    params = {"partNumber": str(number), "uploadId": upload_id}
    return raw_request(oss, "PUT", params, body)


def raw_request(oss: Oss, method: str, params: dict[str, str], body: bytes) -> Prepared:
    target, headers = oss.signed(method, params, {})
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode(), body


def connect(oss: Oss, timeout: float = 5) -> socket.socket:
    host, port = oss.endpoint.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=timeout)


def talk(oss: Oss, request: Prepared) -> bytes:
    """Send a request and read until the server closes or an answer is whole."""
    with connect(oss) as sock:
        for piece in request:
            sock.sendall(piece)
        answer = b""
        while b"</" not in answer and (more := sock.recv(65536)):
            answer += more
        return answer


def stored_parts(oss: Oss, upload_id: str) -> list[str]:
    return oss.list_parts(upload_id).elements("PartNumber")


# matching


def test_a_fault_is_limited_to_its_operation_part_attempt_and_count() -> None:
    script = FaultScript([Fault(action="hang", operation="UploadPart", part=2, attempt=(2, 3))])
    hits = [
        (part, attempt)
        for part in (1, 2)
        for attempt in (1, 2, 3, 4)
        if script.take("UploadPart", part, attempt)
    ]
    assert hits == [(2, 2)]
    assert script.take("ListParts", 2, 2) == ()
    assert script.consumed == {"hang": 1}
    assert script.unconsumed == ()


def test_every_and_count_and_probability_choose_among_matches() -> None:
    every = FaultScript([Fault(action="hang", every=3, count=None)])
    assert [bool(every.take("X", None, n)) for n in range(1, 7)] == [False, False, True] * 2
    twice = FaultScript([Fault(action="hang", count=2)])
    assert [bool(twice.take("X", None, n)) for n in range(1, 4)] == [True, True, False]
    draws = []
    for _ in range(2):
        random = FaultScript([Fault(action="hang", probability=0.5, seed=3, count=None)])
        draws.append([bool(random.take("X", None, n)) for n in range(50)])
    assert draws[0] == draws[1]
    assert 10 < sum(draws[0]) < 40


def test_a_fault_can_be_about_one_video_of_several(server: DevServer, vod: Vod) -> None:
    mine = vod.ok("CreateUploadVideo", Title="t", FileName="a.mp4", ReferenceId="reference-1")
    other = vod.ok("CreateUploadVideo", Title="t", FileName="a.mp4", ReferenceId="reference-2")
    for subject in ("reference-1", mine["VideoId"]):
        server.faults.replace([Fault(action="error", subject=subject, count=None, code="Odd")])
        assert granted(other).call("HEAD").code == "NoSuchKey"
        assert granted(mine).call("HEAD").code == "Odd"
        assert vod.call("RefreshUploadVideo", ReferenceId="reference-2").status == 200
        assert vod.call("RefreshUploadVideo", ReferenceId="reference-1").code == "Odd"
        assert server.faults.consumed == {"error": 2}
        server.faults.forget("reference-3")
        assert server.faults.consumed
        server.faults.forget(subject)
        assert granted(mine).call("HEAD").code == "NoSuchKey"


def test_attempts_are_counted_by_operation_object_and_part(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    for number in (1, 1, 2):
        oss.put_part(upload_id, number)
    parts = [(r.part_number, r.attempt) for r in server.stats.log if r.operation == "UploadPart"]
    assert parts == [(1, 1), (1, 2), (2, 1)]


def test_unknown_actions_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown fault action"):
        Fault(action="explode")
    with pytest.raises(ValueError, match="unusable fault field: 'x' is none of"):
        FaultScript([{"action": "reset", "part": "x"}])
    with pytest.raises(ValueError, match="unknown fault field"):
        FaultScript([{"action": "hang", "when": "now"}])


def test_every_action_has_a_test() -> None:
    source = Path(__file__).read_text()
    assert [action for action in ACTIONS if f'"{action}"' not in source] == []


# on arrival


def test_error_answers_in_the_services_words_and_applies_nothing(
    server: DevServer, vod: Vod, oss: Oss
) -> None:
    upload_id = oss.initiate()
    server.faults.replace(
        [
            {"operation": "UploadPart", "action": "error", "code": "InternalError"},
            {"operation": "RefreshUploadVideo", "action": "error", "code": "Throttling.User"},
            {
                "operation": "HeadObject",
                "headers": {"Retry-After": "7"},
                "action": "error",
                "status": 503,
                "code": "Odd",
                "ec": "1-2",
                "message": "hm",
            },
        ]
    )
    reply = oss.put_part(upload_id, 1)
    assert (reply.status, reply.code) == (500, "InternalError")
    assert stored_parts(oss, upload_id) == []
    throttled = vod.call("RefreshUploadVideo", VideoId=oss.video_id)
    assert (throttled.status, throttled.code) == (400, "Throttling.User")
    head = oss.call("HEAD")
    assert (head.status, head.code, head.element("EC")) == (503, "Odd", "1-2")
    assert head.headers["retry-after"] == "7"
    assert server.faults.consumed == {"error": 3}
    assert oss.put_part(upload_id, 1).status == 200


@pytest.mark.parametrize("close", ["rst", "fin", "keep"])
@pytest.mark.parametrize(("status", "code"), [(403, "SecurityTokenExpired"), (200, "")])
def test_early_answers_come_before_the_body(
    server: DevServer, oss: Oss, close: str, status: int, code: str
) -> None:
    upload_id = oss.initiate()
    server.faults.replace(
        [{"action": "early_answer", "status": status, "code": code, "close": close}]
    )
    head, body = put_request(oss, upload_id)
    with connect(oss) as sock:
        sock.sendall(head + body[:10])
        answer = sock.recv(65536)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert code.encode() in answer
        assert (b"ETag" in answer) == (status == 200)
        if close == "rst":
            with pytest.raises(ConnectionResetError):
                _read_until_closed(sock)
        elif close == "fin":
            assert _read_until_closed(sock) == b""
        else:
            server.faults.replace([])
            sock.sendall(body[10:] + b"".join(put_request(oss, upload_id, 2)))
            assert b" 200 " in sock.recv(65536)
            assert stored_parts(oss, upload_id) == ["2"]
            return
    server.faults.replace([])
    assert stored_parts(oss, upload_id) == []


def _read_until_closed(sock: socket.socket) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


@pytest.mark.parametrize("after_bytes", [0, 5_000])
@pytest.mark.parametrize("close", ["rst", "fin"])
def test_reset_closes_inside_the_request(
    server: DevServer, oss: Oss, after_bytes: int, close: str
) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "reset", "after_bytes": after_bytes, "close": close}])
    head, body = put_request(oss, upload_id)
    with connect(oss) as sock:
        sock.sendall(head + body[: after_bytes + 1])
        if close == "rst":
            with pytest.raises(ConnectionResetError):
                sock.recv(65536)
        else:
            assert sock.recv(65536) == b""
    record = server.stats.log[-1]
    assert (record.operation, record.status) == ("UploadPart", 0)
    assert record.body_bytes >= after_bytes
    assert server.stats.partial_bytes == record.body_bytes
    assert stored_parts(oss, upload_id) == []


@pytest.mark.parametrize("action", ["hang", "stop_reading", "no_answer"])
def test_silence_lasts_until_the_client_disconnects(
    server: DevServer, oss: Oss, action: str
) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": action, "operation": "UploadPart"}])
    with connect(oss, timeout=0.2) as sock:
        for piece in put_request(oss, upload_id):
            sock.sendall(piece)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    assert stored_parts(oss, upload_id) == (["1"] if action == "no_answer" else [])


def test_stop_reading_fills_the_clients_socket(server: DevServer, oss: Oss) -> None:
    body = bytes(32 * 1024 * 1024)
    request = put_request(oss, oss.initiate(), body=body)
    server.faults.replace([{"action": "stop_reading", "after_bytes": 1000}])
    with connect(oss, timeout=0.3) as sock, pytest.raises(TimeoutError):
        sock.sendall(b"".join(request))


@pytest.mark.parametrize("action", ["delay", "slow"])
def test_delays_are_waited_for(server: DevServer, oss: Oss, action: str) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": action, "delay_s": 0.2}])
    started = time.monotonic()
    assert oss.put_part(upload_id, 1).status == 200
    assert time.monotonic() - started >= 0.2


def test_expire_credentials_ends_them_before_this_request(
    server: DevServer, vod: Vod, oss: Oss
) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "expire_credentials", "operation": "UploadPart"}])
    assert oss.put_part(upload_id, 1).code == "SecurityTokenExpired"
    new = granted(vod.ok("RefreshUploadVideo", VideoId=oss.video_id))
    assert new.put_part(upload_id, 1).status == 200
    assert oss.put_part(upload_id, 1).code == "SecurityTokenExpired"


def test_vanish_deletes_the_upload(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "vanish"}])
    assert oss.put_part(upload_id, 1).code == "NoSuchUpload"


def test_clock_offset_skews_requests(server: DevServer, oss: Oss) -> None:
    server.faults.replace([{"action": "clock_offset", "value": 3600}])
    assert oss.call("HEAD").code == "RequestTimeTooSkewed"
    assert oss.call("HEAD").code == "RequestTimeTooSkewed"


def test_redirect_names_another_host(server: DevServer, oss: Oss) -> None:
    location = "https://evil.example/x"
    server.faults.replace([{"action": "redirect", "status": 307, "location": location}])
    reply = oss.put_part("U", 1)
    assert (reply.status, reply.headers["location"]) == (307, location)


@pytest.mark.parametrize("status", [502, 200])
def test_html_plays_a_proxy_or_a_portal(server: DevServer, oss: Oss, status: int) -> None:
    server.faults.replace([{"action": "html", "status": status}])
    reply = oss.put_part("U", 1)
    assert (reply.status, reply.headers["content-type"]) == (status, "text/html")
    assert reply.body.startswith(b"<html>")
    assert "x-oss-request-id" not in reply.headers


# on the request itself


def test_a_zombie_is_applied_after_its_retry(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "zombie", "delay_s": 0.2}])
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        oss.put_part(upload_id, 1, b"z" * 5)
    assert oss.put_part(upload_id, 1).status == 200
    assert oss.list_parts(upload_id).elements("Size") == [str(len(PART))]
    _until(lambda: oss.list_parts(upload_id).elements("Size") == ["5"])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_bit_flipped_in_transit_shows_in_the_answer(server: DevServer, oss: Oss) -> None:
    server.faults.replace([{"action": "flip_bit", "operation": "UploadPart"}])
    reply = oss.put_part(oss.initiate(), 1)
    assert reply.status == 200
    assert reply.headers["etag"] != etag()
    assert reply.headers["x-oss-hash-crc64ecma"] != str(crc64.xz(PART))


def test_a_rotten_part_shows_at_complete_only(server: DevServer, oss: Oss) -> None:
    server.faults.replace([{"action": "rot", "operation": "UploadPart"}])
    upload_id = oss.initiate()
    reply = oss.put_part(upload_id, 1)
    assert reply.headers["etag"] == etag()
    assert reply.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(PART))
    done = oss.complete(upload_id, [(1, etag())])
    stored = server.object_bytes(oss.video_id)
    assert stored != PART
    assert done.headers["x-oss-hash-crc64ecma"] == str(crc64.xz(stored))


# on ListParts


@pytest.fixture
def listed(oss: Oss) -> str:
    upload_id = oss.initiate()
    for number in (1, 2, 3):
        assert oss.put_part(upload_id, number, b"x").status == 200
    return upload_id


def test_a_list_can_lag(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "list_lag", "value": 2}])
    assert stored_parts(oss, listed) == ["1"]
    assert stored_parts(oss, listed) == ["1", "2", "3"]


def test_a_list_can_have_small_pages(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "list_page_size", "value": 1}])
    page = oss.list_parts(listed)
    assert page.elements("PartNumber") == ["1"]
    assert page.element("IsTruncated") == "true"


def test_a_list_can_repeat_its_page(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "list_repeat_page"}])
    page = oss.list_parts(listed, part_number_marker="2", max_parts="2")
    assert page.elements("PartNumber") == ["1", "2"]


def test_a_list_can_be_stuck(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "list_stuck_marker"}])
    page = oss.list_parts(listed, part_number_marker="3")
    assert page.elements("PartNumber") == []
    assert (page.element("NextPartNumberMarker"), page.element("IsTruncated")) == ("3", "true")


# on the answer


@pytest.mark.parametrize("close", ["rst", "fin"])
def test_an_answer_is_dropped_after_the_request_was_applied(
    server: DevServer, oss: Oss, close: str
) -> None:
    upload_id = oss.initiate()
    oss.put_part(upload_id, 1)
    server.faults.replace([{"action": "drop_answer", "close": close}])
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        oss.complete(upload_id, [(1, etag())])
    assert server.object_bytes(oss.video_id) == PART
    assert oss.complete(upload_id, [(1, etag())]).code == "NoSuchUpload"


def test_refusals_alone_can_be_lost(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "lose_refusal", "count": None}])
    assert oss.put_part(upload_id, 1).status == 200
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        oss.put_part("no-such-upload", 1)


def test_vods_answers_can_be_dropped_too(server: DevServer, vod: Vod) -> None:
    server.faults.replace([{"action": "drop_answer", "operation": "CreateUploadVideo"}])
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        vod.call("CreateUploadVideo", Title="t", FileName="a.mp4")
    assert len(server.videos) == 1


def test_a_dripped_answer_takes_its_time(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "drip", "delay_s": 0.0005}])
    started = time.monotonic()
    assert oss.put_part(upload_id, 1).headers["etag"] == etag()
    assert time.monotonic() - started > 0.1


def test_an_answers_body_can_break_off(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "truncate_body", "after_bytes": 20, "close": "fin"}])
    with pytest.raises(http.client.IncompleteRead) as caught:
        oss.list_parts(listed)
    assert len(caught.value.partial) == 20


def test_an_answers_headers_can_break_off(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": "truncate_headers", "close": "fin"}])
    answer = talk(oss, put_request(oss, upload_id))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\n\r\n" not in answer


def test_an_answer_can_be_garbage(server: DevServer, oss: Oss) -> None:
    server.faults.replace([{"action": "garbage"}])
    with pytest.raises(http.client.BadStatusLine):
        oss.call("HEAD")


def test_a_200_can_hold_an_error(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    oss.put_part(upload_id, 1)
    server.faults.replace([{"action": "error_body", "code": "InternalError"}])
    reply = oss.complete(upload_id, [(1, etag())])
    assert (reply.status, reply.code) == (200, "InternalError")


def test_a_document_can_be_cut_with_matching_length(
    server: DevServer, vod: Vod, oss: Oss, listed: str
) -> None:
    server.faults.replace([{"action": "malformed", "count": 2}])
    xml = oss.list_parts(listed)
    assert b"<ListPartsResult>" in xml.body
    assert b"</ListPartsResult>" not in xml.body
    json_text = vod.call("GetVideoInfo", VideoId=oss.video_id).body
    assert json_text.startswith(b"{")
    assert not json_text.endswith(b"}")


def test_a_json_answer_can_name_a_field_twice(server: DevServer, vod: Vod, oss: Oss) -> None:
    server.faults.replace([{"action": "repeated_key"}])
    body = vod.call("GetVideoInfo", VideoId=oss.video_id).body
    assert body.count(b'"RequestId"') == 2


def test_a_body_can_be_empty_or_huge(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "empty_body"}])
    assert oss.list_parts(listed).body == b""
    server.faults.replace([{"action": "oversize", "value": 1_000_000}])
    assert len(oss.list_parts(listed).body) > 1_000_000


def test_a_gzip_bomb_unpacks_to_what_was_ordered(server: DevServer, oss: Oss, listed: str) -> None:
    server.faults.replace([{"action": "gzip_bomb", "value": 16 * 1024 * 1024}])
    reply = oss.list_parts(listed)
    assert reply.headers["content-encoding"] == "gzip"
    assert len(reply.body) < 100_000
    assert len(gzip.decompress(reply.body)) == 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("action", "header", "expected"),
    [
        ("wrong_etag", "etag", '"' + "F" * 32 + '"'),
        ("missing_etag", "etag", None),
        ("wrong_crc", "x-oss-hash-crc64ecma", "1234567890"),
        ("missing_crc", "x-oss-hash-crc64ecma", None),
    ],
)
def test_checksums_of_an_answer_can_lie_or_lack(
    server: DevServer, oss: Oss, action: str, header: str, expected: str | None
) -> None:
    upload_id = oss.initiate()
    server.faults.replace([{"action": action, "operation": "*", "count": 2}])
    assert oss.put_part(upload_id, 1).headers.get(header) == expected
    done = oss.complete(upload_id, [(1, etag())])
    assert done.headers.get(header) == expected
    assert server.object_bytes(oss.video_id) == PART


def test_callback_failed_is_203_and_the_object_exists(server: DevServer, oss: Oss) -> None:
    upload_id = oss.initiate()
    oss.put_part(upload_id, 1)
    server.faults.replace([{"action": "callback_failed"}])
    reply = oss.complete(upload_id, [(1, etag())])
    assert (reply.status, reply.code) == (203, "CallbackFailed")
    assert server.object_bytes(oss.video_id) == PART


def test_a_stale_connection_dies_on_its_next_request(server: DevServer, oss: Oss) -> None:
    server.faults.replace([{"action": "stale_close"}])
    host, port = oss.endpoint.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    target, headers = oss.signed("HEAD", {}, {})
    connection.request("HEAD", target, headers=headers)
    assert connection.getresponse().read() == b""
    connection.request("HEAD", target, headers=headers)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.getresponse()
    connection.close()
    assert oss.call("HEAD").status == 404
