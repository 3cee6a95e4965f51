"""Sources: the bytes that were there on opening, or an error that says why not."""

import asyncio
import errno
import gc
import hashlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uploader.errors import SourceChanged, SourceUnreadable, UnsafePath
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body
from uploader.sources import BytesSource, FileSource, Fingerprint, Source
from uploader.sources.contract import unreadable_source
from uploader.threads import DISKS

MIB = 1024 * 1024
CONTENT = os.urandom(3 * MIB + 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "movie.mp4"
    file.write_bytes(CONTENT)
    return file


async def read_all(body: Body, *, unit_size: int = 512 * 1024) -> bytes:
    """Read a body as the transport does."""
    found, unit = bytearray(), memoryview(bytearray(unit_size))
    while len(found) < body.size:
        into = unit[: body.size - len(found)]
        count = body.read_now(into, len(found))
        if count is None:
            count = await body.read(into, len(found))
        found += into[:count]
    return bytes(found)


def make_cold(path: Path) -> None:
    """Write the file out and drop its pages from the cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- every source ---------------------------------------------------------------------


@pytest.fixture(params=["file", "bytes", "memoryview"])
async def source(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Source]:
    makers: dict[str, Callable[[], Source]] = {
        "file": lambda: FileSource(path),
        "bytes": lambda: BytesSource(CONTENT),
        "memoryview": lambda: BytesSource(memoryview(CONTENT)),
    }
    async with makers[request.param]() as opened:
        yield opened


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, len(CONTENT)), (7, MIB), (3 * MIB, 5)])
async def test_a_body_is_its_range(source: Source, offset: int, size: int) -> None:
    body = source.body(offset, size)
    assert body.size == size
    assert await read_all(body) == CONTENT[offset : offset + size]
    assert await read_all(body) == CONTENT[offset : offset + size], "and so a second time"


async def test_a_body_never_reaches_beyond_its_range(source: Source) -> None:
    body = source.body(10, 5)
    roomy = memoryview(bytearray(100))
    assert await body.read(roomy, 0) == 5
    assert bytes(roomy[:6]) == CONTENT[10:15] + b"\0"


async def test_checksums_of_a_range(source: Source) -> None:
    expected = CONTENT[5 : 5 + 2 * MIB]
    assert await source.read_crc(5, 2 * MIB) == (crc64(expected), None)
    md5 = hashlib.md5(expected, usedforsecurity=False).hexdigest().upper()
    assert await source.read_crc(5, 2 * MIB, with_md5=True) == (crc64(expected), md5)


async def test_the_callback_gets_the_bytes_sent(source: Source) -> None:
    sent: list[int] = []
    body = source.body(0, 100, sent.append)
    body.sent(50)
    body.sent(100)
    assert sent == [50, 100]
    source.body(0, 100).sent(100)


async def test_a_fingerprint_is_stable_and_round_trips_as_text(source: Source) -> None:
    fingerprint = await source.fingerprint()
    assert fingerprint == await source.fingerprint()
    assert fingerprint.size == source.size == len(CONTENT)
    assert Fingerprint.from_text(fingerprint.to_text()) == fingerprint


# --- fingerprints ---------------------------------------------------------------------

numbers = st.integers(0, 2**63)
fingerprints = st.builds(Fingerprint, numbers, numbers, numbers, numbers, numbers)


@given(fingerprints)
def test_any_fingerprint_round_trips_as_text(fingerprint: Fingerprint) -> None:
    assert Fingerprint.from_text(fingerprint.to_text()) == fingerprint


WORDS = {
    "size": "size",
    "mtime_ns": "modification time",
    "ctime_ns": "change time",
    "inode": "inode",
    "device": "device",
}


@given(fingerprints.filter(lambda one: one.mtime_ns > 0), st.sets(st.sampled_from([*WORDS])))
def test_exactly_the_changed_fields_are_named(fingerprint: Fingerprint, names: set[str]) -> None:
    other = replace(fingerprint, **{name: getattr(fingerprint, name) + 1 for name in names})
    assert fingerprint.changes(other) == other.changes(fingerprint)
    assert fingerprint.changes(other) == [word for name, word in WORDS.items() if name in names]


@given(st.text())
def test_other_text_is_not_a_fingerprint(text: str) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        Fingerprint.from_text(text)


@pytest.mark.parametrize("text", ["size=1", "size=1 mtime_ns=2 ctime_ns=3 inode=4 device=x"])
def test_an_incomplete_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"fingerprint|invalid literal"):
        Fingerprint.from_text(text)


async def test_bytes_are_identified_by_their_content() -> None:
    one, other = BytesSource(b"abc"), BytesSource(b"abd")
    assert (await one.fingerprint()).changes(await other.fingerprint()) == ["content"]


# --- what cannot be opened ------------------------------------------------------------


async def refusal(path: Path | str, *, follow_symlinks: bool = True) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SourceUnreadable) as caught:
        async with asyncio.timeout(1), FileSource(path, follow_symlinks=follow_symlinks):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value.message


async def test_a_missing_file(tmp_path: Path) -> None:
    assert await refusal(tmp_path / "gone") == f"{tmp_path}/gone does not exist."
    assert "does not exist" in await refusal(tmp_path / "gone" / "deeper")


async def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "is empty; VOD refuses" in await refusal(tmp_path / "empty")


async def test_empty_bytes() -> None:
    with pytest.raises(SourceUnreadable, match="empty"):
        async with BytesSource(b""):
            pass


async def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory, not a regular file" in await refusal(tmp_path)


async def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe, not a regular file" in await refusal(tmp_path / "pipe")


async def test_a_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "not a regular file" in await refusal(tmp_path / "s")


async def test_a_device() -> None:
    assert "is a device, not a regular file" in await refusal("/dev/zero")


async def test_a_link_is_followed_unless_forbidden(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    async with FileSource(link) as source:
        assert source.size == len(CONTENT)
    assert "is a symbolic link" in await refusal(link, follow_symlinks=False)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic link" in await refusal(tmp_path / "loop")


async def test_nothing_outside_of_its_root_is_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "in.mp4").write_bytes(CONTENT)
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "out.mp4").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "root2")
    (root / "link.mp4").symlink_to("a/b/in.mp4")
    async with FileSource(root / "a/b/in.mp4", root=str(root)) as source:
        assert source.size == len(CONTENT)
    async with FileSource(root / "a/b/in.mp4", root="/") as source:
        assert source.size == len(CONTENT)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("root/../root2/out.mp4", "root/./../root2/out.mp4", "root2/out.mp4", "root"):
        with pytest.raises(UnsafePath, match="not below"):
            await FileSource(f"{tmp_path}/{path}", root=str(root)).__aenter__()
    with pytest.raises(UnsafePath, match="link"):
        await FileSource(root / "link/out.mp4", root=str(root)).__aenter__()
    with pytest.raises(SourceUnreadable, match="link"):
        await FileSource(root / "link.mp4", root=str(root)).__aenter__()
    with pytest.raises(SourceUnreadable, match="does not exist"):
        await FileSource(root / "gone/in.mp4", root=str(root)).__aenter__()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_link_to_its_folder_does_not_make_another_upload(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    plain = FileSource(tmp_path / "real" / "x.mp4").identity
    assert plain == str(tmp_path / "real" / "x.mp4")
    assert FileSource(tmp_path / "alias" / "x.mp4").identity == plain
    assert FileSource(f"{tmp_path}/alias/../alias/x.mp4").identity == plain


async def test_a_malformed_path() -> None:
    assert "is not a path" in await refusal("a\0b")


def test_a_file_without_permission(path: Path) -> None:
    """In a process of its own, because root may read everything."""
    path.chmod(0)
    path.parent.chmod(0o755)
    script = """
        import asyncio, os, sys
        from uploader.errors import SourceUnreadable
        from uploader.sources import FileSource

        async def main():
            os.setuid(65534)
            try:
                async with FileSource(sys.argv[1]):
                    pass
            except SourceUnreadable as exc:
                print(exc.message)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "may not be read by this user" in done.stdout


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EIO, "its disk reports an error"),
        (errno.EMFILE, "too many open files"),
        (errno.ESTALE, "its network file system lost it"),
        (errno.EFBIG, "cannot be read (File too large)"),
    ],
)
def test_errors_of_the_system_are_explained(number: int, words: str) -> None:
    error = unreadable_source("movie.mp4", OSError(number, os.strerror(number)))
    assert error.message.startswith("movie.mp4 ")
    assert words in error.message


