"""Handling a request: identify it, inject faults, check, perform, answer and log it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

from aiohttp import web

from .answers import Answer, Refusal
from .backend import Backend
from .delivery import deliver
from .exchange import BodyTimeout, Dropped, Exchange
from .misbehaviour import alter, arrive, ordered_refusal
from .oss_headers import TRAFFIC_LIMIT
from .recording import Recorder
from .stats import RequestRecord
from .throttle import Throttle

AdminHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
ADMIN_PREFIX = "/_vodup/"
_TRAFFIC_LIMIT = "x-oss-traffic-limit"


class Service(Protocol):
    """OSS or the VOD API: ``describe`` never refuses, ``perform`` raises Refusal."""

    name: str

    async def describe(self, exchange: Exchange) -> None:
        """Fill in the record: operation, subject, part."""

    async def perform(self, exchange: Exchange) -> Answer:
        """Check the request and perform it."""

    def refuse(self, exchange: Exchange, refusal: Refusal, request_id: str) -> Answer:
        """The service's error document."""

    def decorate(self, exchange: Exchange, request_id: str) -> dict[str, str]:
        """Headers every answer has."""

    def request_id(self) -> str:
        """A fresh request id."""


class _Connections:
    """Numbers and throttles of client connections. Mutable."""

    def __init__(self) -> None:
        self._numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._throttles: weakref.WeakKeyDictionary[object, Throttle] = weakref.WeakKeyDictionary()
        self._stale: weakref.WeakSet[object] = weakref.WeakSet()
        self._next = itertools.count(1)

    def number(self, transport: object) -> int:
        if transport not in self._numbers:
            self._numbers[transport] = next(self._next)
        return self._numbers[transport]

    def is_new(self, transport: object) -> bool:
        return transport not in self._numbers

    def throttle(self, transport: object, rate: float | None) -> Throttle:
        throttle = self._throttles.setdefault(transport, Throttle(rate))
        throttle.rate = rate
        return throttle

    def make_stale(self, transport: object) -> None:
        self._stale.add(transport)

    def is_stale(self, transport: object) -> bool:
        return transport in self._stale


class Front:
    """Handles the requests of one port. Mutable: the running requests."""

    def __init__(
        self,
        backend: Backend,
        service: Service,
        admin: AdminHandler,
        recorder: Recorder | None,
    ) -> None:
        self._backend = backend
        self._recorder = recorder
        self._service = service
        self._admin = admin
        self._connections = _Connections()
        self._under_way: set[asyncio.Task[object]] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; called by aiohttp."""
        if request.raw_path.startswith(ADMIN_PREFIX):
            return await self._admin(request)
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._under_way.add(task)
        try:
            return await self._handle(request)
        finally:
            self._under_way.discard(task)

    async def stop(self) -> None:
        """Cancel the running requests, zombies included, and wait for them."""
        tasks = tuple(self._under_way)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = self._open(request)
        record = exchange.record
        try:
            self._check_connection(exchange)
            await self._describe(exchange)
            answer = await self._answer(exchange)
            record.status, record.code = answer.status, answer.code
            return await deliver(exchange, answer)
        except (Dropped, BodyTimeout) as dropped:
            record.status, record.code = 0, f"({dropped})"
            exchange.close("fin")
            return web.Response(status=500)  # never sent: the connection is gone
        finally:
            self._backend.stats.ended(record, time.time())
            if self._recorder is not None:
                self._recorder.write(exchange)

    def _open(self, request: web.BaseRequest) -> Exchange:
        self._backend.stats.connections += self._connections.is_new(request.transport)
        record = RequestRecord(
            service=self._service.name,
            operation="",
            subject="",
            part_number=None,
            upload_id="",
            attempt=0,
            connection=self._connections.number(request.transport),
            started_at=time.time(),
        )
        return Exchange(request, self._backend, record, self._throttles(request))

    def _throttles(self, request: web.BaseRequest) -> tuple[Throttle, ...]:
        options = self._backend.options
        own = self._connections.throttle(request.transport, options.connection_bandwidth)
        throttles = [self._backend.throttle, own]
        limit_bits = request.headers.get(_TRAFFIC_LIMIT, request.query.get(_TRAFFIC_LIMIT, ""))
        if limit_bits.isdecimal() and int(limit_bits) in TRAFFIC_LIMIT:
            throttles.append(Throttle(int(limit_bits) / 8))
        return tuple(throttles)

    def _check_connection(self, exchange: Exchange) -> None:
        if self._connections.is_stale(exchange.request.transport):
            exchange.close("rst")
            raise Dropped("stale connection")

    async def _describe(self, exchange: Exchange) -> None:
        await self._service.describe(exchange)
        record, backend = exchange.record, self._backend
        name, part = record.operation, record.part_number
        record.attempt = backend.faults.next_attempt(name, record.subject, part)
        subjects = {record.subject, *backend.names_of_video(record.video_id or record.subject)}
        exchange.faults = backend.faults.take(name, part, record.attempt, subjects)
        record.faults.extend(fault.label() for fault in exchange.faults)
        backend.stats.remember(record, backend.options.request_log_size)
        if exchange.fault("stale_close"):
            self._connections.make_stale(exchange.request.transport)

    async def _answer(self, exchange: Exchange) -> Answer:
        request_id = self._service.request_id()
        try:
            answer = await arrive(exchange)
            if answer is None:
                await self._become_zombie(exchange)
                answer = await self._service.perform(exchange)
                answer = self._spoil(exchange, answer, request_id)
        except Refusal as refusal:
            answer = self._service.refuse(exchange, refusal, request_id)
            await self._drain_refused(exchange)
        if not exchange.fault("html"):  # a proxy's page has none of the service's headers
            decoration = self._service.decorate(exchange, request_id)
            answer = dataclasses.replace(answer, headers={**decoration, **answer.headers})
        return alter(exchange, answer)

    async def _become_zombie(self, exchange: Exchange) -> None:
        zombie = exchange.fault("zombie")
        if zombie is None:
            return
        await exchange.hold_body()
        exchange.close(zombie.close)
        await asyncio.sleep(zombie.delay_s)

    def _spoil(self, exchange: Exchange, answer: Answer, request_id: str) -> Answer:
        """Answers that contradict what was performed."""
        if exchange.fault("callback_failed"):
            return self._service.refuse(exchange, Refusal("CallbackFailed"), request_id)
        error = exchange.fault("error_body")
        if error is None:
            return answer
        refused = self._service.refuse(exchange, ordered_refusal(error), request_id)
        return dataclasses.replace(refused, status=200)

    async def _drain_refused(self, exchange: Exchange) -> None:
        is_early = exchange.fault("early_answer") is not None
        if self._backend.options.drain_before_refusal and not is_early:
            with contextlib.suppress(BodyTimeout):
                await exchange.drain()
