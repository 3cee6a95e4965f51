"""`status`, `abort` and `clean`: what the state store remembers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from uploader.cli import exits
from uploader.cli.loop import run_async
from uploader.cli.options import Access, ClusterFlags, Output, Store, parse_duration_s
from uploader.cli.store import find_record, open_store
from uploader.cli.text import err, out, paragraph
from uploader.errors import ConfigurationError, UnsupportedState, VodupError
from uploader.state import Phase, StateStore, UploadRecord, UploadStatus
from uploader.threads import in_thread
from uploader.units import count, duration, size

if TYPE_CHECKING:
    from uploader import Uploader

__all__ = ["abort", "clean", "status"]

_WATCH_INTERVAL_S: Final = 2.0
_ENDED: Final = frozenset({Phase.DONE, Phase.ABORTED})


# --- status ---------------------------------------------------------------------------


def status(
    names: Sequence[str], is_watching: bool, store: Store, cluster: ClusterFlags, output: Output
) -> int:
    """Show what is recorded, once or until interrupted."""
    if cluster.embedded is None:
        return run_async(_status(names, is_watching, store, output))
    from uploader.cli.cluster import place_of

    with place_of(store, cluster) as url:
        return run_async(_status(names, is_watching, Store(state=url), output))


async def _status(names: Sequence[str], is_watching: bool, store: Store, output: Output) -> int:
    async with open_store(store) as state:
        while True:
            found = [s async for s in _chosen(state, names)]
            _require_all(found, names)
            if is_watching and sys.stdout.isatty():
                sys.stdout.write("\x1b[2J\x1b[H")
            if not names:
                await _show_queue(store, output)
            _show(found, output)
            if not is_watching:
                return exits.DONE
            await asyncio.sleep(_WATCH_INTERVAL_S)


async def _show_queue(store: Store, output: Output) -> None:
    """What waits for workers, where the state is shared with a queue."""
    facts = await in_thread(_queue_facts, store.state)
    if facts is None:
        return
    if output.json:
        out(json.dumps({"type": "queue.status", **facts}))
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
            f"worker {worker['id']}: {count(worker['running'], 'row')} running, "
            f"heard of {worker['silent_s']:.0f} s ago"
        )


def _queue_facts(state: str | None) -> dict[str, Any] | None:
    conninfo = _queue_conninfo(state)
    if conninfo is None:
        return None
    from uploader.cluster.queue import queue_facts

    return queue_facts(conninfo)


def _queue_conninfo(state: str | None) -> str | None:
    """Where there may be a queue beside the state; None where there is none."""
    if not (state or "").startswith(("postgres://", "postgresql")):
        return None
    try:
        from uploader.cluster.database import conninfo_of

        return conninfo_of(state)
    except ConfigurationError:  # without the extra there is a state, but no queue
        return None


async def _chosen(state: StateStore, names: Sequence[str]) -> AsyncIterator[UploadStatus]:
    async for found in state.uploads():
        if not names or found.record.key in names or found.record.video_id in names:
            yield found


def _require_all(found: Sequence[UploadStatus], names: Sequence[str]) -> None:
    known = {s.record.key for s in found} | {s.record.video_id for s in found}
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigurationError(
            f"There is no upload {missing[0]!r} in this state.",
            next_step="`vodup status` without a name lists them.",
        )


def _show(found: Sequence[UploadStatus], output: Output) -> None:
    if output.json:
        for one in found:
            out(json.dumps(_fields(one), ensure_ascii=False))
    elif not found:
        out("Nothing is recorded.")
    else:
        _show_table(found)


def _fields(one: UploadStatus) -> dict[str, Any]:
    """What a program may want to know. The plan and fingerprint are nobody's business."""
    record = one.record
    return {
        "type": "upload.status",
        "key": record.key,
        "state": str(record.phase),
        "source": record.source,
        "size": record.size,
        "acked_bytes": _done_bytes(one),
        "acked_part_count": _done_part_count(one),
        "part_count": _part_count(one),
        "video_id": record.video_id,
        "upload_id": record.upload_id,
        "bucket": record.bucket,
        "object_key": record.object_key,
        "owner": one.owner,
        "lease_expires_at": one.lease_expires_at and one.lease_expires_at.isoformat(),
        "error": record.error,
        "created_at": record.created_at and record.created_at.isoformat(),
        "updated_at": record.updated_at and record.updated_at.isoformat(),
    }


