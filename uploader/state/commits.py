"""Group commit: many writes, one transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from uploader.errors import StateUnavailable
from uploader.state.records import PartAck
from uploader.threads import Worker

_ENOUGH: Final = 64


@dataclass(frozen=True, slots=True)
class AckWrite:
    """A part ack to be written, fenced by the epoch of its lease."""

    epoch: int
    upload: int
    part: PartAck


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of a write that failed while others of its commit did not."""

    error: BaseException


class GroupCommit:
    """Collects writes while a commit is under way; the next commit takes all of them.

    There is no task: the first writer queues a commit in the worker's thread, later ones
    join it until the thread begins it. So a lone writer waits for its own commit alone, and
    cancelling one leaves the others' writes in place. A write with `patience_s` waits for others
    first: until that time is over, a write without it joins, or there are enough.

    Args:
        commit: makes writes durable and returns their outcomes, with a `Failure` for one
            that failed alone.
        no_answer: makes the error for writers whose commit did not end in `timeout_s`.

    Mutable: `_open` is the group that still takes writes, shared with the thread.
    """

    def __init__(
        self,
        worker: Worker,
        commit: Callable[[Sequence[Any]], Sequence[Any]],
        no_answer: Callable[[], StateUnavailable],
        timeout_s: float,
    ) -> None:
        self._worker = worker
        self._commit = commit
        self._no_answer = no_answer
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._open: _Group | None = None

    def write(self, write: object, *, patience_s: float = 0.0) -> asyncio.Future[Any]:
        """Queue a write; the future has its outcome once it is durable.

        Args:
            patience_s: how long it may wait for others to share its commit with.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            group = self._open
            if group is None:
                group = self._open = _Group()
                # One deadline for all: it is a third of the cost of one for each.
                group.deadline = loop.call_later(self._timeout_s, self._time_out, group)
                if patience_s:
                    group.timer = loop.call_later(patience_s, self._submit, group)
            group.writes.append(write)
            group.futures.append(future)
        if not patience_s or len(group.writes) >= _ENOUGH:
            self._submit(group)
        return future

    def _submit(self, group: _Group) -> None:
        """Queue the group's commit, once; it still takes writes until its turn comes."""
        if group.is_submitted:
            return
        group.is_submitted = True
        if group.timer is not None:
            group.timer.cancel()
        self._worker.submit(self._commit_open)

    def _commit_open(self) -> None:
        """In the thread: close the group and commit it."""
        with self._lock:
            group, self._open = self._open, None
        assert group is not None  # noqa: S101 - every group is submitted once
        try:
            outcomes = self._commit(group.writes)
        except BaseException as error:
            outcomes = [Failure(error)] * len(group.writes)
        self._worker.call_soon(group.settle, outcomes)

    def _time_out(self, group: _Group) -> None:
        group.settle([Failure(self._no_answer())] * len(group.writes))


class _Group:
    """Writes of one commit and who waits for them. Mutable until the thread takes it."""

    __slots__ = ("deadline", "futures", "is_submitted", "timer", "writes")

    def __init__(self) -> None:
        self.writes: list[object] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.deadline: asyncio.TimerHandle
        self.timer: asyncio.TimerHandle | None = None
        self.is_submitted = False

    def settle(self, outcomes: Sequence[Any]) -> None:
        """Give each writer its outcome, if it still waits."""
        self.deadline.cancel()
        for future, outcome in zip(self.futures, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Failure):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)
