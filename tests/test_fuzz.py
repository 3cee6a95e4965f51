"""Everything that reads what others wrote, fed with what nobody should write.

Each input is a valid document, damaged: bits flipped, pieces cut, doubled, swapped between
documents, replaced by what parsers choke on. Out comes a value or a typed error, soon.
`VODUP_FUZZ=10` multiplies the inputs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from uploader import (
    BytesSource,
    CallbackProvider,
    MemoryState,
    SqlState,
    TrustPolicy,
    Uploader,
    UploadTarget,
    VodupError,
    decode_answer,
    decode_grant,
)
from uploader.credentials import life_s
from uploader.protocol import oss, vod
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.part_sizes import plan_file
from uploader.protocol.plan import Part, read_plan
from uploader.protocol.trust import ServiceName
from uploader.protocol.wire import BytesBody, Operation, Response, SentBody
from uploader.sources import Fingerprint
from uploader.state import PartAck, Phase, UploadRecord

from .clocks import SkippingClock

TIMES = int(os.environ.get("VODUP_FUZZ", "1"))
BATCH = 50
EXAMPLES = 200 * TIMES
LIMIT_S = 0.05 if "coverage" not in sys.modules else 0.25  # tracing takes its time

TARGET = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-0123456789abcdef", "sv/a.mp4")
ADDRESS = {
    "Endpoint": "https://oss-cn-shanghai.aliyuncs.com",
    "Bucket": "outin-0123456789abcdef",
    "FileName": "sv/4f3a/7-1.mp4",
}
AUTH = {
    "SecurityToken": "CAIS0gR1q6Ft5B2yfSjIr",
    "AccessKeyId": "STS.NTzdwB7vPq",
    "AccessKeySecret": "8a7s6d5f",
    "ExpireUTCTime": "2026-11-22T10:03:54Z",
    "Expiration": "3000",
    "Region": "cn-shanghai",
}


def b64(fields: object) -> bytes:
    return base64.b64encode(json.dumps(fields).encode())


ANSWER = {
    "RequestId": "25818875-5F78-4AF6-D7393642CA58",
    "VideoId": "c6a2f1b0e4d94b1c8f3a5d7e9b0c1d2e",
    "UploadAddress": b64(ADDRESS).decode(),
    "UploadAuth": b64(AUTH).decode(),
}
XML_ANSWER = "".join(f"<{name}>{value}</{name}>" for name, value in ANSWER.items())


# --- damaging -------------------------------------------------------------------------------

CHOKING = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b"\x1b[2J", "\u202e".encode(),
    "９".encode(), "\U0001f4a3".encode(), b"%00", b"..", b"/", b"//", b"@", b"#", b"?", b":443",
    b"[", b"]", b"{", b"}", b'"', b"\\", b"\\ud800", b"[" * 3000, b'{"a":' * 2000, b"<a>" * 1500,
    b"null", b"true", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"1" * 25, b"9" * 5000,
    b"18446744073709551616", b"-", b"=", b"==", b"&amp;", b"&x;", b"<!DOCTYPE a>", b"<![CDATA[",
    b"<!ENTITY a 'b'>", b"<?xml version='1.0' encoding='utf-16'?>", b"0000-00-00T00:00:00Z",
    b"9999-12-31T23:59:60+99:99", b"Mon, 99 Foo 99999 99:99:99 +9999", b"127.0.0.1", b"0x7f.1",
    b"evil.example", b".aliyuncs.com", b"xn--", b"a" * 9000,
]  # fmt: skip


def damaged(draw: random.Random, whole: bytes, others: list[bytes]) -> bytes:
    """One to four injuries."""
    data = whole
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice((0, 1, 1, 2, 5, 20, 200)))
        data = data[:at] + draw.choice(INJURIES)(draw, data[at:to], others) + data[to:]
    return data


def _flipped(draw: random.Random, piece: bytes, others: list[bytes]) -> bytes:
    return bytes(byte ^ (1 << draw.randrange(8)) for byte in piece)


def _spliced(draw: random.Random, piece: bytes, others: list[bytes]) -> bytes:
    other = draw.choice(others)
    at = draw.randrange(len(other) + 1)
    return other[at : at + draw.randrange(40)]


INJURIES: list[Callable[[random.Random, bytes, list[bytes]], bytes]] = [
    _flipped,
    _spliced,
    lambda draw, piece, others: b"",
    lambda draw, piece, others: piece * draw.choice((2, 3, 50)),
    lambda draw, piece, others: draw.choice(CHOKING),
    lambda draw, piece, others: draw.randbytes(draw.randrange(1, 6)),
    lambda draw, piece, others: piece[::-1],
    lambda draw, piece, others: piece.swapcase(),
]


# --- what reads -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Something that reads, and valid documents for it."""

    read: Callable[[bytes], object]
    documents: list[bytes]


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _both(data: bytes) -> None:
    """As bytes and as text, in both places of the pair."""
    for document in (data, _text(data)):
        for pair in ((document, AUTH), (ADDRESS, document), (document, document)):
            with contextlib.suppress(VodupError):
                life_s(decode_grant(*pair).credentials, clock=SkippingClock())


