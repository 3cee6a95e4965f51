"""Every step of an upload in every phase: what it leaves, in one commit, or that it is refused."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import Any

import pytest

from uploader import MemoryState, StateError
from uploader.protocol.grants import UploadTarget
from uploader.state import Journal, PartAck, Phase, UploadRecord, journal

NEW, UPLOADING, COMPLETING, DONE, ABORTED = Phase
TARGET = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "bucket", "sv/a.mp4")
MOVED = UploadTarget("https://oss-cn-beijing.aliyuncs.com", "other", "sv/b.mp4")
ACK = PartAck(1, 5, "E", 7)

Step = Callable[[Journal], Awaitable[object]]


def record(phase: Phase = NEW) -> UploadRecord:
    """A record with everything that the phase may have."""
    new = UploadRecord(key="film", phase=phase, source="film.mp4", fingerprint="f", size=5)
    if phase is NEW:
        return new
    return replace(
        new,
        video_id="v",
        endpoint=TARGET.endpoint,
        region="cn-shanghai",
        bucket=TARGET.bucket,
        object_key=TARGET.object_key,
        plan="p",
        upload_id="u",
        error="former",
    )


STEPS: dict[str, Step] = {
    "create_record": lambda j: j.create_record(record()),
    "set_reference_id": lambda j: j.set_reference_id("vodup-2"),
    "set_target": lambda j: j.set_target(
        "v", TARGET, region="cn-shanghai", plan="p", one_request=False
    ),
    "set_plan": lambda j: j.set_plan("p-2"),
    "set_upload_id": lambda j: j.set_upload_id("u-2", plan="p-2"),
    "add_part": lambda j: j.add_part(ACK),
    "close_stream": lambda j: j.close_stream("p-2", size=9, fingerprint="f-2"),
    "start_completing": lambda j: j.start_completing(),
    "stop_completing": lambda j: j.stop_completing(),
    "restart": lambda j: j.restart(),
    "restart_with": lambda j: j.restart_with(size=9, fingerprint="f-2"),
    "change_target": lambda j: j.change_target(MOVED),
    "finish": lambda j: j.finish("result"),
    "abort": lambda j: j.abort(),
    "abort_later": lambda j: j.abort_later(),
    "record_error": lambda j: j.record_error("failed"),
    "update_fingerprint": lambda j: j.update_fingerprint("f-2"),
}

NO_PARTS = {"upload_id": None, "plan": None}
LEAVES: dict[str, dict[str, Any]] = {
    "set_reference_id": {"reference_id": "vodup-2"},
    "set_target": {
        "phase": UPLOADING,
        "video_id": "v",
        "endpoint": TARGET.endpoint,
        "region": "cn-shanghai",
        "bucket": TARGET.bucket,
        "object_key": TARGET.object_key,
        "plan": "p",
    },
    "set_plan": {"plan": "p-2"},
    "set_upload_id": {"upload_id": "u-2", "plan": "p-2"},
    "add_part": {},
    "close_stream": {"plan": "p-2", "size": 9, "fingerprint": "f-2"},
    "start_completing": {"phase": COMPLETING},
    "stop_completing": {"phase": UPLOADING},
    "restart": {"phase": UPLOADING, **NO_PARTS},
    "restart_with": {"phase": UPLOADING, "size": 9, "fingerprint": "f-2", **NO_PARTS},
    "change_target": {
        "phase": UPLOADING,
        "endpoint": MOVED.endpoint,
        "bucket": MOVED.bucket,
        "object_key": MOVED.object_key,
        **NO_PARTS,
    },
    "finish": {"phase": DONE, "result": "result", "error": None},
    "abort": {"phase": ABORTED},
    "abort_later": {"phase": ABORTED, **NO_PARTS},
    "record_error": {"error": "failed"},
    "update_fingerprint": {"fingerprint": "f-2"},
}
"""Which fields a step changes, and to what."""

ALLOWED: dict[str, set[Phase | None]] = {
    "create_record": {None, DONE, ABORTED},
    "set_reference_id": {NEW},
    "set_target": {NEW},
    "set_plan": {UPLOADING},
    "set_upload_id": {UPLOADING},
    "add_part": {UPLOADING, COMPLETING},
    "close_stream": {UPLOADING},
    "start_completing": {UPLOADING, COMPLETING},
    "stop_completing": {COMPLETING},
    "restart": {UPLOADING, COMPLETING},
    "restart_with": {UPLOADING, COMPLETING},
    "change_target": {UPLOADING, COMPLETING},
    "finish": {COMPLETING},
    "abort": {NEW, UPLOADING, COMPLETING, ABORTED},
    "abort_later": {UPLOADING, COMPLETING},
    "record_error": {NEW, UPLOADING, COMPLETING, DONE, ABORTED},
    "update_fingerprint": {NEW, UPLOADING, COMPLETING, DONE},
}
FORGETS_PARTS = {"create_record", "restart", "restart_with", "change_target", "abort_later"}
LEAVES_ORPHAN = FORGETS_PARTS - {"create_record"}


class Counting(MemoryState):
    """Counts the commits of the one upload it holds. Mutable."""

    commit_count = 0

    async def journal(self, stack: AsyncExitStack) -> Journal:
        journal = await stack.enter_async_context(self.claim("film"))
        claim: Any = journal._claim
        for name in ("add_record", "update", "add_ack"):
            setattr(claim, name, self._counted(getattr(claim, name)))
        return journal

    def _counted(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **more: Any) -> Any:  # noqa: ANN401
            self.commit_count += 1
            return await write(*args, **more)

        return counted


async def opened(stack: AsyncExitStack, phase: Phase | None) -> tuple[Counting, Journal]:
    """A journal whose record is in this phase, with one acked part once there may be one."""
    state = Counting()
    if phase is not None:
        async with state.claim("film") as former:
            await former.create_record(record(phase))
            if phase is not NEW:
                await former._claim.add_ack(ACK)
    return state, await state.journal(stack)


def plain(record: UploadRecord | None) -> dict[str, Any]:
    assert record is not None
    return {name: value for name, value in asdict(record).items() if not name.endswith("_at")}


@pytest.mark.parametrize("phase", [None, *Phase])
@pytest.mark.parametrize("name", STEPS)
async def test_every_step_in_every_phase(name: str, phase: Phase | None) -> None:
    async with AsyncExitStack() as stack:
        state, journal = await opened(stack, phase)
        before, acks = journal.record, dict(journal.acks)

        if phase not in ALLOWED[name]:
            with pytest.raises(StateError, match=f"does not allow {name} in phase"):
                await STEPS[name](journal)
            assert (journal.record, dict(journal.acks)) == (before, acks)
            assert state.commit_count == 0
            return

        await STEPS[name](journal)

        expected = plain(record()) if name == "create_record" else plain(before) | LEAVES[name]
        assert plain(journal.record) == expected
        assert state.commit_count == 1
        is_acked = name == "add_part" or (bool(acks) and name not in FORGETS_PARTS)
        assert dict(journal.acks) == ({1: ACK} if is_acked else {})
        orphans = [orphan.upload_id for orphan in await state.orphans()]
        has_upload = before is not None and before.upload_id is not None
        assert orphans == (["u"] if has_upload and name in LEAVES_ORPHAN else [])


def test_no_step_is_left_out() -> None:
    public = {
        name
        for name, member in inspect.getmembers(Journal, inspect.iscoroutinefunction)
        if not name.startswith("_") and name != "confirm"
    }
    assert public == STEPS.keys() == ALLOWED.keys()
    table = journal.__doc__ or ""
    assert all(f"\n    {name} " in table for name in public), "the table names every step"


async def test_one_request_is_completing_as_soon_as_it_has_a_target() -> None:
    async with AsyncExitStack() as stack:
        _, journal = await opened(stack, NEW)
        await journal.set_target("v", TARGET, region=None, plan="p", one_request=True)
        assert plain(journal.record)["phase"] is COMPLETING


async def test_a_damaged_object_may_be_replaced_by_the_next_run() -> None:
    async with AsyncExitStack() as stack:
        state, journal = await opened(stack, COMPLETING)
        await journal.restart(overwrite=True)
        assert plain(journal.record)["is_overwrite"] is True
        assert state.commit_count == 1


async def test_a_restart_keeps_the_permission_to_overwrite() -> None:
    async with AsyncExitStack() as stack:
        _, journal = await opened(stack, COMPLETING)
        await journal.restart(overwrite=True)
        await journal.restart()
        assert plain(journal.record)["is_overwrite"] is True


async def test_a_refused_step_says_what_to_do() -> None:
    async with AsyncExitStack() as stack:
        _, journal = await opened(stack, DONE)
        with pytest.raises(StateError) as caught:
            await journal.set_plan("p")
    assert caught.value.video_id == "v"
    assert caught.value.next_step == (
        "`vodup clean` removes the record, and --video-id continues the video."
    )
