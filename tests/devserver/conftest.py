"""A running devserver for each test that asks for one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from uploader.devserver import DevServer, ThreadedDevServer

from .clients import Oss, Vod, start_upload

FOREIGN = {
    "test_calibration", "test_operations", "test_oss_access", "test_oss_bucket",
    "test_real_clients", "test_signed_urls",
}  # fmt: skip
"""Modules whose clients are others': some leave connections to the garbage collector."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore what others' clients leave open; it is collected before the next module."""
    ignored = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    for item in items:
        if item.path.parent.name == "devserver" and item.path.stem in FOREIGN:
            item.add_marker(ignored)


@pytest.fixture(autouse=True, scope="module")
def _others_are_collected() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


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
