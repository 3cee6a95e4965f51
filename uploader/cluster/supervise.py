"""Keeps one PostgreSQL running for as long as somebody uses it. A script of its own.

Run by `embedded.py` as a file, with the standard library alone, and in the background: it
must outlive whoever started it while others use the server, and end when the last user
has, however that happened. Users hold a shared flock on `users.lock`; the kernel gives
them back even after SIGKILL, and whoever gets it exclusively knows that nobody is left.
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
_READY_TIMEOUT_S: Final = 60.0


class Supervisor:
    """One server and its end. Mutable: the process."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._folder = Path(asked["folder"])
        self._unwanted = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, ready_fd: int) -> None:
        """Start the server, say so on `ready_fd`, and stay until nobody uses it."""
        alive = os.open(self._folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        self._start()
        self._wait_until_ready()
        os.write(ready_fd, b"ready")
        os.close(ready_fd)
        threading.Thread(target=self._wait_for_the_last_user, daemon=True).start()
        self._restart_until_unwanted()
        if self._asked["is_temporary"]:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _restart_until_unwanted(self) -> None:
        quick_ends = 0
        while self._process is not None:
            began = time.monotonic()
            self._process.wait()
            if self._unwanted.is_set():
                return
            quick_ends = quick_ends + 1 if time.monotonic() - began < _QUICK_S else 0
            if quick_ends > _MAX_QUICK_ENDS:
                sys.exit("PostgreSQL ends again and again; see log")
            if self._unwanted.wait(self._asked["restart_pause_s"]):
                return
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._unwanted.is_set():
                return
            command = [self._asked["postgres"], "-D", str(self._folder / "data")]
            for setting in self._asked["settings"]:
                command += ["-c", setting]
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - PostgreSQL itself
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    preexec_fn=_end_with_parent,
                    **self._asked["account"],
                )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        pid_file = self._folder / "data" / "postmaster.pid"
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            lines = pid_file.read_text().splitlines() if pid_file.exists() else []
            if len(lines) > 7 and lines[7].strip() == "ready":
                return
            time.sleep(0.02)
        self._stop()
        sys.exit("PostgreSQL did not start")

    def _wait_for_the_last_user(self) -> None:
        users = os.open(self._folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(users, fcntl.LOCK_EX)  # kept to the end: newcomers wait for our exit
        self._stop()

    def _stop(self) -> None:
        """Ask the server to end now: it rolls open transactions back and closes its files."""
        self._unwanted.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)


def _end_with_parent() -> None:
    """In the server's process: end as well, should the supervisor be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def main() -> None:
    """Go to the background; the foreground waits for "ready" and tells by its exit code."""
    asked = json.loads(sys.argv[1])
    ready, told = os.pipe()
    if os.fork():
        os.close(told)
        sys.exit(0 if os.read(ready, 5) == b"ready" else 1)
    os.setsid()
    os.close(ready)
    log = os.open(Path(asked["folder"]) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    Supervisor(asked).run(told)


if __name__ == "__main__":
    main()
