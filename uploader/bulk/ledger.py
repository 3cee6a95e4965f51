"""The ledger of a batch: one final record for every row, whatever crashes in between.

Records are JSON Lines that are themselves a manifest. They are only appended, so a crash can
tear no more than the last line, which the next run removes. A later record of a row replaces
an earlier one; `compact` rewrites the file without replaced records.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Final, Self

from uploader import portable
from uploader.errors import (
    ConfigurationError,
    SourceChanged,
    StateUnavailable,
    UploadLocked,
    VodupError,
)
from uploader.events import UploadResult
from uploader.private_files import open_regular_file, replace_file

from .rows import Row

Record = Mapping[str, Any]

DONE: Final = "done"
FAILED: Final = "failed"

_RESULT: Final = tuple(field.name for field in fields(UploadResult))
_BEGINNING: Final = b'{"id": "'

# Flags of a row: this run has read it; the record that the ledger had when it was opened. The
# bits above are the mark of the file that was verified.
_READ: Final = 1
_WAS_DONE: Final = 2
_HAD_FAILED: Final = 4
_FLAGS: Final = 7


@dataclass(frozen=True, slots=True)
class KnownRow:
    """What was known of a row when this run read it.

    Attributes:
        is_done, has_failed: its record of an earlier run.
        is_repeated: this run has read the same upload before.
        mark: of the file that was verified, as `mark_of`; 0 if there is none.
        former: its record, if the file has changed since it was verified.
    """

    is_done: bool = False
    has_failed: bool = False
    is_repeated: bool = False
    mark: int = 0
    former: Record | None = None


# --- records --------------------------------------------------------------------------


def id_of(row: Row) -> int:
    """Identify a row in every run: by its upload, or a refused row by its place."""
    return hash_of(f"key:{row.key}" if row.key else f"row:{row.manifest}:{row.number}")


def success_record(row: Row, result: UploadResult) -> dict[str, Any]:
    """Return the final record of a row that is stored and verified."""
    return {
        **_begin(row, DONE),
        **{name: getattr(result, name) for name in _RESULT},
        "crc64": str(result.crc64),  # many readers of JSON keep only 53 bits of a number
        **({"source_size": row.stamp[0], "source_mtime_ns": row.stamp[1]} if row.stamp else {}),
    }


def failure_record(
    row: Row, error: VodupError, *, exit_code: int, attempts: int, former: Record | None = None
) -> dict[str, Any]:
    """Return the final record of a row that failed, or was refused.

    What a changed file was verified as stays known, but its video is no longer that of the row.
    """
    video_id = row.video_id if isinstance(error, SourceChanged) else error.video_id or row.video_id
    return {
        **_begin(row, FAILED),
        **({"video_id": video_id} if video_id else {}),
        **(_verified(former) if former else {}),
        "error": type(error).__name__,
        "message": error.message,
        "code": error.code,
        "request_id": error.request_id,
        "resumable": error.is_resumable,
        "temporary": error.is_temporary,
        "next_step": advice(error),
        "exit_code": exit_code,
        "attempts": attempts,
    }


_ADVICE: Final = (
    # What `push` has flags for, a row has columns for.
    (re.compile(r"(?i:pass) --key NAME"), "give the row a key of its own (column key)"),
    (re.compile(r"(?i:pass) another --key"), "give the row another key (column key)"),
    (re.compile(r"--video-id (\S+) --overwrite"), r"the video_id \1, with --overwrite,"),
    (re.compile(r"--video-id"), "its video_id"),
)


def advice(error: VodupError) -> str:
    """Return the next step of an error for somebody who has rows, and not the flags of `push`."""
    text = error.next_step
    for flag, column in _ADVICE:
        text = flag.sub(column, text)
    return text[:1].upper() + text[1:]


def _verified(former: Record) -> dict[str, Any]:
    stamp = {name: former.get(name) for name in ("source_size", "source_mtime_ns")}
    return {**stamp, "former_video_id": former_video_id(former)}


def former_video_id(former: Record) -> str | None:
    """Return the video that a file was verified as before it changed."""
    return former.get("former_video_id") or former.get("video_id")


def mark_of(stamp: Iterable[object]) -> int:
    """Return a number for the size and time of a file, with room for flags; never 0.

    That two states of a file share one happens once in 10^18 changes.
    """
    return hash_of(":".join(map(str, stamp))) & ~_FLAGS or _FLAGS + 1


def mark_in(record: Record) -> int:
    """Return the mark of the file that was verified; 0 if the record has none."""
    stamp = record.get("source_size"), record.get("source_mtime_ns")
    return 0 if None in stamp else mark_of(stamp)


def _begin(row: Row, status: str) -> dict[str, Any]:
    return {
        "id": f"{id_of(row):016x}",
        "manifest": row.manifest,
        "row": row.number,
        "status": status,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **row.columns,
        **({"key": row.upload_key} if row.upload_key else {}),
    }


def _record_of(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        int(record["id"], 16)
        return record if record["status"] in (DONE, FAILED) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_ledger(file: IO[bytes]) -> bool:
    """Whether vodup wrote it: its first line is a record, if only a torn one.

    Blank lines do not count: a power cut may leave only the space for a line.
    """
    line = next((line for line in file if line.strip(b"\0\n")), b"")
    if line.endswith(b"\n"):
        return (_record_of(line) or {}).keys() >= {"manifest", "row", "at"}
    return line.startswith(_BEGINNING[: len(line)]) or not line.strip(b"\0")


def is_failures(file: IO[bytes]) -> bool:
    """Whether it holds nothing but records of failed rows."""
    return all((_record_of(line) or {}).get("status") == FAILED for line in file)


# --- the file -------------------------------------------------------------------------


class Ledger:
    """The records of a batch in a file; without a path in one that is removed at the end.

    Mutable: the open file, and which rows are known. `look_up` belongs to the one thread
    that reads rows, everything else to the loop's.

    Raises:
        UploadLocked: another process writes to the file.
        ConfigurationError: it is not a ledger, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = Path(os.path.abspath(path)) if path is not None else None
        self._known = CompactMap()
        self._offsets: CompactMap | None = None  # made for the first row that has changed
        self._replaced_count = 0
        self._stale_count = 0
        self._file = _open_locked(self._path) if self._path else _open_temporary()
        try:
            self._load()
        except BaseException:
            self._close_file()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_file()

    def _close_file(self) -> None:
        handle, self._file = self._file, -1
        if handle >= 0:
            os.close(handle)

    def _load(self) -> None:
        """Read the records of earlier runs; remove a line that a crash has torn."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            if not is_ledger(file):
                raise ConfigurationError(
                    f"{self._path} exists and is not a ledger of vodup.",
                    next_step="Choose another file with --report.",
                )
        whole_size = 0
        for offset, size, record in self._lines():
            whole_size = offset + size
            if record is None:
                self._stale_count += 1
                continue
            number = int(record["id"], 16)
            self._replaced_count += self._known.get(number) != 0
            flags = _WAS_DONE if record["status"] == DONE else _HAD_FAILED
            self._known.set(number, flags | mark_in(record))
        if whole_size < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole_size)

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """Offset, size and record of each whole line; None for a line that is no record."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            offset = 0
            for line in file:
                if line.endswith(b"\n"):
                    yield offset, len(line), _record_of(line)
                offset += len(line)

    # --- this run -----------------------------------------------------------------------

    def look_up(self, row: Row) -> KnownRow:
        """Return what is known of a row, and remember that this run has read it."""
        number = id_of(row)
        flags = self._known.get(number)
        is_repeated = bool(flags & _READ)
        reference_id = row.columns.get("reference_id")
        if reference_id is not None and row.error is None and not is_repeated:
            is_repeated = self._has_read_reference(str(reference_id))
        self._known.set(number, flags | _READ)
        is_done, has_failed = bool(flags & _WAS_DONE), bool(flags & _HAD_FAILED)
        return KnownRow(is_done, has_failed, is_repeated, flags & ~_FLAGS)

    def is_done(self, number: int) -> bool:
        """Whether a row has ended well, in an earlier run or, after `mark_done`, in this one."""
        return bool(self._known.get(number) & _WAS_DONE)

    def mark_done(self, number: int) -> None:
        """Know of a row that it has ended well: for callers that see rows more than once."""
        self._known.set(number, self._known.get(number) | _WAS_DONE)

    def find(self, number: int) -> Record | None:
        """Return the last record of a row; reads the whole file."""
        records = (record for *_, record in self._lines() if record is not None)
        own = [record for record in records if int(record["id"], 16) == number]
        return own[-1] if own else None

    def former(self, row: Row) -> Record:
        """Return the record that a row had when the ledger was opened."""
        if self._offsets is None:
            self._offsets = CompactMap()
            for offset, _, record in self._lines():
                if record is not None:
                    self._offsets.set(int(record["id"], 16), offset + 1)
        return self.record_at(self._offsets.get(id_of(row)) - 1)

    def unplayed(self) -> array[int]:
        """Where the records are of verified rows of this run whose videos are not known to play."""
        last = CompactMap()
        for offset, _, record in self._lines():
            if record is not None and self._known.get(number := int(record["id"], 16)) & _READ:
                waits = record["status"] == DONE and "playable" not in record
                last.set(number, offset + 1 if waits else 0)
        return array("Q", (place - 1 for place in last.values() if place))

    def record_at(self, offset: int) -> Record:
        """Return the record at this place of the file."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(offset)
            return _record_of(file.readline()) or {}

    def _has_read_reference(self, reference_id: str) -> bool:
        """VOD would give the second row the video of the first."""
        number = hash_of(f"reference:{reference_id}")
        is_repeated = bool(self._known.get(number))
        self._known.set(number, _READ)
        return is_repeated

    def add(self, record: Record, *, replaces: bool = False) -> None:
        """Append a record; when this returns, it survives the death of the process.

        Args:
            replaces: whether the ledger has an older record of the row.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise _unwritable(self._path or "The ledger", error) from error
        self._replaced_count += replaces

    # --- the end ------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        """The last record of each row, in the order in which they were written."""
        last = CompactMap()
        for offset, _, record in self._lines():
            if record is not None:
                last.set(int(record["id"], 16), offset + 1)
        for offset, _, record in self._lines():
            if record is not None and last.get(int(record["id"], 16)) == offset + 1:
                yield record

    def compact(self, *, manifests: Iterable[str] = ()) -> None:
        """Leave one record for each row, and make the file durable against power loss.

        Args:
            manifests: those read to their end. Failures of rows that they no longer hold
                are dropped.
        """
        read = frozenset(manifests)
        is_stale = any(flags & _FLAGS == _HAD_FAILED for flags in self._known.values())
        if self._path is None or not (self._replaced_count or self._stale_count or is_stale):
            os.fsync(self._file)
            return

        def is_current(record: Record) -> bool:
            was_read = self._known.get(int(record["id"], 16)) & _READ
            return bool(was_read or record["status"] == DONE or record.get("manifest") not in read)

        handle = _write_all(self._path, filter(is_current, self.records()))
        portable.lock(handle)
        self._close_file()
        self._file = handle
        self._replaced_count = self._stale_count = 0

    def write_failures(self, path: str | os.PathLike[str]) -> None:
        """Write the failures alone to another file, which replaces what was there."""
        failures = (record for record in self.records() if record["status"] != DONE)
        os.close(_write_all(Path(os.path.abspath(path)), failures))


