"""Many uploads through one engine: memory, descriptors and threads stay what they were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.harness import Desk
from uploader.devserver import Fault

from .conftest import Nursery, job_of

MIB = 1024 * 1024
TROUBLE = [
    Fault(action="error", operation="PutObject", code="InternalError", status=500),
    Fault(action="reset", operation="PutObject"),
    Fault(action="error", operation="UploadPart", code="SecurityTokenExpired", status=403),
    Fault(action="drop_answer", operation="CreateUploadVideo"),
    Fault(action="drop_answer", operation="CompleteMultipartUpload"),
]


async def soaked(desk: Desk, nursery: Nursery, count: int, every: int) -> None:
    for fault in TROUBLE:
        desk.server.faults.add(_often(fault))
    job = job_of(desk, count=count, every=every, seed=count, vod_calls_per_s=2000.0)

    report = await nursery.start(**job, do="soak").ended(timeout_s=900)

    assert report is not None
    assert (report["ended"], report["failed"], report["left"]) == (count, [], 1)
    assert desk.server.stats.creates == len(desk.server.videos) == count
    assert desk.server.open_upload_count == 0
    warm = report["samples"][len(report["samples"]) // 4 :]
    rss = [sample["rss"] / MIB for sample in warm]
    per_thousand = slope(rss) * 1000 / every
    print(f"{count} uploads: RSS {rss[0]:.1f} to {rss[-1]:.1f} MiB, {per_thousand:+.2f} a thousand")
    assert per_thousand < 1.0, rss
    for what in ("descriptors", "threads"):
        counts = [sample[what] for sample in warm]
        assert max(counts) - min(counts) <= 2 * 32, counts  # connections come and go
        assert counts[-1] <= counts[0] + 4, counts


def _often(fault: Fault) -> Fault:
    """Two of a hundred requests, drawn."""
    return replace(fault, probability=0.02, count=None, seed=7)


def slope(values: list[float]) -> float:
    """Least squares, in units a step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (v - mean) for at, v in enumerate(values)) / spread


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_ten_thousand_uploads_leave_nothing_behind(desk: Desk, nursery: Nursery) -> None:
    await soaked(desk, nursery, 10_000, 250)
