"""Opening a database, and its errors in our words: each to the letter, with its next step."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from uploader.errors import (
    ConfigurationError,
    StateUnavailable,
    UnsafePath,
    UnsupportedState,
    VodupError,
)
from uploader.state import files, queries, sqlite
from uploader.state.leases import FileLock
from uploader.state.locations import SqliteFile
from uploader.state.queries import SCHEMA_VERSION, Query
from uploader.state.sqlite import SqliteDatabase, open_file
from uploader.state.transactions import Connection

AGAIN = StateUnavailable.default_next_step


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "state.db"


@pytest.fixture
def opened(path: Path) -> Iterator[SqliteDatabase]:
    with closing(opening(path)) as database:
        yield database


def opening(
    path: Path, *, notices: list[str] | None = None, is_ours: bool = True
) -> SqliteDatabase:
    place = SqliteFile(path, is_surely_ours=is_ours)
    return open_file(place, ([] if notices is None else notices).append, wait_s=0.05)


def refusal(code: int | None, text: str = "oh dear") -> sqlite3.OperationalError:
    """What SQLite raises."""
    error = sqlite3.OperationalError(text)
    if code is not None:
        error.sqlite_errorcode = code
    return error


def raising(error: Exception) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        raise error

    return work


def pragma(name: str) -> Callable[[Connection], Any]:
    return lambda connection: connection.rows(Query(f"PRAGMA {name}"))[0][0]


def store_row(connection: Connection) -> tuple[Any, ...]:
    """The schema version and the id of the store."""
    return connection.rows(queries.STORE)[0]


def said(call: Callable[[], object]) -> VodupError:
    with pytest.raises(VodupError) as caught:
        call()
    return caught.value


def assert_says(
    error: VodupError, kind: type[VodupError], message: str, next_step: str = ""
) -> None:
    assert type(error) is kind
    assert (error.message, error.next_step) == (message, next_step or kind.default_next_step)


# --- errors while working -------------------------------------------------------------------

LOCKED = "state file {path} is locked by another process for more than 5 s."
CODES = {
    sqlite3.SQLITE_FULL: "there is no space left at state file {path}.",
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_BUSY_SNAPSHOT: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_READONLY: "state file {path} may not be written.",
    sqlite3.SQLITE_READONLY_DBMOVED: "state file {path} may not be written.",
    sqlite3.SQLITE_PERM: "state file {path} may not be written.",
    sqlite3.SQLITE_CANTOPEN: "state file {path} cannot be opened.",
    sqlite3.SQLITE_IOERR: "state file {path} cannot be read or written (disk error or no space).",
    sqlite3.SQLITE_IOERR_WRITE: (
        "state file {path} cannot be read or written (disk error or no space)."
    ),
}


@pytest.mark.parametrize("code", CODES)
def test_what_sqlite_refuses(opened: SqliteDatabase, path: Path, code: int) -> None:
    error = said(lambda: opened.transact(raising(refusal(code))))
    assert_says(error, StateUnavailable, CODES[code].format(path=path))
    assert not files.is_suspect(path)
    assert isinstance(error.__cause__, sqlite3.OperationalError)


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_VTAB, sqlite3.SQLITE_NOTADB]
)
def test_damage_that_is_found_while_working(opened: SqliteDatabase, path: Path, code: int) -> None:
    assert_says(
        said(lambda: opened.transact(raising(refusal(code)))),
        StateUnavailable,
        f"state file {path} is damaged (oh dear).",
        "Run the same command again: the damaged file is put aside then.",
    )
    assert files.is_suspect(path)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC])
def test_a_disk_that_does_not_keep_what_is_written(
    opened: SqliteDatabase, path: Path, code: int
) -> None:
    for work in (raising(refusal(code)), lambda connection: None):
        assert_says(
            said(lambda work=work: opened.transact(work)),  # type: ignore[misc]
            StateUnavailable,
            f"the disk did not keep what was written to state file {path}.",
            "Check the disk, then run the same command again to rewrite the file.",
        )
    assert files.is_suspect(path)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (refusal(None, "odd\n  " + "x" * 400), f"OperationalError: odd {'x' * 296}"),
        (refusal(sqlite3.SQLITE_ERROR), "OperationalError: oh dear"),
        (sqlite3.ProgrammingError("no such thing"), "ProgrammingError: no such thing"),
    ],
)
def test_what_has_no_sentence_of_its_own(
    opened: SqliteDatabase, path: Path, failure: Exception, reason: str
) -> None:
    assert_says(
        said(lambda: opened.transact(raising(failure))),
        StateUnavailable,
        f"state file {path} cannot be used ({reason}).",
        "Make it reachable, then run the same command again.",
    )


# --- connections in doubt -------------------------------------------------------------------


class _Stubborn:
    """A driver's connection in mid-transaction that can neither roll back nor close."""

    in_transaction = True

    def __init__(self, real: sqlite3.Connection) -> None:
        self.execute = real.execute

    def rollback(self) -> None:
        raise refusal(sqlite3.SQLITE_IOERR)

    close = rollback


