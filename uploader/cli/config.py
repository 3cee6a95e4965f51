"""The config file: named profiles, whose keys are flags; `vodup config`.

    [profiles.default]
    region = "cn-beijing"

    [profiles.ecs]
    oss-endpoint = "auto"
    allow-host = ["oss.example.com"]

A flag wins over its environment variable, that over the profile, that over the default. The file
names hosts and commands that get credentials: only its owner may be able to write it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from uploader import portable
from uploader.cli.flag_groups import OutputFlags
from uploader.cli.options import config_path, flag_of
from uploader.cli.printing import out, out_json
from uploader.cli.run import DONE
from uploader.errors import ConfigurationError, UnsafePath

DEFAULT: Final = "default"
"""The profile of a command without `--profile`, if the file has it."""


def profile(path: Path, name: str | None, known: Mapping[str, click.Option]) -> dict[str, Any]:
    """Return the values of a profile by the names of flags, as click takes them.

    Args:
        name: None: the default profile.
        known: every flag that there is.

    Raises:
        ConfigurationError: the file has no such profile, or it is not as described above.
        UnsafePath: others may write the file.
    """
    profiles = _read(path)
    if name is None and DEFAULT not in profiles:
        return {}
    chosen = profiles.get(name or DEFAULT)
    if not isinstance(chosen, dict):
        raise ConfigurationError(
            f"{path} has no profile {name!r}.",
            next_step=f"It has: {', '.join(profiles) or 'none'}. Correct --profile, or the file.",
        )
    return {key.replace("-", "_"): _value(path, key, value, known) for key, value in chosen.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            is_ours = portable.is_own(found) or portable.is_own(found, owner=0)
            if not is_ours or portable.is_shared(found, 0o022):
                raise UnsafePath(
                    f"{path} belongs to another user, or others may write it.",
                    next_step=f"Run `chmod 600 {path}` as its owner.",
                )
            text = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read {path}: {error.strerror}.", next_step="Create it, or correct --profile."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} is not TOML: {error}.", next_step="Correct the file."
        ) from error
    profiles = text.get("profiles", {})
    if text.keys() - {"profiles"} or not isinstance(profiles, dict):
        raise ConfigurationError(
            f"{path} has keys outside of a profile.",
            next_step="Begin each profile with a line such as [profiles.default].",
        )
    return profiles


def _value(path: Path, key: str, value: object, known: Mapping[str, click.Option]) -> object:
    """A value as click reads it: text, true or false, or a list of texts."""
    option = known.get(key.replace("-", "_"))
    if option is None:
        near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
        hint = f"Did you mean {flag_of(near[0])[2:]}? " if near else ""
        raise ConfigurationError(
            f"{path}: {key} is no flag of vodup.",
            next_step=f"{hint}Keys are flags without their dashes. AccessKeys and other secrets "
            "are never in this file.",
        )
    if option.multiple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    expected = "a list of texts" if option.multiple else "a text or a number"
    if option.is_flag:
        expected = "true or false"
    is_usable = isinstance(value, bool if option.is_flag else str | int | float)
    if option.multiple or not is_usable:
        raise ConfigurationError(
            f"{path}: {key} must be {expected}.", next_step="Correct the file."
        )
    if option.is_flag:
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def known_flags(ctx: click.Context) -> dict[str, click.Option]:
    """Return every flag that a profile can set, by its name; this command's own come first."""
    root = ctx.find_root().command
    others = root.commands.values() if isinstance(root, click.Group) else ()
    found: dict[str, click.Option] = {}
    for command in (ctx.command, *others):
        for each in command.get_params(ctx):
            if isinstance(each, click.Option) and each.name not in {"help", "profile"}:
                found.setdefault(str(each.name), each)
    return found


def origins(ctx: click.Context) -> Iterator[tuple[str, str, object]]:
    """Yield flag, origin and value of each setting of a command that is not the default."""
    source = click.core.ParameterSource
    for parameter in ctx.command.get_params(ctx):
        name = str(parameter.name)
        match ctx.get_parameter_source(name):
            case source.COMMANDLINE:
                origin = "command line"
            case source.ENVIRONMENT:
                origin = str(parameter.envvar)
            case source.DEFAULT_MAP:
                origin = f"profile {ctx.meta[__name__]}"
            case _:
                continue
        yield flag_of(name), origin, ctx.params.get(name)


def path(flags: OutputFlags) -> int:
    """Print where the config file is, or would be."""
    where = str(config_path())
    if flags.json:
        out_json({"type": "config.path", "path": where})
    else:
        out(where)
    return DONE


def show(flags: OutputFlags) -> int:
    """Print the profiles."""
    where = config_path()
    names = _read(where)
    for name in names:
        values = profile(where, name, known_flags(click.get_current_context()))
        if flags.json:
            out_json({"type": "config.profile", "profile": name, "path": str(where), **values})
            continue
        out(f"[profiles.{name}]")
        for key, value in values.items():
            out(f"{flag_of(key)[2:]} = {value}")
    return DONE
