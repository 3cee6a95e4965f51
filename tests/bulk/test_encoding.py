"""What spreadsheets write is read, or answered with one sentence that has the cure."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.bulk.conftest import Quick
from uploader.bulk.encoding import require_encoding
from uploader.bulk.manifests import files_from, manifest_stream
from uploader.devserver import Fault
from uploader.errors import ConfigurationError

CHINESE = "path,title\n视频.mp4,标题一\n"
FRENCH = "path;title\nété.mp4;Un café – naïf\n"
JSON = '{"path": "视频.mp4"}\n'


def read(path: Path, data: bytes, encoding: str | None = None) -> list[dict[str, object]]:
    path.write_bytes(data)
    rows = list(manifest_stream(str(path), print, encoding=encoding))
    assert all(row.problem is None for row in rows)
    return [dict(row.fields) for row in rows]


def refusal(path: Path, data: bytes, encoding: str | None = None) -> str:
    with pytest.raises(ConfigurationError) as refused:
        read(path, data, encoding)
    return str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        b'"path","title"\n"a.mp4","x"\n',
        b'\xef\xbb\xbf"path","title"\r\n"a.mp4","x"\r\n',
        b'"path";"title"\n"a.mp4";"x"\n',
        b'"path"\t"title"\n"a.mp4"\t"x"\n',
        b"\r\n\npath,title\na.mp4,x\n",
        b"path,title\ra.mp4,x\r",
        b'"path","title"\r"a.mp4","x"',
        "path,title\ra.mp4,x\r".encode("utf-16"),
        "path,title\na.mp4,x\n".encode("utf-16"),
        "path,title\na.mp4,x\n".encode("utf-32"),
        b"\xfe\xff" + "path\ttitle\r\na.mp4\tx\r\n".encode("utf-16-be"),
    ],
)
def test_what_is_certain_is_read(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path / "m.csv", data) == [{"path": "a.mp4", "title": "x"}]


@pytest.mark.parametrize(
    "header", [b'"path,"title', b'path,"title', b'path,"ti"t"le', b'path,"title\na.mp4,"x"y"']
)
def test_a_header_that_is_not_csv_is_refused(tmp_path: Path, header: bytes) -> None:
    assert "m.csv is not CSV" in refusal(tmp_path / "m.csv", header + b"\na.mp4,x\n")


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m"])
@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (CHINESE.encode("gbk"), "gbk"),
        (JSON.encode("gbk"), "gbk"),
        (FRENCH.encode("cp1252"), "cp1252"),
        (CHINESE.encode("utf-16-le"), "utf-16-le"),
        (JSON.encode("utf-16-be"), "utf-16-be"),
        (CHINESE.replace("\n", "\r").encode("gbk"), "gbk"),
        (b"path\n" + b"a.mp4\n" * 30_000 + CHINESE.encode("gbk"), "gbk"),
        (b"path\n" + "é.mp4\n".encode() * 30_000 + FRENCH.encode("cp1252"), "cp1252"),
    ],
)
def test_an_encoding_that_is_not_certain_is_named_once(
    tmp_path: Path, name: str, data: bytes, looks_like: str
) -> None:
    sentence = refusal(tmp_path / name, data)
    assert f"it looks like {looks_like.upper()}" in sentence
    assert f"--manifest-encoding {looks_like}" in sentence


@pytest.mark.parametrize(
    "data",
    [
        "path\n動画ファイル.mp4\n".encode("shift_jis"),
        b"path\n\x81\x20.mp4\n",
        b"path\n\x81",
        b"path\n\xff\xff\n",
    ],
)
def test_an_encoding_that_is_not_known_is_not_guessed(tmp_path: Path, data: bytes) -> None:
    sentence = refusal(tmp_path / "m.csv", data)
    assert "is not UTF-8 in line 2." in sentence
    assert "--manifest-encoding NAME" in sentence


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (CHINESE.encode("gbk"), "gbk"),
        (CHINESE.encode("gb18030"), "gb18030"),
        (CHINESE.encode("utf-16-le"), "utf-16-le"),
        (CHINESE.encode("utf-16"), "gbk"),
        (CHINESE.replace("\n", "\r").encode("gbk"), "gbk"),
    ],
)
def test_a_named_encoding_is_used(tmp_path: Path, data: bytes, encoding: str) -> None:
    rows = [{"path": "视频.mp4", "title": "标题一"}]
    assert read(tmp_path / "m.csv", data, encoding) == rows


def test_a_named_encoding_must_be_right(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    assert "cannot be read as GBK" in refusal(path, CHINESE.encode(), "gbk")
    assert "cannot be read as UTF-16" in refusal(path, b"\xff\xfep\0a\0t\0h\0\n\0\0\xd8")
    path.write_bytes(CHINESE.encode("utf-16"))
    stream = manifest_stream(str(path), print, encoding="utf-16")
    path.write_bytes(b"\xff\xfe\0\xd8")  # it changes after it was checked
    with pytest.raises(ConfigurationError, match="cannot be read as UTF-16"):
        list(stream)


def test_with_utf8_named_any_bytes_are_a_file_name(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "m.csv", b"path\n\xe9.mp4\n", "utf-8")
    assert row == {"path": b"\xe9.mp4".decode("utf-8", "surrogateescape")}


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.xlsx", "list"])
@pytest.mark.parametrize(
    ("data", "cure"),
    [
        (b"PK\x03\x04" + bytes(100), "save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "save it as CSV"),
        (gzip.compress(CHINESE.encode(), mtime=0), "gunzip"),
    ],
)
def test_a_workbook_or_a_compressed_file_is_named(
    tmp_path: Path, name: str, data: bytes, cure: str
) -> None:
    path = tmp_path / name
    assert cure in refusal(path, data)
    assert cure in refusal(path, data, "utf-8")
    with pytest.raises(ConfigurationError, match=cure):
        files_from(str(path))


@pytest.mark.parametrize("data", [b'[{"path": "a.mp4"}]', b'[\n{"path": "a"},\n', b'{\n"path": 1}'])
def test_a_json_document_is_named(tmp_path: Path, data: bytes) -> None:
    assert "jq -c" in refusal(tmp_path / "m.json", data)
    assert "jq -c" in refusal(tmp_path / "m", data)


def test_a_table_that_is_named_as_json_is_refused_at_once(tmp_path: Path) -> None:
    assert "has no JSON objects" in refusal(tmp_path / "m.jsonl", CHINESE.encode())


def test_a_list_of_files_is_read_in_utf16_too(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("视频.mp4\n", encoding="utf-16")
    (row,) = files_from(str(path))
    assert row.fields["path"] == "视频.mp4"
    path.write_text("视频.mp4\n", encoding="gbk")
    (row,) = files_from(str(path), encoding="gbk")
    assert row.fields["path"] == "视频.mp4"


def test_how_much_of_a_recoded_manifest_is_read_is_known(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(CHINESE.encode("gbk"))
    stream = manifest_stream(str(path), print, encoding="gbk")
    list(stream)
    assert stream.position == stream.size


@pytest.mark.parametrize("name", ["base64", "rot13", "undefined", "none", "", "a\0b"])
def test_only_encodings_of_text_are_accepted(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the flag has the sentence)
        require_encoding(name)
    assert require_encoding("GB18030") == "gb18030"


def test_a_chinese_manifest_ends_in_one_sentence_and_then_in_uploads(quick: Quick) -> None:
    for number in range(3):
        quick.file(f"视频{number}.mp4")
    text = "path,title\n" + "".join(f"视频{n}.mp4,标题{n}\n" for n in range(3))
    (quick.folder / "m.csv").write_bytes(text.encode("gbk"))
    ended = quick.run("ingest", "m.csv")
    assert ended.code == 2
    assert ended.err.count("\n") == 2
    assert "--manifest-encoding gbk" in ended.err
    assert not quick.server.videos
    assert quick.run("ingest", "m.csv", "--manifest-encoding", "gbk").code == 0
    assert sorted(video.title for video in quick.server.videos.values()) == [
        "标题0",
        "标题1",
        "标题2",
    ]
    wrong = quick.run("ingest", "m.csv", "--manifest-encoding", "klingon")
    assert wrong.code == 2
    assert "expected an encoding of text" in wrong.err


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--title", "\udcff"),
        ("--title", "a\x1b[2J"),
        ("--tags", "a,\udcff"),
        ("--file-name", "a\x07.mp4"),
        ("--description", "\udce9"),
        ("--user-data", '{"a": "\udcff"}'),
        ("--reference-id", "abcdef\udcff"),
        ("--video-id", "\udcff"),
        ("--storage-location", "\udcff"),
    ],
)
def test_texts_that_vod_cannot_be_given_are_usage_errors(
    quick: Quick, flag: str, text: str
) -> None:
    quick.file("a.mp4")
    ended = quick.run("push", "a.mp4", flag, text)
    assert ended.code == 2
    assert "has control characters or is not UTF-8 text." in ended.err
    assert quick.server.stats.requests.total() == 0
    assert "No uploads" in quick.run("status").out


def test_uploads_whose_names_are_not_utf8_are_resumed_and_removed(quick: Quick) -> None:
    name, key = "\udcff é.mp4", "key \udcfe"
    path = quick.file(name)
    denied = Fault(
        action="error", operation="PutObject", status=403, code="AccessDenied", count=None
    )
    quick.server.faults.add(denied)
    assert quick.run("push", name, "--key", key).code == 3
    assert key in [line["key"] for line in quick.run("status", "--json").lines]
    quick.server.faults.replace([])
    assert quick.run("resume", "--all").code == 0
    (video,) = quick.server.videos.values()
    assert video.title == "? é.mp4"
    assert quick.run("verify", str(path), "--key", key).code == 0
    quick.server.faults.add(denied)
    assert quick.run("push", name).code == 3
    (record,) = [line for line in quick.run("status", "--json").lines if line["state"] != "done"]
    assert quick.run("abort", record["key"]).code == 0
    assert quick.run("clean", "--done", "--aborted").code == 0
    assert quick.run("status", "--json").lines == []
