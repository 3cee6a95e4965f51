"""Rows into the queue and out of it, with nothing going wrong."""

from __future__ import annotations

from tests.cluster.conftest import PART, Cluster


def test_what_is_queued_is_uploaded_and_told(cluster: Cluster) -> None:
    cluster.files(5, size=2 * PART)
    cluster.enqueue()
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.said
    cluster.check(5, size=2 * PART, resent=0)
