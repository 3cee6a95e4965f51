"""The file behind `SqlState`: crashes, damage, permissions, a full disk."""

# ruff: noqa: ASYNC221, ASYNC240 - tests look at files between steps; nothing else needs their loop

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.state.conftest import record
from uploader.errors import (
    ConfigurationError,
    LeaseLost,
    StateError,
    StateUnavailable,
    UnsafePath,
    UnsupportedState,
)
from uploader.state import Journal, PartAck, SqlState, files

Children = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the state file will be; the folder does not exist yet."""
    return tmp_path / "private" / "state.db"


def part(number: int) -> PartAck:
    return PartAck(number, 8 << 20, f"ETAG-{number}", 2**64 - number)


async def fill(path: Path, count: int = 50) -> bytes:
    """A store with one upload; returns the file's bytes."""
    async with SqlState(path) as store, store.claim("movie") as journal:
        await journal.create_record(record(video_id="v-1", upload_id="u-1"))
        async with asyncio.TaskGroup() as group:
            for number in range(1, count + 1):
                group.create_task(journal.add_part(part(number)))
    return path.read_bytes()


async def use(path: Path) -> SqlState:
    """Claim, and write whatever is missing, as the next run of a command would."""
    async with SqlState(path) as store, store.claim("movie") as journal:
        if journal.record is None:
            await journal.create_record(record())
        await journal.add_part(part(1000))
        await journal.record_error("went on")
    return store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Crashes


@pytest.mark.parametrize("seed", range(4))
async def test_every_ack_that_returned_survives_kill_nine(
    path: Path, children: Children, seed: int
) -> None:
    child = children("ack_forever", path, 8)
    assert child.stdout is not None
    first = child.stdout.readline()
    await asyncio.sleep(random.Random(seed).uniform(0, 0.3))
    child.kill()
    returned = {int(line) for line in (first + child.stdout.read()).split()}
    async with SqlState(path) as store, store.claim("movie") as journal:
        assert returned <= set(journal.acks)
        assert all(journal.acks[number] == part(number) for number in returned)
        assert len(journal.acks) - len(returned) <= 8


