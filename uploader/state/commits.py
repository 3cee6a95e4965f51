"""Group commit: many writes, one transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from uploader.errors import StateUnavailable
from uploader.state.records import PartAck
from uploader.threads import Worker

__all__ = ["AckWrite", "Failure", "GroupCommit"]

_ENOUGH: Final = 64

Write = TypeVar("Write")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class AckWrite:
    """A receipt on its way to the disk, fenced by the epoch of its claim."""

    epoch: int
    upload: int
    part: PartAck


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of a write that failed while others of its commit did not."""

    error: BaseException


class GroupCommit(Generic[Write, Outcome]):
    """Collects writes while a commit is under way; the next commit takes all of them.

    There is no task: the first writer queues a commit in the worker's thread, later ones
    join it until the thread takes the batch. So a lone writer waits for nothing but its
    own commit, and a cancelled one takes nobody's write with it. A patient one waits for
    company first: until its patience ends, somebody impatient joins or there is enough.

    Args:
        commit: makes writes durable and says how each went, with a `Failure` for one that
            failed alone.
        no_answer: the error for writers whose commit did not end within `timeout_s`.

    Mutable: `_open` is the batch that still takes writes, shared with the thread.
    """

    def __init__(
        self,
        worker: Worker,
        commit: Callable[[Sequence[Write]], Sequence[Outcome | Failure]],
        no_answer: Callable[[], StateUnavailable],
        timeout_s: float,
    ) -> None:
        self._worker = worker
        self._commit = commit
        self._no_answer = no_answer
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._open: _Group | None = None

    def write(self, write: Write, *, patience_s: float = 0.0) -> asyncio.Future[Outcome]:
        """Queue a write; the future says, once it is durable, how it went.

        Args:
            patience_s: how long it may wait for others to share its commit with.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        with self._lock:
            batch = self._open
            if batch is None:
                batch = self._open = _Group()
                # One deadline for all: it is a third of the cost of one for each.
                batch.deadline = loop.call_later(self._timeout_s, self._give_up, batch)
                if patience_s:
                    batch.departure = loop.call_later(patience_s, self._depart, batch)
            batch.writes.append(write)
            batch.futures.append(future)
        if not patience_s or len(batch.writes) >= _ENOUGH:
            self._depart(batch)
        return future

    def _depart(self, batch: _Group) -> None:
        """Queue the batch's commit, once; it still takes writes until its turn comes."""
        if batch.has_departed:
            return
        batch.has_departed = True
        if batch.departure is not None:
            batch.departure.cancel()
        self._worker.submit(self._commit_open)

    def _commit_open(self) -> None:
        """In the thread: close the batch and commit it."""
        with self._lock:
            batch, self._open = self._open, None
        assert batch is not None  # noqa: S101 - every batch departs once
        try:
            outcomes = self._commit(batch.writes)
        except BaseException as error:
            self._worker.call_soon(batch.fail, error)
        else:
            self._worker.call_soon(batch.settle, outcomes)

    def _give_up(self, batch: _Group) -> None:
        batch.fail(self._no_answer())


class _Group:
    """Writes of one commit and who waits for them. Mutable until the thread takes it."""

    __slots__ = ("deadline", "departure", "futures", "has_departed", "writes")

    def __init__(self) -> None:
        self.writes: list[Any] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.deadline: asyncio.TimerHandle
        self.departure: asyncio.TimerHandle | None = None
        self.has_departed = False

    def settle(self, outcomes: Sequence[Any]) -> None:
        """Tell each writer how it went."""
        self._end()
        for future, outcome in zip(self.futures, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Failure):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        """Tell all writers that nothing was written, as far as known."""
        self._end()
        for future in self.futures:
            if not future.done():
                future.set_exception(error)

    def _end(self) -> None:
        self.deadline.cancel()
