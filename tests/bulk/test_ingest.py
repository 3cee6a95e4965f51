"""`vodup ingest`, the real command against a server."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.conftest import Quick
from tests.cli.conftest import Cli
from uploader.devserver import DevServer, Fault


def files(cli: Cli, count: int, *, size: int = 2000) -> list[str]:
    names = [f"v{n:04}.mp4" for n in range(count)]
    for number, name in enumerate(names):
        cli.file(name, size=size + number, seed=name.encode())
    return names


def manifest(cli: Cli, rows: list[dict[str, Any]], name: str = "m.csv") -> Path:
    path = cli.folder / name
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def records(cli: Cli, name: str = "r.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cli.folder / name).read_text().splitlines()]


def requests_of(server: DevServer) -> int:
    return sum(server.stats.requests.values())


def test_a_row_with_a_playlist_is_stored_with_its_segments(cli: Cli, server: DevServer) -> None:
    (segment,) = files(cli, 1)
    playlist = cli.folder / "index.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:4,\n{segment}\n#EXT-X-ENDLIST\n")
    manifest(cli, [{"path": "index.m3u8"}])

    ended = cli.run("ingest", "m.csv", "--report", "r.jsonl")

    assert ended.code == 0, ended.err
    (record,) = records(cli)
    key = server.videos[record["video_id"]].object_key
    names = [name for name in server.objects(record["video_id"]) if name.startswith(key[:20])]
    assert len(names) == 2, "the segment and the playlist"


def test_a_manifest_becomes_a_ledger(cli: Cli, server: DevServer) -> None:
    rows: list[dict[str, Any]] = [{"path": name, "title": f"T {name}"} for name in files(cli, 8)]
    rows += [{"path": "missing.mp4"}, {"path": "../out.mp4"}, {"path": "v0000.mp4"}]
    manifest(cli, rows)
    ended = cli.run("ingest", "m.csv", "--report", "r.jsonl", "--failed", "f.jsonl", "--json")

    assert ended.code == 1, ended.err
    ledger = records(cli)
    assert sorted(record["row"] for record in ledger) == list(range(2, 13))
    good = {record["path"]: record for record in ledger if record["status"] == "done"}
    assert len(good) == 8
    for path, record in good.items():
        assert server.videos[record["video_id"]].title == f"T {Path(path).name}"
        assert record["verified_by"] == "crc64"
        assert record["crc64"].isdecimal()
    errors = {record["row"]: record["error"] for record in records(cli, "f.jsonl")}
    assert errors == {10: "SourceUnreadable", 11: "UnsafePath", 12: "ConfigurationError"}
    assert server.stats.creates == 8
    assert Counter(line["type"] for line in ended.lines if line["type"] != "batch.progress") == {
        "row.done": 8,
        "row.failed": 3,
        "batch.ended": 1,
    }
    assert (ended.last["done"], ended.last["failed"], ended.last["rows"]) == (8, 3, 11)


def test_a_command_is_run_after_each_row(cli: Cli) -> None:
    manifest(cli, [{"path": name} for name in [*files(cli, 3), "missing.mp4"]])
    note = cli.folder / "note.sh"
    note.write_text('echo "$VODUP_STATUS $VODUP_VIDEO_ID" >> notes\n')
    words = ("ingest", "m.csv", "--report", "r.jsonl", "--on-finished", "sh note.sh")

    assert cli.run(*words).code == 4
    assert cli.run(*words).code == 4

    notes = Counter((cli.folder / "notes").read_text().splitlines())
    done = [r["video_id"] for r in records(cli) if r["status"] == "done"]
    assert notes == Counter(f"verified {video_id}" for video_id in done), (
        "rows refused are no uploads"
    )


def test_a_command_that_fails_after_good_rows_exits_with_9_and_is_reported(cli: Cli) -> None:
    manifest(cli, [{"path": name} for name in files(cli, 3)])
    ended = cli.run("ingest", "m.csv", "--report", "r.jsonl", "--on-finished", "false")

    assert ended.code == 9
    assert "3 of 3 files uploaded" in ended.out
    assert "hooks failed 3 times" in ended.err
    assert "false failed with exit status 1" in ended.err
    assert {record["status"] for record in records(cli)} == {"done"}
    assert all("exit status 1" in record["hook_failures"][0] for record in records(cli))
    again = cli.run("ingest", "m.csv", "--on-finished", "false", "--json")
    assert (again.code, again.last["hook_failures"]) == (9, 3)


def test_failed_rows_take_precedence_over_a_failed_command(cli: Cli) -> None:
    manifest(cli, [{"path": name} for name in [*files(cli, 1), "missing.mp4"]])
    assert cli.run("ingest", "m.csv", "--on-finished", "false").code == 4


def test_the_same_command_again_sends_no_request(quick: Quick, server: DevServer) -> None:
    manifest(quick, [{"path": name} for name in files(quick, 6)])
    first = quick.run("ingest", "m.csv", "--report", "r.jsonl")
    before, text = requests_of(server), (quick.folder / "r.jsonl").read_text()
    again = quick.run("ingest", "m.csv", "--report", "r.jsonl", "--json")

    assert (first.code, again.code) == (0, 0)
    assert requests_of(server) == before
    assert again.last["skipped"] == 6
    assert (quick.folder / "r.jsonl").read_text() == text


def test_a_new_ledger_is_filled_from_the_state_without_a_request(
    quick: Quick, server: DevServer
) -> None:
    manifest(quick, [{"path": name} for name in files(quick, 6)])
    assert quick.run("ingest", "m.csv", "--report", "r.jsonl").code == 0
    before = requests_of(server)
    assert quick.run("ingest", "m.csv", "--report", "other.jsonl").code == 0

    assert requests_of(server) == before
    one, other = records(quick), records(quick, "other.jsonl")
    assert {r["path"]: r["video_id"] for r in one} == {r["path"]: r["video_id"] for r in other}
    assert all(record["is_earlier_result"] for record in other)


def test_failures_are_a_manifest_to_run_again(quick: Quick, server: DevServer) -> None:
    names = files(quick, 4)
    (quick.folder / names[1]).rename(quick.folder / "away.mp4")
    manifest(quick, [{"path": name, "title": "T", "tags": "a,b"} for name in names])
    assert quick.run("ingest", "m.csv", "--report", "r.jsonl", "--failed", "f.jsonl").code == 4
    (quick.folder / "away.mp4").rename(quick.folder / names[1])
    assert quick.run("ingest", "f.jsonl", "--report", "r.jsonl", "--failed", "f.jsonl").code == 0

    assert [record["status"] for record in records(quick)] == ["done"] * 4
    assert records(quick, "f.jsonl") == []
    assert server.stats.creates == 4


def test_a_ledger_is_itself_a_manifest(quick: Quick, server: DevServer) -> None:
    manifest(quick, [{"path": name} for name in files(quick, 3)])
    assert quick.run("ingest", "m.csv", "--report", "r.jsonl").code == 0
    before = requests_of(server)
    ended = quick.run("ingest", "r.jsonl", "--json")
    assert ended.code == 0, ended.err
    assert "nothing is done" not in ended.err
    assert requests_of(server) == before
    assert ended.last["earlier"] == 3


def test_a_row_may_upload_into_an_existing_video(quick: Quick, server: DevServer) -> None:
    (name,) = files(quick, 1)
    manifest(quick, [{"path": name}])
    assert (
        quick.run("ingest", "m.csv", "--report", "r.jsonl", env={"VODUP_STATE": "memory"}).code == 0
    )
    video_id = records(quick)[0]["video_id"]
    manifest(quick, [{"path": name, "video_id": video_id}], "again.csv")
    refused = quick.run("ingest", "again.csv", "--report", "r2.jsonl")
    assert refused.code == 7
    assert records(quick, "r2.jsonl")[0]["error"] == "OverwriteRefused"
    assert quick.run("ingest", "again.csv", "--report", "r2.jsonl", "--overwrite").code == 0
    assert [(r["status"], r["video_id"]) for r in records(quick, "r2.jsonl")] == [
        ("done", video_id)
    ]
    assert server.stats.creates == 1


def test_folders_and_lists(cli: Cli, server: DevServer) -> None:
    files(cli, 3)
    (cli.folder / "notes.txt").write_text("x")
    ended = cli.run("ingest", "-r", ".", "--exclude", "v0002*", "--title-template", "T {stem}")
    assert ended.code == 0, ended.err
    assert "1 .txt" in ended.err
    assert sorted(video.title for video in server.videos.values()) == ["T v0000", "T v0001"]
    ended = cli.run("ingest", "--files-from", "-", "--json", stdin="v0002.mp4\nv0000.mp4\n")
    assert (ended.code, ended.last["done"], ended.last["earlier"]) == (0, 2, 1)
    assert server.stats.creates == 3


def test_vod_decides_on_a_type_that_include_asks_for(quick: Quick) -> None:
    (quick.folder / "a.newformat").write_bytes(b"x")
    (quick.folder / "m.csv").write_text("path\na.newformat\n")
    words = ("-r", ".", "--include", "*.newformat", "--report", "r.jsonl")
    assert quick.run("ingest", *words).code != 0
    assert [record["code"] for record in records(quick)] == ["InvalidFileName.Extension"]
    ended = quick.run("ingest", "m.csv", "--include", "*.newformat")
    assert ended.code == 2, "a manifest's row is checked before it is sent"
    assert "VOD does not accept files like 'a.newformat'" in ended.err


BAD_PATHS = (
    "s3://bucket/a.mp4",
    "file:///etc/passwd",
    "http://",
    "http://[::1",
    "http://films.example:99999/a.mp4",
    "https://user:s3cret@films.example/a.mp4",
    "://",
    "\ud800.mp4",
    "https://films.example/\udfff.mp4",
    "a\0.mp4",
    "/" * 5000,
)


@pytest.mark.parametrize("shown", [("--json",), ()])
def test_a_bad_path_fails_its_own_row_only(quick: Quick, shown: tuple[str, ...]) -> None:
    (good,) = files(quick, 1)
    rows: list[dict[str, Any]] = [{"path": path} for path in (*BAD_PATHS, good)]
    rows += [{"path": good, "key": "\ud800"}, {"path": good, "key": "k", "title": "\udfff"}]
    rows += [{"path": good, "key": "t", "tags": ["\ud800"]}]
    (quick.folder / "m.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ("--report", "r.jsonl", "--failed", "f.jsonl", "--html", "r.html", *shown)

    ended = quick.run("ingest", "m.jsonl", *words)

    assert ended.code not in (0, 9), ended.err
    assert "Traceback" not in ended.err
    statuses = {record["row"]: record["status"] for record in records(quick)}
    done = len(BAD_PATHS) + 1
    assert statuses == {n: "done" if n == done else "failed" for n in range(1, len(rows) + 1)}
    assert len(records(quick, "f.jsonl")) == len(rows) - 1
    assert "s3cret" not in ended.err + (quick.folder / "r.html").read_text()
    assert quick.run("ingest", "m.jsonl", "--dry-run", *shown).code not in (0, 9)
    assert quick.run("ingest", "f.jsonl", *shown).code not in (0, 9)


def test_stop_on_error_leaves_the_rest_for_later(quick: Quick, server: DevServer) -> None:
    names = files(quick, 10)
    manifest(quick, [{"path": "none.mp4"}, *({"path": name} for name in names)])
    ended = quick.run("ingest", "m.csv", "--report", "r.jsonl", "--stop-on-error", "--json")
    assert ended.code == 4
    assert ended.last["stopped"] is not None
    assert [record["status"] for record in records(quick)] == ["failed"]
    quick.file("none.mp4", size=500)
    assert quick.run("ingest", "m.csv", "--report", "r.jsonl").code == 0
    assert len(records(quick)) == 11
    assert server.stats.creates == 11


def test_max_duration_stops_and_the_next_run_resumes(quick: Quick, server: DevServer) -> None:
    server.set_options(bandwidth=20_000)
    manifest(quick, [{"path": name} for name in files(quick, 4, size=30_000)])
    ended = quick.run("ingest", "m.csv", "--report", "r.jsonl", "--max-duration", "1.5", "--json")
    assert ended.code == 5, ended.err
    assert "max-duration" in ended.last["stopped"]
    server.set_options(bandwidth=None)
    assert quick.run("ingest", "m.csv", "--report", "r.jsonl").code == 0
    assert len(records(quick)) == 4
    assert server.stats.creates <= 4


def test_temporary_failures_are_tried_again_at_the_end(quick: Quick, server: DevServer) -> None:
    names = files(quick, 5)
    server.faults.replace(
        [Fault(operation="PutObject", action="error", status=500, code="InternalError", count=3)]
    )
    manifest(quick, [{"path": name} for name in names])
    ended = quick.run(
        "ingest", "m.csv", "--report", "r.jsonl", "--json", "--retry-for", "0", "--files", "1"
    )
    assert ended.code == 0, ended.err
    assert [record["status"] for record in records(quick)] == ["done"] * 5
    assert server.stats.creates == 5


def test_without_retries_the_code_says_that_it_is_temporary(
    quick: Quick, server: DevServer
) -> None:
    server.faults.replace(
        [Fault(operation="PutObject", action="error", status=500, code="InternalError", count=None)]
    )
    manifest(quick, [{"path": name} for name in files(quick, 2)])
    ended = quick.run("ingest", "m.csv", "--retry-for", "0", "--retries", "0", "--json")
    assert ended.code == 5, ended.err
    assert all(line["temporary"] for line in ended.lines if line["type"] == "row.failed")


def test_a_wrong_key_stops_the_batch_at_once(quick: Quick, server: DevServer) -> None:
    manifest(quick, [{"path": name} for name in files(quick, 40)])
    ended = quick.run(
        "ingest", "m.csv", "--files", "2", env={"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIx"}
    )
    assert ended.code == 3
    assert server.stats.requests["CreateUploadVideo"] <= 10


@pytest.mark.parametrize(
    "words",
    [
        ["ingest"],
        ["ingest", "none.csv"],
        ["ingest", "bad.csv"],
        ["ingest", "m.csv", "m.csv"],
        ["ingest", "m.csv", "--report", "m.csv"],
        ["ingest", "m.csv", "--files", "0"],
        ["ingest", "m.csv", "--title-template", "{x}"],
        ["ingest", "m.csv", "--retries", "-1"],
        ["ingest", "m.csv", "--report", "/nowhere/r.jsonl"],
        ["ingest", "-r", "m.csv"],
    ],
)
def test_a_command_that_cannot_start_is_a_usage_error(
    quick: Quick, server: DevServer, words: list[str]
) -> None:
    manifest(quick, [{"path": "a.mp4"}])
    manifest(quick, [{"title": "a.mp4"}], "bad.csv")
    ended = quick.run(*words)
    assert ended.code == 2, ended.err
    assert ended.err
    assert requests_of(server) == 0


def test_a_dry_run_checks_everything_and_sends_nothing(quick: Quick, server: DevServer) -> None:
    names = files(quick, 3)
    quick.file("large.mp4", size=20 * 2**20)
    rows = [{"path": name} for name in [*names, "large.mp4"]]
    rows += [{"path": "none.mp4"}, {"path": "a.exe"}, {"path": names[0]}]
    manifest(quick, rows)
    ended = quick.run(
        "ingest", "m.csv", "--dry-run", "--json", "--part-size", "1M", "--bwlimit", "1M"
    )
    assert ended.code == 1
    refused = {line["row"]: line["error"] for line in ended.lines[:-1]}
    assert refused == {6: "SourceUnreadable", 7: "ConfigurationError", 8: "ConfigurationError"}
    figures = ended.last
    assert figures["type"] == "batch.estimated"
    assert (figures["good"], figures["vod_calls"], figures["renewals"]) == (4, 4, 0)
    assert figures["oss_requests"] == 3 + figures["parts"] - 3 + 2
    assert figures["seconds"] >= 20
    assert requests_of(server) == 0
    assert not (quick.folder / "state.db").exists()


def test_flags_fill_in_fields_that_rows_do_not_give(quick: Quick, server: DevServer) -> None:
    names = files(quick, 2)
    manifest(quick, [{"path": names[0], "tags": "own"}, {"path": names[1]}])
    words = ("--tags", "a,b", "--cate-id", "7", "--title-template", "{name}")
    assert quick.run("ingest", "m.csv", *words).code == 0
    assert sorted(video.title for video in server.videos.values()) == names
    refused = quick.run("ingest", "m.csv", "--tags", "x" * 33)
    assert refused.code == 2
    assert "tag has 33 characters" in refused.err


def test_a_dry_run_needs_no_key(quick: Quick) -> None:
    manifest(quick, [{"path": name} for name in files(quick, 2)])
    ended = quick.run("ingest", "m.csv", "-n", env={"ALIBABA_CLOUD_ACCESS_KEY_ID": ""})
    assert ended.code == 0, ended.err
    assert "(Dry run: nothing sent.)" in ended.out


class Seen(HTMLParser):
    """Reads a page and keeps its tags, its attributes and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in {"meta", "rect", "polyline"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"rect", "polyline"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_with_nothing_unescaped(quick: Quick) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
    names = files(quick, 3)
    rows = [{"path": name, "title": "T"} for name in names]
    rows += [
        {"path": f"{evil.replace('/', '')}.mp4", "title": evil},
        {"path": "x.exe", "title": evil},
    ]
    manifest(quick, rows)
    ended = quick.run("ingest", "m.csv", "--html", "report.html", "--json")
    assert ended.code == 1, ended.err
    text = (quick.folder / "report.html").read_text()
    seen = Seen()
    seen.feed(text)
    assert seen.open == []
    assert seen.tags["script"] == seen.tags["img"] == seen.tags["link"] == 0
    assert seen.tags["svg"] >= 2
    assert not [name for name, _ in seen.attributes if name.startswith(("on", "src", "href"))]
    assert "uploaded and verified3" in seen.text
    assert "alert(2)" in seen.text
    assert "Check the path and its permissions" in seen.text


def test_an_interrupted_batch_reports_what_ended(cli: Cli, server: DevServer) -> None:
    server.set_options(bandwidth=60_000)
    manifest(cli, [{"path": name} for name in files(cli, 30, size=20_000)])
    running = cli.start("ingest", "m.csv", "--report", "r.jsonl", "--json")
    running.until(lambda line: line["type"] == "row.done")
    running.process.send_signal(signal.SIGTERM)
    ended = running.ended()
    assert ended.code == 143
    assert ended.last["type"] == "batch.ended"
    assert ended.last["stopped"] == "interrupted"
    assert 1 <= len(records(cli)) < 30
    server.set_options(bandwidth=None)
    assert cli.run("ingest", "m.csv", "--report", "r.jsonl").code == 0
    assert len({record["path"] for record in records(cli)}) == len(records(cli)) == 30
    assert server.stats.creates == 30


def test_a_large_file_and_small_ones_share_the_bandwidth(quick: Quick, server: DevServer) -> None:
    """At 6 MiB/s a file of 12 MiB takes 2 s; thirty small ones do not wait for its end."""
    server.set_options(bandwidth=6 * 2**20)
    names = files(quick, 30, size=20_000)
    quick.file("large.mp4", size=12 * 2**20)
    manifest(quick, [{"path": name} for name in [*names, "large.mp4"]])
    began = time.monotonic()
    ended = quick.run(
        "ingest", "m.csv", "--report", "r.jsonl", "--part-size", "256K", "--concurrency", "4"
    )
    seconds = time.monotonic() - began
    assert ended.code == 0, ended.err
    order = [Path(record["path"]).name for record in records(quick)]
    assert order[-1] == "large.mp4"  # started first, ended last: the small ones passed it
    assert seconds < 15


def test_nothing_that_a_batch_writes_contains_a_secret(quick: Quick, server: DevServer) -> None:
    manifest(quick, [{"path": name} for name in files(quick, 4)])
    server.faults.add(
        Fault(action="error", operation="PutObject", status=403, code="AccessDenied", count=6),
        Fault(action="error", operation="PutObject", status=403, code="SignatureDoesNotMatch"),
    )
    words = ("--report", "r.jsonl", "--failed", "f.jsonl", "--html", "report.html")
    ended = quick.run("ingest", "m.csv", *words, "--json", "--log-level", "debug")

    assert ended.code != 0
    written = {path.name: path.read_bytes() for path in quick.folder.rglob("*") if path.is_file()}
    assert written.keys() >= {"r.jsonl", "f.jsonl", "report.html", "state.db"}
    written["printed"] = (ended.out + ended.err).encode()
    for name, text in written.items():
        found = [secret for secret in server.secrets() if secret[:24].encode() in text]
        assert found == [], name


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_that_name_sources_are_readable_by_their_owner_only(
    quick: Quick, server: DevServer, umask: int
) -> None:
    """The state, the reports and the spool, whatever the umask allows others."""
    manifest(quick, [{"path": name} for name in files(quick, 2)])
    before = {path for path in quick.folder.rglob("*")}
    old = os.umask(umask)
    try:
        words = ("--report", "r.jsonl", "--failed", "f.jsonl", "--html", "report.html")
        assert quick.run("ingest", "m.csv", *words).code == 0
    finally:
        os.umask(old)

    made = [path for path in quick.folder.rglob("*") if path not in before]
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in made}
    assert modes.keys() >= {"r.jsonl", "report.html", "state.db"}
    assert {name: mode for name, mode in modes.items() if int(mode, 8) & 0o077} == {}