async def test_cancelling_a_caller_in_mid_commit_takes_nobody_elses_write(path: Path) -> None:
    async with SqlState(path) as store, store.claim("movie") as journal:
        await journal.create_record(record())
        random_ = random.Random(7)
        kept: set[int] = set()

        async def one(number: int) -> None:
            await journal.add_part(part(number))
            kept.add(number)

        for round_ in range(60):
            async with asyncio.TaskGroup() as group:
                numbers = range(round_ * 10 + 1, round_ * 10 + 11)
                tasks = [group.create_task(one(number)) for number in numbers]
                await asyncio.sleep(random_.choice((0, 0, 0.0002, 0.0005)))
                tasks[0].cancel()  # the one whose write started the commit
            assert kept >= set(numbers[1:])
    async with SqlState(path) as store, store.claim("movie") as journal:
        assert kept <= set(journal.acks)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that SQLite runs, in order."""
    traced: list[str] = []
    connect = sqlite3.connect

    def connecting(*given: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*given, **options)
        connection.set_trace_callback(traced.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connecting)
    return traced


def flushes(statements: list[str]) -> list[str]:
    """ "FULL" or "NORMAL" for each commit that wrote anything, in order."""
    mode, has_written, modes = "", False, []
    for statement in statements:
        words = statement.split()
        if statement.startswith("PRAGMA synchronous="):
            mode = statement.partition("=")[2]
        elif words[0] in {"INSERT", "UPDATE", "DELETE"}:
            has_written = True
        elif words[0] == "COMMIT" and has_written:
            modes.append(mode)
            has_written = False
    return modes


@pytest.mark.parametrize(("interval_s", "expected"), [(3600.0, "NORMAL"), (0.0, "FULL")])
async def test_acks_wait_for_the_disk_once_in_an_interval(
    path: Path, statements: list[str], interval_s: float, expected: str
) -> None:
    async with SqlState(path, flush_interval_s=interval_s) as store, store.claim("movie") as claim:
        await claim.create_record(record())
        statements.clear()
        statements.append("PRAGMA synchronous=FULL")
        for number in (1, 2, 3):
            await claim.add_part(part(number))
        assert flushes(statements) == [expected] * 3


async def test_what_must_outlive_the_power_waits_for_the_disk_whatever_came_before(
    path: Path, statements: list[str]
) -> None:
    async with SqlState(path, flush_interval_s=3600) as store, store.claim("movie") as journal:
        await journal.create_record(record())
        await journal.add_part(part(1))
        statements.clear()
        await journal.set_upload_id("u-2", plan="v1 8M")
        await journal.add_part(part(2))
        await journal.start_completing()
        assert flushes(statements) == ["FULL", "NORMAL", "FULL"]
        await journal.add_part(part(3))
        statements.clear()
    assert flushes(statements) == ["FULL"]  # giving the lease back


async def test_ten_thousand_acks_load_quickly(path: Path) -> None:
    await fill(path, 10_000)
    async with SqlState(path) as store:
        begun = time.perf_counter()
        async with store.claim("movie") as journal:
            assert len(journal.acks) == 10_000
            assert time.perf_counter() - begun < 0.5  # 0.05 here; the rest is for slow machines


# Closing


async def test_closing_leaves_no_thread_and_no_descriptor(path: Path) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await use(path)
        with pytest.raises(ConfigurationError):
            await SqlState(await asyncio.to_thread(_foreign_database, path)).__aenter__()
    await asyncio.sleep(0.1)
    assert threading.active_count() <= threads + 1  # to_thread's own
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_forgotten_close_does_not_keep_the_interpreter(path: Path) -> None:
    command = [sys.executable, "-m", "tests.state.child", "forget_to_close", str(path)]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, cwd=root, timeout=20, check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout.strip()) == (0, "None")


def test_a_file_needs_no_driver_of_a_server(path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from uploader.state import SqlState\n"
        "assert not {'psycopg', 'uploader.state.sqlite'} & sys.modules.keys()\n"
        "async def main():\n"
        "    async with SqlState(sys.argv[1]) as store: await store.find(key='movie')\n"
        "asyncio.run(main())\n"
        "assert 'psycopg' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


async def test_a_closed_store_says_so(path: Path) -> None:
    store = SqlState(path)
    with pytest.raises(RuntimeError, match="context manager"):
        await store.find(key="movie")
    async with store:
        with pytest.raises(RuntimeError, match="open already"):
            await store.__aenter__()
    with pytest.raises(RuntimeError, match="context manager"):
        await store.find(key="movie")
    async with store:
        assert await store.find(key="movie") is None


# Damage


def damages(whole: bytes) -> dict[str, bytes]:
    random_ = random.Random(1)
    noise = random_.randbytes(len(whole))
    found = {
        "noise": noise,
        "text": b"hello\n" * 500,
        "one byte": b"S",
        "empty": b"",
        "zeros": bytes(len(whole)),
        "header only": whole[:100],
        "noise behind the header": whole[:100] + noise[100:],
        "noise in page one": whole[:120] + noise[120:4096] + whole[4096:],
    }
    for page in range(1, len(whole) // 4096):
        start = page * 4096
        found[f"zero page {page}"] = whole[:start] + bytes(4096) + whole[start + 4096 :]
        found[f"noise page {page}"] = whole[:start] + noise[:4096] + whole[start + 4096 :]
    for _ in range(12):
        end = random_.randrange(1, len(whole))
        found[f"cut at {end}"] = whole[:end]
    for _ in range(25):
        position = random_.randrange(len(whole))
        flipped = bytes([whole[position] ^ 1 << random_.randrange(8)])
        found[f"bit at {position}"] = whole[:position] + flipped + whole[position + 1 :]
    return found


async def test_the_same_command_works_after_any_damage(path: Path) -> None:
    for name, content in damages(await fill(path)).items():
        for old in path.parent.glob("state.db*"):
            old.unlink()
        path.write_bytes(content)
        try:
            await use(path)
        except StateError:
            await use(path)  # damage met on the way: the next run puts the file aside
        aside = list(path.parent.glob("state.db.corrupt-?"))
        if name in ("noise", "text", "zeros", "header only"):
            assert aside, name


async def test_damage_is_put_aside_and_reported(path: Path) -> None:
    await fill(path)
    path.write_bytes(b"garbage" * 1000)
    store = await use(path)
    assert any("state.db.corrupt-1" in notice for notice in store.notices)
    path.write_bytes(b"garbage" * 1000)
    await use(path)
    assert path.with_name("state.db.corrupt-2").exists()
    assert path.with_name("state.db.corrupt-1").read_bytes() == b"garbage" * 1000


async def test_damage_is_not_put_aside_under_a_running_process(
    path: Path, children: Children
) -> None:
    whole = await fill(path, 500)
    child = children("hold", path, 30)
    assert child.stdout is not None
    assert child.stdout.readline() == "holding\n"
    with path.open("r+b") as file:
        file.write(os.urandom(len(whole)))
    with pytest.raises(StateUnavailable, match="another process"):
        await use(path)
    child.kill()
    child.wait()
    await use(path)


async def test_the_next_run_repairs_damage_found_while_working(path: Path) -> None:
    await fill(path, 1)
    _execute(
        path,
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 60000) "
        "INSERT INTO vodup_part SELECT 1, i, 1, hex(randomblob(40)), i, NULL FROM n",
    )
    whole = path.read_bytes()
    assert len(whole) > 4 << 20  # too large to be checked at every opening
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:middle] + os.urandom(200 * 4096) + whole[middle + 200 * 4096 :])
    with pytest.raises(StateUnavailable, match="damaged"):
        await use(path)
    store = await use(path)
    assert any("corrupt-1" in notice for notice in store.notices)


@pytest.mark.parametrize(
    "change",
    [
        "phase = 'flying'",
        "size = 'many'",
        "size = -1",
        "source = x'ff'",
        "is_overwrite = 'yes'",
        "created_at = 'noon'",
        "created_at = 1e300",
        "updated_at = 'x'",
        "error = CAST(x'ff' AS TEXT)",
        "plan = char(27) || 'json:{'",
        "plan = char(27) || 'json:7'",
        "fingerprint = x'07'",
    ],
)
async def test_a_damaged_record_is_a_typed_error_and_can_be_forgotten(
    path: Path, change: str
) -> None:
    await fill(path, 1)
    _execute(path, f"UPDATE vodup_upload SET {change}")  # noqa: S608
    async with SqlState(path) as store:
        with pytest.raises(StateUnavailable):
            await store.find(key="movie")
        with pytest.raises(StateUnavailable):
            async with store.claim("movie"):
                pass
        await store.forget("movie")
        async with store.claim("movie") as journal:
            await journal.create_record(record())
        assert [status.record.key async for status in store.uploads()] == ["movie"]


@pytest.mark.parametrize("change", ["crc64 = 'x'", "size = -5", "etag = x'ff'", "md5 = x'07'"])
async def test_a_damaged_ack_is_left_out(path: Path, change: str) -> None:
    await fill(path, 3)
    _execute(path, f"UPDATE vodup_part SET {change} WHERE number = 2")  # noqa: S608
    async with SqlState(path) as store:
        async with store.claim("movie") as journal:
            assert set(journal.acks) == {1, 3}
        assert len(store.notices) == 1


async def test_a_newer_version_is_left_untouched(path: Path) -> None:
    await fill(path)
    _execute(path, "UPDATE vodup_store SET schema_version = 2")
    before = path.read_bytes()
    with pytest.raises(UnsupportedState, match="schema 2"):
        await use(path)
    assert path.read_bytes() == before


def _foreign_database(path: Path) -> Path:
    foreign = path.with_name("browser.db")
    _execute(foreign, "CREATE TABLE IF NOT EXISTS history (url TEXT)")
    return foreign


async def test_a_database_of_another_program_is_refused_untouched(path: Path) -> None:
    files.secure_directory(path.parent)
    foreign = _foreign_database(path)
    before = foreign.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        await use(foreign)
    assert foreign.read_bytes() == before


async def test_a_film_named_by_mistake_is_refused_untouched(path: Path) -> None:
    files.secure_directory(path.parent)
    film = path.with_name("film.mp4")
    film.write_bytes(b"\0\0\0\x20ftypisom" * 100)
    with pytest.raises(ConfigurationError, match="not a state file"):
        await use(film)
    assert film.read_bytes() == b"\0\0\0\x20ftypisom" * 100


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


# Permissions


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.posix
async def test_everything_is_for_its_owner_only(path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        async with SqlState(path) as store, store.claim("movie") as journal:
            await journal.create_record(record())
            assert mode(path.parent) == mode(path.parent / "locks") == 0o700
            for file in (p for p in path.parent.rglob("*") if p.is_file()):
                assert mode(file) == 0o600, file
            assert {p.name for p in path.parent.iterdir()} >= {"state.db-wal", "state.db-shm"}
    finally:
        os.umask(old)


@pytest.mark.posix
async def test_a_file_others_may_read_is_closed_to_them(path: Path) -> None:
    await fill(path)
    path.chmod(0o644)
    await use(path)
    assert mode(path) == 0o600


@pytest.mark.parametrize("bad", [0o777, 0o1777, 0o770, 0o707])
@pytest.mark.posix
async def test_a_directory_others_may_write_is_refused(path: Path, bad: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(bad)
    with pytest.raises(UnsafePath, match="others may write"):
        await use(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.posix
async def test_a_directory_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, 65534, 65534)
    with pytest.raises(UnsafePath, match="65534"):
        await use(path)


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "state.db-shm", "state.db-journal"])
async def test_a_planted_link_is_not_followed(path: Path, name: str) -> None:
    files.secure_directory(path.parent)
    target = path.with_name("target")
    (path.parent / name).symlink_to(target)
    with pytest.raises(UnsafePath, match="link"):
        await use(path)
    assert not target.exists()


async def test_a_directory_in_the_place_of_the_file_is_refused(path: Path) -> None:
    files.secure_directory(path)
    with pytest.raises(UnsafePath):
        await use(path)


async def test_a_path_below_a_file_is_a_typed_error(path: Path) -> None:
    path.parent.write_text("a file")
    with pytest.raises(StateUnavailable):
        await use(path)


def test_network_file_systems_are_recognised(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw shared:1 - {{}} server:/x rw\n"
    table = tmp_path / "mountinfo"
    for kind in ("nfs4", "cifs", "9p", "fuse.sshfs"):
        table.write_text(line.format(kind))
        with pytest.raises(ConfigurationError, match=kind):
            files.refuse_network_mount(tmp_path, mounts=table)
    for kind in ("ext4", "overlay", "fuseblk", "fuse.fuse-overlayfs"):
        table.write_text(line.format(kind))
        files.refuse_network_mount(tmp_path, mounts=table)


# Trouble with the disk


async def test_a_full_disk_keeps_the_record_and_later_writes_work(
    path: Path, children: Children
) -> None:
    child = children("fill", path, 300_000)
    output = child.communicate(timeout=30)[0].split("\n")
    name, count = output[0].split()
    assert name == "StateUnavailable"
    assert output[1] == f"written {int(count) + 1}"
    async with SqlState(path) as store, store.claim("movie") as journal:
        assert set(journal.acks) == set(range(1, int(count) + 2))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
async def test_a_full_file_system_is_named(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(path.parent)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        await _fill_up(path)
    finally:
        subprocess.run(["umount", "-l", str(path.parent)], check=True)


async def _fill_up(path: Path) -> None:
    async with SqlState(path) as store, store.claim("movie") as journal:
        before = await journal.create_record(record())
        await journal.add_part(part(1))
        ballast = _take_all_space(path.with_name("ballast"))
        with pytest.raises(StateUnavailable, match="no space"):
            await _ack_all(journal, range(2, 1000))
        with pytest.raises(StateUnavailable, match="no space"):
            await journal.record_error("x" * 200_000)
        ballast.unlink()
        assert await store.find(key="movie") is not None
        await journal.add_part(part(5000))
    async with SqlState(path) as store, store.claim("movie") as journal:
        assert journal.record is not None
        assert journal.record.created_at == before.created_at
        assert {1, 5000} <= set(journal.acks)


def _take_all_space(ballast: Path) -> Path:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


async def _ack_all(journal: Journal, numbers: range) -> None:
    for number in numbers:
        await journal.add_part(part(number))


async def test_a_database_that_stays_locked_is_a_typed_error(path: Path) -> None:
    await fill(path)
    async with SqlState(path, answer_timeout_s=0.3) as store:
        rival = sqlite3.connect(path, isolation_level=None)
        rival.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable, match="did not answer"):
            await store.find(key="movie")
        rival.execute("ROLLBACK")
        rival.close()
        assert await store.find(key="movie") is not None


async def test_a_lease_outlives_a_database_that_is_briefly_away(path: Path) -> None:
    async with SqlState(path, lease_ttl_s=1.0) as store, store.claim("movie") as journal:
        await journal.create_record(record())
        rival = sqlite3.connect(path, isolation_level=None)
        rival.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(0.6)
        rival.execute("ROLLBACK")
        rival.close()
        await asyncio.sleep(0.6)
        await journal.add_part(part(1))


async def test_a_lease_that_cannot_be_renewed_in_time_is_lost(path: Path) -> None:
    async with SqlState(path, lease_ttl_s=0.4) as store:
        rival = sqlite3.connect(path, isolation_level=None)
        begun = time.monotonic()
        try:
            async with store.claim("movie"):
                rival.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(30)
        except LeaseLost:
            lost_after = time.monotonic() - begun
        finally:
            rival.execute("ROLLBACK")
            rival.close()
    assert 0.3 < lost_after < 2


async def test_a_cancellation_while_a_lease_is_released_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_releasing = asyncio.Event()

    def release(lease: object) -> asyncio.Future[None]:
        is_releasing.set()
        return released

    async def work(store: SqlState) -> str:
        async with store.claim("movie"):
            monkeypatch.setattr(store._thread(), "release", release)
        return "went on"

    async with SqlState(path) as store:
        task = asyncio.create_task(work(store))
        await is_releasing.wait()
        await asyncio.sleep(0.01)
        released.set_result(None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.undo()
