"""What is seen of a batch: totals, not rows, for there may be a million of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any, Final, Protocol

from uploader.bulk.estimate import Estimate
from uploader.bulk.rows import Row, shown_path
from uploader.bulk.tally import Tally
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

    def summary(self, tally: Tally, report: str | None) -> None:
        """The batch has come to its end."""

    async def watch(self, tally: Tally) -> None:
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

    def summary(self, tally: Tally, report: str | None) -> None:
        """Print the figures."""
        self._print("batch.ended", {**tally.figures(), "report": report})

    async def watch(self, tally: Tally) -> None:
        """Print the figures once a second."""
        while True:
            await asyncio.sleep(_JSON_INTERVAL_S)
            self._print("batch.progress", tally.figures())

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

    def summary(self, tally: Tally, report: str | None) -> None:
        """Say how it ended."""
        out(summarised(tally))
        if tally.hook_failure_count:
            times = count(tally.hook_failure_count, "time")
            err(f"vodup: hooks failed {times}, the last: {tally.hook_failure}")
        if tally.stopped is not None:
            kept = " with the same --report" if report else ""
            err(f"vodup: {tally.stopped}. Run the same command again{kept} to go on.")

    async def watch(self, tally: Tally) -> None:
        """Say how far it is."""
        while not self._is_quiet:
            await asyncio.sleep(_PLAIN_INTERVAL_S)
            err(progressed(tally))


class TerminalBatch(PlainBatch):
    """A few lines that are drawn anew twice a second."""

    async def watch(self, tally: Tally) -> None:
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
                live.update(Text("\n".join(drawn(tally, console.width))), refresh=True)
                await asyncio.sleep(_TERMINAL_INTERVAL_S)


# --- words ------------------------------------------------------------------------------


def progressed(tally: Tally) -> str:
    """How far a batch is, in one line."""
    expected = tally.expected_count
    about = "" if tally.is_read else "about "
    words = [
        f"{tally.ended_count:,} of {about}{expected:,} rows"
        if expected is not None
        else f"{tally.ended_count:,} rows",
        f"{size(tally.sent_bytes)} sent",
        rate(tally.bytes_per_s),
        f"{tally.rows_per_s:.1f} rows/s",
    ]
    if tally.left_s is not None:
        words.append(f"{duration(tally.left_s)} left")
    if tally.failed_count:
        words.append(f"{tally.failed_count:,} failed")
    if tally.deferred_count:
        words.append(f"{tally.deferred_count:,} to be tried again")
    return ", ".join(words)


def drawn(tally: Tally, width: int) -> list[str]:
    """The lines of a terminal: totals, what is slowest, what failed last."""
    lines = [progressed(tally)]
    for one in tally.slowest:
        share = 100 * one.done_bytes // one.size if one.size else 0
        lines.append(f"  {share:3} %  {size(one.size):>9}  {one.name}")
    lines += [f"  failed  {name}: {message}" for name, message in list(tally.failures)[-3:]]
    return [printable(line)[: max(20, width - 1)] for line in lines]


def summarised(tally: Tally) -> str:
    """What a batch came to, in a sentence."""
    words = [
        f"{tally.done_count + tally.skipped_count:,} of {count(tally.read_count, 'row')} stored "
        f"and verified"
    ]
    known = tally.skipped_count + tally.receipt_count
    if known:
        words.append(f"{known:,} of them by an earlier run")
    if tally.failed_count:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in tally.errors.most_common())
        words.append(f"{tally.failed_count:,} failed ({kinds})")
    words.append(f"{size(tally.sent_bytes)} sent in {duration(tally.seconds)}")
    if tally.renewal_count:
        words.append(f"credentials renewed {count(tally.renewal_count, 'time')}")
    if tally.retry_count:
        words.append(f"{count(tally.retry_count, 'request')} repeated")
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
