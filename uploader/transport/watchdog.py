"""Ends an exchange with a peer that no longer takes or sends bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from uploader.transport.body_writer import BodyWriter
from uploader.transport.sockets import tcp_info


class Watchdog:
    """Ends one exchange with TimeoutError when the peer makes no progress.

    Progress is what the peer's kernel has acknowledged: bytes in our own buffers prove
    nothing. While nothing is in flight the peer owes us nothing, so waiting for the disk
    or for bandwidth does not count. Once the body is sent, the whole answer is due.
    Mutable: when there was progress last.
    """

    def __init__(
        self, writer: BodyWriter | None, *, connect_s: float, stall_s: float, answer_s: float
    ) -> None:
        self._writer = writer
        self._connect_s, self._stall_s, self._answer_s = connect_s, stall_s, answer_s
        self._interval_s = max(0.01, min(0.5, stall_s / 8, answer_s / 8))
        self._acked_size = -1
        self._is_answering = False
        self._is_sending = False

    @contextmanager
    def watch(self, scope: asyncio.Timeout) -> Iterator[None]:
        """Watch while the block runs; `scope` is the timeout around it."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._progress_at = self._loop.time()
        self._check()
        try:
            yield
        finally:
            self._timer.cancel()

    def start_answer(self) -> None:
        """From now on only the answer counts; one that came early gets its full time."""
        if self._is_sending:
            self._progress_at = self._loop.time()
        self._is_answering, self._is_sending = True, False
        self._extend()

    def reason(self) -> str:
        """What the peer did not do in time, for the error message."""
        if self._is_sending and self._writer is not None:
            return (
                f"the server took no byte for {self._stall_s:g} s "
                f"after {self._writer.sent_size} bytes were sent"
            )
        return f"no complete answer within {self._answer_s:g} s"

    def _check(self) -> None:
        writer = self._writer
        if writer is not None and writer.transport is not None and not self._is_answering:
            self._check_sending(writer, writer.transport)
        self._extend()
        self._timer = self._loop.call_later(self._interval_s, self._check)

    def _check_sending(self, writer: BodyWriter, transport: asyncio.Transport) -> None:
        """Compare with the last check what the peer has acknowledged.

        Where the kernel does not report that, count what it took from us.
        """
        buffered_size = transport.get_write_buffer_size()
        info = tcp_info(transport.get_extra_info("socket"))
        in_flight_size = buffered_size + (info.unacked_size if info else 0)
        acked_size = info.acked_bytes if info else writer.sent_size - buffered_size
        self._is_sending = not writer.is_complete or in_flight_size > 0
        is_our_turn = not writer.is_complete and in_flight_size == 0
        if is_our_turn or acked_size > self._acked_size:
            self._progress_at = self._loop.time()
        self._acked_size = acked_size

    def _extend(self) -> None:
        if not self._scope.expired():
            self._scope.reschedule(self._progress_at + self._allowed_s())

    def _allowed_s(self) -> float:
        if self._is_answering:
            return self._answer_s
        if self._writer is None or self._writer.transport is None:
            return self._connect_s + self._answer_s  # aiohttp bounds the connecting
        return self._stall_s if self._is_sending else self._answer_s
