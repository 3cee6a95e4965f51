"""What is read and written, each function inside one transaction of `database`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import sqlalchemy as sa

from uploader.errors import LeaseLost, StateUnavailable, UploadLocked
from uploader.state.commits import AckWrite
from uploader.state.leases import Owner
from uploader.state.records import Orphan, PartAck, Phase, UploadRecord, UploadStatus
from uploader.state.rows import (
    ack_of,
    ack_row,
    instant,
    loaded_text,
    orphan_of,
    orphan_row,
    record_of,
    record_row,
    stored_text,
)
from uploader.state.rules import (
    orphan_left_by,
    require_replaceable,
    video_taken,
)
from uploader.state.schema import db_now, lease, orphan, part, store, upload
from uploader.state.statements import fetch, fetch_mapping, fetch_value, run

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, RowMapping

__all__ = [
    "Stored",
    "add_acks",
    "change",
    "create",
    "drop_leases",
    "find",
    "forget",
    "forget_orphan",
    "load",
    "orphans",
    "page",
    "renew",
    "restart_parts",
    "take",
]

_PART_VALUES: Final = ("size", "etag", "crc64", "md5")

Notice: TypeAlias = Callable[[str], None]
IsDead: TypeAlias = Callable[[int, str], bool]
Changes: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """An upload as found on taking it over.

    Attributes:
        row_id: what its receipts refer to; None before the first `create`.
    """

    row_id: int | None
    record: UploadRecord | None
    acks: dict[int, PartAck]


# Leases


def take(connection: Connection, key: str, owner: Owner, ttl_s: float, is_dead: IsDead) -> int:
    """Take the lease on `key`; returns its epoch.

    Raises:
        UploadLocked: somebody alive holds it.
    """
    epoch = _next_epoch(connection)
    _remove_lapsed(connection, key, is_dead)
    row = {"epoch": epoch, "key": stored_text(key), "owner": owner.to_text(), "ttl": ttl_s}
    run(connection, _NEW_LEASE, row)
    return epoch


_TTL: Final = sa.bindparam("ttl", type_=sa.Double)
_NEW_LEASE: Final = sa.insert(lease).values(
    epoch=sa.bindparam("epoch"),
    key=sa.bindparam("key"),
    owner=sa.bindparam("owner"),
    expires=db_now() + _TTL,
)
_COUNT_EPOCH: Final = sa.update(store).values(epoch=store.c.epoch + sa.literal_column("1"))
_EPOCH: Final = sa.select(store.c.epoch)


def _next_epoch(connection: Connection) -> int:
    run(connection, _COUNT_EPOCH)
    epoch = fetch_value(connection, _EPOCH)
    if type(epoch) is not int:
        raise StateUnavailable("the state's epoch counter is damaged.")
    return epoch


def _remove_lapsed(connection: Connection, key: str, is_dead: IsDead) -> None:
    held = fetch_mapping(connection, _HELD, {"key": stored_text(key)})
    if held is None:
        return
    if not _has_lapsed(held["expires"], held["now"]) and not is_dead(held["epoch"], held["owner"]):
        raise _locked(key, held["owner"])
    # Compared again while deleting: its owner may renew it right now.
    same = (lease.c.epoch == held["epoch"]) & (lease.c.expires == held["expires"])
    if connection.execute(sa.delete(lease).where(same)).rowcount != 1:
        raise _locked(key, held["owner"])


_HELD: Final = sa.select(lease, db_now().label("now")).where(lease.c.key == sa.bindparam("key"))


def _has_lapsed(expires: object, now: float) -> bool:
    return not isinstance(expires, float) or expires <= now


def _locked(key: str, owner_text: str) -> UploadLocked:
    return UploadLocked(f"upload {key!r} is being sent by {Owner.parse(owner_text) or 'somebody'}.")


def renew(connection: Connection, epoch: int, ttl_s: float) -> bool:
    """Extend a lease; False if it is somebody else's by now."""
    query = sa.update(lease).where(lease.c.epoch == sa.bindparam("ours"))
    query = query.values(expires=db_now() + sa.bindparam("ttl", type_=sa.Double))
    return connection.execute(query, {"ours": epoch, "ttl": ttl_s}).rowcount == 1


