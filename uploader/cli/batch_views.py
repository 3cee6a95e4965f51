"""What `ingest` and the cluster commands print: failures and totals, for there may be a million
rows. Sentences for people, JSON lines for programs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from uploader import units
from uploader.bulk.estimate import Estimate
from uploader.bulk.progress import BatchProgress
from uploader.bulk.rows import Row, shown_path, shown_record
from uploader.cli.flag_groups import OutputFlags, ReportFlags
from uploader.cli.meters import STALLED_S, Gauge
from uploader.cli.printing import err, out, out_json
from uploader.cli.progress import Shown, show_progress
from uploader.errors import VodupError

_JSON_INTERVAL_S: Final = 1.0
_MAX_FAILURES: Final = 20

_REASONS: Final = {
    "ConfigurationError": "invalid",
    "IntegrityError": "corrupted",
    "OverwriteRefused": "already finished",
    "PermissionDenied": "without permission",
    "PolicyError": "not allowed",
    "ServiceError": "rejected by the service",
    "SourceChanged": "changed",
    "SourceUnreadable": "unreadable",
    "TransportError": "not reachable",
    "UnsafePath": "outside the root",
    "UnverifiedCompletion": "unverified",
    "UploadLocked": "locked",
    "VideoGone": "without their video",
}
"""Common errors in the words of a summary."""


class JsonBatchView:
    """One JSON object per line: `row.done`, `row.failed`, `row.playable`, `row.not_playable`,
    `batch.progress`, `batch.ended`."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Print the record as the ledger has it, but nothing secret of its URLs."""
        self._print(f"row.{record['status']}", shown_record(record))

    def refused(self, row: Row, error: VodupError, code: int) -> None:
        """Print the mistake."""
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
        """Print the counts."""
        self._print("batch.estimated", estimate.figures())

    def summary(self, progress: BatchProgress, flags: ReportFlags) -> None:
        """Print the counts."""
        self._print("batch.ended", {**progress.figures(), "report": flags.report})

    def stopped(self, reason: str, flags: ReportFlags) -> None:
        """Print nothing: `batch.ended` has the reason."""

    async def watch(self, progress: BatchProgress) -> None:
        """Print the counts once a second."""
        while True:
            await asyncio.sleep(_JSON_INTERVAL_S)
            self._print("batch.progress", progress.figures())

    def _print(self, type_: str, fields: Mapping[str, Any]) -> None:
        out_json({"type": type_, **fields})


class TextBatchView:
    """Failures when they occur, but not thousands of them; at the end a summary.

    Mutable: how many failures were printed.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._failure_count = 0

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a failure."""
        if record["status"] in ("failed", "not_playable"):
            path = record.get("path")
            where = shown_path(str(path)) if path else f"{record['manifest']}:{record['row']}"
            self._print_failure(where, str(record["message"]), str(record["next_step"]))

    def refused(self, row: Row, error: VodupError, code: int) -> None:
        """Print the mistake."""
        self._print_failure(row.where, error.message, error.next_step)

    def _print_failure(self, where: str, message: str, next_step: str) -> None:
        self._failure_count += 1
        subject = "" if where in message else f"{where}: "
        if self._failure_count <= _MAX_FAILURES:
            err(f"vodup: {subject}{message}", f"next: {next_step}")
        elif self._failure_count == _MAX_FAILURES + 1:
            err("vodup: more failures are not shown; use --failed FILE or --json to list them all.")

    def estimate(self, estimate: Estimate) -> None:
        """Print what the batch would do."""
        out(estimated(estimate))

    def summary(self, progress: BatchProgress, flags: ReportFlags) -> None:
        """Print what the batch came to."""
        if progress.stopped and not progress.read_count:
            return  # nothing was read: the error says it all
        out(summarized(progress, flags))
        tracker = progress.tracker
        if tracker.hook_failure_count:
            times = units.count(tracker.hook_failure_count, "time")
            err(f"vodup: hooks failed {times}, most recently: {tracker.hook_failure}")

    def stopped(self, reason: str, flags: ReportFlags) -> None:
        """Print why, and how to resume."""
        same = " with the same --report" if flags.report else ""
        err(f"vodup: stopped: {reason}. To resume, run the same command again{same}.")

    async def watch(self, progress: BatchProgress) -> None:
        """Show progress until cancelled."""
        if not self._is_quiet:
            await show_progress(Shown(progress.tracker, lambda: total_of(progress)))


