"""A watched folder that feeds the queue."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from .conftest import Cluster, content

WATCH = (*"watch ingest --enqueue --once --settle 0 --after move:done".split(), "--json")


@pytest.mark.slow
def test_files_are_uploaded_by_workers_and_put_away_by_the_watcher(cluster: Cluster) -> None:
    folder = cluster.folder / "ingest"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(content(number, 200_000))
    (folder / "1.json").write_text(json.dumps({"title": "One", "priority": 7}))
    (folder / "bad.mp4").write_bytes(b"x")
    (folder / "bad.json").write_text(json.dumps({"video_id": "missing"}))
    cluster.worker("--files", "2")

    ended = cluster.run(*WATCH, "--failed-dir", str(cluster.folder / "failed"))

    assert ended.code == 1, ended.err
    by_name: dict[str, Any] = {
        os.path.basename(str(line["path"])): line
        for line in ended.lines
        if line["type"] in ("file.done", "file.failed")
    }
    for number in range(3):
        video_id = by_name[f"{number}.mp4"]["video_id"]
        assert cluster.server.object_bytes(video_id) == content(number, 200_000)
        assert (cluster.folder / f"done/{number}.mp4").exists()
    assert by_name["bad.mp4"]["moved_to"] == str(cluster.folder / "failed/bad.mp4")
    assert (cluster.folder / "failed/bad.mp4.reason.json").exists()
    assert len(cluster.server.videos) == 3

    (cluster.folder / "done/2.mp4").rename(folder / "2.mp4")  # the same file again
    (cluster.folder / "home-here/state").rename(cluster.folder / "lost")  # and no ledger

    again = cluster.run(*WATCH)

    assert again.code == 0, again.err
    assert len(cluster.server.videos) == 3
    assert (cluster.folder / "done/2.mp4").exists()
