"""The command and a server of its own; for the library, a desk in the test's own loop."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from tests.cli.conftest import Cli, Ended
from tests.engine.harness import Desk
from uploader.devserver import DevServer, ThreadedDevServer


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with DevServer() as server:
        yield Desk(server, tmp_path)


@pytest.fixture
def server() -> Iterator[DevServer]:
    """One for each test: what is counted there is this test's."""
    with ThreadedDevServer() as threaded:
        yield threaded.server


@dataclass
class Quick(Cli):
    """The command in this process: starting another one takes longer than most of the tests."""

    monkeypatch: pytest.MonkeyPatch | None = None

    def run(
        self,
        *words: str,
        stdin: str = "",
        env: dict[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Ended:
        assert self.monkeypatch is not None
        assert not stdin
        out, err = io.StringIO(), io.StringIO()
        with self.monkeypatch.context() as patched:
            patched.chdir(self.folder)
            for name in os.environ.keys() - self.env.keys():
                patched.delenv(name)
            for name, value in {**self.env, **(env or {})}.items():
                patched.setenv(name, value)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = _run(words)
        structlog.reset_defaults()
        return Ended(code, out.getvalue(), err.getvalue())


def _run(words: tuple[str, ...]) -> int:
    from uploader.cli.app import run

    try:
        run(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("a command ends with a code")


@pytest.fixture
def quick(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    return Quick(server, tmp_path, env={"VODUP_API_RATE": "500"}, monkeypatch=monkeypatch)


@pytest.fixture
def cli(server: DevServer, tmp_path: Path) -> Cli:
    return Cli(server, tmp_path, env={"VODUP_API_RATE": "500"})
