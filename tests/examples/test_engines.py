"""The examples of docs/engines.md, run by the engines they are for, as far as those are here."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import uploader
from tests.cluster.conftest import PART, Cluster, content
from tests.waiting import until, wait_until
from uploader import TrustPolicy, UploadOptions
from uploader.devserver import DevServer, ThreadedDevServer

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SIZE = 8 * PART


def example(name: str) -> Any:  # noqa: ANN401 - a module that mypy does not see
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server() -> Iterator[DevServer]:
    with ThreadedDevServer() as threaded:
        yield threaded.server


@pytest.fixture
def cluster(
    server: DevServer, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Cluster:
    """A file, and an environment in which this process may upload it."""
    made = Cluster(server, postgres_url, tmp_path, monkeypatch)
    for name, value in made.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VODUP_ALLOW_LOOPBACK_HTTP", "1")
    (tmp_path / "a.mp4").write_bytes(content(1, SIZE))
    return made


def check(cluster: Cluster) -> None:
    (video_id,) = cluster.server.videos
    assert cluster.server.stats.creates == 1
    assert cluster.server.object_bytes(video_id) == content(1, SIZE)
    assert cluster.server.stats.bytes_sent_twice == 0


def settings(cluster: Cluster) -> dict[str, Any]:
    """What the examples cannot know: that the server is on this machine, and parts are small."""
    return {
        "state": cluster.url,
        "trust": TrustPolicy(allow_loopback=True),
        "options": UploadOptions(part_size=PART, concurrency=2),
    }


# --- Celery -----------------------------------------------------------------------------


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """Celery's worker sets the root logger to its own level, and never puts it back."""
    from celery.signals import setup_logging

    def left_alone(**_: object) -> None:
        """Celery configures no logging once anybody is connected here."""

    setup_logging.connect(left_alone)
    yield
    setup_logging.disconnect(left_alone)


@pytest.mark.usefixtures("_own_logging")
@pytest.mark.filterwarnings("ignore")  # of celery and kombu
def test_a_task_that_celery_delivers_twice_makes_one_upload(cluster: Cluster) -> None:
    from celery.contrib.testing.worker import start_worker

    module = example("celery_task")
    module.app.conf.update(broker_url="memory://", result_backend="cache+memory://")
    module.SETTINGS.update(settings(cluster))
    module.LOCKED_WAIT_S = 1
    cluster.server.set_options(connection_bandwidth=4 * PART)
    path = str(cluster.folder / "a.mp4")
    options: dict[str, Any] = {"perform_ping_check": False, "pool": "threads", "concurrency": 2}
    with start_worker(module.app, **options):
        tasks = [module.upload.apply_async((path, "asset-1")) for _ in range(2)]
        wait_until(lambda: any(task.state == "RETRY" for task in tasks))
        cluster.server.set_options(connection_bandwidth=None)
        first, second = [task.get(timeout=60) for task in tasks]
    assert first == second
    check(cluster)


# --- Temporal ---------------------------------------------------------------------------


async def test_two_attempts_of_a_temporal_activity_make_one_upload(cluster: Cluster) -> None:
    module = example("temporal_activity")
    module.SETTINGS.update(settings(cluster))
    module.HEARTBEAT_S = 0.05
    cluster.server.set_options(connection_bandwidth=4 * PART)
    request = module.UploadInput(str(cluster.folder / "a.mp4"), "asset-1", "A title")
    beats: list[tuple[Any, ...]] = []
    first = asyncio.ensure_future(activity_environment(beats).run(module.upload, request))
    await until(lambda: cluster.server.stats.parts_stored)
    with pytest.raises(ApplicationError) as refused:
        await activity_environment([]).run(module.upload, request)
    assert (refused.value.type, refused.value.non_retryable) == ("UploadLocked", False)
    cluster.server.set_options(connection_bandwidth=None)
    output = await first
    assert output == await activity_environment([]).run(module.upload, request)
    assert len(beats) > 5
    check(cluster)


async def test_a_cancelled_temporal_activity_is_resumed(cluster: Cluster) -> None:
    module = example("temporal_activity")
    module.SETTINGS.update(settings(cluster))
    cluster.server.set_options(connection_bandwidth=4 * PART)
    request = module.UploadInput(str(cluster.folder / "a.mp4"), "asset-1")
    environment = activity_environment([])
    running = asyncio.ensure_future(environment.run(module.upload, request))
    await until(lambda: cluster.server.stats.parts_stored >= 2)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    cluster.server.set_options(connection_bandwidth=None)
    output = await activity_environment([]).run(module.upload, request)
    assert output.size == SIZE
    check(cluster)


async def test_permanent_failures_are_not_retried_by_temporal(cluster: Cluster) -> None:
    module = example("temporal_activity")
    module.SETTINGS.update(settings(cluster))
    request = module.UploadInput(str(cluster.folder / "none.mp4"), "asset-1")
    with pytest.raises(ApplicationError) as refused:
        await activity_environment([]).run(module.upload, request)
    assert refused.value.non_retryable
    assert "none.mp4" in str(refused.value)


def activity_environment(beats: list[tuple[Any, ...]]) -> ActivityEnvironment:
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.append(details)
    return environment


# --- those that are not here ------------------------------------------------------------


@pytest.mark.parametrize("name", ["airflow_operator", "prefect_task"])
def test_the_other_examples_call_what_there_is(name: str) -> None:
    """Compiled, and what they take from vodup exists; their engines are not installed here."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
    taken = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "uploader"
        for alias in node.names
    ]
    assert "VodProvider" in taken
    assert set(taken) <= set(uploader.__all__)


def test_what_the_page_shows_is_there() -> None:
    page = (EXAMPLES.parent / "engines.md").read_text()
    shown = re.findall(r"\]\(examples/(\w+\.py)\)", page)
    assert len(shown) == 4
    assert all((EXAMPLES / name).is_file() for name in shown)
