"""`push` and `resume`: several files under one uploader, failures apart."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

from uploader import (
    Uploader,
    UploadGrant,
    UploadRecord,
    VideoMeta,
    decode_answer,
)
from uploader.cli import exits
from uploader.cli.feeding import (
    can_come_again,
    named_sources,
    recorded_source,
    shown_name,
    source_of,
)
from uploader.cli.loop import run_async
from uploader.cli.measuring import measured
from uploader.cli.opening import make_uploader
from uploader.cli.options import (
    Access,
    Describe,
    DescribeAll,
    Feed,
    Output,
    Store,
    Transfer,
    Urls,
    Which,
    parse_number,
    read_text,
)
from uploader.cli.progress import Board, Row, View, listener, make_view
from uploader.cli.running import Interrupted, explain_bug
from uploader.cli.store import find_record
from uploader.errors import ConfigurationError, VodupError
from uploader.events import Listener
from uploader.sources import AnySource
from uploader.state import Phase
from uploader.units import count, size

__all__ = ["push", "resume"]

_FILES_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One upload. `source` is what the user calls it."""

    source: str
    content: AnySource
    meta: VideoMeta | None = None
    video_id: str | None = None
    grant: UploadGrant | None = None
    key: str | None = None
    overwrite: bool = False


def push(
    paths: Sequence[str],
    which: Which,
    describe: Describe,
    feed: Feed,
    store: Store,
    access: Access,
    transfer: Transfer,
    output: Output,
) -> int:
    """Upload `paths` and return the exit code."""
    names = named_sources(paths, feed)

    def prepare(heard: Listener | None) -> tuple[Uploader, Finder]:
        _require_single(names, which, describe)
        grant = decode_answer(read_text(which.grant, "--grant")) if which.grant else None
        jobs = _jobs_of(names, which, describe, feed, grant)
        uploader = make_uploader(
            store, access, transfer, has_grant=grant is not None, on_event=heard
        )
        return uploader, lambda _: _ready(jobs)

    shown, keeps = [*map(shown_name, names)], store.state != "memory"
    with measured(transfer.metrics_port) as heard:
        return _Push(output, shown, keeps=keeps).run(partial(prepare, heard))


def _jobs_of(
    names: Sequence[str],
    which: Which,
    describe: Describe,
    feed: Feed,
    grant: UploadGrant | None,
) -> list[Job]:
    meta = make_meta(describe)
    has_video = which.video_id is not None or grant is not None
    return [
        Job(
            source=shown_name(name),
            content=source_of(name, feed, describe.file_name, has_video=has_video),
            meta=meta,
            video_id=which.video_id,
            grant=grant,
            key=which.key,
            overwrite=which.overwrite,
        )
        for name in names
    ]


async def _ready(jobs: Sequence[Job]) -> Sequence[Job]:
    return jobs


def _require_single(paths: Sequence[str], which: Which, describe: Describe) -> None:
    """Refuse what can only be meant for one file."""
    single = {
        "--title": describe.title,
        "--file-name": describe.file_name,
        "--reference-id": describe.reference_id,
        "--key": which.key,
        "--video-id": which.video_id,
        "--grant": which.grant,
    }
    given = [name for name, value in single.items() if value is not None]
    if len(paths) > 1 and given:
        raise ConfigurationError(
            f"{given[0]} is for one file, and there are {len(paths)}.",
            next_step="Push them one by one, or leave it away.",
        )
    if which.grant == "-" and "-" in paths:
        raise ConfigurationError("Standard input cannot be both the grant and the video.")
    if len({os.path.abspath(shown_name(path)) for path in paths}) < len(paths):
        raise ConfigurationError("The same path is given twice.")


def make_meta(describe: DescribeAll) -> VideoMeta:
    """Return what CreateUploadVideo is told."""
    given = {f.name: getattr(describe, f.name) for f in fields(describe)}
    given["tags"] = tuple(filter(None, map(str.strip, (describe.tags or "").split(","))))
    if describe.cate_id is not None:
        given["cate_id"] = parse_number(describe.cate_id, "--cate-id", least=0, most=10**15)
    return VideoMeta(**given)


def resume(
    names: Sequence[str],
    is_all: bool,
    urls: Urls,
    store: Store,
    access: Access,
    transfer: Transfer,
    output: Output,
) -> int:
    """Continue recorded uploads and return the exit code."""
    if bool(names) == is_all:
        raise ConfigurationError(
            "Name the uploads to continue, or pass --all.",
            next_step="`vodup status` lists them.",
        )

    async def find_jobs(uploader: Uploader) -> list[Job]:
        records = await _named(uploader, names) if names else await _unfinished(uploader)
        return [_job_of(record, urls) for record in records]

    with measured(transfer.metrics_port) as heard:
        return _Push(output).run(
            lambda: (make_uploader(store, access, transfer, on_event=heard), find_jobs)
        )


