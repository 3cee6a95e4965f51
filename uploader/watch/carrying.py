"""Carries complete files to their end: uploaded, recorded, waited for, put away, or failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from uploader.batch import Outcome, UploadItem
from uploader.bulk.ledger import Record, failure_record
from uploader.bulk.progress import BatchProgress
from uploader.bulk.runner import STOPS_ALL, is_gone
from uploader.errors import SourceChanged, StateUnavailable, VodupError
from uploader.events import Listener, UploadResult
from uploader.library import PlayableVideo
from uploader.protocol.media import StoredMedia
from uploader.threads import in_thread
from uploader.watch.endings import Endings, WatchOutcome
from uploader.watch.options import WatchOptions
from uploader.watch.scan import Companions
from uploader.watch.taking import TakenFile

_MAX_WAITS: Final = 1000
_FIRST_RETRY_S: Final = 5.0
_MAX_RETRY_S: Final = 300.0

Attach = Callable[[UploadResult, Companions], Awaitable[Sequence[StoredMedia]]]
"""Uploads the cover and the subtitles of a verified video, before its record is written.

An error is the file's: a temporary one is tried again, and then this is called again, with a
result whose `is_earlier_result` is true. After a crash as well: it must be safe to repeat.
"""


class Uploads(Protocol):
    """What uploads the files of a folder: an `Uploader`, or a queue of workers."""

    @property
    def scope(self) -> str:
        """Part of the identity of a file."""
        ...

    async def upload_item(
        self, item: UploadItem, *, on_event: Listener | None = None
    ) -> UploadResult:
        """Upload a complete file; raises `VodupError`. May be repeated."""
        ...

    async def wait_until_playable(
        self, video_id: str, *, timeout_s: float | None = None
    ) -> PlayableVideo:
        """Wait until a video plays; raises `NotPlayable`."""
        ...

    async def abort(self, key: str) -> None:
        """Remove what is stored of an upload whose file is gone."""
        ...


class _AlreadyVerified(VodupError):
    """Nothing was uploaded: the file only had to be put away."""


class Carrying:
    """What every complete file goes through. Mutable.

    Args:
        waits: the group in which videos are waited for, beside the uploads.
        on_end: called with how a file ended, and with when it is tried again.

    Attributes:
        under_way: files that have not ended, by path.
        attempts: how often files that failed were tried, by path.
    """

    def __init__(
        self,
        uploader: Uploads,
        endings: Endings,
        options: WatchOptions,
        progress: BatchProgress,
        waits: asyncio.TaskGroup,
        on_end: Callable[[WatchOutcome, float | None], Awaitable[None]],
        *,
        attach: Attach | None = None,
    ) -> None:
        self._uploader, self._endings, self._options = uploader, endings, options
        self._progress, self._waits, self._on_end = progress, waits, on_end
        self._attach, self._exit_code = attach, endings.exit_code
        self._unplayed: set[int] = set()
        self._waiting = asyncio.Semaphore(_MAX_WAITS)
        self.under_way: dict[str, TakenFile] = {}
        self.attempts: dict[str, int] = {}

    async def prepare(self) -> None:
        """Read which videos are still to be waited for."""
        if self._options.wait_s is not None:
            self._unplayed = await in_thread(self._endings.unplayed)

    def is_done(self, number: int) -> bool:
        """Whether a file is verified, by the number of its record."""
        return self._endings.ledger.is_done(number)

    def stays(self, number: int) -> bool:
        """Whether a file is verified, plays if that is waited for, and is not put away."""
        is_over = self._options.after.kind == "keep" and self.is_done(number)
        return is_over and (self._options.wait_s is None or number not in self._unplayed)

    async def carry_out(self, item: UploadItem) -> UploadResult:
        """Upload one file, record that, and put it away."""
        taken: TakenFile = item.tag
        if self.is_done(taken.number):  # an earlier attempt to put it away was cut short
            record = await in_thread(self._endings.ledger.find, taken.number) or {}
            await self._finish(taken, record)
            raise _AlreadyVerified("It is verified already.")
        try:
            if taken.row.error is not None:
                raise taken.row.error
            result = await self._uploader.upload_item(item, on_event=self._progress.tracker)
            attached = await self._attached(taken, result)
            record = self._endings.record_success(taken, result, attached)
        except VodupError as error:
            await self._fail(taken, error)
            raise
        self._progress.add_done(result)
        await self._finish(taken, record, result=result, attached=attached)
        return result

    async def _attached(self, taken: TakenFile, result: UploadResult) -> Sequence[StoredMedia]:
        if self._attach is None:
            return ()
        try:
            return tuple(await self._attach(result, taken.found.companions))
        except VodupError as error:
            error.video_id = error.video_id or result.video_id  # it is stored, whatever follows
            raise

    async def _finish(self, taken: TakenFile, record: Record, **how: Any) -> None:
        """Put a verified file away; if its video is waited for, beside the uploads."""
        if self._options.wait_s is None or "playable" in record:
            await self._put_away(taken, record, **how)
        else:
            self._unplayed.add(taken.number)
            await self._waiting.acquire()
            self._waits.create_task(self._wait(taken, record, **how))

    async def _wait(self, taken: TakenFile, record: Record, **how: Any) -> None:
        try:
            video = await self._uploader.wait_until_playable(
                record["video_id"], timeout_s=self._options.wait_s
            )
            record = self._endings.record_playable(record, video)
        except STOPS_ALL:
            raise
        except VodupError as error:
            await self._end_unplayable(taken, record, error)
        else:
            self._progress.playable_count += 1
            self._unplayed.discard(taken.number)
            await self._put_away(taken, record, video=video, **how)
        finally:
            self._waiting.release()

    async def _end_unplayable(self, taken: TakenFile, record: Record, error: VodupError) -> None:
        """A video that does not play yet is waited for again; one that never will has failed."""
        code, path = self._exit_code(error), taken.found.path
        if error.is_temporary and not self._options.is_once:
            retry_s = self._retry_s(path)
            await self._publish(taken, record, retry_s=retry_s, error=error, is_final=False)
            return
        self._progress.add_unplayable(path, error, code)
        moved_to = problem = None
        if not error.is_temporary:
            failure = failure_record(taken.row, error, exit_code=code, attempts=1)
            try:
                moved_to = await in_thread(self._endings.put_aside, taken, failure)
            except (OSError, VodupError) as refused:
                problem = _text_of(refused)
        await self._publish(taken, record, error=error, moved_to=moved_to, problem=problem)

    async def _put_away(self, taken: TakenFile, record: Record, **how: Any) -> None:
        moved_to = problem = None
        try:
            moved_to = await in_thread(self._endings.put_away, taken)
        except FileNotFoundError:
            pass  # somebody else has put it away
        except (OSError, VodupError) as error:
            problem = _text_of(error)
        retry_s = None if problem is None else self._retry_s(taken.found.path)
        await self._publish(
            taken, record, retry_s=retry_s, moved_to=moved_to, problem=problem, **how
        )

    async def _fail(self, taken: TakenFile, error: VodupError) -> None:
        """Record a failure for good, or plan the next attempt."""
        found, problem, moved_to = taken.found, None, None
        is_changed = is_gone(error) or (isinstance(error, SourceChanged) and not error.is_temporary)
        if isinstance(error, STOPS_ALL):
            return
        if is_changed:
            await self._abandon(taken)
        attempts = self.attempts.get(found.path, 0) + 1
        retry_s: float | None = None
        if is_changed or (error.is_temporary and not self._options.is_once):
            retry_s = asyncio.get_running_loop().time() if is_changed else self._retry_s(found.path)
            await self._publish(taken, {}, retry_s=retry_s, error=error, is_final=False)
            return
        try:
            record = self._endings.record_failure(taken, error, attempts)
            if not error.is_temporary:
                moved_to = await in_thread(self._endings.put_aside, taken, record)
        except StateUnavailable as failure:
            await self._publish(
                taken, {}, retry_s=self._retry_s(found.path), error=failure, is_final=False
            )
            return
        except (OSError, VodupError) as failure:
            problem = _text_of(failure)
        self._progress.add_failed(taken.row, error, self._exit_code(error))
        if problem is not None:
            retry_s = self._retry_s(found.path)
        await self._publish(
            taken, record, retry_s=retry_s, error=error, moved_to=moved_to, problem=problem
        )

    async def _abandon(self, taken: TakenFile) -> None:
        """Remove the parts of a file that is gone; what is in its place is another upload."""
        if taken.row.upload_key is not None:
            with suppress(VodupError):
                await self._uploader.abort(taken.row.upload_key)

    def _retry_s(self, path: str) -> float:
        count = self.attempts[path] = self.attempts.get(path, 0) + 1
        pause_s = min(_MAX_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(count - 1, 10))
        return asyncio.get_running_loop().time() + pause_s

    async def _publish(
        self, taken: TakenFile, record: Record, *, retry_s: float | None = None, **how: Any
    ) -> None:
        found = taken.found
        self.under_way.pop(found.path, None)
        if retry_s is None:
            self.attempts.pop(found.path, None)
        outcome = WatchOutcome(path=found.path, record=record, companions=found.companions, **how)
        await self._on_end(outcome, retry_s)

    async def end_unhandled(self, outcome: Outcome) -> None:
        """What every file would fail with ends the watcher; a bug ends its file."""
        taken: TakenFile = outcome.item.tag
        if isinstance(outcome.error, STOPS_ALL):
            raise outcome.error
        error = outcome.error
        if error is None or isinstance(error, _AlreadyVerified):
            return
        if taken.found.path in self.under_way:
            self._progress.add_failed(taken.row, error, self._exit_code(error))
            await self._publish(taken, {}, error=error)


def _text_of(error: OSError | VodupError) -> str:
    if isinstance(error, VodupError):
        return error.message
    return f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
