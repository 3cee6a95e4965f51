"""Follows uploads by their events: counts, bytes, rates and remaining time.

    tracker = Tracker()
    async with Uploader(..., on_event=tracker) as up: ...

Progress lines, batches and metrics all read a tracker. Events only change numbers. Rates
need samples: whoever shows them calls `Tracker.sample` about once a second.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from uploader import events

_WINDOW: Final = 10
"""Samples. Fewer: the rate jumps with every part. More: it follows a change too slowly."""


class Rate:
    """How fast a number grows, over its last samples. Mutable."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    def add(self, at_s: float, value: float) -> None:
        """Add a sample."""
        self._samples.append((at_s, value))

    def per_s(self, at_s: float, value: float) -> float:
        """From the oldest sample kept to `value` now; 0 before the first sample."""
        if not self._samples:
            return 0.0
        first_s, first = self._samples[0]
        return max(0.0, (value - first) / (at_s - first_s)) if at_s > first_s else 0.0


@dataclass(slots=True)
class TrackedUpload:
    """How far one upload is. Mutable: `update` applies its events.

    Attributes:
        size, part_count: 0 while unknown.
        done_bytes: at OSS or on the way there; goes back when a part is sent again.
        highest_bytes: the largest `done_bytes` so far.
        resumed_bytes: of these, stored by earlier runs.
        lost_bytes: sent by this run before the multipart upload had to be restarted.
        is_active: between its start and its end.
        started_s: on the tracker's clock.
    """

    source: str = ""
    key: str = ""
    video_id: str | None = None
    size: int = 0
    done_bytes: int = 0
    highest_bytes: int = 0
    resumed_bytes: int = 0
    lost_bytes: int = 0
    part_count: int = 0
    acked_part_count: int = 0
    renewal_count: int = 0
    retry_count: int = 0
    is_active: bool = False
    started_s: float = 0.0
    rate: Rate | None = None

    def update(self, event: events.Event) -> None:
        """Apply an event."""
        self.key, self.video_id = event.key, event.video_id or self.video_id
        match event:
            case events.UploadProgress():
                self._move_to(event.done_bytes)
                self.size, self.part_count = event.size, event.part_count
                self.acked_part_count = event.acked_part_count
                self.renewal_count, self.retry_count = event.renewal_count, event.retry_count
            case events.UploadStarted():
                self.source, self.is_active = self.source or event.source, True
                self.size, self.part_count = event.size, event.part_count
                self.done_bytes = self.highest_bytes = self.resumed_bytes = event.done_bytes
                self.acked_part_count = event.resumed_part_count
            case events.UploadFinished(result=result):
                if not self.is_active:  # finished by an earlier run
                    self.resumed_bytes = result.size
                self.size, self.part_count = result.size, result.part_count
                self.acked_part_count = result.part_count
                self._move_to(result.size)
                self.is_active = False
            case events.UploadFailed() | events.UploadCancelled():
                self.is_active = False
            case events.UploadRestarted():
                self.lost_bytes = self.new_bytes
                self.done_bytes = self.highest_bytes = self.resumed_bytes = 0
                self.acked_part_count = 0
            case events.CredentialsRenewed():
                self.renewal_count = event.renewal_count
            case events.RequestRetried():
                self.retry_count += 1

    def _move_to(self, done_bytes: int) -> None:
        self.done_bytes = done_bytes
        self.highest_bytes = max(self.highest_bytes, done_bytes)

    @property
    def new_bytes(self) -> int:
        """Bytes that this run has sent; parts that were sent again count once."""
        return self.lost_bytes + self.highest_bytes - self.resumed_bytes


@dataclass(frozen=True, slots=True)
class Trouble:
    """Requests to a service fail and are repeated; times are on the tracker's clock.

    Attributes:
        service: "OSS" or "VOD".
        address: host and port.
        reason: of the latest failure.
        since_s: when the first of these failures was reported.
        until_s: when the first request ends its upload.
    """

    service: str
    address: str
    reason: str
    since_s: float
    until_s: float


