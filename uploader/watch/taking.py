"""A complete file becomes a row of the ledger and an upload."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from uploader.batch import UploadItem
from uploader.bulk.ledger import KnownRow, id_of
from uploader.bulk.manifests import matches_any
from uploader.bulk.rows import RawRow, Row, RowRules
from uploader.bulk.runner import CheckedRow
from uploader.errors import SourceChanged, SourceUnreadable, VodupError
from uploader.sources import FileSource, UrlPolicy
from uploader.upload.request import default_key
from uploader.watch.events import is_open_for_writing
from uploader.watch.metadata import read_metadata
from uploader.watch.scan import FoundFile


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A complete file and its row; `row.key` is its identity and names its record."""

    found: FoundFile
    row: Row

    @property
    def number(self) -> int:
        """The id of its record."""
        return id_of(self.row)


def identity_key(scope: str, found: FoundFile) -> str:
    """Return what a file with this path, size, time and inode is called in every run."""
    size, mtime_ns, inode, _ = found.stamp
    return default_key(scope, f"{found.path}\0{size}\0{mtime_ns}\0{inode}")


def record_number(scope: str, found: FoundFile) -> int:
    """Return the id of the record of a file."""
    return id_of(Row("", 0, key=identity_key(scope, found)))


@dataclass(frozen=True, slots=True)
class Taking:
    """Makes rows and uploads of the complete files of a folder.

    Attributes:
        priorities: patterns, each with the priority of what it matches.
        on_notice: called with a sentence about metadata that is ignored.
    """

    folder: str
    rules: RowRules
    priorities: Sequence[tuple[str, int]]
    on_notice: Callable[[str], None]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def check(self, files: Sequence[FoundFile]) -> list[tuple[FoundFile, TakenFile | None]]:
        """Read the metadata of files; None for those that are being written. Blocks."""
        return [
            (found, None if is_open_for_writing(found.path, root=self.folder) else self._of(found))
            for found in files
        ]

    def _of(self, found: FoundFile) -> TakenFile:
        """What is wrong with the metadata is the row's error."""
        fields: dict[str, Any] = {}
        error: VodupError | None = None
        try:
            if found.companions.metadata is not None:
                fields = self._metadata(found.companions.metadata)
        except VodupError as failure:
            error = failure
        except OSError as failure:
            reason = f"{found.companions.metadata} cannot be read: {failure.strerror}."
            error = SourceUnreadable(reason)
        fields = {"priority": self._priority_of(found.path), **fields, "path": found.path}
        row = self.rules.identify(RawRow(next(self._numbers), fields), self.folder)
        if error is None and row.error is None:
            row = self.rules.describe(row)
        key = identity_key(self.rules.scope, found)
        row = replace(
            row,
            key=key,
            upload_key=row.upload_key or (None if row.video_id else key),
            stamp=found.stamp[:2],
            error=error or row.error,
        )
        return TakenFile(found, row)

    def _metadata(self, path: str) -> dict[str, Any]:
        fields, ignored = read_metadata(path, root=self.folder)
        if ignored:
            names = ", ".join(sorted(name[:60] for name in ignored))
            self.on_notice(f"{path}: ignoring unknown fields: {names}.")
        return fields

    def _priority_of(self, path: str) -> int | None:
        relative = os.path.relpath(path, self.folder)
        matching = (n for glob, n in self.priorities if matches_any(relative, [glob]))
        return next(matching, None)

    def item(self, taken: TakenFile) -> UploadItem:
        """Return what is uploaded."""
        found, row = taken.found, taken.row
        checked = CheckedRow(
            row, KnownRow(), found.path, found.stamp[0], self.folder, on_source_change="new-video"
        )
        item = checked.item(UrlPolicy(), overwrite=False)
        return replace(item, source=_CompleteFile(found, self.folder), tag=taken)


class _CompleteFile(FileSource):
    """A file that must be the one that was complete: it may have been waiting for hours."""

    def __init__(self, found: FoundFile, root: str) -> None:
        super().__init__(found.path, follow_symlinks=False, root=root)
        self._found = found

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            SourceChanged: it has changed since it was complete.
        """
        await super().__aenter__()
        try:
            now = await self.fingerprint()
            size, mtime_ns, inode, _ = self._found.stamp
            if (now.size, now.mtime_ns, inode and now.inode) != (size, mtime_ns, inode):
                raise SourceChanged(f"{self.name} has changed since it was complete.")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self
