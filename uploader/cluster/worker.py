"""One worker: takes rows from the queue, uploads them, and records how each ended.

The queue may hand one row to two workers (one of them frozen, or cut off). The lease on the
checkpoint decides who sends; the worker that loses it gives the row back.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from socket import gethostname
from typing import TYPE_CHECKING, Any, Final

from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker

from uploader import errors
from uploader.batch import outcome_of
from uploader.bulk.ledger import Record, failure_record, success_record
from uploader.bulk.rows import Row
from uploader.bulk.runner import STOPS_ALL, CheckedRow
from uploader.cluster.database import as_state_errors, borrowed
from uploader.cluster.jobs import QUEUE, TASK, checked_row, queue_at, storable
from uploader.cluster.queue import Ending, Queue, make_queue
from uploader.errors import VodupError
from uploader.events import UploadResult
from uploader.log import get_logger
from uploader.sources.url_policy import UrlPolicy
from uploader.tasks import beside
from uploader.uploader import Uploader

if TYPE_CHECKING:
    from procrastinate import App, JobContext
    from procrastinate.jobs import Job

    from uploader.cluster.database import Pool

_BUG_WAIT_S: Final = 5.0
_MAX_WAIT_S: Final = 600.0
_SOURCE_TRIES: Final = 3
_STOP_POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        files: rows at once. Too few: small files wait for each other's round trips. Too
            many: more is unfinished when the worker dies.
        node: this machine, for rows that only it can read.
        heartbeat_s: how often the worker records that it is alive; the same for all workers.
            A worker that is silent for three of these loses its rows to others. Too small: a
            short freeze is taken for a death. Too large: rows of a machine that died wait.
        grace_s: how long uploads may continue when the worker is to stop. Rows that have not
            ended by then are given back; their parts are kept.
        tries: after how many temporary failures a row has failed.
        is_draining: end when no row is left that this worker could take.
        urls: which addresses sources may be read from.
        roots: real folders that files have to be in; none allows all. Whoever may write to
            the queue names files that this machine reads and sends.
    """

    files: int = 8
    node: str = field(default_factory=gethostname)
    heartbeat_s: float = 10.0
    grace_s: float = 20.0
    tries: int = 10
    is_draining: bool = False
    urls: UrlPolicy = field(default_factory=UrlPolicy)
    roots: tuple[str, ...] = ()

    @property
    def silent_s(self) -> float:
        """After this much silence a worker counts as dead; also the life of a lease."""
        return 3 * self.heartbeat_s

    @property
    def patience_s(self) -> float:
        """How long the queue waits for an unreachable database, before the worker ends."""
        return 6 * self.heartbeat_s

    def root_of(self, path: str) -> str | None:
        """Return the root that a path begins with; opening it makes sure of the rest.

        Raises:
            UnsafePath: it begins with none of them.
        """
        for root in self.roots:
            if path.startswith(f"{root.rstrip('/')}/"):
                return root
        if path and self.roots:
            raise errors.UnsafePath(f"{path} is in no folder that this worker may read (--root).")
        return None


@dataclass(frozen=True, slots=True)
class _TakenRow:
    """A row that this worker took from the queue.

    Attributes:
        is_shared: whether other workers could take it as well.
    """

    id: str
    checked: CheckedRow
    failure_count: int
    is_shared: bool


_NO_FAILURE: Final = (errors.UploadLocked, errors.LeaseLost, *STOPS_ALL)
"""Errors that do not count against the tries of a row."""


def _retry_after_s(error: VodupError, taken: _TakenRow, options: WorkerOptions) -> float | None:
    """How long a row that failed waits until it may be taken again; None if it has failed."""
    if isinstance(error, _NO_FAILURE):
        return 0.0 if isinstance(error, STOPS_ALL) else options.heartbeat_s
    tries = 1
    if error.is_temporary:
        tries = options.tries
    elif isinstance(error, errors.SourceUnreadable) and taken.is_shared:
        tries = _SOURCE_TRIES  # this machine may lack the mount; another may have it
    if taken.failure_count + 1 >= tries:
        return None
    wait_s = min(_MAX_WAIT_S, options.heartbeat_s / 2 * 2.0**taken.failure_count)
    return wait_s * random.uniform(0.75, 1.25)


