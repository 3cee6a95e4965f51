"""One opening of a database: the thread that works for it, and what goes into a commit."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from uploader.errors import ConfigurationError, StateError, StateUnavailable
from uploader.portable import after_fork
from uploader.state import queries
from uploader.state import transactions as tx
from uploader.state.commits import AckWrite, Failure, GroupCommit
from uploader.state.leases import Lease, Owner, OwnerLock
from uploader.state.locations import PostgresUrl, SqliteFile
from uploader.state.transactions import Connection, Database, FoundUpload
from uploader.threads import Worker

T = TypeVar("T")

_MANY: Final = 8
"""Uploads under way from which on leases wait for a commit to share."""

_PATIENCE_S: Final = 0.02
"""Too short: with a slow server hardly anything shares a commit. Too long: files wait for it."""


class _Forks:
    """How often this process was forked off since this module was loaded. Mutable.

    Read with every write; `os.getpid` is a system call each time.
    """

    count: ClassVar[int] = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


after_fork(_Forks.add)


class StoreThread:
    """One opening of a database and the thread that works for it.

    Mutable: the database, and the epochs of the leases that are held; only the thread
    touches them.

    Args:
        notice: called with a sentence about what was repaired or left out.
        no_answer: makes the error for writes that do not end in `answer_timeout_s`.
    """

    def __init__(
        self,
        notice: Callable[[str], None],
        no_answer: Callable[[], StateUnavailable],
        answer_timeout_s: float,
        flush_interval_s: float,
    ) -> None:
        self.owner = Owner.this_process()
        self.worker = Worker("vodup-state")
        self.commits = GroupCommit(self.worker, self._commit, no_answer, answer_timeout_s)
        self.notice = notice
        self.epochs: set[int] = set()
        self._database: Database | None = None
        self._owner_lock: OwnerLock | None = None
        self._flush_interval_s = flush_interval_s
        self._flushed_s = -math.inf
        self._has_unflushed_acks = False
        self._has_failed_release = False
        self._forks = _Forks.count

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a forked child: thread, connection and locks stay with the parent."""
        return self._forks != _Forks.count

    # --- in the loop ----------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Run `work` in a transaction, which other writes may share."""
        return self.commits.write(work)

    def take(self, lease: Lease, ttl_s: float) -> asyncio.Future[FoundUpload]:
        """Take a lease, fill in its epoch, and read the upload."""
        return self.commits.write(_Take(self, lease, ttl_s), patience_s=self._patience_s())

    def renew(self, lease: Lease, ttl_s: float) -> asyncio.Future[bool]:
        """Extend a lease; False if another owner holds it."""
        return self.write(_Renewal(lease.epoch, ttl_s))

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """End a lease, also one that a cancelled `take` takes later."""
        return self.commits.write(_Release(self, lease), patience_s=self._patience_s())

    def _patience_s(self) -> float:
        """How long a lease of one of many uploads waits for a commit of another one.

        A fast server has one under way at any time. With a slow one, commits of their own would
        cost a small file half as much again as all else.
        """
        return _PATIENCE_S if len(self.epochs) >= _MANY else 0.0

    def abandon(self) -> None:
        """Close without waiting, after a failed opening."""
        self.worker.call(self.close)
        self.worker.stop()

    # --- in the thread --------------------------------------------------------------------

    def open(self, location: SqliteFile | PostgresUrl) -> None:
        """Open the database, and take the lock that shows others that its owner lives."""
        database = self._database = _open_database(location, self.notice)
        try:
            others = self._owner_lock = OwnerLock(database.locks, database.store_id, self.owner)
        except OSError as error:
            raise StateUnavailable(
                f"no lock file in {database.locks}: {error.strerror}."
            ) from error
        try:
            self._remove_dead_owners(others)
        except OSError as error:
            # The next opening does it; whoever takes a lease checks its owner's lock.
            self.notice(f"locks of ended processes stay where they are: {error.strerror}")

    def _remove_dead_owners(self, others: OwnerLock) -> None:
        """Delete the leases of owners that are gone, and their lock files."""
        dead = others.dead_tokens()
        if dead:
            self.transact(partial(tx.drop_leases_of, tokens=dead))
        for token in dead:
            others.remove(token)
        others.remove_old_files()

    def transact(self, work: Callable[[Connection], T], *, is_flushed: bool = True) -> T:
        """Run `work` in one transaction; flushed, it is durable on return."""
        if self._database is None:
            raise StateUnavailable("the state is closed.")
        answer = self._database.transact(work, is_flushed=is_flushed)
        if is_flushed:
            self._flushed_s = time.monotonic()
            self._has_unflushed_acks = False
        return answer

    def is_dead(self, epoch: int, owner_text: str) -> bool:
        """Whether the owner of a lease is known not to use it any more."""
        owner = Owner.parse(owner_text)
        if owner is None or self._owner_lock is None:
            return False
        if owner == self.owner:
            return epoch not in self.epochs  # its release had failed
        return self._owner_lock.is_dead(owner)

    def close(self) -> None:
        """Release all leases and close the database."""
        if self._database is None:
            return
        lock = self._owner_lock
        try:
            if self.epochs or self._has_failed_release:
                self.transact(partial(tx.drop_leases_of, tokens=[self.owner.token]))
        except StateError as error:
            # Our lock file stays, unlocked: by that the next process sees that we are gone.
            if lock is not None:  # pragma: no branch - leases are taken under it
                lock.leave_file()
            self.notice(f"leases could not be released: {error}")
        finally:
            database, self._database, self._owner_lock = self._database, None, None
            try:
                database.close()
            finally:
                if lock is not None:
                    lock.close()

    def _commit(self, writes: Sequence[Any]) -> Sequence[Any]:
        """Carry out all writes in one transaction; if one fails, each in its own."""
        is_flushed = self._must_flush(writes)
        try:
            outcomes = self.transact(partial(_carry_out, writes), is_flushed=is_flushed)
        except Exception as error:
            for write in writes:
                if isinstance(write, _Take):
                    write.undo()
            if len(writes) == 1:
                self._has_failed_release |= isinstance(writes[0], _Release)
                return [Failure(error)]
            return [self._commit([write])[0] for write in writes]
        if not is_flushed and any(isinstance(write, AckWrite) for write in writes):
            self._has_unflushed_acks = True
        return outcomes

    def _must_flush(self, writes: Sequence[Any]) -> bool:
        """Whether these writes wait for the disk.

        Acks wait once in an interval. Leases need not: after a loss of power no process is
        left that could use one. But acks that came before wait with a renewal or a release.
        """
        kinds = {type(write) for write in writes}
        if not kinds <= {AckWrite, _Take, _Renewal, _Release}:
            return True
        if AckWrite in kinds and time.monotonic() - self._flushed_s >= self._flush_interval_s:
            return True
        return self._has_unflushed_acks and not kinds.isdisjoint({_Renewal, _Release})