def _answers(data: bytes) -> None:
    for document in (data, _text(data)):
        with contextlib.suppress(VodupError):
            life_s(decode_answer(document).credentials, clock=SkippingClock())


def _timed(data: bytes) -> object:
    """As each of the fields that tell an end."""
    text = _text(data)
    fields = [{"ExpireUTCTime": text}, {"Expiration": text}, {"Region": text}]
    grants = [decode_grant(ADDRESS, {**AUTH, **changed}) for changed in fields[:2]]
    grants.append(decode_grant(ADDRESS, {**AUTH, **fields[2]}))
    return [life_s(grant.credentials, clock=SkippingClock()) for grant in grants]


def _parsed(*operations: Operation[Any]) -> Callable[[bytes], None]:
    """The data as the body of an answer of any status, and as one of its headers."""

    def read(data: bytes) -> None:
        text = _text(data)
        draw = random.Random(data)
        name, status = draw.choice(HEADERS), draw.choice((203, 206, 302, 400, 404, 503))
        packed = base64.b64encode(data).decode() if name == "x-oss-err" else text
        for operation in operations:
            _swallow(operation, Response(200, {"date": text}, data, SENT))
            _swallow(operation, Response(status, {name: text}, data, SENT))
            _swallow(operation, Response(status, {name: packed}, b"", SENT))
            _swallow(operation, Response(200, {name: packed}, OK, SENT))

    return read


def _swallow(operation: Operation[Any], response: Response) -> None:
    with contextlib.suppress(VodupError):
        operation.parse(response)


SENT = SentBody(5, 0, None)
OK = b"<R/>"
HEADERS = (
    "etag",
    "x-oss-hash-crc64ecma",
    "content-length",
    "content-range",
    "x-oss-err",
    "x-oss-ec",
    "x-oss-request-id",
    "retry-after",
)


def _dates(data: bytes) -> None:
    response = Response(200, {"date": _text(data), "retry-after": _text(data)}, b"")
    assert response.server_epoch_s is None or isinstance(response.server_epoch_s, float)
    assert response.retry_after_s is None or 0 <= response.retry_after_s < 1e6


def _trusted(data: bytes) -> None:
    policy = TrustPolicy()
    text = _text(data)
    services: tuple[ServiceName, ...] = ("OSS", "VOD", "IMS")
    for service in services:
        with contextlib.suppress(VodupError):
            host = policy.check_endpoint(service, text).removeprefix("https://")
            assert host.endswith(".aliyuncs.com")
            assert set(host) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    for target in (
        UploadTarget(text, TARGET.bucket, TARGET.object_key),
        UploadTarget(TARGET.endpoint, text, TARGET.object_key),
        UploadTarget(TARGET.endpoint, TARGET.bucket, text),
    ):
        with contextlib.suppress(VodupError):
            policy.check_target(target)
    with contextlib.suppress(VodupError):
        TrustPolicy(allowed_hosts=frozenset({text}))


