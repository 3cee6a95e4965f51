"""How progress looks: a line of a terminal per upload, cut to its width, or a line of a log.

On a terminal of 80 columns a line has a name, a bar, percent, bytes, rate and ETA. On a narrower
one the less important ones are left out, and the name is shortened.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from uploader import units
from uploader.tracker import Trouble

STALLED_S: Final = 2.0
"""Without progress for this long, a line says why. Shorter: every retry would be shown."""

_MAX_NAME: Final = 24
_MIN_NAME: Final = 6
_MIN_BAR: Final = 8
_MAX_BAR: Final = 28
_GAP: Final = "  "
_BAR, _DIM, _WARNING, _RESET = "\x1b[36m", "\x1b[2m", "\x1b[33m", "\x1b[0m"
_SYSTEM_REASON = re.compile(r".*\((.+)\)")


@dataclass(frozen=True, slots=True)
class Style:
    """What a terminal can show.

    Attributes:
        columns: its width.
        is_coloured: whether colours may be used.
        is_unicode: whether its encoding has more than ASCII.
    """

    columns: int = 80
    is_coloured: bool = False
    is_unicode: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """How far something is.

    Attributes:
        done, of: bytes or files; `of` is 0 while unknown.
        amount: the same for people: "12.0 of 28.6 MiB".
        bytes_per_s, left_s: 0 and None where there is nothing to say.
        is_waiting: all is sent, and the last answers are missing.
        notes: what else is worth saying, the most important first.
    """

    name: str = ""
    done: int
    of: int
    amount: str
    bytes_per_s: float = 0.0
    left_s: float | None = None
    is_waiting: bool = False
    notes: tuple[str, ...] = ()

    @property
    def percent(self) -> str:
        """For example "52 %"; "" while the total is unknown."""
        return f"{min(100, 100 * self.done // self.of)} %" if self.of else ""

    def log_line(self) -> str:
        """As a line of a log."""
        words = [self.percent, self.amount]
        words += [units.rate(self.bytes_per_s) if self.bytes_per_s else ""]
        words += ["" if self.left_s is None else f"ETA {units.duration(self.left_s)}"]
        return ", ".join(filter(None, [*words, *self.notes]))

    def line(self, style: Style, name_width: int) -> str:
        """As a line of a terminal, one column narrower than that."""
        name = fitted(self.name, name_width)
        first = [name] if name else []
        first += [f"{self.percent:>5}"] if self.of else [self.amount]
        room = style.columns - 1 - cells(_GAP.join(first))
        words: dict[int, str] = {}
        for place, word in sorted(self._words(), key=lambda each: each[0]):
            if word and len(_GAP) + cells(word) <= room:
                words[place] = word
                room -= len(_GAP) + cells(word)
        bar_width = min(_MAX_BAR, room - len(_GAP))
        if self.of and bar_width >= _MIN_BAR:
            first.insert(-1, self._bar(bar_width, style))
        return _GAP.join([*first, *(words[place] for place, _ in self._words() if place in words)])

    def _words(self) -> list[tuple[int, str]]:
        """Return what stands behind the percentage, each with its rank: 0 is left out last."""
        eta = "" if self.left_s is None else f"ETA {clock_time(self.left_s)}"
        note, *others = self.notes or ("",)
        return [
            (3, self.amount if self.of else ""),
            (1, units.rate(self.bytes_per_s) if self.bytes_per_s else ""),
            (0, "waiting for confirmation" if self.is_waiting else eta),
            (2, note),
            *enumerate(others, 4),
        ]

    def _bar(self, width: int, style: Style) -> str:
        full = min(width, width * self.done // self.of)
        done, rest = ("━" * full, "─" * (width - full))
        if not style.is_unicode:
            done, rest = "#" * full, "-" * (width - full)
        return f"{_BAR}{done}{_DIM}{rest}{_RESET}" if style.is_coloured else done + rest


def block(meters: Sequence[Gauge], problem: str, style: Style) -> list[str]:
    """Return the lines of a display: the meters, and below them why nothing moves."""
    widths = [cells(gauge.name) for gauge in meters]
    most = max(_MIN_NAME, min(_MAX_NAME, style.columns // 3))
    name_width = min(most, max(widths, default=0))
    lines = [gauge.line(style, name_width) for gauge in meters]
    if problem:
        colours = (_WARNING, _RESET) if style.is_coloured else ("", "")
        lines += [
            line.join(colours) for line in wrapped(problem, max(_MIN_NAME, style.columns - 1))
        ]
    return lines


def outage(trouble: Trouble, now_s: float) -> str:
    """What cannot be reached and why, since when, and when it is given up."""
    left_s = trouble.until_s - now_s
    end = f"gives up in {units.duration(left_s)}" if left_s > 1 else "last attempt"
    since = units.duration(round(now_s - trouble.since_s))
    where = f"{trouble.service or 'Service'} at {trouble.address}"
    return f"{where}: {short_reason(trouble)}, for {since}; {end}"


def short_reason(trouble: Trouble) -> str:
    """The reason without the address that stands before it anyway."""
    host = trouble.address.rpartition(":")[0] or trouble.address
    reason = trouble.reason.rstrip(".")
    for address in (trouble.address, host):
        reason = reason.rpartition(f"{address}: ")[2]
    system = _SYSTEM_REASON.fullmatch(reason)
    if reason.startswith("cannot connect (") and system:
        reason = system[1]
        return reason[:1].lower() + reason[1:]
    return reason


def clock_time(seconds: float) -> str:
    """For example "0:16", "12:05", "3:20:00", "5 days"."""
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- widths -----------------------------------------------------------------------------


def cells(text: str) -> int:
    """Columns that a text takes: Chinese characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(name: str, width: int) -> str:
    """A name in exactly so many columns; of a longer one its end, which differs more often."""
    if (missing := width - cells(name)) >= 0:
        return name + " " * missing
    kept, room = "", width - 1
    for character in reversed(name):
        room -= _width(character)
        if room < 0:
            break
        kept = character + kept
    return f"…{kept}" + " " * (width - 1 - cells(kept))


def wrapped(text: str, width: int) -> list[str]:
    """A sentence in lines of at most so many columns; longer words are broken."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cells(joined) <= width:
            lines[-1] = joined
            continue
        rest = word if lines[-1] else joined
        if not lines[-1]:
            lines.pop()
        while cells(rest) > width:
            lines.append(rest[:width])
            rest = rest[width:]
        lines.append(rest)
    return lines
