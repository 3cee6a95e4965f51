"""Records as rows of plain values, and back with every field checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final

from uploader.errors import StateUnavailable
from uploader.state.records import Orphan, PartAck, Phase, UploadRecord

__all__ = [
    "ack_of",
    "ack_row",
    "changes_row",
    "instant",
    "loaded_text",
    "orphan_of",
    "orphan_row",
    "record_of",
    "record_row",
    "stored_text",
]

_ESCAPED: Final = "\x1bjson:"
_STAMPS: Final = ("created_at", "updated_at")
_RECORD_NAMES: Final = tuple(f.name for f in fields(UploadRecord) if f.name not in _STAMPS)
_REQUIRED_TEXTS: Final = frozenset({"key", "phase", "source", "fingerprint", "scope"})
_ORPHAN_NAMES: Final = tuple(field.name for field in fields(Orphan))
_CRC_SPAN: Final = 1 << 64
_CRC_SIGN: Final = 1 << 63


class _Garbage(Exception):
    """A stored value is not what we write."""


def stored_text(text: str) -> str:
    """Text as every database takes it: file names may hold bytes that are not UTF-8, or NUL."""
    if text.isascii() and "\0" not in text and not text.startswith(_ESCAPED):
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ESCAPED + json.dumps(text)
    is_plain = "\0" not in text and not text.startswith(_ESCAPED)
    return text if is_plain else _ESCAPED + json.dumps(text)


def loaded_text(value: object) -> str:
    """Text as it was before `stored_text`."""
    if not isinstance(value, str):
        raise _Garbage(f"{value!r:.40} is not a text")
    if value.isascii() and not value.startswith(_ESCAPED):
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Garbage("a text is not UTF-8") from error
    if not value.startswith(_ESCAPED):
        return value
    try:
        text = json.loads(value.removeprefix(_ESCAPED))
    except ValueError as error:
        raise _Garbage("an escaped text cannot be read") from error
    if not isinstance(text, str):
        raise _Garbage("an escaped text is not one")
    return text


def _optional_text(value: object) -> str | None:
    return None if value is None else loaded_text(value)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise _Garbage(f"{value!r:.40} is not a size")
    return value


def instant(value: object) -> datetime:
    """Seconds since 1970 as an aware datetime."""
    if not isinstance(value, int | float):
        raise _Garbage(f"{value!r:.40} is not a time")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise _Garbage(f"{value!r:.40} is not a time") from error


def record_row(record: UploadRecord) -> dict[str, object]:
    """The fields of a record that are stored as given."""
    return {name: _stored(getattr(record, name)) for name in _RECORD_NAMES}


def changes_row(fields: Mapping[str, Any]) -> dict[str, object]:
    """Some fields of a record as stored."""
    return {name: _stored(value) for name, value in fields.items()}


def _stored(value: object) -> object:
    if isinstance(value, str):
        return stored_text(value)
    return int(value) if isinstance(value, bool) else value


def record_of(row: Mapping[Any, Any]) -> UploadRecord:
    """A record from its row.

    Raises:
        StateUnavailable: a field holds something we never write.
    """
    try:
        return UploadRecord(**{name: _field(name, row[name]) for name in _RECORD_NAMES + _STAMPS})
    except (_Garbage, ValueError) as error:
        raise StateUnavailable(
            f"the record of upload {row['key']!r:.200} is damaged: {error}.",
            next_step="Remove that record with `vodup clean`, then run again.",
        ) from error


def _field(name: str, value: object) -> Any:  # noqa: ANN401 - each name has its own type
    if name in _STAMPS:
        return instant(value)
    if name == "size":
        return _count(value)
    if name == "is_overwrite":
        return bool(_count(value))
    if name == "phase":
        return Phase(loaded_text(value))
    return loaded_text(value) if name in _REQUIRED_TEXTS else _optional_text(value)


def ack_row(upload: int, ack: PartAck, epoch: int) -> dict[str, object]:
    """A part ack as stored for row `upload` under a lease; the CRC as a signed number."""
    return {
        "epoch": epoch,
        "upload": upload,
        "number": ack.number,
        "size": ack.size,
        "etag": stored_text(ack.etag),
        "crc64": ack.crc64 - _CRC_SPAN if ack.crc64 >= _CRC_SIGN else ack.crc64,
        "md5": ack.md5,
    }


def ack_of(number: object, size: object, etag: object, crc64: object, md5: object) -> PartAck:
    """A receipt from its row.

    Raises:
        StateUnavailable: a field holds something we never write.
    """
    try:
        if type(crc64) is not int or not number:
            raise _Garbage(f"{crc64!r:.40} is not a CRC")
        return PartAck(
            _count(number), _count(size), loaded_text(etag), crc64 % _CRC_SPAN, _optional_text(md5)
        )
    except _Garbage as error:
        raise StateUnavailable(
            f"the receipt of part {number!r:.40} is damaged: {error}."
        ) from error


def orphan_row(orphan: Orphan) -> dict[str, object]:
    """An orphan's fields as stored."""
    return {name: _stored(getattr(orphan, name)) for name in _ORPHAN_NAMES}


def orphan_of(row: Mapping[Any, Any]) -> Orphan:
    """An orphan from its row.

    Raises:
        StateUnavailable: a field holds something we never write.
    """
    optional = {"video_id", "region"}
    try:
        return Orphan(
            **{
                name: _optional_text(row[name]) if name in optional else loaded_text(row[name])
                for name in _ORPHAN_NAMES
            }  # type: ignore[arg-type]  # the names above are the optional ones
        )
    except _Garbage as error:
        raise StateUnavailable(f"a recorded orphan is damaged: {error}.") from error
