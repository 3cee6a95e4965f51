"""A batch: every row of its streams ends in one record of the ledger."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from uploader.engine import Uploader
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    SourceError,
    UnsafePath,
    UnsupportedState,
    VodupError,
)
from uploader.many import Outcome, UploadItem
from uploader.sources import MemoryBuffer, Source, UrlPolicy, of_path, of_url
from uploader.sources.part_buffer import BufferSpace
from uploader.threads import in_thread

from .ledger import Earlier, Ledger, Record, failure_record, success_record
from .rows import Row, RowRules, is_url
from .streams import Stream
from .tally import Tally

__all__ = ["Batch", "BatchOptions", "Reading", "read_rows"]

_READ_BATCH: Final = 256
_MAX_DEFERRED: Final = 10_000
_TICK_S: Final = 1.0
_STREAMS_SIZE: Final = 192 * 1024 * 1024
"""Bytes in memory of all URLs whose servers give no ranges, however many are under way."""

_HOPELESS: Final = (CallerNotAuthenticated, UnsupportedState)
"""What meets one row would meet all of them."""

Reading = tuple[Stream, RowRules]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How a batch is carried out.

    Attributes:
        files: how many at once; None for the usual number.
        retries: how often rows that failed temporarily are tried again, after all others.
        stop_on_error: end at the first failure; what is under way can be resumed.
        max_duration_s: end after so long, the same way.
        overwrite: rows with a VideoId may replace the content of finished videos.
        urls: where rows with URLs may lead; no row says so itself.
    """

    files: int | None = None
    retries: int = 1
    stop_on_error: bool = False
    max_duration_s: float | None = None
    overwrite: bool = False
    urls: UrlPolicy = field(default_factory=UrlPolicy)


@dataclass(frozen=True, slots=True)
class MetRow:
    """A row as the reading thread found it: what is known of it, and where its file is.

    Attributes:
        real_path: "" for a URL, and for a row that is not to be uploaded.
    """

    row: Row
    earlier: Earlier
    real_path: str = ""
    size: int = 0


class _Stopped(Exception):
    """The batch ends before its end."""