class _GiveBack(Exception):
    """The row goes back to the queue."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"again in {wait_s:g} s")
        self.wait_s = wait_s


class _AlwaysRetry(BaseRetryStrategy):
    """Only a record ends a row: not a bug, not a cancellation, not a shutdown."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        if isinstance(exception, _GiveBack):
            wait_s = exception.wait_s
        else:
            wait_s = 0.0 if isinstance(exception, asyncio.CancelledError) else _BUG_WAIT_S
        return RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=wait_s))


class QueueWorker:
    """Uploads rows of the queue. Mutable: what is running, and why it has to stop.

    Args:
        uploader: open, on the state in the same database.
        exit_code: goes into the records of failures.
        on_record: called with each final record that this worker wrote.
        on_given_back: called with a row and the reason why it was given back.
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

        Cancelling stops gracefully: no row is taken any more, uploads under way may end
        within the grace time, the rest is given back.

        Raises:
            StateUnavailable: the database was unreachable for too long. Nothing is lost.
            CallerNotAuthenticated, UnsupportedState: this worker can upload nothing.
        """
        app, queue = make_queue(self._options.patience_s)
        app.task(name=TASK, pass_context=True, retry=_AlwaysRetry())(self._task(queue))
        with as_state_errors():
            await app.open_async(self._pool)
            worker = self._procrastinate_worker(app)
            # Beside the jobs, not as jobs: long uploads in all places would keep a job from
            # running. And until the block ends, so that a stopping worker counts as alive.
            async with beside(
                self._beat(worker, queue),
                self._sweep(worker, queue),
                self._stop_when_due(worker, queue),
            ):
                await worker.run()  # type: ignore[no-untyped-call]
        if self._fatal is not None:
            raise self._fatal
        if not self._is_drained:
            raise errors.StateUnavailable(
                "The queue cannot be read any longer.",
                next_step="Check the database, then run the same command again.",
            )

    def _procrastinate_worker(self, app: App) -> Worker:
        options = self._options
        return Worker(
            app,
            queues=self._queues,
            name=options.node,
            concurrency=options.files,
            fetch_job_polling_interval=options.heartbeat_s / 2,  # new rows are notified at once
            stalled_worker_timeout=options.silent_s,
            update_heartbeat_interval=86_400.0,  # it ends with the first step of a shutdown
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
                if (found := await queue.row(id, job_id)) is None:
                    return  # the row was queued again meanwhile, and that job counts
                queue.endings[job_id] = Ending(id, problem="its worker was stopped")
                spec = json.loads(found["spec"])
                checked = checked_row(spec, found["manifest"], found["number"])
                is_shared, count = job.queue == QUEUE, found["failure_count"]
                taken = _TakenRow(id, checked, count, is_shared)
                ending = queue.endings[job_id] = await self._ended(taken)
                if ending.wait_s is not None:
                    raise _GiveBack(ending.wait_s)
            except errors.UnsupportedState as error:
                self._fatal = error
                raise
            finally:
                self._running.discard(job_id)

        return upload

    async def _ended(self, taken: _TakenRow) -> Ending:
        """Upload a row; returns how its job ends."""
        row = taken.checked.row
        try:
            record = success_record(row, await self._uploaded(taken))
        except VodupError as error:
            wait_s = _retry_after_s(error, taken, self._options)
            if wait_s is not None:
                return self._given_back(taken, error, wait_s)
            code, attempts = self._exit_code(error), taken.failure_count + 1
            record = failure_record(row, error, exit_code=code, attempts=attempts)
        self._on_record(record)
        return Ending(taken.id, record)

    async def _uploaded(self, taken: _TakenRow) -> UploadResult:
        root = self._options.root_of(taken.checked.real_path)
        checked = replace(taken.checked, root=root)
        item = checked.item(self._options.urls, overwrite=False)
        outcome = await outcome_of(self._uploader.upload_item, item)
        if outcome.result is not None:
            return outcome.result
        raise outcome.error or VodupError("The upload ended without a result.")

    def _given_back(self, taken: _TakenRow, error: VodupError, wait_s: float) -> Ending:
        problem = storable(f"{type(error).__name__}: {error.message}")
        self._on_given_back(taken.checked.row, problem)
        if isinstance(error, STOPS_ALL):
            self._fatal = error
        is_failure = not isinstance(error, _NO_FAILURE)
        return Ending(taken.id, problem=problem, is_failure=is_failure, wait_s=wait_s)

    # --- beside the rows --------------------------------------------------------------

    async def _beat(self, worker: Worker, queue: Queue) -> None:
        while True:
            if worker.worker_id is not None:
                await queue.update_heartbeat(worker.worker_id)
            await asyncio.sleep(self._options.heartbeat_s)

    async def _sweep(self, worker: Worker, queue: Queue) -> None:
        """Give back the jobs of silent workers, and lost ones that the database assigns to us.

        A job is lost when the answer to a fetch was lost, or it could not be given back: it
        does not run here at two sweeps in a row.
        """
        suspects: set[int | None] = set()
        while True:
            await asyncio.sleep(1.5 * self._options.heartbeat_s)
            if (worker_id := worker.worker_id) is None:
                continue
            held = await queue.held_jobs(worker_id)
            idle = [job for job in held if job.id not in self._running]
            lost = [job for job in idle if job.id in suspects]
            suspects = {job.id for job in idle}
            if swept := await queue.sweep(silent_s=self._options.silent_s, lost=lost):
                get_logger().warning("jobs.swept", count=len(swept))

    async def _stop_when_due(self, worker: Worker, queue: Queue) -> None:
        while True:
            await asyncio.sleep(_STOP_POLL_S)
            if self._fatal is not None:
                worker.stop()  # type: ignore[no-untyped-call]
            elif self._options.is_draining and not await queue.has_jobs(self._queues):
                self._is_drained = True
                worker.stop()  # type: ignore[no-untyped-call]


# --- the account's quota --------------------------------------------------------------

_AHEAD_S: Final = 2.0
"""How far ahead turns are given out. Too little: many workers query again and again. Too much:
turns of a worker that died are missing for that long."""

_MIN_BURST_S: Final = 0.05  # of unused turns: a late caller may still use them

_TAKE_TURN: Final = """
INSERT INTO vodup_budget AS budget (name, next_at)
VALUES (%(name)s, extract(epoch FROM clock_timestamp())::float8 + %(gap)s)
ON CONFLICT (name) DO UPDATE
SET next_at = greatest(
        budget.next_at, extract(epoch FROM clock_timestamp())::float8 - %(burst)s
    ) + %(gap)s
WHERE budget.next_at < extract(epoch FROM clock_timestamp())::float8 + %(ahead)s
RETURNING next_at - %(gap)s - extract(epoch FROM clock_timestamp())::float8
"""


class SharedBudget:
    """Calls to VOD per second, shared by all workers: VOD's quotas are for an account.

    One row holds the time of the next call, on the database's clock. A caller moves it ahead
    by the time between two calls and waits for its turn by itself. The row is locked for one
    statement only, and a worker that dies leaves at most the turns within `_AHEAD_S` unused.

    Args:
        name: of the quota; all workers with the same name share it.
        calls_per_s: the same for all of them.
    """

    def __init__(self, pool: Pool, name: str, calls_per_s: float) -> None:
        self._pool = pool
        self._values = {
            "name": name,
            "gap": 1 / calls_per_s,
            "burst": _MIN_BURST_S,
            "ahead": _AHEAD_S,
        }

    async def __call__(self) -> None:
        """Return when a call may be made.

        Raises:
            StateUnavailable: the database cannot be used.
        """
        while (wait_s := await self._take_turn()) is None:  # noqa: ASYNC110 - no event for a row
            # At random times, or all who were turned away would come back at once.
            await asyncio.sleep(_AHEAD_S * random.uniform(0.2, 0.5))
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _take_turn(self) -> float | None:
        """Seconds until our turn; None when too many wait already."""
        async with borrowed(self._pool) as connection:
            row = await (await connection.execute(_TAKE_TURN, self._values)).fetchone()
        return None if row is None else float(row[0])
