"""One worker: takes rows from the queue, uploads them, and says how each ended.

The queue may hand one row to two workers (one of them frozen, or cut off). The lease on
the checkpoint decides who sends; who loses it gives the row back, whatever it believes.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker as ProcrastinateWorker

from uploader.bulk.ledger import Record, failure_record, success_record
from uploader.bulk.rows import Row
from uploader.cluster.database import in_our_words
from uploader.cluster.jobs import (
    QUEUE,
    item_of,
    queue_at,
    require_known,
    row_of,
    storable,
    this_node,
)
from uploader.cluster.queue import TASK, Ending, Queue, make_queue
from uploader.engine import Uploader
from uploader.errors import (
    CallerNotAuthenticated,
    LeaseLost,
    SourceUnreadable,
    StateUnavailable,
    UnsafePath,
    UnsupportedState,
    UploadLocked,
    VodupError,
)
from uploader.log import get_logger
from uploader.sources.url_policy import UrlPolicy
from uploader.tasks import beside

if TYPE_CHECKING:
    from procrastinate import App, JobContext
    from procrastinate.jobs import Job

    from uploader.cluster.database import Pool

__all__ = ["Worker", "WorkerOptions"]

_HOPELESS: Final = (CallerNotAuthenticated, UnsupportedState)
"""What meets one row here would meet all of them: this worker had better stop."""

_BUG_WAIT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 600.0
_SOURCE_TRIES: Final = 3
_DRAIN_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        files: rows at once. Too few: small files wait for each other's round trips. Too
            many: more is unfinished when the worker dies.
        node: this machine, for what only it can read.
        heartbeat_s: how often the worker says that it lives. A worker that was silent for
            three of these loses its rows to others. Too small: a short freeze is taken
            for a death. Too large: rows of a machine that died wait that long. The same
            for all workers.
        grace_s: how long rows under way may go on when the worker is to stop. What has not
            ended by then is given back, its parts kept.
        tries: after how many temporary failures a row has failed.
        is_draining: end when no row is left that this worker could take.
        urls: which addresses sources may be read from.
        roots: real folders that files have to lie in; none allows all. Whoever may write to
            the queue names files that this machine reads and sends away.
    """

    files: int = 8
    node: str = field(default_factory=this_node)
    heartbeat_s: float = 10.0
    grace_s: float = 20.0
    tries: int = 10
    is_draining: bool = False
    urls: UrlPolicy = field(default_factory=UrlPolicy)
    roots: tuple[str, ...] = ()

    @property
    def silent_s(self) -> float:
        """After so much silence a worker counts as dead; also how long a lease lives."""
        return 3 * self.heartbeat_s

    @property
    def patience_s(self) -> float:
        """How long the queue waits for a database that is away, before the worker ends."""
        return 6 * self.heartbeat_s

    @property
    def first_wait_s(self) -> float:
        """How long a row rests after its first failure that may pass; then ever longer."""
        return self.heartbeat_s / 2

    @property
    def sweep_s(self) -> float:
        """How often the rows of silent workers are looked for."""
        return 1.5 * self.heartbeat_s


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of a row that failed.

    Attributes:
        wait_s: give it back, to be taken again no sooner; None ends it.
        is_failure: whether that counts against its tries.
    """

    wait_s: float | None
    is_failure: bool = True


@dataclass(frozen=True, slots=True)
class _Taken:
    """A row that this worker took from the queue.

    Attributes:
        is_shared: whether other workers could take it as well.
    """

    id: str
    spec: Mapping[str, Any]
    row: Row
    failure_count: int
    is_shared: bool

    @classmethod
    def of(cls, found: Mapping[str, Any], row_id: str, *, is_shared: bool) -> _Taken:
        """Read what the database has of it."""
        spec = json.loads(found["spec"])
        require_known(spec)
        row = row_of(spec, found["manifest"], found["number"])
        return cls(row_id, spec, row, found["failure_count"], is_shared)


def _judge(error: VodupError, taken: _Taken, options: WorkerOptions) -> _Verdict:
    """Decide whether a row that failed may be tried again."""
    if isinstance(error, (UploadLocked, LeaseLost)):
        return _Verdict(options.heartbeat_s, is_failure=False)
    if isinstance(error, _HOPELESS):
        return _Verdict(0, is_failure=False)
    tries = 1
    if error.is_temporary:
        tries = options.tries
    elif isinstance(error, SourceUnreadable) and taken.is_shared:
        tries = _SOURCE_TRIES  # this machine may lack the mount; another has a chance
    if taken.failure_count + 1 >= tries:
        return _Verdict(None)
    wait_s = min(_LONGEST_WAIT_S, options.first_wait_s * 2**taken.failure_count)
    return _Verdict(wait_s * random.uniform(0.75, 1.25))


def _require_below(roots: Sequence[str], path: str) -> None:
    if path and roots and not any(path.startswith(f"{root.rstrip('/')}/") for root in roots):
        raise UnsafePath(f"{path} is in no folder that this worker may read (--root).")


class _Again(Exception):
    """The row goes back to the queue."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"again in {wait_s:g} s")
        self.wait_s = wait_s


