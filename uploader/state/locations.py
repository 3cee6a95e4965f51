"""Where a store lives, as the user writes it: a path or a URL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from uploader.errors import ConfigurationError

_SQLITE_PREFIX = "sqlite:///"
_POSTGRES_SCHEMES = ("postgresql", "postgres")


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A file on this machine.

    Attributes:
        is_surely_ours: whether damaged content may be put aside without another sign
            that the file is a state file: the path was not chosen by the user, or is
            named like a database.
    """

    path: Path
    is_surely_ours: bool

    def __str__(self) -> str:
        return f"state file {self.path}"


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """A PostgreSQL database; the URL may hold a password and is never shown."""

    url: str

    def __str__(self) -> str:
        return "state database"

    def __repr__(self) -> str:
        return "PostgresUrl(url=...)"


def state_directory() -> Path:
    """This user's folder for what programs remember.

    Raises:
        ConfigurationError: the user has no home, as in a container with a uid of its own.
    """
    import platformdirs

    try:
        return Path(platformdirs.user_state_dir("vodup"))
    except RuntimeError as error:
        raise ConfigurationError(
            "There is no home folder to record uploads in.",
            next_step="Set HOME, or name a file with --state (or VODUP_STATE), then run again.",
        ) from error


def locate(url: str | os.PathLike[str] | None) -> SqliteFile | PostgresUrl:
    """Understand what `--state` says.

    Raises:
        ConfigurationError: it is neither a path nor a URL of a database we know.
    """
    if url is None:
        return SqliteFile(state_directory() / "state.db", is_surely_ours=True)
    text = os.fspath(url)
    scheme, is_url, _ = text.partition("://")
    if isinstance(url, os.PathLike) or not is_url:
        return _file(text)
    if scheme in _POSTGRES_SCHEMES:
        return PostgresUrl(text)
    if text.startswith(_SQLITE_PREFIX):
        return _file(unquote(text.removeprefix(_SQLITE_PREFIX)))
    raise ConfigurationError(
        f"state URLs of the kind {scheme!r} are not known.",
        next_step="Use a path, sqlite:///path, postgresql://... or memory.",
    )


def _file(text: str) -> SqliteFile:
    if not text or text == ":memory:" or "\0" in text or "?" in text:
        raise ConfigurationError(
            f"{text!r} is not a path for a state file.",
            next_step="Name a file, or use MemoryState (--state memory) to keep nothing.",
        )
    path = Path(os.path.abspath(os.path.expanduser(text)))
    is_database_name = path.suffix in {".db", ".sqlite", ".sqlite3", ".state", ".vodup"}
    return SqliteFile(path, is_surely_ours=is_database_name)
