"""The man page, made of the help texts: `python -m uploader.cli.man > vodup.1`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import click

from uploader.cli.app import app
from uploader.cli.options import Argument


def man_page() -> str:
    """Return the page in the man macros of roff, for `man 1 vodup`."""
    lines = [
        '.TH VODUP 1 "" "vodup" "User Commands"',
        ".SH NAME",
        "vodup \\- upload large files to Alibaba Cloud ApsaraVideo VOD",
        ".SH SYNOPSIS",
        ".B vodup",
        r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        _text(str(app.help)),
        ".SH COMMANDS",
    ]
    for name, command in _commands(app, "vodup"):
        lines += _command(name, command)
    lines += [".SH EXIT STATUS", *_exit_codes()]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _command(name: str, command: click.Command) -> Iterator[str]:
    ctx = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(ctx)])
    yield f'.SS "{_text(usage)}"'
    yield _text(str(command.help))
    for each in command.get_params(ctx):
        record = each.help_record if isinstance(each, Argument) else each.get_help_record(ctx)
        if record is not None:
            yield from (".TP", f"\\fB{_text(record[0])}\\fR", _text(record[1]))


def _exit_codes() -> Iterator[str]:
    """Yield the table of `run.py`: a code, two spaces, what it means."""
    for line in str(sys.modules["uploader.cli.run"].__doc__).splitlines():
        if found := re.fullmatch(r"([\d, ]+)  (.+)", line):
            yield from (".TP", f"\\fB{found[1]}\\fR", _text(found[2]))


def _text(text: str) -> str:
    """Escape what roff would read as a request."""
    text = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text[:1] in {".", "'"} else text


if __name__ == "__main__":
    sys.stdout.write(man_page())
