"""What is read and written, each function inside one transaction of a database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar
from uuid import uuid4

from uploader.errors import StateError, StateUnavailable, UploadLocked
from uploader.state import queries, rows
from uploader.state.commits import AckWrite
from uploader.state.journal import video_taken
from uploader.state.leases import TAKEN_OVER, Lease, Owner
from uploader.state.queries import NO_VALUES, Query
from uploader.state.records import Orphan, OutboxMessage, PartAck, Phase, UploadRecord, UploadStatus

T = TypeVar("T")
Values: TypeAlias = Mapping[str, Any]
Notice: TypeAlias = Callable[[str], None]
IsDead: TypeAlias = Callable[[int, str], bool]

_UPLOAD_COLUMNS: Final = ("id", *queries.RECORD_COLUMNS)
_LAST_ID: Final = (1 << 63) - 1
_DELIVERED_LIFE_S: Final = 90 * 24 * 3600.0


class Connection(ABC):
    """A connection of SQLite or PostgreSQL in the middle of a transaction. Mutable: the clock.

    Attributes:
        driver: a connection of sqlite3 or psycopg. Both have `execute` and `cursor`.
        now: seconds since 1970 when the transaction began, on the clock that all users of
            the database share.
        lease_now: the same on a clock that nobody sets, for the ends of leases.
    """

    def __init__(self, driver: Any) -> None:  # noqa: ANN401 - two drivers share no type
        self.driver = driver
        self.now = 0.0
        self.lease_now = 0.0

    @abstractmethod
    def text(self, query: Query) -> str | bytes:
        """The query in the dialect of the driver."""

    def rows(self, query: Query, values: Values = NO_VALUES) -> list[tuple[Any, ...]]:
        """Run a query and return its rows."""
        found: list[tuple[Any, ...]] = self.driver.execute(self.text(query), values).fetchall()
        return found

    def run(self, query: Query, values: Values = NO_VALUES) -> int:
        """Run a statement; returns how many rows it changed."""
        count: int = self.driver.execute(self.text(query), values).rowcount
        return count

    def run_many(self, query: Query, values: Sequence[Values]) -> int:
        """Run a statement once for each of `values`; returns how many rows were changed."""
        cursor = self.driver.cursor()
        cursor.executemany(self.text(query), values)
        return int(cursor.rowcount)

    @abstractmethod
    def insert(self, query: Query, values: Values) -> int | None:
        """Run an INSERT; returns the number that the new row got, None if none was added."""


class Database(Protocol):
    """An open database. Its methods block; one thread at a time may call them.

    Attributes:
        store_id: names the lock files of this store.
        locks: the folder of those lock files.
    """

    store_id: str
    locks: Path

    def transact(self, work: Callable[[Connection], T], *, is_flushed: bool = True) -> T:
        """Run `work` in one transaction; what it wrote is durable on return.

        Not flushed: it survives the end of this process, and the loss of power only once a
        later transaction was flushed. `work` may run twice, the second time after a commit
        whose confirmation was lost.

        Raises:
            StateError: the transaction failed, and nothing was changed.
        """

    def close(self) -> None:
        """Close it, and release its locks."""


def create_tables(connection: Connection) -> tuple[int, str]:
    """Create what is missing; returns the schema version and the id of the store."""
    for table in queries.TABLES:
        connection.run(table)
    for version, store_id in connection.rows(queries.STORE):
        return version, str(store_id)
    version, store_id = queries.SCHEMA_VERSION, uuid4().hex
    connection.run(queries.ADD_STORE, {"schema_version": version, "store_id": store_id})
    return version, store_id


def cannot_be_used(where: str, error: Exception) -> StateUnavailable:
    """The error for a failure of the driver without a sentence of its own."""
    reason = " ".join(str(error).split())[:300]
    return StateUnavailable(
        f"{where} cannot be used ({type(error).__name__}: {reason}).",
        next_step="Make it reachable, then run the same command again.",
    )


# --- leases ---------------------------------------------------------------------------------


def take(connection: Connection, key: str, owner: str, ttl_s: float, is_dead: IsDead) -> int:
    """Take the lease on `key`; returns its epoch.

    Raises:
        UploadLocked: an owner that lives holds it.
    """
    lease = {"key": rows.stored_text(key), "owner": owner, "expires": connection.lease_now + ttl_s}
    epoch = connection.insert(queries.TAKE_LEASE, lease)
    if epoch is None:
        _remove_lapsed(connection, key, is_dead)
        epoch = connection.insert(queries.TAKE_LEASE, lease)
    if epoch is None:  # another owner took it a moment ago
        raise _locked(key, None)
    return epoch


def _remove_lapsed(connection: Connection, key: str, is_dead: IsDead) -> None:
    held = connection.rows(queries.LEASE_OF_KEY, {"key": rows.stored_text(key)})
    for epoch, owner, expires in held:  # none if it was released a moment ago
        if not _has_lapsed(expires, connection.lease_now) and not is_dead(epoch, owner):
            raise _locked(key, owner)
        if not connection.run(queries.DROP_LAPSED_LEASE, {"epoch": epoch, "expires": expires}):
            raise _locked(key, owner)  # its owner lives and has renewed it


def _has_lapsed(expires: object, now: float) -> bool:
    return not isinstance(expires, float) or expires <= now


def _locked(key: str, owner: object) -> UploadLocked:
    holder = Owner.parse(owner) or "another process"
    return UploadLocked(f"{key!r} is already being uploaded by {holder}.")


def drop_leases_of(connection: Connection, tokens: Iterable[str]) -> None:
    """Remove all leases of these owners."""
    for token in tokens:
        connection.run(queries.DROP_LEASES_OF_OWNER, {"owner": f"%/{token}"})


def _is_live(connection: Connection, epoch: int) -> bool:
    return bool(connection.rows(queries.LIVE_LEASE, {"epoch": epoch}))


# --- reading --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundUpload:
    """An upload as the database has it.

    Attributes:
        row_id: what its part acks refer to; None if there is no record.
    """

    row_id: int | None
    record: UploadRecord | None
    acks: Mapping[int, PartAck]


def load(connection: Connection, key: str, notice: Notice) -> FoundUpload:
    """An upload with its part acks. A damaged ack is left out: its part is sent again."""
    row = _row_of_key(connection, key)
    if row is None:
        return FoundUpload(None, None, {})
    acks: dict[int, PartAck] = {}
    for values in connection.rows(queries.PARTS_OF_UPLOAD, {"id": row["id"]}):
        try:
            ack = rows.ack_of(*values)
        except StateUnavailable as error:
            notice(error.message)
        else:
            acks[ack.number] = ack
    return FoundUpload(row["id"], rows.record_of(row), acks)


def find(connection: Connection, *, key: str | None, video_id: str | None) -> UploadRecord | None:
    """A record by key or VideoId."""
    if key is not None:
        row = _row_of_key(connection, key)
    else:
        values = {"video_id": rows.stored_text(video_id or "")}
        row = _first(connection.rows(queries.UPLOAD_OF_VIDEO, values))
    return None if row is None else rows.record_of(row)


def _row_of_key(connection: Connection, key: str) -> dict[str, Any] | None:
    return _first(connection.rows(queries.UPLOAD_OF_KEY, {"key": rows.stored_text(key)}))


def _first(found: Sequence[tuple[Any, ...]]) -> dict[str, Any] | None:
    return dict(zip(_UPLOAD_COLUMNS, found[0], strict=True)) if found else None


def page(
    connection: Connection, before_id: int | None, size: int, is_dead: IsDead, notice: Notice
) -> tuple[list[UploadStatus], int | None]:
    """Some records, newest first, and where the next page starts (None after the last)."""
    values = {"id": _LAST_ID if before_id is None else before_id, "count": size}
    found = connection.rows(queries.UPLOADS_BEFORE, values)
    statuses = []
    for row in found:
        try:
            statuses.append(_status(row, connection, is_dead))
        except StateUnavailable as error:
            notice(str(error))
    return statuses, found[-1][0] if len(found) == size else None


def _status(row: tuple[Any, ...], connection: Connection, is_dead: IsDead) -> UploadStatus:
    *columns, count, size, epoch, owner, expires = row
    is_lapsed = epoch is None or _has_lapsed(expires, connection.lease_now)
    is_held = not is_lapsed and not is_dead(epoch, owner)
    return UploadStatus(
        record=rows.record_of(dict(zip(_UPLOAD_COLUMNS, columns, strict=True))),
        acked_part_count=count,
        acked_bytes=int(size or 0),
        owner=str(Owner.parse(owner) or owner) if is_held else None,
        lease_expires_at=rows.instant(connection.now + expires - connection.lease_now)
        if is_held
        else None,
    )


def orphans(connection: Connection, notice: Notice) -> list[Orphan]:
    """Multipart uploads to abort, oldest first."""
    found = []
    for row in connection.rows(queries.ORPHANS):
        try:
            found.append(rows.orphan_of(row))
        except StateUnavailable as error:
            notice(str(error))
    return found


# --- writing --------------------------------------------------------------------------------


def create(
    connection: Connection, lease: Lease, record: UploadRecord, former_row_id: int | None
) -> tuple[int, datetime]:
    """Write a new record, in place of the one in `former_row_id`; returns its row and time."""
    if former_row_id is not None:
        if not _is_live(connection, lease.epoch):
            raise lease.lose(TAKEN_OVER)
        _delete_row(connection, former_row_id)
    now = connection.now
    values = rows.row_of(record)
    values |= {"created_at": now, "updated_at": now, "epoch": lease.epoch}
    row_id = connection.insert(queries.ADD_UPLOAD, values)
    if row_id is None:
        raise _refusal(connection, lease, record.video_id)
    return row_id, rows.instant(now)


def update(
    connection: Connection,
    lease: Lease,
    row_id: int,
    fields: Mapping[str, Any],
    *,
    drop_acks: bool,
    orphan: Orphan | None,
) -> datetime:
    """Change fields of a record; returns the time of the change. See `UploadClaim.update`."""
    now = connection.now
    values = rows.fields_row({**fields, "key": lease.key})
    values |= {"id": row_id, "epoch": lease.epoch, "updated_at": now}
    if not connection.run(queries.update_upload(frozenset(fields)), values):
        raise _refusal(connection, lease, fields.get("video_id"))
    if drop_acks:
        connection.run(queries.DROP_PARTS, {"id": row_id})
    _add_orphan(connection, orphan)
    return rows.instant(now)


def _refusal(connection: Connection, lease: Lease, video_id: str | None) -> StateError:
    """Why a write under a lease changed nothing."""
    if not _is_live(connection, lease.epoch):
        return lease.lose(TAKEN_OVER)
    if video_id is not None:
        values = {"video_id": rows.stored_text(video_id)}
        for (key,) in connection.rows(queries.KEY_OF_VIDEO, values):
            return video_taken(video_id, rows.loaded_text(key))
    return StateUnavailable(
        f"the record of upload {lease.key!r} is gone from the database.",
        next_step="Run the same command again.",
    )


def add_acks(connection: Connection, writes: Sequence[AckWrite]) -> list[bool]:
    """Write part acks of any number of uploads; return which leases were still ours."""
    values = [rows.ack_row(write.upload, write.part, write.epoch) for write in writes]
    # Sorted, so that two stores writing the same rows cannot deadlock.
    values.sort(key=itemgetter("upload", "number"))
    if connection.run_many(queries.ADD_PART, values) == len(values):
        return [True] * len(values)
    live = {epoch for epoch in {write.epoch for write in writes} if _is_live(connection, epoch)}
    return [write.epoch in live for write in writes]


def delete(connection: Connection, key: str, owner: str, is_dead: IsDead) -> None:
    """Delete a record and its part acks; keep its unfinished multipart upload as an orphan.

    Raises:
        UploadLocked: an owner that lives holds the upload.
    """
    epoch = take(connection, key, owner, 0.0, is_dead)  # keeps claims of the same moment out
    row = _row_of_key(connection, key)
    if row is not None:
        if row["phase"] in (Phase.UPLOADING, Phase.COMPLETING):
            with suppress(StateUnavailable):  # deleting is how one gets rid of a damaged record
                _add_orphan(connection, rows.record_of(row).orphan())
        _delete_row(connection, row["id"])
    connection.run(queries.DROP_LEASE, {"epoch": epoch})


def _delete_row(connection: Connection, row_id: int) -> None:
    connection.run(queries.DROP_PARTS, {"id": row_id})
    connection.run(queries.DROP_UPLOAD, {"id": row_id})


def _add_orphan(connection: Connection, orphan: Orphan | None) -> None:
    if orphan is not None:
        values = {**rows.row_of(orphan), "added_at": connection.now}
        connection.run(queries.ADD_ORPHAN, values)


# --- outbox ---------------------------------------------------------------------------------


def add_message(connection: Connection, message: OutboxMessage) -> None:
    """Keep a message until it is delivered; one that is there, delivered or not, stays as it is."""
    connection.run(queries.DROP_OLD_MESSAGES, {"before": connection.now - _DELIVERED_LIFE_S})
    connection.run(queries.ADD_MESSAGE, {**rows.row_of(message), "added_at": connection.now})


def take_messages(
    connection: Connection, receiver: str, count: int, for_s: float
) -> list[OutboxMessage]:
    """Messages for a receiver, oldest first, that nobody else delivers for so many seconds."""
    now = connection.lease_now
    taken = []
    values = {"receiver": receiver, "now": now, "count": count}
    for message_id, _, body, seen in connection.rows(queries.WAITING_MESSAGES, values):
        name = {"message_id": message_id, "receiver": receiver}
        if connection.run(queries.TAKE_MESSAGE, {**name, "seen": seen, "until": now + for_s}):
            taken.append(OutboxMessage(**name, body=rows.loaded_text(body)))
    return taken


def end_messages(
    connection: Connection, messages: Sequence[OutboxMessage], *, is_delivered: bool
) -> None:
    """Record that messages were delivered, or return them to be delivered later."""
    query = queries.END_MESSAGE if is_delivered else queries.RETURN_MESSAGE
    for message in messages:
        name = {"message_id": message.message_id, "receiver": message.receiver}
        connection.run(query, {**name, "now": connection.now} if is_delivered else name)


def count_waiting(connection: Connection, receiver: str) -> int:
    """How many messages for a receiver are not delivered."""
    [(count,)] = connection.rows(queries.COUNT_WAITING, {"receiver": receiver})
    return int(count)
