"""The ledger of a batch: one terminal record for every row, whatever crashes in between.

Records are JSON Lines that are themselves a manifest. They are only ever appended, so a
crash can tear no more than the last line, which the next run removes. A later record of
a row replaces an earlier one; `close` writes the file anew without what was replaced.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from uploader.errors import ConfigurationError, StateUnavailable, UploadLocked, VodupError
from uploader.events import UploadResult

from .register import Register, number_of
from .rows import Row

__all__ = ["Earlier", "Ledger", "Record", "failure_record", "success_record"]

Record = Mapping[str, Any]

DONE: Final = "done"
FAILED: Final = "failed"

_RESULT: Final = tuple(field.name for field in fields(UploadResult))
_BEGINNING: Final = b'{"id": "'

# What the register holds of a row: whether it was met in this run, and what the ledger
# said of it when it was opened.
_MET: Final = 1
_WAS_DONE: Final = 2
_HAD_FAILED: Final = 4


@dataclass(frozen=True, slots=True)
class Earlier:
    """What was known of a row when this run came to it."""

    is_done: bool = False
    had_failed: bool = False
    is_repeated: bool = False


def id_of(row: Row) -> int:
    """What a row is known by in every run: its upload, or, for a refused row, its place."""
    return number_of(f"key:{row.key}" if row.key else f"row:{row.manifest}:{row.number}")


def success_record(row: Row, result: UploadResult) -> dict[str, Any]:
    """The terminal record of a row that is stored and verified."""
    return {
        **_begin(row, DONE),
        **{name: getattr(result, name) for name in _RESULT},
        "crc64": str(result.crc64),  # many readers of JSON keep only 53 bits of a number
    }


def failure_record(row: Row, error: VodupError, *, exit_code: int, attempts: int) -> dict[str, Any]:
    """The terminal record of a row that failed, or was refused."""
    video_id = error.video_id or row.video_id
    return {
        **_begin(row, FAILED),
        **({"video_id": video_id} if video_id else {}),
        "error": type(error).__name__,
        "message": error.message,
        "code": error.code,
        "request_id": error.request_id,
        "resumable": error.is_resumable,
        "temporary": error.is_temporary,
        "next_step": error.next_step,
        "exit_code": exit_code,
        "attempts": attempts,
    }


def _begin(row: Row, status: str) -> dict[str, Any]:
    return {
        "id": f"{id_of(row):016x}",
        "manifest": row.manifest,
        "row": row.number,
        "status": status,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **row.given,
        **({"key": row.upload_key} if row.upload_key else {}),
    }


class Ledger:
    """The records of a batch in a file; without a path in one that is removed at the end.

    Mutable: the open file, and which rows are known. `meet` belongs to the one thread
    that reads rows, everything else to the loop's.

    Raises:
        UploadLocked: another process writes to the file.
        ConfigurationError: it is something else than a ledger, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = Path(os.path.abspath(path)) if path is not None else None
        self._known = Register()
        self._replaced_count = 0
        self._stale_count = 0
        self._file = self._opened()
        try:
            self._load()
        except BaseException:
            self._close_file()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_file()

    def _opened(self) -> int:
        if self._path is None:
            handle, name = tempfile.mkstemp(prefix="vodup-ledger-")
            os.unlink(name)
            fcntl.fcntl(handle, fcntl.F_SETFL, os.O_APPEND)
            return handle
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            handle = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"{self._path} cannot be written: {error.strerror}."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(self._path)):
                raise BlockingIOError  # replaced by its owner in this very moment
        except OSError as error:
            os.close(handle)
            raise UploadLocked(f"Another process writes to {self._path}.") from error
        return handle

    def _close_file(self) -> None:
        handle, self._file = self._file, -1
        if handle >= 0:
            os.close(handle)

    # --- what former runs left ----------------------------------------------------------

    def _load(self) -> None:
        whole_size = 0
        for offset, size, record in self._lines():
            if record is None and offset == 0 and not self._is_blank(size):
                raise ConfigurationError(
                    f"{self._path} is there already and is no ledger of vodup.",
                    next_step="Name another file with --report.",
                )
            whole_size = offset + size
            if record is None:
                self._stale_count += 1
                continue
            number = int(record["id"], 16)
            former = self._known.get(number)
            self._replaced_count += former != 0
            self._known.set(number, _WAS_DONE if record["status"] == DONE else _HAD_FAILED)
        if whole_size < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole_size)  # a line that a crash has torn

    def _is_blank(self, size: int) -> bool:
        """Whether a line holds nothing: a power cut may leave the room for one only."""
        return not os.pread(self._file, size, 0).strip(b"\0\n")

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """Offset, size and record of each whole line; None for what is no record."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            offset = 0
            for line in file:
                if line.endswith(b"\n"):
                    yield offset, len(line), _record_of(line)
                elif offset == 0 and not line.startswith(_BEGINNING[: len(line)]):
                    yield 0, len(line), None  # somebody's text, not a torn line of ours
                offset += len(line)

    # --- this run -----------------------------------------------------------------------

    def meet(self, row: Row) -> Earlier:
        """Note that this run has come to a row; tells what is known of it."""
        number = id_of(row)
        flags = self._known.get(number)
        is_repeated = bool(flags & _MET)
        reference_id = row.given.get("reference_id")
        if reference_id is not None and row.error is None and not is_repeated:
            is_repeated = self._meet_reference(str(reference_id))
        self._known.set(number, flags | _MET)
        return Earlier(bool(flags & _WAS_DONE), bool(flags & _HAD_FAILED), is_repeated)

    def _meet_reference(self, reference_id: str) -> bool:
        """VOD would give the second row the first one's video."""
        number = number_of(f"reference:{reference_id}")
        is_repeated = bool(self._known.get(number))
        self._known.set(number, _MET)
        return is_repeated

    def add(self, record: Record, *, replaces: bool = False) -> None:
        """Append a record: written when this returns, whatever kills this process.

        Args:
            replaces: whether the ledger has an older record of the row.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise StateUnavailable(f"{self._name} cannot be written: {error.strerror}.") from error
        self._replaced_count += replaces

    @property
    def _name(self) -> str:
        return str(self._path) if self._path else "The ledger"

    # --- the end ------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        """All records that are in force, in the order in which they were written."""
        last = Register()
        for offset, _, record in self._lines():
            if record is not None:
                last.set(int(record["id"], 16), offset + 1)
        for offset, _, record in self._lines():
            if record is not None and last.get(int(record["id"], 16)) == offset + 1:
                yield record

    def settle(self, *, manifests: Iterable[str] = ()) -> None:
        """Leave one record for each row.

        Args:
            manifests: those read to their end: their rows that this run has not met are
                not there any more, and their failures are dropped.
        """
        read = frozenset(manifests)
        is_stale = any(flags == _HAD_FAILED for flags in self._known.values())
        if self._path is None or not (self._replaced_count or self._stale_count or is_stale):
            os.fsync(self._file)
            return

        def is_in_force(record: Record) -> bool:
            is_met = self._known.get(int(record["id"], 16)) & _MET
            return bool(is_met or record["status"] == DONE or record.get("manifest") not in read)

        self._replace(filter(is_in_force, self.records()))

    def _replace(self, records: Iterable[Record]) -> None:
        """Write the file anew; a crash leaves the old one or the new one."""
        if self._path is None:
            raise RuntimeError("a ledger without a path is not kept")
        handle = write_all(self._path, records)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._close_file()
        self._file = handle
        self._replaced_count = self._stale_count = 0

    def write_failures(self, path: str | os.PathLike[str]) -> None:
        """Write the failures alone to another file, which replaces what was there."""
        failures = (record for record in self.records() if record["status"] != DONE)
        os.close(write_all(Path(os.path.abspath(path)), failures))


def write_all(path: Path, records: Iterable[Record]) -> int:
    """Write a file of records in one step; returns its descriptor, for appending.

    Raises:
        StateUnavailable: it cannot be written; what was there is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(draft, flags, 0o600)
        try:
            with os.fdopen(os.dup(handle), "wb") as file:
                for record in records:
                    file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(handle)
            os.replace(draft, path)
        except BaseException:
            os.close(handle)
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateUnavailable(f"{path} cannot be written: {error.strerror}.") from error
    return handle


def _record_of(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        int(record["id"], 16)
        return record if record["status"] in (DONE, FAILED) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
