"""A running devserver for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from uploader.devserver import DevServer, ThreadedDevServer

from .clients import Oss, Vod, start_upload


@pytest.fixture(autouse=True)
def _no_ecs_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")


@pytest.fixture
def server() -> Iterator[DevServer]:
    with ThreadedDevServer() as threaded:
        yield threaded.server


@pytest.fixture
def vod(server: DevServer) -> Vod:
    return Vod(server)


@pytest.fixture
def oss(vod: Vod) -> Oss:
    return start_upload(vod)
