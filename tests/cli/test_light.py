"""`vodup --help` starts fast."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from uploader.cli.app import app

COMMANDS = (
    "push ingest enqueue worker results resume status abort clean verify inspect doctor "
    "devserver demo version"
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
    assert set(app.commands) - {"db"} == set(COMMANDS)


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


@pytest.mark.parametrize(("words", "at_most"), [(["--help"], 150), (["push", "--help"], 265)])
def test_help_keeps_to_its_budget_of_modules(words: list[str], at_most: int) -> None:
    _require_modules(at_most=at_most, code=MAIN.format(words=words))


def test_status_keeps_to_its_budget_of_modules(tmp_path: Path) -> None:
    words = ["status", "--state", str(tmp_path / "private" / "state.db")]
    _require_modules(at_most=500, code=MAIN.format(words=words))


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
    # 0.15 s on the machine this was written on; rich or aiohttp alone would double it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