async def test_a_source_is_open_only_inside_its_block(path: Path) -> None:
    source = FileSource(path)
    for use in (lambda: source.size, lambda: source.body(0, 1)):
        with pytest.raises(RuntimeError, match="not open"):
            use()
    async with source:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await source.fingerprint()
    async with source:
        assert source.size == len(CONTENT), "and can be opened again"


# --- what changes meanwhile -----------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, MIB)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def edit_and_hide_it(path: Path) -> None:
    """Another byte in the middle, the time of the last change set back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"edited")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(path: Path) -> None:
    """A new change time, and nothing else."""
    path.chmod(0o600)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def punch_a_hole(path: Path) -> None:
    subprocess.run(["fallocate", "-p", "-o", "0", "-l", "4096", path], check=True)


CHANGES: dict[Callable[[Path], None], str] = {
    truncate: "size, modification time, change time",
    grow: "size, modification time, change time",
    edit_and_hide_it: "change time",
    punch_a_hole: "modification time, change time",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("is_cold", [False, True], ids=["cached", "cold"])
@pytest.mark.posix
async def test_a_change_before_the_last_byte_is_detected(
    path: Path, change: Callable[[Path], None], is_cold: bool
) -> None:
    async with FileSource(path) as source:
        body = source.body(0, len(CONTENT))
        into = memoryview(bytearray(MIB // 2))
        await body.read(into, 0)
        change(path)
        if is_cold:
            make_cold(path)
        with pytest.raises(SourceChanged, match=CHANGES[change]) as caught:
            await read_all(body)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_change_is_detected_when_reading_for_a_checksum(
    path: Path, change: Callable[[Path], None]
) -> None:
    async with FileSource(path) as source:
        change(path)
        try:
            crc, _ = await source.read_crc(0, len(CONTENT))
        except SourceChanged:
            assert change is not edit_and_hide_it
        else:
            assert change is edit_and_hide_it
            assert crc == crc64(content_of(path)) != crc64(CONTENT), "the checksum tells"


async def test_a_part_of_a_touched_file_can_be_read(path: Path) -> None:
    """Its content is compared before the upload completes."""
    async with FileSource(path) as source:
        fingerprint = await source.fingerprint()
        touch(path)
        assert fingerprint.is_touched(await source.fingerprint())
        assert await read_all(source.body(0, MIB)) == CONTENT[:MIB]
        make_cold(path)
        assert await read_all(source.body(0, MIB)) == CONTENT[:MIB]


@pytest.mark.parametrize("is_cold", [False, True], ids=["cached", "cold"])
async def test_a_file_sent_by_one_request_must_not_be_touched(path: Path, is_cold: bool) -> None:
    """Nothing is compared later; but the same command may succeed."""
    async with FileSource(path) as source:
        body = source.body(0, len(CONTENT))
        touch(path)
        if is_cold:
            make_cold(path)
        with pytest.raises(SourceChanged, match=r"\(change time\)") as caught:
            await read_all(body)
        assert caught.value.is_temporary
        assert "again" in caught.value.next_step
        grow(path)
        with pytest.raises(SourceChanged) as caught:
            await read_all(body)
        assert not caught.value.is_temporary


async def test_a_truncated_file_never_yields_a_short_body(path: Path) -> None:
    """Cut inside the range, so that the rest of it reads as the end of the file."""
    async with FileSource(path) as source:
        os.truncate(path, 100)
        body = source.body(50, 1000)
        into = memoryview(bytearray(1000))
        with pytest.raises(SourceChanged):
            await read_all(body)
        with pytest.raises(SourceChanged, match=r"ends at byte 100|size"):
            await body.read(into, 0)


@pytest.mark.parametrize("change", [truncate, grow, edit_and_hide_it])
async def test_the_fingerprint_shows_a_change(path: Path, change: Callable[[Path], None]) -> None:
    async with FileSource(path) as source:
        before = await source.fingerprint()
        change(path)
        assert ", ".join(before.changes(await source.fingerprint())) == CHANGES[change]


async def test_a_file_replaced_under_its_name_is_detected(path: Path) -> None:
    async with FileSource(path) as source:
        other = path.with_suffix(".new")
        other.write_bytes(CONTENT)
        other.rename(path)
        with pytest.raises(SourceChanged, match="replaced by another file"):
            await source.fingerprint()


async def test_a_deleted_file_is_detected(path: Path) -> None:
    async with FileSource(path) as source:
        os.unlink(path)
        with pytest.raises(SourceChanged, match="does not exist any more"):
            await source.fingerprint()


# --- how it reads ---------------------------------------------------------------------


@pytest.mark.posix
async def test_cached_pages_need_no_thread(path: Path) -> None:
    async with FileSource(path) as source:
        await source.read_crc(0, len(CONTENT))
        into = memoryview(bytearray(MIB))
        assert source.body(0, 2 * MIB).read_now(into, 0) == MIB
    assert bytes(into) == CONTENT[:MIB]


async def test_an_uncached_file_is_read_in_our_own_threads(path: Path) -> None:
    make_cold(path)
    before = set(threading.enumerate())  # other tests may have left theirs
    async with FileSource(path) as source:
        assert await read_all(source.body(0, len(CONTENT))) == CONTENT
    names = {thread.name for thread in set(threading.enumerate()) - before}
    assert not any(name.startswith("asyncio_") for name in names)


async def test_a_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"island")
    async with FileSource(path) as source:
        assert await read_all(source.body(32 * MIB - 2, 10)) == b"\0\0island\0\0"
        crc, _ = await source.read_crc(0, 64 * MIB)
    assert crc == crc64(bytes(32 * MIB) + b"island" + bytes(32 * MIB - 6))


async def test_a_file_system_without_nowait_is_read_in_threads() -> None:
    """/sys refuses RWF_NOWAIT, as network file systems do."""
    async with FileSource("/sys/kernel/mm/transparent_hugepage/enabled") as source:
        body = source.body(0, 10)
        into = memoryview(bytearray(10))
        assert body.read_now(into, 0) is None
        assert await body.read(into, 0) == 10


async def test_blocked_disks_do_not_delay_names(path: Path) -> None:
    """All reading threads hang; resolving a name uses another pool."""
    gate = threading.Event()
    async with FileSource(path) as source:
        opened = source._opened()
        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(opened.in_thread(gate.wait, 5))
            await asyncio.sleep(0.05)
            try:
                async with asyncio.timeout(0.1):
                    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
            finally:
                gate.set()
    threads = [t for t in threading.enumerate() if t.name.startswith("vodup-disk")]
    assert len(threads) <= 8


async def test_a_disk_that_never_answers_times_out(path: Path) -> None:
    gate = threading.Event()
    async with FileSource(path, read_timeout_s=0.1) as source:
        with pytest.raises(SourceUnreadable, match="does not answer within"):
            await source._opened().in_thread(gate.wait, 5)
        gate.set()


async def test_closing_waits_for_reads_that_were_cancelled(path: Path) -> None:
    """Otherwise the thread would go on with a number that names another file by then."""
    gate, read = threading.Event(), threading.Event()

    def hold(descriptor: int) -> None:
        gate.wait(5)
        os.pread(descriptor, 1, 0)  # fails if it was closed meanwhile
        read.set()

    source = FileSource(path)
    await source.__aenter__()
    opened = source._opened()
    task = asyncio.ensure_future(opened.in_thread(hold, opened._descriptor))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    asyncio.get_running_loop().call_later(0.1, gate.set)
    await source.__aexit__(None, None, None)
    assert read.is_set()


async def test_opening_may_be_cancelled_at_any_moment(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for moment in range(40):
        source = FileSource(path)
        task = asyncio.ensure_future(source.__aenter__())
        for _ in range(moment % 4):
            await asyncio.sleep(0)
        await asyncio.sleep(moment / 4e5)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await source.__aexit__(None, None, None)
    for _ in range(8):  # every thread has come to its end
        await asyncio.wrap_future(DISKS.submit(time.sleep, 0.01))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_one_descriptor_per_open_file(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with FileSource(path) as source:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(read_all(source.body(0, MIB)))
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_range_in_any_unit(data: st.DataObject, tmp_path: Path) -> None:
    content = data.draw(st.binary(min_size=1, max_size=10_000))
    offset = data.draw(st.integers(0, len(content) - 1))
    size = data.draw(st.integers(1, len(content) - offset))
    unit_size = data.draw(st.integers(1, 4096))
    path = tmp_path / "any"
    path.write_bytes(content)

    async def read() -> bytes:
        async with FileSource(path) as source:
            return await read_all(source.body(offset, size), unit_size=unit_size)

    assert asyncio.run(read()) == content[offset : offset + size]