class _AlwaysAgain(BaseRetryStrategy):
    """Nothing but a record ends a row: not a bug, not a cancellation, not a shutdown."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        if isinstance(exception, _Again):
            wait_s = exception.wait_s
        else:
            wait_s = 0.0 if isinstance(exception, asyncio.CancelledError) else _BUG_WAIT_S
        return RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=wait_s))


class Worker:
    """Rows from the queue to their ends. Mutable: what is running, and why it has to stop.

    Args:
        uploader: open, on the state in the same database.
        exit_code: goes into the records of failures.
        on_record: told each terminal record that this worker wrote.
        on_given_back: told a row and why it was given back.
    """

    def __init__(
        self,
        uploader: Uploader,
        pool: Pool,
        options: WorkerOptions,
        *,
        exit_code: Callable[[VodupError], int] = lambda _: 1,
        on_record: Callable[[Record], None] = lambda _: None,
        on_given_back: Callable[[Row, str], None] = lambda _row, _why: None,
    ) -> None:
        self._uploader, self._pool, self._options = uploader, pool, options
        self._exit_code, self._on_record = exit_code, on_record
        self._on_given_back = on_given_back
        self._queues = [QUEUE, queue_at(options.node)]
        self._running: set[int] = set()
        self._fatal: VodupError | None = None
        self._is_drained = False

    async def run(self) -> None:
        """Work until cancelled, or until nothing is left to do.

        Cancelling it stops gracefully: nothing new is taken, what is under way may end
        within the grace time, the rest is given back.

        Raises:
            StateUnavailable: the database was away for too long. Nothing is lost.
            CallerNotAuthenticated, UnsupportedState: this worker can upload nothing.
        """
        app, queue = make_queue(self._options.patience_s)
        app.task(name=TASK, pass_context=True, retry=_AlwaysAgain())(self._task(queue))
        with in_our_words():
            await app.connector.open_async(self._pool)
            worker = self._procrastinate(app)
            async with self._beside(worker, queue):
                await worker.run()  # type: ignore[no-untyped-call]
        if self._fatal is not None:
            raise self._fatal
        if not self._is_drained:
            raise StateUnavailable("the queue could not be read any longer.")

    def _procrastinate(self, app: App) -> ProcrastinateWorker:
        options = self._options
        return ProcrastinateWorker(
            app,
            queues=self._queues,
            name=options.node,
            concurrency=options.files,
            fetch_job_polling_interval=options.heartbeat_s / 2,  # it is told of new rows at once
            stalled_worker_timeout=options.silent_s,
            # We say it ourselves: also while stopping, and after the database was away.
            update_heartbeat_interval=86_400.0,
            shutdown_graceful_timeout=options.grace_s,
            install_signal_handlers=False,
        )

    # --- one row ----------------------------------------------------------------------

    def _task(self, queue: Queue) -> Callable[..., Any]:
        async def upload(context: JobContext, *, id: str) -> None:
            job = context.job
            job_id = job.id or 0
            self._running.add(job_id)
            try:
                if (found := await queue.row(id, job_id)) is not None:
                    # Else the row was queued again meanwhile, and that job is the one that counts.
                    queue.endings[job_id] = Ending(id, problem="its worker was stopped")
                    taken = _Taken.of(found, id, is_shared=job.queue == QUEUE)
                    queue.endings[job_id] = await self._carried_out(taken)
                    self._raise_if_given_back(queue.endings[job_id])
            except UnsupportedState as error:
                self._fatal = error
                raise
            finally:
                self._running.discard(job_id)

        return upload

    def _raise_if_given_back(self, ending: Ending) -> None:
        if ending.wait_s is not None:
            raise _Again(ending.wait_s)

    async def _carried_out(self, taken: _Taken) -> Ending:
        """Upload a row; how its job is to end."""
        try:
            record = await self._uploaded(taken)
        except VodupError as error:
            verdict = _judge(error, taken, self._options)
            if verdict.wait_s is not None:
                return self._given_back(taken, error, verdict)
            code, attempts = self._exit_code(error), taken.failure_count + 1
            record = failure_record(taken.row, error, exit_code=code, attempts=attempts)
        self._on_record(record)
        return Ending(taken.id, record)

    async def _uploaded(self, taken: _Taken) -> Record:
        _require_below(self._options.roots, taken.spec["real_path"])
        item = item_of(taken.spec, taken.row, self._options.urls)
        try:
            result = await self._uploader.upload(
                item.source,
                meta=item.meta,
                video_id=item.video_id,
                key=item.key,
                overwrite=item.overwrite,
            )
        except VodupError:
            raise
        except Exception as bug:
            get_logger().exception("upload.crashed", error=type(bug).__name__)
            raise VodupError(
                f"Something unexpected happened ({type(bug).__name__}).",
                next_step="Report it: this is a bug in vodup. The checkpoint is kept.",
            ) from bug
        return success_record(taken.row, result)

    def _given_back(self, taken: _Taken, error: VodupError, verdict: _Verdict) -> Ending:
        problem = storable(f"{type(error).__name__}: {error.message}")
        self._on_given_back(taken.row, problem)
        if isinstance(error, _HOPELESS):
            self._fatal = error
        return Ending(
            taken.id, problem=problem, is_failure=verdict.is_failure, wait_s=verdict.wait_s
        )

    # --- beside the rows --------------------------------------------------------------

    @asynccontextmanager
    async def _beside(self, worker: ProcrastinateWorker, queue: Queue) -> AsyncIterator[None]:
        """Beat and sweep as long as the block runs, also while it is stopping.

        Not as jobs: long uploads in all places would keep a job that sweeps from running.
        """
        async with beside(
            self._beat(worker, queue),
            self._sweep(worker, queue),
            self._stop_when_due(worker, queue),
        ):
            yield

    async def _beat(self, worker: ProcrastinateWorker, queue: Queue) -> None:
        while True:
            if worker.worker_id is not None:
                await queue.beat(worker.worker_id)
            await asyncio.sleep(self._options.heartbeat_s)

    async def _sweep(self, worker: ProcrastinateWorker, queue: Queue) -> None:
        """Give back what silent workers hold, and what the database wrongly calls ours.

        The second happens when the answer to a fetch was lost, or a row could not be given
        back: a job that we do not run at two sweeps in a row.
        """
        suspects: set[int] = set()
        while True:
            await asyncio.sleep(self._options.sweep_s)
            if (worker_id := worker.worker_id) is None:
                continue
            idle = await queue.doing(worker_id) - self._running
            ghosts = sorted(idle & suspects)
            suspects = idle
            silent_s = self._options.silent_s
            if taken := await queue.sweep(worker_id, silent_s=silent_s, ghosts=ghosts):
                get_logger().warning("jobs.swept", count=len(taken))

    async def _stop_when_due(self, worker: ProcrastinateWorker, queue: Queue) -> None:
        while True:
            await asyncio.sleep(_DRAIN_LOOK_S)
            if self._fatal is not None:
                worker.stop()  # type: ignore[no-untyped-call]
            elif self._options.is_draining and not await queue.left_count(self._queues):
                self._is_drained = True
                worker.stop()  # type: ignore[no-untyped-call]