BatchView = JsonBatchView | TextBatchView


def make_batch_view(flags: OutputFlags) -> BatchView:
    """Return the view that the flags select."""
    return JsonBatchView() if flags.json else TextBatchView(is_quiet=flags.quiet)


# --- sentences --------------------------------------------------------------------------


def total_of(progress: BatchProgress) -> Gauge:
    """How far a batch is."""
    expected, tracker = progress.expected_count, progress.tracker
    about = "" if progress.is_read else "about "
    files = f"{progress.ended_count:,} files"
    if expected is not None:
        files = f"{progress.ended_count:,} of {about}{expected:,} files"
    is_moving = tracker.stalled_s < STALLED_S
    notes = [
        f"{progress.failed_count:,} failed" if progress.failed_count else "",
        f"{units.size(tracker.sent_bytes)} sent",
        f"{progress.rows_per_s:.1f} files/s" if is_moving else "",
        f"{progress.deferred_count:,} waiting to retry" if progress.deferred_count else "",
    ]
    return Gauge(
        done=progress.ended_count,
        of=expected or 0,
        amount=files,
        bytes_per_s=tracker.bytes_per_s() if is_moving else 0.0,
        left_s=progress.remaining_s if is_moving else None,
        notes=tuple(filter(None, notes)),
    )


def summarized(progress: BatchProgress, flags: ReportFlags) -> str:
    """What a batch came to."""
    tracker = progress.tracker
    done_count = progress.done_count + progress.skipped_count
    result = f"{done_count:,} of {units.count(progress.read_count, 'file')} uploaded and verified"
    if earlier_count := progress.skipped_count + progress.earlier_count:
        result += f" ({earlier_count:,} in an earlier run)"
    if progress.failed_count:
        result += f"; {progress.failed_count:,} failed ({_reasons(progress.errors)})"
    if progress.playable_count or progress.unplayable_count:
        result += f"; {progress.playable_count:,} playable"
    if progress.unplayable_count:
        result += f", {progress.unplayable_count:,} not (yet)"
    facts = [f"{units.size(tracker.sent_bytes)} in {units.duration(tracker.seconds)}"]
    if tracker.renewal_count:
        facts.append(f"credentials renewed {units.count(tracker.renewal_count, 'time')}")
    if tracker.retry_count:
        facts.append(f"{units.count(tracker.retry_count, 'request')} retried")
    failures = f" Failures: {flags.failed}" if progress.failed_count and flags.failed else ""
    return f"{result}. {', '.join(facts)}.{failures}"


def _reasons(errors: Counter[str]) -> str:
    return ", ".join(f"{n:,} {_REASONS.get(kind, kind)}" for kind, n in errors.most_common())


def estimated(estimate: Estimate) -> str:
    """What a batch would do."""
    invalid_count = sum(estimate.errors.values())
    invalid = f"; {invalid_count:,} invalid ({_reasons(estimate.errors)})" if invalid_count else ""
    return (
        f"Would upload {units.count(estimate.good_count, 'file')}, "
        f"{units.size(estimate.byte_count)}{invalid}: "
        f"{units.count(estimate.oss_request_count, 'OSS request')}, "
        f"{units.count(estimate.vod_call_count, 'VOD call')}, "
        f"{units.count(estimate.renewal_count, 'credential renewal')}; at least "
        f"{units.duration(estimate.seconds)} at {units.rate(estimate.bytes_per_s)}. "
        "(Dry run: nothing sent.)"
    )
