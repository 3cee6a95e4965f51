"""What a batch writes never replaces a file of the user."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

import pytest

from tests.bulk.conftest import Quick
from tests.bulk.test_ingest import files, manifest, records, requests_of
from uploader.bulk.ledger import Ledger
from uploader.devserver import DevServer

FLAGS = ("--report", "--failed", "--html")


@pytest.fixture
def batch(quick: Quick) -> Quick:
    """Two videos, and other files of the user."""
    manifest(quick, [{"path": name} for name in files(quick, 2)])
    (quick.folder / "notes.txt").write_text("precious\n")
    (quick.folder / "blank.txt").write_text("\n\nprecious\n")
    (quick.folder / "rows.jsonl").write_text('{"id": "12", "status": "done"}\n')
    (quick.folder / "empty.mp4").touch()
    (quick.folder / "folder").mkdir()
    (quick.folder / "link").symlink_to("notes.txt")
    (quick.folder / "dangling").symlink_to("new.txt")
    os.link(quick.folder / "m.csv", quick.folder / "hard.csv")
    os.mkfifo(quick.folder / "fifo")
    return quick


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file, and where every link leads."""
    return {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.iterdir()
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    "path",
    [
        *("m.csv", "./folder/../m.csv", "hard.csv", "v0000.mp4", "new.mp4", "empty.mp4"),
        *("notes.txt", "blank.txt", "rows.jsonl", "link", "dangling", "folder", "fifo"),
        *("absent/new.txt", "notes.txt/new.txt", "n" * 300, "", "/dev/null", "/dev/full"),
    ],
)
def test_a_file_of_the_user_is_refused_before_anything_is_sent(
    batch: Quick, server: DevServer, flag: str, path: str
) -> None:
    before = contents(batch.folder)

    ended = batch.run("ingest", "m.csv", flag, path)

    assert ended.code == 2, ended.err
    assert f"{flag}: " in ended.err
    assert f"next: Pass another file to {flag}" in ended.err
    assert contents(batch.folder) == before
    assert requests_of(server) == 0


def test_failures_are_read_and_replaced_only_if_a_ledger_has_them_too(batch: Quick) -> None:
    (batch.folder / "a.csv").write_text("path\nv0000.mp4\nabsent.mp4\n")
    assert batch.run("ingest", "a.csv", "--report", "r", "--failed", "f.jsonl").code == 4
    before = contents(batch.folder)
    ended = batch.run("ingest", "f.jsonl", "--failed", "f.jsonl")
    assert (ended.code, contents(batch.folder)) == (2, before)
    assert "f.jsonl is a manifest of this batch" in ended.err
    ended = batch.run("ingest", "m.csv", "--report", "r", "--failed", "m.csv")
    assert (ended.code, contents(batch.folder)) == (2, before)
    assert batch.run("ingest", "f.jsonl", "--report", "r", "--failed", "f.jsonl").code == 4


@pytest.mark.parametrize("flag", FLAGS)
def test_an_output_of_another_kind_is_refused(batch: Quick, flag: str) -> None:
    """The ledger of one batch is not replaced by the failures of another."""
    (batch.folder / "a.csv").write_text("path\nv0000.mp4\nabsent.mp4\n")
    words = ("--report", "r", "--failed", "f", "--html", "h")
    assert batch.run("ingest", "a.csv", *words).code == 4
    before = contents(batch.folder)
    for other in {"--report": "h", "--failed": "rh", "--html": "rf"}[flag]:
        assert batch.run("ingest", "m.csv", flag, other).code == 2
    assert contents(batch.folder) == before


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_no_output_takes_the_place_of_the_state(batch: Quick, flag: str, suffix: str) -> None:
    """SQLite's files come and go: one that is not there yet would be replaced as it is used."""
    ended = batch.run("ingest", "m.csv", "--state", "new.db", flag, f"folder/../new.db{suffix}")

    assert ended.code == 2
    assert "is a file of the state" in ended.err
    assert not (batch.folder / f"new.db{suffix}").exists()


@pytest.mark.parametrize("second", ["out", "./out", "folder/../out", "there/out"])
def test_two_outputs_are_two_files(batch: Quick, server: DevServer, second: str) -> None:
    (batch.folder / "there").symlink_to(".")
    ended = batch.run("ingest", "m.csv", "--failed", "out", "--html", second)
    assert ended.code == 2
    assert "is the file of --failed as well" in ended.err
    assert requests_of(server) == 0


