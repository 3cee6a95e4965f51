"""The command and a server of its own; for the library, a desk in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
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


@pytest.fixture
def cli(server: DevServer, tmp_path: Path) -> Cli:
    return Cli(server, tmp_path, env={"VODUP_API_RATE": "500"})
