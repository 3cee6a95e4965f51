"""The blocks "After" of docs/migrating.md do what they replace."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.pages import DOCS
from uploader import (
    MemoryState,
    TrustPolicy,
    Uploader,
    VideoMeta,
    VodProvider,
    encode_answer,
    upload_sync,
)
from uploader.credentials import NewVideo
from uploader.devserver import DevServerOptions, ThreadedDevServer

if TYPE_CHECKING:
    from pathlib import Path

AFTER = re.findall(
    r"After:\n\n```python\n(.*?)```|gives vodup a function that renews it:\n\n```python\n(.*?)```"
    r"|pass the VideoId:\n\n```python\n(.*?)```",
    (DOCS / "migrating.md").read_text("utf-8"),
    re.DOTALL,
)
TRUST = TrustPolicy(allow_loopback=True)


def run(block: str, names: dict[str, Any]) -> None:
    """Run a block as it is printed; only loopback is trusted, and the state is kept in memory."""
    block = re.sub(r"\b(Uploader|upload_sync)\(", r"_\1(", block)
    given: dict[str, Any] = {"trust": TRUST, "state": MemoryState()}
    names |= {
        "_Uploader": partial(Uploader, **given),
        "_upload_sync": partial(upload_sync, **given),
    }
    code = compile(block, "migrating.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, names)  # noqa: S307 - a page of this project
    if inspect.iscoroutine(waiting):
        asyncio.run(waiting)


async def grant(video_id: str | None = None) -> dict[str, str]:
    """What an app server answers, as a mapping."""
    async with Uploader(VodProvider.from_env(), state=MemoryState(), trust=TRUST) as up:
        video = NewVideo(
            meta=VideoMeta(title="Movie"),
            file_name="movie.mp4",
            file_size=3,
            reference_id="migrating-1",
        )
        found = await (up.grants.renew(video_id) if video_id else up.grants.create(video))
        return encode_answer(found)


@pytest.mark.parametrize("number", range(5))
def test_a_block_uploads_the_movie(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(AFTER) == 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "movie.mp4").write_bytes(b"movie" * 1000)
    with ThreadedDevServer(DevServerOptions()) as running:
        server = running.server
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        block = "".join(AFTER[number])
        names: dict[str, Any] = {"refresh_upload_video": grant}
        if "upload_address" in block or "video_id=video_id" in block:
            answer = asyncio.run(grant())
            names |= {"upload_address": answer["UploadAddress"]}
            names |= {"upload_auth": answer["UploadAuth"], "video_id": answer["VideoId"]}
        run(block, names)
        assert server.object_bytes(names["result"].video_id) == b"movie" * 1000
        assert len(server.videos) == 1
