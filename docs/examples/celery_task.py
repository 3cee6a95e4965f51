"""A Celery task that uploads. Delivered twice, killed or cancelled: one upload.

The checkpoint decides, not the broker: whoever holds the lease sends, the other one is told
`UploadLocked` and comes back later, to find the receipt.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from uploader import LeaseLost, UploadLocked, VideoMeta, VodProvider, VodupError, upload_sync

app = Celery("videos", broker=os.environ.get("CELERY_BROKER_URL", "memory://"))

SETTINGS: dict[str, Any] = {"state": os.environ.get("VODUP_STATE")}
"""What the uploader is told. The state is shared by all workers: postgresql://… ; None is
this user's own file, for one machine."""

LOCKED_WAIT_S = 30


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True, max_retries=None)
def upload(self: Task, path: str, key: str, title: str | None = None) -> dict[str, Any]:
    """Upload `path` under the name `key`, which must be the same in every delivery."""
    try:
        result = upload_sync(
            path,
            provider=VodProvider.from_env(),
            key=key,
            meta=VideoMeta(title=title),
            **SETTINGS,
        )
    except (UploadLocked, LeaseLost) as error:
        raise self.retry(exc=error, countdown=LOCKED_WAIT_S) from error
    except VodupError as error:
        if not error.is_temporary:
            raise
        wait_s = min(600, 10 * 2**self.request.retries)
        raise self.retry(exc=error, countdown=wait_s) from error
    return {"video_id": result.video_id, "crc64": str(result.crc64), "size": result.size}
