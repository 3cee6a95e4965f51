"""Spans: an upload below its caller, its parts and renewals below it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.engine.harness import PART, Desk, content, until
from uploader import ServiceError, SourceUnreadable
from uploader.devserver import DevServer, Fault
from uploader.tracing import Tracing


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with DevServer() as server:
        yield Desk(server, tmp_path)


class Spans:
    """An application's tracing, kept in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


def is_below(span: ReadableSpan, above: ReadableSpan) -> bool:
    assert above.context is not None
    return span.parent is not None and span.parent.span_id == above.context.span_id


async def test_parts_and_renewals_are_below_the_upload_and_that_below_its_caller(
    desk: Desk,
) -> None:
    desk.order(
        Fault(action="error", operation="UploadPart", part=2, code="SecurityTokenExpired"),
        Fault(action="error", operation="UploadPart", part=3, code="InternalError"),
    )
    spans = Spans()
    tracing = Tracing(spans.provider)
    async with desk.uploader() as up:
        with spans.provider.get_tracer("application").start_as_current_span("publish"):
            result = await up.upload(desk.file(4 * PART), on_event=tracing)

    upload, publish = spans.one("upload"), spans.one("publish")
    assert is_below(upload, publish)
    assert upload.attributes is not None
    assert upload.attributes["vodup.video_id"] == result.video_id
    assert upload.attributes["vodup.verified_by"] == "crc64"
    parts = spans.named("part")
    numbers = [str((part.attributes or {})["vodup.part_number"]) for part in parts]
    assert sorted(numbers) == ["1", "2", "3", "4"]
    assert all(is_below(part, upload) for part in parts)
    assert is_below(spans.one("renewal"), upload)
    assert [event.name for event in upload.events].count("request.retried") == 2
    for part in parts:
        assert part.start_time is not None
        assert part.end_time is not None
        assert upload.end_time is not None
        assert part.start_time < part.end_time <= upload.end_time


async def test_uploads_at_once_do_not_mix(desk: Desk) -> None:
    spans = Spans()
    tracing = Tracing(spans.provider)
    movies = [desk.file(2 * PART, f"{n}.mp4", seed=n) for n in range(3)]
    async with desk.uploader() as up, asyncio.TaskGroup() as group:
        for movie in movies:
            group.create_task(up.upload(movie, on_event=tracing))

    uploads = spans.named("upload")
    assert len(uploads) == 3
    for upload in uploads:
        assert sum(is_below(part, upload) for part in spans.named("part")) == 2


async def test_parts_of_a_large_member_of_a_package_name_the_member(desk: Desk) -> None:
    (desk.folder / "a.ts").write_bytes(content(3 * PART))
    playlist = desk.folder / "index.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n")
    spans = Spans()
    async with desk.uploader() as up:
        await up.upload(playlist, on_event=Tracing(spans.provider))

    members = [(part.attributes or {}).get("vodup.member_number") for part in spans.named("part")]
    assert members == [1, 1, 1, None]


async def test_a_failure_is_the_status_of_its_span(desk: Desk) -> None:
    desk.order(Fault(action="error", operation="PutObject", code="EntityTooLarge"))
    spans = Spans()
    tracing = Tracing(spans.provider)
    async with desk.uploader() as up:
        with pytest.raises(ServiceError):
            await up.upload(desk.file(1000), on_event=tracing)
        with pytest.raises(SourceUnreadable):
            await up.upload(desk.folder / "missing.mp4", on_event=tracing)

    sent, unread = spans.named("upload")
    assert sent.attributes is not None
    assert (sent.status.status_code, sent.attributes["error.type"]) == (
        StatusCode.ERROR,
        "ServiceError",
    )
    assert sent.attributes["vodup.code"] == "EntityTooLarge"
    assert unread.status.description == "SourceUnreadable"


async def test_a_cancelled_upload_leaves_no_open_span(desk: Desk) -> None:
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=30))
    spans = Spans()
    tracing = Tracing(spans.provider)
    async with desk.uploader() as up:
        task = asyncio.create_task(up.upload(desk.file(4 * PART), on_event=tracing))
        await until(lambda: desk.count("UploadPart") > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    upload = spans.one("upload")
    assert upload.attributes is not None
    assert upload.attributes["vodup.is_cancelled"] is True


async def test_no_span_holds_a_path_or_a_credential(desk: Desk) -> None:
    spans = Spans()
    tracing = Tracing(spans.provider)
    async with desk.uploader() as up:
        await up.upload(desk.file(2 * PART, "a-secret-film.mp4"), on_event=tracing)

    text = " ".join(
        f"{span.name} {dict(span.attributes or {})} {span.events}"
        for name in ("upload", "part")
        for span in spans.named(name)
    )
    assert "a-secret-film" not in text
    assert str(desk.folder) not in text
    assert "STS." not in text
