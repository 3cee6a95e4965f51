"""The transport against real sockets that misbehave."""

import asyncio
import gc
import gzip
import hashlib
import inspect
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rawserver import Authority, Connection, echo_checksums, serving
from uploader.errors import (
    ConfigurationError,
    SourceChanged,
    TransportError,
    UntrustedCertificate,
    VodupError,
)
from uploader.pace import Bandwidth, Pace
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body, BytesBody, Response, SignedRequest
from uploader.transport import AiohttpTransport, may_use_congestion
from uploader.transport.errors import transport_error

KIB, MIB = 1024, 1024 * 1024
SECRET = "OSS4-HMAC-SHA256 Credential=topsecret"
BIG = os.urandom(3 * MIB + 17)


@dataclass
class Probe:
    """A body in memory that records how it is used, slow or failing if wished."""

    data: bytes
    pause_s: float = 0.0
    failing_at: int = -1
    reported: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    def read_now(self, into: memoryview, position: int) -> int | None:
        if self.failing_at >= 0 and position >= self.failing_at:
            raise SourceChanged("movie.mp4 was changed.")
        return None if self.pause_s else BytesBody(self.data).read_now(into, position)

    async def read(self, into: memoryview, position: int) -> int:
        await asyncio.sleep(self.pause_s)
        return await BytesBody(self.data).read(into, position)

    def sent(self, position: int) -> None:
        self.reported.append(position)


def a_transport(**options: Any) -> AiohttpTransport:
    return AiohttpTransport(**{"stall_timeout_s": 0.3, "connect_timeout_s": 2.0, **options})


async def send(
    transport: AiohttpTransport,
    url: str,
    body: Body | bytes | None = None,
    *,
    method: str = "PUT",
    answer_timeout_s: float = 1.0,
    needs_md5: bool = False,
) -> Response:
    request = SignedRequest(
        method=method,
        url=f"{url}/bucket/key?uploadId=U&signature=topsecret",
        headers={"authorization": SECRET, "x-oss-security-token": "topsecret"},
        body=BytesBody(body) if isinstance(body, bytes) else body,
        needs_md5=needs_md5,
    )
    return await transport.send(request, answer_timeout_s=answer_timeout_s)


E = TypeVar("E", bound=VodupError)


async def refusal(sending: Awaitable[Response]) -> TransportError:
    """The error, checked to hold no secret anywhere along its chain."""
    return await refusal_of(TransportError, sending)


async def refusal_of(kind: type[E], sending: Awaitable[Response]) -> E:
    """The same for an error of one class."""
    with pytest.raises(kind) as caught:
        await sending
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert "topsecret" not in "".join(traceback.format_exception(error)) + repr(vars(error))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "transport" in frame.f_code.co_filename and frame.f_code.co_filename != __file__:
            shown = {name: v for name, v in frame.f_locals.items() if name != "request"}  # its body
            assert "topsecret" not in repr(shown), "error reporters send variables"
    return error


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = _open_sockets()
    yield
    assert _open_sockets() <= before


def _open_sockets() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {target for target in found if target.startswith("socket:")}


@pytest.fixture(autouse=True, scope="module")
def nothing_warns_in_the_end() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    async with a_transport() as opened:
        yield opened
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert opened.sample() == []


# --- what arrives ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, 64 * KIB, 64 * KIB + 1, 512 * KIB, 3 * MIB + 17])
async def test_the_checksums_are_those_of_what_arrived(
    transport: AiohttpTransport, size: int
) -> None:
    async with serving(echo_checksums) as server:
        answer = await send(transport, server.url, BIG[:size], needs_md5=True)
    assert answer.status == 200
    assert answer.headers["x-size"] == str(size)
    assert answer.headers["x-crc"] == str(answer.sent.crc64) == str(crc64(BIG[:size]))
    assert answer.sent.size == size
    assert answer.sent.md5 == hashlib.md5(BIG[:size], usedforsecurity=False).hexdigest().upper()


async def test_md5_is_computed_only_on_demand(transport: AiohttpTransport) -> None:
    async with serving(echo_checksums) as server:
        answer = await send(transport, server.url, BIG)
    assert answer.sent.md5 is None


