"""Uploads as metrics of Prometheus (extra `metrics`).

    metrics = Metrics()
    async with Uploader(..., on_event=metrics) as up, metrics.served("9464"): ...

No label holds a VideoId, a path, a bucket or a text of a server: their values are names of
errors, operations, verdicts and proofs, of which there are a few dozen. Whatever is
uploaded, the number of time series stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

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
    UploadProgress,
    UploadRestarted,
    UploadStarted,
)

try:
    import prometheus_client as prometheus
except ImportError as error:
    raise ConfigurationError(
        "Metrics need prometheus-client.", next_step="Run `pip install 'vodup[metrics]'`."
    ) from error

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

__all__ = ["Metrics"]

_LOOPBACK: Final = "127.0.0.1"
_UPLOAD_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)
_PART_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_UPLOAD_BYTES: Final = (1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12)


class Metrics:
    """Counts what it is told: an `on_event` listener.

    Mutable: the counters, and how far each upload under way has come. Used on one event
    loop; read from any thread.

    Attributes:
        registry: where the metrics are; one of its own unless one is given, because a
            registry takes each name once.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or prometheus.CollectorRegistry()
        self._done_bytes: dict[str, int] = {}
        self._started = self._counter("uploads_started", "Uploads that began to send.", "resumed")
        self._finished = self._counter("uploads_finished", "Uploads verified.", "verified_by")
        self._receipts = self._counter("receipts", "Uploads that an earlier run had finished.")
        self._failed = self._counter("uploads_failed", "Uploads that ended in an error.", "error")
        self._cancelled = self._counter("uploads_cancelled", "Uploads stopped from outside.")
        self._active = prometheus.Gauge(
            "vodup_uploads_active", "Uploads sending right now.", registry=self.registry
        )
        self._bytes = self._counter("bytes", "Bytes of files that left, repeats not counted.")
        self._sent = self._counter("sent_bytes", "Bytes sent by finished uploads, with repeats.")
        self._parts = self._counter("parts_stored", "Parts sent and acknowledged.")
        self._adopted = self._counter("parts_adopted", "Parts OSS had without our knowing.")
        self._restarts = self._counter("upload_restarts", "Multipart uploads begun anew.")
        self._renewals = self._counter("credential_renewals", "Credentials renewed by VOD.")
        self._retries = self._counter(
            "request_retries", "Requests repeated.", "operation", "verdict"
        )
        self._seconds = self._histogram("upload_seconds", "Time of an upload.", _UPLOAD_S)
        self._part_s = self._histogram("part_seconds", "Time of a part, with repeats.", _PART_S)
        self._sizes = self._histogram("upload_size_bytes", "Sizes of uploads.", _UPLOAD_BYTES)

    def _counter(self, name: str, words: str, *labels: str) -> prometheus.Counter:
        return prometheus.Counter(f"vodup_{name}", words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> prometheus.Histogram:
        return prometheus.Histogram(f"vodup_{name}", words, buckets=buckets, registry=self.registry)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case UploadProgress():
                self._reached(event.key, event.done_bytes)
            case PartStored():
                self._parts.inc()
                self._part_s.observe(event.seconds)
            case UploadStarted():
                if event.key not in self._done_bytes:  # not begun anew within one run
                    self._started.labels("yes" if event.is_resumed else "no").inc()
                self._done_bytes[event.key] = event.done_bytes
                self._active.set(len(self._done_bytes))
            case UploadFinished():
                self._end_well(event)
            case UploadFailed():
                self._failed.labels(event.error).inc()
                self._leave(event.key)
            case UploadCancelled():
                self._cancelled.inc()
                self._leave(event.key)
            case RequestRetried():
                self._retries.labels(event.operation, event.verdict).inc()
            case CredentialsRenewed():
                self._renewals.inc()
            case PartsAdopted():
                self._adopted.inc(event.part_count)
            case UploadRestarted():
                self._restarts.inc()
                if event.key in self._done_bytes:
                    self._done_bytes[event.key] = 0

    def _reached(self, key: str, done_bytes: int) -> None:
        """A position that goes back is a repeat, and counted once only."""
        former = self._done_bytes.get(key)
        if former is not None and done_bytes > former:
            self._bytes.inc(done_bytes - former)
            self._done_bytes[key] = done_bytes

    def _end_well(self, event: UploadFinished) -> None:
        result = event.result
        if result.is_receipt:
            self._receipts.inc()
            return
        self._finished.labels(result.verified_by).inc()
        self._sent.inc(result.sent_bytes)
        self._seconds.observe(result.seconds)
        self._sizes.observe(result.size)
        self._reached(event.key, result.size)
        self._leave(event.key)

    def _leave(self, key: str) -> None:
        self._done_bytes.pop(key, None)
        self._active.set(len(self._done_bytes))

    @contextmanager
    def served(self, address: str) -> Iterator[str]:
        """Serve them over HTTP while the block runs, in a thread; yields the URL.

        Args:
            address: "PORT", on 127.0.0.1 only, or "HOST:PORT"; port 0 takes any.

        Raises:
            ConfigurationError: that is no address, or it cannot be used.
        """
        host, port = _host_and_port(address)
        try:
            server, thread = prometheus.start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise ConfigurationError(
                f"The metrics cannot be served at {host}:{port}: {error.strerror}.",
                next_step="Name another port, or 0 for any.",
            ) from error
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{server.server_port}/metrics"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?([0-9]{1,5})", address)
    if found is None or int(found[2]) > 65535:
        raise ConfigurationError(
            f"{address!r} is no address for metrics.",
            next_step="Give PORT (on 127.0.0.1 only) or HOST:PORT.",
        )
    return (found[1] or _LOOPBACK).strip("[]"), int(found[2])
