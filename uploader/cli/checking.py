"""`verify` and `inspect`: is the object the file, and what is in this answer."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from uploader import UploadGrant, decode_answer, decode_grant
from uploader.cli import exits
from uploader.cli.loop import run_async
from uploader.cli.opening import make_trust, make_uploader
from uploader.cli.options import Access, Output, Store, read_text
from uploader.cli.text import out
from uploader.clock import SystemClock
from uploader.credentials import life_s
from uploader.errors import PolicyError
from uploader.protocol.grants import mask
from uploader.units import duration, size

__all__ = ["inspect", "verify"]


def verify(path: str, key: str | None, store: Store, access: Access, output: Output) -> int:
    """Read a file again and compare it with the object, by CRC-64."""

    absolute = os.path.abspath(path)

    async def work() -> int:
        async with make_uploader(store, access) as uploader:
            facts = await uploader.verify(absolute, key=key)
        if output.json:
            line = {
                "type": "upload.verified",
                "source": path,
                "size": facts.size,
                "crc64": str(facts.crc64),
                "etag": facts.etag,
                "request_id": facts.request_id,
            }
            out(json.dumps(line))
        elif not output.quiet:
            out(f"{path} is what OSS holds: {size(facts.size or 0)}, CRC-64 {facts.crc64}.")
        return exits.DONE

    return run_async(work())


def inspect(where: str, access: Access, output: Output) -> int:
    """Show what an answer holds, secrets masked; the exit code tells whether it is trusted."""
    grant = _decoded(read_text(where, "inspect"))
    facts = {**mask(grant), **_remaining(grant), **_verdict(grant, access)}
    if output.json:
        out(json.dumps(facts, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            out(f"{name:<{width}}  {'-' if value in (None, '') else value}")
    return exits.DONE if facts["is_trusted"] else exits.POLICY


def _decoded(text: str) -> UploadGrant:
    """Decode a whole answer, or the bare pair: two base64 texts with space between."""
    words = text.split()
    if len(words) == 2 and not text.lstrip().startswith(("{", "<")):
        return decode_grant(words[0], words[1])
    return decode_answer(text)


def _remaining(grant: UploadGrant) -> dict[str, Any]:
    clock = SystemClock()
    left_s = life_s(grant.credentials, clock=clock)
    deadline = clock.utc_now() + timedelta(seconds=left_s)
    return {
        "deadline": deadline.isoformat(timespec="seconds"),
        "remaining_s": round(left_s),
        "remaining": duration(left_s) if left_s > 0 else "expired",
    }


def _verdict(grant: UploadGrant, access: Access) -> dict[str, Any]:
    try:
        make_trust(access).check_target(grant.target)
    except PolicyError as error:
        return {"is_trusted": False, "trust": error.message}
    return {"is_trusted": True, "trust": "endpoint, bucket and key may receive credentials"}
