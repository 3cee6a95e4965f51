"""What hardly ever happens to a state store, and what it says then."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from tests.state.conftest import Place, SqlitePlace, record
from uploader.clock import SystemClock
from uploader.errors import (
    ConfigurationError,
    LeaseLost,
    StateUnavailable,
    UnsafePath,
    UploadLocked,
)
from uploader.protocol.grants import UploadTarget
from uploader.state import Journal, MemoryState, PartAck, Phase, SqlState, StateStore, files
from uploader.state import transactions as tx
from uploader.state.commits import Failure, GroupCommit
from uploader.state.leases import FileLock, Lease, Owner, OwnerLock, kept_alive
from uploader.state.locations import PostgresUrl, SqliteFile, state_directory
from uploader.state.sqlite import open_file
from uploader.state.transactions import Connection
from uploader.threads import Worker

Children = Callable[..., subprocess.Popen[str]]

PART = PartAck(1, 8 << 20, "ETAG-1", 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "state.db"


async def fill(path: Path, **changes: Any) -> None:
    """A store with one upload and one ack."""
    async with SqlState(path) as store, store.claim("movie") as journal:
        await journal.create_record(record(**changes))
        await journal.add_part(PART)


@contextmanager
def locked_by_a_rival(path: Path) -> Iterator[None]:
    """Another process writes, and does not come to an end."""
    rival = sqlite3.connect(path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        rival.execute("ROLLBACK")
        rival.close()


def execute(path: Path, statement: str) -> None:
    SqlitePlace(cast("Any", None), url=str(path)).execute(statement)


# --- opening ---------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"lease_ttl_s": 0}, {"answer_timeout_s": 0}])
def test_a_time_of_nothing_is_refused(path: Path, limits: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        SqlState(path, **limits)


async def test_an_opening_that_waits_too_long_is_a_typed_error(path: Path) -> None:
    await fill(path)
    opening = FileLock(path.parent / "locks" / "state.db.opening")
    assert opening.take()
    with pytest.raises(StateUnavailable, match=r"did not answer within 0\.2 s"):
        async with SqlState(path, answer_timeout_s=0.2):
            pass
    opening.close()
    async with SqlState(path) as store:
        assert await store.find(key="movie") is not None


def test_a_file_that_somebody_else_opens_for_ever_is_a_typed_error(path: Path) -> None:
    files.secure_directory(path.parent / "locks")
    opening = FileLock(path.parent / "locks" / "state.db.opening")
    assert opening.take()
    place = SqliteFile(path, is_surely_ours=True)
    with pytest.raises(StateUnavailable, match="opened by another process for too long"):
        open_file(place, print, wait_s=0.05)
    opening.close()


async def test_a_planted_lock_file_is_not_followed(path: Path) -> None:
    await fill(path)
    lock = path.parent / "locks" / "state.db.opening"
    lock.unlink()
    lock.symlink_to(path.parent / "elsewhere")
    with pytest.raises(UnsafePath, match=r"state\.db\.opening is a link"):
        async with SqlState(path):
            pass
    assert not (path.parent / "elsewhere").exists()


async def test_an_owner_that_cannot_have_a_lock_file_is_a_typed_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless = Owner(host="h", boot="b", pid=1, token="no/such/folder")
    monkeypatch.setattr(Owner, "this_process", lambda: nameless)
    with pytest.raises(StateUnavailable) as caught:
        async with SqlState(path):
            pass
    no_file = os.strerror(errno.ENOENT)
    assert caught.value.message == f"no lock file in {path.parent / 'locks'}: {no_file}."


async def test_a_mark_of_suspicion_that_cannot_be_removed_is_a_typed_error(path: Path) -> None:
    await fill(path)
    path.with_name("state.db.suspect").mkdir()
    with pytest.raises(StateUnavailable, match="cannot be read"):
        async with SqlState(path):
            pass


async def test_damage_that_cannot_be_put_aside_is_a_typed_error(path: Path) -> None:
    await fill(path)
    for suffix in ("", "-wal"):
        path.with_name(f"state.db{suffix}").write_bytes(b"not a database" * 1000)
    path.with_name("state.db.corrupt-1-wal").mkdir()
    with pytest.raises(StateUnavailable, match="damaged and cannot be put aside"):
        async with SqlState(path):
            pass


@pytest.mark.parametrize(
    "damage", ["ALTER TABLE vodup_part DROP COLUMN etag", "DELETE FROM vodup_store"]
)
async def test_a_database_that_is_whole_but_not_ours_any_more_is_put_aside(
    path: Path, damage: str
) -> None:
    await fill(path)
    execute(path, damage)
    async with SqlState(path) as store:
        assert await store.find(key="movie") is None
        assert any("corrupt-1" in notice for notice in store.notices)


async def test_a_disk_that_is_full_from_the_beginning_is_named(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(StateUnavailable, match="no space"):
            async with SqlState(path):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    async with SqlState(path) as store:
        assert await store.find(key="movie") is None


# --- closing ----------------------------------------------------------------------------


async def test_closing_twice_is_closing_once(path: Path) -> None:
    store = SqlState(path)
    async with store:
        pass
    await store.__aexit__(None, None, None)


async def test_a_claim_that_cannot_be_given_back_does_not_hide_what_was_done(path: Path) -> None:
    async with SqlState(path, answer_timeout_s=0.2) as store:
        async with store.claim("movie") as journal:
            await journal.create_record(record())
            rival = sqlite3.connect(path, isolation_level=None)
            rival.execute("BEGIN IMMEDIATE")
        rival.execute("ROLLBACK")
        rival.close()
        assert "could not be released" in store.notices[0]
        async with store.claim("movie") as journal:
            assert journal.record is not None


async def test_closing_a_database_that_does_not_answer_ends_in_time(path: Path) -> None:
    store = await SqlState(path, answer_timeout_s=0.2).__aenter__()
    claim = store.claim("movie")
    await claim.__aenter__()
    with locked_by_a_rival(path), pytest.raises(StateUnavailable, match="did not answer"):
        await store.__aexit__(None, None, None)
    await claim.__aexit__(None, None, None)


async def test_leases_that_cannot_be_given_back_are_judged_by_the_lock_file(path: Path) -> None:
    store = await SqlState(path).__aenter__()
    claim = store.claim("movie")
    await claim.__aenter__()
    execute(path, "ALTER TABLE vodup_lease RENAME TO elsewhere")
    await store.__aexit__(None, None, None)
    await claim.__aexit__(None, None, None)
    assert "leases could not be released" in store.notices[0]
    execute(path, "ALTER TABLE elsewhere RENAME TO vodup_lease")
    async with SqlState(path) as other, other.claim("movie"):
        pass  # at once: the lock file is there, and nobody holds it


async def test_nothing_is_written_after_closing(path: Path) -> None:
    async with SqlState(path) as store:
        opened = store._opened
    assert opened is not None
    with pytest.raises(StateUnavailable, match="the state is closed"):
        opened.transact(lambda connection: None)


def test_after_a_write_that_the_disk_lost_nothing_is_written(path: Path) -> None:
    database = open_file(SqliteFile(path, is_surely_ours=True), print)
    refusal = sqlite3.OperationalError("disk I/O error")
    refusal.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    later: list[object] = []

    def losing(_: object) -> None:
        raise refusal

    for work in (losing, later.append):
        with pytest.raises(StateUnavailable, match="the disk did not keep"):
            database.transact(work)
    database.close()
    assert not later
    assert path.with_name("state.db.suspect").exists()


def test_a_database_is_shown_without_its_password() -> None:
    place = PostgresUrl("postgresql://me:canary@h/db")
    assert "canary" not in f"{place!r} {place}"


# --- damage while working ---------------------------------------------------------------


async def test_a_damaged_record_is_left_out_of_the_list(path: Path) -> None:
    await fill(path)
    async with SqlState(path) as store:
        async with store.claim("other") as journal:
            await journal.create_record(record("other"))
        execute(path, "UPDATE vodup_upload SET size = 'many' WHERE key = 'movie'")
        assert [status.record.key async for status in store.uploads()] == ["other"]
        (notice,) = store.notices
        assert "movie" in notice


async def test_a_damaged_record_under_way_is_forgotten_without_its_orphan(path: Path) -> None:
    await fill(path, phase=Phase.UPLOADING, upload_id="u-1")
    execute(path, "UPDATE vodup_upload SET size = 'many'")
    async with SqlState(path) as store:
        await store.forget("movie")
        assert await store.orphans() == []
        assert await store.find(key="movie") is None


async def test_a_damaged_orphan_is_left_out(path: Path) -> None:
    await fill(path, phase=Phase.UPLOADING, upload_id="u-1", **AT_OSS)
    async with SqlState(path) as store:
        await store.forget("movie")
        assert len(await store.orphans()) == 1
        execute(path, "UPDATE vodup_orphan SET endpoint = x'ff'")
        assert await store.orphans() == []
        assert "orphan is damaged" in store.notices[0]


AT_OSS = {"video_id": "v-1", "endpoint": "https://e", "bucket": "b", "object_key": "k"}


async def test_an_upload_that_is_an_orphan_already_is_recorded_once(sql_place: Place) -> None:
    async with sql_place.open() as store:
        async with store.claim("movie") as journal:
            await journal.create_record(record(phase=Phase.UPLOADING, upload_id="u-1", **AT_OSS))
            await journal.restart()
            await journal.set_upload_id("u-1", plan="v1 8M")
            await journal.restart()
        assert [orphan.upload_id for orphan in await store.orphans()] == ["u-1"]


async def test_a_record_that_is_gone_is_not_written(sql_place: Place) -> None:
    async with sql_place.open() as store, store.claim("movie") as journal:
        await journal.create_record(record())
        sql_place.execute("DELETE FROM vodup_upload")
        with pytest.raises(StateUnavailable, match="is gone from the database"):
            await journal.record_error("x")
    target = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "bucket", "sv/a.mp4")
    async with sql_place.open() as store, store.claim("film") as journal:
        await journal.create_record(record(key="film", phase=Phase.NEW))
        sql_place.execute("DELETE FROM vodup_upload")
        with pytest.raises(StateUnavailable, match="is gone from the database"):
            await journal.set_target("v-1", target, region=None, plan=None, one_request=False)


async def test_a_new_record_replaces_none_once_the_lease_is_lost(sql_place: Place) -> None:
    async def work(store: StateStore) -> None:
        async with store.claim("movie") as journal:
            sql_place.execute("UPDATE vodup_lease SET epoch = epoch + 1000")
            await journal.create_record(record(source="another"))

    async with sql_place.open() as store:
        async with store.claim("movie") as journal:
            await journal.create_record(record())
            await journal.abort()
        with pytest.raises(LeaseLost):
            await work(store)
        found = await store.find(key="movie")
        assert found is not None
        assert (found.phase, found.source) == (Phase.ABORTED, record().source)


async def test_epochs_are_never_used_again(sql_place: Place) -> None:
    async with sql_place.open() as store:
        epochs = []
        for key in ("movie", "other", "movie"):
            async with store.claim(key) as journal:
                epochs.append(journal._claim._lease.epoch)  # type: ignore[attr-defined]
            await store.forget(key)
        assert epochs == sorted(set(epochs))


# --- leases -----------------------------------------------------------------------------


def test_a_lock_is_a_regular_file_and_not_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "link"):
        with pytest.raises(UnsafePath):
            FileLock(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_a_closed_lock_is_not_taken(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.close()
    lock.close()
    with pytest.raises(RuntimeError, match="closed"):
        lock.take()


@pytest.mark.parametrize("text", ["", "a/b/c", "a/b/c/d", "a/b/1/d/e", "a/b/1/-", None, 7])
def test_what_names_no_owner_is_none(text: object) -> None:
    assert Owner.parse(text) is None


def test_an_owner_is_read_back() -> None:
    owner = Owner.this_process()
    assert Owner.parse(owner.to_text()) == owner
    assert str(owner) == f"process {os.getpid()} on {owner.host}"


def test_a_machine_that_does_not_tell_its_boot_has_none(tmp_path: Path) -> None:
    assert Owner.this_process(boot_id=tmp_path / "missing").boot == ""


def test_an_owner_without_a_lock_file_counts_as_alive(tmp_path: Path) -> None:
    owner = Owner.this_process()
    lock = OwnerLock(tmp_path, "store", owner)
    unknown = Owner(owner.host, owner.boot, owner.pid, "unknown")
    assert not lock.is_dead(unknown)
    assert not lock.is_dead(owner)
    lock.close()


def test_litter_is_swept_once_it_is_old(tmp_path: Path) -> None:
    lock = OwnerLock(tmp_path, "store", Owner.this_process())
    old, young, held = (tmp_path / f"{name}.owner" for name in ("old", "young", "held"))
    holder = FileLock(held)
    assert holder.take()
    for file in (old, young, held):
        file.touch()
    for file in (old, held):
        os.utime(file, (time.time() - 90_000,) * 2)
    lock.remove_old_files()
    assert (old.exists(), young.exists(), held.exists()) == (False, True, True)
    holder.close()
    lock.close()


async def test_locks_that_cannot_be_looked_through_keep_nobody_from_uploading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: OwnerLock) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(OwnerLock, "dead_tokens", refuse)
    async with SqlState(tmp_path / "state" / "state.db") as store:
        async with store.claim("movie") as journal:
            await journal.create_record(record())
        assert "stay where they are: Too many open files" in store.notices[0]


async def test_a_lease_of_nobody_we_can_name_is_waited_for(sql_place: Place) -> None:
    async with sql_place.open() as store:
        async with store.claim("movie") as journal:
            await journal.create_record(record())
        sql_place.execute(
            "INSERT INTO vodup_lease (epoch, key, owner, expires) "
            "VALUES (999, 'movie', 'nobody', 9e9)"
        )
        with pytest.raises(UploadLocked, match="by another process"):
            async with store.claim("movie"):
                pass
        (status,) = [status async for status in store.uploads()]
        assert status.owner == "nobody"


async def test_an_owner_killed_while_we_look_is_not_named_any_more(
    sql_place: Place, children: Children
) -> None:
    async with sql_place.open() as store:
        child = children("hold", sql_place.url, 30)
        assert child.stdout is not None
        assert (await asyncio.to_thread(child.stdout.readline)).strip() == "holding"
        (status,) = [status async for status in store.uploads()]
        assert status.owner is not None
        child.send_signal(signal.SIGKILL)
        child.wait()
        (status,) = [status async for status in store.uploads()]
        assert (status.owner, status.lease_expires_at) == (None, None)


def freeze(journal: Journal) -> None:
    """As after a long freeze: half of its life is over, and nobody has renewed it."""
    journal._claim._lease.held_until_s -= 20  # type: ignore[attr-defined]
    assert not journal.is_certainly_ours


async def test_a_claim_in_doubt_that_is_ours_is_certain_again(sql_place: Place) -> None:
    async with sql_place.open() as store, store.claim("movie") as journal:
        freeze(journal)
        await journal.confirm()
        assert journal.is_certainly_ours


async def test_a_claim_in_doubt_that_is_not_ours_is_lost(sql_place: Place) -> None:
    async def work(store: StateStore) -> None:
        async with store.claim("movie") as journal:
            freeze(journal)
            sql_place.execute("UPDATE vodup_lease SET epoch = epoch + 1000")
            await journal.confirm()

    async with sql_place.open() as store:
        with pytest.raises(LeaseLost):
            await work(store)


async def test_a_claim_in_memory_ends_with_its_block() -> None:
    async with MemoryState() as store:
        async with store.claim("movie") as journal:
            pass
        assert not journal.is_certainly_ours
        with pytest.raises(LeaseLost):
            await journal.confirm()


async def test_a_lease_that_is_renewed_while_it_is_taken_over_stays(pg: Place) -> None:
    """Its owner looked dead, and writes a new term between our look and our deletion."""

    def is_dead(epoch: int, owner: str) -> bool:
        pg.execute("UPDATE vodup_lease SET expires = expires + 1 WHERE key = 'movie'")
        return True

    async with pg.open() as one, one.claim("movie"):
        other = cast("SqlState", one)
        owner = Owner.this_process().to_text()
        take = partial(tx.take, key="movie", owner=owner, ttl_s=30, is_dead=is_dead)
        with pytest.raises(UploadLocked):
            await other._thread().write(take)


async def test_a_lease_that_another_process_takes_at_the_same_moment_is_not_ours(
    sql_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody held it when we looked; the second attempt finds it taken."""

    def take(connection: Connection) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(connection, "rows", lambda query, values: [])
            tx.take(connection, "movie", "o", 30, lambda epoch, owner: False)

    async with sql_place.open() as one, one.claim("movie"):
        with pytest.raises(UploadLocked, match="by another process"):
            await cast("SqlState", one)._thread().write(take)


