"""The progress display: a line every ten seconds in a log, bars on a terminal.

Both show the same figures. `meters.py` has how they look, `printing.Output` keeps the bars below
everything else that is printed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from uploader import units
from uploader.cli import meters
from uploader.cli.meters import STALLED_S, Gauge, Style
from uploader.cli.printing import Output, Outputs, err, is_coloured, printable
from uploader.tracker import TrackedUpload, Tracker

_LINE_INTERVAL_S: Final = 10.0
_FRAME_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown.

    Attributes:
        tracker: follows the uploads.
        total: how far everything is.
        uploads: what has a line of its own on a terminal, above the total.
        idle: what is waited for while no upload has started: "VOD (vod.example.com)".
    """

    tracker: Tracker
    total: Callable[[], Gauge]
    uploads: Callable[[], Sequence[Gauge]] = tuple
    idle: Callable[[], str] = str

    def problem(self) -> str:
        """Why nothing moves; "" while something does, or nothing is known yet."""
        tracker = self.tracker
        if tracker.stalled_s < STALLED_S:
            return ""
        if tracker.trouble is not None:
            return meters.outage(tracker.trouble, tracker.clock())
        waiting_for = self.idle()
        stalled = units.duration(round(tracker.stalled_s))
        return f"Waiting for {waiting_for}, for {stalled}" if waiting_for else ""

    def block(self, style: Style) -> list[str]:
        """Return the lines for a terminal."""
        return meters.block([*self.uploads(), self.total()], printable(self.problem()), style)


def upload_meter(tracker: Tracker, upload: TrackedUpload, name: str = "", size: int = 0) -> Gauge:
    """How far one upload is; `size` where it has not started."""
    size = upload.size or size
    is_waiting = bool(size) and upload.done_bytes >= size
    is_moving = not is_waiting and tracker.stalled_s < STALLED_S
    notes = []
    if upload.resumed_bytes and upload.size:
        notes = [f"resuming, {100 * upload.resumed_bytes // upload.size} % already uploaded"]
    return Gauge(
        name=printable(name),
        done=upload.done_bytes,
        of=size,
        amount=units.share(upload.done_bytes, size) if size else units.size(upload.done_bytes),
        bytes_per_s=tracker.bytes_per_s(upload) if is_moving else 0.0,
        left_s=tracker.remaining_s(upload) if is_moving else None,
        is_waiting=is_waiting,
        notes=tuple(notes),
    )


async def sample_every_second(tracker: Tracker) -> None:
    """Keep the rates of a tracker current, until cancelled."""
    while True:
        tracker.sample()
        await asyncio.sleep(1)


def bars_of(stream: object) -> Output | None:
    """Return where bars can be drawn: on a terminal that can move its cursor."""
    is_able = Outputs.has_progress and os.environ.get("TERM") != "dumb"
    return stream if is_able and isinstance(stream, Output) and stream.isatty() else None


async def show_progress(view: Shown) -> None:
    """Show progress on standard error until cancelled, or nothing with --no-progress."""
    if not Outputs.has_progress:
        return
    if (output := bars_of(sys.stderr)) is not None:
        try:
            await _draw(view, output)
        except Exception as error:  # whatever is wrong with the terminal, uploads continue
            err(f"vodup: the progress display has failed ({type(error).__name__}).")
    await _log(view)


async def _draw(view: Shown, output: Output) -> None:
    try:
        while True:
            if not output.waiting_size:  # or old frames would pile up
                style = Style(output.columns, is_coloured(output), output.can_write("━"))
                output.show(view.block(style))
            await asyncio.sleep(_FRAME_S)
    finally:
        output.show(())


async def _log(view: Shown) -> None:
    """Write a line every ten seconds, and one when an outage begins and ends."""
    since_s, problem = 0.0, ""
    while True:
        await asyncio.sleep(1)
        former, problem = problem, view.problem()
        if problem and not former:
            err(f"vodup: {problem}.")
        elif former and not problem:
            err("vodup: the upload continues.")
        since_s += 1
        if since_s >= _LINE_INTERVAL_S:
            since_s = 0.0
            err(problem or view.total().log_line())
