"""Uploads as Prometheus metrics (extra `metrics`).

    metrics = Metrics()
    async with Uploader(..., on_event=metrics) as up, metrics.served("9464"): ...

No label holds a VideoId, a path, a bucket or a server's text: label values are names of
errors, operations, decisions and proofs, a few dozen in all. The number of time series does
not grow with what is uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uploader.errors import ConfigurationError
from uploader.events import Event, PartStored, UploadFinished
from uploader.tracker import Tracker

try:
    from prometheus_client import CollectorRegistry, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise ConfigurationError(
        "Metrics need prometheus-client.", next_step="Run `pip install 'vodup[metrics]'`."
    ) from error

if TYPE_CHECKING:
    from prometheus_client import Metric

_LOOPBACK: Final = "127.0.0.1"
_UPLOAD_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)
_PART_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_UPLOAD_BYTES: Final = (1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12)


class Metrics:
    """Counts events: an `on_event` listener, and a collector of Prometheus.

    Mutable. Used on one event loop; read from any thread.

    Attributes:
        registry: where the metrics are; one of its own unless one is given, because a
            registry takes each name once.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._tracker = Tracker()
        self._seconds = self._histogram("upload_seconds", "Time of an upload.", _UPLOAD_S)
        self._part_s = self._histogram("part_seconds", "Time of a part, with retries.", _PART_S)
        self._sizes = self._histogram("upload_size_bytes", "Sizes of uploads.", _UPLOAD_BYTES)
        self.registry.register(self)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vodup_{name}", help_, buckets=buckets, registry=self.registry)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        self._tracker(event)
        match event:
            case PartStored():
                self._part_s.observe(event.seconds)
            case UploadFinished(result=result) if not result.is_earlier_result:
                self._seconds.observe(result.seconds)
                self._sizes.observe(result.size)

    def collect(self) -> Iterator[Metric]:
        """Yield the counts; called by the registry for each scrape."""
        of = self._tracker
        yield _by("uploads_started", "Uploads that began to send.", "resumed", _yes_no(of.started))
        yield _by("uploads_finished", "Uploads verified.", "verified_by", of.finished)
        yield _by("uploads_failed", "Uploads that ended in an error.", "error", of.failed)
        counts = {
            "uploads_finished_earlier": (
                of.finished_before_count,
                "Uploads that an earlier run had finished.",
            ),
            "uploads_cancelled": (of.cancelled_count, "Uploads cancelled by the caller."),
            "bytes": (of.new_bytes, "Bytes sent; parts that were sent again count once."),
            "sent_bytes": (of.finished_sent_bytes, "Bytes sent by finished uploads, with repeats."),
            "parts_stored": (of.stored_part_count, "Parts sent and acknowledged."),
            "parts_adopted": (of.adopted_part_count, "Parts that OSS had and the checkpoint not."),
            "upload_restarts": (of.restart_count, "Multipart uploads that were restarted."),
            "credential_renewals": (of.renewal_count, "Credentials renewed by VOD."),
        }
        for name, (value, help_) in counts.items():
            yield CounterMetricFamily(f"vodup_{name}", help_, value=value)
        retries = CounterMetricFamily(
            "vodup_request_retries", "Requests repeated.", labels=("operation", "action")
        )
        for labels, value in list(of.retries.items()):
            retries.add_metric(labels, value)
        yield retries
        yield GaugeMetricFamily("vodup_uploads_active", "Uploads sending now.", len(of.active))

    @contextmanager
    def served(self, address: str) -> Iterator[str]:
        """Serve the metrics over HTTP in a thread while the block runs; yields the URL.

        Args:
            address: "PORT", on 127.0.0.1 only, or "HOST:PORT"; port 0 takes any.

        Raises:
            ConfigurationError: the address is invalid or cannot be used.
        """
        host, port = _host_and_port(address)
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except (OSError, UnicodeError) as error:  # a host name may have no form for the DNS
            reason = getattr(error, "strerror", None) or "this is no host name"
            raise ConfigurationError(
                f"Cannot serve metrics at {host}:{port}: {reason}.",
                next_step="Choose another port, or 0 for any free one.",
            ) from error
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{server.server_port}/metrics"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def add_watcher(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Show the counts of a watched folder as well; `Watcher.counts` gives them."""
        self.registry.register(_WatcherCounts(counts))


@dataclass(frozen=True)
class _WatcherCounts:
    """A collector; the counts are read for each scrape, in its thread."""

    counts: Callable[[], Mapping[str, int]]

    def collect(self) -> Iterator[Metric]:
        counts = dict(self.counts())
        yield GaugeMetricFamily(
            "vodup_watch_healthy",
            "1 if the folder can be read and was looked at in time, else 0.",
            counts.pop("healthy"),
        )
        files = GaugeMetricFamily(
            "vodup_watch_files", "Files of a watched folder, by state.", labels=("state",)
        )
        for state, count in counts.items():
            files.add_metric((state,), count)
        yield files


def _by(name: str, help_: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"vodup_{name}", help_, labels=(label,))
    for value, count in list(counts.items()):
        family.add_metric((value,), count)
    return family


def _yes_no(counts: Mapping[bool, int]) -> dict[str, int]:
    return {"yes" if key else "no": count for key, count in list(counts.items())}


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?([0-9]{1,5})", address)
    if found is None or int(found[2]) > 65535:
        raise ConfigurationError(
            f"--metrics-port: expected PORT or HOST:PORT, got {address!r}.",
            next_step="Give PORT (on 127.0.0.1 only) or HOST:PORT.",
        )
    return (found[1] or _LOOPBACK).strip("[]"), int(found[2])
