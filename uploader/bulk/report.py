"""The report of a batch as one HTML file: no script, no network, everything escaped.

The live page (`dashboard.py`) is made of the same pieces.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Final

from uploader.errors import StateUnavailable
from uploader.private_files import replace_file
from uploader.units import duration, rate, size

from .ledger import Record
from .progress import BatchProgress, Sample
from .rows import shown_path

_MAX_FAILURES: Final = 500
_SLOWEST: Final = 10
_WIDTH: Final = 640
_HEIGHT: Final = 160

# Even markup that was not escaped could run and fetch nothing.
_NO_SCRIPTS: Final = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)

_GENERATOR: Final = '<meta name="generator" content="vodup">'

_STYLE: Final = files(__package__).joinpath("page.css").read_text()


@dataclass
class _Summary:
    """Counts over the ledger's records. Mutable while they are read.

    Attributes:
        sizes, durations: how many by power of two, of bytes and of milliseconds.
        slowest: with the number of the record in between, for records cannot be compared.
    """

    done_count: int = 0
    failed_count: int = 0
    byte_count: int = 0
    renewal_count: int = 0
    retry_count: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    verified_by: Counter[str] = field(default_factory=Counter)
    failures: list[Record] = field(default_factory=list)
    slowest: list[tuple[float, int, Record]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        if record["status"] == "done":
            self._add_done(record)
            return
        self.failed_count += 1
        self.errors[str(record.get("error"))] += 1
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append(record)

    def _add_done(self, record: Record) -> None:
        self.done_count += 1
        byte_count, seconds = int(_number(record, "size")), _number(record, "seconds")
        self.byte_count += byte_count
        self.renewal_count += int(_number(record, "renewal_count"))
        self.retry_count += int(_number(record, "retry_count"))
        self.sizes[max(0, byte_count.bit_length() - 1)] += 1
        self.durations[max(0, int(seconds * 1000).bit_length() - 1)] += 1
        self.verified_by[str(record.get("verified_by"))] += 1
        push = heapq.heappush if len(self.slowest) < _SLOWEST else heapq.heappushpop
        push(self.slowest, (seconds, self.done_count, record))


def _number(record: Record, name: str) -> float:
    value = record.get(name)
    return value if isinstance(value, int | float) else 0


def write_report(
    path: str | os.PathLike[str], progress: BatchProgress, records: Iterable[Record]
) -> None:
    """Write the report; `records` are the ledger's, including those of earlier runs.

    Raises:
        StateUnavailable: it cannot be written.
    """
    summary = _Summary()
    for record in records:
        summary.add(record)
    page = _page(progress, summary).encode(errors="replace")
    try:
        os.close(replace_file(Path(os.path.abspath(path)), [page]))
    except OSError as error:
        raise StateUnavailable(f"{path} cannot be written: {error.strerror}.") from error


def is_report(file: IO[bytes]) -> bool:
    """Whether vodup wrote it."""
    return _GENERATOR.encode() in (head := file.read(1024)) or not head


def _page(progress: BatchProgress, summary: _Summary) -> str:
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    warning = ""
    if progress.stopped is not None:
        reason = f"Stopped early: {progress.stopped}. Run the same command again to continue."
        warning = f'<p class="bad">{escape(reason)}</p>'
    return html_page(
        "vodup batch",
        f"<h1>Batch of {progress.read_count:,} rows</h1><p>Ended {escape(now)}.</p>{warning}",
        f"<h2>Totals</h2>{html_figures(_totals(progress, summary))}",
        _plots(progress.samples, summary),
        _failures(summary),
        _slowest(summary),
        head=_NO_SCRIPTS,
    )


def _totals(progress: BatchProgress, summary: _Summary) -> list[tuple[str, str]]:
    tracker, proofs = progress.tracker, summary.verified_by.most_common()
    return [
        ("uploaded and verified", f"{summary.done_count:,}"),
        ("failed", f"{summary.failed_count:,}"),
        ("uploaded in this run", f"{progress.done_count - progress.earlier_count:,}"),
        ("bytes stored", size(summary.byte_count)),
        ("sent in this run", size(tracker.sent_bytes)),
        ("this run took", duration(tracker.seconds)),
        ("mean throughput", rate(tracker.sent_bytes / max(tracker.seconds, 0.001))),
        ("credential renewals", f"{summary.renewal_count:,}"),
        ("requests retried", f"{max(summary.retry_count, tracker.retry_count):,}"),
        ("verified by", ", ".join(f"{proof} {count:,}" for proof, count in proofs) or "-"),
    ]


def _failures(summary: _Summary) -> str:
    if not summary.failed_count:
        return "<h2>Failures</h2><p>None.</p>"
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in summary.errors.most_common())
    hidden = summary.failed_count - len(summary.failures)
    more = f"<p>{hidden:,} more failures are in the ledger.</p>" if hidden else ""
    table = html_table(("row", "file", "error", "next step"), map(_failure, summary.failures))
    return f"<h2>Failures</h2><p>{escape(kinds)}</p>{table}{more}"


def _failure(record: Record) -> tuple[Any, ...]:
    error = f"{record.get('error')}: {record.get('message')}"
    if record.get("request_id"):
        error += f" (request {record['request_id']})"
    place = f"{os.path.basename(str(record.get('manifest')))}:{record.get('row')}"
    return place, _file(record), error, record.get("next_step", "")


def _slowest(summary: _Summary) -> str:
    if not summary.slowest:
        return ""
    rows = (
        (
            _file(record),
            record.get("video_id", ""),
            size(_number(record, "size")),
            duration(seconds),
            record.get("renewal_count", 0),
        )
        for seconds, _, record in sorted(summary.slowest, key=lambda e: (-e[0], e[1]))
    )
    return f"<h2>Slowest</h2>{html_table(('file', 'VideoId', 'size', 'time', 'renewals'), rows)}"


def _file(record: Record) -> str:
    return shown_path(str(record.get("path", "")))


# --- HTML -----------------------------------------------------------------------------


def html_page(title: str, *pieces: str, head: str = "") -> str:
    """Return a document; `pieces` and `head` are HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{_GENERATOR}{head}'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main>{''.join(pieces)}</main></body></html>\n"
    )


