"""What is seen of a batch: totals, not rows, for there may be a million of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any, Final, Protocol

from uploader.bulk.estimate import Estimate
from uploader.bulk.progress import BatchProgress
from uploader.bulk.rows import Row, shown_path
from uploader.cli.options import Output
from uploader.cli.text import Printer, err, out, printable
from uploader.errors import VodupError
from uploader.units import count, duration, rate, size

__all__ = ["BatchView", "make_batch_view"]

_PLAIN_INTERVAL_S: Final = 10.0
_JSON_INTERVAL_S: Final = 1.0
_TERMINAL_INTERVAL_S: Final = 0.5
_MAX_SHOWN: Final = 20


class BatchView(Protocol):
    """Shows a batch."""

    def record(self, record: Mapping[str, Any]) -> None:
        """A row has its terminal record."""

    def refused(self, row: Row, error: VodupError, code: int) -> None:
        """A dry run has found something wrong with a row."""

    def estimate(self, estimate: Estimate) -> None:
        """A dry run has come to its end."""

    def summary(self, progress: BatchProgress, report: str | None) -> None:
        """The batch has come to its end."""

    async def watch(self, progress: BatchProgress) -> None:
        """Show progress until cancelled."""


def make_batch_view(output: Output) -> BatchView:
    """Return the view for these flags and this terminal."""
    if output.json:
        return JsonBatch(Printer(sys.stdout))
    if not output.quiet and sys.stderr.isatty():
        return TerminalBatch()
    return PlainBatch(is_quiet=output.quiet)


class JsonBatch:
    """One JSON object a line: `row.done` and `row.failed`, `batch.progress`, then one end."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def record(self, record: Mapping[str, Any]) -> None:
        """Print the record as the ledger has it."""
        self._print(f"row.{record['status']}", record)

    def refused(self, row: Row, error: VodupError, code: int) -> None:
        """Print what is wrong with a row."""
        fields = {
            "manifest": row.manifest,
            "row": row.number,
            "path": row.source_name,
            "error": type(error).__name__,
            "message": error.message,
            "next_step": error.next_step,
            "exit_code": code,
        }
        self._print("row.refused", fields)

    def estimate(self, estimate: Estimate) -> None:
        """Print the figures."""
        self._print("batch.estimated", estimate.figures())

    def summary(self, progress: BatchProgress, report: str | None) -> None:
        """Print the figures."""
        self._print("batch.ended", {**progress.figures(), "report": report})

    async def watch(self, progress: BatchProgress) -> None:
        """Print the figures once a second."""
        while True:
            await asyncio.sleep(_JSON_INTERVAL_S)
            self._print("batch.progress", progress.figures())

    def _print(self, type_: str, fields: Mapping[str, Any]) -> None:
        line = {"type": type_, **fields}
        clean = {k: printable(v) if isinstance(v, str) else v for k, v in line.items()}
        self._printer.line(json.dumps(clean))


class PlainBatch:
    """A line every ten seconds, for logs; failures as they come, but not thousands of them.

    Mutable: how many failures were shown.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._shown_count = 0

    def record(self, record: Mapping[str, Any]) -> None:
        """Say what failed."""
        if record["status"] == "failed":
            path = record.get("path")
            where = shown_path(str(path)) if path else f"{record['manifest']}:{record['row']}"
            self._failure(where, str(record["message"]), str(record["next_step"]))

    def refused(self, row: Row, error: VodupError, code: int) -> None:
        """Say what is wrong with a row."""
        self._failure(row.where, error.message, error.next_step)

    def _failure(self, where: str, message: str, next_step: str) -> None:
        self._shown_count += 1
        if self._shown_count <= _MAX_SHOWN:
            err(f"vodup: {where}: {message}\nnext: {next_step}")
        elif self._shown_count == _MAX_SHOWN + 1:
            err("vodup: more rows failed; --failed FILE and --json have them all.")

    def estimate(self, estimate: Estimate) -> None:
        """Say what the batch would take."""
        out(estimated(estimate))

    def summary(self, progress: BatchProgress, report: str | None) -> None:
        """Say how it ended."""
        out(summarised(progress))
        if progress.tracker.hook_failure_count:
            times = count(progress.tracker.hook_failure_count, "time")
            err(f"vodup: hooks failed {times}, the last: {progress.tracker.hook_failure}")
        if progress.stopped is not None:
            kept = " with the same --report" if report else ""
            err(f"vodup: {progress.stopped}. Run the same command again{kept} to go on.")

    async def watch(self, progress: BatchProgress) -> None:
        """Say how far it is."""
        while not self._is_quiet:
            await asyncio.sleep(_PLAIN_INTERVAL_S)
            err(progressed(progress))


class TerminalBatch(PlainBatch):
    """A few lines that are drawn anew twice a second."""

    async def watch(self, progress: BatchProgress) -> None:
        """Draw until cancelled."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True)
        with Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        ) as live:
            while True:
                live.update(Text("\n".join(drawn(progress, console.width))), refresh=True)
                await asyncio.sleep(_TERMINAL_INTERVAL_S)


