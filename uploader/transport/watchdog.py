"""Ends an exchange whose peer takes or gives nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from uploader.transport.body_writer import Outflow
from uploader.transport.sockets import tcp_info_of

__all__ = ["Patience", "Watch"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for a connection, and for a peer that takes no byte."""

    connect_s: float
    stall_s: float


class Watch:
    """Ends an exchange with TimeoutError when the peer takes or gives nothing any more.

    Progress is what the peer's kernel has acknowledged: bytes in our own buffers prove
    nothing. While nothing is under way the peer owes us nothing, so waiting for the disk
    or for bandwidth is not its fault. Once the body is out, the whole answer is due.
    Mutable: when there was progress last.
    """

    def __init__(
        self, outflow: Outflow | None, patience: Patience, answer_timeout_s: float
    ) -> None:
        self._outflow = outflow
        self._patience = patience
        self._answer_s = answer_timeout_s
        self._interval_s = max(0.01, min(0.5, patience.stall_s / 8, answer_timeout_s / 8))
        self._acked_mark = -1
        self._is_answering = False
        self._is_sending = False

    @contextmanager
    def over(self, scope: asyncio.Timeout) -> Iterator[None]:
        """Watch while the block runs; `scope` is the time-out around it."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self._look()
        try:
            yield
        finally:
            self._timer.cancel()

    def answer_has_begun(self) -> None:
        """From now on only the answer counts; one that came early has its full time."""
        if self._is_sending:
            self._moved_at = self._loop.time()
        self._is_answering, self._is_sending = True, False
        self._extend()

    def verdict(self) -> str:
        """What was waited for in vain."""
        if self._is_sending and self._outflow is not None:
            return (
                f"the server took no byte for {self._patience.stall_s:g} s "
                f"after {self._outflow.handed_size} bytes were sent"
            )
        return f"no complete answer within {self._answer_s:g} s"

    def _look(self) -> None:
        outflow = self._outflow
        if outflow is not None and outflow.transport is not None and not self._is_answering:
            unacked_size = _unacked_size(outflow.transport)
            self._is_sending = not outflow.is_complete or unacked_size > 0
            if self._has_progress(outflow, unacked_size):
                self._moved_at = self._loop.time()
        self._extend()
        self._timer = self._loop.call_later(self._interval_s, self._look)

    def _has_progress(self, outflow: Outflow, unacked_size: int) -> bool:
        mark, self._acked_mark = self._acked_mark, _acked_size(outflow)
        is_our_turn = not outflow.is_complete and unacked_size == 0
        return is_our_turn or self._acked_mark > mark

    def _extend(self) -> None:
        if not self._scope.expired():
            self._scope.reschedule(self._moved_at + self._allowed_s())

    def _allowed_s(self) -> float:
        if self._is_answering:
            return self._answer_s
        if self._outflow is None or self._outflow.transport is None:
            return self._patience.connect_s + self._answer_s  # aiohttp bounds the connecting
        return self._patience.stall_s if self._is_sending else self._answer_s


def _unacked_size(transport: asyncio.Transport) -> int:
    """Bytes handed over that the peer has not acknowledged, as far as is known."""
    buffered = transport.get_write_buffer_size()
    info = tcp_info_of(transport)
    return buffered + (info.unacked_size if info else 0)


def _acked_size(outflow: Outflow) -> int:
    """Bytes the peer has acknowledged; where the kernel does not tell, bytes it took."""
    if outflow.transport is None:
        return 0
    info = tcp_info_of(outflow.transport)
    if info is not None:
        return info.acked_bytes
    return outflow.handed_size - outflow.transport.get_write_buffer_size()
