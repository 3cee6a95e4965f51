"""Looks at a folder whenever something may have become due, and finds the complete files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from uploader.bulk.rows import require_title_template
from uploader.errors import ConfigurationError
from uploader.tasks import beside
from uploader.threads import in_thread
from uploader.watch.events import file_system_of, is_network, notify
from uploader.watch.options import WatchOptions
from uploader.watch.scan import FoundFile, Scan, ScanRules, require_marker
from uploader.watch.settling import Lack, Settling

_POLL_S: Final = 5.0
_LATE_S: Final = 60.0


class Looking:
    """One folder while it is watched. Mutable.

    Attributes:
        settling: the files in it.
        wake: set it to look again soon.
        problem: why the folder cannot be read now; None: it can.
        skipped: why files are left alone, by path.
    """

    def __init__(
        self,
        folder: str,
        options: WatchOptions,
        on_skipped: Callable[[str, str], None],
        on_notice: Callable[[str], None],
    ) -> None:
        """Nothing is read before `prepare`; `folder` is absolute, links resolved."""
        self._folder, self._options = folder, options
        self._on_skipped, self._on_notice = on_skipped, on_notice
        self._moved = asyncio.Event()
        self._places: list[str] = []
        self._scan_s = 0.0
        self.settling = Settling(options.settle_s)
        self.wake = asyncio.Event()
        self.problem: str | None = None
        self.skipped: Mapping[str, str] = {}

    def prepare(self) -> None:
        """Check the folder and the options.

        Raises:
            ConfigurationError: one of them cannot be used.
        """
        options, folder = self._options, self._folder
        if not os.path.isdir(folder):
            raise ConfigurationError(f"{folder} is not a folder.", next_step="Check the path.")
        if options.ready is not None:
            require_marker(options.ready)
        if options.title_template is not None:
            require_title_template(options.title_template)
        kind = file_system_of(folder)
        self.has_inodes = not is_network(kind)
        self._is_polling = options.poll_s is not None or not self.has_inodes
        self._interval_s = options.rescan_s
        if self._is_polling:
            self._interval_s = min(options.poll_s or _POLL_S, options.rescan_s)
            if options.poll_s is None:
                self._on_notice(f"{folder} is on {kind}: looking every {self._interval_s:g} s.")
        apart = filter(None, (options.after.folder, options.failed_folder))
        self._rules = ScanRules(
            folder=folder,
            include=options.include,
            exclude=options.exclude,
            ready=options.ready,
            apart=frozenset(map(os.path.realpath, apart)),
            has_inodes=self.has_inodes,
        )
        if folder in self._rules.apart:
            raise ConfigurationError(
                f"{folder} is the folder that is watched.",
                next_step="Pass another folder to --after and --failed-dir; it may be below it.",
            )
        self._clock = asyncio.get_running_loop().time
        self._looked_s = self._clock()

    async def scan(self) -> Scan:
        """Return what is in the folder.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            return await in_thread(self._rules.scan)
        except OSError as error:
            raise ConfigurationError(f"{self._folder} cannot be read: {error.strerror}.") from error

    @property
    def is_late(self) -> bool:
        """Whether the folder should have been looked at again long ago."""
        age_s = self._clock() - self._looked_s
        return age_s > 3 * self._interval_s + 10 * self._scan_s + _LATE_S

    async def run(self, take: Callable[[Sequence[FoundFile]], Awaitable[None]]) -> None:
        """Call `take` with the files that are complete; ends when `is_once` is over."""
        while True:
            self.wake.clear()
            began_s = self._clock()
            await self._look(take)
            self._looked_s = now_s = self._clock()
            self._scan_s = now_s - began_s
            if self._options.is_once and self.settling.is_settled():
                return
            due_s = self.settling.next_s() or now_s + self._interval_s
            # A large folder that changes all the time must not keep a processor busy.
            rest_s = min(0.5, self._options.settle_s / 10) + 4 * self._scan_s
            await asyncio.sleep(max(0.01, rest_s))
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(due_s, now_s + self._interval_s)):
                    await self.wake.wait()

    async def _look(self, take: Callable[[Sequence[FoundFile]], Awaitable[None]]) -> None:
        began_s = self._clock()
        try:
            scan = await self.scan()
        except ConfigurationError as error:
            if self.problem != error.message:
                self._on_notice(f"{error.message} Files that arrive are taken once it can.")
            self.problem = error.message
            return
        self.problem = None
        places = [*scan.folders, str(scan.root)]
        if places != self._places:
            self._places = places
            self._moved.set()
        files, skipped = scan.files, scan.skipped
        if self._options.requires_metadata:
            lacking = [file.path for file in files if file.companions.metadata is None]
            files = [file for file in files if file.companions.metadata is not None]
            skipped |= dict.fromkeys(lacking, "it has no metadata")
        now_s = self._clock()
        await take(self.settling.observe(files, began_s=began_s, ended_s=now_s))
        self._report(skipped | self._waiting())

    def _waiting(self) -> dict[str, str]:
        """Why files are not complete; that one is written to matters only at the end."""
        found = {}
        for path, lack in self.settling.waits():
            if lack is Lack.MARKER:
                found[path] = f"{lack} ({os.path.basename(self._rules.marker_of(path) or '')})"
            elif lack is Lack.CONTENT or self._options.is_once:
                found[path] = str(lack)
        return found

    def _report(self, skipped: Mapping[str, str]) -> None:
        for path, reason in skipped.items():
            if self.skipped.get(path) != reason:
                self._on_skipped(path, reason)
        self.skipped = skipped

    async def listen(self) -> None:
        """Be notified of changes in all folders; a new folder is listened to once it is seen."""
        while not self._is_polling:
            await self._moved.wait()
            self._moved.clear()
            async with beside(notify(self._places[:-1], self.wake, self._on_deaf)):
                await self._moved.wait()

    def _on_deaf(self, reason: str) -> None:
        """Without notifications, look more often."""
        interval_s = min(_POLL_S, self._interval_s)
        if self.problem is None and interval_s < self._interval_s:
            self._on_notice(f"No notifications: {reason}. Looking every {interval_s:g} s.")
        self._interval_s = interval_s
        self.wake.set()