def test_a_connection_that_lives_is_kept_after_a_failure(opened: SqliteDatabase) -> None:
    seen = [opened.transact(lambda connection: connection)]
    with suppress(StateUnavailable):
        opened.transact(raising(refusal(sqlite3.SQLITE_BUSY)))
    seen.append(opened.transact(lambda connection: connection))
    assert seen[0] is seen[1]


def test_a_connection_that_cannot_roll_back_is_replaced(opened: SqliteDatabase) -> None:
    connection: Any = opened._connection
    with closing(connection.driver) as real:
        connection.driver = _Stubborn(real)
        error = said(lambda: opened.transact(raising(refusal(sqlite3.SQLITE_FULL))))
        assert "no space left" in error.message
    assert opened.transact(lambda connection: connection) is not connection
    assert opened.transact(pragma("synchronous")) == 2


def test_a_connection_that_cannot_be_closed_is_a_typed_error(path: Path) -> None:
    database = opening(path)
    connection: Any = database._connection
    with closing(connection.driver) as real:
        connection.driver = _Stubborn(real)
        assert "cannot be read or written" in said(database.close).message
    with closing(FileLock(path.parent / "locks" / "state.db.in-use")) as in_use:
        assert in_use.take()


def test_what_failed_is_not_written(opened: SqliteDatabase) -> None:
    def half(connection: Connection) -> None:
        connection.run(Query("UPDATE vodup_store SET store_id = 'other'"))
        raise refusal(sqlite3.SQLITE_FULL)

    before = opened.transact(store_row)
    with pytest.raises(StateUnavailable):
        opened.transact(half)
    assert opened.transact(store_row) == before


def test_what_is_flushed_waits_for_the_disk_and_the_rest_does_not(opened: SqliteDatabase) -> None:
    full, normal = 2, 1
    synchronous = pragma("synchronous")
    assert opened.transact(synchronous) == full
    assert opened.transact(synchronous, is_flushed=False) == normal
    assert opened.transact(synchronous, is_flushed=False) == normal
    assert opened.transact(synchronous) == full


@pytest.mark.parametrize(("is_flushed", "level"), [(True, 2), (False, 1)])
def test_a_new_connection_waits_for_the_disk_as_the_old_one_did(
    opened: SqliteDatabase, is_flushed: bool, level: int
) -> None:
    opened.transact(lambda connection: None, is_flushed=not is_flushed)
    opened.disconnect()
    assert opened.transact(pragma("synchronous"), is_flushed=is_flushed) == level


def test_a_journal_that_could_lose_the_file_is_refused() -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,  # its journal is always "memory"
        pytest.raises(sqlite3.OperationalError, match="stays 'memory' instead of 'wal'"),
    ):
        sqlite._configure(connection)


# --- opening a file -------------------------------------------------------------------------


def test_how_sqlite_is_set_up(opened: SqliteDatabase) -> None:
    settings = {"journal_mode": "wal", "busy_timeout": 5000, "application_id": 0x766F6475}
    assert {name: opened.transact(pragma(name)) for name in settings} == settings
    version, store_id = opened.transact(store_row)
    assert (version, store_id) == (SCHEMA_VERSION, opened.store_id)
    assert len(store_id) == 32