def _open_temporary() -> int:
    handle, name = tempfile.mkstemp(prefix="vodup-ledger-")
    os.unlink(name)
    portable.append_only(handle)
    return handle


def _open_locked(path: Path) -> int:
    try:
        handle = open_regular_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
    try:
        portable.lock(handle)
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise BlockingIOError  # its owner has replaced it at this very moment
    except OSError as error:
        os.close(handle)
        raise UploadLocked(
            f"Another process writes to {path}.",
            next_step="Wait for it to end, or choose another file with --report.",
        ) from error
    return handle


def _write_all(path: Path, records: Iterable[Record]) -> int:
    """Replace a file by records: a crash leaves the old one or the new one, whole.

    Returns its descriptor, for appending.

    Raises:
        StateUnavailable: it cannot be written; the old file is unchanged.
    """
    try:
        return replace_file(path, (json.dumps(record).encode() + b"\n" for record in records))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(name: object, error: OSError) -> StateUnavailable:
    return StateUnavailable(
        f"{name} cannot be written: {error.strerror}.",
        next_step="Check free space and permissions there, then run the same command again.",
    )


# --- a million names in a few bytes each ------------------------------------------------


def hash_of(name: str) -> int:
    """Hash a name to a number from 1 to 2^64 - 1.

    That two of a million names share one happens once in 40 million batches.
    """
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