def test_a_list_on_standard_input_is_an_input_as_well(batch: Quick) -> None:
    (batch.folder / "list").touch()
    kept, given = os.dup(0), os.open(batch.folder / "list", os.O_RDONLY)
    try:
        os.dup2(given, 0)
        ended = batch.run("ingest", "--files-from", "-", "--failed", "list")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(given)
    assert ended.code == 2
    assert "list is standard input or output as well" in ended.err


def test_an_output_is_no_row_of_the_batch(batch: Quick) -> None:
    (batch.folder / "list.csv").write_text("path,file_name\nr.jsonl,a.mp4\nv0000.mp4,\n")
    assert batch.run("ingest", "m.csv", "--report", "r.jsonl").code == 0
    ended = batch.run("ingest", "list.csv", "--report", "r.jsonl")
    assert ended.code == 2
    assert "r.jsonl is a file that this batch writes" in ended.err
    assert Counter(record["status"] for record in records(batch)) == {"failed": 1, "done": 2}


def test_outputs_of_earlier_runs_are_replaced_and_keep_their_mode(batch: Quick) -> None:
    (batch.folder / "m.csv").write_text("path\nv0000.mp4\nabsent.mp4\n")
    words = ("ingest", "m.csv", "--report", "r", "--failed", "f", "--html", "h")
    assert batch.run(*words).code == 4
    (batch.folder / "h").chmod(0o644)
    before = contents(batch.folder)

    (batch.folder / "m.csv").write_text("path\nv0000.mp4\nv0001.mp4\n")
    assert batch.run(*words).code == 0

    after = contents(batch.folder)
    assert all(after[name] != before[name] for name in "rfh")
    assert after["f"] == b""
    assert stat.S_IMODE((batch.folder / "h").stat().st_mode) == 0o644
    assert batch.run(*words).code == 0, "an empty list of failures was written by vodup"


def test_a_file_written_during_the_run_is_not_replaced(batch: Quick) -> None:
    note = batch.folder / "note.sh"
    note.write_text("echo precious > h\n")
    ended = batch.run("ingest", "m.csv", "--html", "h", "--on-finished", "sh note.sh")
    assert ended.code == 2
    assert "--html: h exists and is not an HTML report of vodup" in ended.err
    assert (batch.folder / "h").read_text() == "precious\n"


@pytest.mark.parametrize("flag", FLAGS)
def test_drafts_of_killed_runs_are_removed(batch: Quick, flag: str) -> None:
    stale = batch.folder / ".out.4194304-0a1b2c3d.draft"
    stale.write_text("half")
    kept = [batch.folder / name for name in (".out.mine.draft", ".other.1-0a1b2c3d.draft")]
    for path in kept:
        path.write_text("precious")
    planted = batch.folder / ".out.1-0a1b2c3d.draft"
    planted.symlink_to("notes.txt")

    assert batch.run("ingest", "m.csv", flag, "out").code == 0

    assert not stale.exists()
    assert [path.read_text() for path in [*kept, planted]] == ["precious", "precious", "precious\n"]
    assert len(list(batch.folder.glob(".out.*"))) == 2


def test_a_link_in_the_place_of_a_draft_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uploader.private_files.token_hex", lambda size: "0a" * size)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for draft in (f".f.{os.getpid()}.draft", f".f.{os.getpid()}-0a0a0a0a.draft"):
        (tmp_path / draft).symlink_to(victim)
    with Ledger() as ledger, pytest.raises(Exception, match="cannot be written: File exists"):
        ledger.write_failures(tmp_path / "f")
    assert victim.read_text() == "precious"


def test_a_link_in_the_place_of_a_ledger_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "r.jsonl").symlink_to(victim)
    with pytest.raises(Exception, match="is a link"):
        Ledger(tmp_path / "r.jsonl")


def test_a_name_of_the_greatest_length_can_be_written(batch: Quick) -> None:
    name = "é" * 127
    assert batch.run("ingest", "m.csv", "--failed", name).code == 0
    assert (batch.folder / name).exists()
