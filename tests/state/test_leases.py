"""Who may write, on stores that processes share."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.state.conftest import Place, SqlitePlace, record
from tests.waiting import is_stopped, until
from uploader.errors import ConfigurationError, LeaseLost, StateUnavailable, UploadLocked
from uploader.state import Journal, PartAck, SqlState, StateStore, leases
from uploader.state.leases import Owner, lock_holder, shared_clock

Children = Callable[..., subprocess.Popen[str]]

STEAL = "UPDATE vodup_lease SET epoch = epoch + 1000 WHERE key = 'movie'"


def lines(child: subprocess.Popen[str], count: int) -> list[str]:
    assert child.stdout is not None
    return [child.stdout.readline().strip() for _ in range(count)]


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()


def owners(directory: Path) -> list[Path]:
    return list(directory.rglob("*.owner"))


async def claimed(store: StateStore) -> bool:
    try:
        async with store.claim("movie"):
            return True
    except UploadLocked:
        return False


async def test_a_lease_is_kept_alive_beyond_its_time(sql_place: Place) -> None:
    async with sql_place.open(lease_ttl_s=0.5) as one, sql_place.open(lease_ttl_s=0.5) as other:
        async with one.claim("movie") as journal:
            await asyncio.sleep(1.2)
            assert not await claimed(other)
            await journal.create_record(record())
        assert await claimed(other)


async def test_a_lost_lease_cancels_the_block_and_comes_out_plain(sql_place: Place) -> None:
    was_cancelled = asyncio.Event()

    async def work(store: StateStore) -> None:
        async with store.claim("movie"):
            sql_place.execute(STEAL)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                was_cancelled.set()
                raise

    async with sql_place.open(lease_ttl_s=0.3) as store:
        with pytest.raises(LeaseLost, match="movie"):
            await work(store)
    assert was_cancelled.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_lost_lease_comes_out_of_the_blocks_own_task_group_plain(sql_place: Place) -> None:
    async def work(store: StateStore) -> None:
        async with store.claim("movie") as journal:
            await journal.create_record(record())
            sql_place.execute(STEAL)
            async with asyncio.TaskGroup() as group:
                group.create_task(journal.add_part(PartAck(1, 1, "E", 1)))

    async with sql_place.open() as store:
        with pytest.raises(LeaseLost):
            await work(store)


async def test_one_lost_lease_does_not_fail_the_writes_of_others(sql_place: Place) -> None:
    async def work(store: StateStore, good: Journal) -> None:
        async with store.claim("movie") as bad:
            await bad.create_record(record())
            sql_place.execute(STEAL)
            async with asyncio.TaskGroup() as group:
                for number in range(1, 11):
                    group.create_task(bad.add_part(PartAck(number, 1, "E", 1)))
                    neighbours.create_task(good.add_part(PartAck(number, 1, "E", 1)))

    async with sql_place.open() as store:
        async with store.claim("good") as good:
            await good.create_record(record("good"))
            async with asyncio.TaskGroup() as neighbours:
                with pytest.raises(LeaseLost):
                    await work(store, good)
        async with store.claim("good") as good:
            assert set(good.acks) == set(range(1, 11))


async def test_a_holder_whose_time_ran_out_continues_if_nobody_took_over(sql_place: Place) -> None:
    async with sql_place.open() as store, store.claim("movie") as journal:
        await journal.create_record(record())
        sql_place.execute("UPDATE vodup_lease SET expires = 1")
        await journal.add_part(PartAck(1, 1, "E", 1))


@pytest.mark.parametrize("jump_s", [3600, -3600])
async def test_a_clock_that_is_set_takes_no_lease_of_a_living_process(
    sqlite_place: SqlitePlace, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    now = time.time
    async with sqlite_place.open() as one, one.claim("movie") as journal:
        await journal.create_record(record())
        monkeypatch.setattr(time, "time", lambda: now() + jump_s)
        async with sqlite_place.open() as other:
            assert not await claimed(other)
            [status] = [status async for status in other.uploads()]
            assert status.lease_expires_at is not None
            assert abs(status.lease_expires_at.timestamp() - time.time()) < 60
        await journal.add_part(PartAck(1, 1, "E", 1))


async def test_a_clock_that_was_set_back_keeps_no_lease_longer(
    sqlite_place: SqlitePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner hangs: it neither renews nor ends."""
    now = time.time
    async with sqlite_place.open() as store:
        owner = Owner.this_process().to_text()
        expires = time.time() + 0.3
        sqlite_place.execute(
            f"INSERT INTO vodup_lease (epoch, key, owner, expires) "  # noqa: S608
            f"VALUES (777, 'movie', '{owner}', {expires})"
        )
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        assert not await claimed(store)
        await asyncio.sleep(0.35)
        assert await claimed(store)


async def test_a_clock_file_that_cannot_be_read_is_replaced(sqlite_place: SqlitePlace) -> None:
    async with sqlite_place.open():
        [clock] = Path(sqlite_place.url).parent.glob("locks/*.clock")
        assert clock.stat().st_mode & 0o777 == 0o600
    clock.write_text("broken")
    async with sqlite_place.open() as store:
        assert await claimed(store)
    assert float(clock.read_text()) > 0


def test_without_a_boot_id_the_wall_clock_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_BOOT_ID", tmp_path / "absent")
    assert shared_clock(tmp_path) is time.time


