"""Two processes that begin the same work at the same moment: one does it, the other says so."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import PART, Desk

from .conftest import Nursery, job_of, soon_s

HELD = 6


def command(desk: Desk, folder: Path, *words: str, **more: Any) -> dict[str, Any]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VODUP_")}
    env = {
        **kept,
        **desk.server.env,
        "HOME": str(folder),
        "VODUP_STATE": str(folder / "state" / "state.db"),
        "VODUP_PART_SIZE": str(PART),
    }
    output = str(folder / f"output-{more.pop('number', 0)}.txt")
    job = {
        "do": "command",
        "words": list(words),
        "folder": str(folder),
        "env": env,
        "output": output,
    }
    return {**job, **more}


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("output-*.txt")))


async def both(nursery: Nursery, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Start them within a few milliseconds, and wait for both."""
    at_s = soon_s()
    children = [nursery.start(**job, at_s=at_s) for job in jobs]
    ends = [await child.ended() for child in children]
    return [end for end in ends if end is not None]


async def race_for_an_upload(desk: Desk, nursery: Nursery, round_count: int) -> None:
    desk.server.set_options(bandwidth=2e6)
    for number in range(round_count):
        movie = desk.file(4 * PART, f"{number}.mp4", seed=number)
        job = job_of(desk, do="upload", source=str(movie))
        ends = await both(nursery, [job, job])
        errors = [end["error"] for end in ends if "error" in end]
        (result,) = [end["result"] for end in ends if "result" in end]
        assert errors == ["UploadLocked"], ends
        assert len(desk.server.videos) == desk.server.stats.creates == number + 1
        assert desk.server.object_bytes(result["video_id"]) == movie.read_bytes()
        assert desk.server.stats.completes == number + 1
        assert desk.server.stats.bytes_sent_twice == 0


async def race_for_a_manifest(desk: Desk, nursery: Nursery, round_count: int) -> None:
    desk.server.set_options(bandwidth=4e6)
    for number in range(round_count):
        folder = desk.folder / f"round-{number}"
        await asyncio.to_thread(prepare, folder, number)
        words = ("ingest", "m.jsonl", "--report", "r.jsonl")
        ends = await both(nursery, [command(desk, folder, *words, number=n) for n in range(2)])
        assert sorted(end["code"] for end in ends) == [0, HELD], (ends, outputs(folder))
        rows = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
        assert sorted(row["row"] for row in rows) == [1, 2, 3]
        assert {row["status"] for row in rows} == {"done"}
        assert desk.server.stats.creates == 3 * (number + 1)
        assert "Traceback" not in outputs(folder)


def prepare(folder: Path, number: int) -> None:
    folder.mkdir()
    lines = []
    for row in range(3):
        data = os.urandom(2 * PART + number + row)
        (folder / f"{row}.mp4").write_bytes(data)
        lines.append(json.dumps({"path": f"{row}.mp4", "title": f"Row {row}"}))
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")


async def test_of_two_that_start_an_upload_one_works(desk: Desk, nursery: Nursery) -> None:
    await race_for_an_upload(desk, nursery, 10)


async def test_of_two_that_start_a_manifest_one_works(desk: Desk, nursery: Nursery) -> None:
    await race_for_a_manifest(desk, nursery, 5)


async def test_the_command_that_came_second_ends_with_6(desk: Desk, nursery: Nursery) -> None:
    desk.server.set_options(bandwidth=1e6)
    desk.file(5 * PART)
    jobs = [command(desk, desk.folder, "push", "movie.mp4", number=n) for n in range(2)]

    ends = await both(nursery, jobs)

    assert sorted(end["code"] for end in ends) == [0, HELD], outputs(desk.folder)
    assert "is already being uploaded by process" in outputs(desk.folder)
    assert desk.server.stats.creates == desk.server.stats.completes == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_hundred_races(desk: Desk, nursery: Nursery) -> None:
    await race_for_an_upload(desk, nursery, 150)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_fifty_races_for_a_manifest(desk: Desk, nursery: Nursery) -> None:
    await race_for_a_manifest(desk, nursery, 50)