def drop_leases(
    connection: Connection, *, epoch: int | None = None, owners: Collection[str] = ()
) -> None:
    """Give one lease back, or all leases of owners (given by their tokens)."""
    if epoch is not None:
        run(connection, _DROP_LEASE, {"ours": epoch})
    for token in owners:
        connection.execute(sa.delete(lease).where(lease.c.owner.endswith(token, autoescape=True)))


_OUR_EPOCH: Final = lease.c.epoch == sa.bindparam("ours", type_=sa.BigInteger)
_DROP_LEASE: Final = sa.delete(lease).where(_OUR_EPOCH)


def _live_epochs(connection: Connection, epochs: Collection[int]) -> set[int]:
    """Those of `epochs` that still are leases, locked against a takeover until we commit.

    A lease that ran out and that nobody took is as good as a fresh one: whoever takes it
    has to wait for this transaction and then sees what it wrote.
    """
    if len(epochs) == 1:
        (epoch,) = epochs
        return {row[0] for row in fetch(connection, _LIVE_EPOCH, {"ours": epoch})}
    return set(connection.execute(_LIVE_EPOCHS, {"ours": list(epochs)}).scalars())


_LIVE: Final = sa.select(lease.c.epoch).with_for_update(read=True)
_LIVE_EPOCH: Final = _LIVE.where(_OUR_EPOCH)
_LIVE_EPOCHS: Final = _LIVE.where(lease.c.epoch.in_(sa.bindparam("ours", expanding=True)))


def _require_lease(connection: Connection, key: str, epoch: int) -> None:
    if epoch not in _live_epochs(connection, [epoch]):
        raise lease_lost(key)


def lease_lost(key: str) -> LeaseLost:
    """The error of a write that came too late."""
    return LeaseLost(f"upload {key!r} is no longer ours: another process took it over.")


# Uploads


def load(connection: Connection, key: str, notice: Notice) -> Stored:
    """An upload with its receipts. A damaged receipt is left out: its part is sent again."""
    row = _row_of(connection, key)
    if row is None:
        return Stored(row_id=None, record=None, acks={})
    acks: dict[int, PartAck] = {}
    for number, size, etag, crc64, md5 in fetch(connection, _PARTS, {"id": row["id"]}):
        try:
            ack = ack_of(number, size, etag, crc64, md5)
        except StateUnavailable as error:
            notice(error.message)
        else:
            acks[ack.number] = ack
    return Stored(row_id=row["id"], record=record_of(row), acks=acks)


_PARTS: Final = sa.select(part.c.number, *(part.c[name] for name in _PART_VALUES)).where(
    part.c.upload == sa.bindparam("id", type_=sa.BigInteger)
)
_BY_KEY: Final = sa.select(upload).where(upload.c.key == sa.bindparam("key"))
_BY_VIDEO: Final = sa.select(upload).where(upload.c.video_id == sa.bindparam("video_id"))


def _row_of(connection: Connection, key: str) -> dict[str, Any] | None:
    return fetch_mapping(connection, _BY_KEY, {"key": stored_text(key)})


def find(connection: Connection, *, key: str | None, video_id: str | None) -> UploadRecord | None:
    """A record by key or VideoId."""
    if key is not None:
        row = _row_of(connection, key)
    else:
        video = {"video_id": stored_text(video_id or "")}
        row = fetch_mapping(connection, _BY_VIDEO, video)
    return None if row is None else record_of(row)


def create(connection: Connection, epoch: int, record: UploadRecord) -> Stored:
    """Write a new record in place of a finished one or of none."""
    _require_lease(connection, record.key, epoch)
    row = _row_of(connection, record.key)
    existing = None if row is None else record_of(row)
    if row is not None and not _is_same(existing, record):
        require_replaceable(existing)
    _require_free_video(connection, record)
    if row is not None:
        _delete(connection, row["id"])
    now = _now(connection)
    values = {**record_row(record), "created_at": now, "updated_at": now}
    run(connection, _NEW_UPLOAD, values)
    row_id = fetch_value(connection, _ID_BY_KEY, {"key": values["key"]})
    record = replace(record, created_at=instant(now), updated_at=instant(now))
    return Stored(row_id=row_id, record=record, acks={})


