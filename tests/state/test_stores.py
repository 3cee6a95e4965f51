"""What is true of every store."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from tests.state.conftest import Place, record
from uploader.errors import ConfigurationError, LeaseLost, StateError, UploadLocked
from uploader.state import (
    MemoryState,
    Orphan,
    PartAck,
    Phase,
    SqlState,
    StateStore,
    UploadStatus,
    open_state,
)

FULL = record(
    scope="vod.cn-shanghai",
    reference_id="ref-1",
    meta='{"Title": "电影"}',
    video_id="v-1",
    endpoint="https://oss-cn-shanghai.aliyuncs.com",
    region="cn-shanghai",
    bucket="outin-1",
    object_key="sv/1.mp4",
    upload_id="u-1",
    plan="8388608",
    receipt="{}",
    error="it rained",
    is_overwrite=True,
    phase=Phase.UPLOADING,
)
TARGET = {"endpoint": "e", "bucket": "b", "object_key": "o"}


def part(number: int, **changes: object) -> PartAck:
    return dataclasses.replace(PartAck(number, 100, f"E{number}", number), **changes)  # type: ignore[arg-type]


async def statuses(store: StateStore) -> list[UploadStatus]:
    return [status async for status in store.uploads()]


async def add(store: StateStore, key: str, **changes: object) -> None:
    async with store.claim(key) as checkpoint:
        await checkpoint.create(record(key, **changes))


async def test_a_record_comes_back_with_every_field(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as checkpoint:
        written = await checkpoint.create(FULL)
        assert checkpoint.record == written
    async with place.open() as store:
        assert await store.find(key="movie") == written
        assert await store.find(video_id="v-1") == written
    assert dataclasses.replace(written, created_at=None, updated_at=None) == FULL


@pytest.mark.parametrize(
    "text", ["naïve 电影 🎬", "bad \udcff name", "nul\0byte", '\x1bjson:"x"', "", "a'b\"c%s:x?\\"]
)
async def test_any_text_is_kept(place: Place, text: str) -> None:
    async with place.open() as store, store.claim(text) as checkpoint:
        await checkpoint.create(record(text, source=text, error=text))
        await checkpoint.ack(part(1, etag=text))
    async with place.open() as store, store.claim(text) as checkpoint:
        assert checkpoint.record is not None
        assert checkpoint.record.key == checkpoint.record.source == checkpoint.record.error == text
        assert checkpoint.acks[1].etag == text


@pytest.mark.parametrize("crc64", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
async def test_receipts_keep_unsigned_crcs(place: Place, crc64: int) -> None:
    ack = PartAck(10_000, 5 << 30, "ETAG", crc64, "MD5")
    async with place.open() as store, store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        await checkpoint.ack(ack)
        assert checkpoint.acks == {10_000: ack}
    async with place.open() as store, store.claim("movie") as checkpoint:
        assert checkpoint.acks == {10_000: ack}


async def test_a_receipt_replaces_an_older_one(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        await checkpoint.ack(part(1, etag="old"))
        await checkpoint.ack(part(1, etag="new"))
    async with place.open() as store, store.claim("movie") as checkpoint:
        assert checkpoint.acks == {1: part(1, etag="new")}


async def test_receipts_of_many_uploads_at_once_stay_apart(place: Place) -> None:
    async def send(key: str) -> None:
        async with store.claim(key) as checkpoint:
            await checkpoint.create(record(key))
            async with asyncio.TaskGroup() as group:
                for number in range(1, 51):
                    group.create_task(checkpoint.ack(part(number, etag=key)))

    async with place.open() as store, asyncio.TaskGroup() as group:
        for key in "abcdef":
            group.create_task(send(key))
    async with place.open() as store:
        for key in "abcdef":
            async with store.claim(key) as checkpoint:
                assert dict(checkpoint.acks) == {n: part(n, etag=key) for n in range(1, 51)}


async def test_times_are_aware_and_advance(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        created = await checkpoint.create(record())
        await asyncio.sleep(0.01)
        changed = await checkpoint.advance(error="x")
    assert created.created_at == created.updated_at == changed.created_at
    assert created.created_at is not None
    assert changed.updated_at is not None
    assert timedelta(0) < changed.updated_at - created.created_at < timedelta(seconds=10)
    assert abs(datetime.now(UTC) - changed.updated_at) < timedelta(seconds=10)


async def test_advance_changes_what_is_named_and_nothing_else(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as checkpoint:
        await checkpoint.create(FULL)
        changed = await checkpoint.advance(phase=Phase.COMPLETING, error=None, is_overwrite=False)
        assert checkpoint.record == changed
    async with place.open() as store:
        found = await store.find(key="movie")
    assert found == changed
    expected = dataclasses.replace(FULL, phase=Phase.COMPLETING, error=None, is_overwrite=False)
    assert dataclasses.replace(changed, created_at=None, updated_at=None) == expected


@pytest.mark.parametrize("name", ["key", "created_at", "epoch", "security_token"])
async def test_advance_refuses_what_is_not_a_field_to_set(store: StateStore, name: str) -> None:
    async with store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        with pytest.raises(TypeError, match=name):
            await checkpoint.advance(**{name: "x"})


async def test_writes_before_create_are_refused(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        with pytest.raises(RuntimeError, match="create"):
            await checkpoint.ack(part(1))
        with pytest.raises(RuntimeError, match="create"):
            await checkpoint.advance(error="x")


async def test_a_record_of_another_key_is_refused(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        with pytest.raises(ValueError, match="other"):
            await checkpoint.create(record("other"))


async def test_an_unfinished_record_is_not_replaced(store: StateStore) -> None:
    await add(store, "movie", phase=Phase.UPLOADING, video_id="v-1")
    async with store.claim("movie") as checkpoint:
        with pytest.raises(StateError, match="not finished"):
            await checkpoint.create(record(fingerprint="other"))
        assert checkpoint.record is not None
        assert checkpoint.record.video_id == "v-1"


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.ABORTED])
async def test_a_finished_record_is_replaced_with_its_receipts(place: Place, phase: Phase) -> None:
    async with place.open() as store, store.claim("movie") as checkpoint:
        await checkpoint.create(record(video_id="v-1"))
        await checkpoint.ack(part(1))
        await checkpoint.advance(phase=phase)
        await checkpoint.create(record(video_id="v-1"))
        assert checkpoint.acks == {}
    async with place.open() as store, store.claim("movie") as checkpoint:
        assert checkpoint.acks == {}
        assert checkpoint.record is not None
        assert checkpoint.record.phase is Phase.NEW


async def test_a_video_belongs_to_one_key(store: StateStore) -> None:
    await add(store, "first", video_id="v-1")
    async with store.claim("second") as checkpoint:
        with pytest.raises(StateError, match="'first'"):
            await checkpoint.create(record("second", video_id="v-1"))
        await checkpoint.create(record("second"))
        with pytest.raises(StateError, match="'first'"):
            await checkpoint.advance(video_id="v-1", phase=Phase.UPLOADING)
        assert checkpoint.record is not None
        assert checkpoint.record.phase is Phase.NEW
    assert await store.find(video_id="v-2") is None


async def test_a_video_is_free_again_once_its_record_names_it_no_longer(store: StateStore) -> None:
    await add(store, "first", video_id="v-1")
    await store.forget("first")
    await add(store, "second", video_id="v-1")
    async with store.claim("second") as checkpoint:
        await checkpoint.advance(video_id="v-2")
    await add(store, "third", video_id="v-1")
    found = [await store.find(video_id=name) for name in ("v-1", "v-2")]
    assert [one.key for one in found if one is not None] == ["third", "second"]


async def test_restarting_parts_keeps_the_former_upload_as_an_orphan(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as checkpoint:
        await checkpoint.create(record(upload_id="u-1", video_id="v-1", region="r", **TARGET))
        await checkpoint.ack(part(1))
        restarted = await checkpoint.restart_parts(upload_id="u-2", plan="p-2")
        assert (restarted.upload_id, restarted.plan) == ("u-2", "p-2")
        assert checkpoint.acks == {}
        await checkpoint.restart_parts(upload_id="u-2", plan="p-2")
        await checkpoint.restart_parts(upload_id=None, plan=None)
    async with place.open() as store:
        first, second = await store.orphans()
        assert first == Orphan(upload_id="u-1", video_id="v-1", region="r", **TARGET)
        assert second.upload_id == "u-2"
        await store.forget_orphan("u-1")
        await store.forget_orphan("u-1")
        assert await store.orphans() == [second]
        async with store.claim("movie") as checkpoint:
            assert checkpoint.acks == {}


async def test_forgetting_removes_everything_but_the_multipart(place: Place) -> None:
    async with place.open() as store:
        async with store.claim("movie") as checkpoint:
            await checkpoint.create(
                record(upload_id="u-1", phase=Phase.UPLOADING, video_id="v-1", **TARGET)
            )
            await checkpoint.ack(part(1))
        await store.forget("movie")
        await store.forget("movie")
        assert await statuses(store) == []
        assert [orphan.upload_id for orphan in await store.orphans()] == ["u-1"]
        async with store.claim("movie") as checkpoint:
            assert checkpoint.record is None
            await checkpoint.create(record(video_id="v-1"))
            assert checkpoint.acks == {}


async def test_forgetting_a_finished_upload_leaves_no_orphan(store: StateStore) -> None:
    await add(store, "movie", upload_id="u-1", phase=Phase.DONE, **TARGET)
    await store.forget("movie")
    assert await store.orphans() == []


async def test_a_claimed_upload_is_not_forgotten(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        with pytest.raises(UploadLocked):
            await store.forget("movie")
    assert await store.find(key="movie") is not None


async def test_uploads_are_listed_newest_first_with_their_progress(store: StateStore) -> None:
    for number in range(5):
        async with store.claim(f"m{number}") as checkpoint:
            await checkpoint.create(record(f"m{number}"))
            for done in range(number):
                await checkpoint.ack(part(done + 1))
    listed = await statuses(store)
    assert [status.record.key for status in listed] == ["m4", "m3", "m2", "m1", "m0"]
    assert [status.acked_part_count for status in listed] == [4, 3, 2, 1, 0]
    assert [status.acked_bytes for status in listed] == [400, 300, 200, 100, 0]
    assert {status.owner for status in listed} == {None}
    assert {status.lease_expires_at for status in listed} == {None}


async def test_a_list_longer_than_a_page_is_complete(store: StateStore) -> None:
    for number in range(205):
        await add(store, f"m{number}")
    assert [s.record.key for s in await statuses(store)] == [f"m{n}" for n in range(204, -1, -1)]


async def test_status_names_who_holds_an_upload(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        (status,) = await statuses(store)
    assert status.owner is not None
    assert "process" in status.owner


async def test_a_claim_without_a_record_leaves_nothing(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        assert checkpoint.record is None
        assert checkpoint.acks == {}
    assert await statuses(store) == []


async def test_one_claim_at_a_time_even_within_a_process(store: StateStore) -> None:
    async with store.claim("movie"):
        with pytest.raises(UploadLocked, match="movie"):
            async with store.claim("movie"):
                pytest.fail("claimed twice")
        async with store.claim("other"):
            pass
    async with store.claim("movie"):
        pass


async def test_an_error_gives_the_claim_back_and_comes_out_as_it_is(store: StateStore) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with store.claim("movie"):
            raise error
    assert caught.value is error
    async with store.claim("movie"):
        pass


async def test_a_group_of_errors_comes_out_as_it_is(store: StateStore) -> None:
    group = ExceptionGroup("mine", [KeyError("a"), OSError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with store.claim("movie"):
            raise group
    assert caught.value is group


async def test_cancelling_gives_the_claim_back_and_stays_a_cancellation(store: StateStore) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with store.claim("movie"):
            inside.set()
            await asyncio.sleep(60)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await inside.wait()
        task.cancel()
    assert task.cancelled()
    async with store.claim("movie"):
        pass


async def test_a_timeout_around_a_claim_stays_a_timeout(store: StateStore) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), store.claim("movie"):
            await asyncio.sleep(60)
    async with store.claim("movie"):
        pass


async def test_a_checkpoint_is_worthless_after_its_claim(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        await checkpoint.create(record())
    with pytest.raises(LeaseLost):
        await checkpoint.ack(part(1))
    with pytest.raises(LeaseLost):
        await checkpoint.advance(error="late")
    with pytest.raises(LeaseLost):
        await checkpoint.restart_parts(upload_id="u", plan=None)
    with pytest.raises(LeaseLost):
        await checkpoint.create(record())
    async with store.claim("movie") as checkpoint:
        assert checkpoint.acks == {}


async def test_an_old_checkpoint_stays_worthless_after_the_key_was_forgotten(
    store: StateStore,
) -> None:
    async with store.claim("movie") as old:
        await old.create(record())
    await store.forget("movie")
    async with store.claim("movie") as fresh:
        await fresh.create(record())
        with pytest.raises(LeaseLost):
            await old.ack(part(1))
        assert fresh.acks == {}


async def test_acks_and_record_cannot_be_changed_from_outside(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        await checkpoint.create(record())
        with pytest.raises(TypeError):
            checkpoint.acks[1] = part(1)  # type: ignore[index]


async def test_find_takes_one_question(store: StateStore) -> None:
    with pytest.raises(TypeError):
        await store.find()
    with pytest.raises(TypeError):
        await store.find(key="a", video_id="b")


def test_open_state_understands_what_users_write() -> None:
    assert isinstance(open_state("memory"), MemoryState)
    for where in (None, "x.db", "sqlite:///x.db", "sqlite+aiosqlite:////x.db"):
        assert isinstance(open_state(where), SqlState)
    for where in ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"):
        assert isinstance(open_state(where), SqlState)


@pytest.mark.parametrize("where", ["", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d"])
def test_open_state_refuses_the_rest_without_repeating_secrets(where: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_state(where)
    assert "secret" not in str(caught.value)


async def test_a_claim_knows_whether_it_holds(store: StateStore) -> None:
    async with store.claim("movie") as checkpoint:
        assert checkpoint.is_certainly_ours
        await checkpoint.confirm()
