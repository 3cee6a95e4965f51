"""Every command line that README and docs print is one that `vodup` accepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.gates import cli_page
from tests.pages import DOCS
from uploader.cli.app import app

PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
_BLOCK = re.compile(r"^```(console|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# Of docker, PyInstaller and tools of this project; and one of vodup itself.
_OTHERS = {"--stop-timeout", "--copy-metadata", "--hidden-import", "--exclude-module", "--update"}
_OTHERS |= {"--show-completion", "--network"}
_ENDS = frozenset("; | & && || > >> < 2> << <<< )".split())


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after `vodup` in each command of the page's blocks of commands."""
    for language, block in _BLOCK.findall(page.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            is_command = language == "sh" or line.startswith("$ ")
            if is_command and "vodup " in line:
                yield from _commands(line.removeprefix("$ "))


def _commands(line: str) -> Iterator[list[str]]:
    reader = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    reader.whitespace_split, reader.commenters = True, "#"
    words = [*reader]
    for at, word in enumerate(words[:-1]):
        is_first = at == 0 or words[at - 1] in {*_ENDS, "$(", "do"} or "=" in words[at - 1]
        if word in {"vodup", "dist/vodup/vodup"} and is_first:
            end = next((n for n in range(at, len(words)) if words[n] in _ENDS), len(words))
            yield words[at + 1 : end]


def problem_with(words: list[str]) -> str:
    """Why `vodup` would not accept them; "" if it would. Nothing runs."""
    if words[-1] == "2":  # of "2> file"
        words = words[:-1]
    command: click.Command = app
    with click.Context(app, info_name="vodup") as parent:
        try:
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                command, words = command.commands[words[0]], words[1:]
            if isinstance(command, click.Group):
                return ""  # a flag of vodup itself, which prints and exits
            command.make_context(str(command.name), [*words], parent=parent)
        except KeyError:
            return f"no command {words[0]}"
        except click.exceptions.Exit:
            return ""
        except click.ClickException as error:
            return error.format_message()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS.parent).as_posix())
def test_the_commands_of_a_page_are_accepted(page: Path) -> None:
    if page.name == "cli.md":
        return  # its blocks are patterns
    problems = {shlex.join(words): problem_with(words) for words in command_lines(page)}
    assert {line: why for line, why in problems.items() if why} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS.parent).as_posix())
def test_the_flags_that_a_page_names_exist(page: Path) -> None:
    if page.name in {"performance.md", "reliability.md", "cluster.md"}:
        return  # they name flags of the benchmarks and of other tests
    each = (p for _, c in cli_page.commands() for p in c.get_params(click.Context(c)))
    known = {flag for found in each for flag in (*found.opts, *found.secondary_opts)}
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = {flag for code in re.findall(r"`([^`\n]+)`", text) for flag in _FLAG.findall(code)}
    assert named - known - _OTHERS == set()


def test_commands_are_found_and_wrong_ones_are_noticed() -> None:
    found = [words for page in PAGES for words in command_lines(page)]
    assert len(found) > 150
    assert "--titel" in problem_with(["push", "movie.mp4", "--titel", "Movie"])
    assert problem_with(["upload", "movie.mp4"]) == "no command upload"
