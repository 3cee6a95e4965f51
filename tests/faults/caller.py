"""What a caller does in every run of the matrix, in this process or in another.

The uploader and its transport are real. Between them sits an `ObservedTransport`, which
shortens the waiting for answers and sees each request as it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from uploader import (
    AccessKey,
    Event,
    RetryPolicy,
    TrustPolicy,
    Uploader,
    UploadOptions,
    UploadResult,
    VideoMeta,
    VodProvider,
)
from uploader.clock import Clock, SystemClock
from uploader.protocol.wire import Response, SignedRequest, Transport
from uploader.sources import Source
from uploader.state import StateStore
from uploader.transport import AiohttpTransport

from .table import Site

PART = 100 * 1024
CONCURRENCY = 4


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a run waits. Seconds."""

    retry: RetryPolicy
    answer_s: float
    stall_s: float
    connect_s: float

    @property
    def call_s(self) -> float:
        """The longest one call may take: its timeouts, and one attempt begun at its end."""
        return self.retry.patience_s + self.connect_s + self.stall_s + self.answer_s


SHORT = Timeouts(
    RetryPolicy(patience_s=2.5, first_contact_patience_s=2.5, base_s=0.05, cap_s=0.2),
    answer_s=0.8,
    stall_s=0.4,
    connect_s=0.6,
)
LONG = Timeouts(
    RetryPolicy(patience_s=30.0, first_contact_patience_s=30.0, base_s=0.02, cap_s=0.2),
    answer_s=20.0,
    stall_s=20.0,
    connect_s=10.0,
)
"""For runs that nothing happens to, on a machine that may be busy."""

Before = Callable[[SignedRequest], SignedRequest]


@dataclass(frozen=True, slots=True)
class Account:
    """Where the devserver is and who its caller is."""

    vod_endpoint: str
    oss_endpoint: str
    access_key_id: str
    access_key_secret: str

    def endpoint(self, site: Site) -> str:
        """Where the requests of a site go."""
        return self.vod_endpoint if site.service == "vod" else self.oss_endpoint

    def is_at(self, site: Site, request: SignedRequest) -> bool:
        """Whether a request is one of the site's."""
        endpoint = self.endpoint(site)
        if not site.pattern or not request.url.startswith(endpoint):
            return False
        lines = [f"{request.method} {request.url.removeprefix(endpoint)} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        return re.search(site.pattern, "\r\n".join(lines).encode()) is not None


@dataclass(frozen=True, slots=True)
class UploadCall:
    """One upload or abort."""

    account: Account
    key: str
    reference_id: str
    video_id: str | None
    is_abort: bool


class ObservedTransport:
    """The real transport; `before` sees each request first, and answers are due soon."""

    def __init__(self, inner: Transport, before: Before, answer_s: float) -> None:
        self._inner, self._before, self._answer_s = inner, before, answer_s

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        request = self._before(request)
        return await self._inner.send(
            request, answer_timeout_s=min(answer_timeout_s, self._answer_s)
        )


async def run_once(
    call: UploadCall,
    source: Source,
    state: StateStore,
    timeouts: Timeouts,
    *,
    before: Before = lambda request: request,
    on_event: Callable[[Event], None] = lambda event: None,
    clock: Clock | None = None,
) -> UploadResult | None:
    """Upload or abort once, as one run of a program does; None from an abort."""
    account = call.account
    key = AccessKey(id=account.access_key_id, secret=account.access_key_secret)
    async with (
        AiohttpTransport(
            stall_timeout_s=timeouts.stall_s, connect_timeout_s=timeouts.connect_s
        ) as real,
        Uploader(
            VodProvider(key, endpoint=account.vod_endpoint),
            state=state,
            options=UploadOptions(
                part_size=PART,
                concurrency=CONCURRENCY,
                retry=timeouts.retry,
                vod_calls_per_s=1000,
            ),
            trust=TrustPolicy(allow_loopback=True),
            on_event=on_event,
            transport=ObservedTransport(real, before, timeouts.answer_s),
            clock=clock or SystemClock(),
        ) as up,
    ):
        if call.is_abort:
            await up.abort(call.key)
            return None
        return await up.upload(
            source,
            key=call.key,
            meta=VideoMeta(title=call.reference_id, reference_id=call.reference_id),
            video_id=call.video_id,
        )
