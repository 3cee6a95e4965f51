"""`Watcher`: uploads the files that arrive in a folder, each once, and puts them away."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, Self

from uploader.batch import UploadItem, require_files, upload_batch
from uploader.bulk.ledger import Ledger
from uploader.bulk.progress import BatchProgress
from uploader.bulk.rows import Root, RowRules
from uploader.errors import (
    VodupError,
)
from uploader.tasks import beside, one_error
from uploader.threads import in_thread
from uploader.watch.carrying import Attach, Carrying, Uploads
from uploader.watch.endings import Endings, WatchOutcome
from uploader.watch.looking import Looking
from uploader.watch.options import WatchOptions
from uploader.watch.scan import FoundFile
from uploader.watch.taking import TakenFile, Taking, record_number

_CHECK_BATCH: Final = 256
_LOOK_AHEAD: Final = 1000
_MAX_OUTCOMES: Final = 64
_SAMPLE_S: Final = 1.0


class _Backlog:
    """Complete files that wait, the most urgent first. Mutable; one task takes them."""

    def __init__(self) -> None:
        self._files: list[tuple[int, int, TakenFile]] = []
        self._order = itertools.count()
        self._is_closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._files)

    def add(self, taken: TakenFile) -> None:
        """Add a file; of one priority they stay in the order in which they were complete."""
        heapq.heappush(self._files, (-(taken.row.priority or 0), next(self._order), taken))
        self._changed.set()

    def close(self) -> None:
        """No more files will be added."""
        self._is_closed = True
        self._changed.set()

    async def next(self) -> TakenFile | None:
        """Return the next file, once there is one; None after the last."""
        while not self._files and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        return heapq.heappop(self._files)[-1] if self._files else None


class Watcher:
    """Uploads what arrives in a folder; an async iterator of how each file ended.

        async with Uploader(provider) as up, Watcher(up, "/ingest", ledger="l.jsonl") as watcher:
            async for outcome in watcher:
                print(outcome.path, outcome.result or outcome.error)

    One process watches a folder: the ledger is locked. Outcomes that nobody reads hold up the
    uploads. Leaving the block cancels them; the next run resumes. Mutable.

    Attributes:
        progress: counts of this run.
    """

    def __init__(
        self,
        uploader: Uploads,
        folder: str | os.PathLike[str],
        *,
        options: WatchOptions | None = None,
        ledger: str | os.PathLike[str] | None = None,
        attach: Attach | None = None,
        exit_code: Callable[[VodupError], int] = lambda _: 1,
        on_skipped: Callable[[str, str], None] = lambda path, reason: None,
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Nothing is opened before `async with`.

        Args:
            uploader: is open while the watcher is.
            ledger: file with a record of each file that ended; None: one that is removed at the
                end, so that a restart compares every file with the state again.
            attach: uploads covers and subtitles once a video is verified.
            exit_code: goes into the records of failures.
            on_skipped: called once with each file that is left alone, and why.
            on_notice: called with a sentence about the watcher itself.
        """
        self._uploader, self._options = uploader, options or WatchOptions()
        self._folder, self._ledger_path = os.path.realpath(folder), ledger
        self._attach, self._exit_code = attach, exit_code
        self._on_notice = on_notice
        self._looking = Looking(self._folder, self._options, on_skipped, on_notice)
        self._backlog = _Backlog()
        self._outcomes: asyncio.Queue[WatchOutcome | None] = asyncio.Queue(_MAX_OUTCOMES)
        self._has_ended = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the ledger and begin to look.

        Raises:
            ConfigurationError: the folder cannot be read, or an option is wrong.
            UploadLocked: another process has the ledger.
        """
        self.progress = BatchProgress(asyncio.get_running_loop().time, is_read=True)
        self._looking.prepare()
        self._taking = self._make_taking()
        async with AsyncExitStack() as stack:
            ledger = stack.enter_context(await in_thread(Ledger, self._ledger_path))
            endings = Endings(
                ledger=ledger,
                root=self._folder,
                scope=self._uploader.scope,
                after=self._options.after,
                failed_folder=self._options.failed_folder,
                exit_code=self._exit_code,
                has_inodes=self._looking.has_inodes,
                has_attached=self._attach is not None,
            )
            self._carrying = Carrying(
                self._uploader,
                endings,
                self._options,
                self.progress,
                waits := one_error(),
                self._on_end,
                attach=self._attach,
            )
            await self._recover(endings)
            await self._carrying.prepare()
            await stack.enter_async_context(beside(self._run(waits), self._sample()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchOutcome:
        """Return how the next file ended; with `is_once` there is a last one."""
        outcome = None if self._has_ended else await self._outcomes.get()
        if outcome is None:
            self._has_ended = True
            raise StopAsyncIteration
        return outcome

    def counts(self) -> dict[str, int]:
        """Return counts of files, and whether the folder is watched as it should be (1 or 0).

        May be called in any thread.
        """
        return {
            "healthy": self.problem is None and not self.is_late,
            "settling": self._looking.settling.settling_count,
            "queued": len(self._backlog),
            "under_way": len(self._carrying.under_way) - len(self._backlog),
            "left_alone": len(self._looking.skipped),
        }

    def figures(self) -> dict[str, Any]:
        """Return counts as JSON values; "status" is "ok" or "failing"."""
        counts = self.counts()
        is_healthy = counts.pop("healthy")
        return {
            "status": "ok" if is_healthy else "failing",
            "problem": self.problem,
            **counts,
            **self.progress.figures(),
        }

    @property
    def problem(self) -> str | None:
        """Why the folder cannot be read now; None: it can."""
        return self._looking.problem

    @property
    def is_late(self) -> bool:
        """Whether the folder should have been looked at again long ago."""
        return self._looking.is_late

    # --- preparing ------------------------------------------------------------------------

    def _make_taking(self) -> Taking:
        options, loop = self._options, asyncio.get_running_loop()

        def notice(text: str) -> None:  # in a thread
            loop.call_soon_threadsafe(self._on_notice, text)

        rules = RowRules(
            root=Root(self._folder),
            scope=self._uploader.scope,
            title_template=options.title_template,
            defaults=options.meta,
            takes_any_type=bool(options.include),
        )
        return Taking(self._folder, rules, tuple(options.priorities), notice)

    async def _recover(self, endings: Endings) -> None:
        """Put away what a killed run has begun to."""
        scan = await self._looking.scan()
        for path in await in_thread(endings.recover, scan.leftovers):
            self._on_notice(f"{path}: what a stopped run had begun is finished.")

    # --- running --------------------------------------------------------------------------

    async def _run(self, waits: asyncio.TaskGroup) -> None:
        async with beside(self._look()), waits:
            ended = upload_batch(
                self._carrying.carry_out,
                self._items(),
                files=require_files(self._options.files),
                look_ahead=_LOOK_AHEAD,
            )
            async with aclosing(ended) as outcomes:
                async for outcome in outcomes:
                    await self._carrying.end_unhandled(outcome)
        await self._outcomes.put(None)

    async def _sample(self) -> None:
        while True:
            self.progress.sample()
            await asyncio.sleep(_SAMPLE_S)

    async def _look(self) -> None:
        async with beside(self._looking.listen()):
            await self._looking.run(self._take)
        self._backlog.close()

    # --- taking ---------------------------------------------------------------------------

    async def _take(self, complete: Sequence[FoundFile]) -> None:
        """Queue complete files, except those that are written to, or have ended already."""
        for some in _batches(complete):
            new = [found for found in some if not self._stays(found)]
            for found, taken in await in_thread(self._taking.check, new):
                if taken is None:
                    self._looking.settling.put_back(found.path, asyncio.get_running_loop().time())
                    continue
                self._carrying.under_way[found.path] = taken
                self.progress.read_count += found.path not in self._carrying.attempts
                self._backlog.add(taken)

    def _stays(self, found: FoundFile) -> bool:
        stays = self._carrying.stays(record_number(self._uploader.scope, found))
        if stays:
            self._looking.settling.end(found.path)
        return stays

    async def _items(self) -> AsyncGenerator[UploadItem, None]:
        while (taken := await self._backlog.next()) is not None:
            yield self._taking.item(taken)

    async def _on_end(self, outcome: WatchOutcome, retry_s: float | None) -> None:
        is_touched = outcome.problem is not None
        self._looking.settling.end(outcome.path, retry_s=retry_s, is_touched=is_touched)
        self._looking.wake.set()
        await self._outcomes.put(outcome)


def _batches(files: Sequence[FoundFile]) -> Iterator[Sequence[FoundFile]]:
    for begin in range(0, len(files), _CHECK_BATCH):
        yield files[begin : begin + _CHECK_BATCH]
