"""Notifications: signed requests to URLs of the caller's, kept in the state until delivered.

A notification is a CloudEvent (CloudEvents 1.0, JSON format) signed as Standard Webhooks 1.0 says:
the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`, HMAC-SHA256 over the three of
id, time and body. One whose answer was lost is sent again with the same id.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from uploader.clock import Clock
from uploader.errors import ConfigurationError, NotPlayable, StateError, VodupError
from uploader.hooks import EndedUpload, facts_of, facts_of_error
from uploader.log import get_logger
from uploader.protocol.wire import BytesBody, SignedRequest, Transport
from uploader.redaction import remember
from uploader.state import Outbox, OutboxMessage

if TYPE_CHECKING:
    from uploader.library import PlayableVideo

_AT_ONCE: Final = 16
_TAKEN_FOR_S: Final = 45.0
"""How long a message of a process that died is not delivered by another one. Too small: a slow
receiver gets it twice."""
_ANSWER_TIMEOUT_S: Final = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_SECRET_PREFIX: Final = "whsec_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A URL that is sent a notification of each end of an upload.

    Attributes:
        url: http or https; redirects are not followed.
        secret: signs each notification: "whsec_" and base64 (Standard Webhooks), or any text.
    """

    url: str = field(repr=False)
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ConfigurationError: one of them cannot be used.
        """
        remember(self.secret)
        try:
            parts = urlsplit(self.url)
            is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
            is_usable = is_usable and (parts.port is None or parts.port > 0)
        except ValueError:
            is_usable = False
        if not is_usable or not self.url.isascii() or not self.url.isprintable():
            raise ConfigurationError("The URL for notifications must be http:// or https://.")
        if not _key_of(self.secret):
            raise ConfigurationError(
                "Notifications are signed, and their secret is missing or no base64 after whsec_.",
                next_step="Set VODUP_NOTIFY_SECRET (secret= in code) to a secret that the receiver "
                "knows.",
            )

    @property
    def host(self) -> str:
        """For messages: the rest of the URL may be a secret of the receiver's."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def name(self) -> str:
        """What the outbox calls it: the URL may be a secret."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:32]


def _key_of(secret: str) -> bytes:
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode(errors="surrogateescape")
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        return b""


def signed_headers(secret: str, message_id: str, body: bytes, sent_at: datetime) -> dict[str, str]:
    """The headers of a notification (Standard Webhooks 1.0)."""
    time = str(int(sent_at.timestamp()))
    text = f"{message_id}.{time}.".encode() + body
    signature = base64.b64encode(hmac.digest(_key_of(secret), text, "sha256")).decode()
    return {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": message_id,
        "webhook-timestamp": time,
        "webhook-signature": f"v1,{signature}",
    }


def _message_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


class Notifications:
    """Posts notifications, and delivers them in the background while `running`.

    Mutable: whether it is closing, what has failed last.

    Args:
        source: what sends them: "/vodup/" and the service and region of the videos.
        drain_s: how long the end of `running` waits for the rest to be delivered. What is left
            then is delivered by a later run with the same webhook and state.
    """

    def __init__(
        self,
        webhooks: Sequence[Webhook],
        outbox: Outbox,
        transport: Transport,
        *,
        source: str,
        clock: Clock,
        drain_s: float = 10.0,
    ) -> None:
        self._webhooks, self._outbox, self._transport = webhooks, outbox, transport
        self._source, self._clock, self._drain_s = source, clock, drain_s
        self._posted = {webhook.name: asyncio.Event() for webhook in webhooks}
        self._is_closing = False
        self._failures: dict[str, str] = {}
        self.notices: list[str] = []

    async def post(
        self, kind: str, data: Mapping[str, Any], *, subject: str | None, message_id: str
    ) -> None:
        """Keep a notification for each webhook; durable on return.

        Args:
            kind: "upload.verified", "upload.failed", "video.playable", "video.unplayable" or
                "batch.finished".
            subject: what it is about, for example the VideoId.
            message_id: one that was posted before is not delivered again.

        Raises:
            StateError: it cannot be kept.
        """
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": message_id,
            "source": self._source,
            "type": f"vodup.{kind}",
            "time": self._clock.utc_now().isoformat(),
            "datacontenttype": "application/json",
            "data": data,
        }
        if subject is not None:
            event["subject"] = subject
        body = json.dumps(event)
        for webhook in self._webhooks:
            message = OutboxMessage(message_id=message_id, receiver=webhook.name, body=body)
            await self._outbox.add_message(message)
            self._posted[webhook.name].set()

    async def post_end(self, ended: EndedUpload) -> None:
        """Post how an upload ended: a verified video once, each failure anew.

        Raises:
            StateError: it cannot be kept.
        """
        kind, once = "upload.failed", secrets.token_hex(16)
        if (result := ended.result) is not None:  # the same for a run that finds the result
            kind, once = "upload.verified", f"{result.video_id} {result.crc64} {result.upload_id}"
        message_id = _message_id(kind, ended.key, once)
        await self.post(kind, facts_of(ended), subject=ended.video_id, message_id=message_id)

    async def follow(self, waiting: Awaitable[PlayableVideo]) -> PlayableVideo:
        """Return the video that can be played, and post that, or that it never can.

        Raises:
            VodupError: as `waiting`.
            StateError: the notification cannot be kept.
        """
        try:
            video = await waiting
        except NotPlayable as error:
            if not error.is_temporary:
                failure = {
                    "status": "unplayable",
                    "video_id": error.video_id,
                    **facts_of_error(error),
                }
                await self._post_video("video.unplayable", str(error.video_id), failure)
            raise
        facts = {"status": "playable", **asdict(video)}
        await self._post_video("video.playable", video.video_id, facts)
        return video

    async def _post_video(self, kind: str, video_id: str, facts: Mapping[str, Any]) -> None:
        message_id = _message_id(kind, video_id)
        await self.post(kind, facts, subject=video_id, message_id=message_id)

    async def post_batch(self, counts: Mapping[str, Any]) -> None:
        """Post that a batch has ended.

        Raises:
            StateError: it cannot be kept.
        """
        message_id = secrets.token_hex(16)
        await self.post("batch.finished", counts, subject=None, message_id=message_id)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver what is there and what is posted; wait at the end, for a time."""
        tasks = [asyncio.create_task(self._deliver(webhook)) for webhook in self._webhooks]
        try:
            try:
                yield
            except Exception:  # a failed upload is reported, too; a cancelled one ends at once
                await self._drain(tasks)
                raise
            await self._drain(tasks)
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    get_logger().error("notification.stopped", exc_info=outcome)

    async def _drain(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._is_closing = True
        for event in self._posted.values():
            event.set()
        await asyncio.wait(tasks, timeout=self._drain_s)
        with suppress(StateError):  # the run reports it where it matters
            for webhook in self._webhooks:
                if count := await self._outbox.count_waiting(webhook.name):
                    self.notices.append(_left(webhook, count, self._failures.get(webhook.name, "")))

    async def _deliver(self, webhook: Webhook) -> None:
        failure_count = 0
        while True:
            self._posted[webhook.name].clear()
            try:
                is_delivered = await self._deliver_some(webhook)
            except StateError as error:  # the run reports it where it matters
                self._failures[webhook.name] = error.message
                is_delivered = False
            if is_delivered is None:
                if self._is_closing:
                    return
                await self._posted[webhook.name].wait()
            elif is_delivered:
                failure_count = 0
            else:
                failure_count += 1
                longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failure_count, 16))
                await self._clock.sleep(random.uniform(longest / 2, longest))

    async def _deliver_some(self, webhook: Webhook) -> bool | None:
        """Whether all of some messages were delivered; None if there are none."""
        messages = await self._outbox.take_messages(
            webhook.name, count=_AT_ONCE, for_s=_TAKEN_FOR_S
        )
        if not messages:
            return None
        outcomes = await asyncio.gather(*(self._is_sent(webhook, each) for each in messages))
        for is_delivered in (True, False):
            pairs = zip(messages, outcomes, strict=True)
            if ended := [message for message, is_sent in pairs if is_sent is is_delivered]:
                await self._outbox.end_messages(ended, is_delivered=is_delivered)
        return all(outcomes)

    async def _is_sent(self, webhook: Webhook, message: OutboxMessage) -> bool:
        body = message.body.encode()
        headers = signed_headers(webhook.secret, message.message_id, body, self._clock.utc_now())
        request = SignedRequest("POST", webhook.url, headers, BytesBody(body))
        try:
            response = await self._transport.send(request, answer_timeout_s=_ANSWER_TIMEOUT_S)
        except VodupError as error:
            failure = error.message.rstrip(".")
        else:
            if 200 <= response.status < 300:
                return True
            failure = f"it answered {response.status}"
        self._failures[webhook.name] = failure
        get_logger().info("notification.failed", host=webhook.host, reason=failure)
        return False


def _left(webhook: Webhook, count: int, failure: str) -> str:
    what = "1 notification is" if count == 1 else f"{count:,} notifications are"
    why = f" ({failure})" if failure else ""
    return (
        f"{what} not delivered to {webhook.host} yet{why}; the next run with the same --notify and "
        "state delivers them."
    )
