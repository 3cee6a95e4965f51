"""Where rows come from: manifests, folders and lists of files, all read as streams.

A row of a manifest is at most 64 kB. A row that cannot be read is a row with a problem; an
error is raised only if the whole cannot be used (no such file, no column of paths).
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import io
import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from uploader.errors import ConfigurationError
from uploader.protocol.vod import refuses_name
from uploader.units import count

from .encoding import UTF8, TextForm, open_text, text_form
from .rows import COLUMNS, RESULT_COLUMNS, RawRow

MAX_ROW_SIZE: Final = 64_000
_PARQUET_BATCH: Final = 1024
_PARQUET_BUFFER: Final = 1 << 20
_USABLE: Final = "Write it as CSV with a header line, or one JSON object a line, in UTF-8."

Notice = Callable[[str], None]


@dataclass
class Stream:
    """Rows and where they come from. Mutable: how far it has been read.

    Attributes:
        name: for people and for the ledger.
        folder: what relative paths are relative to, unless a root is given.
        read: starts reading.
        size: bytes, if known before reading; else 0.
        position: bytes read so far, if `size` is known.
        form: how its text is written.
    """

    name: str
    folder: str
    read: Callable[[Stream], Iterator[RawRow]] = field(repr=False)
    size: int = 0
    position: int = 0
    form: TextForm = UTF8

    def __iter__(self) -> Iterator[RawRow]:
        return self.read(self)

    def opened(self) -> IO[bytes]:
        """Open its text, as lines in UTF-8."""
        return open_text(self.name, self.form, self._count)

    def _count(self, size: int) -> None:
        self.position += size


def manifest_stream(
    path: str, notice: Notice, *, encoding: str | None = None, root: str | None = None
) -> Stream:
    """A manifest: CSV, JSON Lines or Parquet, recognized by its name, else by its beginning.

    Args:
        notice: called once about columns that are ignored.
        encoding: of its text, if it is not UTF-8.
        root: what relative paths are relative to, unless to its folder.

    Raises:
        ConfigurationError: it cannot be used at all.
    """
    name = os.path.abspath(path)
    size, folder = _require_file(name), os.path.dirname(name)
    reader: _Reader
    if _is_parquet(name):
        form, reader = UTF8, _read_parquet
    else:
        form = text_form(name, encoding, folder=root or folder)
        reader = _text_reader_of(name, form)

    def read(stream: Stream) -> Iterator[RawRow]:
        return reader(stream, _Columns(name, notice))

    return Stream(name, folder, read, size, form=form)


def _require_file(path: str) -> int:
    try:
        if not os.path.isfile(path):
            raise ConfigurationError(
                f"{path} is not a file.",
                next_step="Check the path; to upload the files of a folder, pass -r FOLDER.",
            )
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


def _is_parquet(path: str) -> bool:
    with open(path, "rb") as file:
        return path.lower().endswith((".parquet", ".pq")) or file.read(4) == b"PAR1"


def _text_reader_of(path: str, form: TextForm) -> _Reader:
    with open_text(path, form) as file:
        begin = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    extension = os.path.splitext(path)[1].lower()
    if extension in {".csv", ".tsv"}:
        return _read_csv
    if re.match(rb"\[\s*\{|[\[{]\s*\n", begin):
        raise ConfigurationError(
            f"{path} is one JSON document, not one JSON object a line.",
            next_step="Convert it, for example with `jq -c .[] FILE`.",
        )
    if extension not in {".jsonl", ".ndjson", ".json"}:
        return _read_json_lines if begin.startswith(b"{") else _read_csv
    if begin and b"{" not in begin:
        raise ConfigurationError(f"{path} has no JSON objects.", next_step=_USABLE)
    return _read_json_lines


_Reader = Callable[[Stream, "_Columns"], Iterator[RawRow]]


class _Columns:
    """Reports columns that are ignored, each once. Mutable."""

    def __init__(self, name: str, notice: Notice) -> None:
        self._name, self._notice = name, notice
        self._known = COLUMNS | RESULT_COLUMNS

    def check(self, names: Any) -> None:  # noqa: ANN401 - the keys of whatever was read
        """Check the columns of a row."""
        if unknown := set(names) - self._known:
            if len(self._known) < 1000:  # a manifest of ever new columns must not fill memory
                self._known |= unknown
            shown = ", ".join(sorted(str(name)[:60] for name in unknown))
            noun = "column" if len(unknown) == 1 else "columns"
            self._notice(f"{self._name}: ignoring unknown {noun}: {shown}.")


# --- lines ------------------------------------------------------------------------------

_Line = tuple[int, str | None]
"""A line with its number, from 1; None for one that is too long."""

_TOO_LONG: Final = f"The row is longer than {MAX_ROW_SIZE:,} bytes."


class _BadRow(Exception):
    """A row that cannot be read, and why."""


def _lines(file: IO[bytes]) -> Iterator[_Line]:
    """Read lines, and hold one of them at a time."""
    number = 0
    while line := file.readline(MAX_ROW_SIZE + 2):
        number += 1
        is_whole = line.endswith(b"\n") or len(line) < MAX_ROW_SIZE + 2
        while not is_whole and (rest := file.readline(1 << 20)):
            if rest.endswith(b"\n"):
                break
        if not is_whole or len(line.rstrip(b"\r\n")) > MAX_ROW_SIZE:
            yield number, None
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield number, line.decode("utf-8", "surrogateescape")


def _rows(lines: Iterator[_Line], parse: Callable[[str], dict[str, Any]]) -> Iterator[RawRow]:
    """Parse each line that is not blank."""
    for number, text in lines:
        if text is not None and not text.strip():
            continue
        try:
            if text is None:
                raise _BadRow(_TOO_LONG)
            if "\0" in text:
                raise _BadRow("The row has a NUL character.")
            row = RawRow(number, parse(text))
        except _BadRow as error:
            row = RawRow(number, problem=str(error))
        yield row


def _read_json_lines(stream: Stream, columns: _Columns) -> Iterator[RawRow]:
    def parse(text: str) -> dict[str, Any]:
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise _BadRow(f"The row is not JSON: {error.msg}.") from error
        except (ValueError, RecursionError) as error:
            raise _BadRow("The row is not JSON: too deep or too large.") from error
        if not isinstance(fields, dict):
            raise _BadRow("The row is not a JSON object.")
        columns.check(fields)
        return fields

    with stream.opened() as file:
        yield from _rows(_lines(file), parse)


# --- CSV --------------------------------------------------------------------------------


def _read_csv(stream: Stream, columns: _Columns) -> Iterator[RawRow]:
    with stream.opened() as file:
        records = _records(_lines(file))
        texts = (text for _, text in records)
        header_text = next((text for text in texts if text is None or text.strip()), "")
        if header_text == "":
            return
        if header_text is None or "\0" in header_text:
            raise ConfigurationError(f"{stream.name} has no header line.", next_step=_USABLE)
        delimiter = _delimiter_of(header_text)
        try:
            fields = _split(header_text, delimiter)
        except csv.Error as error:
            raise ConfigurationError(
                f"The header line of {stream.name} is not CSV: {error}.", next_step=_USABLE
            ) from error
        header = _header(stream.name, fields)
        columns.check(header)
        yield from _rows(records, lambda text: _csv_fields(text, header, delimiter))


def _csv_fields(text: str, header: list[str], delimiter: str) -> dict[str, Any]:
    if '"' not in text:  # most rows; csv.reader takes three times as long
        values = text.rstrip("\r\n").split(delimiter)
    else:
        try:
            values = _split(text, delimiter)
        except csv.Error as error:
            raise _BadRow(f"The row is not CSV: {error}.") from error
    if len(values) > len(header):
        raise _BadRow(f"The row has {len(values)} fields, the header {len(header)}.")
    return dict(zip(header, values, strict=False))


def _records(lines: Iterator[_Line]) -> Iterator[_Line]:
    """Join lines while a quotation is open. One that never closes spoils its own line only."""
    pending: deque[_Line] = deque()

    def following() -> Iterator[_Line]:
        while (line := pending.popleft() if pending else next(lines, None)) is not None:
            yield line

    for number, text in following():
        if text is None or text.count('"') % 2 == 0:
            yield number, text
            continue
        taken, is_closed = _until_closed(text, following())
        if is_closed:
            yield number, text + "".join(more or "" for _, more in taken)
        else:
            yield number, text
            pending.extendleft(reversed(taken))


def _until_closed(text: str, lines: Iterator[_Line]) -> tuple[list[_Line], bool]:
    """Take lines until the quotation of `text` is closed; returns whether it is."""
    taken, size, quotes = [], len(text), text.count('"')
    for number, more in lines:
        taken.append((number, more))
        if more is None or (size := size + len(more)) > MAX_ROW_SIZE:
            break
        quotes += more.count('"')
        if quotes % 2 == 0:
            return taken, True
    return taken, False


def _delimiter_of(header: str) -> str:
    """The delimiter that yields known columns: comma, semicolon (Excel) or tab."""

    def known_count(delimiter: str) -> int:
        try:
            return len(COLUMNS.intersection(_names(_split(header, delimiter))))
        except csv.Error:  # quoted names with another delimiter between them
            return 0

    return max(",;\t", key=known_count)


def _split(text: str, delimiter: str) -> list[str]:
    lines = io.StringIO(text, newline="")
    return next(csv.reader(lines, delimiter=delimiter, strict=True), [])


def _names(fields: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in fields]


def _header(manifest: str, fields: Sequence[str]) -> list[str]:
    names = _names(fields)
    if not {"path", "source"} & set(names):
        raise ConfigurationError(
            f"{manifest} has no column 'path' (found: {', '.join(names)[:200]}).", next_step=_USABLE
        )
    if twice := [name for name in names if name in COLUMNS and names.count(name) > 1]:
        raise ConfigurationError(f"{manifest}: the column {twice[0]} appears twice.")
    return names


# --- Parquet ----------------------------------------------------------------------------


def _read_parquet(stream: Stream, columns: _Columns) -> Iterator[RawRow]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigurationError(
            "A Parquet manifest needs pyarrow.", next_step="Run `pip install 'vodup[parquet]'`."
        ) from error
    try:
        # Without a buffer it holds a whole column of a row group, which may be the whole file.
        with pq.ParquetFile(stream.name, buffer_size=_PARQUET_BUFFER) as file:
            columns.check(_names(file.schema_arrow.names))
            yield from _parquet_rows(stream, file, _known_columns(stream, file))
    except (pa.ArrowException, OSError, ValueError) as error:
        # OSError: also for damaged pages; ValueError: text that is not UTF-8, years above 9999.
        raise ConfigurationError(
            f"{stream.name} is not a Parquet file, or is damaged.",
            next_step="Write it again, then run the same command; what is done stays done.",
        ) from error


def _known_columns(stream: Stream, file: Any) -> dict[str, str]:  # noqa: ANN401
    """The columns that are read: their names in the file, and in lower case."""
    names = file.schema_arrow.names
    _header(stream.name, names)
    return {
        name: plain for name, plain in zip(names, _names(names), strict=True) if plain in COLUMNS
    }


def _parquet_rows(stream: Stream, file: Any, known: dict[str, str]) -> Iterator[RawRow]:  # noqa: ANN401
    number, total = 0, max(1, file.metadata.num_rows)
    for batch in file.iter_batches(batch_size=_PARQUET_BATCH, columns=list(known)):
        for values in batch.to_pylist():
            number += 1
            fields = {plain: values[name] for name, plain in known.items()}
            if sum(_length(value) for value in fields.values()) > MAX_ROW_SIZE:
                yield RawRow(number, problem=_TOO_LONG)
            else:
                yield RawRow(number, fields)
        stream.position = stream.size * number // total


def _length(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(map(_length, value)) if isinstance(value, list) else 0


# --- lists and folders ------------------------------------------------------------------


def files_from(where: str, *, encoding: str | None = None) -> Stream:
    """A list of paths, one per line; "-" is standard input.

    Raises:
        ConfigurationError: it cannot be read.
    """
    if where == "-":
        return Stream("-", os.getcwd(), _read_list)
    name = os.path.abspath(where)
    size, folder = _require_file(name), os.path.dirname(name)
    form = text_form(name, encoding or "utf-8", folder=folder)  # names may be any bytes
    return Stream(name, folder, _read_list, size, form=form)


def _read_list(stream: Stream) -> Iterator[RawRow]:
    with stream.opened() as file:
        yield from _rows(_lines(file), lambda text: {"path": text.rstrip("\r\n")})


def folder_stream(
    folder: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_symlinks: bool = False,
    notice: Notice = lambda _: None,
) -> Stream:
    """The files below a folder, by name; without `include`, those that VOD accepts.

    A pattern with a "/" is matched against the path below the folder, another against the name.
    `notice` is called at the end about files of other types.

    Raises:
        ConfigurationError: there is no such folder.
    """
    name = os.path.abspath(folder)
    if not os.path.isdir(name):
        raise ConfigurationError(f"{folder} is not a folder.", next_step="Check the path.")

    def read(stream: Stream) -> Iterator[RawRow]:
        number, skipped = 0, Counter[str]()
        for path, problem in _walk(name, follow_symlinks, frozenset()):
            relative = os.path.relpath(path, name)
            if problem is None and matches_any(relative, exclude):
                continue
            if problem is None and not include and refuses_name(os.path.basename(path)):
                skipped[os.path.splitext(path)[1].lower() or "no extension"] += 1
            elif problem is not None or not include or matches_any(relative, include):
                number += 1
                yield RawRow(number, {"path": path}, problem)
        if skipped:
            notice(f"{name}: {_skipped(skipped)}. To upload some of them, pass --include GLOB.")

    return Stream(name, name, read)


def _walk(
    folder: str, follow_symlinks: bool, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, str | None]]:
    """Yield files by name, and folders that cannot be read with the reason."""
    try:
        here = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"{folder} cannot be read: {error.strerror}."
        return
    identity = (here.st_dev, here.st_ino)
    if identity in above:  # a link to a folder above would never end
        return
    for entry in entries:
        try:
            is_folder = entry.is_dir(follow_symlinks=follow_symlinks)
            is_file = entry.is_file()  # also a link to a file; where it leads is checked later
        except OSError:  # a link to itself, or into a folder of others: its row says why
            is_folder, is_file = False, True
        if is_folder:
            yield from _walk(entry.path, follow_symlinks, above | {identity})
        elif is_file:
            yield entry.path, None


def _skipped(types: Counter[str]) -> str:
    shown = [f"{number:,} {ascii(name[:20])[1:-1]}" for name, number in types.most_common(10)]
    others = [f"{len(types) - 10:,} more types"] if len(types) > 10 else []
    total = count(types.total(), "file")
    return f"skipped {total} of types that are not video ({', '.join(shown + others)})"


def matches_any(relative: str, patterns: Sequence[str]) -> bool:
    """Whether a path below a folder matches a pattern; see `folder_stream`."""
    for pattern in patterns:
        text = relative if "/" in pattern else os.path.basename(relative)
        if fnmatch.fnmatchcase(text, pattern.removeprefix("./")):
            return True
    return False
