"""What a manifest is written in: recognized before anything is sent, and read as lines in UTF-8.

Spreadsheets write more than UTF-8: UTF-16 with a byte order mark (Excel's "Unicode Text") is
certain and is read; GBK and cp1252 can only be guessed, so they are read only when they are named.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Final

from uploader.errors import ConfigurationError
from uploader.sources.readers import stdin_descriptor

_UTF8: Final = "utf-8"
_SAMPLE_SIZE: Final = 64 * 1024
_CHUNK_SIZE: Final = 8192
"""Bytes per read. Larger: the share of a manifest that counts as read is ahead of its rows."""

_SAVE_AS_CSV: Final = "Open it and save it as CSV in UTF-8."

_MARKS: Final = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY: Final = (
    (b"PK\x03\x04", "is a workbook (xlsx, ods) or a zip archive, not text", _SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a workbook (xls), not text", _SAVE_AS_CSV),
    (b"\x1f\x8b", "is compressed with gzip", "Decompress it with `gunzip`."),
    (b"BZh91AY&SY", "is compressed with bzip2", "Decompress it with `bunzip2`."),
    (b"\xfd7zXZ\0", "is compressed with xz", "Decompress it with `unxz`."),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Decompress it with `unzstd`."),
)


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a text file is written.

    Attributes:
        encoding: of its characters, as Python names it. UTF-8 is not decoded: a file name may
            be bytes that are not UTF-8.
        has_cr_only: its lines end with CR alone, as old spreadsheets for the Mac write it.
    """

    encoding: str = _UTF8
    has_cr_only: bool = False


UTF8: Final = TextForm()


def require_encoding(name: str) -> str:
    """Return Python's name of an encoding of text.

    Raises:
        ValueError: there is none, or it cannot be read piece by piece.
    """
    try:
        b"a".decode(name)  # LookupError if it is not one of text, such as base64
        codecs.getincrementaldecoder(name)()
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        raise ValueError(name) from None


def text_form(path: str, encoding: str | None, *, folder: str) -> TextForm:
    """Find out how a text file is written.

    Args:
        encoding: what the user says that it is, unless a byte order mark says otherwise. None:
            UTF-8, which is checked; but bytes that name a file in `folder` are a name.
        folder: what relative paths are relative to.

    Raises:
        ConfigurationError: it cannot be read, is no text, or has another encoding.
    """
    with _opened(path) as file:
        begin = file.read(_SAMPLE_SIZE)
        for magic, what, cure in _BINARY:
            if begin.startswith(magic):
                raise ConfigurationError(f"{path} {what}.", next_step=cure)
        marked = next((name for mark, name in _MARKS if begin.startswith(mark)), None)
        found = marked or encoding or _UTF8
        file.seek(0)
        if found != _UTF8:
            _require_decodable(path, file, found)
        elif wide := _wide_encoding(begin):
            raise _not_utf8(path, "", wide)
        elif encoding is None:
            _require_utf8(path, file, folder)
    text = begin.decode(found, "replace")
    return TextForm(found, has_cr_only="\r" in text[:-1] and "\n" not in text)


def open_text(
    name: str, form: TextForm, on_read: Callable[[int], None] = lambda _: None
) -> IO[bytes]:
    """Open a text file, or standard input for "-", as lines in UTF-8 that end with LF.

    Args:
        on_read: called with the number of bytes of each read.

    Raises:
        ConfigurationError: it cannot be read; reading raises it too.
    """
    return io.BufferedReader(_AsUtf8(name, _opened(name), form, on_read))


