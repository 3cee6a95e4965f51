"""Addresses are data: whoever writes one must not collect credentials with it."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator

import pytest

from uploader import CallbackProvider, InvalidGrant, NewVideo, TrustPolicy, UntrustedEndpoint

from .harness import PART, Desk

TOKEN = "CAISsecretsecretsecretsecretsecret"


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """Listens where the hostile address leads, on every address of this machine."""
    with socket.create_server(("", 0)) as listener:
        listener.setblocking(False)
        yield listener


def answer(endpoint: str, bucket: str = "outin-aaaa", key: str = "sv/a.mp4") -> dict[str, str]:
    address = {"Endpoint": endpoint, "Bucket": bucket, "FileName": key}
    auth = {"AccessKeyId": "STS.hostile1", "AccessKeySecret": "x", "SecurityToken": TOKEN,
            "Expiration": "3000", "Region": "cn-shanghai"}  # fmt: skip
    pack = {"UploadAddress": address, "UploadAuth": auth}
    packed = {n: base64.b64encode(json.dumps(v).encode()).decode() for n, v in pack.items()}
    return {"VideoId": "0" * 32, "RequestId": "r", **packed}


def evil(endpoint: str, **where: str) -> CallbackProvider:
    async def create(video: NewVideo) -> dict[str, str]:
        return answer(endpoint, **where)

    async def renew(video_id: str) -> dict[str, str]:
        return answer(endpoint, **where)

    return CallbackProvider(renew, create)


@pytest.mark.parametrize("given", [{"video_id": "0" * 32}, {}], ids=["renewed", "created"])
@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:{port}",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "http://2130706433:{port}",
        "http://0x7f.1:{port}",
        "https://oss-cn-shanghai.aliyuncs.com@127.0.0.1:{port}",
        "https://oss-cn-shanghai.aliyuncs.com:{port}",
        "https://127.0.0.1:{port}/oss-cn-shanghai.aliyuncs.com",
        "https://127.0.0.1:{port}#.aliyuncs.com",
        "https://evil-oss-cn-shanghai.aliyuncs.com.localhost:{port}",
    ],
)
async def test_no_packet_goes_to_a_host_that_is_not_oss(
    desk: Desk, trap: socket.socket, endpoint: str, given: dict[str, str]
) -> None:
    hostile = evil(endpoint.format(port=trap.getsockname()[1]))

    error = await desk.fail(desk.file(2 * PART), provider=hostile, trust=TrustPolicy(), **given)

    assert isinstance(error, UntrustedEndpoint)
    with pytest.raises(BlockingIOError):
        trap.accept()
    assert TOKEN not in str(error)
    assert (await desk.record()).endpoint is None, "the next grant may be a better one"


@pytest.mark.parametrize(
    "where",
    [
        {"bucket": "127.0.0.1:{port}/a"},
        {"bucket": "a.b"},
        {"bucket": "evil@bucket"},
        {"key": "../other.mp4"},
        {"key": "/absolute.mp4"},
        {"key": "a\r\nHost: evil"},
    ],
    ids=lambda where: next(iter(where.values())),
)
async def test_no_packet_goes_to_a_bucket_or_key_that_leads_elsewhere(
    desk: Desk, where: dict[str, str]
) -> None:
    error = await desk.fail(
        desk.file(2 * PART), provider=evil(desk.server.oss_endpoint, **where), video_id="0" * 32
    )

    assert isinstance(error, UntrustedEndpoint | InvalidGrant)
    assert desk.server.stats.requests.total() == 0


async def test_loopback_is_for_those_who_allow_it(desk: Desk) -> None:
    error = await desk.fail(desk.file(2 * PART), trust=TrustPolicy())

    assert isinstance(error, UntrustedEndpoint)
    assert desk.server.stats.requests.total() == 0


async def test_a_recorded_target_is_checked_again(desk: Desk) -> None:
    """The store may be shared, or edited by another program."""
    movie = desk.file(6 * PART)
    record = await desk.interrupted(movie, after=3)
    async with desk.uploader() as up, up.state.claim(record.key) as journal:
        await journal._claim.update({"endpoint": "https://evil.example.com"})
    sent = desk.count("UploadPart")

    error = await desk.fail(movie)

    assert isinstance(error, UntrustedEndpoint)
    assert desk.count("UploadPart") == sent
