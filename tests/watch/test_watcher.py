"""A watched folder: complete files become one video each, and are put away."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until
from uploader import NotPlayable, SourceChanged, UploadLocked, UploadResult
from uploader.bulk.ledger import Ledger, Record
from uploader.errors import ConfigurationError, StateUnavailable
from uploader.protocol.media import StoredMedia
from uploader.watch import carrying as module
from uploader.watch.after import AfterUpload
from uploader.watch.endings import Endings
from uploader.watch.scan import Companions

from .conftest import Place


async def test_a_file_is_uploaded_and_moved_below_the_other_folder(place: Place) -> None:
    place.write("show/one.mp4", b"1")
    place.write("two.mov", b"22")

    outcomes = await place.run()

    assert sorted(outcome.moved_to or "" for outcome in outcomes) == [
        str(place.done / "show/one.mp4"),
        str(place.done / "two.mov"),
    ]
    assert place.contents() == [b"1", b"22"]
    assert (place.done / "show/one.mp4").read_bytes() == b"1"
    assert not list(place.folder.rglob("*.m*"))


async def test_a_restart_repeats_nothing(place: Place) -> None:
    place.write("one.mp4")
    after = AfterUpload("keep")
    await place.run(after=after)

    assert await place.run(after=after) == []
    assert len(place.desk.server.videos) == 1


async def test_without_its_ledger_the_state_knows_what_was_uploaded(place: Place) -> None:
    place.write("one.mp4")
    await place.run(after=AfterUpload("keep"))
    (place.desk.folder / "ledger.jsonl").unlink()

    [outcome] = await place.run()

    assert outcome.result is not None
    assert outcome.result.is_earlier_result
    assert len(place.desk.server.videos) == 1


async def test_a_file_verified_by_a_run_that_was_killed_is_only_moved(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("one.mp4")
    with monkeypatch.context() as patched:
        patched.setattr(Endings, "put_away", lambda *_: os._exit)
        await place.run()
    assert (place.folder / "one.mp4").exists()

    [outcome] = await place.run()

    assert outcome.moved_to == str(place.done / "one.mp4")
    assert outcome.result is None
    assert outcome.record["video_id"] in place.desk.server.videos
    assert len(place.desk.server.videos) == 1


async def test_the_same_name_with_other_content_is_another_video(place: Place) -> None:
    place.write("one.mp4", b"first")
    await place.run()
    place.write("one.mp4", b"second")
    await place.run()

    assert place.contents() == [b"first", b"second"]
    assert (place.done / "one.mp4").read_bytes() == b"first"
    assert (place.done / "one.1.mp4").read_bytes() == b"second"


async def test_delete_removes_the_file_and_its_metadata(place: Place) -> None:
    place.write("one.mp4")
    place.write("one.json", b'{"title": "First"}')
    place.write("one.srt", b"1")

    await place.run(after=AfterUpload("delete"))

    assert place.titles() == ["First"]
    assert sorted(os.listdir(place.folder)) == ["one.srt"]  # nobody uploaded it


async def test_what_is_attached_is_handed_over_and_moved(place: Place) -> None:
    names = ["one.mp4", "one.jpg", "one.srt", "one.zh-Hans.vtt", "one.mp4.yaml", "other.jpg"]
    for name in names:
        place.write(name, b"title: One")
    handed: list[Companions] = []

    async def attach(_: UploadResult, companions: Companions) -> list[StoredMedia]:
        handed.append(companions)
        return []

    await place.run(attach=attach)

    [companions] = handed
    assert Path(companions.cover or "").name == "one.jpg"
    assert [(lang, Path(path).name) for lang, path in companions.subtitles] == [
        ("", "one.srt"),
        ("zh-Hans", "one.zh-Hans.vtt"),
    ]
    assert sorted(os.listdir(place.done)) == sorted(names[:-1])
    assert os.listdir(place.folder) == ["other.jpg"]


async def test_what_belongs_to_two_videos_goes_with_the_last(place: Place) -> None:
    for name in ("one.mp4", "one.mov"):
        place.write(name, name.encode())
    place.write("one.json", b'{"title": "Both"}')

    await place.run(files=1)

    assert place.titles() == ["Both", "Both"]
    assert sorted(os.listdir(place.done)) == ["one.json", "one.mov", "one.mp4"]


async def test_a_failed_file_is_moved_with_its_reason(place: Place) -> None:
    place.write("one.mp4")
    place.write("one.json", b'{"title": [1]}')

    [outcome] = await place.run()

    assert outcome.error is not None
    assert outcome.moved_to == str(place.failed / "one.mp4")
    assert sorted(os.listdir(place.failed)) == ["one.json", "one.mp4", "one.mp4.reason.json"]
    reason = json.loads((place.failed / "one.mp4.reason.json").read_text())
    assert reason["error"] == "ConfigurationError"
    assert "title must be text" in reason["message"]
    assert place.desk.server.videos == {}


async def test_every_file_that_is_left_alone_is_explained(place: Place) -> None:
    place.write("notes.txt")
    place.write("half.mp4.part")
    place.write(".hidden.mp4")
    place.write("empty.mp4", b"")
    os.symlink("/etc/passwd", place.folder / "link.mp4")
    os.symlink("/", place.folder / "linked")
    os.mkfifo(place.folder / "pipe.mp4")
    place.write("list.m3u8")

    assert await place.run() == []
    assert place.skipped == {
        "notes.txt": "not a type of video that VOD accepts",
        "half.mp4.part": "its name says that it is not finished",
        ".hidden.mp4": "its name says that it is not finished",
        "empty.mp4": "it is empty",
        "link.mp4": "a symbolic link",
        "linked": "a symbolic link",
        "pipe.mp4": "not a regular file",
        "list.m3u8": "a playlist: upload it with `vodup push`",
    }


async def test_patterns_choose_the_files(place: Place) -> None:
    for name in ("a.mp4", "b.bin", "old/c.bin", "d.bin"):
        place.write(name, name.encode())

    await place.run(include=["*.bin"], exclude=["old", "d.*"])

    assert place.titles() == []  # VOD decides, and refuses this type
    assert place.skipped["a.mp4"] == "not matched by --include"
    assert os.listdir(place.failed)


async def test_a_file_that_is_open_for_writing_is_not_complete(place: Place) -> None:
    path = place.write("one.mp4", b"half")
    async with place.watching(is_once=False) as watcher:
        with path.open("ab") as writer:
            await asyncio.sleep(0.3)
            assert place.desk.server.videos == {}
            writer.write(b" and whole")
        outcome = await anext(watcher)

    assert outcome.result is not None
    assert place.contents() == [b"half and whole"]


async def test_a_marker_says_that_a_file_is_complete(place: Place) -> None:
    place.write("one.mp4", b"half")
    place.write("two.mp4", b"two")
    place.write("two.mp4.done")
    options = {"ready": "{path}.done", "settle_s": 3600.0}

    [outcome] = await place.run(**options)
    assert outcome.path.endswith("two.mp4")
    assert sorted(os.listdir(place.done)) == ["two.mp4", "two.mp4.done"]
    assert place.skipped["one.mp4"] == "its marker is missing (one.mp4.done)"

    marker = place.write("one.mp4.done")
    os.utime(place.folder / "one.mp4", ns=(2**62, marker.stat().st_ctime_ns + 10**9))
    assert await place.run(**options) == []  # the marker is that of an earlier file


async def test_a_file_waits_for_its_metadata_if_that_is_required(place: Place) -> None:
    place.write("one.mp4")
    place.write("two.mp4", b"two")
    place.write("two.xml", b"<video><title>Two</title><tags><tag>a</tag></tags></video>")

    await place.run(requires_metadata=True)

    assert place.titles() == ["Two"]
    assert place.skipped["one.mp4"] == "it has no metadata"


async def test_a_temporary_failure_is_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    place.write("one.mp4")
    failures = iter([SourceChanged("touched")])

    async def attach(*_: object) -> list[StoredMedia]:
        for error in failures:
            error.is_temporary = True
            raise error
        return []

    async with place.watching(is_once=False, attach=attach) as watcher:
        first, second = await anext(watcher), await anext(watcher)

    assert not first.is_final
    assert second.result is not None
    assert second.result.is_earlier_result
    assert second.moved_to is not None


async def test_a_move_that_fails_is_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    place.write("one.mp4")
    place.done.write_bytes(b"not a folder")
    async with place.watching(is_once=False) as watcher:
        first = await anext(watcher)
        place.done.unlink()
        second = await anext(watcher)
        while second.problem:
            second = await anext(watcher)

    assert first.problem is not None
    assert second.moved_to == str(place.done / "one.mp4")
    assert len(place.desk.server.videos) == 1


async def test_a_file_that_changed_while_it_waited_is_taken_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.write("one.mp4", b"old")
    async with place.watching(is_once=False, settle_s=0.05) as watcher:
        real = watcher._taking.item

        def item(taken: object) -> object:
            if path.read_bytes() == b"old":
                path.write_bytes(b"new one")
            return real(taken)  # type: ignore[arg-type]

        object.__setattr__(watcher, "_taking", _With(watcher._taking, item))
        first, second = await anext(watcher), await anext(watcher)

    assert isinstance(first.error, SourceChanged)
    assert not first.is_final
    assert second.result is not None
    assert place.contents() == [b"new one"]


class _With:
    def __init__(self, inner: object, item: object) -> None:
        self._inner, self.item = inner, item

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


async def test_files_are_found_by_notification(place: Place) -> None:
    pytest.importorskip("watchfiles")
    async with place.watching(is_once=False, poll_s=None, rescan_s=3600.0) as watcher:
        async with asyncio.timeout(10):
            place.write("first.mp4")
            await anext(watcher)
            place.write("new/one.mp4")
            outcome = await anext(watcher)
    assert outcome.moved_to == str(place.done / "new/one.mp4")


async def test_a_folder_that_is_gone_is_reported_until_it_is_back(place: Place) -> None:
    async with place.watching(is_once=False) as watcher:
        place.folder.rename(place.folder.with_name("away"))
        await until(lambda: watcher.problem)
        assert watcher.figures()["status"] == "failing"
        place.folder.with_name("away").rename(place.folder)
        place.write("one.mp4")
        await anext(watcher)
        assert watcher.figures()["status"] == "ok"
    assert "Files that arrive are taken once it can." in place.notices[0]


async def test_urgent_files_are_uploaded_first(place: Place) -> None:
    for number in range(4):
        place.write(f"{number}.mp4", b"x" * (10 - number))
    place.write("3.json", b'{"priority": 50}')
    place.write("urgent/4.mp4", b"u")

    outcomes = await place.run(files=1, priorities=[("urgent/*", 90)])

    order = [Path(outcome.path).stem for outcome in outcomes]
    assert set(order[:2]) == {"4", "3"}  # one of them needs no free upload


async def test_one_watcher_at_a_time(place: Place) -> None:
    async with place.watching(is_once=False):
        with pytest.raises(UploadLocked):
            await place.run()


@pytest.mark.parametrize("changes", [{"ready": "done"}, {"ready": "{path}"}, {"ready": "{x}"}])
async def test_a_marker_that_cannot_work_is_refused(place: Place, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="--ready"):
        await place.run(**changes)


async def test_a_file_is_put_away_when_its_video_plays(place: Place) -> None:
    place.write("one.mp4")
    place.desk.server.set_options(processing_s=600.0)
    [early] = await place.run(wait_s=0.0)
    assert isinstance(early.error, NotPlayable)
    assert (place.folder / "one.mp4").exists()

    place.desk.server.set_options(processing_s=0.0)
    [outcome] = await place.run(wait_s=60.0)

    assert outcome.video is not None
    assert outcome.video.streams
    assert "streams" not in outcome.record["playable"]
    assert outcome.moved_to == str(place.done / "one.mp4")
    assert len(place.desk.server.videos) == 1


async def test_a_kept_file_is_waited_for_until_its_video_plays(place: Place) -> None:
    options: dict[str, Any] = {"after": AfterUpload("keep"), "wait_s": 60.0}
    place.write("one.mp4")
    await place.run(after=AfterUpload("keep"))

    [outcome] = await place.run(**options)

    assert outcome.video is not None
    assert await place.run(**options) == []


async def test_a_move_that_was_killed_half_way_is_finished(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("one.mp4", b"1")
    place.write("two.mp4", b"22")
    with monkeypatch.context() as patched:
        patched.setattr(Endings, "put_away", Endings._set_apart)
        await place.run()
    hidden = sorted(place.folder.iterdir(), key=lambda path: path.stat().st_size)
    assert all(path.name.startswith(".vodup-") for path in hidden)
    hidden[1].write_bytes(b"what a writer has renamed there")

    [outcome] = await place.run()

    assert (place.done / "one.mp4").read_bytes() == b"1"
    assert outcome.path == str(place.folder / "two.mp4")  # it got its name back, and was uploaded
    assert place.contents() == [b"1", b"22", b"what a writer has renamed there"]
    assert sorted(os.listdir(place.done)) == ["one.mp4", "two.mp4"]


async def test_without_notifications_it_polls_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    async with place.watching(is_once=False, poll_s=None, rescan_s=60.0):
        await until(lambda: place.notices)
    assert "watchfiles is not installed" in place.notices[0]
    assert "Looking every 5 s." in place.notices[0]


async def test_a_full_ledger_loses_no_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    place.write("one.mp4")
    refused = iter([StateUnavailable("The ledger cannot be written: No space left on device.")])
    add = Ledger.add

    def full(self: Ledger, record: Record, **how: Any) -> None:
        for error in refused:
            raise error
        add(self, record, **how)

    monkeypatch.setattr(Ledger, "add", full)
    async with place.watching(is_once=False) as watcher:
        first, second = await anext(watcher), await anext(watcher)
    assert not first.is_final
    assert second.moved_to == str(place.done / "one.mp4")
    assert len(place.desk.server.videos) == 1


async def test_a_failed_file_that_cannot_be_moved_stays(place: Place) -> None:
    place.write("one.mp4")
    place.write("one.json", b"[]")
    place.failed.write_bytes(b"not a folder")
    [outcome] = await place.run()
    assert outcome.problem is not None
    assert sorted(os.listdir(place.folder)) == ["one.json", "one.mp4"]
