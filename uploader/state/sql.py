"""`SqlState`: uploads remembered in SQLite, or in PostgreSQL for many machines."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self, TypeVar

from uploader.clock import SystemClock
from uploader.errors import ConfigurationError, LeaseLost, StateError, StateUnavailable
from uploader.state import transactions as tx
from uploader.state.commits import AckWrite, Failure, GroupCommit
from uploader.state.leases import Lease, Owner, OwnerLock, kept_alive
from uploader.state.locations import PostgresUrl, SqliteFile, locate
from uploader.state.records import Orphan, PartAck, UploadRecord, UploadStatus
from uploader.state.rules import (
    is_replaceable,
    orphan_left_by,
    require_known,
    require_replaceable,
    with_changes,
)
from uploader.state.transactions import Connection, Database, Stored
from uploader.threads import Worker

__all__ = ["SqlState"]

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)
_PAGE_SIZE: Final = 200
_RELEASE_TIMEOUT_S: Final = 10.0


class SqlState:
    """Uploads remembered in a database.

    A file lies in a folder that only its owner may write (0700, created so), never on a
    network file system: SQLite's locks do not hold there, and it is refused. A damaged
    file is put aside as `<name>.corrupt-<n>` and a new one started.

    Args:
        url: a path or `sqlite:///path` for a file on this machine, `postgresql://...`
            for a database shared by machines; None for the file in this user's state
            directory.
        lease_ttl_s: how long another machine waits for this one after it fell silent.
            Too small: a short freeze loses the upload. Too large: uploads of a machine
            that died wait that long. On one machine a dead process is noticed at once.
        answer_timeout_s: how long a single read or write may take before
            `StateUnavailable`.
        flush_interval_s: how often receipts wait for the disk while they come, in a file.
            In between they survive the end of the process, not the loss of power. Too
            small: waiting costs more than the rest of a receipt. Too large: more parts are
            read again after the power went, to recognise them in OSS's list.

    Attributes:
        notices: what was repaired or left out while opening and reading, in words; also
            logged as warnings.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        lease_ttl_s: float = 30.0,
        answer_timeout_s: float = 30.0,
        flush_interval_s: float = 0.1,
    ) -> None:
        if lease_ttl_s <= 0 or answer_timeout_s <= 0:
            raise ConfigurationError("lease_ttl_s and answer_timeout_s must be positive.")
        self._location = locate(url)
        self._lease_ttl_s = lease_ttl_s
        self._answer_timeout_s = answer_timeout_s
        self._flush_interval_s = flush_interval_s
        self._clock = SystemClock()
        self._opened: _Opened | None = None
        self.notices: deque[str] = deque(maxlen=100)

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("this SqlState is open already")
        opened = _Opened(
            self._notice, self._no_answer, self._answer_timeout_s, self._flush_interval_s
        )
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancellation.
            async with asyncio.timeout(self._answer_timeout_s):
                await opened.worker.call(partial(opened.open, self._location))
        except BaseException as error:
            opened.abandon()
            if isinstance(error, TimeoutError):
                raise self._no_answer() from error
            raise
        self._opened = opened
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        opened, self._opened = self._opened, None
        if opened is None or opened.is_elsewhere:
            return
        closing = opened.worker.call(opened.close)
        opened.worker.stop()
        try:
            patience_s = min(_RELEASE_TIMEOUT_S, self._answer_timeout_s)
            async with asyncio.timeout(patience_s):
                await asyncio.shield(closing)
        except TimeoutError as error:
            raise self._no_answer() from error
        opened.worker.join(_RELEASE_TIMEOUT_S)

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[_SqlCheckpoint]:
        """Take the upload `key` for ourselves; the lease is kept alive until exit."""
        lease = Lease(key)
        try:
            checkpoint = _SqlCheckpoint(self, lease, await self._take(lease))
            renew = partial(self._renew, lease)
            async with kept_alive(lease, renew, ttl_s=self._lease_ttl_s):
                yield checkpoint
        finally:
            await self._give_back(lease)

    async def find(
        self, *, key: str | None = None, video_id: str | None = None
    ) -> UploadRecord | None:
        """Look a record up by its key or its VideoId, without claiming it."""
        if (key is None) == (video_id is None):
            raise TypeError("find() takes either key= or video_id=")
        return await self._run(partial(tx.find, key=key, video_id=video_id))

    async def uploads(self) -> AsyncIterator[UploadStatus]:
        """All records, newest first. A damaged record is left out with a notice."""
        before_id: int | None = None
        while True:
            is_dead = self._now_open().is_dead
            turn = partial(
                tx.page, before_id=before_id, size=_PAGE_SIZE, is_dead=is_dead, notice=self._notice
            )
            statuses, before_id = await self._run(turn)
            for status in statuses:
                yield status
            if before_id is None:
                return

    async def forget(self, key: str) -> None:
        """Delete a record and its part acks; an unfinished multipart becomes an orphan."""
        opened = self._now_open()
        owner = opened.owner.to_text()
        await self._run(partial(tx.delete, key=key, owner=owner, is_dead=opened.is_dead))

    async def orphans(self) -> list[Orphan]:
        """Multipart uploads that still have to be aborted, oldest first."""
        return await self._run(partial(tx.orphans, notice=self._notice))

    async def forget_orphan(self, upload_id: str) -> None:
        """Remove an orphan that was aborted."""
        await self._run(partial(tx.drop_orphan, upload_id=upload_id))

    async def _take(self, lease: Lease) -> Stored:
        """Take the lease and load what it protects."""
        opened = self._now_open()
        asked_s = self._clock.elapsed_s()
        stored: Stored = await opened.commits.write(_Take(opened, lease, self._lease_ttl_s))
        lease.held_until_s = asked_s + self._lease_ttl_s
        return stored

    async def _renew(self, lease: Lease) -> bool:
        """Ask for another term; False if somebody else holds it by now."""
        asked_s = self._clock.elapsed_s()
        renewal = _Renewal(lease.epoch, self._lease_ttl_s)
        is_ours: bool = await self._now_open().commits.write(renewal)
        if is_ours:
            lease.held_until_s = asked_s + self._lease_ttl_s
        return is_ours

    def _is_certain(self, lease: Lease) -> bool:
        """Renewed every third of its life, it has half of it left unless we were frozen."""
        return lease.left_s() >= self._lease_ttl_s / 2

    async def _give_back(self, lease: Lease) -> None:
        """Give the lease back, also one that the thread takes after we gave up waiting.

        The thread works in order and to the end, so this holds even if we are cancelled.
        """
        opened = self._opened
        if opened is None or opened.is_elsewhere:
            return
        giving = opened.commits.write(_Release(opened, lease))
        if lease.lost is not None:  # nothing of ours to wait for
            return
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await giving
        except (StateError, TimeoutError) as error:
            # The lease runs out by itself; what the block has to say matters more.
            self._notice(f"a lease could not be given back: {error}")

    async def _run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction in the store's thread."""
        answer: T = await self._now_open().commits.write(work)
        return answer

    def _no_answer(self) -> StateUnavailable:
        return StateUnavailable(
            f"the {self._location} did not answer within {self._answer_timeout_s:g} s."
        )

    def _now_open(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError("use SqlState as an async context manager")
        if self._opened.is_elsewhere:
            raise ConfigurationError(
                f"this SqlState was opened by process {self._opened.owner.pid}, and this is a "
                "fork of it.",
                next_step="Open the state in the process that uses it.",
            )
        return self._opened

    def _notice(self, words: str) -> None:
        self.notices.append(words)
        _LOG.warning(words)


class _Forks:
    """How often this process has been forked off since we were loaded.

    Mutable. Asked with every write, and `os.getpid` is a call of the system each time.
    """

    count: ClassVar[int] = 0

    @classmethod
    def note(cls) -> None:
        """In a forked child: it is another process now."""
        cls.count += 1


os.register_at_fork(after_in_child=_Forks.note)


class _Opened:
    """One opening of a store. Mutable: its epochs and database, touched only by its thread."""

    def __init__(
        self,
        notice: Callable[[str], None],
        no_answer: Callable[[], StateUnavailable],
        answer_timeout_s: float,
        flush_interval_s: float,
    ) -> None:
        self._flush_interval_s = flush_interval_s
        self._flushed_s = -math.inf
        self._has_unflushed_acks = False
        self.owner = Owner.this_process()
        self._forks = _Forks.count
        self.worker = Worker("vodup-state")
        self.commits: GroupCommit[Any, Any] = GroupCommit(
            self.worker, self._commit, no_answer, answer_timeout_s
        )
        self.notice = notice
        self._database: Database | None = None
        self._owner_lock: OwnerLock | None = None
        self.epochs: set[int] = set()
        self.owed_epochs: set[int] = set()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a forked child: threads, connections and locks stay with the parent."""
        return self._forks != _Forks.count

    # In the thread

    def open(self, location: SqliteFile | PostgresUrl) -> None:
        """Open the database, and take the lock that tells others that its owner lives."""
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
            # The next opening does it; who takes a lease looks at its owner's lock himself.
            self.notice(f"locks of ended processes stay where they are: {error.strerror}")

    def _remove_dead_owners(self, others: OwnerLock) -> None:
        """Give back what owners that are gone have held, and remove their files."""
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
            return epoch not in self.epochs  # giving it back had failed
        return self._owner_lock.is_dead(owner)

    def close(self) -> None:
        """Give everything back."""
        database, lock = self._database, self._owner_lock
        try:
            if database is not None and (self.epochs or self.owed_epochs):
                self.transact(partial(tx.drop_leases_of, tokens=[self.owner.token]))
        except StateError as error:
            # Our lock file stays, unlocked: by that the next one sees that we are gone.
            if lock is not None:
                lock.leave_file()
            self.notice(f"leases could not be given back: {error}")
        finally:
            self._database = self._owner_lock = None
            try:
                if database is not None:
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
                return [Failure(error)]
            return [self._commit([write])[0] for write in writes]
        if not is_flushed and any(isinstance(write, AckWrite) for write in writes):
            self._has_unflushed_acks = True
        self.owed_epochs -= {w.lease.epoch for w in writes if isinstance(w, _Release)}
        return outcomes

    def _must_flush(self, writes: Sequence[Any]) -> bool:
        """Whether these writes have to outlive the loss of power once they are reported.

        Acks wait for the disk once in an interval. A lease is of no use to anybody after the
        power went, but whoever renews or returns one has had enough time for its acks.
        """
        kinds = {type(write) for write in writes}
        if not kinds <= {AckWrite, _Take, _Renewal, _Release}:
            return True
        if AckWrite in kinds and time.monotonic() - self._flushed_s >= self._flush_interval_s:
            return True
        return self._has_unflushed_acks and not kinds.isdisjoint({_Renewal, _Release})

    # In the loop

    def abandon(self) -> None:
        """Close without waiting, after a failed opening."""
        self.worker.call(self.close)
        self.worker.stop()


def _open_database(location: SqliteFile | PostgresUrl, notice: Callable[[str], None]) -> Database:
    """Drivers are imported with what uses them, in the store's thread, where nobody waits."""
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


@dataclass(frozen=True, slots=True)
class _Take:
    """Takes a lease, filling in its epoch, and loads what it protects."""

    opened: _Opened
    lease: Lease
    ttl_s: float

    def __call__(self, connection: Connection) -> Stored:
        self.undo()
        opened, lease = self.opened, self.lease
        owner = opened.owner.to_text()
        lease.epoch = tx.take(connection, lease.key, owner, self.ttl_s, opened.is_dead)
        opened.epochs.add(lease.epoch)
        return tx.load(connection, lease.key, opened.notice)

    def undo(self) -> None:
        """Forget the epoch of a transaction that was rolled back: another claim may get it."""
        self.opened.epochs.discard(self.lease.epoch)
        self.lease.epoch = 0


@dataclass(frozen=True, slots=True)
class _Renewal:
    """Extends a lease; False if somebody else holds it."""

    epoch: int
    ttl_s: float

    def __call__(self, connection: Connection) -> bool:
        return tx.renew(connection, self.epoch, self.ttl_s)


@dataclass(frozen=True, slots=True)
class _Release:
    """Ends a lease of ours, if it was taken; its epoch is owed until that is durable."""

    opened: _Opened
    lease: Lease

    def __call__(self, connection: Connection) -> None:
        opened, epoch = self.opened, self.lease.epoch
        if epoch in opened.epochs or epoch in opened.owed_epochs:
            opened.epochs.discard(epoch)
            opened.owed_epochs.add(epoch)
            tx.release(connection, epoch)


def _carry_out(writes: Sequence[Any], connection: Connection) -> Sequence[Any]:
    """Acks together, the rest one by one; the outcomes in the order of the writes."""
    acks = [write for write in writes if isinstance(write, AckWrite)]
    kept = iter(tx.add_acks(connection, acks) if acks else [])
    return [next(kept) if isinstance(w, AckWrite) else w(connection) for w in writes]


class _SqlCheckpoint:
    """One claimed upload. Mutable: the record and receipts as last written."""

    def __init__(self, state: SqlState, lease: Lease, stored: Stored) -> None:
        self._state = state
        self._lease = lease
        self._row_id = stored.row_id
        self._record = stored.record
        self._acks = stored.acks

    @property
    def record(self) -> UploadRecord | None:
        """The record as last written; None before the first `create`."""
        return self._record

    @property
    def acks(self) -> Mapping[int, PartAck]:
        """Receipts by part number."""
        return MappingProxyType(self._acks)

    async def create(self, record: UploadRecord) -> UploadRecord:
        """Write the first record of this key, or replace a finished one."""
        if record.key != self._lease.key:
            raise ValueError(f"the record is of {record.key!r}, the claim of {self._lease.key!r}")
        if not is_replaceable(self._record) and not await self._state._renew(self._lease):
            raise self._lease.lose("another process took it over")
        require_replaceable(self._record)
        work = partial(
            tx.create, epoch=self._lease.epoch, record=record, former_row_id=self._row_id
        )
        stored = await self._write(work)
        self._row_id, self._record, self._acks = stored.row_id, stored.record, stored.acks
        return require_known(self._record)

    async def advance(self, **changes: Any) -> UploadRecord:
        """Change fields of the record."""
        return await self._change(changes)

    async def ack(self, part: PartAck, *, patience_s: float = 0.0) -> None:
        """Record a receipt; calls within `patience_s` share one commit."""
        require_known(self._record)
        assert self._row_id is not None  # noqa: S101 - has a record
        write = AckWrite(self._lease.epoch, self._row_id, part)
        commits = self._state._now_open().commits
        if not await commits.write(write, patience_s=patience_s):
            raise self._lease.lose("another process took it over")
        self._acks[part.number] = part

    async def restart_parts(
        self, *, upload_id: str | None, plan: str | None, **changes: Any
    ) -> UploadRecord:
        """Forget all receipts, set UploadId and plan, and change other fields, in one commit."""
        orphan = orphan_left_by(require_known(self._record), upload_id)
        changes |= {"upload_id": upload_id, "plan": plan}
        record = await self._change(changes, drop_acks=True, orphan=orphan)
        self._acks.clear()
        return record

    @property
    def is_certainly_ours(self) -> bool:
        """Whether nobody else can have taken it over by now."""
        return self._state._is_certain(self._lease)

    async def confirm(self) -> None:
        """Make sure that it is still ours, and for some time to come."""
        if not self.is_certainly_ours and not await self._state._renew(self._lease):
            raise self._lease.lose("another process took it over")

    async def _change(self, changes: Mapping[str, Any], **more: Any) -> UploadRecord:
        record = with_changes(require_known(self._record), changes)
        assert self._row_id is not None  # noqa: S101 - has a record
        work = partial(
            tx.update,
            epoch=self._lease.epoch,
            row_id=self._row_id,
            record=record,
            names=changes.keys(),
            **more,
        )
        self._record = await self._write(work)
        return self._record

    async def _write(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._state._run(work)
        except LeaseLost:
            raise self._lease.lose("another process took it over") from None
