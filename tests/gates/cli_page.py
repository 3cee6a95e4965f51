"""The reference of the command line, written from the commands themselves.

    python -m tests.gates.cli_page             do docs/cli.md and docs/zh/cli.md match the commands?
    python -m tests.gates.cli_page --update    write them anew

docs/configuration.md gets its table of environment variables from here, too. Texts for the Chinese
page are in flags_zh.toml; one that is not translated yet stands there in English.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from uploader.cli.app import app
from uploader.cli.options import Argument, flag_of, heading_of

__all__ = ["DOCS", "main", "pages", "texts", "translations", "variables"]

DOCS = Path(__file__).parents[2] / "docs"
_TRANSLATIONS = Path(__file__).with_name("flags_zh.toml")
_TABLE = re.compile(r"(?<=<!-- variables -->\n).*?(?=<!-- /variables -->)", re.DOTALL)
_HEAD = """\
<!-- written by: python -m tests.gates.cli_page --update -->

# {title}

{intro}
"""
_ENGLISH = {
    "title": "Command line",
    "intro": (
        "Every command and every flag, as `vodup COMMAND --help` prints them. Each flag is also an "
        "environment variable and a key of the config file: `--part-size` is `VODUP_PART_SIZE` and "
        '`part-size = "8MiB"` ([Configuration](configuration.md)). Sizes, durations and bandwidths '
        "may have units: `8MiB`, `15m`, `10M`. How commands end: [Exit codes](exit-codes.md)."
    ),
    "shared": "Flags that several commands share",
    "also": "Also the flags of: ",
    "default": "Default: {}.",
    "repeated": "Can be repeated.",
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its name, those of a group after the group's name."""
    for name, command in app.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())
        else:
            yield name, command


def _groups(command: click.Command) -> list[tuple[type[Any], list[click.Parameter]]]:
    """The flags of a command, by the class that declares them; without one, under the command."""
    kind: type[Any] = command._flags_type  # type: ignore[attr-defined]
    ctx = click.Context(command)
    found: dict[type[Any], list[click.Parameter]] = {kind: []}
    for each in command.get_params(ctx):
        declares = (c for c in kind.__mro__ if each.name in vars(c).get("_own_flags", {}))
        if "--help" not in each.opts:
            found.setdefault(next(declares, kind), []).append(each)
    return list(found.items())


def _shared() -> dict[type[Any], list[click.Parameter]]:
    """The classes that several commands have, with their flags, in the order of the commands."""
    counts: dict[type[Any], int] = {}
    flags: dict[type[Any], list[click.Parameter]] = {}
    for _, command in commands():
        for kind, each in _groups(command)[1:]:
            counts[kind] = counts.get(kind, 0) + 1
            flags[kind] = each
    return {kind: each for kind, each in flags.items() if counts[kind] > 1}


def texts() -> set[str]:
    """Every text of the page that a translation replaces."""
    found = {*_ENGLISH.values()}
    for _, command in commands():
        found.add(str(command.help))
        for kind, flags in _groups(command):
            found |= {heading_of(kind), str(kind.__doc__)} if kind in _shared() else set()
            found |= {text for each in flags for text in _help(each)}
    return found - {"", "None"}


def _help(each: click.Parameter) -> tuple[str, ...]:
    """The sentence of a flag; that it can be repeated, and its default, are texts of their own."""
    text = (each.help_record or ("", ""))[1] if isinstance(each, Argument) else str(each.help)
    sentence, _, default = text.partition(" [default: ")
    repeated = f" {_ENGLISH['repeated']}"
    is_repeated = sentence.endswith(repeated)
    parts = sentence.removesuffix(repeated), _ENGLISH["repeated"] if is_repeated else ""
    return *parts, f"[default: {default}" if default else ""


