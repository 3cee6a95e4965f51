"""What is seen while uploads run: rows on a terminal, lines in a log, JSON for programs.

A `Board` knows how far every file is; a `View` shows it. Events only change numbers on
the board, and the view looks at them a few times a second: that keeps it cheap.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from uploader.cli import exits
from uploader.cli.options import Output
from uploader.cli.text import Printer, err, out, paragraph, printable
from uploader.errors import VodupError
from uploader.events import (
    CredentialsRenewed,
    Event,
    HookFailed,
    Listener,
    PartsAdopted,
    PartStored,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
    UploadFinished,
    UploadProgress,
    UploadRestarted,
    UploadResult,
    UploadStarted,
)
from uploader.units import count, duration, rate, size

__all__ = ["Board", "Row", "View", "listener", "make_view"]

_JSON_INTERVAL_S = 1.0
_PLAIN_INTERVAL_S = 10.0
_RICH_INTERVAL_S = 0.25
_MAX_ROWS = 8


@dataclass(slots=True)
class Row:
    """How far one file is. Mutable; written by events, read by views."""

    source: str
    size: int = 0
    done_bytes: int = 0
    found_bytes: int = 0
    acked_part_count: int = 0
    part_count: int = 0
    renewal_count: int = 0
    retry_count: int = 0
    video_id: str | None = None
    key: str = ""
    is_active: bool = False
    code: int | None = None
    has_failed_hook: bool = False

    def note(self, event: Event) -> None:
        """Take over what an event tells."""
        self.video_id = event.video_id or self.video_id
        self.key = event.key
        match event:
            case UploadStarted():
                self.is_active = True
                self.size, self.part_count = event.size, event.part_count
                self.done_bytes = self.found_bytes = event.done_bytes
                self.acked_part_count = event.resumed_part_count
            case UploadProgress():
                self.done_bytes, self.size = event.done_bytes, event.size
                self.acked_part_count = event.acked_part_count
                self.renewal_count, self.retry_count = event.renewal_count, event.retry_count
            case CredentialsRenewed():
                self.renewal_count = event.renewal_count
            case RequestRetried():
                self.retry_count += 1
            case HookFailed():
                self.has_failed_hook = True

    def end(self, code: int, *, size: int | None = None) -> None:
        """The file is done with; `size` is that of the object, if there is one."""
        self.is_active, self.code = False, code
        if size is not None:
            self.done_bytes = self.size = size


@dataclass(slots=True)
class Board:
    """All files of a run. Mutable."""

    rows: list[Row] = field(default_factory=list)

    def add(self, source: str) -> Row:
        """Begin to follow a file."""
        self.rows.append(Row(source))
        return self.rows[-1]

    @property
    def open_rows(self) -> list[Row]:
        """Files that have not ended."""
        return [row for row in self.rows if row.code is None]


class View(Protocol):
    """Shows a board."""

    def told(self, row: Row, event: Event) -> None:
        """An event has changed `row`."""

    def finished(self, row: Row, result: UploadResult) -> None:
        """The file is stored and verified."""

    def failed(self, row: Row, error: VodupError) -> None:
        """The file's upload ended without success."""

    def interrupted(self, row: Row, code: int, words: str) -> None:
        """The file's upload was stopped by a signal."""

    def say(self, words: str) -> None:
        """Something about the run as a whole."""

    async def watch(self, board: Board) -> None:
        """Show progress until cancelled."""


def make_view(output: Output) -> View:
    """Return the view for these flags and this terminal."""
    if output.json:
        return JsonLines(Printer(sys.stdout))
    if output.quiet:
        return OnlyIds()
    return RichRows() if sys.stderr.isatty() else PlainLines()


def listener(row: Row, view: View) -> Listener:
    """Return what keeps `row` and tells `view`."""

    def told(event: Event) -> None:
        row.note(event)
        view.told(row, event)

    return told


# --- words ----------------------------------------------------------------------------


def success(row: Row, result: UploadResult) -> str:
    """What happened, in a sentence."""
    what = f"video {result.video_id} ({size(result.size)}, CRC-64 {result.crc64})"
    if result.is_receipt:
        return f"{row.source} had been stored already as {what}; nothing was sent."
    notes = [f"{count(result.part_count, 'part')} in {duration(result.seconds)}"]
    if result.seconds > 0 and result.sent_bytes:
        notes.append(rate(result.sent_bytes / result.seconds))
        if result.congestion:
            notes[-1] += f" over {result.congestion}"
    if result.resumed_part_count:
        notes.append(f"{result.resumed_part_count} of them from an earlier run")
    if result.renewal_count:
        notes.append(f"credentials renewed {count(result.renewal_count, 'time')}")
    if result.retry_count:
        notes.append(f"{count(result.retry_count, 'request')} repeated")
    return (
        f"{row.source} is stored as {what}, verified by {result.verified_by}: {', '.join(notes)}."
    )