async def test_progress_is_reported_up_to_the_last_byte(transport: AiohttpTransport) -> None:
    body = Probe(BIG)
    async with serving(echo_checksums) as server:
        await send(transport, server.url, body)
    assert body.reported == sorted(body.reported)
    assert body.reported[-1] == len(BIG)


async def test_one_connection_serves_many_requests(transport: AiohttpTransport) -> None:
    async with serving(echo_checksums) as server:
        for _ in range(5):
            await send(transport, server.url, BIG)
        await send(transport, server.url, method="GET")
        assert server.connection_count == 1


async def test_the_wire_shows_exactly_what_was_signed(transport: AiohttpTransport) -> None:
    heads = []

    async def record(connection: Connection) -> None:
        while True:
            heads.append(await connection.read_head())
            await connection.read_body(heads[-1])
            await connection.answer()

    async with serving(record) as server:
        for method, body in (("PUT", b"abc"), ("POST", None), ("GET", None), ("DELETE", None)):
            url = server.url + "/a%2Fb+c%20%7E!%21%3D?uploads&x=%2F%26%21"
            signed = SignedRequest(
                method, url, {"authorization": "A"}, BytesBody(body) if body else None
            )
            await transport.send(signed, answer_timeout_s=1)
    assert {head.path for head in heads} == {"/a%2Fb+c%20%7E!%21%3D?uploads&x=%2F%26%21"}
    names = [{name for name, _ in head.headers} for head in heads]
    common = {"host", "accept-encoding", "authorization"}
    assert names == [common | {"content-length"}] * 2 + [common, common | {"content-length"}]
    assert [head.get("content-length") for head in heads] == ["3", "0", None, "0"]
    assert {head.get("accept-encoding") for head in heads} == {"identity"}


async def test_of_repeated_headers_the_first_counts(transport: AiohttpTransport) -> None:
    async with serving(lambda c: _once(c, b"", "ETag: one", "ETag: two")) as server:
        answer = await send(transport, server.url, b"x")
    assert answer.headers["etag"] == "one"


async def test_no_cookie_is_kept(transport: AiohttpTransport) -> None:
    seen = []

    async def set_cookie(connection: Connection) -> None:
        while True:
            head = await connection.read_head()
            seen.append(head.get("cookie"))
            await connection.answer(200, b"", "Set-Cookie: a=b; Path=/")

    async with serving(set_cookie) as server:
        await send(transport, server.url, method="GET")
        await send(transport, server.url, method="GET")
    assert seen == [None, None]


@given(st.binary(min_size=1, max_size=5 * KIB), st.integers(1, 4 * KIB))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_body_in_any_unit_arrives_unchanged(data: bytes, unit_size: int) -> None:
    async def exchange() -> Response:
        async with serving(echo_checksums) as server, a_transport(unit_size=unit_size) as transport:
            return await send(transport, server.url, Probe(data))

    answer = asyncio.run(exchange())
    assert answer.headers["x-crc"] == str(answer.sent.crc64) == str(crc64(data))


async def _read_slowly(connection: Connection) -> None:
    """A small receive buffer and a late start: the sender's buffers fill up first."""
    sock = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KIB)
    head = await connection.read_head()
    await asyncio.sleep(0.2)
    _, crc = await connection.read_body(head)
    await connection.answer(200, b"", f"X-Crc: {crc}")


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("is_tls", [False, True])
def test_no_byte_changes_after_its_checksum(
    make_loop: Callable[[], asyncio.AbstractEventLoop], is_tls: bool, authority: Authority
) -> None:
    """Four bodies share two buffers' worth of memory while the peer is slow to take them."""

    async def exchange() -> list[Response]:
        tls = authority.server() if is_tls else None
        options = {"unit_size": 256 * KIB, "ca_file": authority.ca_file, "stall_timeout_s": 5}
        async with serving(_read_slowly, tls=tls) as server, a_transport(**options) as transport:
            answers = []
            for _ in range(2):
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(send(transport, server.url, _rotated(n)))
                        for n in range(2)
                    ]
                answers += [task.result() for task in tasks]
            return answers

    with asyncio.Runner(loop_factory=make_loop) as runner:
        answers = runner.run(exchange())
    for number, answer in enumerate(answers):
        assert answer.headers["x-crc"] == str(answer.sent.crc64) == str(crc64(_rotated(number % 2)))


def _rotated(number: int) -> bytes:
    return (BIG[number + 1 :] + BIG[: number + 1]) * 4


