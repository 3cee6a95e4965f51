"""The progress display: a line every ten seconds in a log, bars on a terminal.

Both read a `Tracker` and show the same figures.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uploader import units
from uploader.cli.printing import err, printable
from uploader.tracker import TrackedUpload, Tracker

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_INTERVAL_S: Final = 10.0
_FRAME_S: Final = 0.25
_MAX_BARS: Final = 8
_NAME_WIDTH: Final = 32


@dataclass(frozen=True, slots=True)
class Total:
    """How far everything is: a line, and for a bar `done` of `of` (None if unknown)."""

    line: str
    done: int
    of: int | None


def progress_line(tracker: Tracker, upload: TrackedUpload | None, *notes: str) -> str:
    """How far one upload is, or all together (None): share, bytes, rate, remaining time."""
    one: TrackedUpload | Tracker = upload or tracker
    words = [units.size(one.done_bytes)]
    if one.size:
        words = [f"{100 * one.done_bytes // one.size} %", units.share(one.done_bytes, one.size)]
    words.append(units.rate(tracker.bytes_per_s(upload)))
    if (left_s := tracker.remaining_s(upload)) is not None:
        words.append(f"ETA {units.duration(left_s)}")
    return ", ".join(filter(None, [*words, *notes]))


async def sample_every_second(tracker: Tracker) -> None:
    """Keep the rates of a tracker current, until cancelled."""
    while True:
        tracker.sample()
        await asyncio.sleep(1)


async def show_progress(
    tracker: Tracker, total: Callable[[], Total], note: Callable[[TrackedUpload], str]
) -> None:
    """Show progress on standard error until cancelled; `note` adds to the line of an upload."""
    if sys.stderr.isatty():
        try:
            await _Bars(tracker, total, note).draw()
        except Exception as error:  # whatever is wrong with the terminal, uploads continue
            err(f"vodup: the progress display has failed ({type(error).__name__}).")
    while True:
        await asyncio.sleep(_LINE_INTERVAL_S)
        err(total().line)


class _Bars:
    """A bar for each of the uploads that run longest, and one for all. Mutable."""

    def __init__(
        self, tracker: Tracker, total: Callable[[], Total], note: Callable[[TrackedUpload], str]
    ) -> None:
        self._tracker, self._total, self._note = tracker, total, note
        self._progress = _new_progress()
        self._tasks: dict[int, TaskID] = {}
        self._total_task: TaskID | None = None

    async def draw(self) -> None:
        """Draw until cancelled."""
        with self._progress:
            while True:
                if not getattr(sys.stderr, "waiting_size", 0):  # or old frames would pile up
                    self._draw_uploads()
                    self._draw_total()
                    self._progress.refresh()
                await asyncio.sleep(_FRAME_S)

    def _draw_uploads(self) -> None:
        shown = {id(one): one for one in [*self._tracker.active.values()][:_MAX_BARS]}
        for ended in self._tasks.keys() - shown.keys():
            self._progress.remove_task(self._tasks.pop(ended))
        for identity, upload in shown.items():
            if identity not in self._tasks:
                self._tasks[identity] = self._progress.add_task(_shortened(upload.source), line="")
            line = progress_line(self._tracker, upload, self._note(upload))
            self._update(self._tasks[identity], Total(line, upload.done_bytes, upload.size or None))

    def _draw_total(self) -> None:
        """Of several uploads: a single one has its own bar."""
        if self._total_task is None and sum(self._tracker.started.values()) > 1:
            self._total_task = self._progress.add_task("total", line="")
        if self._total_task is not None:
            self._update(self._total_task, self._total())

    def _update(self, task: TaskID, now: Total) -> None:
        self._progress.update(task, total=now.of, completed=now.done, line=printable(now.line))


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # A width of 0 would show nothing.
    env = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"} or v.strip("0")}
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[line]}", markup=False),
        console=Console(file=sys.stderr, _environ=env),
        auto_refresh=False,
        transient=True,
        # Or what goes elsewhere would come out on this terminal instead.
        redirect_stdout=sys.stdout is sys.stderr,
    )


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