class Batch:
    """One run over some streams. Mutable: its tally, and the rows to try again."""

    def __init__(
        self,
        uploader: Uploader,
        ledger: Ledger,
        options: BatchOptions,
        *,
        exit_code: Callable[[VodupError], int] = lambda _: 1,
        on_record: Callable[[Record], None] = lambda _: None,
    ) -> None:
        """`on_record` is told each terminal record; `exit_code` goes into those of failures.

        Call it on a running loop.
        """
        self._uploader, self._ledger, self._options = uploader, ledger, options
        self._exit_code, self._on_record = exit_code, on_record
        self._deferred: list[MetRow] = []
        self._space = BufferSpace(_STREAMS_SIZE)
        self.tally = Tally(asyncio.get_running_loop().time)

    async def run(self, readings: Sequence[Reading]) -> Tally:
        """Bring every row to its end, then settle the ledger.

        Raises:
            VodupError: the batch as a whole cannot go on. What ended is in the ledger.
        """
        tally = self.tally
        async with self._ticking():
            try:
                async with asyncio.timeout(self._options.max_duration_s) as limit:
                    await self._upload(self._items(readings), attempt=1)
                    await self._retry()
            except TimeoutError:
                if not limit.expired():
                    raise
                tally.stopped = "--max-duration is over"
            except _Stopped as stopped:
                tally.stopped = str(stopped)
        tally.tick()
        names = [stream.name for stream, _ in readings] if tally.stopped is None else []
        await in_thread(self._ledger.settle, manifests=names)
        return tally

    async def _retry(self) -> None:
        for attempt in range(2, 2 + self._options.retries):
            deferred, self._deferred = self._deferred, []
            self.tally.deferred_count = 0
            if deferred:
                await self._upload(_each(deferred, self._item), attempt=attempt)

    async def _upload(self, items: AsyncIterator[UploadItem], *, attempt: int) -> None:
        ending = self._uploader.upload_many(
            items, files=self._options.files, on_event=self.tally.told
        )
        async with aclosing(ending):
            async for outcome in ending:
                self._ended(outcome, attempt)

    # --- rows into items ----------------------------------------------------------------

    async def _items(self, readings: Sequence[Reading]) -> AsyncIterator[UploadItem]:
        """What is to be uploaded; rows that are done or refused end here."""
        total = sum(stream.size for stream, _ in readings)
        rows = read_rows(readings, self._ledger)
        while batch := await in_thread(list, islice(rows, _READ_BATCH)):
            for met in batch:
                self.tally.read_count += 1
                if met.earlier.is_done:
                    self.tally.skipped_count += 1
                elif met.row.error is not None:
                    self.tally.refused_count += 1
                    self._fail(met, met.row.error, attempts=0)
                else:
                    yield self._item(met)
            if total:
                self.tally.share_read = sum(s.position for s, _ in readings if s.size) / total
        self.tally.is_read = True

    def _item(self, met: MetRow) -> UploadItem:
        row, meta = met.row, met.row.meta
        name, real_name = os.path.basename(row.path), os.path.basename(met.real_path)
        if meta is not None and meta.file_name is None and real_name and name != real_name:
            meta = replace(meta, file_name=name)  # what it is called here, not where a link leads
        return UploadItem(
            source=self._source(met),
            meta=meta,
            video_id=row.video_id,
            key=row.upload_key,
            overwrite=self._options.overwrite,
            size=met.size or None,
            tag=met,
        )

    def _source(self, met: MetRow) -> Source:
        if not met.real_path:
            buffer = MemoryBuffer(space=self._space)
            return of_url(met.row.path, policy=self._options.urls, buffer=buffer)
        return of_path(met.real_path, follow_symlinks=False)

    # --- outcomes into records ----------------------------------------------------------

    def _ended(self, outcome: Outcome, attempt: int) -> None:
        met: MetRow = outcome.item.tag
        if outcome.result is not None:
            record = success_record(met.row, outcome.result)
            self._ledger.add(record, replaces=met.earlier.had_failed)
            self.tally.done(outcome.result)
            self._on_record(record)
        elif outcome.error is not None:
            self._failed(met, outcome.error, attempt)

    def _failed(self, met: MetRow, error: VodupError, attempt: int) -> None:
        if isinstance(error, _HOPELESS):
            raise error
        may_retry = error.is_temporary and attempt <= self._options.retries
        if may_retry and not self._options.stop_on_error and len(self._deferred) < _MAX_DEFERRED:
            self._deferred.append(met)
            self.tally.deferred_count += 1
        else:
            self._fail(met, error, attempts=attempt)

    def _fail(self, met: MetRow, error: VodupError, *, attempts: int) -> None:
        code = self._exit_code(error)
        record = failure_record(met.row, error, exit_code=code, attempts=attempts)
        self._ledger.add(record, replaces=met.earlier.had_failed)
        self.tally.failed(met.row, error, code)
        self._on_record(record)
        if self._options.stop_on_error:
            raise _Stopped("a row failed, and --stop-on-error was given")

    # --- beside it ----------------------------------------------------------------------

    @asynccontextmanager
    async def _ticking(self) -> AsyncIterator[None]:
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(self._tick())
            try:
                yield
            except Exception as error:
                failure = error  # raised below, where the group cannot wrap it
            finally:
                ticking.cancel()
        if failure is not None:
            raise failure

    async def _tick(self) -> None:
        while True:
            self.tally.tick()
            await asyncio.sleep(_TICK_S)


def read_rows(readings: Sequence[Reading], ledger: Ledger) -> Iterator[MetRow]:
    """All rows of all streams, each looked up in the ledger and on the disk. Blocks."""
    for stream, rules in readings:
        for raw in stream:
            yield _met(rules.begun(raw, stream.name), rules, ledger)


def _met(row: Row, rules: RowRules, ledger: Ledger) -> MetRow:
    earlier = ledger.meet(row)
    if earlier.is_repeated:
        row = replace(row, key="", upload_key=None, error=_repeated(row))
        earlier = ledger.meet(row)
    if earlier.is_done or row.error is not None:
        return MetRow(row, earlier)
    row = rules.described(row)
    if row.error is not None:
        return MetRow(row, earlier)
    if is_url(row.path):
        return MetRow(row, earlier)
    try:
        real_path, size = rules.root.resolved(row.path)
    except (SourceError, UnsafePath) as error:
        return MetRow(replace(row, error=error), earlier)
    return MetRow(row, earlier, real_path, size)


def _repeated(row: Row) -> ConfigurationError:
    return ConfigurationError(
        f"{row.source_name} is there twice: an earlier row has the same key, VideoId or "
        "reference_id.",
        next_step="Give each row a key of its own, or remove one.",
    )


async def _each(
    rows: Sequence[MetRow], make: Callable[[MetRow], UploadItem]
) -> AsyncIterator[UploadItem]:
    for row in rows:
        yield make(row)
