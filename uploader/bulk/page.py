"""The report of a batch as one HTML file: no script, no network, everything escaped."""

from __future__ import annotations

import heapq
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import Any, Final

from uploader.errors import StateUnavailable
from uploader.units import duration, rate, size

from .ledger import Record
from .tally import Sample, Tally

__all__ = ["STYLE", "bars", "line", "rates", "write_page"]

_MAX_FAILURES: Final = 500
_SLOWEST: Final = 10
_WIDTH: Final = 640
_HEIGHT: Final = 160

STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.75rem;margin:0}
dl div{background:#f4f6f8;border-radius:.4rem;padding:.6rem .8rem}
dt{color:#57606a;font-size:.85rem}dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;
border-bottom:1px solid #d8dee4;vertical-align:top;overflow-wrap:anywhere}
svg{width:100%;height:auto;background:#f4f6f8;border-radius:.4rem}
svg text{font:11px system-ui,sans-serif;fill:#57606a}.bad{color:#b42318}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}
dl div,svg{background:#161b22}dt,svg text{color:#9198a1;fill:#9198a1}td,th{border-color:#30363d}
.bad{color:#ff7b72}}
"""


@dataclass
class _Seen:
    """What the ledger's records come to. Mutable while they are read."""

    done_count: int = 0
    failed_count: int = 0
    byte_count: int = 0
    renewal_count: int = 0
    retry_count: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    verified_by: Counter[str] = field(default_factory=Counter)
    failures: list[Record] = field(default_factory=list)
    slowest: list[tuple[float, int, Record]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if record["status"] == "done":
            self._add_done(record)
            return
        self.failed_count += 1
        self.kinds[str(record.get("error"))] += 1
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append(record)

    def _add_done(self, record: Record) -> None:
        self.done_count += 1
        byte_count, seconds = _number(record, "size"), _number(record, "seconds")
        self.byte_count += int(byte_count)
        self.renewal_count += int(_number(record, "renewal_count"))
        self.retry_count += int(_number(record, "retry_count"))
        self.sizes[_bin(byte_count, 2)] += 1
        self.durations[_bin(seconds * 1000, 2)] += 1
        self.verified_by[str(record.get("verified_by"))] += 1
        entry = (seconds, self.done_count, record)  # the number: records cannot be compared
        push = heapq.heappush if len(self.slowest) < _SLOWEST else heapq.heappushpop
        push(self.slowest, entry)


def _number(record: Record, name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _bin(value: float, base: int) -> int:
    return math.floor(math.log(value, base)) if value >= 1 else 0


def write_page(path: str | os.PathLike[str], tally: Tally, records: Iterable[Record]) -> None:
    """Write the report; `records` are the ledger's, those of earlier runs among them.

    Raises:
        StateUnavailable: it cannot be written.
    """
    seen = _Seen()
    for record in records:
        seen.add(record)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        # A new one is its owner's, as the ledger is; of an old one the owner has decided.
        handle = os.open(path, flags, 0o600)
        with open(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(page(tally, seen))
    except OSError as error:
        raise StateUnavailable(f"{path} cannot be written: {error.strerror}.") from error


def page(tally: Tally, seen: _Seen) -> str:
    """The whole document."""
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>vodup batch</title>',
            '<meta name="viewport" content="width=device-width">',
            # Even if something slipped through: nothing runs, nothing is fetched.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<style>{STYLE}</style></head><body>",
            f"<h1>Batch of {tally.read_count:,} rows</h1><p>Ended {escape(now)}.</p>",
            _stop(tally),
            _totals(tally, seen),
            _plots(tally, seen),
            _failures(seen),
            _slowest(seen),
            "</body></html>",
        ]
    )


def _stop(tally: Tally) -> str:
    if tally.stopped is None:
        return ""
    return f'<p class="bad">Ended early: {escape(tally.stopped)}. Run it again to go on.</p>'


def _totals(tally: Tally, seen: _Seen) -> str:
    figures = [
        ("stored and verified", f"{seen.done_count:,}"),
        ("failed", f"{seen.failed_count:,}"),
        ("stored in this run", f"{tally.done_count - tally.receipt_count:,}"),
        ("bytes stored", size(seen.byte_count)),
        ("sent in this run", size(tally.sent_bytes)),
        ("this run took", duration(tally.seconds)),
        ("mean rate", rate(tally.sent_bytes / max(tally.seconds, 0.001))),
        ("credential renewals", f"{seen.renewal_count:,}"),
        ("requests repeated", f"{max(seen.retry_count, tally.retry_count):,}"),
        ("verified by", ", ".join(f"{k} {n:,}" for k, n in seen.verified_by.most_common()) or "-"),
    ]
    cells = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in figures)
    return f"<h2>Totals</h2><dl>{''.join(cells)}</dl>"


def _plots(tally: Tally, seen: _Seen) -> str:
    samples = tally.samples
    sent = rates(samples, lambda sample: sample.sent_bytes)
    ended = rates(samples, lambda sample: sample.ended_count)
    pieces = [
        ("Bytes a second", line(sent, rate)),
        ("Rows a second", line(ended, lambda v: f"{v:,.1f}")),
        ("Sizes", bars(seen.sizes, lambda power: size(2**power))),
        ("Durations", bars(seen.durations, lambda power: duration(2**power / 1000))),
    ]
    return "".join(f"<h2>{escape(title)}</h2>{plot}" for title, plot in pieces)


def rates(samples: Sequence[Sample], figure: Callable[[Sample], int]) -> list[tuple[float, float]]:
    """A figure a second, over time.

    The last sample may follow its predecessor at once: what happened in between is no rate.
    """
    shortest_s = (samples[-1].at_s - samples[0].at_s) / len(samples) / 2 if samples else 0.0
    points = []
    former = samples[0] if samples else None
    for sample in samples[1:]:
        if former is None or (seconds := sample.at_s - former.at_s) <= shortest_s:
            continue
        points.append((sample.at_s, max(0.0, (figure(sample) - figure(former)) / seconds)))
        former = sample
    return points


def line(points: Sequence[tuple[float, float]], label: Callable[[float], str]) -> str:
    """A curve over time, as SVG."""
    if len(points) < 2:
        return "<p>Too short to plot.</p>"
    begin, end = points[0][0], points[-1][0]
    most = max(value for _, value in points) or 1.0
    x_scale, y_scale = (_WIDTH - 90) / max(end - begin, 1e-9), (_HEIGHT - 40) / most
    path = " ".join(
        f"{80 + (at - begin) * x_scale:.1f},{_HEIGHT - 25 - value * y_scale:.1f}"
        for at, value in points
    )
    return _svg(
        f'<polyline points="{path}" fill="none" stroke="#0969da" stroke-width="1.5"/>'
        + _text(4, 20, label(most))
        + _text(4, _HEIGHT - 25, label(0))
        + _text(80, _HEIGHT - 8, duration(begin))
        + _text(_WIDTH - 60, _HEIGHT - 8, duration(end))
    )


def bars(counts: Counter[int], label: Callable[[int], str]) -> str:
    """Counts by powers of two, as SVG."""
    if not counts:
        return "<p>Nothing to plot.</p>"
    first, last = min(counts), max(counts)
    width = min(60.0, (_WIDTH - 20) / (last - first + 1))
    most = max(counts.values())
    pieces = []
    for power in range(first, last + 1):
        height = (_HEIGHT - 55) * counts[power] / most
        x = 10 + (power - first) * width
        pieces.append(
            f'<rect x="{x + 1:.1f}" y="{_HEIGHT - 25 - height:.1f}" '
            f'width="{max(1.0, width - 2):.1f}" height="{height:.1f}" fill="#0969da">'
            f"<title>from {escape(label(power))}: {counts[power]:,}</title></rect>"
        )
        if (power - first) % max(1, round(70 / width)) == 0:
            pieces.append(_text(x, _HEIGHT - 8, label(power)))
    return _svg("".join(pieces) + _text(10, 15, f"at most {most:,}"))


def _svg(inside: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{inside}</svg>'


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _failures(seen: _Seen) -> str:
    if not seen.failed_count:
        return "<h2>Failures</h2><p>None.</p>"
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in seen.kinds.most_common())
    rows = "".join(_failure(record) for record in seen.failures)
    hidden = seen.failed_count - len(seen.failures)
    more = f"<p>And {hidden:,} more; the ledger has them all.</p>" if hidden else ""
    head = "<tr><th>row</th><th>file</th><th>what happened</th><th>next</th></tr>"
    return f"<h2>Failures</h2><p>{escape(kinds)}</p><table>{head}{rows}</table>{more}"


def _failure(record: Record) -> str:
    what = f"{record.get('error')}: {record.get('message')}"
    if record.get("request_id"):
        what += f" (request {record['request_id']})"
    place = f"{os.path.basename(str(record.get('manifest')))}:{record.get('row')}"
    return _row(place, record.get("path", ""), what, record.get("next_step", ""))


def _slowest(seen: _Seen) -> str:
    if not seen.slowest:
        return ""
    head = "<tr><th>file</th><th>VideoId</th><th>size</th><th>time</th><th>renewals</th></tr>"
    rows = "".join(
        _row(
            record.get("path", ""),
            record.get("video_id", ""),
            size(_number(record, "size")),
            duration(seconds),
            record.get("renewal_count", 0),
        )
        for seconds, _, record in sorted(seen.slowest, key=lambda e: (-e[0], e[1]))
    )
    return f"<h2>Slowest</h2><table>{head}{rows}</table>"


def _row(*cells: Any) -> str:
    return f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"
