"""An account, a desk, and every kind of source with a place it comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from uploader.devserver import DevServer

from ..engine.harness import Desk
from .kinds import KINDS, Kind, Origin


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def desk(server: DevServer, tmp_path: Path) -> Desk:
    return Desk(server, tmp_path)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def origin(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Origin]:
    """Where a source of each kind comes from."""
    kind: Kind = request.param
    async with kind.origin(tmp_path / "origin") as opened:
        yield opened