def beginning(row: Row, event: UploadStarted) -> str:
    """How an upload begins, in a sentence."""
    if not event.size:
        there = f"; {size(event.done_bytes)} of it are there" if event.is_resumed else ""
        return f"{row.source}: sending to video {event.video_id} as it comes{there}."
    if event.is_resumed:
        return (
            f"{row.source}: continuing video {event.video_id}, {event.resumed_part_count} of "
            f"{count(event.part_count, 'part')} ({size(event.done_bytes)} of {size(event.size)}) "
            "are there."
        )
    return (
        f"{row.source}: sending {size(event.size)} in {count(event.part_count, 'part')} "
        f"to video {event.video_id}."
    )


def incident(row: Row, event: Event) -> str | None:
    """What else people want to know, in a sentence; None for what they need not."""
    match event:
        case UploadStarted():
            return beginning(row, event)
        case UploadRestarted():
            return (
                f"{row.source}: {event.reason}; sending again from the beginning under the same "
                "VideoId."
            )
        case PartsAdopted():
            return (
                f"{row.source}: OSS had {count(event.part_count, 'more part')} than the "
                "checkpoint knew; proved and kept."
            )
        case HookFailed():
            return f"{row.source}: {event.message}"
        case _:
            return None


# --- JSON -----------------------------------------------------------------------------


class JsonLines:
    """One JSON object a line; the last one of each file tells how it ended.

    CRC-64s are decimal strings: many readers of JSON keep only 53 bits of a number.
    Mutable: when progress was last told.
    """

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._told_at: dict[int, float] = {}

    def told(self, row: Row, event: Event) -> None:
        """Print the event; progress at most once a second, and only of what has started."""
        if isinstance(event, UploadFinished | UploadFailed | UploadCancelled):
            return  # printed by `finished`, `failed`, `interrupted`, which know the exit code
        if isinstance(event, PartStored):
            return  # the progress counts them
        if isinstance(event, UploadProgress) and not self._is_due(row):
            return
        self._print(row, event.type, **asdict(event))

    def _is_due(self, row: Row) -> bool:
        if not row.is_active:
            return False
        now = time.monotonic()
        if now - self._told_at.get(id(row), float("-inf")) < _JSON_INTERVAL_S:
            return False
        self._told_at[id(row)] = now
        return True

    def finished(self, row: Row, result: UploadResult) -> None:
        """Print what OSS holds."""
        self._print(row, UploadFinished.type, **asdict(result))

    def failed(self, row: Row, error: VodupError) -> None:
        """Print what went wrong."""
        self._print(
            row,
            UploadFailed.type,
            video_id=error.video_id or row.video_id,
            error=type(error).__name__,
            message=error.message,
            code=error.code,
            request_id=error.request_id,
            resumable=error.is_resumable,
            next_step=error.next_step,
            exit_code=exits.exit_code(error),
        )

    def interrupted(self, row: Row, code: int, words: str) -> None:
        """Print that it was stopped."""
        self._print(
            row,
            UploadFailed.type,
            video_id=row.video_id,
            error="Interrupted",
            message=words,
            code="",
            request_id="",
            resumable=True,
            next_step="Run the same command again.",
            exit_code=code,
        )

    def _print(self, row: Row, type_: str, **fields: Any) -> None:
        line = {"type": type_, "at": datetime.now(UTC).isoformat(), **fields, "source": row.source}
        if "crc64" in line:
            line["crc64"] = str(line["crc64"])
        clean = {k: printable(v) if isinstance(v, str) else v for k, v in line.items()}
        self._printer.line(json.dumps(clean, ensure_ascii=False))

    def say(self, words: str) -> None:
        """Print for people."""
        err(words)

    async def watch(self, board: Board) -> None:
        """Events are enough."""


# --- for people -----------------------------------------------------------------------


class _Words:
    """The sentences all views for people share."""

    def told(self, row: Row, event: Event) -> None:
        """Say what is out of the ordinary."""
        if (words := incident(row, event)) is not None:
            self.say(words)

    def say(self, words: str) -> None:
        """Print on stderr."""
        err(words)

    def finished(self, row: Row, result: UploadResult) -> None:
        """Say where it is stored."""
        out(success(row, result))

    def failed(self, row: Row, error: VodupError) -> None:
        """Say what failed and what to do."""
        err(paragraph(error, about=row.source))

    def interrupted(self, row: Row, code: int, words: str) -> None:
        """Say how far it came."""
        err(f"vodup: {words}")


