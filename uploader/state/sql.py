"""`SqlState`: uploads remembered in SQLite, or in PostgreSQL for many machines."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, Self, TypeVar

from uploader.clock import SystemClock
from uploader.errors import ConfigurationError, StateError, StateUnavailable
from uploader.state import queries
from uploader.state import transactions as tx
from uploader.state.commits import AckWrite
from uploader.state.journal import Journal
from uploader.state.leases import TAKEN_OVER, Lease, kept_alive
from uploader.state.locations import locate
from uploader.state.records import Orphan, OutboxMessage, PartAck, UploadRecord, UploadStatus
from uploader.state.rows import stored_text
from uploader.state.thread import StoreThread

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
        flush_interval_s: how often part acks wait for the disk, in a file. In between they
            survive the end of the process, not the loss of power. Too small: waiting costs
            more than the rest of an ack. Too large: more parts are
            read again after the power went, to recognise them in OSS's list.

    Attributes:
        notices: sentences about what was repaired or left out; also logged as warnings.
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
        self._opened: StoreThread | None = None
        self.notices: deque[str] = deque(maxlen=100)

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("this SqlState is open already")
        thread = StoreThread(
            self._notice, self._no_answer, self._answer_timeout_s, self._flush_interval_s
        )
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancellation.
            async with asyncio.timeout(self._answer_timeout_s):
                await thread.worker.call(partial(thread.open, self._location))
        except BaseException as error:
            thread.abandon()
            if isinstance(error, TimeoutError):
                raise self._no_answer() from error
            raise
        self._opened = thread
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        thread, self._opened = self._opened, None
        if thread is None or thread.is_elsewhere:
            return
        closing = thread.worker.call(thread.close)
        thread.worker.stop()
        try:
            async with asyncio.timeout(min(_RELEASE_TIMEOUT_S, self._answer_timeout_s)):
                await asyncio.shield(closing)
        except TimeoutError as error:
            raise self._no_answer() from error
        thread.worker.join(_RELEASE_TIMEOUT_S)

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[Journal]:
        """Take the upload `key` for ourselves; the lease is kept alive until exit."""
        lease = Lease(key)
        try:
            began_s = self._clock.elapsed_s()
            found = await self._thread().take(lease, self._lease_ttl_s)
            lease.held_until_s = began_s + self._lease_ttl_s
            claim = _SqlClaim(self, lease, found.row_id)
            async with kept_alive(lease, partial(self._renew, lease), ttl_s=self._lease_ttl_s):
                yield Journal(claim, found.record, found.acks)
        finally:
            await self._release(lease)

    async def find(
        self, *, key: str | None = None, video_id: str | None = None
    ) -> UploadRecord | None:
        """Look a record up by its key or its VideoId, without claiming it."""
        if (key is None) == (video_id is None):
            raise TypeError("find() takes either key= or video_id=")
        return await self._thread().write(partial(tx.find, key=key, video_id=video_id))

    async def uploads(self) -> AsyncIterator[UploadStatus]:
        """All records, newest first. A damaged record is left out with a notice."""
        before_id: int | None = None
        while True:
            thread = self._thread()
            page = partial(
                tx.page,
                before_id=before_id,
                size=_PAGE_SIZE,
                is_dead=thread.is_dead,
                notice=self._notice,
            )
            statuses, before_id = await thread.write(page)
            for status in statuses:
                yield status
            if before_id is None:
                return

    async def forget(self, key: str) -> None:
        """Delete a record and its acks; its unfinished multipart upload becomes an orphan."""
        thread = self._thread()
        owner = thread.owner.to_text()
        await thread.write(partial(tx.delete, key=key, owner=owner, is_dead=thread.is_dead))

    async def orphans(self) -> list[Orphan]:
        """Multipart uploads that still have to be aborted, oldest first."""
        return await self._thread().write(partial(tx.orphans, notice=self._notice))

    async def forget_orphan(self, upload_id: str) -> None:
        """Delete an orphan that was aborted."""
        values = {"upload_id": stored_text(upload_id)}
        await self._thread().write(lambda connection: connection.run(queries.DROP_ORPHAN, values))

    async def add_message(self, message: OutboxMessage) -> None:
        """Keep a message until it is delivered."""
        await self._thread().write(partial(tx.add_message, message=message))

    async def take_messages(
        self, receiver: str, *, count: int, for_s: float
    ) -> list[OutboxMessage]:
        """Messages that nobody else delivers for so many seconds, oldest first."""
        work = partial(tx.take_messages, receiver=receiver, count=count, for_s=for_s)
        return await self._thread().write(work)

    async def end_messages(self, messages: Sequence[OutboxMessage], *, is_delivered: bool) -> None:
        """Record that messages were delivered, or return them to be delivered later."""
        work = partial(tx.end_messages, messages=messages, is_delivered=is_delivered)
        await self._thread().write(work)

    async def count_waiting(self, receiver: str) -> int:
        """How many messages for a receiver are not delivered."""
        return await self._thread().write(partial(tx.count_waiting, receiver=receiver))

    async def _renew(self, lease: Lease) -> bool:
        """Extend the lease; False if another owner holds it by now."""
        began_s = self._clock.elapsed_s()
        is_ours = await self._thread().renew(lease, self._lease_ttl_s)
        if is_ours:
            lease.held_until_s = began_s + self._lease_ttl_s
        return is_ours

    async def _release(self, lease: Lease) -> None:
        """Release the lease, also one that the thread takes after the caller stopped waiting.

        The thread works in order and to the end, so this holds even if we are cancelled.
        """
        thread = self._opened
        if thread is None or thread.is_elsewhere:
            return
        releasing = thread.release(lease)
        if lease.lost is not None:  # nothing of ours to wait for
            return
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await releasing
        except (StateError, TimeoutError) as error:
            # The lease expires by itself; an error of the block matters more.
            self._notice(f"a lease could not be released: {error}")

    def _no_answer(self) -> StateUnavailable:
        return StateUnavailable(
            f"the {self._location} did not answer within {self._answer_timeout_s:g} s."
        )

    def _thread(self) -> StoreThread:
        if self._opened is None:
            raise RuntimeError("use SqlState as an async context manager")
        if self._opened.is_elsewhere:
            raise ConfigurationError(
                f"this SqlState was opened by process {self._opened.owner.pid}, and this is a "
                "fork of it.",
                next_step="Open the state in the process that uses it.",
            )
        return self._opened

    def _notice(self, sentence: str) -> None:
        self.notices.append(sentence)
        _LOG.warning(sentence)


class _SqlClaim:
    """Writes under one lease. Mutable: the row that the record is in."""

    def __init__(self, state: SqlState, lease: Lease, row_id: int | None) -> None:
        self._state = state
        self._lease = lease
        self._row_id = row_id

    @property
    def key(self) -> str:
        return self._lease.key

    @property
    def is_certainly_ours(self) -> bool:
        # Renewed every third of its life, it has half of it left unless we were frozen.
        return self._lease.left_s() >= self._state._lease_ttl_s / 2

    async def confirm(self) -> None:
        if not self.is_certainly_ours and not await self._state._renew(self._lease):
            raise self._lease.lose(TAKEN_OVER)

    async def add_record(self, record: UploadRecord) -> datetime:
        work = partial(tx.create, lease=self._lease, record=record, former_row_id=self._row_id)
        self._row_id, now = await self._state._thread().write(work)
        return now

    async def update(
        self, fields: Mapping[str, Any], *, drop_acks: bool = False, orphan: Orphan | None = None
    ) -> datetime:
        work = partial(
            tx.update,
            lease=self._lease,
            row_id=self._known_row_id(),
            fields=fields,
            drop_acks=drop_acks,
            orphan=orphan,
        )
        return await self._state._thread().write(work)

    async def add_ack(self, ack: PartAck, *, patience_s: float = 0.0) -> None:
        write = AckWrite(self._lease.epoch, self._known_row_id(), ack)
        if not await self._state._thread().commits.write(write, patience_s=patience_s):
            raise self._lease.lose(TAKEN_OVER)

    def _known_row_id(self) -> int:
        assert self._row_id is not None  # noqa: S101 - `Journal` adds the record first
        return self._row_id