def test_a_transaction_has_its_place_from_its_first_moment(
    opened: SqliteDatabase, path: Path
) -> None:
    """A rival cannot even begin to write while ours has only read."""

    def reading(connection: Connection) -> None:
        store_row(connection)
        with (
            closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as rival,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            rival.execute("BEGIN IMMEDIATE")

    opened.transact(reading)


def test_text_that_is_no_utf8_is_read_all_the_same(opened: SqliteDatabase) -> None:
    [[read]] = opened.transact(lambda c: c.rows(Query("SELECT CAST(x'61ff' AS TEXT)")))
    assert read == "a\udcff"


def test_opening_twice_keeps_the_store(path: Path) -> None:
    with closing(opening(path)) as first, closing(opening(path)) as second:
        assert first.store_id == second.store_id
    clock, *locks = sorted(p.name for p in (path.parent / "locks").iterdir())
    assert clock.endswith(".clock")
    assert locks == ["state.db.in-use", "state.db.opening"]


def test_a_file_counts_as_open_until_it_is_closed(path: Path) -> None:
    lock = path.parent / "locks" / "state.db.in-use"
    with closing(opening(path)), closing(FileLock(lock)) as in_use:
        assert not in_use.take()
        assert in_use.take(shared=True)
    with closing(FileLock(lock)) as in_use:
        assert in_use.take()


def test_a_file_somebody_else_is_opening(path: Path) -> None:
    files.secure_directory(path.parent / "locks")
    with closing(FileLock(path.parent / "locks" / "state.db.opening")) as lock:
        assert lock.take()
        error = said(lambda: opening(path))
    place = SqliteFile(path, is_surely_ours=True)
    assert_says(
        error, StateUnavailable, f"{place} is being opened by another process for too long."
    )


def test_a_lock_file_that_is_no_file(path: Path) -> None:
    files.secure_directory(path.parent / "locks")
    lock = path.parent / "locks" / "state.db.opening"
    lock.symlink_to(path)
    assert_says(
        said(lambda: opening(path)),
        UnsafePath,
        f"{lock} is a link, not a regular file, or belongs to another user.",
        "Find out who created it; use another folder until then.",
    )


def film(path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(b"\0\0\0\x20ftypisom" * 1000)


def test_a_film_is_no_state_file(path: Path) -> None:
    film(path)
    assert_says(
        said(lambda: opening(path, is_ours=False)),
        ConfigurationError,
        f"{path} is not a state file (file is not a database).",
        "Name another file with --state.",
    )


def test_a_damaged_store_is_set_aside_and_reported(path: Path) -> None:
    film(path)
    notices: list[str] = []
    with closing(opening(path, notices=notices)) as database:
        assert database.transact(store_row) == (SCHEMA_VERSION, database.store_id)
    assert notices == [
        f"state file {path} was damaged (file is not a database); it is kept as "
        f"{path}.corrupt-1, a new one started"
    ]
    assert path.with_name("state.db.corrupt-1").stat().st_size == 12_000
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_store_with_another_schema_is_set_aside_and_reported(path: Path) -> None:
    opening(path).close()
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("ALTER TABLE vodup_part DROP COLUMN etag")
    notices: list[str] = []
    opening(path, notices=notices).close()
    assert notices == [
        f"state file {path} was damaged (no such column: etag); it is kept as "
        f"{path}.corrupt-1, a new one started"
    ]


def test_what_was_ours_once_may_be_put_aside_later(path: Path) -> None:
    opening(path).close()
    path.with_name("state.db-wal").unlink(missing_ok=True)
    film(path)
    notices: list[str] = []
    opening(path, notices=notices, is_ours=False).close()
    assert len(notices) == 1


def test_a_damaged_file_that_another_process_has_open(path: Path) -> None:
    film(path)
    files.secure_directory(path.parent / "locks")
    with closing(FileLock(path.parent / "locks" / "state.db.in-use")) as lock:
        assert lock.take(shared=True)
        error = said(lambda: opening(path))
    assert_says(
        error,
        StateUnavailable,
        f"state file {path} is damaged (file is not a database), and another process has it open.",
        "Let that process end, then run the same command again.",
    )


def test_a_damaged_file_that_cannot_be_put_aside(path: Path) -> None:
    film(path)
    path.with_name("state.db-wal").write_bytes(b"")
    path.with_name("state.db.corrupt-1-wal").mkdir()
    assert_says(
        said(lambda: opening(path)),
        StateUnavailable,
        f"state file {path} is damaged and cannot be put aside: {os.strerror(errno.EISDIR)}.",
    )


def test_a_file_that_cannot_be_looked_at(path: Path) -> None:
    opening(path).close()
    path.with_name("state.db.suspect").mkdir()
    error = said(lambda: opening(path))
    assert isinstance(error, StateUnavailable)
    assert error.message.startswith(f"state file {path} cannot be read ([Errno ")


def test_a_failed_opening_gives_its_locks_back(path: Path) -> None:
    opening(path).close()
    suspect = path.with_name("state.db.suspect")
    suspect.mkdir()
    said(lambda: opening(path))
    suspect.rmdir()
    opening(path).close()


# --- files and folders ----------------------------------------------------------------------


def test_a_folder_below_a_file(path: Path) -> None:
    path.parent.write_bytes(b"")
    assert_says(
        said(lambda: files.secure_directory(path.parent / "below")),
        StateUnavailable,
        f"the state directory {path.parent / 'below'} cannot be used: "
        f"{os.strerror(errno.ENOTDIR)}.",
        "Correct its permissions, or choose another place with --state.",
    )


@pytest.mark.posix
def test_a_folder_of_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(mode=0o700)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert_says(
        said(lambda: files.secure_directory(path.parent)),
        UnsafePath,
        f"the state directory {path.parent} belongs to user id {mine}.",
        "Choose a directory of your own with --state.",
    )


@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.posix
def test_a_folder_others_may_write_into(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    assert_says(
        said(lambda: files.secure_directory(path.parent)),
        UnsafePath,
        f"others may write into the state directory {path.parent}.",
        f"Run `chmod go-w {path.parent}`, or choose another place with --state.",
    )


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_others_may_read_will_do(path: Path, mode: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    files.secure_directory(path.parent)
    assert path.parent.stat().st_mode & 0o777 == mode


def test_folders_that_are_missing_are_made_for_us_alone(path: Path) -> None:
    deep = path.parent / "a" / "b"
    files.secure_directory(deep)
    for made in (deep, deep.parent, path.parent):
        assert made.stat().st_mode & 0o777 == 0o700


def test_a_folder_somebody_makes_meanwhile_will_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(self: Path, mode: int = 0o777) -> None:
        os.mkdir(self, 0o750)
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", too_late)
    files.secure_directory(path.parent)
    assert path.parent.stat().st_mode & 0o777 == 0o750


def mounted(tmp_path: Path, kind: str, *, device: str | None = None) -> Path:
    """A table of mounts in which the folder of the test is on such a file system."""
    number = tmp_path.stat().st_dev
    ours = f"{os.major(number)}:{os.minor(number)}"
    table = tmp_path / "mountinfo"
    table.write_text(
        f"20 1 99:99 / /proc rw - proc proc rw\n"
        f"21 1 {device or ours} / / rw,relatime shared:1 - {kind} /dev/x rw\n"
    )
    return table


def test_a_network_file_system(tmp_path: Path) -> None:
    assert_says(
        said(lambda: files.refuse_network_mount(tmp_path, mounts=mounted(tmp_path, "nfs4"))),
        ConfigurationError,
        f"the state directory {tmp_path} is on a network file system (nfs4), where the locks "
        "SQLite needs do not hold.",
        "Put it on a local disk with --state, or share it as postgresql://...",
    )


def test_file_systems_that_are_not_known_to_be_far_will_do(tmp_path: Path) -> None:
    for table in (
        mounted(tmp_path, "ext4"),
        mounted(tmp_path, "nfs", device="98:98"),
        tmp_path / "no such table",
    ):
        files.refuse_network_mount(tmp_path, mounts=table)


def test_a_table_of_mounts_may_name_anything(tmp_path: Path) -> None:
    """Folders have names of any bytes; what is not in the table has no type."""
    table = mounted(tmp_path, "cifs")
    table.write_bytes(b"22 1 98:1 / /mnt/\xff rw - ext4 /dev/y rw\n" + table.read_bytes())
    assert files._mount_type(tmp_path, table) == "cifs"
    assert files._mount_type(tmp_path, mounted(tmp_path, "nfs", device="98:98")) == ""
    assert files._mount_type(tmp_path, tmp_path / "no such table") == ""


def test_the_table_of_mounts_is_the_kernels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def remember(directory: Path, mounts: Path) -> str:
        seen.append(mounts)
        return "ext4"

    monkeypatch.setattr(files, "_mount_type", remember)
    opening(path).close()
    assert seen == [Path("/proc/self/mountinfo")]


def test_a_file_without_a_folder(path: Path) -> None:
    assert_says(
        said(lambda: files.create_private(path)),
        StateUnavailable,
        f"the state file {path} cannot be created: {os.strerror(errno.ENOENT)}.",
    )


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_link_in_the_place_of_a_file(path: Path, suffix: str) -> None:
    path.parent.mkdir(mode=0o700)
    planted = path.with_name(f"state.db{suffix}")
    planted.symlink_to("elsewhere")
    assert_says(
        said(lambda: files.create_private(path)),
        UnsafePath,
        f"{planted} is a link, not a regular file, or belongs to another user.",
        "Find out who put it there; choose another place with --state meanwhile.",
    )


@pytest.mark.posix
def test_a_file_of_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert isinstance(said(lambda: files.create_private(path)), UnsafePath)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
@pytest.mark.posix
def test_a_file_others_may_touch_is_made_private(path: Path, mode: int) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch()
    path.chmod(mode)
    files.create_private(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.posix
def test_a_new_file_is_durable_in_its_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(mode=0o700)
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = path.parent.stat().st_ino
    files.create_private(path)
    assert synced == [folder]
    files.create_private(path)
    assert synced == [folder]
    path.write_bytes(b"x")
    files.quarantine(path)
    assert synced == [folder, folder]


def test_what_is_put_aside_keeps_its_companions_together(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    for number in (1, 2):
        for suffix in ("", "-wal", "-shm", "-journal", ".suspect"):
            path.with_name(f"state.db{suffix}").write_text(f"{number}{suffix}")
        assert files.quarantine(path) == path.with_name(f"state.db.corrupt-{number}")
    assert {p.name: p.read_text() for p in path.parent.iterdir()} == {
        f"state.db.corrupt-{number}{suffix}": f"{number}{suffix}"
        for number in (1, 2)
        for suffix in ("", "-wal", "-shm", "-journal")
    }


# --- looking at a file ----------------------------------------------------------------------


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch()
    files.inspect(path, newest_version=SCHEMA_VERSION)


@pytest.mark.parametrize(
    "made_by", ["PRAGMA application_id=7", "CREATE TABLE theirs (id)", "PRAGMA user_version=1"]
)
def test_the_database_of_another_program(path: Path, made_by: str) -> None:
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute(made_by)
        theirs.commit()
    if "user_version" in made_by:  # nothing in it that anybody could miss
        files.inspect(path, newest_version=SCHEMA_VERSION)
        return
    assert_says(
        said(lambda: files.inspect(path, newest_version=SCHEMA_VERSION)),
        ConfigurationError,
        f"{path} is the database of another program.",
        "Name another file with --state.",
    )


def with_version(path: Path, version: int | str) -> None:
    opening(path).close()
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("UPDATE vodup_store SET schema_version = ?", (version,))
        ours.commit()


def test_a_newer_version(path: Path) -> None:
    with_version(path, 7)
    files.inspect(path, newest_version=7)
    assert_says(
        said(lambda: files.inspect(path, newest_version=6)),
        UnsupportedState,
        f"{path} was written by a newer vodup (schema 7; this one knows 6).",
    )


def test_what_a_dead_writer_left_half_done_is_undone_by_looking(path: Path) -> None:
    """Its journal says how the file was before; who may only read cannot even look."""
    opening(path).close()
    dead = path.with_name("dead.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode=DELETE")
        writer.execute("PRAGMA cache_size=1")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE vodup_store SET schema_version = 77")
        writer.execute("CREATE TABLE filler AS SELECT zeroblob(100000)")  # more than the cache
        for suffix in ("", "-journal"):
            shutil.copy(path.with_name(f"state.db{suffix}"), dead.with_name(f"dead.db{suffix}"))
        writer.execute("ROLLBACK")
    with (
        closing(sqlite3.connect(f"{dead.as_uri()}?mode=ro", uri=True)) as reader,
        pytest.raises(sqlite3.OperationalError),
    ):
        reader.execute("SELECT * FROM vodup_store")

    files.inspect(dead, newest_version=SCHEMA_VERSION)

    with closing(sqlite3.connect(dead)) as whole:
        assert whole.execute("SELECT schema_version FROM vodup_store").fetchone() == (1,)
    assert not dead.with_name("dead.db-journal").exists()


@pytest.mark.parametrize("version", [0, -1, "one"])
def test_a_version_that_is_none(path: Path, version: int | str) -> None:
    with_version(path, version)
    with pytest.raises(files.Damaged, match=r"^it has no version$"):
        files.inspect(path, newest_version=SCHEMA_VERSION)


def broken_inside(path: Path, *, size: int = 0) -> None:
    """A database of which only a check of the whole finds what is wrong: an index lacks a row."""
    opening(path).close()
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("CREATE TABLE extra (n INTEGER, filler BLOB)")
        ours.execute("CREATE INDEX extra_n ON extra (n)")
        ours.execute("INSERT INTO extra VALUES (1, zeroblob(?))", (size,))
        ours.execute("PRAGMA writable_schema=ON")
        ours.execute("UPDATE sqlite_master SET sql='CREATE INDEX extra_n ON extra (n) WHERE n > 5' "
                     "WHERE name='extra_n'")  # fmt: skip
        ours.commit()


@pytest.mark.parametrize(
    ("size", "is_suspect", "is_found"),
    [(0, False, True), (5 << 20, False, False), (5 << 20, True, True)],
)
def test_small_files_and_suspects_are_checked_whole(
    path: Path, size: int, is_suspect: bool, is_found: bool
) -> None:
    broken_inside(path, size=size)
    if is_suspect:
        files.suspect(path)
    if is_found:
        with pytest.raises(files.Damaged, match="extra_n"):
            files.inspect(path, newest_version=SCHEMA_VERSION)
    else:
        files.inspect(path, newest_version=SCHEMA_VERSION)


def test_suspicion_comes_and_goes(path: Path) -> None:
    opening(path).close()
    files.clear_suspicion(path)
    files.suspect(path)
    files.suspect(path)
    assert files.is_suspect(path)
    assert path.with_name("state.db.suspect").stat().st_mode & 0o777 == 0o600
    files.clear_suspicion(path)
    assert not files.is_suspect(path)


def test_what_a_disk_refused_once_is_written_anew(path: Path) -> None:
    with closing(opening(path)) as database:
        database.transact(lambda c: c.run(Query("UPDATE vodup_store SET store_id = 'x'")))
        wal = path.with_name("state.db-wal")
        assert wal.stat().st_size > 0
        files.clear_suspicion(path)
        assert wal.stat().st_size > 0
        files.suspect(path)
        files.clear_suspicion(path)
        assert wal.stat().st_size == 0


def test_a_place_where_no_mark_can_be_left_hides_no_error(path: Path) -> None:
    files.suspect(path)  # there is no such folder
    assert not files.is_suspect(path)


DAMAGE = {
    sqlite3.SQLITE_CORRUPT: True,
    sqlite3.SQLITE_CORRUPT_INDEX: True,
    sqlite3.SQLITE_NOTADB: True,
    sqlite3.SQLITE_ERROR: True,
    sqlite3.SQLITE_BUSY: False,
    sqlite3.SQLITE_IOERR_FSYNC: False,
}


@pytest.mark.parametrize("code", DAMAGE)
def test_which_errors_are_of_the_content(code: int) -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    assert files.is_damage(error) is DAMAGE[code]


@pytest.mark.parametrize(
    ("error", "is_damage"),
    [
        (sqlite3.OperationalError("Could not decode to UTF-8 column"), True),
        (sqlite3.OperationalError("unable to open"), False),
        (sqlite3.DatabaseError("oh"), True),
    ],
)
def test_errors_without_a_code(error: sqlite3.Error, is_damage: bool) -> None:
    assert files.is_damage(error) is is_damage
