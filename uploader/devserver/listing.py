"""One page of ListParts, correct or as the faults of the request require."""

from __future__ import annotations

from dataclasses import dataclass

from .exchange import Exchange
from .storage import Part


@dataclass(frozen=True, slots=True)
class PartPage:
    """The parts of one page, and the marker of the next."""

    parts: tuple[Part, ...]
    next_marker: int
    is_truncated: bool


def page_of_parts(exchange: Exchange, parts: tuple[Part, ...], marker: int, limit: int) -> PartPage:
    """The page after ``marker`` with at most ``limit`` parts."""
    if exchange.fault("list_repeat_page"):
        marker = 0
    page = _honest_page(_visible(exchange, parts), marker, _limit(exchange, limit))
    if exchange.fault("list_stuck_marker"):
        return PartPage(page.parts, marker, is_truncated=True)
    return page


def _honest_page(parts: tuple[Part, ...], marker: int, limit: int) -> PartPage:
    later = tuple(part for part in parts if part.part_number > marker)
    shown = later[:limit]
    next_marker = shown[-1].part_number if shown else marker
    return PartPage(shown, next_marker, len(later) > limit)


def _visible(exchange: Exchange, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    lag = exchange.fault("list_lag")
    if lag is None:
        return parts
    hidden_count = int(lag.value or 1)
    newest = sorted(parts, key=lambda part: part.modified_at)[-hidden_count:]
    hidden = {part.part_number for part in newest}
    return tuple(part for part in parts if part.part_number not in hidden)


def _limit(exchange: Exchange, limit: int) -> int:
    page_size = exchange.fault("list_page_size")
    return limit if page_size is None else min(limit, int(page_size.value or 1))
