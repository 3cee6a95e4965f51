"""Every toxic does what it says, measured at a raw socket, and acts as often as ordered."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
import trustme

from uploader.protocol.integrity import crc64

from ..rawserver import RawServer, echo_checksums, serving
from .proxy import Close, Direction, FaultProxy, Toxic, closed_port, unreachable

BODY = bytes(range(256)) * 400


@dataclass
class Line:
    """One connection through the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self, path: str = "/", body: bytes = BODY) -> bytes:
        """Send a request and read until its answer is complete or the connection ends."""
        await self.send(path, body)
        return await self.answer()

    async def send(self, path: str = "/", body: bytes = BODY) -> None:
        self.writer.write(f"PUT {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        self.writer.write(body)
        await self.writer.drain()

    async def answer(self) -> bytes:
        answer = b""
        while not answer.endswith(b"\r\n\r\n") and (piece := await self.reader.read(65536)):
            answer += piece
        return answer


@asynccontextmanager
async def through(proxy: FaultProxy) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(*proxy.address)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture
async def upstream() -> AsyncIterator[RawServer]:
    async with serving(echo_checksums) as server:
        yield server


Proxied = Callable[..., AbstractAsyncContextManager[FaultProxy]]


@pytest.fixture
def proxied(upstream: RawServer) -> Proxied:
    def make(*toxics: Toxic, receive_buffer: int | None = None) -> FaultProxy:
        port = int(upstream.url.rpartition(":")[2])
        return FaultProxy("127.0.0.1", port, *toxics, receive_buffer=receive_buffer)

    return make


def is_intact(answer: bytes, body: bytes = BODY) -> bool:
    return f"X-Size: {len(body)}\r\nX-Crc: {crc64(body)}".encode() in answer


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


# --- aim --------------------------------------------------------------------------------


async def test_without_orders_everything_passes(proxied: Proxied, upstream: RawServer) -> None:
    async with proxied() as proxy, through(proxy) as line:
        for _ in range(3):
            assert is_intact(await line.request())
    assert (upstream.connection_count, len(upstream.heads)) == (1, 0)
    assert proxy.consumed == 0


async def test_a_toxic_strikes_the_requests_its_pattern_fits(proxied: Proxied) -> None:
    toxic = Toxic(action="swallow", pattern=rb"partNumber=3\b", count=2)
    async with proxied(toxic) as proxy:
        fates = []
        for path in ("/?partNumber=3", "/?partNumber=33", "/?partNumber=3", "/?partNumber=3"):
            async with through(proxy) as line:
                fates.append(is_intact(await line.request(path)))
        assert fates == [False, True, False, True]
        assert proxy.consumed == 2


async def test_a_toxic_may_let_some_pass_first(proxied: Proxied) -> None:
    async with proxied(Toxic(action="swallow", skip=1)) as proxy, through(proxy) as line:
        assert is_intact(await line.request())
        assert await line.request() == b""


async def test_a_toxic_may_wait_for_a_connection_or_for_its_reuse(proxied: Proxied) -> None:
    async with proxied(Toxic(action="swallow", connection=2)) as proxy:
        async with through(proxy) as first, through(proxy) as second:
            assert is_intact(await first.request())
            assert await second.request() == b""
        proxy.order(Toxic(action="swallow", request=2, count=None))
        async with through(proxy) as line:
            assert is_intact(await line.request())
            assert await line.request() == b""
        assert proxy.consumed == 1


def test_an_unknown_toxic_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown toxic"):
        Toxic(action="explode")


# --- as a connection is accepted ---------------------------------------------------------


async def test_refuse_resets_at_once(proxied: Proxied, upstream: RawServer) -> None:
    async with proxied(Toxic(action="refuse")) as proxy:
        async with through(proxy) as line:
            with pytest.raises(ConnectionResetError):
                await line.request()
        async with through(proxy) as line:
            assert is_intact(await line.request())
    assert (proxy.consumed, upstream.connection_count) == (1, 1)


async def test_a_black_hole_takes_and_never_answers(proxied: Proxied, upstream: RawServer) -> None:
    async with proxied(Toxic(action="blackhole")) as proxy, through(proxy) as line:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await line.request()
    assert upstream.connection_count == 0


async def test_tls_abort_ends_the_handshake(proxied: Proxied) -> None:
    async with proxied(Toxic(action="tls_abort")) as proxy:
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(*proxy.address, ssl=ssl.create_default_context())


async def test_slow_accept_waits_first(proxied: Proxied) -> None:
    async with proxied(Toxic(action="slow_accept", delay_s=0.2)) as proxy, through(proxy) as line:
        watch = Stopwatch()
        assert is_intact(await line.request())
        assert watch.seconds >= 0.2


async def test_a_certificate_of_its_own_is_shown(upstream: RawServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    port = int(upstream.url.rpartition(":")[2])
    async with FaultProxy("127.0.0.1", port, tls=context) as proxy:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(*proxy.address, ssl=ssl.create_default_context())
        assert proxy.url.startswith("https://")


async def test_a_closed_port_refuses_and_a_full_one_is_silent() -> None:
    async with closed_port() as url:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    async with unreachable() as url:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


# --- bytes on their way ------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_latency_delays(proxied: Proxied, direction: Direction) -> None:
    toxic = Toxic(action="latency", direction=direction, delay_s=0.15, jitter_s=0.02)
    async with proxied(toxic) as proxy, through(proxy) as line:
        watch = Stopwatch()
        assert is_intact(await line.request(body=b"x"), b"x")
        assert watch.seconds >= 0.13
        watch = Stopwatch()
        assert is_intact(await line.request(body=b"x"), b"x")
        assert watch.seconds < 0.13


async def test_bandwidth_limits_the_rate(proxied: Proxied) -> None:
    toxic = Toxic(action="bandwidth", rate=len(BODY) / 0.3)
    async with proxied(toxic) as proxy, through(proxy) as line:
        watch = Stopwatch()
        assert is_intact(await line.request())
        assert watch.seconds >= 0.3


async def test_the_slicer_sends_pieces(proxied: Proxied) -> None:
    toxic = Toxic(action="slicer", direction="down", size=1, delay_s=0.005)
    async with proxied(toxic) as proxy, through(proxy) as line:
        watch = Stopwatch()
        await line.send()
        assert len(await line.reader.read(65536)) == 1
        answer = await line.answer()
        assert watch.seconds >= 0.005 * len(answer)


@pytest.mark.parametrize("close", ["fin", "rst", "hang"])
@pytest.mark.parametrize("after", [0, 10])
async def test_limit_cuts_the_answer(proxied: Proxied, close: Close, after: int) -> None:
    toxic = Toxic(action="limit", direction="down", after=after, close=close)
    async with proxied(toxic) as proxy, through(proxy) as line:
        await line.send()
        if after:
            assert await line.reader.readexactly(after) == b"HTTP/1.1 2"
        if close == "fin":
            assert await line.reader.read() == b""
        else:
            expected = ConnectionResetError if close == "rst" else TimeoutError
            with pytest.raises(expected):
                async with asyncio.timeout(0.2):
                    await line.reader.read()


@pytest.mark.parametrize("close", ["fin", "rst"])
async def test_limit_cuts_the_request(close: Close) -> None:
    received: list[int] = []

    async with serving(lambda c: _count(c.reader, received)) as upstream:
        port = int(upstream.url.rpartition(":")[2])
        toxic = Toxic(action="limit", after=5000, in_body=True, close=close)
        async with FaultProxy("127.0.0.1", port, toxic) as proxy, through(proxy) as line:
            if close == "rst":
                with pytest.raises(ConnectionError):
                    await line.request()
            else:
                assert await line.request() == b""
        await asyncio.sleep(0.05)
    head_size = len(f"PUT / HTTP/1.1\r\nContent-Length: {len(BODY)}\r\n\r\n")
    assert received == [head_size + 5000]


async def _count(reader: asyncio.StreamReader, received: list[int]) -> None:
    size = 0
    while piece := await reader.read(65536):
        size += len(piece)
    received.append(size)


async def test_truncate_swallows_the_rest_and_keeps_the_other_direction(proxied: Proxied) -> None:
    toxic = Toxic(action="truncate", direction="down", after=12)
    async with proxied(toxic) as proxy, through(proxy) as line:
        assert await line.request() == b"HTTP/1.1 200"
        line.writer.write(b"still taken")
        await line.writer.drain()


async def test_corrupt_flips_one_byte(proxied: Proxied) -> None:
    toxic = Toxic(action="corrupt", after=70_000, in_body=True, xor=0x40)
    damaged = bytearray(BODY)
    damaged[70_000] ^= 0x40
    async with proxied(toxic) as proxy, through(proxy) as line:
        assert is_intact(await line.request(), bytes(damaged))
        assert is_intact(await line.request())


async def test_corrupt_finds_its_byte(proxied: Proxied) -> None:
    toxic = Toxic(action="corrupt", direction="down", find=rb"X-Size: \d", xor=0x01)
    async with proxied(toxic) as proxy, through(proxy) as line:
        assert b"X-Size: 002400" in await line.request()


# --- requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("close", ["fin", "rst", "hang"])
async def test_swallow_reads_all_and_forwards_nothing(
    proxied: Proxied, upstream: RawServer, close: Close
) -> None:
    async with proxied(Toxic(action="swallow", close=close)) as proxy, through(proxy) as line:
        if close == "fin":
            assert await line.request() == b""
        else:
            expected = ConnectionResetError if close == "rst" else TimeoutError
            with pytest.raises(expected):
                async with asyncio.timeout(0.2):
                    await line.request()


async def test_an_answer_can_come_before_the_body(proxied: Proxied) -> None:
    early = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"
    async with proxied(Toxic(action="answer", answer=early)) as proxy, through(proxy) as line:
        line.writer.write(b"PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        assert await line.answer() == early


async def test_a_duplicate_reaches_upstream_later(proxied: Proxied, upstream: RawServer) -> None:
    toxic = Toxic(action="duplicate", delay_s=0.2, close="rst")
    async with proxied(toxic) as proxy:
        async with through(proxy) as line:
            with pytest.raises(ConnectionResetError):
                await line.request()
        async with through(proxy) as line:
            assert is_intact(await line.request(body=b"retry"), b"retry")
        assert proxy.replayed == []
        await proxy.settled()
        assert [is_intact(answer) for answer in proxy.replayed] == [True]
    assert upstream.connection_count == 3


async def test_reset_peer_waits_for_its_moment(proxied: Proxied) -> None:
    toxic = Toxic(action="reset_peer", delay_s=0.1)
    async with proxied(toxic) as proxy, through(proxy) as line:
        assert is_intact(await line.request())
        watch = Stopwatch()
        with pytest.raises(ConnectionResetError):
            await line.reader.read()
        assert 0.02 < watch.seconds < 1


async def test_half_open_takes_only_so_much(proxied: Proxied) -> None:
    toxic = Toxic(action="half_open", after=5000)
    async with proxied(toxic, receive_buffer=4096) as proxy, through(proxy) as line:
        line.writer.transport.set_write_buffer_limits(high=0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await line.send(body=bytes(8 * 1024 * 1024))
        assert line.writer.transport.get_write_buffer_size() > 1024 * 1024


async def test_slow_close_ends_the_answer_before_the_connection(proxied: Proxied) -> None:
    toxic = Toxic(action="slow_close", delay_s=0.2)
    async with proxied(toxic) as proxy, through(proxy) as line:
        assert is_intact(await line.request())
        assert await line.reader.read() == b""
        line.writer.write(b"PUT")
        await line.writer.drain()
        await asyncio.sleep(0.3)
        with pytest.raises(ConnectionError):
            await keep_writing(line)


async def keep_writing(line: Line) -> None:
    for _ in range(3):
        line.writer.write(b"PUT")
        await line.writer.drain()
        await asyncio.sleep(0.01)
