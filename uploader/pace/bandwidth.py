"""Limits of bandwidth: their notation, and waiting until more bytes may be sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uploader.clock import Clock
from uploader.errors import ConfigurationError
from uploader.units import parse_size

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second, by the local time of day.

    Attributes:
        changes: (minute of the day, bytes per second or None for no limit), by minute.
            Before the first change of a day the last one of the day before holds.
    """

    changes: tuple[tuple[int, int | None], ...]

    @classmethod
    def constant(cls, bytes_per_s: int | None) -> Bandwidth:
        """The same all day."""
        return cls(((0, bytes_per_s),))

    def rate_at(self, local: datetime) -> int | None:
        """Bytes per second at that local time; None for no limit."""
        minute = local.hour * 60 + local.minute
        past = [rate for starts, rate in self.changes if starts <= minute]
        return past[-1] if past else self.changes[-1][1]


_TIME: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def parse_bandwidth(text: str) -> Bandwidth:
    """Read "10M", "off" or a timetable such as "08:00,10M 20:00,off".

    The units are those of sizes, as in rclone, with or without "/s". A number without a unit
    is refused, because rclone reads it as KiB and others read it as bytes.

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
    size = word.lower().removesuffix("/s")
    try:
        rate = 0 if size[-1:].isdigit() else parse_size(size)
    except ValueError:
        rate = 0
    if rate < 1:
        raise _unreadable(text)
    return rate


def _unreadable(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"Cannot parse {text!r} as a bandwidth.",
        next_step="Use a number of bytes per second such as 10M, or a timetable: "
        '"08:00,10M 20:00,off".',
    )


class RateLimiter:
    """Makes callers wait, in the order of their calls, until their bytes fit the bandwidth.

    Idle time does not count for a later burst. Mutable: when the next byte may be sent.
    """

    _SLICE_S: Final = 0.05
    """What one caller may send before the next one, in seconds of the limit. Too large is
    unfair, and lets as many connections burst at once; too small wakes up often."""

    _CREDIT_S: Final = 0.02  # makes up for a late wake-up, not for idle time
    _MIN_SLEEP_S: Final = 0.002  # shorter sleeps cost more than they are worth: they add up
    _MIN_SEND_SIZE: Final = 1024  # fewer bytes cost more in packets than they carry

    def __init__(self, clock: Clock, bandwidth: Bandwidth | None) -> None:
        self._clock = clock
        self._free_at = clock.elapsed_s()
        self._bandwidth = bandwidth

    def rate(self) -> int | None:
        """Bytes per second at this moment; None for no limit."""
        if self._bandwidth is None:
            return None
        return self._bandwidth.rate_at(self._clock.utc_now().astimezone())

    def lowest_rate(self) -> int | None:
        """The smallest limit at any time of the day; None without a limit."""
        rates = [rate for _, rate in self._bandwidth.changes if rate] if self._bandwidth else []
        return min(rates, default=None)

    def send_size(self, max_size: int) -> int:
        """How many bytes to send at once, at most `max_size`: few where the rate is low."""
        rate = self.rate()
        if rate is None:
            return max_size
        return min(max_size, max(self._MIN_SEND_SIZE, int(rate * self._SLICE_S)))

    async def spend(self, byte_count: int) -> None:
        """Wait until so many more bytes may be sent."""
        while byte_count > 0 and (rate := self.rate()) is not None:
            slice_size = min(byte_count, max(1, int(rate * self._SLICE_S)))
            await self._wait(slice_size / rate)
            byte_count -= slice_size

    async def _wait(self, seconds: float) -> None:
        now = self._clock.elapsed_s()
        self._free_at = max(self._free_at, now - self._CREDIT_S) + seconds
        if self._free_at - now > self._MIN_SLEEP_S:
            await self._clock.sleep(self._free_at - now)
