"""Sizes, rates, durations and counts, as people read and write them.

Units of bytes are powers of 1024: "8M", "8MB" and "8MiB" are all 8,388,608 bytes.
"""

from __future__ import annotations

import re
from typing import Final

MIB: Final = 1024 * 1024

_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_SIZE_UNITS: Final = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": MIB * MIB}
_DURATION: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([smhdw]?)", re.IGNORECASE)
_DURATION_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def size(byte_count: float) -> str:
    """For example "1.5 GiB"."""
    value, unit = float(byte_count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def share(done_bytes: float, total_bytes: float) -> str:
    """For example "12.0 of 28.6 MiB", "900 KiB of 1.5 GiB"."""
    done, total = size(done_bytes), size(total_bytes)
    number, _, unit = done.partition(" ")
    return f"{number} of {total}" if total.endswith(f" {unit}") else f"{done} of {total}"


def rate(bytes_per_s: float) -> str:
    """For example "41.6 MiB/s"."""
    return f"{size(bytes_per_s)}/s"


def duration(seconds: float) -> str:
    """For example "12 ms", "2.3 s", "12 s", "4 min 10 s", "3 h 20 min", "5 days"."""
    if 0 < seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def count(number: int, noun: str) -> str:
    """For example "1 part", "3 parts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def parse_size(text: str) -> int:
    """Read "8MiB", "8M" or "8388608" as bytes.

    Raises:
        ValueError: the text is not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size")
    return int(float(found[1]) * _SIZE_UNITS[(found[2] or "").upper()])


def parse_duration_s(text: str) -> float:
    """Read "90", "15m", "12h" or "30d" as seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration")
    return float(found[1]) * _DURATION_UNITS[found[2].lower()]
