"""Counting what one run does, and telling whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

from uploader.errors import HookError, VodupError
from uploader.events import (
    CredentialsRenewed,
    Event,
    HookFailed,
    Listener,
    PartStored,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
    UploadProgress,
    UploadRestarted,
)
from uploader.log import get_logger, is_enabled
from uploader.session import Retried

__all__ = ["Progress"]


class Progress:
    """What one run has done so far.

    Mutable: counters, the VideoId once it is known, and `phase`, which step is being done
    (in the words of `VodupError.phase`).
    """

    def __init__(self, key: str, video_id: str | None, listeners: Sequence[Listener]) -> None:
        self.key, self.video_id = key, video_id
        self.phase = "open"
        self._listeners = (_log, *listeners)
        self.sent_bytes = 0
        self.retry_count = 0
        self.renewal_count = 0
        self._positions: dict[int, int] = {}

    def tell(self, event: Event) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener(event)

    def watch(self, part_number: int) -> Callable[[int], None]:
        """Return what a part's body calls with its position; going back is a repeat."""

        def sent(position: int) -> None:
            before = self._positions.get(part_number, 0)
            self.sent_bytes += max(0, position - before)
            self._positions[part_number] = position

        return sent

    def arrived(self, part_number: int) -> None:
        """The part is with OSS, and counted there from now on."""
        self._positions.pop(part_number, None)

    def stored(self, part_number: int, size: int, seconds: float) -> None:
        """Tell of a part that this run has sent."""
        self.tell(
            PartStored(
                key=self.key,
                video_id=self.video_id,
                part_number=part_number,
                size=size,
                seconds=round(seconds, 6),
            )
        )

    @property
    def under_way_bytes(self) -> int:
        """Bytes of parts without a receipt that have left."""
        return sum(self._positions.values())

    def retried(self, retried: Retried) -> None:
        """A request failed and is being mended."""
        self.retry_count += 1
        failure = retried.failure
        self.tell(
            RequestRetried(
                key=self.key,
                video_id=self.video_id,
                operation=retried.operation,
                part_number=retried.part_number,
                reason=failure.message,
                code=failure.code,
                request_id=failure.request_id,
                action=retried.meaning.name,
                pause_s=round(retried.pause_s, 3),
            )
        )

    def renewed(self, seconds: float) -> None:
        """Credentials have been renewed, which took so many seconds."""
        self.renewal_count += 1
        self.tell(
            CredentialsRenewed(
                key=self.key,
                video_id=self.video_id,
                renewal_count=self.renewal_count,
                seconds=round(seconds, 6),
            )
        )

    def cancelled(self) -> None:
        """The run is stopped from outside."""
        self.tell(UploadCancelled(key=self.key, video_id=self.video_id))

    def failed(self, error: VodupError) -> None:
        """The run ends with this error."""
        self.tell(
            UploadFailed(
                key=self.key,
                video_id=error.video_id,
                error=type(error).__name__,
                message=error.message,
                code=error.code,
                request_id=error.request_id,
                is_resumable=error.is_resumable,
                next_step=error.next_step,
            )
        )

    def hook_failed(self, failure: HookError) -> None:
        """A hook could not be told of the end."""
        self.tell(HookFailed(key=self.key, video_id=self.video_id, message=failure.message))


def _log(event: Event) -> None:
    """Log every event under its type; how far it has come is no event for a log."""
    if isinstance(event, UploadProgress):
        return
    level = _level_of(event)
    if not is_enabled(level):
        return  # a twentieth of what a small file costs
    log = get_logger(**asdict(event))
    match level:
        case logging.WARNING:
            log.warning(event.type)
        case logging.INFO:
            log.info(event.type)
        case _:
            log.debug(event.type)


def _level_of(event: Event) -> int:
    match event:
        case UploadFailed() | RequestRetried() | UploadRestarted() | HookFailed():
            return logging.WARNING
        case PartStored():  # hundreds of a large file
            return logging.DEBUG
        case _:
            return logging.INFO