def html_figures(figures: Iterable[tuple[str, str]]) -> str:
    """Return names and values, escaped."""
    cells = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in figures)
    return f"<dl>{''.join(cells)}</dl>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table, escaped. Narrow windows show a row as lines of "name: value"."""
    names = [escape(name, quote=True) for name in head]
    cells = "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = (f"<tr>{''.join(map(_cell, names, row))}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _cell(name: str, value: object) -> str:
    return f'<td data-name="{name}">{escape(str(value))}</td>'


# --- plots ----------------------------------------------------------------------------


def _plots(samples: Sequence[Sample], summary: _Summary) -> str:
    sent = rates(samples, lambda sample: sample.sent_bytes)
    ended = rates(samples, lambda sample: sample.ended_count)
    pieces = [
        svg_line("Throughput", sent, rate),
        svg_line("Files per second", ended, lambda value: f"{value:,.1f}"),
        _bars("Sizes", summary.sizes, lambda power: size(2**power)),
        _bars("Durations", summary.durations, lambda power: duration(2**power / 1000)),
    ]
    return "".join(pieces)


def rates(samples: Sequence[Sample], figure: Callable[[Sample], int]) -> list[tuple[float, float]]:
    """Return a figure per second over time, as (seconds, rate).

    The last sample may directly follow the one before it; what happened in between is skipped.
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


def svg_line(
    title: str, points: Sequence[tuple[float, float]], label: Callable[[float], str]
) -> str:
    """Return a heading and a curve over time, as SVG."""
    if len(points) < 2:
        return f"<h2>{escape(title)}</h2><p>Too short to plot.</p>"
    begin, end = points[0][0], points[-1][0]
    highest = max(value for _, value in points) or 1.0
    x_scale, y_scale = (_WIDTH - 90) / max(end - begin, 1e-9), (_HEIGHT - 40) / highest
    path = " ".join(
        f"{80 + (at - begin) * x_scale:.1f},{_HEIGHT - 25 - value * y_scale:.1f}"
        for at, value in points
    )
    return _svg(
        title,
        f"at most {label(highest)}",
        f'<polyline points="{path}" fill="none" stroke="#0969da" stroke-width="1.5"/>'
        + _text(4, 20, label(highest))
        + _text(4, _HEIGHT - 25, label(0))
        + _text(80, _HEIGHT - 8, duration(begin))
        + _text(_WIDTH - 60, _HEIGHT - 8, duration(end)),
    )


def _bars(title: str, counts: Counter[int], label: Callable[[int], str]) -> str:
    """A heading and counts by power of two, as SVG."""
    if not counts:
        return f"<h2>{escape(title)}</h2><p>Nothing to plot.</p>"
    first, last = min(counts), max(counts)
    width = min(60.0, (_WIDTH - 20) / (last - first + 1))
    highest = max(counts.values())
    pieces = []
    for power in range(first, last + 1):
        height = (_HEIGHT - 55) * counts[power] / highest
        x = 10 + (power - first) * width
        pieces.append(
            f'<rect x="{x + 1:.1f}" y="{_HEIGHT - 25 - height:.1f}" '
            f'width="{max(1.0, width - 2):.1f}" height="{height:.1f}" fill="#0969da">'
            f"<title>from {escape(label(power))}: {counts[power]:,}</title></rect>"
        )
        if (power - first) % max(1, round(70 / width)) == 0:
            pieces.append(_text(x, _HEIGHT - 8, label(power)))
    described = f"from {label(first)} to {label(last + 1)}, at most {highest:,} in a bar"
    return _svg(title, described, "".join(pieces) + _text(10, 15, f"max {highest:,}"))


def _svg(title: str, described: str, inside: str) -> str:
    name = escape(f"{title}: {described}")
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{inside}</svg>'
    return f"<h2>{escape(title)}</h2>{svg}"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
