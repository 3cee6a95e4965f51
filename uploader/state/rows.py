"""Records, part acks and orphans as rows of plain values, and back with every field checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from uploader.errors import StateUnavailable
from uploader.state.queries import ORPHAN_COLUMNS, RECORD_COLUMNS
from uploader.state.records import Orphan, OutboxMessage, PartAck, Phase, UploadRecord

_ESCAPED: Final = "\x1bjson:"
_STAMPS: Final = frozenset({"created_at", "updated_at"})
_OPTIONAL_OF_ORPHANS: Final = frozenset({"video_id", "region"})
_REQUIRED: Final = frozenset({"key", "phase", "source", "fingerprint", "scope"})
_CRC_SPAN: Final = 1 << 64
_CRC_SIGN: Final = 1 << 63


class _Damage(ValueError):
    """A stored value is not one that is written here."""


def stored_text(text: str) -> str:
    """Text as every database takes it: file names may hold bytes that are not UTF-8, or NUL."""
    if "\0" in text or text.startswith(_ESCAPED):
        return _ESCAPED + json.dumps(text)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return _ESCAPED + json.dumps(text)
    return text


def loaded_text(value: object) -> str:
    """Text as it was before `stored_text`."""
    if not isinstance(value, str):
        raise _Damage(f"{value!r:.40} is not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Damage("a text is not UTF-8") from error
    if not value.startswith(_ESCAPED):
        return value
    try:
        text = json.loads(value.removeprefix(_ESCAPED))
    except ValueError as error:
        raise _Damage("an escaped text cannot be read") from error
    if not isinstance(text, str):
        raise _Damage("an escaped text is not one")
    return text


def _optional_text(value: object) -> str | None:
    return None if value is None else loaded_text(value)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise _Damage(f"{value!r:.40} is not a size")
    return value


def instant(value: object) -> datetime:
    """Seconds since 1970 as an aware datetime."""
    if not isinstance(value, int | float):
        raise _Damage(f"{value!r:.40} is not a time")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise _Damage(f"{value!r:.40} is not a time") from error


def fields_row(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of a record or an orphan as stored."""
    row: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, str):
            value = stored_text(value)
        row[name] = int(value) if isinstance(value, bool) else value
    return row


def row_of(value: UploadRecord | Orphan | OutboxMessage) -> dict[str, Any]:
    """All fields as stored; the times of a record are for the database to set."""
    return fields_row({name: getattr(value, name) for name in type(value).__slots__})


def record_of(row: Mapping[str, Any]) -> UploadRecord:
    """A record from its row.

    Raises:
        StateUnavailable: a field holds something that is never written.
    """
    try:
        return UploadRecord(**{name: _field(name, row[name]) for name in RECORD_COLUMNS})
    except ValueError as error:
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
    return loaded_text(value) if name in _REQUIRED else _optional_text(value)


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
    """A part ack from its row.

    Raises:
        StateUnavailable: a field holds something that is never written.
    """
    try:
        if type(crc64) is not int or not number:
            raise _Damage(f"{crc64!r:.40} is not a CRC")
        return PartAck(
            _count(number), _count(size), loaded_text(etag), crc64 % _CRC_SPAN, _optional_text(md5)
        )
    except _Damage as error:
        raise StateUnavailable(f"the ack of part {number!r:.40} is damaged: {error}.") from error


def orphan_of(row: tuple[object, ...]) -> Orphan:
    """An orphan from its row.

    Raises:
        StateUnavailable: a field holds something that is never written.
    """
    fields: dict[str, Any] = {}
    try:
        for name, value in zip(ORPHAN_COLUMNS, row, strict=True):
            is_optional = name in _OPTIONAL_OF_ORPHANS
            fields[name] = _optional_text(value) if is_optional else loaded_text(value)
    except _Damage as error:
        raise StateUnavailable(f"a recorded orphan is damaged: {error}.") from error
    return Orphan(**fields)
