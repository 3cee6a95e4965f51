"""What is exported for others to keep holds no secret, whatever went wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from tests.engine.harness import PART, Desk
from tests.engine.test_secrets import TROUBLE
from uploader import Event, VodupError
from uploader.devserver import DevServer
from uploader.metrics import Metrics
from uploader.tracing import Tracing


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with DevServer() as server:
        yield Desk(server, tmp_path)


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_metrics_and_spans_contain_no_secret(desk: Desk, trouble: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics, tracing = Metrics(), Tracing(provider)

    def listen(event: Event) -> None:
        metrics(event)
        tracing(event)

    desk.order(*TROUBLE[trouble])
    with suppress(VodupError):
        await desk.push(desk.file(9 * PART), on_event=listen)

    spans = [span.to_json() for span in exporter.get_finished_spans()]
    exported = json.dumps(spans) + generate_latest(metrics.registry).decode()
    assert len(spans) >= 1
    assert "vodup_" in exported
    assert [secret for secret in desk.server.secrets() if secret[:24] in exported] == []
