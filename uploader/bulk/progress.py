"""How far a batch is: its rows here, its uploads in a tracker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from uploader.errors import VodupError
from uploader.events import UploadResult
from uploader.tracker import Rate, TrackedUpload, Tracker

from .rows import Row

_MAX_SAMPLES: Final = 600
_MAX_FAILURES: Final = 20
_MAX_SLOWEST: Final = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """How far the batch was, `at_s` seconds after it began."""

    at_s: float
    sent_bytes: int
    ended_count: int


@dataclass
class BatchProgress:
    """Counts of one run. Mutable; written on the loop's thread.

    Attributes:
        clock: in seconds.
        tracker: follows the uploads.
        read_count: rows read.
        skipped_count: done by an earlier run, according to the ledger.
        done_count: stored and verified in this run. Of these `earlier_count` had been
            before, according to the state.
        failed_count: with a final record as failures. Of these `refused_count` were not tried.
        playable_count, unplayable_count: verified rows whose videos play, or do not (yet).
        deferred_count: waiting to be tried again.
        stored_bytes: of the rows counted as done.
        share_read: of the manifests, from 0 to 1; None if unknown.
        is_read: whether all rows have been read.
        stopped: why the batch stopped early, if it did.
        codes, errors: of failed rows, by exit code and by class of error.
        failures: the latest: path and message.
        samples: over the whole run.
    """

    clock: Callable[[], float]
    read_count: int = 0
    skipped_count: int = 0
    done_count: int = 0
    earlier_count: int = 0
    failed_count: int = 0
    refused_count: int = 0
    deferred_count: int = 0
    playable_count: int = 0
    unplayable_count: int = 0
    stored_bytes: int = 0
    share_read: float | None = None
    is_read: bool = False
    stopped: str | None = None
    codes: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failures: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_MAX_FAILURES))
    samples: list[Sample] = field(default_factory=list)
    tracker: Tracker = field(init=False)
    _rate: Rate = field(default_factory=Rate)
    _sample_count: int = 0
    _kept_every: int = 1

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.clock)

    def add_done(self, result: UploadResult) -> None:
        """A row is stored and verified."""
        self.done_count += 1
        self.earlier_count += result.is_earlier_result
        self.stored_bytes += result.size

    def add_failed(self, row: Row, error: VodupError, code: int) -> None:
        """A row has its final record as a failure."""
        self.failed_count += 1
        self.codes[code] += 1
        self.errors[type(error).__name__] += 1
        self.failures.append((row.source_name or row.where, error.message))

    def add_unplayable(self, name: str, error: VodupError, code: int) -> None:
        """The video of a verified row does not play (yet)."""
        self.unplayable_count += 1
        self.codes[code] += 1
        self.failures.append((name, error.message))

    # --- rows -----------------------------------------------------------------------------

    @property
    def ended_count(self) -> int:
        """Rows with a final record, those of earlier runs included."""
        return self.skipped_count + self.done_count + self.failed_count

    @property
    def expected_count(self) -> int | None:
        """All rows: counted, or estimated from how much of the manifests is read."""
        if self.is_read:
            return self.read_count
        if not self.share_read:
            return None
        return max(self.read_count, round(self.read_count / self.share_read))

    @property
    def rows_per_s(self) -> float:
        """Over the last samples."""
        return self._rate.per_s(self.clock(), self.ended_count)

    @property
    def remaining_s(self) -> float | None:
        """How long the other rows may take; None while unknown."""
        expected, seconds = self.expected_count, self.tracker.seconds
        tried_count = self.done_count + self.failed_count
        if expected is None or not tried_count or seconds < 1:
            return None
        return max(0, expected - self.ended_count) * seconds / tried_count

    @property
    def slowest(self) -> list[TrackedUpload]:
        """The uploads that have run for longest."""
        return list(self.tracker.active.values())[:_MAX_SLOWEST]

    # --- over time ------------------------------------------------------------------------

    def sample(self) -> None:
        """Take a sample; called about once a second. A long batch keeps only some."""
        self.tracker.sample()
        self._rate.add(self.clock(), self.ended_count)
        self._sample_count += 1
        if self._sample_count % self._kept_every == 0:
            tracker = self.tracker
            self.samples.append(Sample(tracker.seconds, tracker.sent_bytes, self.ended_count))
        if len(self.samples) > _MAX_SAMPLES:
            self.samples = self.samples[1::2]
            self._kept_every *= 2

    def figures(self) -> dict[str, Any]:
        """Return all counts as JSON values."""
        tracker, remaining_s = self.tracker, self.remaining_s
        return {
            "rows": self.read_count,
            "expected_rows": self.expected_count,
            "done": self.done_count,
            "earlier": self.earlier_count,
            "skipped": self.skipped_count,
            "failed": self.failed_count,
            "refused": self.refused_count,
            "retrying": self.deferred_count,
            "playable": self.playable_count,
            "not_playable": self.unplayable_count,
            "active": len(tracker.active),
            "stored_bytes": self.stored_bytes,
            "sent_bytes": tracker.sent_bytes,
            "renewals": tracker.renewal_count,
            "retries": tracker.retry_count,
            "hook_failures": tracker.hook_failure_count,
            "seconds": round(tracker.seconds, 3),
            "bytes_per_s": round(tracker.bytes_per_s()),
            "rows_per_s": round(self.rows_per_s, 1),
            "left_s": None if remaining_s is None else round(remaining_s),
            "errors": dict(self.errors),
            "stopped": self.stopped,
        }