class Tracker:
    """Counts what happens to all uploads: an `on_event` listener.

    Memory grows with the uploads under way, not with those that ended. Mutable; used on one
    event loop, its counts are read from any thread.

    Attributes:
        clock: in seconds; `began_s` is its value when the tracker was made.
        active: uploads under way by key, in the order in which they started.
        started: how many began to send, by whether they continued an earlier run.
        finished: how many were verified, by proof (`UploadResult.verified_by`).
        failed: how many ended in an error, by its class.
        retries: repeated requests, by operation and decision.
        finished_before_count: finished by an earlier run; nothing was sent.
        ended_size, ended_done_bytes: of uploads that ended, however they did.
        hook_failure: the message of the hook that failed last.
        trouble: why requests are repeated, until one succeeds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began_s = clock()
        self.active: dict[str, TrackedUpload] = {}
        self.started: Counter[bool] = Counter()
        self.finished: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.retries: Counter[tuple[str, str]] = Counter()
        self.finished_before_count = 0
        self.cancelled_count = 0
        self.restart_count = 0
        self.renewal_count = 0
        self.stored_part_count = 0
        self.adopted_part_count = 0
        self.hook_failure_count = 0
        self.hook_failure = ""
        self.ended_size = 0
        self.ended_done_bytes = 0
        self.finished_sent_bytes = 0
        self.trouble: Trouble | None = None
        self._moved_s = self.began_s
        self._ended_new_bytes = 0
        self._failed_sent_bytes = 0
        self._rate = Rate()

    def __call__(self, event: events.Event) -> None:
        """Count an event."""
        match event:
            case events.UploadProgress():
                self._move(event)
            case events.PartStored():
                self.stored_part_count += 1
                self._recover()
            case events.UploadStarted():
                self._start(event)
            case events.UploadFinished() | events.UploadFailed() | events.UploadCancelled():
                self._end(event)
            case events.CredentialsRenewed():
                self.renewal_count += 1
                self._recover()
                self._update(event)
            case events.RequestRetried():
                self.retries[event.operation, event.action] += 1
                self._encounter(event)
                self._update(event)
            case events.PartsAdopted():
                self.adopted_part_count += event.part_count
            case events.UploadRestarted():
                self.restart_count += 1
                self._update(event)
            case events.HookFailed():
                self.hook_failure_count += 1
                self.hook_failure = event.message

    def _update(self, event: events.Event) -> None:
        if (upload := self.active.get(event.key)) is not None:
            upload.update(event)

    def _move(self, event: events.UploadProgress) -> None:
        if (upload := self.active.get(event.key)) is not None:
            before = upload.highest_bytes
            upload.update(event)
            if upload.highest_bytes > before:
                self._moved_s = self.clock()

    def _recover(self) -> None:
        """A request has succeeded."""
        self.trouble, self._moved_s = None, self.clock()

    def _encounter(self, event: events.RequestRetried) -> None:
        """Remember why requests fail; what is repaired at once (new credentials) is no trouble."""
        if not event.left_s:
            return
        now_s, former = self.clock(), self.trouble
        until_s = now_s + event.left_s
        self.trouble = Trouble(
            event.service,
            event.address,
            event.reason,
            former.since_s if former else now_s,
            min(former.until_s, until_s) if former else until_s,
        )

    def _start(self, event: events.UploadStarted) -> None:
        self._recover()
        upload = self.active.get(event.key)
        if upload is None:  # else it restarted within one run
            upload = self.active[event.key] = TrackedUpload(started_s=self.clock())
            self.started[event.is_resumed] += 1
        upload.update(event)

    def _end(
        self, event: events.UploadFinished | events.UploadFailed | events.UploadCancelled
    ) -> None:
        upload = self.active.pop(event.key, None) or TrackedUpload()
        upload.update(event)
        if isinstance(event, events.UploadFinished):
            self._recover()
        self.ended_size += upload.size
        self.ended_done_bytes += upload.done_bytes
        self._ended_new_bytes += upload.new_bytes
        match event:
            case events.UploadFinished(result=result) if result.is_earlier_result:
                self.finished_before_count += 1
            case events.UploadFinished(result=result):
                self.finished[result.verified_by] += 1
                self.finished_sent_bytes += result.sent_bytes
            case events.UploadFailed():
                self.failed[event.error] += 1
                self._failed_sent_bytes += upload.new_bytes
            case events.UploadCancelled():
                self.cancelled_count += 1
                self._failed_sent_bytes += upload.new_bytes

    # --- all uploads together -----------------------------------------------------------

    @property
    def retry_count(self) -> int:
        """Repeated requests."""
        return sum(self.retries.values())

    @property
    def seconds(self) -> float:
        """Since the tracker was made."""
        return self.clock() - self.began_s

    @property
    def size(self) -> int:
        """Bytes of all uploads that started, as far as they are known."""
        return self.ended_size + sum(upload.size for upload in self.active.values())

    @property
    def done_bytes(self) -> int:
        """Of `size`, at OSS or on the way there."""
        return self.ended_done_bytes + sum(one.done_bytes for one in self.active.values())

    @property
    def new_bytes(self) -> int:
        """Bytes that this run has sent; parts that were sent again count once. Never falls."""
        return self._ended_new_bytes + sum(one.new_bytes for one in list(self.active.values()))

    @property
    def sent_bytes(self) -> int:
        """Bytes that this run has sent; repeats count as soon as an upload has finished."""
        ended = self.finished_sent_bytes + self._failed_sent_bytes
        return ended + sum(upload.new_bytes for upload in self.active.values())

    @property
    def stalled_s(self) -> float:
        """Since bytes were last sent, or a request last succeeded."""
        return self.clock() - self._moved_s

    # --- rates --------------------------------------------------------------------------

    def sample(self) -> None:
        """Remember how far everything is, for rates; called about once a second."""
        now_s = self.clock()
        self._rate.add(now_s, self.new_bytes)
        for upload in self.active.values():
            upload.rate = upload.rate or Rate()
            upload.rate.add(now_s, upload.new_bytes)

    def bytes_per_s(self, upload: TrackedUpload | None = None) -> float:
        """Over the last samples: of one upload, or of all."""
        if upload is None:
            return self._rate.per_s(self.clock(), self.new_bytes)
        return upload.rate.per_s(self.clock(), upload.new_bytes) if upload.rate else 0.0

    def remaining_s(self, upload: TrackedUpload | None = None) -> float | None:
        """Until one upload, or all that started, are done; None while unknown."""
        one: TrackedUpload | Tracker = upload or self
        bytes_per_s = self.bytes_per_s(upload)
        if not one.size or not bytes_per_s:
            return None
        return max(0, one.size - one.done_bytes) / bytes_per_s