def _planned(data: bytes) -> None:
    plan = read_plan(_text(data))
    assert sum(part.size for part in plan.parts) == plan.capacity


ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchUpload</Code><Message>The specified '
    b"upload does not exist.</Message><RequestId>5C3D8D2A0ACA54D87B43</RequestId><HostId>b.oss-cn-"
    b"shanghai.aliyuncs.com</HostId><EC>0042-00000104</EC></Error>"
)
LISTED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<ListPartsResult xmlns="http://doc.oss-cn.aliyuncs.com'
    b'"><Bucket>b</Bucket><UploadId>0004B999EF5A239BB9138C6227D69F95</UploadId><NextPartNumberMarker'
    b">5</NextPartNumberMarker><IsTruncated>true</IsTruncated><Part><PartNumber>1</PartNumber><ETag"
    b">&quot;3349DC700140D7F86A0784842780****&quot;</ETag><HashCrc64ecma>8923746</HashCrc64ecma>"
    b"<Size>6291456</Size></Part></ListPartsResult>"
)
INITIATED = (
    b'<?xml version="1.0" encoding="UTF-8"?><InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k'
    b"</Key><UploadId>0004B9894A22E5B1888A1E29F823****</UploadId></InitiateMultipartUploadResult>"
)
COMPLETED = (
    b'<?xml version="1.0" encoding="UTF-8"?><CompleteMultipartUploadResult><Bucket>b</Bucket><ETag>'
    b"&quot;B864DB6A936D376F9F8D3ED3BBE540****-3&quot;</ETag></CompleteMultipartUploadResult>"
)
VOD_ERROR = b'{"RequestId":"A-1","Code":"Throttling.User","Message":"no","HostId":"vod"}'
MEZZANINE = (
    b'{"RequestId":"A-1","Mezzanine":{"VideoId":"c6a2","Status":"Normal","Size":64610,"FileURL":'
    b'"https://outin-1.oss-cn-shanghai.aliyuncs.com/sv/a.mp4?Expires=1&Signature=x"}}'
)
PLAN = plan_file(30 * 2**20, part_size=2 * 2**20, concurrency=4).to_text().encode()
FINGERPRINT = Fingerprint(5, 1732266234000000000, 1732266234000000001, 4711, 2049).to_text()
ENDPOINTS = [
    b"https://oss-cn-shanghai.aliyuncs.com",
    b"oss-accelerate.aliyuncs.com",
    b"https://vod.cn-shanghai.aliyuncs.com/",
    b"https://cn-x.oss.aliyuncs.com:443",
    b"outin-0123456789abcdef",
    b"sv/4f3a/7-1.mp4",
]
DATES = [
    b"Sun, 22 Nov 2026 09:03:54 GMT",
    b"2026-11-22T10:03:54Z",
    b"2026-11-22 10:03:54.123+08:00",
    b"3000",
    b"12",
    b"cn-shanghai",
]
VOD_URL = "https://vod.cn-shanghai.aliyuncs.com"
BODY = BytesBody(b"12345")

