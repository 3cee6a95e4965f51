"""Commands start fast: what each of them imports."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from uploader.cli.app import app

from .conftest import Cli

COMMANDS = (
    "push ingest watch serve enqueue worker results resume status abort clean verify "
    "list delete pull register inspect doctor devserver demo version"
).split()
HEAVY = (
    "aiohttp aiofiles aliyunsdkcore asyncio defusedxml fastcrc oss2 pydantic rich "
    "psycopg ssl structlog uploader.devserver uploader.uploader uploader.state yarl"
).split()

MAIN = """
sys.argv = ["vodup", *{words!r}]
from uploader.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""

MEASURE = f"""
import sys
{MAIN}
loaded = [name for name in {HEAVY!r} if name in sys.modules and name not in {{allowed!r}}]
assert not loaded, loaded
"""


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_tested_here() -> None:
    assert set(app.commands) - {"config", "db"} == set(COMMANDS)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    _run(
        f"import sys, uploader.cli, uploader.cli.app\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    out = _run(MEASURE.format(words=[command, "--help"], allowed=[]))

    assert f"Usage: vodup {command}" in out


LIBRARY = "from uploader import Uploader, VodProvider, UploadOptions, decode_grant"
NOT_BEFORE_AN_UPLOAD = (
    "aliyunsdkcore oss2 pydantic psycopg pygments requests rich structlog uploader.state.sqlite"
)


def test_importing_the_package_loads_next_to_nothing() -> None:
    _require_modules(at_most=40, code="import uploader")


def test_what_an_upload_needs_is_not_loaded_before_there_is_one() -> None:
    _run(
        f"import sys; {LIBRARY}\n"
        f"loaded = sys.modules.keys() & set({NOT_BEFORE_AN_UPLOAD!r}.split())\n"
        "assert not loaded, loaded"
    )
    _require_modules(at_most=400, code=LIBRARY)


SENDS = (
    "aiofiles aiohappyeyeballs aiohttp aiolimiter aiosignal attr click fastcrc frozenlist idna "
    "multidict propcache typing_extensions yarl"
)
"""What aiohttp brings, and what reads, checks and paces files."""

COUNT = """
import atexit, sys
@atexit.register
def count():
    names = {name.partition(".")[0] for name in sys.modules if name != "__main__"}
    foreign = {n for n in names - sys.stdlib_module_names if "cython" not in n} - {"uploader"}
    own = [name for name in sys.modules if name.startswith("uploader")]
    print(*sorted(foreign - BEFORE), len(own), file=open("modules", "w"))
BEFORE = {name.partition(".")[0] for name in sys.modules}
from uploader.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "packages", "own"),
    [
        ("--help", "click", 13),
        ("push --help", "click", 13),
        ("version", "click", 14),
        ("status", "click", 35),
        ("push movie.mp4", SENDS, 110),
    ],
)
def test_a_command_imports_only_these_packages_and_so_many_modules_of_its_own(
    cli: Cli, words: str, packages: str, own: int
) -> None:
    cli.file(size=10_000)
    python = [sys.executable, "-W", "error", "-c", COUNT, *words.split()]
    subprocess.run(python, cwd=cli.folder, env=cli.env, check=True, capture_output=True)
    *found, count = (cli.folder / "modules").read_text().split()

    assert set(found) <= set(packages.split())
    assert int(count) <= own, "load what only some uploads need where they need it"


def _require_modules(*, at_most: int, code: str) -> None:
    """Counted, not timed: a loaded machine imports no more modules than another."""
    counted = f"import sys; before = len(sys.modules)\n{code}\nprint(len(sys.modules) - before)"
    *_, count = _run(counted).splitlines()

    assert int(count) <= at_most


def test_help_takes_little_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = _run(MEASURE.format(words=["--help"], allowed=[]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert all(command in out for command in COMMANDS)
    # 0.06 s on the machine this was written on; rich or aiohttp alone would double it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
