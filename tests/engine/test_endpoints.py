"""Which host uploads go to: of the region's own, or a domain that is bound to the bucket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from uploader import (
    AccessKey,
    ConfigurationError,
    PermissionDenied,
    RequestRetried,
    ServiceError,
    TransportError,
    TrustPolicy,
    UntrustedEndpoint,
    Uploader,
    UploadResult,
    VodProvider,
)
from uploader.devserver import DevServer, DevServerOptions, Fault
from uploader.protocol.wire import Response, SignedRequest
from uploader.transport import AiohttpTransport

from .harness import LOOPBACK, PART, Desk, content, options

ADDRESS = "https://oss-cn-shanghai.aliyuncs.com"
CNAME = "media.example.com"


class Relay:
    """Brings requests for hosts of OSS to the development server; some hosts do not answer."""

    def __init__(self, server: DevServer) -> None:
        self.server = server
        self.own = AiohttpTransport()
        self.silent: set[str] = set()
        self.foreign: set[str] = set()
        self.hosts: Counter[str] = Counter()
        self.scopes: set[str] = set()

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        parts = urlsplit(request.url)
        host = parts.hostname or ""
        if host == "127.0.0.1":
            return await self.own.send(request, answer_timeout_s=answer_timeout_s)
        if host.removeprefix(f"{self.server.backend.bucket}.") in self.silent:
            await asyncio.sleep(min(0.4, answer_timeout_s))
            raise TransportError("Nothing answers.", is_sent=False)
        if host in self.foreign:
            return Response(200, {"server": "nginx"}, b"")
        self.hosts[host] += "authorization" in request.headers
        self.scopes.update(request.headers.get("authorization", "").split("/")[2:3])
        here = request.url.replace(f"https://{host}", self.server.oss_endpoint)
        moved = replace(request, url=here, headers={**request.headers, "Host": host})
        return await self.own.send(moved, answer_timeout_s=answer_timeout_s)


@pytest.fixture
async def relay(desk: Desk) -> AsyncIterator[Relay]:
    desk.server.set_options(address_endpoint=ADDRESS)
    found = Relay(desk.server)
    async with found.own:
        yield found


def uploader(desk: Desk, relay: Relay, **changes: Any) -> Uploader:
    return Uploader(
        desk.provider(),
        state=desk.state_path,
        options=options(**changes),
        trust=LOOPBACK,
        on_event=desk.events.append,
        transport=relay,
    )


async def push(desk: Desk, relay: Relay, source: Path, **changes: Any) -> UploadResult:
    async with uploader(desk, relay, **changes) as up:
        result = await up.upload(source)
    await desk.assert_stored(result, source)
    return result


HOSTS = {
    None: "oss-cn-shanghai.aliyuncs.com",
    "public": "oss-cn-shanghai.aliyuncs.com",
    "internal": "oss-cn-shanghai-internal.aliyuncs.com",
    "accelerate": "oss-accelerate.aliyuncs.com",
    "dualstack": "cn-shanghai.oss.aliyuncs.com",
    "https://vpc100-oss-cn-shanghai.aliyuncs.com": "vpc100-oss-cn-shanghai.aliyuncs.com",
}


@pytest.mark.parametrize("signature", ["v4", "v1"])
@pytest.mark.parametrize("choice", HOSTS)
async def test_all_requests_go_to_the_chosen_host_of_the_region(
    desk: Desk, relay: Relay, choice: str | None, signature: str
) -> None:
    result = await push(desk, relay, desk.file(7 * PART), oss_endpoint=choice, signature=signature)

    host = HOSTS[choice]
    assert result.endpoint == f"https://{host}"
    assert {h for h, count in relay.hosts.items() if count} == {f"{result.bucket}.{host}"}
    assert (await desk.record()).endpoint == ADDRESS
    if signature == "v4":
        assert relay.scopes == {"cn-shanghai"}


@pytest.mark.parametrize("signature", ["v4", "v1"])
async def test_a_url_on_no_host_of_oss_is_a_cname(desk: Desk, relay: Relay, signature: str) -> None:
    """The bucket is signed, and is neither in the host nor in the path."""
    desk.server.set_options(cname=CNAME, public_endpoint=False)
    movie = desk.file(7 * PART)

    result = await push(desk, relay, movie, oss_endpoint=f"https://{CNAME}/", signature=signature)

    assert result.endpoint == f"https://{CNAME}"
    assert set(relay.hosts) == {CNAME}


async def test_an_upload_is_resumed_over_another_endpoint(desk: Desk, relay: Relay) -> None:
    movie = desk.file(7 * PART)
    desk.order(
        Fault(
            action="error",
            operation="UploadPart",
            part=4,
            status=400,
            code="EntityTooLarge",
            count=None,
        )
    )
    async with uploader(desk, relay) as up:
        with pytest.raises(ServiceError):
            await up.upload(movie)
    desk.order()

    result = await push(desk, relay, movie, oss_endpoint="internal")

    assert len(desk.server.videos) == 1
    assert result.endpoint == "https://oss-cn-shanghai-internal.aliyuncs.com"


async def test_a_chosen_endpoint_must_answer_before_anything_is_sent(
    desk: Desk, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uploader.endpoints._CHECK_S", 0.05)
    relay.silent.add("oss-cn-shanghai-internal.aliyuncs.com")
    relay.foreign.add(CNAME)
    movie = desk.file(7 * PART)
    async with uploader(desk, relay, oss_endpoint="internal") as up:
        with pytest.raises(TransportError, match=r"internal\.\S+ does not answer") as found:
            await up.upload(movie)
    assert "--oss-endpoint" in found.value.next_step

    async with uploader(desk, relay, oss_endpoint=f"https://{CNAME}") as up:
        with pytest.raises(ConfigurationError, match="it is not OSS"):
            await up.upload(movie)
    assert not +relay.hosts


@pytest.mark.parametrize(
    ("machine_region", "silent", "used"),
    [
        ("cn-shanghai", False, "internal"),
        ("cn-shanghai", True, "public"),
        ("cn-beijing", False, "public"),
        (None, False, "public"),
    ],
)
async def test_auto_is_internal_on_a_machine_of_the_region_if_it_answers(
    desk: Desk, relay: Relay, machine_region: str | None, silent: bool, used: str
) -> None:
    desk.server.set_options(machine_region=machine_region)
    if silent:
        relay.silent.add("oss-cn-shanghai-internal.aliyuncs.com")

    found = {"oss_endpoint": "auto", "metadata_url": desk.server.vod_endpoint}
    result = await push(desk, relay, desk.file(PART), **found)

    assert result.endpoint == f"https://{HOSTS[used]}"
    assert {h for h, count in relay.hosts.items() if count} == {f"{result.bucket}.{HOSTS[used]}"}


async def test_the_metadata_service_is_asked_once_and_another_answer_is_no_region(
    desk: Desk, relay: Relay
) -> None:
    found = {"oss_endpoint": "auto", "metadata_url": desk.server.vod_endpoint}
    desk.server.set_options(machine_region="cn-shanghai")
    async with uploader(desk, relay, **found) as up:
        for name in ("a.mp4", "b.mp4"):
            await up.upload(desk.file(PART, name, seed=len(name)))
        await up.upload(desk.file(PART, "c.mp4", seed=7))
    assert len([r for r in desk.server.stats.log if r.subject.startswith("/latest/")]) == 2


async def test_only_loopback_may_play_the_metadata_service() -> None:
    for url, trust in (("http://10.0.0.1", LOOPBACK), ("http://127.0.0.1:1", TrustPolicy())):
        given = options(oss_endpoint="auto", metadata_url=url)
        with pytest.raises(ConfigurationError, match=r"100\.100\.100\.200"):
            async with Uploader(options=given, trust=trust):
                pass


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("intern", ConfigurationError),
        ("media.example.com", ConfigurationError),
        ("http://media.example.com", UntrustedEndpoint),
        ("https://media.example.com:8443", UntrustedEndpoint),
        ("https://10.0.0.1", UntrustedEndpoint),
        ("https://user@media.example.com", UntrustedEndpoint),
        ("https://media.example.com/path", UntrustedEndpoint),
        ("https://[bad", UntrustedEndpoint),
        ("http://127.0.0.1:99", UntrustedEndpoint),
    ],
)
async def test_an_endpoint_that_may_not_get_credentials_is_refused_at_once(
    url: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with Uploader(options=options(oss_endpoint=url), state="memory"):
            pass


async def test_a_cname_of_the_caller_does_not_allow_addresses_to_name_it(
    desk: Desk, relay: Relay
) -> None:
    desk.server.set_options(address_endpoint=f"https://{CNAME}")
    async with uploader(desk, relay, oss_endpoint=f"https://{CNAME}") as up:
        with pytest.raises(UntrustedEndpoint):
            await up.upload(desk.file(PART))


async def test_an_endpoint_of_another_region_is_refused(desk: Desk, relay: Relay) -> None:
    async with uploader(desk, relay, oss_endpoint="https://oss-cn-beijing.aliyuncs.com") as up:
        with pytest.raises(ConfigurationError, match="The bucket is in cn-shanghai"):
            await up.upload(desk.file(PART))
    assert not +relay.hosts


async def test_hosts_of_no_region_stay_as_the_address_says(desk: Desk, relay: Relay) -> None:
    accelerated = "https://oss-accelerate.aliyuncs.com"
    desk.server.set_options(address_endpoint=accelerated)
    result = await push(desk, relay, desk.file(PART), oss_endpoint="internal")
    assert result.endpoint == accelerated
    known = {"oss_endpoint": "internal", "oss_region": "cn-shanghai"}
    result = await push(desk, relay, desk.file(PART, "b.mp4", seed=1), **known)
    assert result.endpoint == "https://oss-cn-shanghai-internal.aliyuncs.com"

    desk.server.set_options(address_endpoint="")
    result = await push(desk, relay, desk.file(PART, "c.mp4", seed=2), oss_endpoint="internal")
    assert result.endpoint == desk.server.oss_endpoint


async def test_the_region_to_sign_for_is_learned_from_an_answer(desk: Desk, relay: Relay) -> None:
    """The address names no region, and VOD's own is another one."""
    accelerated = "https://oss-accelerate.aliyuncs.com"
    desk.server.set_options(
        address_endpoint=accelerated, bucket_region_header=True, auth_region="cn-beijing"
    )

    await push(desk, relay, desk.file(7 * PART))

    assert relay.scopes == {"cn-beijing", "cn-shanghai"}
    retried = desk.events_of(RequestRetried)
    assert {retry.action for retry in retried} == {"FIX_REGION"}
    assert len(retried) == 1


