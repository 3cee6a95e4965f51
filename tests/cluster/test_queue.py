"""Rows into the queue and out of it, without any trouble."""

from __future__ import annotations

import re
import signal
import urllib.request

from tests.cluster.conftest import PART, Cluster
from tests.waiting import wait_until


def test_queued_rows_are_uploaded_and_recorded(cluster: Cluster) -> None:
    cluster.files(5, size=2 * PART)
    cluster.enqueue()
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.output
    cluster.check(5, size=2 * PART, resent=0)


def test_a_worker_serves_metrics(cluster: Cluster) -> None:
    cluster.files(2, size=2 * PART)
    cluster.enqueue()
    worker = cluster.worker("--metrics-port", "0")
    wait_until(lambda: cluster.left() == 0)
    url = re.findall(r"metrics are at (\S+)", worker.output)[0]
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - of the worker
        text = answer.read().decode()
    assert f"vodup_sent_bytes_total {float(4 * PART)}" in text, text
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0