def _done_bytes(one: UploadStatus) -> int:
    return one.record.size if one.record.phase is Phase.DONE else one.acked_bytes


def _done_part_count(one: UploadStatus) -> int:
    """What is stored with one request has no receipt of its own beside the whole one."""
    is_done = one.record.phase is Phase.DONE
    return (is_done and _part_count(one)) or one.acked_part_count


def _part_count(one: UploadStatus) -> int | None:
    """How many parts the plan has; None before there is one, and when it is not readable."""
    from uploader.protocol.documents import MalformedDocument
    from uploader.protocol.plan import read_plan

    if one.record.plan is None:
        return None
    with suppress(MalformedDocument, UnsupportedState):
        plan = read_plan(one.record.plan)
        return None if plan.is_open else plan.part_count
    return None


def _show_table(found: Sequence[UploadStatus]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("KEY", "STATE", "DONE", "PARTS", "SIZE", "VIDEO", "SOURCE", "OWNER", "AGE"):
        table.add_column(name, overflow="fold", no_wrap=name != "SOURCE")
    for one in found:
        table.add_row(*map(_cell, _columns(one)))
    # As wide as it takes where nobody wraps: a pipe has no width.
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False, soft_wrap=True)
    console.print(table)
    for one in found:
        if one.record.error and one.record.phase not in _ENDED:
            out(f"{one.record.key}: {one.record.error}")


def _cell(value: str) -> Any:  # noqa: ANN401 - rich is loaded only here
    from rich.text import Text

    from uploader.cli.text import printable

    return Text(printable(value))


def _columns(one: UploadStatus) -> tuple[str, ...]:
    record = one.record
    part_count = _part_count(one)
    share = 100 * _done_bytes(one) // record.size if record.size else 0
    done = part_count if record.phase is Phase.DONE else one.acked_part_count
    return (
        record.key,
        str(record.phase),
        f"{share} %",
        f"{done}/{part_count}" if part_count else "-",
        size(record.size),
        record.video_id or "-",
        record.source,
        one.owner or "-",
        duration(_age_s(record)),
    )


def _age_s(record: UploadRecord) -> float:
    since = record.updated_at or record.created_at
    return max(0.0, (datetime.now(UTC) - since).total_seconds()) if since else 0.0


# --- abort ----------------------------------------------------------------------------


def abort(names: Sequence[str], store: Store, access: Access, output: Output) -> int:
    """Give uploads up: their parts are removed at OSS, the videos stay."""
    from uploader.cli.opening import make_uploader

    async def work() -> int:
        codes = []
        async with make_uploader(store, access, has_grant=True) as uploader:
            for name in names:
                try:
                    record = await _given_up(uploader, name, store)
                except VodupError as error:
                    _tell(output, "abort.failed", name, error)
                    codes.append(exits.exit_code(error))
                else:
                    _tell_given_up(output, record.key if record else name, record)
        return exits.common_code(codes)

    return run_async(work())


async def _given_up(uploader: Uploader, name: str, store: Store) -> UploadRecord | None:
    """Give one up, in the queue as well; None for one that waited there and was not begun."""
    state = uploader.state
    known = await state.find(key=name) or await state.find(video_id=name)
    key = known.key if known else name
    if await in_thread(_withdrawn, store.state, key) and known is None:
        return None
    record = await find_record(state, name)
    await uploader.abort(record.key)
    return record