# --- words ------------------------------------------------------------------------------


def progressed(progress: BatchProgress) -> str:
    """How far a batch is, in one line."""
    expected = progress.expected_count
    about = "" if progress.is_read else "about "
    words = [
        f"{progress.ended_count:,} of {about}{expected:,} rows"
        if expected is not None
        else f"{progress.ended_count:,} rows",
        f"{size(progress.tracker.sent_bytes)} sent",
        rate(progress.tracker.bytes_per_s()),
        f"{progress.rows_per_s:.1f} rows/s",
    ]
    if progress.remaining_s is not None:
        words.append(f"{duration(progress.remaining_s)} left")
    if progress.failed_count:
        words.append(f"{progress.failed_count:,} failed")
    if progress.deferred_count:
        words.append(f"{progress.deferred_count:,} to be tried again")
    return ", ".join(words)


def drawn(progress: BatchProgress, width: int) -> list[str]:
    """The lines of a terminal: totals, what is slowest, what failed last."""
    lines = [progressed(progress)]
    for one in progress.slowest:
        share = 100 * one.done_bytes // one.size if one.size else 0
        lines.append(f"  {share:3} %  {size(one.size):>9}  {one.source}")
    lines += [f"  failed  {name}: {message}" for name, message in list(progress.failures)[-3:]]
    return [printable(line)[: max(20, width - 1)] for line in lines]


def summarised(progress: BatchProgress) -> str:
    """What a batch came to, in a sentence."""
    done_count, tracker = progress.done_count + progress.skipped_count, progress.tracker
    words = [f"{done_count:,} of {count(progress.read_count, 'row')} stored and verified"]
    known = progress.skipped_count + progress.receipt_count
    if known:
        words.append(f"{known:,} of them by an earlier run")
    if progress.failed_count:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in progress.errors.most_common())
        words.append(f"{progress.failed_count:,} failed ({kinds})")
    words.append(f"{size(tracker.sent_bytes)} sent in {duration(tracker.seconds)}")
    if tracker.renewal_count:
        words.append(f"credentials renewed {count(tracker.renewal_count, 'time')}")
    if tracker.retry_count:
        words.append(f"{count(tracker.retry_count, 'request')} repeated")
    return f"{', '.join(words)}."


def estimated(estimate: Estimate) -> str:
    """What a batch would take, in sentences."""
    refused = sum(estimate.errors.values())
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in estimate.errors.most_common())
    bad = f", {refused:,} refused ({kinds})" if refused else ""
    return (
        f"{count(estimate.row_count, 'row')}: {estimate.good_count:,} to upload{bad}. "
        f"{size(estimate.byte_count)} in {count(estimate.part_count, 'part')}; "
        f"{count(estimate.oss_request_count, 'request')} to OSS, "
        f"{count(estimate.vod_call_count, 'call')} to VOD, "
        f"{count(estimate.renewal_count, 'renewal')} of credentials; at "
        f"{rate(estimate.bytes_per_s)} at least {duration(estimate.seconds)}. Nothing was sent."
    )
