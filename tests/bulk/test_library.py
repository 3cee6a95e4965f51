"""`list`, `delete`, `clean --stuck`, `abort --delete-video`, `pull` and `register`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.bulk.conftest import Quick
from uploader.cli.library import _file_url, _require_pulled
from uploader.devserver import DevServer, Fault
from uploader.errors import ConfigurationError, VideoError
from uploader.protocol.catalog import UrlPull


@pytest.fixture
def quick(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    return Quick(server, tmp_path, monkeypatch=monkeypatch)


def pushed(quick: Quick, name: str, *words: str) -> str:
    quick.file(name, size=1000)
    ended = quick.run("push", name, "-q", *words)
    assert ended.code == 0, ended.err
    return ended.out.strip()


def unfinished(quick: Quick, server: DevServer, name: str = "half.mp4") -> str:
    """Leave a video in the status Uploading."""
    quick.file(name, size=1000)
    denied = Fault(action="error", operation="PutObject", status=403, code="UserDisable")
    server.faults.replace([denied])
    before = set(server.videos)
    assert quick.run("push", name).code == 3
    server.faults.replace([])
    (video_id,) = set(server.videos) - before
    return video_id


def test_videos_are_listed_with_status_title_size_and_age(quick: Quick, server: DevServer) -> None:
    one = pushed(quick, "one.mp4", "--title", "The first")
    half = unfinished(quick, server)
    ended = quick.run("list")
    assert ended.code == 0, ended.err
    assert f"{one}  Normal  1000 bytes  " in ended.out
    assert " ago  The first" in ended.out
    assert f"{half}  Uploading" in ended.out
    assert quick.run("list", "--status", "Uploading", "-q").out.split() == [half]
    assert quick.run("list", "--title", "first", "-q").out.split() == [one]
    assert quick.run("list", "--older-than", "1h", "-q").out == ""
    assert len(quick.run("list", "--newer-than", "1h", "--limit", "1", "-q").out.split()) == 1
    listed = {line["video_id"]: line for line in quick.run("list", "--json").lines}
    assert (listed[one]["size"], listed[one]["status"]) == (1000, "Normal")
    assert quick.run("list", "--title", "o'clock").code == 2


def test_videos_are_deleted_once_that_is_confirmed(
    quick: Quick, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    video_id = pushed(quick, "one.mp4")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", io.StringIO())
    refused = quick.run("delete", video_id)
    assert (refused.code, "--yes" in refused.err) == (2, True)
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    assert quick.run("delete", video_id).code == 2
    assert quick.run("list", "-q").out.split() == [video_id]
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    ended = quick.run("delete", video_id)
    assert ended.code == 0, ended.err
    assert f"Deleted the video {video_id}" in ended.out
    again = quick.run("delete", video_id, "-y", "--json")
    assert again.code == 1
    assert "was not deleted" in again.last["message"]


def test_videos_stuck_in_uploading_are_found_and_deleted(quick: Quick, server: DevServer) -> None:
    resumable = unfinished(quick, server)
    words = ["clean", "--stuck", "--older-than=0s"]
    other = {"VODUP_STATE": str(quick.folder / "other.db")}
    assert resumable not in quick.run(*words, "-n").out, "this state can resume it"
    assert resumable not in quick.run("clean", "--stuck", "-n", env=other).out, "too young"
    assert resumable in quick.run(*words, "-n", env=other).out
    stuck = quick.run(*words, "-y", "--json", env=other)
    assert stuck.code == 0, stuck.err
    assert [line["video_id"] for line in stuck.lines] == [resumable]
    assert quick.run("list", "-q").out == ""
    assert "No videos are stuck" in quick.run(*words, env=other).out


def test_abort_may_delete_the_video(quick: Quick, server: DevServer) -> None:
    video_id = unfinished(quick, server)
    ended = quick.run("abort", video_id, "--delete-video", "--json")
    assert ended.code == 0, ended.err
    assert ended.last["is_video_deleted"]
    assert quick.run("list", "-q").out == ""
    one = unfinished(quick, server, "other.mp4")
    assert "stays in VOD" in quick.run("abort", one).out


def test_objects_are_registered(quick: Quick, server: DevServer) -> None:
    video_id = pushed(quick, "one.mp4")
    key = server.videos[video_id].object_key
    url = f"{server.oss_endpoint}/{server.videos[video_id].bucket}/{key}"
    ended = quick.run("register", url, f"{url}x", "--json")
    assert ended.code == 1
    known, failed = ended.lines
    assert (known["video_id"], known["is_new"]) == (video_id, False)
    assert "did not register" in failed["message"]
    assert quick.run("register", "movie.mp4").code == 2


def test_an_object_has_a_url() -> None:
    assert _file_url("oss://b/a c.mp4", "oss-cn-x.aliyuncs.com") == (
        "https://b.oss-cn-x.aliyuncs.com/a%20c.mp4"
    )
    for wrong in ("oss://b", "oss:///k", "ftp://h/k", "https://h"):
        with pytest.raises(ConfigurationError):
            _file_url(wrong, "x")


def test_a_url_is_pulled_once_and_followed(quick: Quick, server: DevServer) -> None:
    pushed(quick, "one.mp4")
    url = quick.run("push", "one.mp4", "--wait", "--json").last["streams"][0]["url"]
    first = quick.run("pull", url, "--json")
    assert first.code == 0, first.err
    assert first.last["type"] == "pull.done"
    assert "Signature" not in json.dumps(first.lines), "the query may be signed"
    second = quick.run("pull", url)
    assert first.last["video_id"] in second.out
    assert server.stats.requests["UploadMediaByURL"] == 1, "the same command follows the same job"
    with pytest.raises(VideoError, match="could not fetch u: URLInvalidError"):
        _require_pulled("u", UrlPull(job_id="j", url="u", status="X_FAIL", error="URLInvalidError"))
