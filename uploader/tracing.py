"""Uploads as spans of OpenTelemetry (extra `otel`).

    async with Uploader(..., on_event=Tracing()) as up: ...

An upload is a span below whatever span its caller is in; its parts and renewals are spans
below that, its repeated requests events in it. Where they go is for the application's
tracer provider to say: without one, nothing is recorded.
"""

from __future__ import annotations

import time

from uploader.errors import ConfigurationError
from uploader.events import (
    CredentialsRenewed,
    Event,
    PartsAdopted,
    PartStored,
    RequestRetried,
    UploadCancelled,
    UploadFailed,
    UploadFinished,
    UploadRestarted,
    UploadStarted,
)

try:
    from opentelemetry import trace
except ImportError as error:
    raise ConfigurationError(
        "Tracing needs opentelemetry-api.", next_step="Run `pip install 'vodup[otel]'`."
    ) from error

__all__ = ["Tracing"]


class Tracing:
    """Makes spans of what it is told: an `on_event` listener.

    Mutable: the spans of uploads under way. A span has the VideoId; no span has a path, a
    credential or a URL.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """`provider` None: the application's, as it is when the first upload begins."""
        self._tracer = trace.get_tracer("vodup", tracer_provider=provider)
        self._open: dict[str, trace.Span] = {}

    def __call__(self, event: Event) -> None:
        """Begin or end a span, or note something in one."""
        match event:
            case UploadStarted():
                self._begin(event)
            case PartStored():
                attributes = {"vodup.part_number": event.part_number, "vodup.size": event.size}
                if event.member_number is not None:
                    attributes["vodup.member_number"] = event.member_number
                self._past(event, "part", event.seconds, attributes)
            case CredentialsRenewed():
                attributes = {"vodup.renewal_count": event.renewal_count}
                self._past(event, "renewal", event.seconds, attributes)
            case RequestRetried():
                self._note(event, {"operation": event.operation, "verdict": event.verdict})
            case PartsAdopted():
                self._note(event, {"part_count": event.part_count})
            case UploadRestarted():
                self._note(event, {"lost_bytes": event.lost_bytes})
            case UploadFinished():
                self._finish(event)
            case UploadFailed():
                self._fail(event)
            case UploadCancelled():
                if (known := self._open.pop(event.key, None)) is not None:
                    known.set_attribute("vodup.is_cancelled", True)
                    known.end()

    def _begin(self, event: UploadStarted) -> None:
        if event.key in self._open:  # begun anew within one run
            return
        span = self._tracer.start_span(
            "upload",
            attributes={
                "vodup.video_id": event.video_id or "",
                "vodup.size": event.size,
                "vodup.part_count": event.part_count,
                "vodup.resumed_part_count": event.resumed_part_count,
            },
        )
        self._open[event.key] = span

    def _past(self, event: Event, name: str, seconds: float, attributes: dict[str, int]) -> None:
        """A span of something that has just ended."""
        known = self._open.get(event.key)
        # Renewed before the first part: below the caller's span, as the upload will be.
        context = trace.set_span_in_context(known) if known else None
        end_ns = time.time_ns()
        begin_ns = end_ns - round(seconds * 1e9)
        span = self._tracer.start_span(
            name, context=context, start_time=begin_ns, attributes=attributes
        )
        span.end(end_ns)

    def _note(self, event: Event, attributes: dict[str, str | int]) -> None:
        if (known := self._open.get(event.key)) is not None:
            known.add_event(
                event.type, {f"vodup.{name}": value for name, value in attributes.items()}
            )

    def _finish(self, event: UploadFinished) -> None:
        known = self._open.pop(event.key, None)
        if known is None:  # a receipt: nothing was done
            return
        known.set_attribute("vodup.verified_by", event.result.verified_by)
        known.set_attribute("vodup.retry_count", event.result.retry_count)
        known.end()

    def _fail(self, event: UploadFailed) -> None:
        known = self._open.pop(event.key, None)
        span = known if known else self._tracer.start_span("upload")
        span.set_attribute("vodup.video_id", event.video_id or "")
        span.set_attribute("error.type", event.error)
        span.set_attribute("vodup.code", event.code)
        span.set_status(trace.StatusCode.ERROR, event.error)
        span.end()
