"""How the source of an upload is cut into parts: when that is decided, and from what."""

from __future__ import annotations

import functools

from uploader.credentials import DOCUMENTED_LIFE_S, life_s
from uploader.errors import UnsupportedState
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.part_sizes import Outlook, plan_file, plan_stream
from uploader.protocol.plan import MAX_PUT_SIZE, Plan, read_plan
from uploader.upload.request import UploadContext

__all__ = ["is_one_request", "new_plan", "plan_before_grant", "plan_of", "unreadable_record"]


def new_plan(ctx: UploadContext) -> Plan:
    """The parts of an upload that has none yet."""
    options, pace = ctx.options, ctx.network.pace
    if (stream := ctx.source.stream) is not None:
        return plan_stream(
            part_size=options.part_size,
            expected_size=stream.expected_size,
            largest_size=stream.max_part_size,
        )
    return plan_file(
        ctx.record.size,
        part_size=options.part_size,
        concurrency=pace.expected_concurrency,
        first_concurrency=pace.limit,
        outlook=_outlook(ctx),
    )


def _outlook(ctx: UploadContext) -> Outlook:
    """What is known before a grant is issued; VOD's own live for the documented time."""
    pace, grant = ctx.network.pace, ctx.request.grant
    life = DOCUMENTED_LIFE_S
    if grant is not None:
        life = max(1.0, life_s(grant.credentials, clock=ctx.network.clock))
    return Outlook(connection_rate=pace.connection_rate, rtt_s=pace.rtt_s, credential_life_s=life)


def plan_before_grant(ctx: UploadContext) -> Plan | None:
    """The plan, if it can be made before the grant is issued; it then needs no commit of its own.

    Many parts wait for the round trip to the service: it decides how many are sent at once.
    """
    plan = new_plan(ctx)
    return plan if plan.is_open or is_one_request(plan) else None


def is_one_request(plan: Plan) -> bool:
    """Whether one PutObject sends everything, which also completes it."""
    return plan.is_single and plan.size <= MAX_PUT_SIZE


@functools.lru_cache(maxsize=256)
def plan_of(text: str) -> Plan:
    """Read a recorded plan.

    Raises:
        UnsupportedState: it is none, or of a newer version.
    """
    try:
        return read_plan(text)
    except MalformedDocument as error:
        raise unreadable_record("plan", error) from None


def unreadable_record(what: str, error: Exception) -> UnsupportedState:
    """The error for a field of a record that is damaged, or written by a newer version."""
    return UnsupportedState(
        f"The {what} in the checkpoint is not readable: {error}.",
        next_step="If no newer vodup wrote it, the record is damaged: `vodup clean` removes it, "
        "and --video-id continues the video.",
    )
