"""Too few descriptors, a full disk, a folder that cannot be written: typed, and resumable."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.engine.harness import PART, Desk
from uploader import StateUnavailable

from .conftest import Nursery, job_of
from .test_pairs import command, outputs


@contextmanager
def mounted(place: Path, how: str) -> Iterator[Path]:
    """A file system in memory; root may do that, and may write where others may not."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place.mkdir(mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=700,{how}", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True, capture_output=True)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "size=400k") as place:
        yield place


async def test_a_disk_that_fills_up_in_mid_upload_loses_nothing(desk: Desk, tmpfs: Path) -> None:
    """Whatever room is left when it begins, from none to plenty."""
    movie = desk.file(9 * PART)
    ballast, success_count = tmpfs / "ballast", 0
    for free_kib in (0, 24, 48, 72, 96, 120, 144):
        room = os.statvfs(tmpfs)
        size = max(0, room.f_bavail * room.f_frsize - free_kib * 1024)
        with ballast.open("ab") as file:
            file.write(bytes(size))
        with suppress(StateUnavailable):
            await desk.push(movie, key="film", state=tmpfs / "state.db")
            success_count += 1
        ballast.unlink()
    assert success_count <= 5

    result = await desk.push(movie, key="film", state=tmpfs / "state.db")

    await desk.assert_stored(result, movie)
    assert len(desk.server.videos) == 1
    assert desk.server.stats.completes == 1


async def test_a_folder_that_cannot_be_written_is_named(desk: Desk) -> None:
    with mounted(desk.folder / "state", "ro") as folder:
        error = await desk.fail(desk.file(3 * PART))

    assert isinstance(error, StateUnavailable)
    assert str(folder) in error.message
    assert "ead-only" in error.message
    assert desk.server.stats.requests.total() == 0


async def test_a_folder_that_turns_read_only_in_mid_upload(desk: Desk) -> None:
    movie = desk.file(20 * PART)
    with mounted(desk.folder / "state", "rw") as folder:
        record = await desk.interrupted(movie, after=5)
        held = await desk.acked_part_numbers()
        remount(folder, "ro")
        error = await desk.fail(movie)
        remount(folder, "rw")
        result = await desk.push(movie)

    assert isinstance(error, StateUnavailable)
    await desk.assert_stored(result, movie)
    assert result.video_id == record.video_id
    assert result.resumed_part_count == len(held) == 5


async def test_eighty_files_with_sixty_four_descriptors(desk: Desk, nursery: Nursery) -> None:
    """Descriptors do not grow with the manifest; many connections are requested, too."""
    folder = desk.folder / "many"
    await asyncio.to_thread(many_files, folder, 80)
    words = ["ingest", "m.jsonl", "--report", "r.jsonl", "--files", "32", "--concurrency", "64"]
    job = command(desk, folder, *words, limits=[64])

    end = await nursery.start(**job).ended(timeout_s=100)

    assert end == {"code": 0}, outputs(folder)[-3000:]
    rows = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done"] * 80
    assert desk.server.stats.creates == len(desk.server.videos) == 80


def many_files(folder: Path, count: int) -> None:
    folder.mkdir()
    lines = []
    for number in range(count):
        (folder / f"{number}.mp4").write_bytes(number.to_bytes(4, "big") * 50)
        lines.append(json.dumps({"path": f"{number}.mp4", "title": str(number)}))
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")


async def test_one_large_file_with_sixty_four_descriptors(desk: Desk, nursery: Nursery) -> None:
    movie = desk.file(150 * PART)
    job = job_of(desk, do="upload", source=str(movie), limits=[64]) | {"concurrency": 128}

    report = await nursery.start(**job).ended()

    assert report is not None
    assert "result" in report, report
    assert desk.server.object_bytes(report["result"]["video_id"]) == movie.read_bytes()
