"""Rows into the queue and out of it, with nothing going wrong."""

from __future__ import annotations

import re
import signal
import urllib.request

from tests.cluster.conftest import PART, Cluster
from tests.waiting import wait_until


def test_what_is_queued_is_uploaded_and_told(cluster: Cluster) -> None:
    cluster.files(5, size=2 * PART)
    cluster.enqueue()
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.said
    cluster.check(5, size=2 * PART, resent=0)


def test_a_worker_tells_prometheus_what_it_sent(cluster: Cluster) -> None:
    cluster.files(2, size=2 * PART)
    cluster.enqueue()
    worker = cluster.worker("--metrics-port", "0")
    wait_until(lambda: cluster.left() == 0)
    url = re.findall(r"metrics are at (\S+)", worker.said)[0]
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - of the worker
        text = answer.read().decode()
    assert f"vodup_sent_bytes_total {float(4 * PART)}" in text, text
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0