class _Writer:
    """Writes a page in one language; a text without a translation stays as it is."""

    def __init__(self, translations: Mapping[str, str]) -> None:
        self._translations = translations

    def t(self, text: str) -> str:
        return self._translations.get(text, text)

    def page(self) -> str:
        shared = _shared()
        title, intro = self.t(_ENGLISH["title"]), self.t(_ENGLISH["intro"])
        parts = [_HEAD.format(title=title, intro=intro)]
        for name, command in commands():
            parts.append(f"## vodup {name}\n\n{self.t(str(command.help))}\n")
            parts.append(f"```sh\n{_usage(name, command)}\n```\n")
            groups = _groups(command)
            own = [each for kind, flags in groups if kind not in shared for each in flags]
            parts.append(self._flags(own))
            if also := [kind for kind, _ in groups if kind in shared]:
                links = ", ".join(f"[{self.t(heading_of(k))}](#{_anchor(k)})" for k in also)
                parts.append(f"{self.t(_ENGLISH['also'])}{links}.\n")
        parts.append(f"## {self.t(_ENGLISH['shared'])}\n")
        for kind, flags in shared.items():
            parts.append(f'<a id="{_anchor(kind)}"></a>\n\n### {self.t(heading_of(kind))}\n')
            parts.append(f"{self.t(str(kind.__doc__))}\n")
            parts.append(self._flags(flags))
        return "\n".join(part for part in parts if part)

    def _flags(self, flags: list[click.Parameter]) -> str:
        return "".join(f"- {line}\n" for each in flags if (line := self._flag(each)))

    def _flag(self, each: click.Parameter) -> str:
        sentence, repeated, default = map(self.t, _help(each))
        if isinstance(each, Argument):
            return f"`{each.metavar}`: {sentence}" if sentence else ""
        names = [*each.opts, *each.secondary_opts]
        takes = "" if getattr(each, "is_flag", False) else f" {each.metavar}"
        if not default and getattr(each, "show_default", False) and each.default not in (None, ()):
            default = f"[default: {self._value(each)}]"
        marked = default.removeprefix("[default: ").removesuffix("]")
        tail = self.t(_ENGLISH["default"]).format(marked) if default else ""
        flags = ", ".join(f"`{name}{takes}`" for name in names)
        return f"{flags}: {' '.join(filter(None, (sentence, repeated, tail)))}"

    @staticmethod
    def _value(each: click.Parameter) -> str:
        if getattr(each, "is_flag", False):
            return f"`{(each.opts if each.default else each.secondary_opts)[0]}`"
        return f"`{each.default}`"


def _anchor(kind: type[Any]) -> str:
    return f"flags-{heading_of(kind).lower().replace(' ', '-')}"


def _usage(name: str, command: click.Command) -> str:
    return " ".join(["vodup", name, *command.collect_usage_pieces(click.Context(command))])


def variables() -> dict[str, tuple[str, list[str]]]:
    """The environment variables of flags: the flag, and the commands that have it."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, command in commands():
        for each in command.get_params(click.Context(command)):
            if isinstance(each, click.Option) and each.envvar:
                found.setdefault(str(each.envvar), (flag_of(str(each.name)), []))[1].append(name)
    return dict(sorted(found.items()))


def _variables_table() -> str:
    rows = ["| variable | flag | commands |", "|---|---|---|"]
    every = len([name for name, _ in commands()])
    for variable, (flag, names) in variables().items():
        which = "most commands" if len(names) > every / 2 else ", ".join(f"`{n}`" for n in names)
        rows.append(f"| `{variable}` | `{flag}` | {which} |")
    return "\n".join(rows) + "\n"


def translations() -> dict[str, str]:
    """English texts and their translations."""
    return tomllib.loads(_TRANSLATIONS.read_text("utf-8"))


def pages() -> dict[Path, str]:
    """What each page must hold."""
    configuration = DOCS / "configuration.md"
    before = configuration.read_text("utf-8")
    return {
        DOCS / "cli.md": _Writer({}).page(),
        DOCS / "zh" / "cli.md": _Writer(translations()).page(),
        configuration: _TABLE.sub(lambda _: _variables_table(), before),
    }


def main(argv: list[str] | None = None) -> int:
    """Compare or update."""
    is_update = "--update" in (sys.argv[1:] if argv is None else argv)
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        if is_update:
            path.write_text(pages()[path], encoding="utf-8")
        else:
            print(f"{path.name} is stale: run python -m tests.gates.cli_page --update")
    return 1 if stale and not is_update else 0


if __name__ == "__main__":
    sys.exit(main())
