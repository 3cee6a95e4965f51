"""Bandwidth: bytes a second by the local time of day, and the bucket that keeps to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uploader.clock import Clock
from uploader.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["SLICE_S", "Bandwidth", "Bucket", "parse_bandwidth"]


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second, by the local time of day.

    Attributes:
        changes: (minute of the day, bytes a second or None for no limit), by minute.
            Before the first change of a day the last one of the day before holds.
    """

    changes: tuple[tuple[int, int | None], ...]

    @classmethod
    def constant(cls, bytes_per_s: int | None) -> Bandwidth:
        """The same all day."""
        return cls(((0, bytes_per_s),))

    def rate_at(self, local: datetime) -> int | None:
        """Bytes a second at that local time; None when there is no limit."""
        minute = local.hour * 60 + local.minute
        past = [rate for starts, rate in self.changes if starts <= minute]
        return past[-1] if past else self.changes[-1][1]


_RATE = re.compile(r"(\d+(?:\.\d+)?)([BKMG])", re.IGNORECASE)
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_UNITS: Final = {"B": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_BANDWIDTH_HELP: Final = 'Write for example "10M" or "08:00,10M 20:00,off" (bytes a second).'


def parse_bandwidth(text: str) -> Bandwidth:
    """Read "10M", "off" or a timetable such as "08:00,10M 20:00,off".

    B, K, M and G are bytes a second in powers of 1024, as in rclone. A number without
    a unit is refused, because rclone reads it as KiB and others as bytes.

    Raises:
        ConfigurationError: it is neither.
    """
    words = text.split()
    if len(words) == 1 and "," not in words[0]:
        return Bandwidth.constant(_parse_rate(words[0], text))
    changes = sorted((_parse_change(word, text) for word in words), key=lambda change: change[0])
    if not changes or len({minute for minute, _ in changes}) < len(changes):
        raise _unreadable(text)
    return Bandwidth(tuple(changes))


def _parse_change(word: str, text: str) -> tuple[int, int | None]:
    when, comma, rate = word.partition(",")
    match = _TIME.fullmatch(when)
    if not comma or match is None:
        raise _unreadable(text)
    return int(match[1]) * 60 + int(match[2]), _parse_rate(rate, text)


def _parse_rate(word: str, text: str) -> int | None:
    if word.lower() == "off":
        return None
    match = _RATE.fullmatch(word)
    rate = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if rate < 1:
        raise _unreadable(text)
    return rate


def _unreadable(text: str) -> ConfigurationError:
    return ConfigurationError(f"{text!r} is not a bandwidth.", next_step=_BANDWIDTH_HELP)


SLICE_S: Final = 0.05
"""What goes out in one turn under a limit, in seconds of it. Larger is unfair, and as many
connections may burst at once; smaller wakes up often."""


class Bucket:
    """Deals out bytes in the order of asking, without saving up for a burst.

    Mutable: when the line is free again.
    """

    _CREDIT_S: Final = 0.02  # a late wake-up may be made up for, idleness may not
    _NAP_S: Final = 0.002  # shorter waits cost more than they are worth: they add up instead

    def __init__(self, clock: Clock, bandwidth: Bandwidth | None) -> None:
        self._clock = clock
        self._free_at = clock.elapsed_s()
        self.bandwidth = bandwidth

    def rate(self) -> int | None:
        """Bytes a second right now."""
        if self.bandwidth is None:
            return None
        return self.bandwidth.rate_at(self._clock.utc_now().astimezone())

    def lowest_rate(self) -> int | None:
        """The least bytes a second at any time of the day."""
        rates = [rate for _, rate in self.bandwidth.changes if rate] if self.bandwidth else []
        return min(rates, default=None)

    async def spend(self, byte_count: int) -> None:
        """Wait until so many more bytes may go out."""
        while byte_count > 0 and (rate := self.rate()) is not None:
            piece = min(byte_count, max(1, int(rate * SLICE_S)))
            await self._take(piece / rate)
            byte_count -= piece

    async def _take(self, seconds: float) -> None:
        now = self._clock.elapsed_s()
        self._free_at = max(self._free_at, now - self._CREDIT_S) + seconds
        if self._free_at - now > self._NAP_S:
            await self._clock.sleep(self._free_at - now)
