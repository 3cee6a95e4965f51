"""Spools: their folders and files are private, and nothing that somebody prepared is used."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from uploader import Spool, StreamSource, UnsafePath, VideoMeta, VodupError
from uploader.devserver import Fault

from ..engine.harness import PART, Desk, content, until
from .kinds import pieces

META = VideoMeta(file_name="movie.mp4")
DATA = content(6 * PART)


@pytest.fixture
def open_umask() -> Iterator[None]:
    former = os.umask(0)
    yield
    os.umask(former)


def spooled(folder: Path) -> StreamSource:
    return StreamSource(pieces(DATA), "movie.mp4", buffer=Spool(folder, "movie.mp4"))


async def refusal(folder: Path) -> VodupError:
    source = spooled(folder)
    with pytest.raises(VodupError) as caught:
        async with source:
            await source.begin("upload")
    return caught.value


@pytest.mark.usefixtures("open_umask")
async def test_folders_and_files_are_private_whatever_the_umask(desk: Desk) -> None:
    folder = desk.folder / "new" / "spool"
    desk.order(Fault(action="slow", operation="UploadPart", count=None, delay_s=30))
    modes: dict[str, int] = {}

    def look() -> bool:
        found = [folder.parent, folder, *folder.rglob("*")]
        modes.update({path.name: stat.S_IMODE(path.lstat().st_mode) for path in found})
        return any(name.endswith(".part") for name in modes)

    async with desk.uploader() as up:
        task = asyncio.create_task(up.upload(spooled(folder), meta=META))
        await until(lambda: folder.exists() and look())
        task.cancel()
        await asyncio.wait([task])

    folders = {"new", "spool", "movie.mp4.spool"}
    assert {"journal", "lock"} < modes.keys()
    assert {name: mode for name, mode in modes.items() if name in folders} == dict.fromkeys(
        folders, 0o700
    )
    assert {mode for name, mode in modes.items() if name not in folders} == {0o600}


def prepared_link(folder: Path, name: str) -> Path:
    """A link in the folder of a spool; returns where it leads."""
    victim = folder / "victim"
    victim.write_text("precious")
    own = folder / "spool" / "movie.mp4.spool"
    own.mkdir(parents=True, mode=0o700)
    (own / name).symlink_to(victim)
    return victim


@pytest.mark.parametrize("name", ["journal", "lock"])
async def test_a_prepared_link_is_not_followed(desk: Desk, name: str) -> None:
    victim = prepared_link(desk.folder, name)

    error = await desk.fail(spooled(desk.folder / "spool"), meta=META)

    assert isinstance(error, UnsafePath)
    assert name in error.message
    assert victim.read_text() == "precious"
    assert desk.server.stats.completes == 0


async def test_a_prepared_link_to_a_part_is_removed(desk: Desk) -> None:
    victim = prepared_link(desk.folder, f"{0:015}.part")
    await desk.assert_stored(await desk.push(spooled(desk.folder / "spool"), meta=META), DATA)
    assert victim.read_text() == "precious"


async def test_a_link_to_a_journal_says_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "elsewhere"
    journal.write_text('["spool", 1, "file:/etc/passwd", "reference"]\n')
    own = tmp_path / "movie.mp4.spool"
    own.mkdir(mode=0o700)
    (own / "journal").symlink_to(journal)
    assert spooled(tmp_path).identity.startswith("spool:")


async def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "movie.mp4.spool").symlink_to(tmp_path / "elsewhere")
    assert isinstance(await refusal(tmp_path), UnsafePath)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.posix
async def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "movie.mp4.spool"
    folder.mkdir()
    folder.chmod(0o777)
    error = await refusal(tmp_path)
    assert isinstance(error, UnsafePath)
    assert "--spool" in error.next_step


@pytest.mark.posix
async def test_a_spool_in_a_folder_that_others_may_write_into(tmp_path: Path) -> None:
    """In a folder like /tmp others cannot replace what is ours; elsewhere they can."""
    await asyncio.to_thread(tmp_path.chmod, 0o1777)
    async with spooled(tmp_path) as source:
        await source.begin("upload")
    await asyncio.to_thread(tmp_path.chmod, 0o777)
    assert isinstance(await refusal(tmp_path), UnsafePath)


@pytest.mark.posix
async def test_a_folder_that_others_may_read_is_made_private(tmp_path: Path) -> None:
    folder = tmp_path / "movie.mp4.spool"
    folder.mkdir()
    folder.chmod(0o755)
    async with spooled(tmp_path) as source:
        await source.begin("upload")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.posix
async def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "movie.mp4.spool"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    assert isinstance(await refusal(tmp_path), UnsafePath)