async def test_a_process_that_is_frozen_while_it_writes_is_named(
    sqlite_place: SqlitePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uploader.state.sqlite._BUSY_TIMEOUT_S", 0.1)
    async with sqlite_place.open() as store:
        program = (
            "import sqlite3, sys; driver = sqlite3.connect(sys.argv[1], isolation_level=None); "
            "driver.execute('BEGIN IMMEDIATE'); print('frozen', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(  # noqa: ASYNC220 - it is started at once
            [sys.executable, "-c", program, sqlite_place.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            assert lines(child, 1) == ["frozen"]
            with pytest.raises(StateUnavailable, match=f"locked by process {child.pid} ") as caught:
                await claimed(store)
            assert f"kill -CONT {child.pid}" in caught.value.next_step
            child.kill()


def test_a_process_that_is_frozen_while_it_opens_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locked"
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('frozen', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert lines(child, 1) == ["frozen"]
        assert lock_holder(path)[0] == f"process {child.pid}"
        child.kill()
    assert lock_holder(path) == ("another process", None)
    monkeypatch.setattr(leases, "_LOCKS", tmp_path / "absent")
    assert lock_holder(path) == ("another process", None)


async def test_a_lease_of_an_unknown_machine_is_waited_for(sql_place: Place) -> None:
    async with sql_place.open() as store:
        far = Owner(host="far", boot="other-boot", pid=1, token="abc").to_text()
        sql_place.execute(
            f"INSERT INTO vodup_lease (epoch, key, owner, expires) "  # noqa: S608
            f"VALUES (777, 'movie', '{far}', 9e9)"
        )
        with pytest.raises(UploadLocked, match="process 1 on far"):
            async with store.claim("movie"):
                pass
        sql_place.execute("UPDATE vodup_lease SET expires = 1")
        assert await claimed(store)


async def test_a_lease_that_could_not_be_released_is_ours_to_take(sql_place: Place) -> None:
    async with sql_place.open() as store:
        async with store.claim("movie"):
            pass
        owner = store._opened.owner.to_text()  # type: ignore[attr-defined]
        sql_place.execute(
            f"INSERT INTO vodup_lease (epoch, key, owner, expires) "  # noqa: S608
            f"VALUES (777, 'movie', '{owner}', 9e9)"
        )
        assert await claimed(store)


async def test_closing_gives_back_what_is_still_claimed(sql_place: Place) -> None:
    async with sql_place.open() as other:
        async with sql_place.open() as store:
            claim = store.claim("movie")
            await claim.__aenter__()
        assert await claimed(other)
        await claim.__aexit__(None, None, None)


async def test_a_killed_owner_is_succeeded_at_once(sql_place: Place, children: Children) -> None:
    child = children("hold", sql_place.url, 30)
    assert lines(child, 1) == ["holding"]
    async with sql_place.open() as store:
        assert not await claimed(store)
        child.kill()
        child.wait()
        async with store.claim("movie") as journal:
            assert set(journal.acks) == {1}


async def test_opening_clears_what_dead_owners_left(
    sql_place: Place, children: Children, tmp_path: Path
) -> None:
    child = children("hold", sql_place.url, 30)
    assert lines(child, 1) == ["holding"]
    child.kill()
    child.wait()
    assert len(owners(tmp_path)) == 1
    async with sql_place.open() as store:
        (status,) = [status async for status in store.uploads()]
        assert status.owner is None
        assert len(owners(tmp_path)) == 1
    assert owners(tmp_path) == []


async def test_a_frozen_owner_is_succeeded_and_writes_nothing_when_it_wakes(
    sql_place: Place, children: Children
) -> None:
    child = children("write_after_freeze", sql_place.url, 0.5)
    assert lines(child, 1) == ["holding"]
    os.kill(child.pid, signal.SIGSTOP)
    await until(lambda: is_stopped(child.pid))
    async with sql_place.open() as store:
        assert not await claimed(store)
        await asyncio.sleep(0.6)
        async with store.claim("movie") as journal:
            before = journal.record
            os.kill(child.pid, signal.SIGCONT)
            tell(child, "write")
            answers = await asyncio.to_thread(lines, child, 5)
            assert sorted(answers) == ["LeaseLost"] * 4 + ["block LeaseLost"]
        async with store.claim("movie") as journal:
            assert journal.record == before
            assert journal.acks == {}
        assert await store.orphans() == []


async def test_of_two_processes_one_wins_every_race(sql_place: Place, children: Children) -> None:
    async with sql_place.open():
        rivals = [children("race", sql_place.url) for _ in range(2)]
        for rival in rivals:
            assert lines(rival, 1) == ["ready"]
        for _ in range(20):
            for rival in rivals:
                tell(rival, "claim")
            assert sorted(lines(rival, 1)[0] for rival in rivals) == ["UploadLocked", "won"]
            for rival in rivals:
                tell(rival, "release")
            assert [lines(rival, 1) for rival in rivals] == [["released"]] * 2


async def test_a_fork_neither_uses_the_store_nor_keeps_its_owner_alive(tmp_path: Path) -> None:
    place = SqlitePlace(lambda **_: SqlState(tmp_path / "p" / "s.db"))
    async with place.open() as other:
        store = await place.open().__aenter__()
        claim = store.claim("movie")
        await claim.__aenter__()
        child = os.fork()
        if child == 0:
            os._exit(_try_in_fork(store))
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        assert not await claimed(other)
        await claim.__aexit__(None, None, None)
        await store.__aexit__()


def _try_in_fork(store: StateStore) -> int:
    """Exit code 42 if the fork holds no lock and gets the error it should."""
    locks = [link for link in _open_files() if "/locks/" in link]
    turn = store.find(key="movie")
    try:
        turn.send(None)
    except ConfigurationError as error:
        return 43 if locks or "fork" not in str(error) else 42
    return 44


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return found
