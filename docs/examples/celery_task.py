"""A Celery task that uploads a video. Delivered twice, killed or cancelled: one upload.

The checkpoint decides, not the broker: the process that holds the lease sends, the other one
gets `UploadLocked`, retries later, and finds the result.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from uploader import LeaseLost, UploadLocked, VideoMeta, VodProvider, VodupError, upload_sync

app = Celery("videos", broker=os.environ.get("CELERY_BROKER_URL", "memory://"))

SETTINGS: dict[str, Any] = {"state": os.environ.get("VODUP_STATE")}
"""Arguments of the uploader. All workers share the state: postgresql://… ; None is a file of
this user, for one machine."""

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
