"""No packet goes to a host that was refused: the whole table of hostile endpoints, as grants.

What would be sent is counted at two places: in front of the real transport, and at sockets
that listen on this machine at every port a hostile endpoint may mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.protocol.test_trust import HOSTILE_ENDPOINTS
from uploader import InvalidGrant, TrustPolicy, UntrustedEndpoint, Uploader, VodupError
from uploader.protocol.wire import Response, SignedRequest
from uploader.transport import AiohttpTransport

from .harness import LOOPBACK, PART, Desk, options
from .test_trust import evil

PORTS = (80, 443, 8080, 8443)

READ_AS_OSS = {"https://oss-cn-shanghai.aliyuncs.com//"}
"""Nothing but slashes after the true host: it is read as that host."""

OSS = "outin-aaaa.oss-cn-shanghai.aliyuncs.com"


class Gate:
    """Lets pass what goes to this machine, and remembers every host. Mutable."""

    def __init__(self, inner: AiohttpTransport) -> None:
        self._inner = inner
        self.hosts: set[str] = set()

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        host = urlsplit(request.url).hostname or ""
        self.hosts.add(host)
        assert host != OSS, "as meant, and not to be disturbed"
        return await self._inner.send(request, answer_timeout_s=answer_timeout_s)


@asynccontextmanager
async def trapped(*ports: int) -> AsyncIterator[tuple[list[str], list[int]]]:
    """Listen wherever a hostile address may lead on this machine; who came, and where to."""
    came: list[str] = []
    open_ports: list[int] = []

    def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(f"connection to {writer.get_extra_info('sockname')}")
        writer.transport.abort()

    async with AsyncExitStack() as stack:
        for port in ports:
            for host in ("127.0.0.1", "::1"):
                try:
                    listener = await asyncio.start_server(visited, host, port)
                except OSError:  # taken, not allowed, or no IPv6 here
                    continue
                stack.callback(listener.close)
                open_ports.append(listener.sockets[0].getsockname()[1])
        yield came, open_ports


async def contacted_hosts(desk: Desk, endpoint: str, trust: TrustPolicy, number: int) -> set[str]:
    """Upload with a grant that names `endpoint`; which hosts were sent to."""
    async with AiohttpTransport(stall_timeout_s=2.0, connect_timeout_s=2.0) as hands:
        gate = Gate(hands)
        async with Uploader(
            evil(endpoint), state="memory", options=options(), trust=trust, transport=gate
        ) as up:
            with pytest.raises((VodupError, AssertionError)) as caught:
                await up.upload(desk.folder / "movie.mp4", key=f"hostile-{number}")
        if not gate.hosts:
            assert isinstance(caught.value, UntrustedEndpoint | InvalidGrant)
        return gate.hosts


def test_the_table_is_as_long_as_promised() -> None:
    assert len(set(HOSTILE_ENDPOINTS)) >= 60


async def test_no_hostile_endpoint_is_sent_a_packet(desk: Desk) -> None:
    desk.file(2 * PART)
    async with trapped(*PORTS) as (came, _):
        for number, endpoint in enumerate(HOSTILE_ENDPOINTS):
            hosts = await contacted_hosts(desk, endpoint, TrustPolicy(), number)
            assert hosts == ({OSS} if endpoint in READ_AS_OSS else set()), endpoint
        await asyncio.sleep(0.02)
    assert came == []


async def test_what_is_allowed_does_reach_the_sockets(desk: Desk) -> None:
    """The net has no hole: with loopback allowed, one row of the table is a visit."""
    desk.file(2 * PART)
    async with trapped(0) as (came, ports):
        hosts = await contacted_hosts(desk, f"http://127.0.0.1:{ports[0]}", LOOPBACK, 0)
    assert hosts == {"127.0.0.1"}
    assert came