def _opened(name: str) -> IO[bytes]:
    try:
        if name == "-":
            return open(stdin_descriptor(), "rb", buffering=0, closefd=False)
        return open(name, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(name, error) from error


class _AsUtf8(io.RawIOBase):
    """Bytes of a file, recoded as far as needed. Mutable: what is read and not handed out."""

    def __init__(
        self, name: str, file: IO[bytes], form: TextForm, on_read: Callable[[int], None]
    ) -> None:
        self._name, self._file, self._form, self._on_read = name, file, form, on_read
        self._decoder = codecs.getincrementaldecoder(form.encoding)()
        self._left = b""
        self._is_read = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._left and not self._is_read:
            self._left = self._recoded(self._read())
        taken, self._left = self._left[: len(target)], self._left[len(target) :]
        target[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read(self) -> bytes:
        try:
            data = self._file.read(_CHUNK_SIZE)
        except OSError as error:
            raise _unreadable(self._name, error) from error
        self._is_read = not data
        self._on_read(len(data))
        return data

    def _recoded(self, data: bytes) -> bytes:
        if self._form.encoding != _UTF8:
            try:
                data = self._decoder.decode(data, final=self._is_read).encode()
            except UnicodeError as error:
                raise _undecodable(self._name, self._form.encoding) from error
        return data.replace(b"\r", b"\n") if self._form.has_cr_only else data


# --- recognizing ------------------------------------------------------------------------


def _wide_encoding(begin: bytes) -> str | None:
    """UTF-16 without a mark: names of columns are ASCII, so that every other byte is NUL."""
    if re.match(rb"[^\0]\0[^\0]\0", begin):
        return "utf-16-le"
    return "utf-16-be" if re.match(rb"\0[^\0]\0[^\0]", begin) else None


def _require_decodable(path: str, file: IO[bytes], encoding: str) -> None:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while data := file.read(_SAMPLE_SIZE):
            decoder.decode(data).encode()  # UTF-16 may have half of a pair
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise _undecodable(path, encoding) from error


def _require_utf8(path: str, file: IO[bytes], folder: str) -> None:
    decoder = codecs.getincrementaldecoder(_UTF8)()
    size, line_count, data = 0, 0, b"\n"
    while data:
        line_count += data.count(b"\n")
        data = file.read(_SAMPLE_SIZE)
        try:
            decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            before, found = len(error.object) - len(data), error.object[: error.start]
            sample = _from_line(file, size - before + error.start)
            if _names_a_file(re.split(rb"[\r\n]", sample, maxsplit=1)[0], folder):
                return
            number = line_count + found.count(b"\n")
            raise _not_utf8(path, f" in line {number:,}", _guessed(sample)) from None
        size += len(data)


def _from_line(file: IO[bytes], offset: int) -> bytes:
    """Read from the beginning of the line that `offset` is in."""
    file.seek(max(0, offset - _SAMPLE_SIZE))
    before = file.read(min(offset, _SAMPLE_SIZE))
    start = max(before.rfind(b"\n"), before.rfind(b"\r")) + 1
    return before[start:] + file.read(_SAMPLE_SIZE)


def _names_a_file(line: bytes, folder: str) -> bool:
    """Whether a field that is not UTF-8 is the name of a file: names may be any bytes."""
    fields = (field for field in re.split(rb'[,;\t"]', line) if not field.isascii())
    return any(os.path.lexists(os.path.join(os.fsencode(folder), name)) for name in fields)


def _guessed(sample: bytes) -> str | None:
    """GBK has most characters as pairs of high bytes; in cp1252 letters stand alone."""
    runs = re.findall(rb"[\x80-\xff]+", sample)
    letters = re.findall(rb"(?<![\x80-\xff])[\xc0-\xff](?![\x80-\xff])", sample)
    if 2 * sum(len(run) % 2 == 0 for run in runs) > len(runs):
        encoding = "gbk"
    elif 2 * len(letters) > len(runs):
        encoding = "cp1252"
    else:
        return None
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)  # its end may be cut off
    except UnicodeDecodeError:
        return None
    return encoding


def _not_utf8(path: str, where: str, encoding: str | None) -> ConfigurationError:
    looks = f" (it looks like {encoding.upper()})" if encoding else ""
    name = encoding or "NAME, such as gbk, big5, shift_jis or cp1252"
    return ConfigurationError(
        f"{path} is not UTF-8{where}{looks}.",
        next_step=f"Save it as UTF-8, or pass --manifest-encoding {name}.",
    )


def _undecodable(path: str, encoding: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read as {encoding.upper()}.",
        next_step="Save it as UTF-8, or pass its encoding with --manifest-encoding.",
    )


def _unreadable(name: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{name} cannot be read: {error.strerror}.")