async def _unfinished(uploader: Uploader) -> list[UploadRecord]:
    """Return what is to be continued, oldest first."""
    ended = {Phase.DONE, Phase.ABORTED}
    found = [s.record async for s in uploader.state.uploads() if s.record.phase not in ended]
    return [record for record in reversed(found) if can_come_again(record)]


async def _named(uploader: Uploader, names: Sequence[str]) -> list[UploadRecord]:
    records = [await find_record(uploader.state, name) for name in names]
    for record in records:
        if record.phase is Phase.ABORTED:
            raise ConfigurationError(
                f"The upload {record.key} was given up; there is nothing to continue.",
                next_step="`vodup push` begins anew.",
            )
    return records


def _job_of(record: UploadRecord, urls: Urls) -> Job:
    return Job(
        source=record.source,
        content=recorded_source(record, urls),
        meta=_meta_of(record),
        video_id=record.video_id,
        key=record.key,
        overwrite=record.is_overwrite,
    )


def _meta_of(record: UploadRecord) -> VideoMeta:
    """Return what the first run was to tell: a video that was not made yet is made so."""
    given = json.loads(record.meta or "{}")
    known = {name: given[name] for name in VideoMeta.__slots__ if name in given}
    return VideoMeta(**{**known, "tags": tuple(known.get("tags", ()))})


Finder = Callable[[Uploader], Awaitable[Sequence[Job]]]


class _Push:
    """One run over several files. Mutable: its board."""

    def __init__(self, output: Output, sources: Sequence[str] = (), *, keeps: bool = True) -> None:
        """`keeps`: whether the state outlives this process."""
        self._view: View = make_view(output)
        self._board = Board()
        self._rows = {source: self._board.add(source) for source in sources}
        self._keeps = keeps

    def run(self, prepare: Callable[[], tuple[Uploader, Finder]]) -> int:
        """Do it all; whatever happens, every file's end is told."""
        try:
            return run_async(self._perform(*prepare()))
        except VodupError as error:
            if not self._board.open_rows:
                raise
            for row in self._board.open_rows:
                self._fail(row, error)
            return exits.exit_code(error)
        except Interrupted as interrupted:
            for row in self._board.open_rows:
                self._view.interrupted(row, interrupted.code, self._how_far(row))
                row.end(interrupted.code)
            raise

    async def _perform(self, uploader: Uploader, find_jobs: Finder) -> int:
        async with uploader:
            jobs = await find_jobs(uploader)
            gate = asyncio.Semaphore(_FILES_AT_ONCE)
            async with self._watched(), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._upload(uploader, job, self._row_of(job), gate))
                    for job in jobs
                ]
        if len(jobs) > 1:
            self._tell_total()
        return exits.common_code(task.result() for task in tasks)

    def _row_of(self, job: Job) -> Row:
        return self._rows.get(job.source) or self._board.add(job.source)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._view.watch(self._board))
            try:
                yield
            finally:
                watching.cancel()

    async def _upload(self, uploader: Uploader, job: Job, row: Row, gate: asyncio.Semaphore) -> int:
        try:
            async with gate:
                result = await uploader.upload(
                    job.content,
                    meta=job.meta,
                    video_id=job.video_id,
                    grant=job.grant,
                    key=job.key,
                    overwrite=job.overwrite,
                    on_event=listener(row, self._view),
                )
        except VodupError as error:
            return self._fail(row, error)
        except Exception as error:  # a bug that meets one file must not stop the others
            explain_bug(error)
            words = f"Something unexpected happened ({type(error).__name__})."
            return self._fail(row, VodupError(words, next_step="Report the lines above."))
        code = exits.HOOK_FAILED if row.has_failed_hook else exits.DONE
        row.end(code, size=result.size)
        self._view.finished(row, result)
        return code

    def _fail(self, row: Row, error: VodupError) -> int:
        code = exits.exit_code(error)
        row.end(code)
        self._view.failed(row, error)
        return code

    def _how_far(self, row: Row) -> str:
        if not row.is_active:
            return f"{row.source}: interrupted before anything was sent."
        far = f"{row.acked_part_count} of {count(row.part_count, 'part')}"
        if not row.part_count:
            far = count(row.acked_part_count, "part")
        words = f"{row.source}: interrupted; OSS has confirmed {far} of video {row.video_id}."
        if self._keeps and not row.part_count:
            return (
                f"{words} Run the same command again to continue; a pipe needs its producer from "
                f"the start, and --key {row.key}."
            )
        if self._keeps:
            return f"{words} Run the same command again to continue."
        return f"{words} With --state memory nothing was kept: the same command begins anew."

    def _tell_total(self) -> None:
        rows = self._board.rows
        done = [row for row in rows if row.code in {exits.DONE, exits.HOOK_FAILED}]
        words = f"{len(done)} of {count(len(rows), 'file')} stored, "
        self._view.say(f"{words}{size(sum(row.size for row in done))} in all.")
