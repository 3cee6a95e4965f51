"""docs/examples/hooks.py, used as hooks of an uploader."""

from __future__ import annotations

import json
from pathlib import Path

from tests.engine.harness import PART, Desk
from tests.examples.test_engines import example
from uploader import PolicyError, VideoMeta
from uploader.devserver import DevServer


async def test_titles_are_shortened_and_rehearsals_refused(tmp_path: Path) -> None:
    house = example("hooks")
    endings = tmp_path / "endings.jsonl"
    house.ENDINGS = str(endings)
    async with DevServer() as server:
        desk = Desk(server, tmp_path)
        titled = VideoMeta(title="A film " * 20)
        result = await desk.push(desk.file(PART), hooks=[house.HOOKS], meta=titled)
        forbidden = VideoMeta(title="Rehearsal 3")
        error = await desk.fail(desk.file(PART, "b.mp4"), hooks=[house.HOOKS], meta=forbidden)
        assert server.videos[result.video_id].title == ("A film " * 20)[:40]

    assert isinstance(error, PolicyError)
    lines = [json.loads(line) for line in endings.read_text().splitlines()]
    assert [line["video"] for line in lines] == [result.video_id, None]
    assert "rehearsal" in lines[1]["error"]
