"""Sizes, rates, durations and counts as people read them."""

from __future__ import annotations

__all__ = ["count", "duration", "rate", "size"]


def size(byte_count: float) -> str:
    """For example "1.5 GiB"."""
    value, unit = float(byte_count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


def rate(bytes_per_s: float) -> str:
    """For example "41.6 MiB/s"."""
    return f"{size(bytes_per_s)}/s"


def duration(seconds: float) -> str:
    """For example "12 ms", "12.3 s", "4 min 10 s", "3 h 20 min", "5 days"."""
    if 0 < seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def count(number: int, noun: str) -> str:
    """For example "1 part", "3 parts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
