"""Keeps one PostgreSQL running as long as it is used. A script of its own.

`embedded.py` runs this file in the background, with the standard library alone: it outlives
the process that started it while others use the server, and ends after the last user, however
that ended. Users hold a shared flock on `users.lock`, which the kernel releases even after
SIGKILL: whoever gets the lock exclusively knows that no user is left.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_MAX_QUICK_ENDS: Final = 5
_QUICK_S: Final = 5.0


class Supervisor:
    """One server and its end. Mutable: the process."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._folder = Path(arguments["folder"])
        self._is_unused = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, ready_fd: int) -> None:
        """Start the server, write to `ready_fd`, and keep it running until it is unused."""
        alive = _opened(self._folder / "server.lock", os.O_RDWR)
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        self._start()
        os.write(ready_fd, b"ready")
        os.close(ready_fd)
        threading.Thread(target=self._wait_for_the_last_user, daemon=True).start()
        self._restart_until_unused()
        if self._arguments["is_temporary"]:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _restart_until_unused(self) -> None:
        quick_ends = 0
        while self._process is not None:
            began = time.monotonic()
            self._process.wait()
            if self._is_unused.is_set():
                return
            quick_ends = quick_ends + 1 if time.monotonic() - began < _QUICK_S else 0
            if quick_ends > _MAX_QUICK_ENDS:
                sys.exit("PostgreSQL keeps ending; see the log")
            if self._is_unused.wait(self._arguments["restart_pause_s"]):
                return
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._is_unused.is_set():
                return
            command = [self._arguments["postgres"], "-D", str(self._folder / "data")]
            for setting in self._arguments["settings"]:
                command += ["-c", setting]
            with open(_opened(self._folder / "log", os.O_WRONLY | os.O_APPEND), "ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL itself
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    preexec_fn=_end_with_parent,
                    **self._arguments["account"],
                )

    def _wait_for_the_last_user(self) -> None:
        users = _opened(self._folder / "users.lock", os.O_RDWR)
        fcntl.flock(users, fcntl.LOCK_EX)  # held to the end: new users wait for our exit
        self._stop()

    def _stop(self) -> None:
        """Make the server end: it rolls back open transactions and closes its files."""
        self._is_unused.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)


def _opened(path: Path, flags: int) -> int:
    """As `private_files.open_regular_file`, which cannot be imported here."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _end_with_parent() -> None:
    """Runs in the server's process: end as well if the supervisor is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def main() -> None:
    """Go to the background; the foreground waits for "ready" and exits with 0, else with 1."""
    arguments = json.loads(sys.argv[1])
    ready, started = os.pipe()
    if os.fork():
        os.close(started)
        sys.exit(0 if os.read(ready, 5) == b"ready" else 1)
    os.setsid()
    os.close(ready)
    log = _opened(Path(arguments["folder"]) / "log", os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    Supervisor(arguments).run(started)


if __name__ == "__main__":
    main()
