"""`push --as`, `--cover` and `--subtitle`: what is uploaded that is no video."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bulk.conftest import Quick
from uploader.cli.push_views import PushedFile, incident
from uploader.devserver import DevServer, Fault
from uploader.events import MediaAbandoned


@pytest.fixture
def quick(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    return Quick(server, tmp_path, monkeypatch=monkeypatch)


def test_an_image_is_pushed_and_found_again(quick: Quick, server: DevServer) -> None:
    quick.file("cover.png", size=1000)
    ended = quick.run("push", "cover.png", "--as", "image:cover", "--json")
    assert ended.code == 0, ended.err
    assert ended.last["type"] == "media.stored"
    assert ended.last["kind"] == "image:cover"
    assert ended.last["url"].endswith(".png")
    assert ended.last["media_id"] == ended.lines[-2]["video_id"]
    again = quick.run("push", "cover.png", "--as", "image:cover")
    uploaded, stored = again.out.splitlines()
    assert "already uploaded as image:cover" in uploaded
    assert stored == f"cover.png: image:cover {ended.last['media_id']} at {ended.last['url']}"
    assert server.stats.requests["CreateUploadImage"] == 1


def test_a_cover_and_subtitles_go_with_a_video(quick: Quick, server: DevServer) -> None:
    for name in ("movie.mp4", "movie.jpg", "movie.zh.srt", "movie.en.vtt"):
        quick.file(name, size=1000)
    words = "push movie.mp4 --cover movie.jpg --subtitle zh=movie.zh.srt --subtitle en=movie.en.vtt"
    ended = quick.run(*words.split(), "--wait")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    cover_url = lines[1].partition(" at ")[2]
    assert [line.split()[0] for line in lines[1:4]] == [
        "movie.jpg:",
        "movie.zh.srt:",
        "movie.en.vtt:",
    ]
    assert f"  cover: {cover_url}" in lines
    assert quick.run(*words.split()).code == 0, "safe to repeat"
    assert server.stats.requests["CreateUploadAttachedMedia"] == 2
    assert server.stats.creates == 1


def test_a_cover_that_fails_is_an_error_of_the_stored_file(quick: Quick, server: DevServer) -> None:
    for name in ("movie.mp4", "movie.jpg"):
        quick.file(name, size=1000)
    denied = Fault(action="error", operation="UpdateVideoInfo", status=403, code="Forbidden.RAM")
    server.faults.replace([denied])
    ended = quick.run("push", "movie.mp4", "--cover", "movie.jpg", "--json")
    assert ended.code == 3
    assert ended.last["type"] == "video.incomplete"
    assert "vod:UpdateVideoInfo" in ended.last["next_step"]
    assert [line["type"] for line in ended.lines].count("upload.finished") == 1


def test_an_interrupted_image_is_resumed_as_an_image(quick: Quick, server: DevServer) -> None:
    quick.file("cover.png", size=1000)
    server.faults.replace(
        [Fault(action="error", operation="PutObject", status=403, code="UserDisable")]
    )
    assert quick.run("push", "cover.png", "--as", "image").code == 3
    ended = quick.run("resume", "--all")
    assert ended.code == 0, ended.err
    assert "creating a new image:default" in ended.err
    assert "at http://" in ended.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--as image --cover a.png", "--cover is for videos"),
        ("--as image --wait", "--wait is for videos"),
        ("--as film", "no kind of media"),
        ("--subtitle movie.srt", "--subtitle needs a language and a file"),
    ],
)
def test_flags_that_make_no_sense_are_refused(quick: Quick, words: str, sentence: str) -> None:
    quick.file("a.png", size=10)
    ended = quick.run("push", "a.png", *words.split())
    assert ended.code == 2
    assert sentence in ended.err


def test_an_unknown_id_is_reported_as_such() -> None:
    event = MediaAbandoned(key="k", video_id=None, media_id=None, reason="r")
    assert "under an unknown id" in str(incident(PushedFile("a", "a"), event))
