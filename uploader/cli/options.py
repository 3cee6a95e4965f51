"""How a flag is declared, shown to typer, and read.

Flags are fields of dataclasses (`flags.py`): the field `part_size` is the flag `--part-size` and
the environment variable VODUP_PART_SIZE. A flag that takes more than plain text names a `Kind`, so
that a command sees values only, and a wrong text ends in a sentence that says what to write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, cast, dataclass_transform

import typer

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
    """

    metavar: str
    expected: str
    read: Callable[[str], Any]

    def parser(self, flag: str, variable: str) -> Callable[[Any], Any]:
        """Return what reads the values of `flag`. A default is not text and stays as it is."""

        def parse(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            try:
                return self.read(value)
            except ValueError:
                raise ConfigurationError(
                    f"{flag}: expected {self.expected}, got {value!r}.",
                    next_step=f"Correct {flag} (or {variable}), then run again.",
                ) from None

        return parse


def number(least: int, most: int, metavar: str = "N") -> Kind:
    """A whole number within bounds, both included."""
    return Kind(
        metavar,
        f"a whole number from {least:,} to {most:,}",
        lambda text: _within(_whole(text), least, most),
    )


def one_of(*choices: str) -> Kind:
    """One of a few words, in lower or upper case."""

    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return Kind("|".join(choices), " or ".join(choices), read)


def size_from(least: int) -> Kind:
    """A size with a lower bound."""
    return Kind(
        "SIZE",
        f"a size of at least {units.size(least)}",
        lambda text: _within(units.parse_size(text), least),
    )


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


def _concurrency(text: str) -> int | str:
    return text if text == "auto" else _within(_whole(text), 1, MAX_CONCURRENCY)


def _bandwidth(text: str) -> Any:
    from uploader.pace import parse_bandwidth

    try:
        return parse_bandwidth(text)
    except ConfigurationError as error:
        raise ValueError(error.message) from None


def _encoding(text: str) -> str:
    from uploader.bulk.encoding import require_encoding

    return require_encoding(text)


def _part_size(text: str) -> int:
    from uploader.protocol.plan import MAX_PART_SIZE, MIN_PART_SIZE

    return _within(units.parse_size(text), MIN_PART_SIZE, MAX_PART_SIZE)


SIZE: Final = Kind("SIZE", "a size such as 8MiB, 8M or 8388608", units.parse_size)
PART_SIZE: Final = Kind("SIZE", "a size from 100KiB to 5GiB, such as 8MiB", _part_size)
DURATION: Final = Kind(
    "DURATION", "seconds, or a duration such as 15m, 2h or 30d", units.parse_duration_s
)
COMMAND: Final = Kind("CMD", "a command line with balanced quotes", _command)
ENCODING: Final = Kind("NAME", "an encoding of text such as utf-8, gbk or cp1252", _encoding)
CONCURRENCY: Final = Kind(
    "N|auto", f"auto or a whole number from 1 to {MAX_CONCURRENCY}", _concurrency
)
BANDWIDTH: Final = Kind(
    "RATE", 'bytes per second such as 10M, or a timetable such as "08:00,10M 20:00,off"', _bandwidth
)


# --- declarations -----------------------------------------------------------------------

Declare = Callable[[str, str], Any]
"""Makes what typer wants to know of a parameter, from its flag and its variable."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def group(cls: type[F]) -> type[F]:
    """Make a frozen dataclass of flags, without the methods that only take time to make."""
    return dataclass(frozen=True, kw_only=True, eq=False, repr=False, match_args=False)(cls)


def option(takes: Kind | str, help: str, default: Any = None, short: str = "") -> Any:
    """Declare a flag that takes a value: of a kind, or plain text with this metavar.

    With the default () it can be repeated, and the field is a tuple of texts.
    """
    kind = takes if isinstance(takes, Kind) else None
    is_repeated = default == ()

    def declare(flag: str, variable: str) -> Any:
        return typer.Option(
            *filter(None, (short, flag)),
            help=f"{help} Can be repeated." if is_repeated else help,
            metavar=kind.metavar if kind else str(takes),
            parser=kind.parser(flag, variable) if kind else None,
            envvar=variable,
            show_envvar=False,
            show_default="[default: " not in help,
        )

    return _field(default, list[str] | None if is_repeated else str | None, declare)


def switch(help: str, short: str = "", default: bool | None = None) -> Any:
    """Declare a flag that is given or not; with a default, `--no-NAME` exists too."""

    def declare(flag: str, variable: str) -> Any:
        pair = flag if default is None else f"{flag}/--no-{flag[2:]}"
        names = filter(None, (short, pair))
        return typer.Option(*names, help=help, envvar=variable, show_envvar=False)

    return _field(default or False, bool, declare)


def argument(metavar: str, help: str | None = None, default: Any = ..., many: bool = False) -> Any:
    """Declare a positional argument, or `many`; it is required unless it has a default."""

    def declare(flag: str, variable: str) -> Any:
        return typer.Argument(metavar=metavar, help=help)

    return _field(default, list[str] | None if many else str, declare)


def _field(default: Any, annotation: Any, declare: Declare) -> Any:
    return dataclasses.field(default=default, metadata={"typer": (annotation, declare)})


def parameters_of(flags: type[Any]) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a command with these flags, as typer reads them.

    The fields of a class come before those of its bases, in the order of the bases.
    """
    fields = {field.name: field for field in dataclasses.fields(flags)}
    names = (name for owner in flags.__mro__ for name in inspect.get_annotations(owner))
    for name in dict.fromkeys(name for name in names if name in fields):
        default, (annotation, declare) = fields[name].default, fields[name].metadata["typer"]
        info = declare(f"--{name.replace('_', '-')}", f"VODUP_{name.upper()}")
        if default == ():
            default = None
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is ... else default,
            annotation=Annotated[annotation, info],
        )


def values_of(flags: type[F], given: Mapping[str, Any]) -> F:
    """Return the flags with the values that typer read."""
    tuples = {field.name for field in dataclasses.fields(cast("Any", flags)) if field.default == ()}
    return flags(**{k: tuple(v or ()) if k in tuples else v for k, v in given.items()})
