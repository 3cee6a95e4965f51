"""`--metrics-port`: what Prometheus may ask this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from uploader.cli.text import err
from uploader.events import Listener

__all__ = ["measured"]


@contextmanager
def measured(address: str | None) -> Iterator[Listener | None]:
    """Serve metrics while the block runs; yields what has to be told events, if anything."""
    if address is None:
        yield None
        return
    from uploader.metrics import Metrics

    metrics = Metrics()
    with metrics.served(address) as url:
        err(f"vodup: metrics are at {url}")
        yield metrics
