"""`inspect`: what a grant holds, without its secrets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from uploader import UploadGrant, decode_answer, decode_grant, units
from uploader.cli import run
from uploader.cli.flags import AccessFlags, InspectFlags
from uploader.cli.printing import out, out_json
from uploader.cli.settings import make_trust, read_input
from uploader.clock import SystemClock
from uploader.credentials import life_s
from uploader.errors import PolicyError
from uploader.protocol.grants import mask


def inspect(flags: InspectFlags) -> int:
    """Show what a grant holds, secrets masked; the exit code says whether it is trusted."""
    grant = _decoded(read_input(flags.where, "inspect"))
    facts = {**mask(grant), **_remaining(grant), **_trust(grant, flags)}
    if flags.json:
        out_json(facts)
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            out(f"{name:<{width}}  {'-' if value in (None, '') else value}")
    return run.DONE if facts["is_trusted"] else run.POLICY


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
        "remaining": units.duration(left_s) if left_s > 0 else "expired",
    }


def _trust(grant: UploadGrant, flags: AccessFlags) -> dict[str, Any]:
    try:
        make_trust(flags).check_target(grant.target)
    except PolicyError as error:
        return {"is_trusted": False, "trust": error.message}
    return {"is_trusted": True, "trust": "endpoint, bucket and key may receive credentials"}