_NEW_UPLOAD: Final = sa.insert(upload).values(
    {column: sa.bindparam(column.name) for column in upload.columns if column.name != "id"}
)
_ID_BY_KEY: Final = sa.select(upload.c.id).where(upload.c.key == sa.bindparam("key"))
_NOW: Final = sa.select(db_now())


def _now(connection: Connection) -> float:
    """The database's clock; asked once for all writes of a transaction."""
    transaction = connection.get_transaction()
    known: tuple[object, float] = connection.info.get("vodup_now", (None, 0.0))
    if transaction is None or known[0] is not transaction:
        known = connection.info["vodup_now"] = (transaction, fetch_value(connection, _NOW))
    return known[1]


def _is_same(existing: UploadRecord | None, record: UploadRecord) -> bool:
    """Whether this very `create` was committed before, and only its answer got lost."""
    return existing is not None and record == replace(existing, created_at=None, updated_at=None)


def change(
    connection: Connection,
    epoch: int,
    row_id: int,
    record: UploadRecord,
    changes: Changes,
) -> UploadRecord:
    """Write `changes` of `record`; returns it as it is now."""
    _require_lease(connection, record.key, epoch)
    now = _now(connection)
    changed = replace(record, **changes, updated_at=instant(now))
    if changes.get("video_id") is not None:
        _require_free_video(connection, changed)
    row = record_row(changed, changes)
    statement = _change_of(frozenset(changes))
    run(connection, statement, {**row, "updated_at": now, "its_id": row_id})
    return changed


@lru_cache(maxsize=64)
def _change_of(names: frozenset[str]) -> sa.Update:
    """The statement that changes these columns; there are a dozen of them at most."""
    its_id = sa.bindparam("its_id", type_=sa.BigInteger)
    values: dict[str, Any] = {n: sa.bindparam(n) for n in sorted(names | {"updated_at"})}
    return sa.update(upload).where(upload.c.id == its_id).values(values)


def restart_parts(
    connection: Connection,
    epoch: int,
    row_id: int,
    record: UploadRecord,
    changes: Changes,
) -> UploadRecord:
    """Forget all receipts, remember the former UploadId as an orphan, write `changes`."""
    _require_lease(connection, record.key, epoch)
    _note_orphan(connection, orphan_left_by(record, changes["upload_id"]))
    connection.execute(sa.delete(part).where(part.c.upload == row_id))
    return change(connection, epoch, row_id, record, changes)


def _require_free_video(connection: Connection, record: UploadRecord) -> None:
    if record.video_id is None:
        return
    video = {"video_id": stored_text(record.video_id)}
    other = fetch_value(connection, _KEY_BY_VIDEO, video)
    if other is not None and other != stored_text(record.key):
        raise video_taken(record.video_id, loaded_text(other))


_KEY_BY_VIDEO: Final = sa.select(upload.c.key).where(upload.c.video_id == sa.bindparam("video_id"))


def _delete(connection: Connection, row_id: int) -> None:
    connection.execute(sa.delete(part).where(part.c.upload == row_id))
    connection.execute(sa.delete(upload).where(upload.c.id == row_id))


def forget(connection: Connection, key: str, is_dead: IsDead) -> None:
    """Delete a record, its receipts and a lapsed lease; keep its multipart as an orphan."""
    _next_epoch(connection)  # keeps claims of the same moment out
    _remove_lapsed(connection, key, is_dead)
    row = _row_of(connection, key)
    if row is None:
        return
    if row["phase"] in (Phase.UPLOADING, Phase.COMPLETING):
        _note_orphan(connection, _orphan_in(row))
    _delete(connection, row["id"])