async def test_a_renewal_that_fails_once_costs_nothing() -> None:
    answers = iter([StateUnavailable("away."), None, None])
    is_enough = asyncio.Event()

    async def renew() -> bool:
        if (failure := next(answers, None)) is not None:
            raise failure
        is_enough.set()
        return True

    lease = Lease("movie")
    lease.held_until_s = SystemClock().elapsed_s() + 0.3
    async with kept_alive(lease, renew, ttl_s=0.3):
        await is_enough.wait()
    assert lease.lost is None


# --- the thread -------------------------------------------------------------------------


async def test_a_failed_commit_fails_everyone_who_still_waits_for_it() -> None:
    worker, gate = Worker("test"), threading.Event()

    def commit(writes: object) -> list[Failure]:
        gate.wait(5)
        raise StateUnavailable("broken.")

    commits: GroupCommit = GroupCommit(worker, commit, lambda: StateUnavailable("no answer."), 10)
    gone, waiting = commits.write(1), commits.write(2)
    gone.cancel()
    gate.set()
    with pytest.raises(StateUnavailable, match="broken"):
        await waiting
    worker.stop()
    worker.join(5)


# --- the file ---------------------------------------------------------------------------


def test_a_place_that_was_deleted_under_us_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StateUnavailable, match="cannot be used"):
        files.secure_directory(Path("a", "b"))


