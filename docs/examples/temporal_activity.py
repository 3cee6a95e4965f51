"""A Temporal activity that uploads a video. It sends heartbeats; the checkpoint is vodup's.

Temporal throttles the details of heartbeats, so nothing that must survive is in them. Start
it with a heartbeat timeout of about half a minute, a long start-to-close timeout, and any
number of attempts.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from uploader import LeaseLost, Uploader, UploadLocked, VideoMeta, VodProvider, VodupError

HEARTBEAT_S = 5.0

SETTINGS: dict[str, Any] = {"state": os.environ.get("VODUP_STATE")}
"""Arguments of the uploader. All workers share the state: postgresql://…"""


@dataclass(frozen=True)
class UploadInput:
    """What to upload; `key` is the same in every attempt, for example the workflow's id."""

    path: str
    key: str
    title: str | None = None


@dataclass(frozen=True)
class UploadOutput:
    """The stored video. The CRC-64 is text: some JSON parsers do not keep 64 bits."""

    video_id: str
    crc64: str
    size: int


@activity.defn
async def upload(request: UploadInput) -> UploadOutput:
    """Upload a file, or resume its upload. Cancelling keeps the checkpoint."""
    heartbeats = asyncio.create_task(_send_heartbeats())
    try:
        return await _upload(request)
    except VodupError as error:
        raise _application_error(error) from error
    finally:
        heartbeats.cancel()


async def _upload(request: UploadInput) -> UploadOutput:
    async with Uploader(VodProvider.from_env(), **SETTINGS) as uploader:
        meta = VideoMeta(title=request.title)
        result = await uploader.upload(request.path, key=request.key, meta=meta)
    return UploadOutput(result.video_id, str(result.crc64), result.size)


async def _send_heartbeats() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(HEARTBEAT_S)


def _application_error(error: VodupError) -> ApplicationError:
    """Temporary failures are retryable, and so is an upload that another worker holds."""
    may_retry = error.is_temporary or isinstance(error, (UploadLocked, LeaseLost))
    return ApplicationError(str(error), type=type(error).__name__, non_retryable=not may_retry)