class OnlyIds(_Words):
    """The VideoId on stdout and errors on stderr, nothing else."""

    def say(self, words: str) -> None:
        """Keep quiet."""

    def finished(self, row: Row, result: UploadResult) -> None:
        """Print the VideoId."""
        out(result.video_id)

    async def watch(self, board: Board) -> None:
        """Nothing to show."""


class PlainLines(_Words):
    """A line every ten seconds, for logs."""

    async def watch(self, board: Board) -> None:
        """Print how far all files together are."""
        seen_at, seen_bytes = time.monotonic(), 0
        while True:
            await asyncio.sleep(_PLAIN_INTERVAL_S)
            now = time.monotonic()
            total = _total(board)
            err(_summary(board, total, (total.sent_bytes - seen_bytes) / (now - seen_at)))
            seen_at, seen_bytes = now, total.sent_bytes


@dataclass(frozen=True, slots=True)
class _Total:
    """All files together; `sent_bytes` is without what was there before."""

    size: int
    done_bytes: int
    sent_bytes: int
    ended_count: int
    renewal_count: int


def _total(board: Board) -> _Total:
    rows = board.rows
    return _Total(
        size=sum(row.size for row in rows),
        done_bytes=sum(row.done_bytes for row in rows),
        sent_bytes=sum(row.done_bytes - row.found_bytes for row in rows),
        ended_count=len(rows) - len(board.open_rows),
        renewal_count=sum(row.renewal_count for row in rows),
    )


def _summary(board: Board, total: _Total, bytes_per_s: float) -> str:
    words = [size(total.done_bytes)]
    if total.size:
        words[0] += f" of {size(total.size)}"
        words.append(f"{100 * total.done_bytes // total.size} %")
    words.append(rate(max(0.0, bytes_per_s)))
    if bytes_per_s > 0 and total.size:
        words.append(f"{duration((total.size - total.done_bytes) / bytes_per_s)} left")
    if len(board.rows) > 1:
        words.append(f"{total.ended_count} of {count(len(board.rows), 'file')} ended")
    if total.renewal_count:
        words.append(f"credentials renewed {count(total.renewal_count, 'time')}")
    return ", ".join(words)


class RichRows(_Words):
    """A row for each file under way and one for all, four times a second. Mutable."""

    def __init__(self) -> None:
        self._tasks: dict[int, Any] = {}
        self._total: Any = None
        self._progress = self._new_progress()

    @staticmethod
    def _new_progress() -> Any:  # noqa: ANN401 - rich is loaded only here
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Speed(ProgressColumn):
            """In the units of the sizes; rich's own column counts in powers of 1000."""

            def render(self, task: Task) -> Text:
                return Text(rate(task.finished_speed or task.speed or 0))

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            Speed(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[notes]}", markup=False, style="dim"),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            # Or what goes to a pipe would come out on the terminal instead.
            redirect_stdout=sys.stdout.isatty(),
        )

    async def watch(self, board: Board) -> None:
        """Draw until cancelled."""
        with self._progress:
            while True:
                self._draw(board)
                await asyncio.sleep(_RICH_INTERVAL_S)

    def _draw(self, board: Board) -> None:
        for row in board.rows:
            self._draw_row(row)
        if len(board.rows) > 1:
            self._draw_total(board)
        self._progress.refresh()

    def _draw_row(self, row: Row) -> None:
        task = self._tasks.get(id(row))
        if task is None and row.is_active and len(self._tasks) < _MAX_ROWS:
            # Made with what was there before, so that it does not count as speed.
            task = self._tasks[id(row)] = self._progress.add_task(
                _shortened(row.source), total=row.size or None, completed=row.done_bytes, notes=""
            )
        if task is not None and not row.is_active:
            self._progress.remove_task(self._tasks.pop(id(row)))
        elif task is not None:
            self._progress.update(
                task, total=row.size or None, completed=row.done_bytes, notes=_notes(row)
            )

    def _draw_total(self, board: Board) -> None:
        total = _total(board)
        notes = f"{total.ended_count} of {len(board.rows)} files"
        if self._total is None:
            self._total = self._progress.add_task("total", total=None, notes=notes)
        self._progress.update(
            self._total, total=total.size or None, completed=total.done_bytes, notes=notes
        )


def _notes(row: Row) -> str:
    words = [f"{row.acked_part_count}/{count(row.part_count, 'part')}"]
    if not row.part_count:
        words = [count(row.acked_part_count, "part")]
    if row.renewal_count:
        words.append(count(row.renewal_count, "renewal"))
    if row.retry_count:
        words.append(f"{row.retry_count} repeated")
    return ", ".join(words)


def _shortened(source: str, most: int = 32) -> str:
    source = printable(source)
    return source if len(source) <= most else f"…{source[1 - most :]}"
