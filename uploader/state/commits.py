"""Group commit: many receipts, one transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uploader.errors import VodupError
from uploader.state.records import PartAck
from uploader.state.worker import Worker

__all__ = ["AckWrite", "GroupCommit"]


@dataclass(frozen=True, slots=True)
class AckWrite:
    """A receipt on its way to the disk, fenced by the epoch of its claim."""

    epoch: int
    upload: int
    part: PartAck


class GroupCommit:
    """Collects writes while a commit is under way; the next commit takes all of them.

    There is no timer and no task: the first writer queues a commit in the worker's
    thread, later ones join it until the thread takes the batch. So a lone writer waits
    for nothing but its own commit, and a cancelled one takes nobody's write with it.

    Mutable: `_waiting` and `_is_queued` are touched by the loop and the worker's thread.
    A write is appended before the flag is read, and the flag is cleared before the
    batch is taken: every write is in a batch that is queued or runs after it.
    """

    def __init__(
        self,
        worker: Worker,
        commit: Callable[[Sequence[AckWrite]], Sequence[VodupError | None]],
    ) -> None:
        self._worker = worker
        self._commit = commit
        self._waiting: deque[tuple[AckWrite, asyncio.Future[None]]] = deque()
        self._is_queued = False

    def write(self, ack: AckWrite) -> asyncio.Future[None]:
        """Queue a write; the future is done when it is durable, or says why it is not."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ack, future))
        if not self._is_queued:
            self._is_queued = True
            self._worker.submit(self._commit_waiting)
        return future

    def _commit_waiting(self) -> None:
        self._is_queued = False
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not batch:
            return
        outcomes: Sequence[BaseException | None]
        try:
            outcomes = self._commit([ack for ack, _ in batch])
        except BaseException as error:
            outcomes = [error] * len(batch)
        self._worker.tell(_settle, [future for _, future in batch], outcomes)


def _settle(
    futures: Sequence[asyncio.Future[None]], outcomes: Sequence[BaseException | None]
) -> None:
    for future, error in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
