"""One upload with one library, in that library's environment: imports nothing of vodup there.

    python driver.py LIBRARY JOB      JOB is JSON, see `Job`

One line of stdout is JSON: how it ended. Around it stands what the library logs at
DEBUG and what its exception says, for whoever looks for secrets in them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to upload and where to: the fields of UploadAddress, UploadAuth and the account."""

    path: str
    folder: str
    endpoint: str
    bucket: str
    key: str
    access_key_id: str
    access_key_secret: str
    security_token: str
    video_id: str
    vod_endpoint: str
    account_id: str
    account_secret: str
    part_size: int
    connections: int


def oss2(job: Job) -> str:
    """oss2.resumable_upload with its default retries and CRC-64."""
    lib = importlib.import_module("oss2")
    lib.set_stream_logger("oss2", logging.DEBUG)
    auth = lib.StsAuth(
        job.access_key_id, job.access_key_secret, job.security_token, auth_version="v4"
    )
    bucket = lib.Bucket(auth, job.endpoint, job.bucket, region="cn-shanghai")
    lib.resumable_upload(
        bucket,
        job.key,
        job.path,
        store=lib.ResumableStore(root=job.folder),
        multipart_threshold=job.part_size,
        part_size=job.part_size,
        num_threads=job.connections,
    )
    return job.video_id


def oss_v2(job: Job) -> str:
    """alibabacloud-oss-v2's Uploader with its checkpoint."""
    lib = importlib.import_module("alibabacloud_oss_v2")
    config = lib.config.load_default()
    config.credentials_provider = lib.credentials.StaticCredentialsProvider(
        job.access_key_id, job.access_key_secret, job.security_token
    )
    config.region, config.endpoint, config.use_path_style = "cn-shanghai", job.endpoint, True
    uploader = lib.Client(config).uploader(
        part_size=job.part_size,
        parallel_num=job.connections,
        enable_checkpoint=True,
        checkpoint_dir=os.path.join(job.folder, ""),
        leave_parts_on_error=True,
    )
    uploader.upload_file(lib.PutObjectRequest(bucket=job.bucket, key=job.key), job.path)
    return job.video_id


def aiooss2(job: Job) -> str:
    """aiooss2.resumable_upload."""
    lib = importlib.import_module("aiooss2")
    plain = importlib.import_module("oss2")
    plain.set_stream_logger("oss2", logging.DEBUG)

    async def upload() -> None:
        auth = plain.StsAuth(job.access_key_id, job.access_key_secret, job.security_token)
        async with lib.AioBucket(auth, job.endpoint, job.bucket) as bucket:
            await lib.resumable_upload(
                bucket,
                job.key,
                job.path,
                store=plain.ResumableStore(root=job.folder),
                multipart_threshold=job.part_size,
                part_size=job.part_size,
                num_threads=job.connections,
            )

    asyncio.run(upload())
    return job.video_id


def voduploadsdk(job: Job) -> str:
    """AliyunVodUploader.uploadLocalVideo: it makes the video itself, and sends in series."""
    _lead_vod_to(job.vod_endpoint)
    lib = importlib.import_module("voduploadsdk.AliyunVodUploader")
    uploader = lib.AliyunVodUploader(job.account_id, job.account_secret)
    uploader.setMultipartUpload(job.part_size, job.part_size, job.connections)
    answer = uploader.uploadLocalVideo(lib.UploadVideoRequest(job.path, "A movie"))
    return str(answer["VideoId"])


def _lead_vod_to(endpoint: str) -> None:
    """The library names VOD's host in its source: here that host is the server."""
    host, port = endpoint.removeprefix("http://").split(":")
    ask = socket.getaddrinfo

    def answer(name: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401
        if str(name).startswith("vod."):
            return ask(host, int(port), type=socket.SOCK_STREAM)
        return ask(name, *args, **named)

    socket.getaddrinfo = answer  # type: ignore[assignment]  # of a wider signature


def vodup(job: Job) -> str:
    """vodup as a library, with nothing set but the part size and loopback."""
    lib = importlib.import_module("uploader")
    key = lib.AccessKey(id=job.account_id, secret=job.account_secret)

    async def upload() -> str:
        options = lib.UploadOptions(part_size=job.part_size, concurrency=job.connections)
        async with lib.Uploader(
            lib.VodProvider(key, endpoint=job.vod_endpoint),
            state=os.path.join(job.folder, "state.sqlite3"),
            options=options,
            trust=lib.TrustPolicy(allow_loopback=True),
        ) as up:
            meta = lib.VideoMeta(title="A movie")
            return str((await up.upload(job.path, meta=meta)).video_id)

    return asyncio.run(upload())


LIBRARIES: Mapping[str, Callable[[Job], str]] = {
    "vodup": vodup,
    "oss2": oss2,
    "alibabacloud-oss-v2": oss_v2,
    "aiooss2": aiooss2,
    "voduploadsdk": voduploadsdk,
}


def _answer(error: BaseException) -> dict[str, str]:
    sentence = " ".join(str(error).split())
    return {"ended": "error", "error": type(error).__name__, "message": sentence}


def main() -> int:
    """Upload once and say how it ended."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    job = Job(**json.loads(sys.argv[2]))
    try:
        answer = {"ended": "returned", "video_id": LIBRARIES[sys.argv[1]](job)}
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        answer = _answer(error)
    print(json.dumps(answer), flush=True)
    return answer["ended"] != "returned"


if __name__ == "__main__":
    sys.exit(main())
