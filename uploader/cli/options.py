"""How a flag is declared, shown to click, and read.

Flags are fields of classes (`flag_groups.py`, `flags.py`): the field `part_size` is the flag
`--part-size` and the environment variable VODUP_PART_SIZE. A flag that takes more than plain text
names a `Kind`, so that a command sees values only, and a wrong text ends in a sentence that says
what to write.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, dataclass_transform

import click

from uploader import units
from uploader.errors import ConfigurationError

MAX_CONCURRENCY: Final = 256

F = TypeVar("F")


# --- what a flag takes ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What a flag takes.

    Attributes:
        metavar: stands for the value in `--help`.
        expected: what to write, for a sentence: "a size such as 8MiB".
        read: turns the text into the value; raises ValueError if it cannot.
        choices: all that it takes, for the completion of a shell.
    """

    metavar: str
    expected: str
    read: Callable[[str], Any]
    choices: tuple[str, ...] = ()

    def parser(self, flag: str, variable: str) -> Callable[[Any], Any]:
        """Return what reads the values of `flag`. A default is not text and stays as it is."""

        def parse(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            try:
                return self.read(value)
            except (ValueError, LookupError, ArithmeticError):
                raise ConfigurationError(
                    f"{flag}: expected {self.expected}, got {value[:100]!r}.",
                    next_step=f"Correct {flag} (or {variable}), then run again.",
                ) from None

        return parse


def number(least: int, most: int, metavar: str = "N") -> Kind:
    """A whole number within bounds, both included."""
    expected = f"a whole number from {least:,} to {most:,}"
    return Kind(metavar, expected, lambda text: _within(_whole(text), least, most))


def one_of(*choices: str) -> Kind:
    """One of a few words, in lower or upper case."""

    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return Kind("|".join(choices), " or ".join(choices), read, choices)


def size_from(least: int) -> Kind:
    """A size with a lower bound."""
    expected = f"a size of at least {units.size(least)}"
    return Kind("SIZE", expected, lambda text: _within(units.parse_size(text), least))


def _whole(text: str) -> int:
    """Stricter than int(): "1_000" and the digits of other scripts are mistakes."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise ValueError(text)
    return int(text)


def _within(value: int, least: int, most: float = float("inf")) -> int:
    if not least <= value <= most:
        raise ValueError(value)
    return value


def _command(text: str) -> list[str]:
    """Split a command line as a shell would; no shell ever sees it."""
    argv = shlex.split(text)
    if not argv:
        raise ValueError(text)
    return argv


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _concurrency(text: str) -> int | str:
    return text if text == "auto" else _within(_whole(text), 1, MAX_CONCURRENCY)


def _bandwidth(text: str) -> Any:
    from uploader.pace import parse_bandwidth

    try:
        return parse_bandwidth(text)
    except ConfigurationError as error:
        raise ValueError(error.message) from None


def _proxy(text: str) -> str:
    """Refuse a password on the command line; VODUP_PROXY may have one."""
    if "@" in text and text != os.environ.get("VODUP_PROXY"):
        raise ConfigurationError(
            "--proxy: a login on the command line can be read by other users of this machine.",
            next_step="Pass the URL without it, and set VODUP_PROXY_USER and VODUP_PROXY_PASSWORD "
            "(or --proxy-login-file FILE), then run again.",
        )
    return text.lower() if text.lower() in {"env", "none"} else text


def _encoding(text: str) -> str:
    from uploader.bulk.encoding import require_encoding

    return require_encoding(text)


def _part_size(text: str) -> int:
    from uploader.protocol.plan import MAX_PART_SIZE, MIN_PART_SIZE

    return _within(units.parse_size(text), MIN_PART_SIZE, MAX_PART_SIZE)


BOOLEAN: Final = Kind("true|false", "true or false", _boolean)
SIZE: Final = Kind("SIZE", "a size such as 8MiB, 8M or 8388608", units.parse_size)
PART_SIZE: Final = Kind("SIZE", "a size from 100KiB to 5GiB, such as 8MiB", _part_size)
DURATION: Final = Kind(
    "DURATION", "seconds, or a duration such as 15m, 2h or 30d", units.parse_duration_s
)
COMMAND: Final = Kind("CMD", "a command line with balanced quotes", _command)
CHANGED: Final = one_of("fail", "new-video", "overwrite")
ENCODING: Final = Kind("NAME", "an encoding of text such as utf-8, gbk or cp1252", _encoding)
PROXY: Final = Kind("URL|env|none", "the URL of an HTTP proxy, env or none", _proxy)
CONCURRENCY: Final = Kind(
    "N|auto", f"auto or a whole number from 1 to {MAX_CONCURRENCY}", _concurrency
)
BANDWIDTH: Final = Kind(
    "RATE", 'bytes per second such as 10M, or a timetable such as "08:00,10M 20:00,off"', _bandwidth
)


# --- declarations -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declaration:
    """A flag of a group: its default, and what makes the parameter for click.

    `declare` takes the field's name, the flag and its variable.
    """

    default: Any
    declare: Callable[[str, str, str], click.Parameter]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def group(cls: type[F]) -> type[F]:
    """Make a group of flags: a frozen dataclass for type checkers, none of its code at run time.

    Compiling thirty dataclasses takes longer than all else that `vodup --help` does.
    """
    own = {name: d for name, d in vars(cls).items() if isinstance(d, Declaration)}
    for name, declaration in own.items():
        setattr(cls, name, declaration.default)
    cls._own_flags = own  # type: ignore[attr-defined]
    cls.__init__ = _set_flags  # type: ignore[assignment]
    return cls


def _set_flags(flags: object, **values: Any) -> None:
    vars(flags).update(values)


def parameters_of(flags: type[Any]) -> Iterator[click.Parameter]:
    """Yield the parameters of a command with these flags.

    The fields of a class come before those of its bases, in the order of the bases.
    """
    names: set[str] = set()
    for owner in flags.__mro__:
        for name, declaration in vars(owner).get("_own_flags", {}).items():
            if name not in names:
                names.add(name)
                made = declaration.declare(name, flag_of(name), f"VODUP_{name.rstrip('_').upper()}")
                made.heading = heading_of(owner)
                yield made


_HEADINGS: Final = {
    "AccessFlags": "Credentials and services",
    "ClusterFlags": "Cluster",
    "OutputFlags": "Output",
    "ReportFlags": "Reports",
    "RowFlags": "Manifests and folders",
    "UrlFlags": "Source URLs",
    "VideoFlags": "Fields of the video",
}


def heading_of(owner: type[Any]) -> str:
    """Return what a group of flags is called in `--help` and in the documentation."""
    name = owner.__name__
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Flags"))
    return _HEADINGS.get(name, words)


def flag_of(name: str) -> str:
    """Return the flag of a field: `part_size` is `--part-size`, and `as_` is `--as`."""
    return f"--{name.rstrip('_').replace('_', '-')}"


class BareOption(click.Option):
    """A flag whose value may be left out: `--wait` is `--wait=24h`. A value follows a "=" only."""

    bare_value = ""


def with_bare_values(args: list[str], parameters: Sequence[click.Parameter]) -> list[str]:
    """Write out the values of flags that are given without one."""
    known = {p.opts[0]: p.bare_value for p in parameters if isinstance(p, BareOption)}
    end = args.index("--") if "--" in args else len(args)
    words = (f"{word}={known[word]}" if word in known else word for word in args[:end])
    return [*words, *args[end:]]


def _completed(
    choices: tuple[str, ...], ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    return [choice for choice in choices if choice.startswith(incomplete)]


def option(
    takes: Kind | str,
    help: str,
    default: Any = None,
    short: str = "",
    bare: str = "",
    also: str = "",
) -> Any:
    """Declare a flag that takes a value: of a kind, or plain text with this metavar.

    With the default () it can be repeated, and the field is a tuple of texts. `bare`: the value of
    the flag when it is given without one. `also`: another name that people try first.
    """
    kind = takes if isinstance(takes, Kind) else None
    is_repeated = default == ()

    def declare(name: str, flag: str, variable: str) -> click.Parameter:
        metavar = kind.metavar if kind else str(takes)
        made = (BareOption if bare else click.Option)(
            [name, *filter(None, (short, flag, also))],
            help=f"{help} Can be repeated." if is_repeated else help,
            metavar=f"[={metavar}]" if bare else metavar,
            type=kind.parser(flag, variable) if kind else str,
            envvar=variable,
            default=default,
            multiple=is_repeated,
            show_default="[default: " not in help,
            shell_complete=partial(_completed, kind.choices) if kind and kind.choices else None,
        )
        if isinstance(made, BareOption):
            made.bare_value = bare
        return made

    return Declaration(default, declare)


def switch(help: str, short: str = "", default: bool | None = None) -> Any:
    """Declare a flag that is given or not; with a default, `--no-NAME` exists too."""

    def declare(name: str, flag: str, variable: str) -> click.Parameter:
        pair = flag if default is None else f"{flag}/--no-{flag[2:]}"
        return click.Option(
            [name, *filter(None, (short, pair))],
            help=help,
            is_flag=True,
            envvar=variable,
            default=bool(default),
            show_default=default is not None,
        )

    return Declaration(bool(default), declare)


class Argument(click.Argument):
    """A positional argument with a help text, in releases of click without one."""

    def __init__(self, name: str, help: str, metavar: str, **settings: Any) -> None:
        super().__init__([name], metavar=metavar, **settings)
        self.help_record = (metavar, help) if help else None

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """In brackets what may be left out."""
        piece = str(self.metavar) if self.required else f"[{self.metavar}]"
        return [f"{piece}..." if self.nargs == -1 else piece]


def argument(metavar: str, help: str = "", default: Any = ..., many: bool = False) -> Any:
    """Declare a positional argument, or `many`; it is required unless it has a default."""

    def declare(name: str, flag: str, variable: str) -> click.Parameter:
        settings = {"required": True} if default is ... else {"default": default}
        return Argument(name, help, metavar, nargs=-1 if many else 1, **settings)

    return Declaration(default, declare)


# --- profiles -------------------------------------------------------------------------------


def config_path() -> Path:
    """Return the config file of this user. It need not exist."""
    if chosen := os.environ.get("VODUP_CONFIG"):
        return Path(chosen)
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(folder):
        is_mac = sys.platform == "darwin"
        folder = os.path.expanduser("~/Library/Application Support" if is_mac else "~/.config")
    return Path(folder, "vodup", "config.toml")
