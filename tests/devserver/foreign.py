"""Clients that need an environment of their own; a job as JSON on standard input.

It runs with `.venv-clients/bin/python` (`make clients`) and imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

FILM_PART = 102_400


def ossfs_upload(job: dict[str, Any]) -> None:
    _filesystem(job).put_file(job["source"], f"{job['bucket']}/{job['key']}")


def ossfs_others(job: dict[str, Any]) -> None:
    files, path = _filesystem(job), f"{job['bucket']}/{job['key']}"
    folder = path.rpartition("/")[0]
    assert files.cat_file(path) == Path(job["source"]).read_bytes()
    assert [name.strip("/") for name in files.ls(folder, detail=False)] == [path]
    files.rm_file(path)


def _filesystem(job: dict[str, Any]) -> Any:  # noqa: ANN401
    return import_module("ossfs").OSSFileSystem(
        endpoint=job["endpoint"], key=job["id"], secret=job["secret"], token=job["token"]
    )


def voduploadsdk(job: dict[str, Any]) -> None:
    def load(name: str) -> Any:  # noqa: ANN401
        return getattr(import_module(f"voduploadsdk.{name}"), name)

    client = load("AliyunVodUploader")(job["id"], job["secret"])
    client.setMultipartUpload(1, FILM_PART, 1)
    request = load("UploadVideoRequest")(job["source"], "A film")
    print(client.uploadLocalVideo(request))
    image = Path(job["source"]).with_suffix(".png")
    image.write_bytes(b"a picture")
    client.uploadImage(load("UploadImageRequest")(str(image), "a cover"))
    subtitle = image.with_suffix(".srt")
    subtitle.write_bytes(b"a subtitle")
    attached = load("UploadAttachedMediaRequest")(str(subtitle), "subtitle", "words")
    client.uploadAttachedMedia(attached)


STEPS = {"upload": ossfs_upload, "others": ossfs_others, "voduploadsdk": voduploadsdk}

if __name__ == "__main__":
    given = json.load(sys.stdin)
    STEPS[given["step"]](given)
