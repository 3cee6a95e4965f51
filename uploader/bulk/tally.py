"""What a batch has done so far, and how fast."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from uploader.errors import VodupError
from uploader.events import (
    CredentialsRenewed,
    Event,
    HookFailed,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
    UploadFinished,
    UploadProgress,
    UploadResult,
    UploadStarted,
)

from .rows import Row

__all__ = ["Active", "Sample", "Tally"]

_MAX_SAMPLES: Final = 600
_RECENT: Final = 20
_RATE_WINDOW: Final = 10


@dataclass(slots=True)
class Active:
    """An upload under way. Mutable."""

    name: str
    size: int
    began_s: float
    done_bytes: int
    found_bytes: int

    @property
    def sent_bytes(self) -> int:
        """Without what was there before."""
        return max(0, self.done_bytes - self.found_bytes)


@dataclass(frozen=True, slots=True)
class Sample:
    """How far the batch was at some moment, in seconds since it began."""

    at_s: float
    sent_bytes: int
    ended_count: int
    active_count: int


@dataclass
class Tally:
    """Counters of one run. Mutable; everything belongs to the loop's thread.

    Attributes:
        read_count: rows read.
        skipped_count: finished by an earlier run, according to the ledger.
        done_count: stored and verified in this run; `receipt_count` of them had been
            already, according to the state.
        failed_count: with a terminal record; `refused_count` of them were not tried.
        stored_bytes: of the rows counted as done.
        hook_failure_count: how often a hook failed after an upload had ended; `hook_failure` is
            what the last of them said.
        share_read: of the manifests, from 0 to 1; None where that is not known.
        stopped: why the batch ended before its end, if it did.
    """

    clock: Callable[[], float]
    began_s: float = 0.0
    read_count: int = 0
    skipped_count: int = 0
    done_count: int = 0
    receipt_count: int = 0
    failed_count: int = 0
    refused_count: int = 0
    deferred_count: int = 0
    stored_bytes: int = 0
    ended_sent_bytes: int = 0
    renewal_count: int = 0
    retry_count: int = 0
    hook_failure_count: int = 0
    hook_failure: str = ""
    share_read: float | None = None
    is_read: bool = False
    stopped: str | None = None
    codes: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    active: dict[str, Active] = field(default_factory=dict)
    failures: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    samples: list[Sample] = field(default_factory=list)
    _every: int = 1
    _tick_count: int = 0
    _recent: deque[Sample] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW))

    def __post_init__(self) -> None:
        self.began_s = self.clock()

    # --- what happens -------------------------------------------------------------------

    def told(self, event: Event) -> None:
        """Follow the uploads under way."""
        match event:
            case UploadProgress():
                if (active := self.active.get(event.key)) is not None:
                    active.done_bytes = event.done_bytes
            case UploadStarted():
                self.active[event.key] = Active(
                    event.source, event.size, self.clock(), event.done_bytes, event.done_bytes
                )
            case UploadFinished() | UploadFailed() | UploadCancelled():
                self._left(event)
            case CredentialsRenewed():
                self.renewal_count += 1
            case RequestRetried():
                self.retry_count += 1
            case HookFailed():
                self.hook_failure_count += 1
                self.hook_failure = event.message

    def _left(self, event: UploadFinished | UploadFailed | UploadCancelled) -> None:
        active = self.active.pop(event.key, None)
        if isinstance(event, UploadFinished):
            self.ended_sent_bytes += event.result.sent_bytes
        elif active is not None:
            self.ended_sent_bytes += active.sent_bytes

    def done(self, result: UploadResult) -> None:
        """A row is stored."""
        self.done_count += 1
        self.receipt_count += result.is_receipt
        self.stored_bytes += result.size

    def failed(self, row: Row, error: VodupError, code: int) -> None:
        """A row has its terminal record as a failure."""
        self.failed_count += 1
        self.codes[code] += 1
        self.errors[type(error).__name__] += 1
        self.failures.append((row.source_name or row.where, error.message))

    # --- what it comes to ---------------------------------------------------------------

    @property
    def ended_count(self) -> int:
        """Rows that are through, those of earlier runs included."""
        return self.skipped_count + self.done_count + self.failed_count

    @property
    def seconds(self) -> float:
        """Since the batch began."""
        return self.clock() - self.began_s

    @property
    def sent_bytes(self) -> int:
        """Of this run."""
        return self.ended_sent_bytes + sum(one.sent_bytes for one in self.active.values())

    @property
    def expected_count(self) -> int | None:
        """How many rows there are: counted, or from how far the manifests are read."""
        if self.is_read:
            return self.read_count
        if not self.share_read:
            return None
        return max(self.read_count, round(self.read_count / self.share_read))

    @property
    def bytes_per_s(self) -> float:
        """Over the last seconds."""
        return self._per_s(lambda sample: sample.sent_bytes)

    @property
    def rows_per_s(self) -> float:
        """Over the last seconds."""
        return self._per_s(lambda sample: sample.ended_count)

    def _per_s(self, figure: Callable[[Sample], int]) -> float:
        if not self._recent:
            return 0.0
        then, now = self._recent[0], self._sample()
        seconds = now.at_s - then.at_s
        return max(0.0, (figure(now) - figure(then)) / seconds) if seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """How long the rest may take; None while that cannot be told."""
        expected, seconds = self.expected_count, self.seconds
        through = self.done_count + self.failed_count
        if expected is None or not through or seconds < 1:
            return None
        return max(0, expected - self.ended_count) * seconds / through

    @property
    def slowest(self) -> list[Active]:
        """Those under way for longest."""
        return sorted(self.active.values(), key=lambda one: one.began_s)[:5]

    # --- over time ----------------------------------------------------------------------

    def tick(self) -> None:
        """Take a sample; called about once a second. Of a long batch every other is kept."""
        sample = self._sample()
        self._recent.append(sample)
        self._tick_count += 1
        if self._tick_count % self._every == 0:
            self.samples.append(sample)
        if len(self.samples) > _MAX_SAMPLES:
            self.samples = self.samples[1::2]
            self._every *= 2

    def _sample(self) -> Sample:
        return Sample(self.seconds, self.sent_bytes, self.ended_count, len(self.active))

    def figures(self) -> dict[str, Any]:
        """As JSON values, for programs and for the page."""
        return {
            "rows": self.read_count,
            "expected_rows": self.expected_count,
            "done": self.done_count,
            "receipts": self.receipt_count,
            "skipped": self.skipped_count,
            "failed": self.failed_count,
            "refused": self.refused_count,
            "retrying": self.deferred_count,
            "active": len(self.active),
            "stored_bytes": self.stored_bytes,
            "sent_bytes": self.sent_bytes,
            "renewals": self.renewal_count,
            "retries": self.retry_count,
            "hook_failures": self.hook_failure_count,
            "seconds": round(self.seconds, 3),
            "bytes_per_s": round(self.bytes_per_s),
            "rows_per_s": round(self.rows_per_s, 1),
            "left_s": None if self.left_s is None else round(self.left_s),
            "errors": dict(self.errors),
            "stopped": self.stopped,
        }