class CompactMap:
    """Numbers (not 0), each with another number (0 where nothing was set).

    A dict of a million entries takes 130 MB, this takes 23 to 46. Mutable; not for two
    threads at once.
    """

    _FIRST_SIZE: Final = 1024
    _LOAD: Final = 0.7

    def __init__(self) -> None:
        self._keys = array("Q", bytes(8 * self._FIRST_SIZE))
        self._values = array("Q", bytes(8 * self._FIRST_SIZE))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, number: int) -> int:
        """The value of `number`; 0 if none was set."""
        return self._values[self._place(number)]

    def set(self, number: int, value: int) -> None:
        """Set a value, below 2^64."""
        place = self._place(number)
        if self._keys[place] == 0:
            if self._count >= self._LOAD * len(self._keys):
                self._grow()
                place = self._place(number)
            self._keys[place] = number
            self._count += 1
        self._values[place] = value

    def values(self) -> array[int]:
        """All values, in no order; 0 where nothing is set."""
        return self._values

    def _place(self, number: int) -> int:
        keys, mask = self._keys, len(self._keys) - 1
        place = number & mask
        while keys[place] and keys[place] != number:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        former = zip(self._keys, self._values, strict=True)
        self._keys = array("Q", bytes(2 * len(self._keys) * 8))
        self._values = array("Q", bytes(len(self._keys) * 8))
        for number, value in former:
            if number:
                place = self._place(number)
                self._keys[place], self._values[place] = number, value
