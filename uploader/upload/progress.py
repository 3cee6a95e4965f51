"""What one run of an upload does: counters, and the events that listeners and the log get."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from uploader.errors import ConfigurationError, VodupError
from uploader.events import (
    CredentialsRenewed,
    EarlierVideoFound,
    Event,
    HookFailed,
    Listener,
    MediaAbandoned,
    PartStored,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
    UploadFinished,
    UploadProgress,
    UploadRestarted,
    UploadResult,
)
from uploader.log import get_logger, is_enabled
from uploader.protocol.plan import MAX_OBJECT_SIZE
from uploader.session import Retried
from uploader.upload.proof import AckedParts


class Progress:
    """What one run has done so far.

    Mutable: counters, the VideoId once it is known, `UploadResult.earlier_video_id`, and
    `phase`, the step that is being done (in the words of `VodupError.phase`).

    `source` is the name of the source; the log has it with every event.
    """

    def __init__(
        self, key: str, video_id: str | None, listeners: Sequence[Listener], *, source: str = ""
    ) -> None:
        self.key, self.video_id, self._source = key, video_id, source
        self.phase = "open"
        self._listeners = (self._log, *listeners)
        self.sent_bytes = 0
        self.retry_count = 0
        self.renewal_count = 0
        self.earlier_video_id: str | None = None
        self._positions: dict[int, int] = {}

    def emit(self, kind: Callable[..., Event], **fields: object) -> None:
        """Give an event of this upload to every listener."""
        self.send(kind(key=self.key, video_id=self.video_id, **fields))

    def send(self, event: Event) -> None:
        """Give an event to every listener."""
        for listener in self._listeners:
            listener(event)

    def watch_part(self, part_number: int) -> Callable[[int], None]:
        """Return what a part's body calls with its position; going back is a repeat."""

        def sent(position: int) -> None:
            before = self._positions.get(part_number, 0)
            self.sent_bytes += max(0, position - before)
            self._positions[part_number] = position

        return sent

    @property
    def under_way_bytes(self) -> int:
        """Bytes sent of parts that are not acked."""
        return sum(self._positions.values())

    def count_acked(self, part_number: int) -> None:
        """OSS has the part: its bytes are not counted as under way any more."""
        self._positions.pop(part_number, None)

    def emit_stored(self, part_number: int, size: int, seconds: float) -> None:
        """Report a part that this run has sent."""
        self.emit(PartStored, part_number=part_number, size=size, seconds=round(seconds, 6))

    def emit_progress(self, acked: AckedParts) -> None:
        """Report how much has been sent, parts under way included."""
        plan, done_bytes = acked.plan, acked.size + self.under_way_bytes
        self.emit(
            UploadProgress,
            done_bytes=min(done_bytes, plan.size or MAX_OBJECT_SIZE),
            size=plan.size,
            acked_part_count=len(acked),
            part_count=0 if plan.is_open else plan.part_count,
            renewal_count=self.renewal_count,
            retry_count=self.retry_count,
        )

    def emit_finished(self, result: UploadResult) -> None:
        """Report that the object is verified; a last progress says that all of it is there."""
        self.emit(
            UploadProgress,
            done_bytes=result.size,
            size=result.size,
            acked_part_count=result.part_count,
            part_count=result.part_count,
            renewal_count=self.renewal_count,
            retry_count=self.retry_count,
        )
        self.emit(UploadFinished, result=result)

    def _log(self, event: Event) -> None:
        """Log every event under its type, except the frequent `UploadProgress`."""
        if isinstance(event, UploadProgress):
            return
        level = _level_of(event)
        if not is_enabled(level):
            return  # a twentieth of what a small file costs
        log = get_logger(**{"source": self._source} | asdict(event))
        match level:
            case logging.WARNING:
                log.warning(event.type)
            case logging.INFO:
                log.info(event.type)
            case _:
                log.debug(event.type)

    def count_retry(self, retried: Retried) -> None:
        """A request failed and is repeated."""
        self.retry_count += 1
        failure = retried.failure
        self.emit(
            RequestRetried,
            operation=retried.operation,
            part_number=retried.part_number,
            reason=failure.message,
            code=failure.code,
            request_id=failure.request_id,
            action=retried.meaning.name,
            pause_s=round(retried.pause_s, 3),
            left_s=round(retried.left_s, 3),
            service=retried.service,
            address=retried.address,
        )

    def count_renewal(self, seconds: float) -> None:
        """VOD issued new credentials, after so many seconds."""
        self.renewal_count += 1
        count, seconds = self.renewal_count, round(seconds, 6)
        self.emit(CredentialsRenewed, renewal_count=count, seconds=seconds)

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """Report an error or a cancellation that ends the block, with the step it ended in."""
        try:
            yield
        except VodupError as error:
            error.located(video_id=self.video_id, phase=self.phase)
            failed = UploadFailed(
                key=self.key,
                video_id=error.video_id,
                error=type(error).__name__,
                message=error.message,
                code=error.code,
                request_id=error.request_id,
                is_resumable=error.is_resumable,
                next_step=error.next_step,
            )
            self.send(failed)
            raise
        except asyncio.CancelledError:
            self.emit(UploadCancelled)
            raise


def isolated(listener: Listener | None) -> Listener | None:
    """Return a listener whose errors go no further: the first one is logged, none is raised.

    Raises:
        ConfigurationError: it is a coroutine function, or cannot be called.
    """
    if listener is None:
        return None
    call: Any = listener
    if not callable(call) or any(map(inspect.iscoroutinefunction, (call, type(call).__call__))):
        raise ConfigurationError(
            "on_event must be an ordinary function, and not async.",
            next_step="Pass a `def` that returns quickly, for example one that puts events into a "
            "queue for a task of yours; or read the `events()` of a handle.",
        )
    has_failed = False

    def call_isolated(event: Event) -> None:
        nonlocal has_failed
        try:
            if inspect.iscoroutine(returned := call(event)):
                returned.close()
                raise TypeError("the listener returned a coroutine, which nobody awaits")
        except (Exception, asyncio.CancelledError) as error:
            if not has_failed:
                has_failed = True
                get_logger().exception("listener.failed", error=type(error).__name__)

    return call_isolated


def _level_of(event: Event) -> int:
    match event:
        case UploadFailed() | RequestRetried() | UploadRestarted() | HookFailed():
            return logging.WARNING
        case EarlierVideoFound() | MediaAbandoned():
            return logging.WARNING
        case PartStored():  # a large file has thousands
            return logging.DEBUG
        case _:
            return logging.INFO
