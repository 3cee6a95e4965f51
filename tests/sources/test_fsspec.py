"""fsspec: any store it knows, by ranges; its errors become ours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from uploader import ConfigurationError, FsspecSource, SourceChanged, SourceUnreadable, VodupError
from uploader.sources import as_source
from uploader.sources.fsspec import BLOCK_SIZE

from ..engine.harness import PART, Desk, content
from .test_files import read_all
from .web import Site, serving

DATA = content(3 * BLOCK_SIZE + 5)


class Shaky(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store of a test's own. What it does next is set on the class."""

    protocol = "shaky"
    failure: Exception | None = None
    is_slow = False
    short_by = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("shaky://").strip("/")

    def cat_file(self, path: str, start: int = 0, end: int = 0, **given: Any) -> bytes:
        if self.failure is not None:
            raise self.failure
        if self.is_slow:
            time.sleep(1)
        return bytes(super().cat_file(path, start, end, **given)[: end - start - self.short_by])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[Shaky]:
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    for name in ("failure", "is_slow", "short_by"):
        monkeypatch.setattr(Shaky, name, getattr(Shaky, name))  # put back at the end
    Shaky().pipe("/shaky/movie.mp4", DATA)
    return Shaky


URL = "shaky://shaky/movie.mp4"


async def refusal(source: FsspecSource) -> VodupError:
    with pytest.raises(VodupError) as caught:
        async with source:
            await source.read_crc(0, 10)
    return caught.value


async def test_ranges_are_read_in_blocks(store: type[Shaky]) -> None:
    async with FsspecSource(URL) as source:
        assert await read_all(source.body(3, len(DATA) - 3)) == DATA[3:]
        assert await read_all(source.body(0, 1)) == DATA[:1]


async def test_a_change_is_detected_at_the_end_of_a_range(store: type[Shaky]) -> None:
    async with FsspecSource(URL) as source:
        body = source.body(0, PART)
        assert await body.read(memoryview(bytearray(10)), 0) == 10
        Shaky().pipe("/shaky/movie.mp4", DATA[::-1])
        with pytest.raises(SourceChanged):
            await read_all(body)


async def test_a_short_answer_never_yields_a_short_body(store: type[Shaky]) -> None:
    async with FsspecSource(URL) as source:
        store.short_by = 1
        with pytest.raises(SourceChanged, match="ends at byte"):
            await read_all(source.body(0, PART))


async def test_errors_of_a_store_are_translated(desk: Desk, store: type[Shaky]) -> None:
    store.failure = RuntimeError("token of the store: SECRET")
    error = await desk.fail(FsspecSource(URL))
    assert isinstance(error, SourceUnreadable)
    assert error.is_temporary
    assert "SECRET" not in str(error)
    assert desk.server.stats.completes == desk.server.stats.puts == 0

    store.failure = PermissionError("no")
    assert not (await refusal(FsspecSource(URL))).is_temporary
    assert "does not exist" in (await refusal(FsspecSource("shaky://shaky/gone.mp4"))).message


async def test_a_store_that_does_not_answer_times_out(store: type[Shaky]) -> None:
    store.is_slow = True
    async with asyncio.timeout(10):
        error = await refusal(FsspecSource(URL, read_timeout_s=0.1))
    assert error.is_temporary


async def test_another_web_server_is_a_store_too(desk: Desk) -> None:
    """By fsspec's own client, in a thread and on a loop of its own."""
    async with serving(Site(DATA)) as site:
        result = await desk.push(FsspecSource(site.url, "movie.mp4"))
    await desk.assert_stored(result, DATA)


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in (await refusal(FsspecSource(f"file://{tmp_path}"))).message


async def test_an_unknown_kind_of_url() -> None:
    error = await refusal(FsspecSource("nonsense://a/b.mp4"))
    assert isinstance(error, ConfigurationError)
    assert "vodup[fsspec]" in error.next_step


def test_names_and_passwords_are_shown_nowhere() -> None:
    source = FsspecSource("sftp://me:SECRET@host/films/movie.mp4?key=SECRET")
    assert source.name == "sftp://host/films/movie.mp4"
    assert "SECRET" not in repr(source)


def test_two_objects_are_two_uploads() -> None:
    urls = [
        "s3://bucket/a.mp4",
        "s3://bucket/a.mp4?versionId=1",
        "s3://bucket/a.mp4?versionId=2",
        "sftp://alice@host/a.mp4",
        "sftp://bob@host/a.mp4",
    ]
    assert len({FsspecSource(url).identity for url in urls}) == len(urls)
    former, later = "sftp://alice:old@host/a.mp4", "sftp://alice:new@host/a.mp4"
    assert FsspecSource(former).identity == FsspecSource(later).identity


def test_other_urls_are_sources_of_fsspec() -> None:
    assert isinstance(as_source("s3://bucket/movie.mp4"), FsspecSource)


def test_without_fsspec_the_error_names_what_to_install() -> None:
    script = (
        "import asyncio, sys; sys.modules['fsspec'] = None\n"
        "from uploader import ConfigurationError, FsspecSource\n"
        "async def main():\n"
        "    try:\n"
        "        async with FsspecSource('s3://bucket/movie.mp4'): pass\n"
        "    except ConfigurationError as error: print(error.next_step)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "Run `pip install 'vodup[fsspec]'`" in done.stdout