READERS = {
    "UploadAddress and UploadAuth": Reader(
        _both, [b64(ADDRESS), b64(AUTH), json.dumps(ADDRESS).encode(), json.dumps(AUTH).encode()]
    ),
    "UploadAuth inside base64": Reader(
        lambda data: decode_grant(ADDRESS, base64.b64encode(data)), [json.dumps(AUTH).encode()]
    ),
    "whole answers": Reader(
        _answers,
        [json.dumps(ANSWER).encode(), f"<R>{XML_ANSWER}</R>".encode(), VOD_ERROR, ERROR],
    ),
    "ends of credentials": Reader(_timed, DATES),
    "answers to Initiate and Complete": Reader(
        _parsed(
            oss.initiate_multipart_upload(TARGET),
            oss.complete_multipart_upload(TARGET, "U", [(1, "E")]),
        ),
        [INITIATED, COMPLETED, ERROR],
    ),
    "answers to ListParts": Reader(_parsed(oss.list_parts(TARGET, "U")), [LISTED, ERROR]),
    "answers to UploadPart and HeadObject": Reader(
        _parsed(oss.upload_part(TARGET, "U", Part(1, 0, 5), BODY), oss.head_object(TARGET)),
        [ERROR, b'"3349DC700140D7F86A0784842780"', b"8923746", b"bytes 0-0/6291456", *DATES],
    ),
    "answers of VOD": Reader(
        _parsed(
            vod.refresh_upload_video(VOD_URL, video_id="V"),
            vod.get_mezzanine_info(VOD_URL, "V"),
        ),
        [json.dumps(ANSWER).encode(), MEZZANINE, VOD_ERROR, ERROR],
    ),
    "dates of answers": Reader(_dates, DATES),
    "endpoints, buckets and keys": Reader(_trusted, ENDPOINTS),
    "plans": Reader(_planned, [PLAN]),
    "fingerprints": Reader(lambda data: Fingerprint.from_text(_text(data)), [FINGERPRINT.encode()]),
}

ALL_DOCUMENTS = [document for reader in READERS.values() for document in reader.documents]


def require_harmless(reader: Reader, data: bytes) -> None:
    """Reading gives a value or a typed error, and takes no longer than it may.

    The time is that of the processor: other processes on this machine do not count.
    """
    for attempt in range(3):
        began_s = time.thread_time()
        with contextlib.suppress(VodupError, MalformedDocument):
            reader.read(data)
        if (taken_s := time.thread_time() - began_s) <= LIMIT_S:
            return
        assert attempt < 2, f"{taken_s:.3f} s for {data!r}"


@pytest.mark.parametrize("name", READERS)
def test_what_reads_ends_in_a_value_or_a_typed_error(name: str) -> None:
    reader = READERS[name]
    count = 0

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64 - 1))
    @example(0)
    def read_damaged(seed: int) -> None:
        nonlocal count
        draw = random.Random(seed)
        for _ in range(BATCH):
            data = damaged(draw, draw.choice(reader.documents), ALL_DOCUMENTS)
            try:
                require_harmless(reader, data)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__} for {data!r}") from error
            count += 1

    read_damaged()

    print(f"{name}: {count} inputs")
    assert count >= EXAMPLES * BATCH


def test_the_inputs_are_as_many_as_promised() -> None:
    assert len(READERS) * EXAMPLES * BATCH >= 120_000 * TIMES


def test_undamaged_documents_are_read() -> None:
    """Damaging what is refused anyway would show nothing."""
    assert decode_grant(b64(ADDRESS), b64(AUTH)).target.bucket == ADDRESS["Bucket"]
    assert decode_answer(f"<R>{XML_ANSWER}</R>").video_id == ANSWER["VideoId"]
    assert oss.list_parts(TARGET, "U").parse(Response(200, {}, LISTED)).next_marker == 5
    assert oss.initiate_multipart_upload(TARGET).parse(Response(200, {}, INITIATED))
    assert vod.get_mezzanine_info(VOD_URL, "V").parse(Response(200, {}, MEZZANINE)).size == 64610
    _planned(PLAN)


# --- the checkpoint ------------------------------------------------------------------------------

RESULT = json.dumps(
    {
        "key": "film", "video_id": "c6a2", "upload_id": None, "bucket": "b", "object_key": "k",
        "size": 5, "crc64": 1, "etag": None, "part_count": 1, "resumed_part_count": 0,
        "renewal_count": 0, "retry_count": 0, "sent_bytes": 5, "verified_by": "crc64",
        "seconds": 0.1, "is_earlier_result": False,
    }
).encode()  # fmt: skip


