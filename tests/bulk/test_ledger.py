"""The ledger: one record a row, whatever tears it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from uploader import SourceUnreadable, UploadLocked
from uploader.bulk.ledger import CompactMap, Ledger, advice, failure_record, hash_of, success_record
from uploader.bulk.rows import Row
from uploader.errors import ConfigurationError, UnsafePath, VodupError
from uploader.events import UploadResult


def row(number: int, *, key: str | None = None, manifest: str = "/m.csv") -> Row:
    name = key if key is not None else f"key-{number}"
    path = f"/root/{number}.mp4"
    return Row(manifest, number, key=name, upload_key=name, path=path, columns={"path": path})


def done(one: Row) -> dict[str, Any]:
    result = UploadResult(
        key=one.key,
        video_id=f"v{one.number}",
        upload_id=None,
        bucket="b",
        object_key="o",
        size=5,
        crc64=2**63,
        etag=None,
        part_count=1,
        resumed_part_count=0,
        renewal_count=0,
        retry_count=0,
        sent_bytes=5,
        verified_by="crc64",
        seconds=0.1,
    )
    return success_record(one, result)


def failed(one: Row, words: str = "No.") -> dict[str, Any]:
    return failure_record(one, SourceUnreadable(words), exit_code=4, attempts=1)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(path: Path) -> list[tuple[str, str]]:
    return [(line["key"], line["status"]) for line in lines(path)]


def test_finished_rows_are_known_in_the_next_run(tmp_path: Path) -> None:
    with Ledger(tmp_path / "r.jsonl") as ledger:
        ledger.add(done(row(1)))
        ledger.add(failed(row(2)))
    with Ledger(tmp_path / "r.jsonl") as ledger:
        assert ledger.look_up(row(1)).is_done
        second = ledger.look_up(row(2))
        assert (second.is_done, second.has_failed) == (False, True)
        assert not ledger.look_up(row(3)).is_done


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    with Ledger(path) as ledger:
        for number in (1, 2, 3):
            ledger.add(done(row(number)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Ledger(path) as ledger:
        assert ledger.look_up(row(2)).is_done
        assert not ledger.look_up(row(3)).is_done
        ledger.add(done(row(3)))
        ledger.compact()
    assert keys(path) == [(f"key-{n}", "done") for n in (1, 2, 3)]


def test_a_ledger_torn_in_its_first_line_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"id": "00')
    with Ledger(path) as ledger:
        ledger.add(done(row(1)))
    assert len(lines(path)) == 1


def test_holes_left_by_a_power_cut_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Ledger(path) as ledger:
        ledger.add(done(row(1)))
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    with Ledger(path) as ledger:
        ledger.add(done(row(2)))
        ledger.compact()
    assert keys(path) == [("key-1", "done"), ("key-2", "done")]


@pytest.mark.parametrize("text", ["precious notes\n", "precious notes", '{"path": "a.mp4"}\n'])
def test_a_file_that_is_not_a_ledger_is_left_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="not a ledger"):
        Ledger(path)
    assert path.read_text() == text


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Ledger(path) as ledger:
        ledger.add(failed(row(1)))
        ledger.add(failed(row(2)))
        ledger.compact()
    with Ledger(path) as ledger:
        ledger.look_up(row(1))
        ledger.add(done(row(1)), replaces=True)
        assert sorted(keys(path))[0] == ("key-1", "done")
        assert len(lines(path)) == 3
        ledger.compact()
        ledger.add(done(row(9)))  # appended to the new file, not to the one that was replaced
    assert keys(path) == [("key-2", "failed"), ("key-1", "done"), ("key-9", "done")]


def test_after_a_crash_before_compacting_the_later_record_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Ledger(path) as ledger:
        ledger.add(failed(row(1)))
        ledger.add(done(row(1)), replaces=True)  # and killed before compacting
    with Ledger(path) as ledger:
        assert ledger.look_up(row(1)).is_done
        ledger.compact()
    assert keys(path) == [("key-1", "done")]


def test_failures_of_removed_rows_are_dropped_after_a_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    gone, other = row(7, key=""), row(7, key="", manifest="/other.csv")
    with Ledger(path) as ledger:
        for one in (gone, other, row(1)):
            ledger.add(failed(one))
        ledger.compact()
    with Ledger(path) as ledger:
        ledger.look_up(row(1))
        ledger.compact()  # it had stopped early
        assert len(lines(path)) == 3
    with Ledger(path) as ledger:
        ledger.look_up(row(1))
        ledger.compact(manifests=["/m.csv"])
    assert [line["manifest"] for line in lines(path)] == ["/other.csv", "/m.csv"]


def test_the_same_upload_twice_is_detected(tmp_path: Path) -> None:
    with Ledger() as ledger:
        assert not ledger.look_up(row(1)).is_repeated
        assert ledger.look_up(row(2, key="key-1")).is_repeated


def test_two_processes_do_not_write_to_one_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "r.jsonl"), pytest.raises(UploadLocked):
        Ledger(tmp_path / "r.jsonl")


def test_failures_go_to_a_file_of_their_own(tmp_path: Path) -> None:
    with Ledger() as ledger:
        ledger.add(done(row(1)))
        ledger.add(failed(row(2)))
        ledger.write_failures(tmp_path / "f.jsonl")
    (failure,) = lines(tmp_path / "f.jsonl")
    assert (failure["path"], failure["error"]) == ("/root/2.mp4", "SourceUnreadable")
    assert list(tmp_path.iterdir()) == [tmp_path / "f.jsonl"]


def test_a_link_in_the_place_of_a_draft_or_of_a_ledger_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "r.jsonl").symlink_to(victim)
    with pytest.raises(UnsafePath, match="is a link"):
        Ledger(tmp_path / "r.jsonl")
    victim.write_text("precious")
    planted = tmp_path / f".f.jsonl.{os.getpid()}.draft"
    planted.symlink_to(victim)
    with Ledger() as ledger:
        ledger.write_failures(tmp_path / "f.jsonl")
    assert (victim.read_text(), planted.is_symlink()) == ("precious", True)


def test_a_compact_map_holds_what_a_dict_does() -> None:
    numbers, plain = CompactMap(), {}
    for n in range(5000):
        number = hash_of(f"name-{n % 3000}")
        numbers.set(number, n)
        plain[number] = n
    assert len(numbers) == len(plain) == 3000
    assert all(numbers.get(number) == value for number, value in plain.items())
    assert numbers.get(hash_of("never")) == 0


def test_colliding_numbers_do_not_hide_each_other() -> None:
    numbers = CompactMap()
    same_place = [1 + n * 2**40 for n in range(50)]
    for value, number in enumerate(same_place, 1):
        numbers.set(number, value)
    assert [numbers.get(number) for number in same_place] == list(range(1, 51))


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (
            "Pass --key NAME to upload it as another video, or --video-id v1 --overwrite to "
            "replace.",
            "Give the row a key of its own (column key) to upload it as another video, or the "
            "video_id v1, with --overwrite, to replace.",
        ),
        (
            "Pass another --key, or leave --video-id out to continue it.",
            "Give the row another key (column key), or leave its video_id out to continue it.",
        ),
        ("Check the path.", "Check the path."),
    ],
)
def test_the_advice_for_rows_names_columns_and_no_flags_of_push(step: str, shown: str) -> None:
    assert advice(VodupError("No.", next_step=step)) == shown
