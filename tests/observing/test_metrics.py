"""Metrics: they count what happens, and their number does not grow with it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.engine.harness import PART, Desk
from uploader import ConfigurationError, ServiceError, SourceUnreadable
from uploader.devserver import DevServer, Fault, ThreadedDevServer
from uploader.events import UploadCancelled, UploadProgress, UploadStarted
from uploader.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
SUFFIXES = ("_total", "_bucket", "_sum", "_count")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with DevServer() as server:
        yield Desk(server, tmp_path)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"vodup_{name}", labels)


def started(key: str = "k", *, done_bytes: int = 0) -> UploadStarted:
    return UploadStarted(
        key=key,
        video_id=f"video-of-{key}",
        source=f"/films/{key}.mp4",
        size=100,
        part_count=10,
        done_bytes=done_bytes,
        resumed_part_count=0,
        upload_id=None,
        is_resumed=False,
    )


def progress(done_bytes: int, key: str = "k") -> UploadProgress:
    return UploadProgress(
        key=key,
        video_id=None,
        done_bytes=done_bytes,
        size=100,
        acked_part_count=0,
        part_count=10,
        renewal_count=0,
        retry_count=0,
    )


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


async def test_an_upload_with_its_parts_retries_and_renewals(desk: Desk) -> None:
    desk.order(
        Fault(action="error", operation="UploadPart", part=2, code="SecurityTokenExpired"),
        Fault(action="error", operation="UploadPart", part=3, code="InternalError"),
    )
    metrics = Metrics()
    movie = desk.file(4 * PART + 7)
    async with desk.uploader() as up:
        await up.upload(movie, on_event=metrics)
        await up.upload(movie, on_event=metrics)

    assert value(metrics, "uploads_started_total", resumed="no") == 1
    assert value(metrics, "uploads_finished_total", verified_by="crc64") == 1
    assert value(metrics, "uploads_finished_earlier_total") == 1
    assert value(metrics, "uploads_active") == 0
    assert value(metrics, "bytes_total") == movie.stat().st_size
    assert (value(metrics, "sent_bytes_total") or 0) >= movie.stat().st_size
    assert value(metrics, "parts_stored_total") == 5
    assert value(metrics, "part_seconds_count") == 5
    assert value(metrics, "upload_seconds_count") == 1
    assert value(metrics, "credential_renewals_total") == 1
    assert value(metrics, "request_retries_total", operation="UploadPart", action="RETRY") == 1


async def test_a_file_of_one_request_is_a_part_as_well(desk: Desk) -> None:
    metrics = Metrics()
    async with desk.uploader() as up:
        await up.upload(desk.file(1000), on_event=metrics)

    assert value(metrics, "parts_stored_total") == 1
    assert value(metrics, "bytes_total") == 1000


async def test_failures_are_counted_by_class(desk: Desk) -> None:
    desk.order(Fault(action="error", operation="PutObject", code="EntityTooLarge"))
    metrics = Metrics()
    async with desk.uploader() as up:
        with pytest.raises(ServiceError):
            await up.upload(desk.file(1000), on_event=metrics)
        with pytest.raises(SourceUnreadable):
            await up.upload(desk.folder / "missing.mp4", on_event=metrics)

    assert value(metrics, "uploads_failed_total", error="ServiceError") == 1
    assert value(metrics, "uploads_failed_total", error="SourceUnreadable") == 1
    assert value(metrics, "uploads_active") == 0


def test_the_number_of_series_does_not_grow_with_uploads() -> None:
    metrics = Metrics()
    metrics(started("0"))
    metrics(UploadCancelled(key="0", video_id=None))
    before = series(metrics)
    for number in range(1000):
        metrics(started(str(number)))
        metrics(UploadCancelled(key=str(number), video_id=f"v{number}"))

    assert series(metrics) == before
    assert value(metrics, "uploads_cancelled_total") == 1001
    assert value(metrics, "uploads_active") == 0


def test_bytes_that_are_sent_again_count_once() -> None:
    metrics = Metrics()
    metrics(started(done_bytes=20))
    for position in (50, 30, 60):
        metrics(progress(position))

    assert value(metrics, "bytes_total") == 40


def test_metrics_are_served_on_loopback_by_default() -> None:
    metrics = Metrics()
    metrics(started())
    with metrics.served("0") as url:
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - http, see above
            assert b"vodup_uploads_active 1.0" in answer.read()
        port = url.split(":")[2].partition("/")[0]
        with pytest.raises(ConfigurationError, match=port), Metrics().served(port):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)  # noqa: S310 - it is not served any more


@pytest.mark.parametrize("address", ["", "x", "70000", "1.2.3.4", "a:b:1", "-1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError), Metrics().served(address):
        pass


def test_the_command_serves_metrics_while_it_runs(tmp_path: Path) -> None:
    movie = tmp_path / "movie.mp4"
    movie.write_bytes(b"x" * 1000)
    with ThreadedDevServer() as threaded:
        ended = Cli(threaded.server, tmp_path, env={}).run(
            "push", str(movie), "--metrics-port", "0"
        )
    assert ended.code == 0
    assert "vodup: metrics are at http://127.0.0.1:" in ended.err


# --- what is written about them ---------------------------------------------------------


def names() -> set[str]:
    return {family.name for family in Metrics().registry.collect()}


def test_the_dashboard_uses_only_metrics_that_exist() -> None:
    text = (DOCS / "grafana-dashboard.json").read_text()
    panels = json.loads(text)["panels"]
    exprs = [target["expr"] for panel in panels for target in panel["targets"]]
    used = {name for expr in exprs for name in re.findall(r"vodup_\w+", expr)}
    there = {sample.name for f in Metrics().registry.collect() for sample in f.samples} | {
        f"{f.name}{suffix}" for f in Metrics().registry.collect() for suffix in SUFFIXES
    }

    assert len(exprs) > 10
    assert used <= there, used - there
    unused = {name for name in names() if not any(n.startswith(name) for n in used)}
    assert not unused, unused


def test_labels_the_dashboard_groups_by_exist() -> None:
    text = (DOCS / "grafana-dashboard.json").read_text()
    grouped = {
        word.strip()
        for found in re.findall(r"sum by \(([^)]*)\)", text)
        for word in found.split(",")
    }
    assert grouped <= {"instance", "le", "error", "operation", "action"}


def test_the_table_of_metrics_is_complete() -> None:
    text = (DOCS / "observability.md").read_text()
    listed = {name.removesuffix("_total") for name in re.findall(r"^\| `(vodup_\w+)`", text, re.M)}
    assert listed - {"vodup_watch_files", "vodup_watch_healthy"} == names()
