"""Uploads as OpenTelemetry spans (extra `otel`).

    async with Uploader(..., on_event=Tracing()) as up: ...

An upload is a span below its caller's; its parts and renewals are spans below that, its
retries are events in it. The application's tracer provider decides where spans go: without
one, nothing is recorded.
"""

from __future__ import annotations

import time

from uploader import events
from uploader.errors import ConfigurationError

try:
    from opentelemetry import trace
except ImportError as error:
    raise ConfigurationError(
        "Tracing needs opentelemetry-api.", next_step="Run `pip install 'vodup[otel]'`."
    ) from error


class Tracing:
    """Makes spans of events: an `on_event` listener.

    Mutable: the spans of uploads under way. A span has the VideoId; no span has a path, a
    credential or a URL.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """`provider` None: the application's, as it is when the first upload starts."""
        self._tracer = trace.get_tracer("vodup", tracer_provider=provider)
        self._open: dict[str, trace.Span] = {}

    def __call__(self, event: events.Event) -> None:
        """Start or end a span, or add an event to one."""
        match event:
            case events.UploadStarted() if event.key not in self._open:  # else it was restarted
                fields = ("size", "part_count", "resumed_part_count")
                self._open[event.key] = self._tracer.start_span(
                    "upload", attributes=_attributes(event, "video_id", *fields)
                )
            case events.PartStored():
                attributes = _attributes(event, "part_number", "size", "member_number")
                self._add_span(event.key, "part", event.seconds, attributes)
            case events.CredentialsRenewed():
                attributes = _attributes(event, "renewal_count")
                self._add_span(event.key, "renewal", event.seconds, attributes)
            case events.RequestRetried():
                self._add_event(event, "operation", "action")
            case events.PartsAdopted():
                self._add_event(event, "part_count")
            case events.UploadRestarted():
                self._add_event(event, "lost_bytes")
            case events.UploadFinished() | events.UploadCancelled():
                self._end(event)
            case events.UploadFailed():
                self._fail(event)

    def _add_span(
        self, key: str, name: str, seconds: float, attributes: dict[str, str | int]
    ) -> None:
        """Add a span that has just ended."""
        upload = self._open.get(key)
        # Renewed before the first part: below the caller's span, as the upload will be.
        context = trace.set_span_in_context(upload) if upload else None
        end_ns = time.time_ns()
        start_ns = end_ns - round(seconds * 1e9)
        span = self._tracer.start_span(
            name, context=context, start_time=start_ns, attributes=attributes
        )
        span.end(end_ns)

    def _add_event(self, event: events.Event, *fields: str) -> None:
        if (span := self._open.get(event.key)) is not None:
            span.add_event(event.type, _attributes(event, *fields))

    def _end(self, event: events.UploadFinished | events.UploadCancelled) -> None:
        if (span := self._open.pop(event.key, None)) is None:  # nothing was sent
            return
        if isinstance(event, events.UploadFinished):
            span.set_attributes(_attributes(event.result, "verified_by", "retry_count"))
        else:
            span.set_attribute("vodup.is_cancelled", True)
        span.end()

    def _fail(self, event: events.UploadFailed) -> None:
        span = self._open.pop(event.key, None) or self._tracer.start_span("upload")
        span.set_attributes(_attributes(event, "video_id", "code"))
        span.set_attribute("error.type", event.error)
        span.set_status(trace.StatusCode.ERROR, event.error)
        span.end()


def _attributes(values: object, *names: str) -> dict[str, str | int]:
    """Return fields of an event; those that are None are left out."""
    found = {f"vodup.{name}": getattr(values, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