def _withdrawn(state: str | None, key: str) -> bool:
    conninfo = _queue_conninfo(state)
    if conninfo is None:
        return False
    from uploader.cluster.queue import cancel_row

    return cancel_row(conninfo, key)


def _tell_given_up(output: Output, key: str, record: UploadRecord | None) -> None:
    video_id = record.video_id if record else None
    if output.json:
        out(json.dumps({"type": "upload.aborted", "key": key, "video_id": video_id}))
    elif not output.quiet:
        out(f"{key} is given up; video {video_id or '(none yet)'} stays as it is.")


def _tell(output: Output, kind: str, name: str, error: VodupError) -> None:
    if output.json:
        line = {
            "type": kind,
            "name": name,
            "error": type(error).__name__,
            "message": error.message,
            "next_step": error.next_step,
            "exit_code": exits.exit_code(error),
        }
        out(json.dumps(line, ensure_ascii=False))
    else:
        err(paragraph(error, about=name))


# --- clean ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What `clean` is to remove."""

    names: Sequence[str]
    is_done: bool
    is_aborted: bool
    older_than: str | None
    with_orphans: bool
    is_forced: bool
    is_dry: bool

    @property
    def phases(self) -> frozenset[Phase]:
        """Which ended records go; an age alone means both kinds."""
        any_kind = self.older_than is not None and not (self.is_done or self.is_aborted)
        chosen = {Phase.DONE: self.is_done, Phase.ABORTED: self.is_aborted}
        return frozenset(phase for phase, is_chosen in chosen.items() if is_chosen or any_kind)


def clean(choice: Choice, store: Store, access: Access, output: Output) -> int:
    """Forget receipts and given-up uploads, and remove what they left at OSS."""
    if not (choice.names or choice.phases or choice.with_orphans):
        raise ConfigurationError(
            "Nothing was chosen to be removed.",
            next_step="Name uploads, or pass --done, --aborted, --older-than 30d or --orphans.",
        )

    async def work() -> int:
        code = exits.DONE
        async with open_store(store) as state:
            for record in await _removable(state, choice):
                await _forget(state, record, choice, output)
            left = await state.orphans()
            if left and choice.with_orphans and not choice.is_dry:
                from uploader.cli.orphans import abort_orphans

                code = await abort_orphans(state, left, access)
            elif left:
                _mention_orphans(len(left), choice)
        return code

    return run_async(work())


async def _removable(state: StateStore, choice: Choice) -> list[UploadRecord]:
    if choice.names:
        return [await _named(state, name, choice) for name in choice.names]
    least_s = parse_duration_s(choice.older_than or "0", "--older-than")
    return [
        found.record
        async for found in state.uploads()
        if found.record.phase in choice.phases and _age_s(found.record) >= least_s
    ]


async def _named(state: StateStore, name: str, choice: Choice) -> UploadRecord:
    record = await find_record(state, name)
    if record.phase not in _ENDED and not choice.is_forced:
        raise ConfigurationError(
            f"The upload {record.key} is not finished ({record.phase}).",
            next_step="`vodup abort` gives it up and removes its parts; --force only forgets it.",
        )
    return record


async def _forget(state: StateStore, record: UploadRecord, choice: Choice, output: Output) -> None:
    if not choice.is_dry:
        await state.forget(record.key)
    if output.json:
        line = {"type": "upload.forgotten", "key": record.key, "video_id": record.video_id}
        out(json.dumps(line | {"is_dry_run": choice.is_dry}))
    elif not output.quiet:
        verb = "would forget" if choice.is_dry else "forgot"
        name = os.path.basename(record.source)
        out(f"{verb} {record.key} ({record.phase}, {name}, video {record.video_id or '-'})")


def _mention_orphans(number: int, choice: Choice) -> None:
    what = f"{count(number, 'multipart upload')} at OSS that nobody continues"
    err(f"{what}: {'to be aborted' if choice.with_orphans else '--orphans aborts them'}.")
