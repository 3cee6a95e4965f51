"""`--wait`: push and ingest end when videos play, and later runs go on waiting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bulk.conftest import Quick
from uploader.cli import push_views
from uploader.cli.push_views import PushedFile, interruption
from uploader.devserver import DevServer


@pytest.fixture
def quick(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    return Quick(server, tmp_path, monkeypatch=monkeypatch)


def test_push_prints_how_the_video_plays(quick: Quick, server: DevServer) -> None:
    quick.file(size=1000)
    ended = quick.run("push", "--wait", "movie.mp4", "--cover-url", "https://c/1.png")

    assert ended.code == 0, ended.err
    uploaded, plays, cover, url = ended.out.splitlines()
    assert uploaded.startswith("Uploaded movie.mp4")
    assert plays.startswith("movie.mp4: video ")
    assert plays.endswith(" plays.")
    assert cover == "  cover: https://c/1.png"
    assert url.startswith("  HD mp4 1000 bytes: http://127.0.0.1"), url


def test_json_lines_name_status_and_urls(quick: Quick, server: DevServer) -> None:
    quick.file(size=1000)
    ended = quick.run("push", "movie.mp4", "--wait=1h", "--json")
    assert [line["type"] for line in ended.lines[-3:]] == [
        "upload.finished", "video.status", "video.playable",
    ]  # fmt: skip
    assert ended.lines[-2]["status"] == "Normal"
    (stream,) = ended.last["streams"]
    assert stream["url"].startswith("http://")
    assert ended.last["source"] == "movie.mp4"


def test_a_video_that_does_not_play_yet_is_waited_for_by_the_next_run(
    quick: Quick, server: DevServer
) -> None:
    quick.file(size=1000)
    server.set_options(processing_s=600)
    first = quick.run("push", "movie.mp4", "--wait=0s", "--json")
    assert first.code == 10
    failure = first.last
    assert (failure["type"], failure["exit_code"]) == ("video.not_playable", 10)
    assert failure["resumable"]
    assert "not playable yet: UploadSucc" in failure["message"]

    server.set_options(processing_s=0)
    stored = server.stats.requests["PutObject"]
    again = quick.run("push", "movie.mp4", "--wait=1h")
    assert again.code == 0, again.err
    assert "already uploaded" in again.out
    assert " plays." in again.out
    assert server.stats.requests["PutObject"] == stored, "nothing is sent again"


def test_the_transcoders_reason_is_printed(quick: Quick, server: DevServer) -> None:
    quick.file(size=1000)
    server.set_options(status_after_upload="TranscodeFail")
    ended = quick.run("push", "movie.mp4", "--wait")
    assert ended.code == 10
    assert "ResourceContentBad: The resource operated InputFile is bad" in ended.err
    assert "next: Check the file and the transcoding template group" in ended.err


def test_a_batch_waits_for_all_its_videos_and_goes_on_later(
    quick: Quick, server: DevServer
) -> None:
    for number in range(3):
        quick.file(f"v{number}.mp4", size=1000 + number)
    words = ["ingest", "-r", ".", "--report", "r.jsonl", "--json"]
    server.set_options(processing_s=600)
    first = quick.run(*words, "--wait=0s")
    assert first.code == 10, first.err
    kinds = [line["type"] for line in first.lines if line["type"].startswith("row.")]
    assert kinds == ["row.done"] * 3 + ["row.not_playable"] * 3
    assert (first.last["done"], first.last["failed"], first.last["not_playable"]) == (3, 0, 3)

    server.set_options(processing_s=0)
    second = quick.run(*words, "--wait=1h")
    assert second.code == 0, second.err
    playable = [line for line in second.lines if line["type"] == "row.playable"]
    assert len(playable) == 3
    assert all(line["playable"]["streams"][0]["url"] for line in playable)
    ledger = [json.loads(line) for line in (quick.folder / "r.jsonl").read_text().splitlines()]
    assert {record["status"] for record in ledger} == {"done"}
    assert all("streams" not in record["playable"] for record in ledger), "URLs may be signed"

    calls = server.stats.requests["GetVideoInfos"]
    third = quick.run(*words[:-1], "--wait")
    assert third.code == 0, third.err
    assert server.stats.requests["GetVideoInfos"] == calls, "known to play"


def test_a_summary_counts_the_videos_that_play(quick: Quick, server: DevServer) -> None:
    quick.file(size=1000)
    ended = quick.run("ingest", "-r", ".", "--wait")
    assert "1 of 1 file uploaded and verified; 1 playable." in ended.out
    server.set_options(status_after_upload="Blocked")
    quick.file("other.mp4", size=1001)
    ended = quick.run("ingest", "-r", ".", "--wait")
    assert ended.code == 10
    assert "; 0 playable, 2 not (yet)." in ended.out
    assert "next: Check the file" in ended.err


def test_an_interrupted_wait_says_how_it_goes_on() -> None:
    file = PushedFile("movie.mp4", "movie.mp4", is_stored=True)
    assert interruption(file, is_kept=True).endswith("run the same command again.")
    assert push_views._STATUSES.keys() == {"Uploading", "UploadSucc", "Transcoding", "Checking"}


@pytest.mark.parametrize("words", ["--wait movie.mp4", "--wait -- --wait", "movie.mp4 --wait=x"])
def test_the_duration_follows_an_equals_sign_only(quick: Quick, words: str) -> None:
    quick.file(size=1000)
    quick.file("--wait", size=1000)
    ended = quick.run("push", "--file-name", "a.mp4", *words.split())
    assert ended.code == (2 if "=x" in words else 0), ended.err
