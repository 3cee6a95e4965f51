"""A Temporal activity that uploads. Heartbeats say that it lives; the checkpoint is vodup's.

Temporal throttles the details of heartbeats, so nothing that must survive is in them. Start
it with a heartbeat timeout of half a minute or so, a long start-to-close timeout, and as
many attempts as you like.
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
"""What the uploader is told. The state is shared by all workers: postgresql://…"""


@dataclass(frozen=True)
class Asked:
    """What to upload; `key` is the same in every attempt, for example the workflow's id."""

    path: str
    key: str
    title: str | None = None


@dataclass(frozen=True)
class Told:
    """What was stored. The CRC-64 is text: not every reader of JSON keeps 64 bits."""

    video_id: str
    crc64: str
    size: int


@activity.defn
async def upload(asked: Asked) -> Told:
    """Upload a file, or go on with it. Cancelling keeps the checkpoint."""
    beating = asyncio.create_task(_beat())
    try:
        return await _upload(asked)
    except VodupError as error:
        raise _in_temporals_words(error) from error
    finally:
        beating.cancel()


async def _upload(asked: Asked) -> Told:
    async with Uploader(VodProvider.from_env(), **SETTINGS) as uploader:
        meta = VideoMeta(title=asked.title)
        result = await uploader.upload(asked.path, key=asked.key, meta=meta)
    return Told(result.video_id, str(result.crc64), result.size)


async def _beat() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(HEARTBEAT_S)


def _in_temporals_words(error: VodupError) -> ApplicationError:
    """Another attempt helps where the failure passes, or where another worker is at it."""
    may_pass = error.is_temporary or isinstance(error, (UploadLocked, LeaseLost))
    return ApplicationError(str(error), type=type(error).__name__, non_retryable=not may_pass)
