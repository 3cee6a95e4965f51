"""How a file of a watched folder ends: a record in the ledger first, then the file is put away."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from uploader.bulk.ledger import DONE, Ledger, Record, failure_record, success_record
from uploader.errors import UnsafePath, VodupError
from uploader.events import UploadResult
from uploader.library import PlayableVideo
from uploader.protocol.media import StoredMedia
from uploader.protocol.vod import refuses_name
from uploader.watch.after import (
    AfterUpload,
    delete,
    move,
    return_name,
    set_apart,
    write_reason,
)
from uploader.watch.scan import OWN_PREFIX, Companions, FoundFile, stamp_of
from uploader.watch.taking import TakenFile, record_number


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOutcome:
    """How one file ended, for now or for good.

    Attributes:
        path: where it was.
        record: what the ledger has of it; it may have none of a failure that is tried again.
        companions: files that belong to it.
        result: what OSS holds; None if it failed, or was only moved after an earlier run.
        video: how the video plays, if that was waited for.
        attached: its cover and subtitles, if they were uploaded.
        error: why it was not uploaded.
        is_final: False: it is tried again.
        moved_to: where the file is now, if it was moved.
        problem: why it was not put away; that is tried again.
    """

    path: str
    record: Record
    companions: Companions
    result: UploadResult | None = None
    video: PlayableVideo | None = None
    attached: Sequence[StoredMedia] = ()
    error: VodupError | None = None
    is_final: bool = True
    moved_to: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """Writes records and puts files away.

    Attributes:
        root: the watched folder, links resolved.
        failed_folder: where files that failed are moved; None: they stay.
        has_inodes: whether inodes are part of a file's identity.
        has_attached: whether something uploads covers and subtitles, so that deleting them
            loses nothing.
    """

    ledger: Ledger
    root: str
    scope: str
    after: AfterUpload
    failed_folder: str | None
    exit_code: Callable[[VodupError], int]
    has_inodes: bool = True
    has_attached: bool = False

    def record_success(
        self, taken: TakenFile, result: UploadResult, attached: Sequence[StoredMedia] = ()
    ) -> Record:
        """Record that the file is verified, and which media were attached.

        Raises:
            StateUnavailable: the ledger cannot be written.
        """
        record = success_record(taken.row, result)
        if attached:  # without URLs: they may be signed, and the ledger is kept
            ids = [{"media_id": each.media_id, "kind": str(each.kind)} for each in attached]
            record["attached"] = ids
        self.ledger.add(record)
        self.ledger.mark_done(taken.number)
        return record

    def record_failure(self, taken: TakenFile, error: VodupError, attempts: int) -> Record:
        """Record that the file has failed.

        Raises:
            StateUnavailable: the ledger cannot be written.
        """
        code = self.exit_code(error)
        record = failure_record(taken.row, error, exit_code=code, attempts=attempts)
        self.ledger.add(record)
        return record

    def record_playable(self, record: Record, video: PlayableVideo) -> Record:
        """Record that the video of a file plays.

        Raises:
            StateUnavailable: the ledger cannot be written.
        """
        facts = asdict(video)
        del facts["streams"]  # their URLs may be signed, and the ledger is kept
        record = {**record, "playable": facts}
        self.ledger.add(record, replaces=True)
        return record

    def unplayed(self) -> set[int]:
        """Return the numbers of verified files whose videos are not known to play. Blocks."""
        records = self.ledger.records()
        return {
            int(record["id"], 16)
            for record in records
            if record["status"] == DONE and "playable" not in record
        }

    def put_away(self, taken: TakenFile) -> str | None:
        """Move or delete a file that is verified; returns where it is now. Blocks.

        What belongs to it goes first: a verified file is never uploaded again, whatever a
        killed run leaves behind.

        Raises:
            OSError, VodupError: it is still there.
        """
        found, folder = taken.found, self.after.folder
        if self.after.kind == "keep":
            return None
        if folder is not None:
            self._move_companions(found, folder)
            return self._move(taken, folder)
        uploaded = {found.companions.metadata, found.companions.marker}
        for path in self._companions(found):
            if self.has_attached or path in uploaded:
                with suppress(FileNotFoundError):
                    delete(self.root, path)
        delete(self.root, self._set_apart(taken))
        return None

    def put_aside(self, taken: TakenFile, record: Record) -> str | None:
        """Move a file that failed to where failed files are, with the reason. Blocks.

        It goes first: without its metadata it must not be taken again.

        Raises:
            OSError, VodupError: it is still there.
        """
        if self.failed_folder is None:
            return None
        moved = self._move(taken, self.failed_folder)
        self._move_companions(taken.found, self.failed_folder)
        write_reason(moved, _reason(taken.found.path, record))
        return moved

    def recover(self, leftovers: Iterable[str]) -> list[str]:
        """Continue with files that a killed run has set apart; returns their old paths. Blocks."""
        names = [path for path in leftovers if not path.endswith(".draft")]
        if not names:
            return []
        records = {str(record["id"]): record for record in self.ledger.records()}
        recovered = []
        for hidden in names:
            record = records.get(os.path.basename(hidden).removeprefix(OWN_PREFIX))
            if record is not None:
                with suppress(OSError, UnsafePath):  # it is tried again at the next start
                    self._recover(hidden, record)
                    recovered.append(str(record["path"]))
        return recovered

    def _recover(self, hidden: str, record: Mapping[str, Any]) -> None:
        path = str(record["path"])
        status = os.lstat(hidden)
        found = FoundFile(path, stamp_of(status, has_inodes=self.has_inodes), ())
        folder = self.after.folder if record["status"] == DONE else self.failed_folder
        if f"{record_number(self.scope, found):016x}" != record["id"]:
            return_name(self.root, hidden, path)  # it had been replaced by another
        elif folder is not None:
            moved = move(self.root, hidden, self._below(folder, path))
            if record["status"] != DONE:
                write_reason(moved, _reason(path, record))
        elif record["status"] == DONE and self.after.kind == "delete":
            delete(self.root, hidden)
        else:
            return_name(self.root, hidden, path)

    def _move_companions(self, found: FoundFile, folder: str) -> None:
        for path in self._companions(found):
            with suppress(FileNotFoundError):
                move(self.root, path, self._below(folder, path))

    def _move(self, taken: TakenFile, folder: str) -> str:
        path, hidden = taken.found.path, self._set_apart(taken)
        try:
            return move(self.root, hidden, self._below(folder, path))
        except BaseException:
            return_name(self.root, hidden, path)
            raise

    def _set_apart(self, taken: TakenFile) -> str:
        def is_same(status: os.stat_result) -> bool:
            stamp = stamp_of(status, has_inodes=self.has_inodes)
            return stamp[:3] == taken.found.stamp[:3]

        return set_apart(self.root, taken.found.path, taken.number, is_same)

    def _companions(self, found: FoundFile) -> list[str]:
        """Those that are there, unless another video of the same name needs them."""
        folder, name = os.path.split(found.path)
        with suppress(OSError):
            stem = f"{os.path.splitext(name)[0]}."
            others = {each for each in os.listdir(folder) if each.startswith(stem)} - {name}
            paths = {os.path.basename(path) for path in found.companions.paths}
            if not all(map(refuses_name, others - paths)):
                own = f"{found.path}."
                return [path for path in found.companions.paths if path.startswith(own)]
        return [path for path in found.companions.paths if os.path.lexists(path)]

    def _below(self, folder: str, path: str) -> str:
        return os.path.join(folder, os.path.relpath(path, self.root))


def _reason(path: str, record: Record) -> dict[str, Any]:
    names = "error message next_step code request_id video_id attempts".split()
    return {
        "path": path,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: record[name] for name in names if record.get(name) is not None},
    }
