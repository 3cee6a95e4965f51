"""Rows of the state: values come back, damaged ones are refused; and where a state is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.state.conftest import record
from uploader.errors import ConfigurationError, StateUnavailable
from uploader.state.journal import video_taken
from uploader.state.locations import PostgresUrl, SqliteFile, locate, state_directory
from uploader.state.records import Orphan, UploadRecord
from uploader.state.rows import (
    ack_of,
    fields_row,
    instant,
    loaded_text,
    orphan_of,
    record_of,
    row_of,
    stored_text,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
RECORD = replace(
    record(), video_id="v1", upload_id="U1", endpoint="https://e", bucket="b", object_key="o",
    region="r",
)  # fmt: skip
ORPHAN = Orphan(
    upload_id="U\0", video_id=None, endpoint="e", region=None, bucket="b", object_key="o"
)


def row(**changes: object) -> dict[str, object]:
    stamps = {"created_at": NOW.timestamp(), "updated_at": NOW.timestamp()}
    return {**row_of(RECORD), **stamps, **changes}


def reading(**changes: object) -> Callable[[], object]:
    return lambda: record_of(row(**changes))


DAMAGED: dict[str, tuple[Callable[[], object], str]] = {
    "no text": (reading(source=7), repr(RECORD.key)),
    "a required text that is missing": (reading(scope=None), repr(RECORD.key)),
    "no UTF-8": (reading(meta="\udc80"), "not UTF-8"),
    "broken escape": (reading(meta="\x1bjson:{"), "escaped"),
    "escaped number": (reading(meta="\x1bjson:7"), "escaped"),
    "no size": (reading(size=-1), "-1 is not a size"),
    "no time": (reading(created_at="x"), "'x' is not a time"),
    "no such time": (reading(created_at=1e300), "1e+300 is not a time"),
    "no phase": (reading(phase="asleep"), "'asleep'"),
    "no CRC": (lambda: ack_of(3, 1, "e", "x", None), "part 3"),
    "no size of a part": (lambda: ack_of(3, -1, "e", 1, None), "part 3"),
    "no ETag": (lambda: ack_of(3, 1, None, 1, None), "part 3"),
    "orphan": (lambda: orphan_of(("u", None, "e", None, None, "o")), "orphan"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_row_is_refused_and_named(name: str) -> None:
    read, named = DAMAGED[name]
    with pytest.raises(StateUnavailable) as caught:
        read()
    assert named in caught.value.message


@pytest.mark.parametrize("text", ["redis://h/1?u=a://b", "", ":memory:", "a\0b", "a?b"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        locate(text)
    assert repr(text.partition(":/")[0]) in caught.value.message
    assert "memory" in caught.value.next_step


def test_the_error_for_a_second_upload_names_the_video_and_the_first() -> None:
    error = video_taken("v2", "other")
    assert error.video_id == "v2"
    assert "v2" in error.message
    assert "'other'" in error.message


def test_a_record_without_a_multipart_upload_leaves_no_orphan() -> None:
    assert RECORD.orphan() == Orphan(
        upload_id="U1", video_id="v1", endpoint="https://e", region="r", bucket="b", object_key="o"
    )
    assert replace(RECORD, upload_id=None).orphan() is None
    nowhere = replace(RECORD, endpoint=None, bucket=None, object_key=None)
    assert nowhere.orphan() == Orphan(
        upload_id="U1", video_id="v1", endpoint="", region="r", bucket="", object_key=""
    )


@pytest.mark.parametrize("text", ["plain", "", "film ä", "nul\0", "\udc80", "\x1bjson:x", "ä\0"])
def test_texts_come_back(text: str) -> None:
    stored = stored_text(text)
    assert loaded_text(stored) == text
    assert "\0" not in stored
    assert (stored == text) == (text in ("plain", "", "film ä"))


def test_records_and_orphans_come_back() -> None:
    for is_overwrite in (True, False):
        given = replace(RECORD, is_overwrite=is_overwrite, meta="\0")
        stamps = {"created_at": NOW.timestamp(), "updated_at": NOW.timestamp()}
        values = row_of(given)
        assert type(values["is_overwrite"]) is int
        assert record_of({**values, **stamps}) == replace(given, created_at=NOW, updated_at=NOW)
    assert orphan_of(tuple(row_of(ORPHAN).values())) == ORPHAN
    assert row_of(ORPHAN)["upload_id"] != ORPHAN.upload_id
    assert fields_row({"size": 7, "is_overwrite": True, "meta": "\0", "error": None}) == {
        "size": 7, "is_overwrite": 1, "meta": stored_text("\0"), "error": None,
    }  # fmt: skip
    assert instant(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert isinstance(record_of(row()), UploadRecord)


@pytest.mark.parametrize(
    ("name", "is_surely_ours"),
    [
        ("a.db", True), ("a.sqlite", True), ("a.sqlite3", True), ("a.state", True),
        ("a.vodup", True), ("a.mp4", False), ("state", False), ("a.DB", False),
    ],
)  # fmt: skip
def test_a_name_says_whether_a_file_is_ours(name: str, is_surely_ours: bool) -> None:
    assert locate(name) == SqliteFile(Path.cwd() / name, is_surely_ours)
    assert locate(f"sqlite:///{name}") == locate(Path(name))
    assert str(locate(name)) == f"state file {Path.cwd() / name}"


def test_where_the_state_is_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "vodup"
    found = locate(None)
    assert found == SqliteFile(tmp_path / "vodup" / "state.db", is_surely_ours=True)
    assert isinstance(found, SqliteFile)
    assert found.is_surely_ours is True


def test_a_database_is_never_shown() -> None:
    url = "postgresql://me:secret@h/db"
    found = locate(url)
    assert found == PostgresUrl(url)
    assert (str(found), repr(found)) == ("state database", "PostgresUrl(url=...)")