def test_a_user_without_a_home_has_no_folder_for_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home(app: str) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_state_dir", no_home)
    with pytest.raises(ConfigurationError, match="no home folder"):
        state_directory()


def test_a_machine_without_a_table_of_mounts_is_taken_for_local(tmp_path: Path) -> None:
    files.refuse_network_mount(tmp_path, mounts=tmp_path / "missing")
    (tmp_path / "empty").touch()
    files.refuse_network_mount(tmp_path, mounts=tmp_path / "empty")


def test_a_file_in_no_folder_cannot_be_created(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="cannot be created"):
        files.create_private(tmp_path / "missing" / "state.db")


def test_what_sqlite_cannot_even_open_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        files.inspect(tmp_path, newest_version=1)


@pytest.mark.parametrize(
    ("error", "is_damage"),
    [
        (sqlite3.DatabaseError("file is not a database"), True),
        (sqlite3.OperationalError("Could not decode to UTF-8 column"), True),
        (sqlite3.OperationalError("unable to open"), False),
    ],
)
def test_an_error_without_a_code_is_judged_by_its_kind(
    error: sqlite3.Error, is_damage: bool
) -> None:
    assert files.is_damage(error) is is_damage


def test_suspicion_that_cannot_be_recorded_is_no_error(tmp_path: Path) -> None:
    files.suspect(tmp_path / "missing" / "state.db")
    assert not files.is_suspect(tmp_path / "missing" / "state.db")
