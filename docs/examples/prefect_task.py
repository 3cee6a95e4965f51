"""A Prefect task that uploads. Retried by Prefect where the failure passes, resumed by vodup."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prefect import Task, flow, task

from uploader import LeaseLost, Uploader, UploadLocked, VideoMeta, VodProvider, VodupError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun

SETTINGS: dict[str, Any] = {"state": os.environ.get("VODUP_STATE")}
"""What the uploader is told. The state is shared by all workers: postgresql://…"""


def may_pass(_task: Task, _run: TaskRun, state: State) -> bool:
    """Whether another try may help."""
    error = state.data
    if isinstance(error, (UploadLocked, LeaseLost)):
        return True
    return isinstance(error, VodupError) and error.is_temporary


@task(retries=10, retry_delay_seconds=30, retry_condition_fn=may_pass)
async def upload(path: str, key: str, title: str | None = None) -> str:
    """Upload a file under the name `key`, which is the same in every try; its VideoId."""
    async with Uploader(VodProvider.from_env(), **SETTINGS) as uploader:
        result = await uploader.upload(path, key=key, meta=VideoMeta(title=title))
    return result.video_id


@flow
async def library(paths: list[str]) -> list[str]:
    """Upload several files at once, into one checkpoint store."""
    uploads = upload.map(paths, key=[f"library/{path}" for path in paths])
    return [upload.result() for upload in uploads]
