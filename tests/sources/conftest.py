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


def _param(kind: Kind) -> object:
    """The quick run has one kind for each way of reading; the long one has all of them."""
    marks = () if kind.is_quick else (pytest.mark.slow,)
    return pytest.param(kind, id=kind.name, marks=marks)


@pytest.fixture(params=[*map(_param, KINDS)])
async def origin(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Origin]:
    """Where a source of each kind comes from."""
    kind: Kind = request.param
    async with kind.origin(tmp_path / "origin") as opened:
        yield opened
