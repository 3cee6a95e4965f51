"""Lock files and the keeping of a lease, without a store: moment by moment."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from uploader.clock import SystemClock
from uploader.errors import LeaseLost, StateUnavailable
from uploader.state.leases import FileLock, Lease, Owner, OwnerLock, kept_alive

TTL_S = 90.0
LEFT_S = 1000.0


class Times:
    """What the keeping of a lease waited for, and how long it gave each answer. Mutable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pauses: list[float] = []
        self.deadlines: list[float] = []
        real_sleep, real_timeout = asyncio.sleep, asyncio.timeout

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            await real_sleep(0)

        def timeout(seconds: float | None) -> asyncio.Timeout:
            if seconds is not None:
                self.deadlines.append(seconds)
            return real_timeout(seconds)

        def call_later(seconds: float, callback: Callable[[], None]) -> asyncio.Handle:
            self.pauses.append(seconds)
            return loop.call_soon(callback)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", call_later)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(asyncio, "timeout", timeout)


@pytest.fixture
async def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


def held(left_s: float) -> Lease:
    lease = Lease("movie")
    lease.held_until_s = SystemClock().elapsed_s() + left_s
    return lease


async def kept_until_lost(lease: Lease, *answers: bool | Exception) -> LeaseLost:
    """Keep it until the answers of the store take it away."""
    coming = iter(answers)

    async def renew() -> bool:
        answer = next(coming)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(LeaseLost) as caught:
        async with kept_alive(lease, renew, ttl_s=TTL_S):
            await asyncio.Event().wait()
    assert next(coming, None) is None
    return caught.value


async def test_a_lease_is_renewed_every_third_of_its_time(times: Times) -> None:
    lost = await kept_until_lost(held(LEFT_S), True, True, False)
    assert times.pauses == [TTL_S / 3] * 3
    assert times.deadlines == pytest.approx([LEFT_S] * 3, abs=5)
    assert lost.message == "upload 'movie' is no longer ours: another process took it over."


async def test_an_unavailable_store_is_tried_more_often(times: Times) -> None:
    away = StateUnavailable("Away.")
    await kept_until_lost(held(LEFT_S), True, away, TimeoutError(), True, False)
    usual, often = TTL_S / 3, TTL_S / 10
    assert times.pauses == [usual, usual, often, often, usual]


async def test_a_lease_that_is_over_ends_with_the_first_failure(times: Times) -> None:
    lost = await kept_until_lost(held(-1), StateUnavailable("Away.", next_step="Wait."))
    assert times.deadlines == [TTL_S / 3]
    assert lost.message == (
        "upload 'movie' is no longer ours: it could not be renewed for 90 s (Away. Wait.)."
    )


@pytest.mark.parametrize(("left_s", "deadline_s"), [(100.0, 100.0), (10.0, 30.0), (-5.0, 30.0)])
async def test_an_answer_is_due_before_the_lease_is_over(
    times: Times, left_s: float, deadline_s: float
) -> None:
    await kept_until_lost(held(left_s), False)
    assert times.deadlines == pytest.approx([deadline_s], abs=5)


def test_what_was_lost_once_stays_lost_for_its_first_reason() -> None:
    lease = held(LEFT_S)
    assert lease.left_s() == pytest.approx(LEFT_S, abs=5)
    first = lease.lose("one")
    assert lease.lose("other") is first
    assert lease.left_s() == -1.0
    assert (first.message, lease.epoch) == ("upload 'movie' is no longer ours: one.", 0)


# --- lock files -----------------------------------------------------------------------------


def test_a_taken_lock_is_not_waited_for_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(time, "sleep", never)
    with closing(FileLock(tmp_path / "lock")) as one, closing(FileLock(tmp_path / "lock")) as two:
        assert one.take()
        assert not two.take()
        assert not two.take(shared=True)
        assert one.take(shared=True)
        assert two.take(shared=True)
        assert not one.take()


def test_a_lock_is_waited_for_as_long_as_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = 1000.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now += seconds
        slept += 1
        if slept == 50:
            one.close()

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    one = FileLock(tmp_path / "lock")
    assert one.take()
    with closing(FileLock(tmp_path / "lock")) as two:
        assert not two.take(wait_s=0.5)
        assert now == pytest.approx(1000.5, abs=0.03)
        assert two.take(wait_s=60)
        assert slept == 50


@pytest.mark.parametrize("umask", [0o000, 0o777])
@pytest.mark.posix
def test_a_lock_file_is_for_us_alone(tmp_path: Path, umask: int) -> None:
    usual = os.umask(umask)
    try:
        with closing(FileLock(tmp_path / "lock")):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(usual)


def test_a_lock_that_was_closed_says_so(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.close()
    lock.close()
    with pytest.raises(RuntimeError, match=re.compile(r"^the lock file is closed$")):
        lock.take()


def test_a_lock_is_not_handed_on_to_programs(tmp_path: Path) -> None:
    with closing(FileLock(tmp_path / "lock")) as lock:
        assert lock._fd is not None
        assert fcntl.fcntl(lock._fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def owner(token: str, boot: str = "boot-1") -> Owner:
    return Owner(host="h", boot=boot, pid=1, token=token)


def test_an_owner_lives_as_long_as_it_holds_its_file(tmp_path: Path) -> None:
    ours = OwnerLock(tmp_path, "store", owner("ours"))
    theirs = OwnerLock(tmp_path, "store", owner("theirs"))
    elsewhere = OwnerLock(tmp_path, "other", owner("elsewhere"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "store.boot-1.ours.owner",
        "store.boot-1.theirs.owner",
        "other.boot-1.elsewhere.owner",
    }
    assert not ours.is_dead(owner("theirs"))
    assert ours.dead_tokens() == []
    for lock in (theirs, elsewhere):
        lock.leave_file()
        lock.close()
    assert ours.is_dead(owner("theirs"))
    assert not ours.is_dead(owner("theirs", boot="boot-2"))
    assert ours.dead_tokens() == ["theirs"]
    ours.remove("theirs")
    ours.remove("theirs")
    assert ours.dead_tokens() == []
    ours.close()
    assert [path.name for path in tmp_path.iterdir()] == ["other.boot-1.elsewhere.owner"]


def test_a_file_that_cannot_be_removed_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = OwnerLock(tmp_path, "store", owner("ours"))
    (tmp_path / "store.boot-1.ours.owner").unlink()
    (tmp_path / "store.boot-1.ours.owner").mkdir()
    lock.close()
    with pytest.raises(RuntimeError, match="closed"):
        lock._lock.take()


def test_litter_of_a_day_is_swept(tmp_path: Path) -> None:
    ours = OwnerLock(tmp_path, "store", owner("ours"))
    now = time.time()
    ages = {"a.owner": 86_500, "b.new": 86_500, "c.owner": 86_300, "d.new": 86_300, "e.db": 90_000}
    for name, age_s in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age_s,) * 2)
    ours.remove_old_files()
    ours.close()
    assert {path.name for path in tmp_path.iterdir()} == {"c.owner", "d.new", "e.db"}


def test_owners_differ_by_host_boot_process_and_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text(" 1b-2c \n")
    monkeypatch.setattr(socket, "gethostname", lambda: "a/b")
    first, second = (Owner.this_process(boot_id=tmp_path / "boot_id") for _ in range(2))
    assert (first.host, first.boot, first.pid) == ("a-b", "1b-2c", os.getpid())
    assert len(first.token) == 32
    assert first.token != second.token
    assert Owner.parse(first.to_text()) == first
    assert first.to_text() == f"a-b/1b-2c/{os.getpid()}/{first.token}"
