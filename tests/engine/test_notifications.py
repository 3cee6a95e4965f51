"""Webhooks: signed, kept until they are delivered, and delivered once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from uploader import ConfigurationError, NotPlayable, Uploader, Webhook
from uploader.devserver import Fault

from .harness import PART, Desk, options, until

SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four").decode()


@dataclass
class Receiver:
    """A server that checks signatures as Standard Webhooks says. Mutable: what it answers."""

    port: int = 0
    status: int = 204
    got: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    @property
    def webhook(self) -> Webhook:
        return Webhook(url=f"http://127.0.0.1:{self.port}/hook?token=private", secret=SECRET)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        names = ("webhook-id", "webhook-timestamp")
        text = b".".join([*(request.headers[name].encode() for name in names), body])
        mac = hmac.new(b"a secret of twenty-four", text, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(mac).decode()}"
        assert request.content_type == "application/cloudevents+json"
        if self.status >= 300:
            self.refused += 1
        else:
            self.got.append(json.loads(body))
            assert self.got[-1]["id"] == request.headers["webhook-id"]
        return web.Response(status=self.status)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    yield receiver
    await runner.cleanup()


async def test_a_verified_video_is_reported_once_however_often_it_is_found(
    desk: Desk, receiver: Receiver
) -> None:
    movie = desk.file(2 * PART)

    result = await desk.push(movie, webhooks=[receiver.webhook])
    again = await desk.push(movie, webhooks=[receiver.webhook])

    assert again.is_earlier_result
    [event] = receiver.got
    assert event["type"] == "vodup.upload.verified"
    assert event["subject"] == result.video_id
    assert event["specversion"] == "1.0"
    assert event["data"]["result"]["crc64"] == str(result.crc64)


async def test_each_failure_is_reported(desk: Desk, receiver: Receiver) -> None:
    desk.order(
        Fault(action="error", operation="UploadPart", status=403, code="AccessDenied", count=None)
    )
    for _ in range(2):
        await desk.fail(desk.file(2 * PART), webhooks=[receiver.webhook])

    assert [event["type"] for event in receiver.got] == ["vodup.upload.failed"] * 2
    assert {event["data"]["error"] for event in receiver.got} == {"PermissionDenied"}
    assert len({event["id"] for event in receiver.got}) == 2


async def test_what_a_receiver_refuses_is_delivered_by_a_later_run(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.status = 503
    async with desk.uploader(webhooks=[receiver.webhook]) as up:
        assert up.notifications is not None
        monkeypatch.setattr(up.notifications, "_drain_s", 0.01)
        result = await up.upload(desk.file(2 * PART))
    assert receiver.refused
    assert not result.hook_failures
    [notice] = up.notifications.notices
    assert notice.startswith(f"1 notification is not delivered to 127.0.0.1:{receiver.port} yet (")
    assert "private" not in notice

    receiver.status = 200
    await desk.push(desk.file(PART, "other.mp4"), webhooks=[receiver.webhook])

    assert len(receiver.got) == 2
    assert result.video_id in {event["subject"] for event in receiver.got}


async def test_it_is_tried_again_while_the_uploader_is_open(desk: Desk, receiver: Receiver) -> None:
    receiver.status = 500
    async with desk.uploader(webhooks=[receiver.webhook]) as up:
        await up.upload(desk.file(2 * PART))
        await until(lambda: receiver.refused > 0)
        receiver.status = 200

    assert len(receiver.got) == 1


async def test_an_unreachable_receiver_does_not_change_the_result(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Webhook(url="http://127.0.0.1:9/", secret=SECRET)
    async with desk.uploader(webhooks=[nobody]) as up:
        assert up.notifications is not None
        monkeypatch.setattr(up.notifications, "_drain_s", 0.05)
        result = await up.upload(desk.file(2 * PART))

    assert result.verified_by
    assert "127.0.0.1:9" in up.notifications.notices[0]


async def test_a_video_that_plays_or_never_will_is_reported_once(
    desk: Desk, receiver: Receiver
) -> None:
    async with desk.uploader(webhooks=[receiver.webhook]) as up:
        good = await up.upload(desk.file(PART))
        for _ in range(2):
            await up.wait_until_playable(good.video_id)
        desk.server.set_options(status_after_upload="TranscodeFail")
        bad = await up.upload(desk.file(PART, "bad.mp4", seed=9))
        with pytest.raises(NotPlayable):
            await up.wait_until_playable(bad.video_id)

    events = [each for each in receiver.got if each["type"].startswith("vodup.video.")]
    assert [(each["type"], each["subject"]) for each in events] == [
        ("vodup.video.playable", good.video_id),
        ("vodup.video.unplayable", bad.video_id),
    ]
    assert events[0]["data"]["streams"][0]["url"]
    assert events[1]["data"]["error"] == "NotPlayable"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("ftp://example.com/", SECRET),
        ("https://", SECRET),
        ("https://[::1", SECRET),
        ("https://example.com:99999/", SECRET),
        ("https://example.com/\n", SECRET),
        ("https://example.com/", ""),
        ("https://example.com/", "whsec_not base64"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(url: str, secret: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Webhook(url=url, secret=secret)
    assert "example.com" not in str(caught.value)


async def test_a_store_without_an_outbox_is_refused(receiver: Receiver) -> None:
    class Plain:
        claim = find = uploads = forget = orphans = forget_orphan = None

        async def __aenter__(self) -> Plain:
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            return None

    uploader = Uploader(state=Plain(), options=options(webhooks=[receiver.webhook]))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot keep notifications"):
        async with uploader:
            pass
