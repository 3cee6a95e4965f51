"""A batch: every row of its streams ends in one record of the ledger."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from uploader.batch import DEFAULT_FILES, Outcome, UploadItem
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    SourceChanged,
    TransportError,
    UnsupportedState,
    VodupError,
)
from uploader.protocol.vod import VideoMeta
from uploader.sources import MemoryBuffer, UrlPolicy, of_path, of_url
from uploader.sources.part_buffer import BufferSpace
from uploader.sources.url_policy import parsed_url
from uploader.tasks import beside, one_error
from uploader.threads import in_thread
from uploader.upload.request import OnSourceChange
from uploader.upload.resume import CHANGED_CHOICES
from uploader.uploader import Uploader

from .ledger import (
    KnownRow,
    Ledger,
    Record,
    advice,
    failure_record,
    former_video_id,
    mark_of,
    success_record,
)
from .manifests import Stream
from .progress import BatchProgress
from .rows import Row, RowRules, is_url

if TYPE_CHECKING:
    from uploader.library import PlayableVideo

_READ_BATCH: Final = 256
_MAX_DEFERRED: Final = 10_000
_SAMPLE_S: Final = 1.0
_MAX_WAITS: Final = 1000
"""Videos that are followed at a time: more cost memory, fewer wait behind those that take long."""
_STREAMS_SIZE: Final = 192 * 1024 * 1024
"""Bytes in memory for all URLs whose servers support no ranges, however many there are."""

STOPS_ALL: Final = (CallerNotAuthenticated, UnsupportedState)
"""Errors that every row would fail with."""

Reading = tuple[Stream, RowRules]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How a batch is carried out.

    Attributes:
        files: uploads at once; None for the default.
        retries: how often rows that failed temporarily are tried again, after all others.
        stop_on_error: stop at the first failure; uploads under way can be resumed.
        max_duration_s: stop after this long, in the same way.
        wait_s: wait this long until the videos of all verified rows play; None: do not wait.
        overwrite: rows with a VideoId may replace the content of finished videos.
        urls: where rows with URLs may lead; a row cannot change it.
    """

    files: int | None = None
    retries: int = 1
    stop_on_error: bool = False
    max_duration_s: float | None = None
    wait_s: float | None = None
    overwrite: bool = False
    urls: UrlPolicy = field(default_factory=UrlPolicy)


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """A row, looked up in the ledger and on the disk.

    Attributes:
        real_path: of the file, links resolved; "" for a URL and for a row that is not uploaded.
        root: a folder that the file must be in when it is opened; None: any folder.
        overwrite: the row's finished video may be replaced.
        on_source_change: as in `UploadItem`.
    """

    row: Row
    known: KnownRow
    real_path: str = ""
    size: int = 0
    root: str | None = None
    overwrite: bool = False
    on_source_change: OnSourceChange = "fail"

    def item(
        self, urls: UrlPolicy, *, overwrite: bool, buffer: MemoryBuffer | None = None
    ) -> UploadItem:
        """Return what `Uploader.upload_many` takes.

        What has become a link since the row was checked is not followed.

        Raises:
            ConfigurationError: nothing reads such a URL.
        """
        row = self.row
        if self.real_path:
            source = of_path(self.real_path, follow_symlinks=False, root=self.root)
        else:
            parsed_url(row.path)  # a queued row may name anything that fsspec reads
            source = of_url(row.path, policy=urls, buffer=buffer)
        return UploadItem(
            source=source,
            meta=self._meta(),
            video_id=row.video_id,
            key=row.upload_key,
            overwrite=overwrite or self.overwrite,
            on_source_change=self.on_source_change,
            size=self.size or None,
            priority=row.priority or 0,
            tag=self,
        )

    def _meta(self) -> VideoMeta | None:
        """A link's own name counts, not its target's."""
        meta, name = self.row.meta, os.path.basename(self.row.path)
        if meta is None or meta.file_name is not None or not self.real_path:
            return meta
        return meta if name == os.path.basename(self.real_path) else replace(meta, file_name=name)