async def _never(video_id: str) -> dict[str, Any]:
    raise MalformedDocument("no lookup is expected in these tests")


async def _continue(**damage: str) -> None:
    """Resume an upload whose record is damaged; nothing must be sent for it."""
    source = BytesSource(b"12345")
    fingerprint = (await source.fingerprint()).to_text()
    record: dict[str, Any] = {
        "key": "film",
        "phase": Phase.UPLOADING,
        "source": "film",
        "fingerprint": fingerprint,
        "size": 5,
        "video_id": "c6a2",
        "endpoint": TARGET.endpoint,
        "bucket": TARGET.bucket,
        "object_key": TARGET.object_key,
        "plan": plan_file(5).to_text(),
    }
    store = MemoryState()
    async with store.claim("film") as journal:
        await journal.create_record(UploadRecord(**record | damage))
        await journal._claim.add_ack(PartAck(1, 5, "E", 0))
    provider = CallbackProvider(_refused)
    async with Uploader(provider, state=store, transport=_NoNetwork()) as up:
        await up.upload(source, key="film")


async def _refused(video_id: str) -> dict[str, Any]:
    raise _Reached


class _Reached(VodupError):
    """The damage did no harm: the upload would go on."""

    def __init__(self, message: str = "reached") -> None:
        super().__init__(message)


class _NoNetwork:
    async def send(self, request: object, *, answer_timeout_s: float) -> Response:
        raise _Reached


@pytest.mark.parametrize(
    ("field", "document"),
    [("plan", PLAN), ("fingerprint", FINGERPRINT.encode()), ("result", RESULT)],
    ids=["plan", "fingerprint", "result"],
)
def test_a_damaged_record_ends_in_a_typed_error(field: str, document: bytes) -> None:
    draw = random.Random(field)
    with asyncio.Runner() as runner:
        for _ in range(300 * TIMES):
            damage = {field: _text(damaged(draw, document, ALL_DOCUMENTS))}
            if field == "result":
                damage["phase"] = Phase.DONE
            try:
                with contextlib.suppress(VodupError):
                    runner.run(_continue(**damage))
            except Exception as error:
                raise AssertionError(f"{type(error).__name__} for {damage!r}") from error


def test_a_damaged_state_file_is_repaired_or_refused() -> None:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        whole = runner.run(_written(Path(folder) / "whole" / "state.db"))
        draw = random.Random(1)
        count = 60 * TIMES
        for number in range(count):
            path = Path(folder) / f"{number}" / "state.db"
            path.parent.mkdir(mode=0o700)
            data = damaged(draw, whole, [whole])
            path.write_bytes(data)
            try:
                with contextlib.suppress(VodupError):
                    runner.run(_used(path))
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}, number {number}") from error
        print(f"state files: {count} inputs")


async def _written(path: Path) -> bytes:
    async with SqlState(path) as store, store.claim("film") as journal:
        await journal.create_record(
            UploadRecord(
                key="film", phase=Phase.UPLOADING, source="f", fingerprint=FINGERPRINT, size=5
            )
        )
        for number in range(1, 40):
            await journal.add_part(PartAck(number, 102400, f"ETAG-{number}", number))
    return await asyncio.to_thread(path.read_bytes)


async def _used(path: Path) -> None:
    """What a run does with its store: it works, or says why not."""
    async with SqlState(path) as store:
        async with store.claim("film") as journal:
            if journal.record is not None:
                await journal.record_error("went on")
        assert len([status async for status in store.uploads()]) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", READERS)
def test_ten_times_as_many_inputs(name: str) -> None:
    reader = READERS[name]
    draw = random.Random(name)
    for _ in range(10 * EXAMPLES * BATCH):
        require_harmless(reader, damaged(draw, draw.choice(reader.documents), ALL_DOCUMENTS))