# --- peers that stop ------------------------------------------------------------------


async def _never_reads(connection: Connection) -> None:
    connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await connection.idle()


async def _never_answers(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.idle()


async def _drips_headers(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await connection.write(b"x")
        await asyncio.sleep(0.05)


async def _drips_body(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await connection.write(b"x")
        await asyncio.sleep(0.05)


async def _says_continue_for_ever(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    while True:
        await connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.05)


async def test_a_peer_that_stops_reading_times_out(transport: AiohttpTransport) -> None:
    huge = bytes(40 * MIB)
    started_at = asyncio.get_running_loop().time()
    async with serving(_never_reads) as server:
        error = await refusal(send(transport, server.url, huge, answer_timeout_s=10))
        assert asyncio.get_running_loop().time() - started_at < 1.5
        await asyncio.sleep(0.01)
        assert transport.sample() == []
    assert "took no byte for 0.3 s" in error.message
    assert error.is_sent
    assert error.is_timeout


@pytest.mark.parametrize(
    "script", [_never_answers, _drips_headers, _drips_body, _says_continue_for_ever]
)
@pytest.mark.parametrize("body", [None, b"small", BIG])
async def test_a_whole_answer_is_due_in_time(
    transport: AiohttpTransport,
    script: Callable[[Connection], Awaitable[None]],
    body: bytes | None,
) -> None:
    patience_s = 0.2 if body else 0.1
    async with serving(script) as server, a_transport(connect_timeout_s=0.1) as impatient:
        async with asyncio.timeout(1.5):
            error = await refusal(
                send(impatient, server.url, body, method="PUT", answer_timeout_s=patience_s)
            )
        await asyncio.sleep(0.01)
        assert impatient.sample() == []
    assert "no complete answer within" in error.message
    assert error.is_sent


async def test_a_slow_answer_in_time_is_taken(transport: AiohttpTransport) -> None:
    async def ponder(connection: Connection) -> None:
        await connection.read_body(await connection.read_head())
        await asyncio.sleep(0.5)
        await connection.answer()

    async with serving(ponder) as server:
        answer = await send(transport, server.url, BIG, answer_timeout_s=3)
    assert answer.status == 200


async def test_a_slow_disk_does_not_time_out(transport: AiohttpTransport) -> None:
    async with serving(echo_checksums) as server:
        answer = await send(transport, server.url, Probe(BIG[: 500 * KIB], pause_s=0.5))
    assert answer.headers["x-crc"] == str(answer.sent.crc64)


async def test_waiting_for_bandwidth_does_not_time_out() -> None:
    pace = Pace(bandwidth=Bandwidth.constant(8 * KIB))
    async with serving(echo_checksums) as server, a_transport(pace=pace) as transport:
        started_at = asyncio.get_running_loop().time()
        answer = await send(transport, server.url, BIG[: 4 * KIB])
        assert 0.4 < asyncio.get_running_loop().time() - started_at < 1.0
    assert answer.sent.size == 4 * KIB


@pytest.mark.parametrize(
    ("seconds", "least"), [(1.5, 0.6), pytest.param(10.0, 0.95, marks=pytest.mark.slow)]
)
async def test_a_bandwidth_limit_holds_over_all_connections(seconds: float, least: float) -> None:
    """The lower bound of the quick one leaves room for a machine that is busy."""
    rate, arrived, has_begun = 6 * MIB, 0, asyncio.Event()

    async def count_bytes(connection: Connection) -> None:
        nonlocal arrived
        await connection.read_head()
        while piece := await connection.reader.read(1 << 20):
            arrived += len(piece)
            has_begun.set()

    pace = Pace(bandwidth=Bandwidth.constant(rate))
    loop = asyncio.get_running_loop()
    async with serving(count_bytes) as server, a_transport(pace=pace) as transport:
        body = bytes(int(rate * seconds))
        sending = [asyncio.ensure_future(send(transport, server.url, body)) for _ in range(5)]
        await has_begun.wait()
        began_s, before = loop.time(), arrived
        await asyncio.sleep(seconds)
        carried, took_s = arrived - before, loop.time() - began_s
        for one in sending:
            one.cancel()
        await asyncio.wait(sending)
    assert least * rate * took_s <= carried <= 1.05 * rate * took_s


async def test_a_slow_peer_does_not_time_out(transport: AiohttpTransport) -> None:
    async def sip(connection: Connection) -> None:
        head = await connection.read_head()
        left = head.content_size
        while left:
            left -= len(await connection.reader.read(64 * KIB))
            await asyncio.sleep(0.01)
        await connection.answer()

    async with serving(sip) as server:
        answer = await send(transport, server.url, BIG)
    assert answer.sent.size == len(BIG)


# --- peers that break off, or talk nonsense -------------------------------------------


async def _resets(connection: Connection) -> None:
    head = await connection.read_head()
    if head.content_size:
        await connection.reader.readexactly(1)
    await connection.reset()


async def _hangs_up(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())


async def _cuts_answer(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


def _writes(raw: bytes) -> Callable[[Connection], Awaitable[None]]:
    async def script(connection: Connection) -> None:
        await connection.read_body(await connection.read_head())
        await connection.write(raw)

    return script


async def _once(connection: Connection, body: bytes, *headers: str, status: int = 200) -> None:
    await connection.read_body(await connection.read_head())
    await connection.answer(status, body, *headers)


GIANT_HEADER = b"HTTP/1.1 200 OK\r\nX-Giant: " + b"x" * 20_000 + b"\r\n\r\n"
MANY_HEADERS = b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 * MIB)


@pytest.mark.parametrize("body", [None, b"small", BIG], ids=["none", "small", "big"])
@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param(_resets, "the connection broke", id="reset"),
        pytest.param(_hangs_up, "closed the connection without an answer", id="hang-up"),
        pytest.param(_cuts_answer, "the answer was cut off", id="cut"),
        pytest.param(_writes(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "not valid HTTP", id="garbage"),
        pytest.param(_writes(b"HTTP/1.1 abc\r\n\r\n"), "not valid HTTP", id="status"),
        pytest.param(_writes(GIANT_HEADER), "not valid HTTP", id="giant-header"),
        pytest.param(_writes(MANY_HEADERS), "not valid HTTP", id="many-headers"),
        pytest.param(_writes(ENDLESS), "longer than", id="endless"),
    ],
)
async def test_an_unusable_answer_is_a_transport_error(
    transport: AiohttpTransport,
    script: Callable[[Connection], Awaitable[None]],
    words: str,
    body: bytes | None,
) -> None:
    async with serving(script) as server:
        error = await refusal(send(transport, server.url, body))
        assert server.connection_count == 1, "aiohttp sent it again behind our back"
    assert words in error.message
    assert error.is_sent


async def test_a_compressed_answer_is_refused_unread(transport: AiohttpTransport) -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    async with serving(lambda c: _once(c, bomb, "Content-Encoding: gzip")) as server:
        error = await refusal(send(transport, server.url, b"x"))
    assert "compressed" in error.message


async def test_head_may_describe_a_compressed_object(transport: AiohttpTransport) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nContent-Encoding: gzip\r\n\r\n"
    async with serving(_writes(head)) as server:
        answer = await send(transport, server.url, method="HEAD")
    assert (answer.headers["content-length"], answer.body) == ("500", b"")


async def test_a_refused_connection_was_certainly_not_sent_to(transport: AiohttpTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    error = await refusal(send(transport, f"http://127.0.0.1:{port}", b"x"))
    assert "Connection refused" in error.message
    assert not error.is_sent
    assert not error.is_timeout


async def test_an_unknown_host_was_certainly_not_sent_to(transport: AiohttpTransport) -> None:
    error = await refusal(send(transport, "http://nowhere.invalid", b"x"))
    assert "nowhere.invalid: the host name cannot be resolved" in error.message
    assert not error.is_sent


async def test_connecting_takes_bounded_time() -> None:
    """A full backlog: the SYN is dropped, as by a firewall."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        crowd = [socket.socket() for _ in range(4)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with a_transport(connect_timeout_s=0.3) as transport:
            port = full.getsockname()[1]
            error = await refusal(send(transport, f"http://127.0.0.1:{port}", b"x"))
        for one in crowd:
            one.close()
    assert "cannot connect in time" in error.message
    assert error.is_timeout
    assert not error.is_sent


@pytest.mark.parametrize("url", ["ftp://host", "http://", "nonsense", "http://[::1"])
async def test_a_bad_url_is_a_transport_error(transport: AiohttpTransport, url: str) -> None:
    error = await refusal(send(transport, url, b"x"))
    assert not error.is_sent


async def test_a_header_with_a_line_break_is_a_transport_error(transport: AiohttpTransport) -> None:
    async with serving(echo_checksums) as server:
        bad = SignedRequest("PUT", server.url, {"x": "a\r\nb"}, BytesBody(b"x"))
        error = await refusal(transport.send(bad, answer_timeout_s=1))
    assert "cannot be written as HTTP" in error.message


def _subclasses(of: type[Exception]) -> Iterator[type[Exception]]:
    yield of
    for child in of.__subclasses__():
        yield from _subclasses(child)


@pytest.mark.parametrize("kind", sorted(set(_subclasses(aiohttp.ClientError)), key=str))
def test_every_error_of_aiohttp_is_translated(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    request = SignedRequest("PUT", "https://host/?signature=topsecret", {"authorization": SECRET})
    ours = transport_error(error, request)
    assert ours.message.startswith("PUT host: ")
    assert "topsecret" not in str(ours)


# --- answers before the end of the body -----------------------------------------------


@pytest.mark.parametrize("status", [302, 400, 403, 503])
@pytest.mark.parametrize("ending", ["drain", "close", "reset", "linger"])
async def test_an_early_refusal_is_delivered_and_stops_the_sending(
    transport: AiohttpTransport, status: int, ending: str
) -> None:
    async def refuse(connection: Connection) -> None:
        head = await connection.read_head()
        await connection.reader.readexactly(100_000)
        await connection.answer(status, b"<Error><Code>SecurityTokenExpired</Code></Error>")
        await asyncio.sleep(0.05)
        match ending:
            case "drain":
                await connection.read_body(head)
            case "reset":
                await connection.reset()
            case "linger":
                await connection.idle()

    huge = bytes(64 * MIB)
    async with serving(refuse) as server:
        answer = await send(transport, server.url, huge)
        assert (answer.status, b"SecurityTokenExpired" in answer.body) == (status, True)
        assert answer.sent.size < len(huge)
        await asyncio.sleep(0)
        assert transport.sample() == []
    async with serving(echo_checksums) as server:
        assert (await send(transport, server.url, BIG)).sent.size == len(BIG)


async def test_nothing_more_is_sent_once_a_refusal_has_begun(transport: AiohttpTransport) -> None:
    async def refuse_slowly(connection: Connection) -> None:
        head = await connection.read_head()
        await connection.reader.readexactly(100_000)
        await connection.write(b"HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nhalf"[:-2])
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.read_body(head)
        await connection.write(b"lf")

    huge = bytes(64 * MIB)
    async with serving(refuse_slowly) as server:
        answer = await send(transport, server.url, huge)
    assert (answer.status, answer.body) == (403, b"half")
    assert answer.sent.size < len(huge)


async def test_an_early_success_reports_how_little_was_sent(transport: AiohttpTransport) -> None:
    async def flatter(connection: Connection) -> None:
        await connection.read_head()
        await connection.answer(200, b"", 'ETag: "plausible"')
        await connection.idle()

    huge = bytes(64 * MIB)
    async with serving(flatter) as server:
        answer = await send(transport, server.url, huge)
        assert answer.status == 200
        assert answer.sent.size < len(huge)
        await asyncio.sleep(0)
        assert transport.sample() == []


async def test_a_refusal_that_never_ends_times_out(transport: AiohttpTransport) -> None:
    async def refuse_for_ever(connection: Connection) -> None:
        await connection.read_head()
        await connection.write(b"HTTP/1.1 403 No\r\nContent-Length: 1000\r\n\r\n")
        await connection.idle()

    async with serving(refuse_for_ever) as server, asyncio.timeout(1.5):
        error = await refusal(send(transport, server.url, bytes(64 * MIB), answer_timeout_s=0.3))
    assert error.is_sent


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_returned_and_not_followed(
    transport: AiohttpTransport, status: int
) -> None:
    async with serving(echo_checksums) as other:
        where = f"Location: {other.url}/elsewhere"
        async with serving(lambda c: _once(c, b"", where, status=status)) as server:
            answer = await send(transport, server.url, b"x")
        assert other.connection_count == 0
    assert (answer.status, answer.headers["location"]) == (status, f"{other.url}/elsewhere")


# --- connections used again -----------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
@pytest.mark.parametrize("read_size", [0, 300_000])
async def test_a_request_on_a_dead_connection_is_not_sent_again(
    transport: AiohttpTransport, method: str, read_size: int
) -> None:
    async def die_on_the_second(connection: Connection) -> None:
        await connection.read_body(await connection.read_head())
        await connection.answer()
        head = await connection.read_head()
        await connection.reader.readexactly(min(read_size, head.content_size))
        await connection.reset()

    body = BIG if method in {"PUT", "POST"} else None
    async with serving(die_on_the_second) as server:
        await send(transport, server.url, method="GET")
        error = await refusal(send(transport, server.url, body, method=method))
        assert server.connection_count == 1
    assert error.is_sent


@pytest.mark.parametrize("answer_count", [1, 2, 3])
async def test_a_connection_closed_between_requests_is_not_used(
    transport: AiohttpTransport, answer_count: int
) -> None:
    async def close_after(connection: Connection) -> None:
        for _ in range(answer_count):
            await _once(connection, b"")

    async with serving(close_after) as server:
        for _ in range(6):
            assert (await send(transport, server.url, BIG)).status == 200
            await asyncio.sleep(0.02)
        assert server.connection_count == 6 // answer_count


async def test_many_requests_share_the_pool_without_waiting(transport: AiohttpTransport) -> None:
    """Half are cancelled while under way; the others and the next ones are not harmed."""
    async with serving(echo_checksums) as server:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(send(transport, server.url, BIG)) for _ in range(40)]
            await asyncio.sleep(0.01)
            for task in tasks[::2]:
                task.cancel()
        assert all(task.result().sent.crc64 == crc64(BIG) for task in tasks[1::2])
        assert (await send(transport, server.url, BIG)).status == 200


# --- the body's own errors, cancellation ----------------------------------------------


@pytest.mark.parametrize("failing_at", [0, MIB])
async def test_an_error_of_the_source_arrives_as_it_is(
    transport: AiohttpTransport, failing_at: int
) -> None:
    async with serving(echo_checksums) as server:
        with pytest.raises(SourceChanged, match="was changed"):
            await send(transport, server.url, Probe(BIG, failing_at=failing_at))
        await asyncio.sleep(0)
        assert transport.sample() == []
        assert (await send(transport, server.url, BIG)).status == 200


async def test_a_body_that_ends_early_never_goes_out_short(transport: AiohttpTransport) -> None:
    @dataclass
    class Short(Probe):
        @property
        def size(self) -> int:
            return len(self.data) + 10

    async with serving(echo_checksums) as server:
        with pytest.raises(SourceChanged):
            await send(transport, server.url, Short(BIG))


@pytest.mark.parametrize("script", [_never_reads, _never_answers, _drips_body])
@pytest.mark.parametrize("body", [None, b"small", bytes(16 * MIB)], ids=["none", "small", "huge"])
async def test_cancelling_closes_the_socket(
    transport: AiohttpTransport,
    script: Callable[[Connection], Awaitable[None]],
    body: bytes | None,
) -> None:
    async with serving(script) as server:
        task = asyncio.ensure_future(send(transport, server.url, body))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        assert transport.sample() == []


async def test_cancelling_at_any_moment_leaves_nothing(transport: AiohttpTransport) -> None:
    async with serving(echo_checksums) as server:
        for moment in range(30):
            task = asyncio.ensure_future(send(transport, server.url, BIG))
            for _ in range(moment):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert (await send(transport, server.url, BIG)).sent.crc64 == crc64(BIG)


@pytest.mark.parametrize("progress_s", [0, 0.001, 0.2])
async def test_closing_is_quick_and_final(progress_s: float) -> None:
    async with serving(_never_answers) as server:
        transport = a_transport()
        task = asyncio.ensure_future(send(transport, server.url, BIG))
        await asyncio.sleep(progress_s)
        async with asyncio.timeout(1):
            await transport.close()
            await transport.close()
        await refusal(task)
        with pytest.raises(RuntimeError, match="closed"):
            await send(transport, server.url, b"x")


# --- TLS ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.in_folder(tmp_path_factory.mktemp("ca"))


async def test_an_extra_authority_is_trusted(authority: Authority) -> None:
    async with (
        serving(echo_checksums, tls=authority.server()) as server,
        a_transport(ca_file=authority.ca_file) as transport,
    ):
        answers = [await send(transport, server.url, BIG) for _ in range(2)]
        assert server.connection_count == 1
    assert {answer.headers["x-crc"] for answer in answers} == {str(crc64(BIG))}


async def test_an_unknown_authority_is_refused(authority: Authority) -> None:
    async with (
        serving(echo_checksums, tls=authority.server()) as server,
        a_transport() as transport,
    ):
        error = await refusal_of(UntrustedCertificate, send(transport, server.url, BIG))
    assert "certificate is not trusted (unable to get local issuer certificate" in error.message
    assert "VODUP_CA_FILE" in error.next_step
    assert "proxy that inspects TLS" in error.next_step
    assert not error.is_temporary


async def test_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    async with (
        serving(echo_checksums, tls=authority.server("oss-cn-shanghai.aliyuncs.com")) as server,
        a_transport(ca_file=authority.ca_file) as transport,
    ):
        error = await refusal_of(UntrustedCertificate, send(transport, server.url, BIG))
    assert "certificate is not trusted" in error.message


async def test_an_old_tls_is_refused(authority: Authority) -> None:
    old = authority.server()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with (
        serving(echo_checksums, tls=old) as server,
        a_transport(ca_file=authority.ca_file) as transport,
    ):
        error = await refusal(send(transport, server.url, BIG))
    assert "cannot connect" in error.message
    assert not error.is_sent


async def test_a_peer_that_stops_reading_tls_times_out(authority: Authority) -> None:
    async def stop(connection: Connection) -> None:
        await connection.read_head()
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.idle()

    async with (
        serving(stop, tls=authority.server()) as server,
        a_transport(ca_file=authority.ca_file) as transport,
        asyncio.timeout(2),
    ):
        error = await refusal(send(transport, server.url, bytes(40 * MIB)))
        await asyncio.sleep(0.01)
        assert transport.sample() == []
    assert "took no byte" in error.message


async def test_an_early_refusal_over_tls_is_delivered(authority: Authority) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.read_head()
        await connection.reader.readexactly(1_000_000)
        await connection.answer(403, b"<Error/>")
        await asyncio.sleep(0.05)

    async with (
        serving(refuse, tls=authority.server()) as server,
        a_transport(ca_file=authority.ca_file) as transport,
    ):
        answer = await send(transport, server.url, bytes(40 * MIB))
    assert (answer.status, answer.body) == (403, b"<Error/>")
    assert answer.sent.size < 40 * MIB


@pytest.mark.parametrize("content", [b"", b"not a certificate", None])
async def test_a_bad_ca_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    async with a_transport(ca_file=path) as transport:
        with pytest.raises(ConfigurationError, match="holds no readable certificates"):
            await send(transport, "https://127.0.0.1:1", b"x")


async def test_closing_does_not_wait_for_a_tls_peer(authority: Authority) -> None:
    async def answer_and_stay(connection: Connection) -> None:
        await connection.read_body(await connection.read_head())
        await connection.answer()
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.idle()

    async with serving(answer_and_stay, tls=authority.server()) as server:
        transport = a_transport(ca_file=authority.ca_file)
        await send(transport, server.url, b"x")
        async with asyncio.timeout(0.5):
            await transport.close()
        assert transport.sample() == []


# --- sockets --------------------------------------------------------------------------


async def test_open_connections_are_sampled(transport: AiohttpTransport) -> None:
    assert transport.sample() == []
    async with serving(echo_checksums) as server:
        await send(transport, server.url, BIG)
        (link,) = transport.sample()
        await send(transport, server.url, BIG)
        (later,) = transport.sample()
    assert link.connection == later.connection
    assert link.acked_bytes >= len(BIG)
    assert later.acked_bytes >= link.acked_bytes + len(BIG)
    assert 0 < link.min_rtt_s <= link.rtt_s < 1


@pytest.mark.parametrize(("wanted", "expected"), [("reno", "reno"), ("nonsense", None)])
async def test_congestion_control_is_requested_and_falls_back(
    wanted: str, expected: str | None
) -> None:
    with socket.socket() as plain:
        default = plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    async with serving(echo_checksums) as server, a_transport(congestion=wanted) as transport:
        await send(transport, server.url, b"x")
        assert transport.congestion() == (expected or default.rstrip(b"\0").decode())


@pytest.mark.skipif(not may_use_congestion("bbr"), reason="this kernel does not let us use bbr")
@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(("near_rtt_s", "expected"), [(1.0, "cubic"), (0.0, "bbr")])
async def test_bbr_is_for_peers_that_are_far(
    authority: Authority, is_tls: bool, near_rtt_s: float, expected: str
) -> None:
    tls = authority.server() if is_tls else None
    async with (
        serving(echo_checksums, tls=tls) as server,
        a_transport(near_rtt_s=near_rtt_s, ca_file=authority.ca_file) as transport,
    ):
        answer = await send(transport, server.url, BIG)
        (link,) = transport.sample()
        assert link.is_slowed_by_loss == (expected == "cubic")
        assert transport.congestion() == expected
    assert answer.headers["x-crc"] == str(answer.sent.crc64)


@pytest.mark.skipif(not may_use_congestion("bbr"), reason="this kernel does not let us use bbr")
async def test_facts_show_the_congestion_control_of_the_path() -> None:
    async with serving(echo_checksums) as server, a_transport(near_rtt_s=0.0) as transport:
        await send(transport, server.url, method="GET")
        assert transport.congestion() == "bbr"


@pytest.mark.skipif(not may_use_congestion("bbr"), reason="this kernel does not let us use bbr")
async def test_a_sample_has_the_congestion_control_of_the_path() -> None:
    """Before the first body: how many connections to begin with depends on it."""
    async with serving(echo_checksums) as server, a_transport(near_rtt_s=0.0) as transport:
        await send(transport, server.url, method="GET")
        (link,) = transport.sample()
        assert not link.is_slowed_by_loss


class WatchedLoop(asyncio.SelectorEventLoop):
    """Remembers the transports it made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[asyncio.Transport] = []

    def _make_socket_transport(self, *args: Any, **kwargs: Any) -> asyncio.Transport:
        made: asyncio.Transport = super()._make_socket_transport(*args, **kwargs)  # type: ignore[misc]
        self.made.append(made)
        return made


def test_what_the_kernel_does_not_take_is_not_copied() -> None:
    """A transport copies what it is given and cannot send: 16 KiB rather than a unit."""

    async def fill_up(loop: WatchedLoop) -> int:
        async with (
            serving(_never_reads) as server,
            a_transport(unit_size=8 * MIB, stall_timeout_s=20) as transport,
        ):
            sending = asyncio.ensure_future(send(transport, server.url, bytes(40 * MIB)))
            held = 0
            while not held:
                await asyncio.sleep(0.05)  # long enough for more than the first piece
                held = max((made.get_write_buffer_size() for made in loop.made), default=0)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
        return held

    loop = WatchedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert 0 < runner.run(fill_up(loop)) <= 16 * KIB


def test_no_request_waits_for_100_continue() -> None:
    package = Path(inspect.getfile(AiohttpTransport)).parent
    assert all("expect100" not in module.read_text() for module in package.glob("*.py"))


# --- memory ---------------------------------------------------------------------------

SEND_A_GIBIBYTE = """
    import asyncio, resource, sys
    from tests.rawserver import echo_checksums, serving
    from uploader.protocol.wire import SignedRequest
    from uploader.sources import FileSource
    from uploader.transport import AiohttpTransport, may_use_congestion

    async def main() -> None:
        async with serving(echo_checksums) as server, AiohttpTransport() as transport:
            async with FileSource(sys.argv[1]) as source:
                async def put(offset, size):
                    request = SignedRequest("PUT", server.url, {}, source.body(offset, size))
                    answer = await transport.send(request, answer_timeout_s=30)
                    assert answer.headers["x-crc"] == str(answer.sent.crc64)
                await put(0, 8 << 20)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                async with asyncio.TaskGroup() as group:
                    for n in range(4):
                        group.create_task(put(n << 28, 1 << 28))
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    asyncio.run(main())
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    script = textwrap.dedent(SEND_A_GIBIBYTE)
    done = run([sys.executable, "-c", script, path], cwd=Path(__file__).parents[1])
    assert int(done.stdout) < 16 * 1024, "KiB"
