"""`status`, `abort`, `clean` and `verify`: recorded uploads."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from uploader import units
from uploader.cli import run
from uploader.cli.flag_groups import OutputFlags, StateFlags
from uploader.cli.flags import AbortFlags, CleanFlags, StatusFlags, VerifyFlags
from uploader.cli.printing import err, out, out_json, paragraph, room
from uploader.errors import ConfigurationError, UnsupportedState, VodupError
from uploader.state import Orphan, Phase, StateStore, UploadRecord, UploadStatus, open_state
from uploader.state.locations import SqliteFile, locate
from uploader.threads import in_thread

if TYPE_CHECKING:
    from uploader import Uploader
    from uploader.protocol.plan import Plan

_ENDED: Final = frozenset({Phase.DONE, Phase.ABORTED})
_WATCH_INTERVAL_S: Final = 2.0
_SHOWN: Final = "key source size video_id upload_id bucket object_key error".split()
_COLUMNS: Final = ("KEY", "STATE", "DONE", "PARTS", "SIZE", "VIDEO", "OWNER", "UPDATED", "SOURCE")


async def find_record(state: StateStore, name: str) -> UploadRecord:
    """Return the record with this key or VideoId.

    Raises:
        ConfigurationError: there is none.
    """
    found = await state.find(key=name) or await state.find(video_id=name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"No upload {name!r} is recorded.",
        next_step="`vodup status` lists the recorded uploads; --state selects another database.",
    )


def _age_s(record: UploadRecord) -> float:
    """Return the time since a record was last changed."""
    since = record.updated_at or record.created_at
    return max(0.0, (datetime.now(UTC) - since).total_seconds()) if since else 0.0


def status(flags: StatusFlags) -> int:
    """Show what is recorded, once or until interrupted."""
    if flags.embedded is None:
        _warn_of_missing_file(flags)
        return run.run_async(_status(flags, flags))
    from uploader.cli.cluster import place_of

    with place_of(flags) as url:
        return run.run_async(_status(flags, StateFlags(state=url)))


def _warn_of_missing_file(flags: StateFlags) -> None:
    """A mistyped --state looks like a state without uploads."""
    if flags.state and flags.state != "memory":
        location = locate(flags.state)
        if isinstance(location, SqliteFile) and not location.path.exists():
            err(f"vodup: --state: {location.path} did not exist; created.")


async def _status(flags: StatusFlags, place: StateFlags) -> int:
    async with open_state(place.state or None) as state:
        while True:
            found = [s async for s in _chosen(state, flags.names)]
            _require_all(found, flags.names)
            if flags.watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[2J\x1b[H")
            if not flags.names:
                await _show_queue(place, flags)
            await _show(found, flags)
            if not flags.watch or getattr(sys.stdout, "is_lost", False):
                return run.DONE
            await asyncio.sleep(_WATCH_INTERVAL_S)


async def _chosen(state: StateStore, names: Sequence[str]) -> AsyncIterator[UploadStatus]:
    async for found in state.uploads():
        if not names or found.record.key in names or found.record.video_id in names:
            yield found


def _require_all(found: Sequence[UploadStatus], names: Sequence[str]) -> None:
    known = {s.record.key for s in found} | {s.record.video_id for s in found}
    for name in names:
        if name not in known:
            raise _unknown(name)


async def _show_queue(place: StateFlags, flags: OutputFlags) -> None:
    """Show what waits for workers, where the state is shared with a queue."""
    conninfo = _queue_conninfo(place.state)
    if conninfo is None:
        return
    from uploader.cluster.queue import queue_facts

    facts = await in_thread(queue_facts, conninfo)
    if facts is None:
        return
    if flags.json:
        out_json({"type": "queue.status", **facts})
        return
    for queue in facts["queues"]:
        if queue["queue"]:
            out(
                f"{queue['queue']}: {queue['running']:,} running, {queue['waiting']:,} waiting "
                f"({queue['failing']:,} after a failure), {queue['done']:,} done, "
                f"{queue['failed']:,} failed"
            )
    for worker in facts["workers"]:
        out(
            f"worker {worker['id']}: {units.count(worker['running'], 'row')} running, "
            f"last heartbeat {worker['silent_s']:.0f} s ago"
        )


def _queue_conninfo(state: str | None) -> str | None:
    """Where there may be a queue beside the state; None where there is none."""
    if not (state or "").startswith(("postgres://", "postgresql")):
        return None
    try:
        from uploader.cluster.database import conninfo_of

        return conninfo_of(state)
    except ConfigurationError:  # without the extra there is a state, but no queue
        return None


async def _show(found: Sequence[UploadStatus], flags: OutputFlags) -> None:
    if flags.json:
        for one in found:
            await room()
            out_json(_fields(one))
    elif not found:
        out("No uploads recorded.")
    else:
        rows = [_COLUMNS, *(_cells(one.record, _fields(one)) for one in found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            await room()
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            out("  ".join(cells).rstrip())
        for record in (one.record for one in found):
            if record.error and record.phase not in _ENDED:
                out(f"{record.key}: {record.error}")


def _fields(one: UploadStatus) -> dict[str, Any]:
    """What programs may want to know. The plan and fingerprint stay internal."""
    record, plan = one.record, recorded_plan(one.record)
    part_count = None if plan is None or plan.is_open else plan.part_count
    is_done = record.phase is Phase.DONE
    return {
        "type": "upload.status",
        **{name: getattr(record, name) for name in _SHOWN},
        "state": str(record.phase),
        "acked_bytes": record.size if is_done else one.acked_bytes,
        # What one request has sent has no acks of its parts.
        "acked_part_count": (is_done and part_count) or one.acked_part_count,
        "part_count": part_count,
        "owner": one.owner,
        "lease_expires_at": one.lease_expires_at and one.lease_expires_at.isoformat(),
        "created_at": record.created_at and record.created_at.isoformat(),
        "updated_at": record.updated_at and record.updated_at.isoformat(),
    }


def _cells(record: UploadRecord, fields: dict[str, Any]) -> tuple[str, ...]:
    size, part_count = record.size, fields["part_count"]
    return (
        record.key,
        str(record.phase),
        f"{100 * fields['acked_bytes'] // size if size else 0} %",
        f"{fields['acked_part_count']}/{part_count}" if part_count else "-",
        units.size(size),
        record.video_id or "-",
        fields["owner"] or "-",
        f"{units.duration(_age_s(record))} ago",
        record.source,
    )


def recorded_plan(record: UploadRecord) -> Plan | None:
    """The plan of an upload; None before there is one, and when it is not readable."""
    from uploader.protocol.documents import MalformedDocument
    from uploader.protocol.plan import read_plan

    with suppress(MalformedDocument, UnsupportedState):
        return read_plan(record.plan) if record.plan is not None else None
    return None


def abort(flags: AbortFlags) -> int:
    """Abort uploads: their parts are removed at OSS, the videos stay."""
    from uploader.cli.settings import make_uploader

    async def work() -> int:
        codes = []
        async with make_uploader(flags, has_grant=True) as uploader:
            for name in flags.names:
                try:
                    record = await _aborted(uploader, name, flags)
                except VodupError as error:
                    _print_failure(flags, name, error)
                    codes.append(run.exit_code(error))
                else:
                    video_id = record.video_id if flags.delete_video and record else None
                    is_deleted = bool(
                        video_id and await uploader.library.delete_unfinished(video_id)
                    )
                    _print_aborted(
                        flags, record.key if record else name, record, is_deleted=is_deleted
                    )
        return run.common_code(codes)

    return run.run_async(work())


async def _aborted(uploader: Uploader, name: str, flags: StateFlags) -> UploadRecord | None:
    """Abort one, in the queue as well; None for one that waited there and had not started."""
    state = uploader.state
    known = await state.find(key=name) or await state.find(video_id=name)
    key = known.key if known else name
    conninfo = _queue_conninfo(flags.state)
    if conninfo is not None:
        from uploader.cluster.queue import cancel_row

        if await in_thread(cancel_row, conninfo, key) and known is None:
            return None
    record = await find_record(state, name)
    await uploader.abort(record.key)
    return record


def _print_aborted(
    flags: OutputFlags, key: str, record: UploadRecord | None, *, is_deleted: bool
) -> None:
    video_id = record.video_id if record else None
    if flags.json:
        line = {"type": "upload.aborted", "key": key, "video_id": video_id}
        out_json(line | {"is_video_deleted": is_deleted})
    elif not flags.quiet:
        state = "is deleted" if is_deleted else "stays in VOD"
        kept = f"; video {video_id} {state}" if video_id else ""
        out(f"Aborted the upload {key}{kept}.")


def _print_failure(flags: OutputFlags, name: str, error: VodupError) -> None:
    if flags.json:
        line = {
            "type": "abort.failed",
            "name": name,
            "error": type(error).__name__,
            "message": error.message,
            "next_step": error.next_step,
            "exit_code": run.exit_code(error),
        }
        out_json(line)
    else:
        err(*paragraph(error, about=name))


def clean(flags: CleanFlags) -> int:
    """Remove records of ended uploads, and what they left at OSS or VOD."""
    if flags.stuck:
        from uploader.cli.library import clean_stuck

        return clean_stuck(flags)
    phases = _phases(flags)
    if not (flags.names or phases or flags.orphans):
        raise ConfigurationError(
            "Nothing selected to be removed.",
            next_step="Name uploads, or pass --done, --aborted, --older-than 30d, --orphans or "
            "--stuck.",
        )

    async def work() -> int:
        async with open_state(flags.state or None) as state:
            records = await _removable(state, phases, flags)
            for record in records:
                await room()
                await _remove(state, record, flags)
            orphans = await state.orphans()
            if orphans and flags.orphans and not flags.dry_run:
                from uploader.cli.orphans import abort_orphans

                return await abort_orphans(state, orphans, flags)
            if orphans:
                _mention(orphans, flags)
            elif not records and not flags.json and not flags.quiet:
                out("Nothing to clean.")
        return run.DONE

    return run.run_async(work())


def _phases(flags: CleanFlags) -> frozenset[Phase]:
    """Which ended records are removed; an age alone means both kinds."""
    is_any = flags.older_than is not None and not (flags.done or flags.aborted)
    chosen = {Phase.DONE: flags.done, Phase.ABORTED: flags.aborted}
    return frozenset(phase for phase, is_chosen in chosen.items() if is_chosen or is_any)


async def _removable(
    state: StateStore, phases: frozenset[Phase], flags: CleanFlags
) -> list[UploadRecord]:
    if flags.names:
        return [await _named(state, name, flags) for name in flags.names]
    least_s = flags.older_than or 0.0
    return [
        found.record
        async for found in state.uploads()
        if found.record.phase in phases and _age_s(found.record) >= least_s
    ]


async def _named(state: StateStore, name: str, flags: CleanFlags) -> UploadRecord:
    record = await find_record(state, name)
    if record.phase not in _ENDED and not flags.force:
        raise ConfigurationError(
            f"The upload {record.key} is not finished ({record.phase}).",
            next_step=f"`vodup abort {record.key}` aborts it and removes its parts from OSS; "
            "--force only removes the record.",
        )
    return record


async def _remove(state: StateStore, record: UploadRecord, flags: CleanFlags) -> None:
    if not flags.dry_run:
        await state.forget(record.key)
    if flags.json:
        line = {"type": "upload.forgotten", "key": record.key, "video_id": record.video_id}
        out_json(line | {"is_dry_run": flags.dry_run})
    elif not flags.quiet:
        verb = "Would remove" if flags.dry_run else "Removed"
        name = os.path.basename(record.source)
        video = f", video {record.video_id}" if record.video_id else ""
        out(f"{verb} the record {record.key} ({record.phase}, {name}{video}).")


def _mention(orphans: Sequence[Orphan], flags: CleanFlags) -> None:
    uploads = units.count(len(orphans), "multipart upload")
    if flags.orphans:
        out(f"Would abort {uploads} left behind at OSS.")
    else:
        err(f"{uploads} left behind at OSS; `vodup clean --orphans` aborts them.")


def verify(flags: VerifyFlags) -> int:
    """Read a file again and compare it with the object, by CRC-64."""
    from uploader.cli.settings import make_uploader

    path = os.path.abspath(flags.path)

    async def work() -> int:
        async with make_uploader(flags) as uploader:
            facts = await uploader.verify(path, key=flags.key)
        if flags.json:
            line = {
                "type": "upload.verified",
                "source": flags.path,
                "size": facts.size,
                "crc64": str(facts.crc64),
                "etag": facts.etag,
                "request_id": facts.request_id,
            }
            out_json(line)
        elif not flags.quiet:
            size = units.size(facts.size or 0)
            out(f"OK: the stored object matches {flags.path} ({size}, CRC-64 {facts.crc64}).")
        return run.DONE

    return run.run_async(work())
