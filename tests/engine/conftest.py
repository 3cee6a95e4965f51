"""An account on a server in the test's own loop, and a desk to work at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from uploader.devserver import DevServer

from .harness import Desk


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def desk(server: DevServer, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path)