async def test_a_wrong_region_that_the_answer_does_not_correct_is_explained(
    desk: Desk, relay: Relay
) -> None:
    desk.server.set_options(
        address_endpoint="https://oss-accelerate.aliyuncs.com", auth_region="cn-beijing"
    )
    async with uploader(desk, relay) as up:
        with pytest.raises(PermissionDenied, match="Invalid signing region") as found:
            await up.upload(desk.file(PART))
    assert "--oss-region" in found.value.next_step


@pytest.mark.parametrize("size", [PART // 2, 7 * PART], ids=["put", "parts"])
async def test_a_closed_public_endpoint_is_not_tried_again_and_the_error_names_the_cure(
    desk: Desk, size: int
) -> None:
    desk.server.set_options(public_endpoint=False)

    error = await desk.fail(desk.file(size))

    assert isinstance(error, ConfigurationError)
    assert error.code == "PublicEndpointForbidden"
    assert "--oss-endpoint https://" in error.next_step
    assert "--oss-endpoint internal" in error.next_step
    assert desk.server.stats.refreshes == 0
    assert not desk.events_of(RequestRetried)


async def test_where_a_moved_upload_goes_is_chosen_again(desk: Desk, relay: Relay) -> None:
    movie = desk.file(7 * PART)
    desk.server.set_options(refresh_target="key", refresh_scope="refreshed", credential_ttl_s=3000)
    async with uploader(desk, relay, oss_endpoint="internal", on_target_change="restart") as up:
        desk.order(Fault(action="expire_credentials", operation="UploadPart", part=4))
        result = await up.upload(movie)
    stored = desk.server.backend.storage.object(result.bucket, result.object_key)
    assert stored is not None
    assert stored.size == result.size
    assert result.endpoint == "https://oss-cn-shanghai-internal.aliyuncs.com"


# --- over TLS, to the very host --------------------------------------------------------


@asynccontextmanager
async def tunnel(port_of: Callable[[str], int]) -> AsyncIterator[str]:
    """A proxy for CONNECT that brings every host to a port of this machine; yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        host = head.split()[1].decode().rpartition(":")[0]
        there = await asyncio.open_connection("127.0.0.1", port_of(host))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, there[1]))
            group.create_task(pump(there[0], writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_cname_over_tls(tmp_path: Path) -> None:
    """The certificate is the domain's, and no other host is connected to."""
    pytest.importorskip("trustme")
    hosts: set[str] = set()
    movie = tmp_path / "movie.mp4"
    movie.write_bytes(content(7 * PART))
    async with DevServer(DevServerOptions(tls=True, cname=CNAME, public_endpoint=False)) as server:

        def port_of(host: str) -> int:
            hosts.add(host)
            return urlsplit(server.oss_endpoint).port or 0

        server.set_options(address_endpoint=ADDRESS)
        key = AccessKey(id=server.access_key_id, secret=server.access_key_secret)
        provider = VodProvider(key, endpoint=server.vod_endpoint)
        async with (
            tunnel(port_of) as proxy,
            AiohttpTransport(ca_file=server.ca_file) as direct,
            AiohttpTransport(ca_file=server.ca_file, proxy=proxy) as proxied,
        ):

            class Routes:
                async def send(
                    self, request: SignedRequest, *, answer_timeout_s: float
                ) -> Response:
                    is_local = "//127.0.0.1" in request.url
                    chosen = direct if is_local else proxied
                    return await chosen.send(request, answer_timeout_s=answer_timeout_s)

            async with Uploader(
                provider,
                state="memory",
                options=options(oss_endpoint=f"https://{CNAME}"),
                trust=LOOPBACK,
                transport=Routes(),
            ) as up:
                result = await up.upload(movie)
        assert server.object_bytes(result.video_id) == movie.read_bytes()
    assert hosts == {CNAME}