def _open_database(location: SqliteFile | PostgresUrl, notice: Callable[[str], None]) -> Database:
    """A driver is imported when a store of its kind is opened, in the store's thread."""
    if isinstance(location, SqliteFile):
        from uploader.state.sqlite import open_file

        return open_file(location, notice)
    try:
        from uploader.state.postgres import open_server
    except ImportError as error:
        raise ConfigurationError(
            "a PostgreSQL state needs the psycopg driver.",
            next_step="Run `pip install 'vodup[postgres]'`.",
        ) from error
    return open_server(location)


# --- what a commit consists of --------------------------------------------------------------


def _carry_out(writes: Sequence[Any], connection: Connection) -> Sequence[Any]:
    """Acks together, the rest one by one; the outcomes in the order of the writes."""
    acks = [write for write in writes if isinstance(write, AckWrite)]
    added = iter(tx.add_acks(connection, acks) if acks else [])
    return [next(added) if isinstance(w, AckWrite) else w(connection) for w in writes]


@dataclass(frozen=True, slots=True)
class _Take:
    thread: StoreThread
    lease: Lease
    ttl_s: float

    def __call__(self, connection: Connection) -> FoundUpload:
        self.undo()
        thread, lease = self.thread, self.lease
        owner = thread.owner.to_text()
        lease.epoch = tx.take(connection, lease.key, owner, self.ttl_s, thread.is_dead)
        thread.epochs.add(lease.epoch)
        return tx.load(connection, lease.key, thread.notice)

    def undo(self) -> None:
        """Forget the epoch of a transaction that was rolled back: another claim may get it."""
        self.thread.epochs.discard(self.lease.epoch)
        self.lease.epoch = 0


@dataclass(frozen=True, slots=True)
class _Renewal:
    epoch: int
    ttl_s: float

    def __call__(self, connection: Connection) -> bool:
        values = {"epoch": self.epoch, "expires": connection.lease_now + self.ttl_s}
        return connection.run(queries.RENEW_LEASE, values) == 1


@dataclass(frozen=True, slots=True)
class _Release:
    thread: StoreThread
    lease: Lease

    def __call__(self, connection: Connection) -> None:
        if self.lease.epoch:  # it was taken
            self.thread.epochs.discard(self.lease.epoch)
            connection.run(queries.DROP_LEASE, {"epoch": self.lease.epoch})
