"""Manifests, folders and lists: every row comes out, as a row or as a problem."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uploader.bulk.manifests import MAX_ROW_SIZE, files_from, folder_stream, manifest_stream
from uploader.bulk.rows import RawRow
from uploader.errors import ConfigurationError


def read(path: Path, text: str | bytes, notices: list[str] | None = None) -> list[RawRow]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(manifest_stream(str(path), (notices if notices is not None else []).append))


def paths(rows: list[RawRow]) -> list[object]:
    return [row.fields.get("path") for row in rows]


def test_csv_rows_have_their_line_numbers(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "m.csv", 'path,title\na.mp4,"A, the film"\n\nb.mp4,"two\nlines"\nc.mp4,\n'
    )
    assert [(row.number, dict(row.fields)) for row in rows] == [
        (2, {"path": "a.mp4", "title": "A, the film"}),
        (4, {"path": "b.mp4", "title": "two\nlines"}),
        (6, {"path": "c.mp4", "title": ""}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_found_in_the_header(tmp_path: Path, delimiter: str) -> None:
    text = f"title{delimiter}path\r\nT{delimiter}a.mp4\r\n"
    (row,) = read(tmp_path / "m.csv", text)
    assert row.fields == {"title": "T", "path": "a.mp4"}


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert paths(read(tmp_path / "m.csv", b"\xef\xbb\xbfpath\na.mp4\n")) == ["a.mp4"]
    assert paths(read(tmp_path / "m.jsonl", b'\xef\xbb\xbf{"path": "a.mp4"}\n')) == ["a.mp4"]


def test_json_lines_and_their_problems(tmp_path: Path) -> None:
    deep = "[" * 30_000 + "]" * 30_000
    lines = ['{"path": "a.mp4"}', "{", "[1]", '"x"', "", f'{{"path": {deep}}}', '{"path": "b.mp4"}']
    rows = read(tmp_path / "m.jsonl", "\n".join(lines))
    assert [row.number for row in rows] == [1, 2, 3, 4, 6, 7]
    assert [row.problem is None for row in rows] == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('a.mp4,"open', "not CSV"),
        ("a.mp4,b,c", "3 fields"),
        ("a\0.mp4,x", "NUL"),
        ("a" * (MAX_ROW_SIZE + 1) + ",x", "longer"),
        ('a.mp4,"x"y"', "not CSV"),
    ],
)
def test_a_bad_csv_line_is_one_bad_row(tmp_path: Path, line: str, problem: str) -> None:
    rows = read(tmp_path / "m.csv", f"path,title\nfirst.mp4,\n{line}\nlast.mp4,\n")
    assert [row.number for row in rows] == [2, 3, 4]
    assert problem in (rows[1].problem or "")
    assert paths(rows)[0] == "first.mp4"
    assert paths(rows)[2] == "last.mp4"


def test_an_unclosed_quotation_spoils_its_own_line_only(tmp_path: Path) -> None:
    lines = ["path,title", 'bad.mp4,"never closed', *(f"{n}.mp4,T" for n in range(20_000))]
    rows = read(tmp_path / "m.csv", "\n".join(lines))
    assert len(rows) == 20_001
    assert [row.number for row in rows if row.problem] == [2]


def test_a_very_long_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with path.open("wb") as file:
        file.write(b'{"path": "a.mp4"}\n')
        file.write(b"x" * 30_000_000 + b"\n")
        file.write(b'{"path": "b.mp4"}\n')
    rows = list(manifest_stream(str(path), print))
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[1].problem is not None


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = b"\xe9.mp4".decode("utf-8", "surrogateescape")
    (tmp_path / name).touch()
    (row,) = read(tmp_path / "m.csv", b"path\n\xe9.mp4\n")
    assert row.fields["path"] == name


def test_unknown_columns_are_reported_once_and_ignored(tmp_path: Path) -> None:
    notices: list[str] = []
    text = "".join(
        json.dumps({"path": f"{n}.mp4", "oss_endpoint": "http://evil", "access_key": "x"}) + "\n"
        for n in range(50)
    )
    assert len(read(tmp_path / "m.jsonl", text, notices)) == 50
    (notice,) = notices
    assert "access_key, oss_endpoint" in notice


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "title,tags\nx,y\n"),
        ("m.csv", b"\xff\xfep\x00a\x00t\x00h\x00s\x00"),
        ("m.csv", "path,path\na,b\n"),
        ("m.csv", b"\x00\x01binary"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path / name, text)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a file"):
        manifest_stream(str(tmp_path / "none.csv"), print)


def parquet(file: Path, /, **columns: Any) -> Path:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    pq.write_table(pytest.importorskip("pyarrow").table(columns), file)
    return file


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path / "m.parquet", b"PAR1")
    assert "vodup[parquet]" in refused.value.next_step


def test_parquet_rows_with_their_types(tmp_path: Path) -> None:
    manifest = parquet(
        tmp_path / "m.parquet",
        Path=["a.mp4", "b.mp4"],
        cate_id=[7, None],
        tags=[["x", "y"], None],
        other=[1, 2],
    )
    notices: list[str] = []
    stream = manifest_stream(str(manifest), notices.append)
    rows = list(stream)
    assert [dict(row.fields) for row in rows] == [
        {"path": "a.mp4", "cate_id": 7, "tags": ["x", "y"]},
        {"path": "b.mp4", "cate_id": None, "tags": None},
    ]
    assert [row.number for row in rows] == [1, 2]
    assert len(notices) == 1
    assert stream.position == stream.size


def test_a_parquet_row_that_is_too_long_is_one_bad_row(tmp_path: Path) -> None:
    manifest = parquet(
        tmp_path / "m.parquet",
        path=["a.mp4", "b.mp4", "c.mp4"],
        description=["x", "x" * (MAX_ROW_SIZE + 1), "x"],
        tags=[None, None, ["y" * 1000] * 100],
    )
    rows = list(manifest_stream(str(manifest), print))
    assert [row.problem is None for row in rows] == [True, False, False]


@pytest.mark.parametrize("damage", ["cut", "pages", "footer", "no path"])
def test_a_damaged_parquet_file_is_a_configuration_error(tmp_path: Path, damage: str) -> None:
    column = "title" if damage == "no path" else "path"
    manifest = parquet(tmp_path / "m.parquet", **{column: [f"v/{n}.mp4" for n in range(5000)]})
    whole = manifest.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "pages": whole[:100] + b"\xff" * 4000 + whole[4100:],
        "footer": whole[:-20] + bytes(16) + whole[-4:],
        "no path": whole,
    }
    manifest.write_bytes(damaged[damage])
    with pytest.raises(ConfigurationError):
        list(manifest_stream(str(manifest), print))


def test_a_folder_gives_the_videos_below_it(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MOV", "a/notes.txt", "a/d.mkv", "z.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    for name in ("self.mp4", "self.txt"):  # its own row says that it cannot be read
        (tmp_path / name).symlink_to(name)

    def names(**options: object) -> list[str]:
        rows = folder_stream(str(tmp_path), **options)  # type: ignore[arg-type]
        return [str(Path(str(row.fields["path"])).relative_to(tmp_path)) for row in rows]

    assert names() == ["a/c.MOV", "a/d.mkv", "b.mp4", "self.mp4"]
    assert names(exclude=["*.mkv", "self.*"]) == ["a/c.MOV", "b.mp4"]
    assert names(include=["*.txt", "b.*"]) == ["a/notes.txt", "b.mp4", "self.txt"]
    assert names(include=["a/*"], exclude=["*.txt"]) == ["a/c.MOV", "a/d.mkv"]
    assert names(follow_symlinks=True)[:2] == ["a/c.MOV", "a/d.mkv"]  # and comes to an end


def test_files_of_other_types_are_counted(tmp_path: Path) -> None:
    for name in ("b.mp4", "c.TXT", "d.txt", "README", "x.\x1b[2J", "e.srt", "z.skip"):
        (tmp_path / name).write_bytes(b"x")

    def notices(**options: object) -> list[str]:
        said: list[str] = []
        list(folder_stream(str(tmp_path), notice=said.append, **options))  # type: ignore[arg-type]
        return said

    (notice,) = notices(exclude=["*.skip"])
    assert notice.startswith(f"{tmp_path}: skipped 5 files of types that are not video (2 .txt, ")
    assert "1 no extension" in notice
    assert "1 .srt" in notice
    assert notice.isprintable()
    assert "--include GLOB" in notice
    assert notices(include=["*.mp4"]) == [], "the user has chosen"
    for number in range(20):
        (tmp_path / f"f.{number}").write_bytes(b"x")
    assert "more types" in notices()[0]


def test_a_list_of_files_from_a_file_and_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a.mp4\n\nb c.mp4\r\n")
    assert paths(list(files_from(str(path)))) == ["a.mp4", "b c.mp4"]
    with path.open() as file, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", file)
        assert paths(list(files_from("-"))) == ["a.mp4", "b c.mp4"]


MEMORY = """
import resource, sys
from uploader.bulk.ledger import Ledger
from uploader.bulk.rows import Root
from uploader.bulk.rows import RowRules
from uploader.bulk.runner import read_rows
from uploader.bulk.manifests import manifest_stream

