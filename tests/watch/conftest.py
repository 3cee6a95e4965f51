"""A server, a watched folder and watchers, as runs of a service would make them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Desk
from uploader.devserver import DevServer
from uploader.watch.after import AfterUpload
from uploader.watch.carrying import Attach
from uploader.watch.endings import WatchOutcome
from uploader.watch.options import WatchOptions
from uploader.watch.watcher import Watcher


@dataclass
class Place:
    """A watched folder, where its files are moved, and what watchers said."""

    desk: Desk
    folder: Path
    done: Path
    failed: Path
    skipped: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def options(self, **changes: Any) -> WatchOptions:
        """Files are complete at once, and moved; it ends when all have ended."""
        given: dict[str, Any] = {
            "settle_s": 0.0,
            "after": AfterUpload("move", str(self.done)),
            "failed_folder": str(self.failed),
            "is_once": True,
            "poll_s": 0.05,
        }
        return WatchOptions(**given | changes)

    @asynccontextmanager
    async def watching(
        self, *, attach: Attach | None = None, **changes: Any
    ) -> AsyncIterator[Watcher]:
        async with (
            self.desk.uploader() as uploader,
            Watcher(
                uploader,
                self.folder,
                options=self.options(**changes),
                ledger=self.desk.folder / "ledger.jsonl",
                attach=attach,
                on_skipped=self._on_skipped,
                on_notice=self.notices.append,
            ) as watcher,
        ):
            yield watcher

    def _on_skipped(self, path: str, reason: str) -> None:
        self.skipped[Path(path).name] = reason

    async def run(self, **changes: Any) -> list[WatchOutcome]:
        """Watch until what is there has ended."""
        async with self.watching(**changes) as watcher:
            return [outcome async for outcome in watcher]

    def write(self, name: str, content: bytes = b"a video") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def titles(self) -> list[str]:
        return sorted(video.title for video in self.desk.server.videos.values())

    def contents(self) -> list[bytes]:
        server = self.desk.server
        return sorted(server.object_bytes(video_id) for video_id in server.videos)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    folder = tmp_path / "ingest"
    folder.mkdir()
    async with DevServer() as server:
        yield Place(Desk(server, tmp_path), folder, tmp_path / "done", tmp_path / "failed")
