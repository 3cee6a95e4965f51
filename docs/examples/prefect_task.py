"""A Prefect task that uploads a video. Prefect retries temporary failures, vodup resumes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prefect import Task, flow, task

from uploader import LeaseLost, Uploader, UploadLocked, VideoMeta, VodProvider, VodupError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun

SETTINGS: dict[str, Any] = {"state": os.environ.get("VODUP_STATE")}
"""Arguments of the uploader. All workers share the state: postgresql://…"""


def is_temporary(_task: Task, _run: TaskRun, state: State) -> bool:
    """Whether a retry may succeed."""
    error = state.data
    if isinstance(error, (UploadLocked, LeaseLost)):
        return True
    return isinstance(error, VodupError) and error.is_temporary


@task(retries=10, retry_delay_seconds=30, retry_condition_fn=is_temporary)
async def upload(path: str, key: str, title: str | None = None) -> str:
    """Upload a file under the name `key`, the same in every try; return its VideoId."""
    async with Uploader(VodProvider.from_env(), **SETTINGS) as uploader:
        result = await uploader.upload(path, key=key, meta=VideoMeta(title=title))
    return result.video_id


@flow
async def library(paths: list[str]) -> list[str]:
    """Upload several files at once, into one checkpoint store."""
    uploads = upload.map(paths, key=[f"library/{path}" for path in paths])
    return [upload.result() for upload in uploads]