stream = manifest_stream(sys.argv[1], print)
rules = RowRules(root=Root.at(sys.argv[2]))
count, first = 0, 0
with Ledger() as ledger:
    for checked in read_rows([(stream, rules)], ledger):
        assert checked.row.error is None, checked.row.error
        count += 1
        if count == 5_000:
            first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first) // 1024)
"""


def csv_of(folder: Path, count: int) -> Path:
    manifest = folder / "m.csv"
    with manifest.open("w") as file:
        file.write("path,key,title\n")
        file.writelines(f"a.mp4,key-{n},Title of number {n}\n" for n in range(count))
    return manifest


def parquet_of(folder: Path, count: int) -> Path:
    return parquet(
        folder / "m.parquet",
        path=["a.mp4"] * count,
        key=[f"key-{n}" for n in range(count)],
        title=[f"Title of number {n}" for n in range(count)],
    )


def grown_mib(manifest: Path, count: int) -> int:
    folder = manifest.parent
    (folder / "a.mp4").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(manifest), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    read_count, grown = map(int, done.stdout.split())
    assert read_count == count
    return grown


@pytest.mark.parametrize("written", [csv_of, parquet_of])
def test_fifty_thousand_rows_take_no_more_memory_than_their_names(
    tmp_path: Path, written: Callable[[Path, int], Path]
) -> None:
    assert grown_mib(written(tmp_path, 50_000), 50_000) <= 6


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("written", [csv_of, parquet_of])
def test_a_million_rows_take_no_more_memory_than_their_names(
    tmp_path: Path, written: Callable[[Path, int], Path]
) -> None:
    assert grown_mib(written(tmp_path, 1_000_000), 1_000_000) <= 64
