"""A file that has changed since its row was verified: never called done, and never a surprise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.conftest import Quick
from tests.engine.harness import PART, Desk
from uploader import ConfigurationError, SourceChanged, UploadItem
from uploader.devserver import DevServer, Fault

INGEST = ("ingest", "m.csv", "--report", "r.jsonl", "--json")


def records(quick: Quick) -> dict[str, dict[str, Any]]:
    lines = (quick.folder / "r.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len({record["id"] for record in found}) == len(found)
    return {Path(record["path"]).name: record for record in found}


def sent(server: DevServer) -> int:
    return sum(server.stats.requests.values())


@pytest.fixture
def changed(quick: Quick) -> Quick:
    """Two files that are verified; then one gets other bytes of the same size."""
    quick.file("a.mp4", size=2000)
    quick.file("b.mp4", size=3000)
    (quick.folder / "m.csv").write_text("path,title\na.mp4,A\nb.mp4,B\n")
    assert quick.run(*INGEST).code == 0
    quick.file("b.mp4", size=3000, seed=b"other")
    return quick


def test_a_changed_file_fails_its_row_and_nothing_is_sent(
    changed: Quick, server: DevServer
) -> None:
    before, former = sent(server), records(changed)["b.mp4"]
    for _ in range(2):  # the failure does not hide what was verified
        ended = changed.run(*INGEST, "--failed", "f.jsonl")
        assert ended.code == 4
        assert (ended.last["skipped"], ended.last["failed"]) == (1, 1)
        record = records(changed)["b.mp4"]
        assert record["error"] == "SourceChanged"
        assert former["video_id"] in record["message"]
        assert "--changed new-video" in record["next_step"]
        assert "--changed overwrite" in record["next_step"]
        assert "video_id" not in record
        assert record["former_video_id"] == former["video_id"]
        assert record["source_mtime_ns"] == former["source_mtime_ns"]
    assert records(changed)["a.mp4"]["status"] == "done"
    assert changed.run(*INGEST, "--dry-run").code == 0, "a dry run has no ledger"
    assert sent(server) == before


@pytest.mark.parametrize("has_state", [True, False])
def test_a_new_video_or_the_same_one_as_chosen(
    changed: Quick, server: DevServer, has_state: bool
) -> None:
    first = records(changed)["b.mp4"]["video_id"]
    if not has_state:
        changed.env["VODUP_STATE"] = str(changed.folder / "other.db")
    assert changed.run(*INGEST).code == 4
    assert changed.run(*INGEST, "--changed", "new-video").code == 0
    record = records(changed)["b.mp4"]
    second = record["video_id"]
    assert second != first
    assert server.object_bytes(second) == (changed.folder / "b.mp4").read_bytes()
    assert server.object_bytes(first) != server.object_bytes(second)
    assert changed.run(*INGEST).last["skipped"] == 2

    changed.file("b.mp4", size=4000)
    if not has_state:
        changed.env["VODUP_STATE"] = str(changed.folder / "third.db")
    assert changed.run(*INGEST).code == 4
    ended = changed.run(*INGEST, "--changed", "overwrite")
    assert ended.code == 0, ended.err
    assert records(changed)["b.mp4"]["video_id"] == second
    assert server.object_bytes(second) == (changed.folder / "b.mp4").read_bytes()
    assert changed.run(*INGEST).last["skipped"] == 2
    assert server.stats.creates == 3


@pytest.mark.parametrize("choice", ["new-video", "overwrite"])
def test_a_file_with_new_times_and_the_same_bytes_is_not_sent_again(
    quick: Quick, server: DevServer, choice: str
) -> None:
    path = quick.file("b.mp4", size=3000)
    (quick.folder / "m.csv").write_text("path\nb.mp4\n")
    assert quick.run(*INGEST).code == 0
    before = sent(server)
    os.utime(path, (1, 1))
    assert quick.run(*INGEST).code == 4
    ended = quick.run(*INGEST, "--changed", choice)
    assert (ended.code, ended.last["earlier"]) == (0, 1)
    assert quick.run(*INGEST).last["skipped"] == 1
    assert sent(server) == before


def test_what_the_state_alone_knows_is_decided_in_the_same_way(
    changed: Quick, server: DevServer
) -> None:
    (changed.folder / "r.jsonl").unlink()
    ended = changed.run(*INGEST)
    assert ended.code == 4
    assert "--changed new-video" in records(changed)["b.mp4"]["next_step"]
    assert changed.run(*INGEST, "--changed", "new-video").code == 0
    assert server.stats.creates == 3
    changed.file("b.mp4", size=5000)
    assert changed.run("push", "b.mp4").code == 4
    assert changed.run("push", "b.mp4", "--changed", "overwrite").code == 0
    assert server.stats.creates == 3
    changed.file("b.mp4", size=6000)
    assert changed.run("push", "b.mp4", "--changed", "new-video").code == 0
    assert server.stats.creates == 4


def test_a_file_that_is_gone_has_not_changed_but_anything_else_has(changed: Quick) -> None:
    path = changed.folder / "b.mp4"
    path.unlink()
    assert changed.run(*INGEST).last["skipped"] == 2
    path.write_bytes(b"")
    assert changed.run(*INGEST).code == 4
    path.unlink()
    path.mkdir()
    assert changed.run(*INGEST, "--changed", "overwrite").code == 4
    assert records(changed)["b.mp4"]["former_video_id"]
    path.rmdir()
    path.write_bytes(b"y" * 3000)
    ended = changed.run(*INGEST)
    assert ended.code == 4
    assert records(changed)["b.mp4"]["error"] == "SourceChanged"


def test_a_restored_file_is_found_verified(changed: Quick, server: DevServer) -> None:
    path, record = changed.folder / "b.mp4", records(changed)["b.mp4"]
    assert changed.run(*INGEST).code == 4
    before = sent(server)
    changed.file("b.mp4", size=3000)
    os.utime(path, ns=(0, record["source_mtime_ns"]))
    assert changed.run(*INGEST).code == 0
    assert records(changed)["b.mp4"]["video_id"] == record["video_id"]
    assert sent(server) == before


def test_a_row_that_names_its_video_gets_no_other_one(quick: Quick, server: DevServer) -> None:
    quick.file("a.mp4", size=2000)
    (quick.folder / "m.csv").write_text("path\na.mp4\n")
    assert quick.run(*INGEST).code == 0
    video_id = records(quick)["a.mp4"]["video_id"]
    (quick.folder / "m.csv").write_text(f"path,video_id\na.mp4,{video_id}\n")
    assert quick.run(*INGEST, "--overwrite").code == 0
    quick.file("a.mp4", size=2500)
    ended = quick.run(*INGEST, "--changed", "new-video")
    assert ended.code == 2
    assert "names the video" in ended.out
    assert quick.run(*INGEST, "--overwrite").code == 0
    assert server.object_bytes(video_id) == (quick.folder / "a.mp4").read_bytes()
    assert server.stats.creates == 1


def test_a_new_video_that_was_interrupted_is_continued(changed: Quick, server: DevServer) -> None:
    denied = Fault(
        action="error", operation="PutObject", status=403, code="AccessDenied", count=None
    )
    server.faults.add(denied)
    assert changed.run(*INGEST, "--changed", "new-video").code == 3
    server.faults.replace([])
    assert changed.run(*INGEST).code == 4, "the choice is made by every run"
    assert changed.run(*INGEST, "--changed", "new-video").code == 0
    assert server.stats.creates == 3


async def test_the_same_choices_in_the_library(desk: Desk) -> None:
    movie = desk.file(PART)

    async def upload(**choice: Any) -> str:
        async with desk.uploader() as up:
            return (await up.upload_item(UploadItem(source=movie, **choice))).video_id

    first = await upload()
    desk.file(PART, seed=1)
    with pytest.raises(SourceChanged):
        await upload()
    assert await upload(on_source_change="overwrite") == first
    desk.file(PART, seed=2)
    second = await upload(on_source_change="new-video")
    assert second != first
    assert await upload(on_source_change="new-video") == second
    desk.file(PART, seed=3)
    with pytest.raises(SourceChanged):
        await upload(video_id=second, on_source_change="new-video")
    assert desk.server.stats.creates == 2


async def test_hooks_see_the_new_video_of_a_changed_file(desk: Desk) -> None:
    from uploader import Hooks, PlannedVideo, VideoMeta

    def veto(planned: PlannedVideo) -> VideoMeta:
        raise ConfigurationError("No.")

    movie = desk.file(PART)
    await desk.push(movie)
    desk.file(PART, seed=1)
    item = UploadItem(source=movie, on_source_change="new-video")
    async with desk.uploader(hooks=[Hooks(before_create=veto)]) as up:
        with pytest.raises(ConfigurationError, match="No"):
            await up.upload_item(item)
