"""A watched folder feeds the queue: files are uploaded by workers, and put away here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from uploader.batch import UploadItem
from uploader.bulk.ledger import DONE, KnownRow, Ledger, id_of
from uploader.bulk.runner import CheckedRow
from uploader.cluster.enqueue import Enqueuer
from uploader.cluster.jobs import Places, storable
from uploader.cluster.results import Results
from uploader.errors import ConfigurationError, SourceChanged, VodupError
from uploader.events import Listener, UploadResult
from uploader.library import PlayableVideo
from uploader.tasks import beside
from uploader.threads import in_thread
from uploader.watch.taking import TakenFile

if TYPE_CHECKING:
    from uploader.cluster.database import Pool

_POLL_S: Final = 1.0
_RESULT_FIELDS: Final = tuple(field.name for field in fields(UploadResult))


class QueuedFailure(VodupError):
    """A worker has recorded that the upload failed for good."""


@asynccontextmanager
async def queued_uploads(
    pool: Pool,
    folder: str,
    scope: str,
    places: Places,
    exit_code: Callable[[VodupError], int],
) -> AsyncIterator[QueuedUploads]:
    """Queue the files of a folder while the block runs.

    Raises:
        StateUnavailable: the database cannot be used; what is queued stays queued.
    """
    folder = await in_thread(os.path.realpath, folder)
    with Ledger() as ledger:
        uploads = QueuedUploads(pool, ledger, folder, scope, places, exit_code=exit_code)
        async with uploads.running():
            yield uploads


class QueuedUploads:
    """Uploads files by queueing them and waiting for their records. Mutable: what is awaited.

    Args:
        folder: that is watched, absolute with links resolved.
        scope: of the account's videos.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        folder: str,
        scope: str,
        places: Places,
        *,
        exit_code: Callable[[VodupError], int],
    ) -> None:
        # The same path on two machines is two files, unless they share the folder.
        self.scope = f"{scope} {places.queue_of(f'{folder}/')}"
        self._results = Results(pool, [storable(folder)])
        self._awaited: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self._enqueuer = Enqueuer(
            pool, ledger, places, exit_code=exit_code, on_ended=self._on_ended
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the records while the block runs.

        Raises:
            StateUnavailable: the database cannot be used; what is queued stays queued.
        """
        await self._results.skip_past()
        async with beside(self._follow()):
            yield

    async def _follow(self) -> None:
        while True:
            async for record in self._results.new():
                self._on_ended(record)
            await asyncio.sleep(_POLL_S)

    def _on_ended(self, record: Mapping[str, Any]) -> None:
        awaited = self._awaited.get(record["id"])
        if awaited is not None and not awaited.done():
            awaited.set_result(record)

    async def upload_item(
        self, item: UploadItem, *, on_event: Listener | None = None
    ) -> UploadResult:
        """Queue a file, and return what a worker has stored.

        Raises:
            QueuedFailure: it failed for good.
            SourceChanged: the file is not the one that was queued any more.
            StateUnavailable: the database cannot be used.
        """
        taken: TakenFile = item.tag
        path, row_id = taken.found.path, f"{id_of(taken.row):016x}"
        checked = CheckedRow(
            taken.row, KnownRow(), path, taken.found.stamp[0], on_source_change="new-video"
        )
        awaited = asyncio.get_running_loop().create_future()
        self._awaited[row_id] = awaited
        try:
            await self._enqueuer.add([checked])
            record = await awaited
        finally:
            del self._awaited[row_id]
        await in_thread(_require_same, taken)
        if record["status"] != DONE:
            raise QueuedFailure(record["message"], next_step=record["next_step"])
        given = {name: record[name] for name in _RESULT_FIELDS if name in record}
        result = UploadResult(**given | {"crc64": int(record["crc64"])})
        return replace(result, hook_failures=tuple(result.hook_failures))

    async def wait_until_playable(
        self, video_id: str, *, timeout_s: float | None = None
    ) -> PlayableVideo:
        """Refuse: only workers have credentials.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            "--wait and --enqueue cannot be used together.", next_step="Leave one of them out."
        )

    async def abort(self, key: str) -> None:
        """Leave it to the worker: it has found out by itself, or is about to."""


def _require_same(taken: TakenFile) -> None:
    size, mtime_ns, inode, _ = taken.found.stamp
    try:
        now = os.lstat(taken.found.path)
    except OSError as error:
        raise SourceChanged(f"{taken.found.path} does not exist any more.") from error
    if (now.st_size, now.st_mtime_ns, inode and now.st_ino) != (size, mtime_ns, inode):
        raise SourceChanged(f"{taken.found.path} has changed since it was queued.")