def _orphan_in(row: Mapping[str, Any]) -> Orphan | None:
    try:
        return orphan_left_by(record_of(row))
    except StateUnavailable:  # forgetting is how one gets rid of a damaged record
        return None


# Receipts


def add_acks(connection: Connection, writes: Sequence[AckWrite]) -> list[bool]:
    """Write receipts of any number of uploads; says which were still allowed."""
    live = _live_epochs(connection, {write.epoch for write in writes})
    rows = [ack_row(write.upload, write.part) for write in writes if write.epoch in live]
    if rows:
        # Sorted, so that two stores writing the same rows cannot deadlock.
        rows.sort(key=itemgetter("upload", "number"))
        run(connection, _upsert(connection.dialect.name), *rows)
    return [write.epoch in live for write in writes]


@cache
def _upsert(dialect_name: str) -> Any:  # noqa: ANN401 - the dialects share no type for this
    """Each dialect has an insert of its own; loading both at every start costs 40 ms."""
    insert = import_module(f"sqlalchemy.dialects.{dialect_name}").insert
    names = [column.name for column in part.columns]
    statement = insert(part).values({name: sa.bindparam(name) for name in names})
    values = {name: statement.excluded[name] for name in _PART_VALUES}
    return statement.on_conflict_do_update(index_elements=["upload", "number"], set_=values)


# Lists


def page(
    connection: Connection, before_id: int | None, size: int, is_dead: IsDead, notice: Notice
) -> tuple[list[UploadStatus], int | None]:
    """Some records, newest first, and where the next page starts (None after the last)."""
    query = sa.select(upload, lease.c.epoch, lease.c.owner, lease.c.expires, db_now().label("now"))
    query = query.outerjoin(lease, lease.c.key == upload.c.key)
    if before_id is not None:
        query = query.where(upload.c.id < before_id)
    rows = connection.execute(query.order_by(upload.c.id.desc()).limit(size)).mappings().all()
    counts = _counts(connection, [row["id"] for row in rows])
    statuses = []
    for row in rows:
        try:
            statuses.append(_status(row, counts.get(row["id"], (0, 0)), is_dead))
        except StateUnavailable as error:
            notice(str(error))
    return statuses, rows[-1]["id"] if len(rows) == size else None


def _counts(connection: Connection, ids: list[int]) -> dict[int, tuple[int, int]]:
    query = sa.select(part.c.upload, sa.func.count(), sa.func.sum(part.c.size))
    query = query.where(part.c.upload.in_(ids)).group_by(part.c.upload)
    return {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(query)}


def _status(row: RowMapping, counts: tuple[int, int], is_dead: IsDead) -> UploadStatus:
    is_held = row["epoch"] is not None and not _has_lapsed(row["expires"], row["now"])
    if is_held and is_dead(row["epoch"], row["owner"]):
        is_held = False
    return UploadStatus(
        record=record_of(row),
        acked_part_count=counts[0],
        acked_bytes=counts[1],
        owner=str(Owner.parse(row["owner"]) or row["owner"]) if is_held else None,
        lease_expires_at=instant(row["expires"]) if is_held else None,
    )


def _note_orphan(connection: Connection, left: Orphan | None) -> None:
    if left is None:
        return
    known = sa.select(orphan.c.upload_id).where(orphan.c.upload_id == stored_text(left.upload_id))
    if connection.execute(known).first() is None:
        row = orphan_row(left)
        connection.execute(sa.insert(orphan).values(**row, noted_at=db_now()))


def orphans(connection: Connection, notice: Notice) -> list[Orphan]:
    """Multipart uploads to abort, oldest first."""
    found = []
    for row in connection.execute(sa.select(orphan).order_by(orphan.c.noted_at)).mappings():
        try:
            found.append(orphan_of(row))
        except StateUnavailable as error:
            notice(str(error))
    return found


def forget_orphan(connection: Connection, upload_id: str) -> None:
    """Note that an orphan is gone."""
    connection.execute(sa.delete(orphan).where(orphan.c.upload_id == stored_text(upload_id)))
