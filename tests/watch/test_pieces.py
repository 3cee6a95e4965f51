"""Settling, scans, metadata and moves, each by itself; time is a number."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from uploader.errors import ConfigurationError, SourceChanged, UnsafePath
from uploader.watch import after, events
from uploader.watch.metadata import read_metadata
from uploader.watch.scan import FoundFile, ScanRules
from uploader.watch.settling import Lack, Settling

FILE = FoundFile("/in/a.mp4", (5, 1, 7, 1), ((5, 1, 7, 1),))


class Days:
    """Looks at a folder at given times, each taking half a second."""

    def __init__(self, settle_s: float) -> None:
        self.settling = Settling(settle_s)

    def look(self, at_s: float, *files: FoundFile) -> list[str]:
        taken = self.settling.observe(files, began_s=at_s, ended_s=at_s + 0.5)
        return [file.path for file in taken]


def changed(file: FoundFile, size: int) -> FoundFile:
    stamp = (size, *file.stamp[1:])
    return replace(file, stamp=stamp, signature=(stamp,))


def test_a_file_is_complete_once_it_was_the_same_for_long_enough() -> None:
    days = Days(10)
    assert days.look(0, FILE) == []
    assert days.settling.next_s() == 10.5
    assert days.look(10.4, FILE) == []  # the first look ended at 0.5
    assert days.look(10.5, FILE) == [FILE.path]
    assert days.look(30, FILE) == []  # it is under way


def test_each_change_begins_the_time_anew() -> None:
    days = Days(10)
    days.look(0, FILE)
    assert days.look(9, changed(FILE, 6)) == []
    assert days.look(12, changed(FILE, 6)) == []
    assert days.settling.next_s() == 19.5
    assert days.look(20, changed(FILE, 6)) == [FILE.path]


def test_a_file_that_has_ended_is_taken_again_only_when_it_has_changed() -> None:
    days = Days(10)
    days.look(0, FILE)
    days.look(11, FILE)
    days.settling.end(FILE.path)
    assert days.look(50, FILE) == []
    assert days.settling.next_s() is None
    days.look(60, changed(FILE, 9))
    assert days.look(80, changed(FILE, 9)) == [FILE.path]


def test_a_change_while_a_file_is_uploaded_counts_from_its_end() -> None:
    days = Days(10)
    days.look(0, FILE)
    days.look(11, FILE)
    assert days.look(20, changed(FILE, 9)) == []
    days.settling.end(FILE.path, retry_s=21)
    assert days.look(22, changed(FILE, 9)) == []
    assert days.look(33, changed(FILE, 9)) == [FILE.path]


def test_a_failed_file_is_tried_again_at_its_time() -> None:
    days = Days(10)
    days.look(0, FILE)
    days.look(11, FILE)
    days.settling.end(FILE.path, retry_s=30)
    assert days.look(29, FILE) == []
    assert days.settling.next_s() == 30
    assert days.look(30, FILE) == [FILE.path]


def test_a_change_time_that_is_our_own_doing_is_no_change() -> None:
    touched = replace(FILE, stamp=(5, 1, 7, 2), signature=((5, 1, 7, 2),))
    days = Days(10)
    days.look(0, FILE)
    days.look(11, FILE)
    days.settling.end(FILE.path, retry_s=300, is_touched=True)
    assert days.look(20, touched) == []
    assert days.look(40, touched) == []  # it is tried again at its time
    assert days.look(300, touched) == [FILE.path]


def test_what_is_missing_is_known() -> None:
    empty = replace(changed(FILE, 0), path="/in/empty.mp4")
    unmarked = replace(FILE, path="/in/unmarked.mp4", is_ready=False)
    growing = replace(FILE, path="/in/growing.mp4")
    days = Days(10)
    days.look(0, empty, unmarked, growing)
    days.look(11, empty, unmarked, changed(growing, 8))
    assert dict(days.settling.waits()) == {
        empty.path: Lack.CONTENT,
        unmarked.path: Lack.MARKER,
        growing.path: Lack.END,
    }
    assert days.settling.is_settled()  # nothing that is waited for with --once


# --- scans --------------------------------------------------------------------------------


def test_a_folder_that_is_moved_to_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done/a.mp4").write_bytes(b"1")
    rules = ScanRules(folder=str(tmp_path), apart=frozenset([str(tmp_path / "done")]))
    assert rules.scan().files == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ScanRules(folder=str(tmp_path / "gone")).scan()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.zh.srt"], ("zh",)),
        (["a.srt", "a.en-US.vtt", "a.notes-and-more.srt"], ("", "en-US")),
        (["ab.srt", "a.srt.bak"], ()),
        (["a.mp4.zh.ass"], ("zh",)),
    ],
)
def test_subtitles_are_found_by_name(
    tmp_path: Path, names: Iterable[str], expected: tuple[str, ...]
) -> None:
    for name in ["a.mp4", *names]:
        (tmp_path / name).write_bytes(b"1")
    [file] = ScanRules(folder=str(tmp_path)).scan().files
    assert tuple(language for language, _ in file.companions.subtitles) == expected


def test_a_change_of_the_metadata_is_a_change_of_the_file(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.json"):
        (tmp_path / name).write_bytes(b"1")
    rules = ScanRules(folder=str(tmp_path))
    [before] = rules.scan().files
    (tmp_path / "a.json").write_bytes(b"22")
    [now] = rules.scan().files
    assert before.stamp == now.stamp
    assert before.signature != now.signature


# --- metadata -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"title": "T", "tags": ["a", "b"], "colour": "red"}'),
        ("a.yaml", "title: T\ntags: [a, b]\ncolour: red"),
        ("a.XML", "<v><title>T</title><tags><tag>a</tag><t>b</t></tags><colour>red</colour></v>"),
        ("a.json", '\ufeff{"title": "T", "tags": ["a", "b"], "colour": "red"}'),
    ],
)
def test_metadata_has_the_columns_of_a_manifest(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    fields, ignored = read_metadata(str(tmp_path / name), root=str(tmp_path))
    assert fields == {"title": "T", "tags": ["a", "b"]}
    assert ignored == {"colour"}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "[1]", "not a JSON object"),
        ("a.json", '{"title": "T", "title": "U"}', "the same key twice"),
        ("a.json", " " * 70_000, "longer than 64,000 bytes"),
        ("a.yaml", "- a", "not a YAML mapping"),
        ("a.yaml", "title: [", "not YAML"),
        ("a.yaml", "title: &a b\ndescription: *a", "an alias"),
        ("a.yaml", "title: !!python/object/apply:os.system [id]", "not YAML"),
        ("a.xml", "<!DOCTYPE v [<!ENTITY e 'x'>]><v><title>&e;</title></v>", "an entity"),
        ("a.xml", "<v><title>T</title><title>U</title></v>", "two elements title"),
        ("a.xml", "<v>T</v>", "no elements"),
        ("a.xml", "<v>", "not well-formed"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        read_metadata(str(tmp_path / name), root=str(tmp_path))


def test_metadata_behind_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "a.json").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match=r"a\.json"):
        read_metadata(str(tmp_path / "a.json"), root=str(tmp_path))


# --- moving -------------------------------------------------------------------------------


def _is_same(status: os.stat_result) -> bool:
    return status.st_size == 1


@pytest.fixture(params=["renameat2", "reserved name"])
def _renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "renameat2":
        monkeypatch.setattr(after, "_renameat2", lambda: None)


@pytest.mark.usefixtures("_renaming")
def test_moving_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "done").mkdir()
    (tmp_path / "done/a.mp4").write_bytes(b"other")
    (tmp_path / "done/a.1.mp4").symlink_to("/nowhere")

    hidden = after.set_apart(str(tmp_path), str(tmp_path / "a.mp4"), 5, _is_same)
    moved = after.move(str(tmp_path), hidden, str(tmp_path / "done/a.mp4"))

    assert moved == str(tmp_path / "done/a.2.mp4")
    assert Path(moved).read_bytes() == b"1"
    assert (tmp_path / "done/a.mp4").read_bytes() == b"other"


@pytest.mark.usefixtures("_renaming")
def test_what_has_replaced_the_file_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"another")
    with pytest.raises(SourceChanged):
        after.set_apart(str(tmp_path), str(path), 5, _is_same)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_bytes() == b"another"


def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.mp4").write_bytes(b"1")
    (tmp_path / "in/sub").symlink_to(tmp_path / "other")
    with pytest.raises(UnsafePath):
        after.set_apart(str(tmp_path / "in"), str(tmp_path / "in/sub/a.mp4"), 5, _is_same)
    assert (tmp_path / "other/a.mp4").exists()


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterable[Path]:
    shared_memory = Path("/dev") / "shm"
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        yield Path(folder)


def test_a_file_is_copied_to_another_file_system_before_it_is_deleted(
    tmp_path: Path, other_disk: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1")
    os.utime(tmp_path / "a.mp4", ns=(1, 10**18))
    (other_disk / "a.mp4").write_bytes(b"2")
    moved = after.move(str(tmp_path), str(tmp_path / "a.mp4"), str(other_disk / "a.mp4"))
    assert moved == str(other_disk / "a.1.mp4")
    assert os.stat(moved).st_mtime_ns == 10**18
    assert sorted(os.listdir(other_disk)) == ["a.1.mp4", "a.mp4"]
    assert os.listdir(tmp_path) == []


def test_a_copy_that_a_killed_run_has_made_is_not_made_again(
    tmp_path: Path, other_disk: Path
) -> None:
    for folder in (tmp_path, other_disk):
        (folder / "a.mp4").write_bytes(b"1")
    moved = after.move(str(tmp_path), str(tmp_path / "a.mp4"), str(other_disk / "a.mp4"))
    assert moved == str(other_disk / "a.mp4")
    assert os.listdir(other_disk) == ["a.mp4"]
    assert os.listdir(tmp_path) == []


def test_a_copy_that_fails_leaves_the_file_and_nothing_else(
    tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfileobj", full)
    (tmp_path / "a.mp4").write_bytes(b"1")
    with pytest.raises(OSError, match="No space left"):
        after.move(str(tmp_path), str(tmp_path / "a.mp4"), str(other_disk / "a.mp4"))
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert os.listdir(other_disk) == []


def test_a_reason_replaces_nothing(tmp_path: Path) -> None:
    names = [after.write_reason(str(tmp_path / "a.mp4"), {"error": "E"}) for _ in range(2)]
    assert [Path(name).name for name in names] == ["a.mp4.reason.json", "a.mp4.reason.1.json"]


# --- events -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ext4", False), ("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("9p", True)],
)
def test_network_file_systems_are_known(kind: str, expected: bool) -> None:
    assert events.is_network(kind) is expected


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount() -> None:
    assert events.file_system_of("/proc/self") == "proc"


def test_writers_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with path.open("wb"):
        assert events.is_open_for_writing(str(path), root=str(tmp_path))
    assert not events.is_open_for_writing(str(path), root=str(tmp_path))
    assert not events.is_open_for_writing(str(tmp_path / "gone"), root=str(tmp_path))