class _Stopped(Exception):
    """The batch stops early."""


class Batch:
    """One run over some streams. Mutable: its progress, and the rows to try again."""

    def __init__(
        self,
        uploader: Uploader,
        ledger: Ledger,
        options: BatchOptions,
        *,
        exit_code: Callable[[VodupError], int] = lambda _: 1,
        on_record: Callable[[Record], None] = lambda _: None,
    ) -> None:
        """Make it on a running loop.

        Args:
            exit_code: goes into the records of failures.
            on_record: called with every final record.
        """
        self._uploader, self._ledger, self._options = uploader, ledger, options
        self._exit_code, self._on_record = exit_code, on_record
        self._deferred: list[CheckedRow] = []
        self._unreached: TransportError | None = None
        self._unreached_count = 0
        self._space = BufferSpace(_STREAMS_SIZE)
        self.progress = BatchProgress(asyncio.get_running_loop().time)

    async def run(self, readings: Sequence[Reading]) -> BatchProgress:
        """Bring every row to its end, then compact the ledger.

        Raises:
            VodupError: the batch as a whole cannot continue. What ended is in the ledger.
        """
        progress = self.progress
        async with beside(self._sample()):
            try:
                async with asyncio.timeout(self._options.max_duration_s) as limit:
                    await self._upload(self._items(readings), attempt=1)
                    await self._retry()
                    await self._wait_for_videos()
            except TimeoutError:
                if not limit.expired():
                    raise
                progress.stopped = "--max-duration reached"
            except _Stopped as stopped:
                progress.stopped = str(stopped)
        progress.sample()
        is_whole = progress.stopped is None
        if is_whole and progress.ended_count != progress.read_count:
            raise VodupError(
                f"{progress.read_count} rows were read and {progress.ended_count} have ended.",
                next_step="Report it: this is a bug in vodup. Run the same command again; "
                "what is done stays done.",
            )
        names = [stream.name for stream, _ in readings] if is_whole else []
        await in_thread(self._ledger.compact, manifests=names)
        return progress

    async def _sample(self) -> None:
        while True:
            self.progress.sample()
            await asyncio.sleep(_SAMPLE_S)

    async def _retry(self) -> None:
        for attempt in range(2, 2 + self._options.retries):
            deferred, self._deferred = self._deferred, []
            if self._unreached and self._unreached_count == len(deferred):
                raise self._unreached  # of few rows none got an answer
            self.progress.deferred_count = 0
            if deferred:
                await self._upload(map(self._item, deferred), attempt=attempt)

    async def _upload(
        self, items: AsyncIterator[UploadItem] | Iterator[UploadItem], *, attempt: int
    ) -> None:
        outcomes = self._uploader.upload_many(
            items, files=self._options.files, on_event=self.progress.tracker
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                self._end(outcome, attempt)

    async def _wait_for_videos(self) -> None:
        """Wait for the videos of verified rows, also of those that an earlier run did not end."""
        if (wait_s := self._options.wait_s) is None:
            return
        places = iter(await in_thread(self._ledger.unplayed))
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s

        async def wait_for_each() -> None:
            for place in places:
                record = self._ledger.record_at(place)
                try:
                    video = await self._uploader.wait_until_playable(
                        record["video_id"], timeout_s=max(0.0, end_s - loop.time())
                    )
                except STOPS_ALL:
                    raise
                except VodupError as error:
                    self._end_unplayable(record, error)
                else:
                    self._end_playable(record, video)

        async with one_error() as group:
            for _ in range(_MAX_WAITS):
                group.create_task(wait_for_each())

    def _end_playable(self, record: Record, video: PlayableVideo) -> None:
        facts = asdict(video)
        streams = facts.pop("streams")  # their URLs may be signed, and the ledger is kept
        self._ledger.add({**record, "playable": facts}, replaces=True)
        self.progress.playable_count += 1
        self._on_record({**record, "status": "playable", "playable": facts | {"streams": streams}})

    def _end_unplayable(self, record: Record, error: VodupError) -> None:
        """The row stays verified; the next run waits for its video again."""
        code = self._exit_code(error)
        name = str(record.get("path") or record["video_id"])
        self.progress.add_unplayable(name, error, code)
        facts = {"message": error.message, "next_step": advice(error), "exit_code": code}
        facts["error"] = type(error).__name__
        self._on_record({**record, "status": "not_playable", **facts})

    # --- rows into items ----------------------------------------------------------------

    async def _items(self, readings: Sequence[Reading]) -> AsyncIterator[UploadItem]:
        """Yield the rows to upload; rows that are done or refused end here."""
        progress = self.progress
        total = sum(stream.size for stream, _ in readings)
        rows = read_rows(readings, self._ledger)
        while batch := await in_thread(list, islice(rows, _READ_BATCH)):
            for checked in batch:
                progress.read_count += 1
                if checked.known.is_done:
                    progress.skipped_count += 1
                elif checked.row.error is not None:
                    progress.refused_count += 1
                    self._fail(checked, checked.row.error, attempts=0)
                elif (item := self._item_or_none(checked)) is not None:
                    yield item
            if total:
                progress.share_read = sum(s.position for s, _ in readings if s.size) / total
        progress.is_read = True

    def _item_or_none(self, checked: CheckedRow) -> UploadItem | None:
        try:
            return self._item(checked)
        except VodupError as error:
            self._fail(checked, error, attempts=0)
            return None

    def _item(self, checked: CheckedRow) -> UploadItem:
        return checked.item(
            self._options.urls,
            overwrite=self._options.overwrite,
            buffer=None if checked.real_path else MemoryBuffer(space=self._space),
        )

    # --- outcomes into records ----------------------------------------------------------

    def _end(self, outcome: Outcome, attempt: int) -> None:
        checked: CheckedRow = outcome.item.tag
        if outcome.result is not None:
            record = success_record(checked.row, outcome.result)
            self._ledger.add(record, replaces=checked.known.has_failed)
            self.progress.add_done(outcome.result)
            self._on_record(record)
        elif outcome.error is not None:
            self._defer_or_fail(checked, outcome.error, attempt)

    def _defer_or_fail(self, checked: CheckedRow, error: VodupError, attempt: int) -> None:
        if isinstance(error, STOPS_ALL) or self._is_unreachable(error):
            raise error
        may_retry = error.is_temporary and attempt <= self._options.retries
        if may_retry and not self._options.stop_on_error and len(self._deferred) < _MAX_DEFERRED:
            self._deferred.append(checked)
            self.progress.deferred_count += 1
        else:
            self._fail(checked, error, attempts=attempt)

    def _is_unreachable(self, error: VodupError) -> bool:
        """Whether as many rows as are uploaded at once got no answer, and none ever did."""
        if not isinstance(error, TransportError) or (error.is_sent and not error.is_timeout):
            self._unreached_count = -sys.maxsize  # somebody answers
        elif not self.progress.tracker.started and not self.progress.done_count:
            self._unreached = error
            self._unreached_count += 1
        return self._unreached_count >= (self._options.files or DEFAULT_FILES)

    def _fail(self, checked: CheckedRow, error: VodupError, *, attempts: int) -> None:
        code = self._exit_code(error)
        record = failure_record(
            checked.row, error, exit_code=code, attempts=attempts, former=checked.known.former
        )
        self._ledger.add(record, replaces=checked.known.has_failed)
        self.progress.add_failed(checked.row, error, code)
        self._on_record(record)
        if self._options.stop_on_error:
            raise _Stopped("a row failed, and --stop-on-error was given")


def read_rows(readings: Sequence[Reading], ledger: Ledger) -> Iterator[CheckedRow]:
    """Yield all rows of all streams, looked up in the ledger and on the disk. Blocks."""
    for stream, rules in readings:
        for raw in stream:
            yield _checked(rules.identify(raw, stream.name), rules, ledger)


def _checked(row: Row, rules: RowRules, ledger: Ledger) -> CheckedRow:
    known = ledger.look_up(row)
    if known.is_repeated:
        row = replace(row, key="", upload_key=None, error=_repeated(row))
        known = ledger.look_up(row)
    if row.error is not None or (known.is_done and not _may_have_changed(row, known)):
        return CheckedRow(row, known)
    if not known.is_done:
        row = rules.describe(row)
    if row.error is not None or is_url(row.path):
        return CheckedRow(row, known, on_source_change=rules.on_source_change)
    try:
        real_path, status = rules.root.resolved(row.path)
        if not rules.outputs.isdisjoint({real_path, (status.st_dev, status.st_ino)}):
            raise ConfigurationError(
                f"{row.path} is a file that this batch writes.",
                next_step="Leave the row out; files of a folder are left out with --exclude.",
            )
    except VodupError as error:
        return _unreadable(row, known, ledger, error)
    row = replace(row, stamp=(status.st_size, status.st_mtime_ns))
    checked = CheckedRow(
        row,
        known,
        real_path,
        status.st_size,
        rules.root.real_folder,
        on_source_change=rules.on_source_change,
    )
    if known.mark and known.mark != mark_of((status.st_size, status.st_mtime_ns)):
        described = rules.describe(row) if known.is_done else row
        return as_changed(replace(checked, row=described), ledger.former(row))
    return CheckedRow(row, known) if known.is_done else checked


def _may_have_changed(row: Row, known: KnownRow) -> bool:
    """Whether a verified file has to be looked at: not for most rows, which are passed over."""
    if is_url(row.path) or not known.mark:
        return False
    try:
        status = os.stat(row.path)
    except (OSError, ValueError):
        return True
    return known.mark != mark_of((status.st_size, status.st_mtime_ns))


def _unreadable(row: Row, known: KnownRow, ledger: Ledger, error: VodupError) -> CheckedRow:
    """A file that was verified may be removed; anything else in its place is another one."""
    if known.is_done and is_gone(error):
        return CheckedRow(row, known)
    if known.mark:
        known = KnownRow(has_failed=True, mark=known.mark, former=ledger.former(row))
    return CheckedRow(replace(row, error=error), known)


def is_gone(error: VodupError) -> bool:
    """Whether the file of a row does not exist."""
    return isinstance(error.__cause__, FileNotFoundError)


def as_changed(checked: CheckedRow, former: Record) -> CheckedRow:
    """Return a row whose file has changed since `former` was recorded, as the user chose."""
    row, choice, video_id = checked.row, checked.on_source_change, former_video_id(former)
    known = KnownRow(has_failed=True, mark=checked.known.mark, former=former)
    error: VodupError | None = row.error
    if choice == "fail":
        error = SourceChanged(
            f"{row.path} has changed since it was verified as video {video_id}.",
            next_step=CHANGED_CHOICES,
        )
    elif choice == "new-video" and row.video_id is not None:
        error = ConfigurationError(
            f"{row.path} has changed, and its row names the video {row.video_id}.",
            next_step="Pass --changed overwrite, or remove the VideoId from the row.",
        )
    elif choice == "overwrite":
        row = replace(row, video_id=video_id)
    return replace(
        checked,
        row=replace(row, error=error),
        known=known,
        overwrite=choice == "overwrite",
    )


def _repeated(row: Row) -> ConfigurationError:
    return ConfigurationError(
        f"Duplicate row: an earlier row has the key, VideoId or reference_id of {row.source_name}.",
        next_step="Give each row a key of its own, or remove one.",
    )
