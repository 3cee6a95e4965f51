"""What is true of every store."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from tests.state.conftest import Place, record, set_video
from uploader import state
from uploader.errors import ConfigurationError, LeaseLost, StateError, UploadLocked
from uploader.state import (
    MemoryState,
    Orphan,
    Outbox,
    OutboxMessage,
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
    result="{}",
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
    async with store.claim(key) as journal:
        await journal.create_record(record(key, **changes))


async def test_a_record_comes_back_with_every_field(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as journal:
        written = await journal.create_record(FULL)
        assert journal.record == written
    async with place.open() as store:
        assert await store.find(key="movie") == written
        assert await store.find(video_id="v-1") == written
    assert dataclasses.replace(written, created_at=None, updated_at=None) == FULL


@pytest.mark.parametrize(
    "text", ["naïve 电影 🎬", "bad \udcff name", "nul\0byte", '\x1bjson:"x"', "", "a'b\"c%s:x?\\"]
)
async def test_any_text_is_kept(place: Place, text: str) -> None:
    async with place.open() as store, store.claim(text) as journal:
        await journal.create_record(record(text, source=text, error=text))
        await journal.add_part(part(1, etag=text))
    async with place.open() as store, store.claim(text) as journal:
        assert journal.record is not None
        assert journal.record.key == journal.record.source == journal.record.error == text
        assert journal.acks[1].etag == text


@pytest.mark.parametrize("crc64", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
async def test_acks_keep_unsigned_crcs(place: Place, crc64: int) -> None:
    ack = PartAck(10_000, 5 << 30, "ETAG", crc64, "MD5")
    async with place.open() as store, store.claim("movie") as journal:
        await journal.create_record(record())
        await journal.add_part(ack)
        assert journal.acks == {10_000: ack}
    async with place.open() as store, store.claim("movie") as journal:
        assert journal.acks == {10_000: ack}


async def test_an_ack_replaces_an_older_one(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as journal:
        await journal.create_record(record())
        await journal.add_part(part(1, etag="old"))
        await journal.add_part(part(1, etag="new"))
    async with place.open() as store, store.claim("movie") as journal:
        assert journal.acks == {1: part(1, etag="new")}


async def test_acks_of_many_uploads_at_once_stay_apart(place: Place) -> None:
    async def send(key: str) -> None:
        async with store.claim(key) as journal:
            await journal.create_record(record(key))
            async with asyncio.TaskGroup() as group:
                for number in range(1, 51):
                    group.create_task(journal.add_part(part(number, etag=key)))

    async with place.open() as store, asyncio.TaskGroup() as group:
        for key in "abcdef":
            group.create_task(send(key))
    async with place.open() as store:
        for key in "abcdef":
            async with store.claim(key) as journal:
                assert dict(journal.acks) == {n: part(n, etag=key) for n in range(1, 51)}


async def test_times_are_aware_and_grow(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        created = await journal.create_record(record())
        await asyncio.sleep(0.01)
        await journal.record_error("x")
        changed = journal.record
        assert changed is not None
    assert created.created_at == created.updated_at == changed.created_at
    assert created.created_at is not None
    assert changed.updated_at is not None
    assert timedelta(0) < changed.updated_at - created.created_at < timedelta(seconds=10)
    assert abs(datetime.now(UTC) - changed.updated_at) < timedelta(seconds=10)


async def test_a_step_changes_its_own_fields_and_nothing_else(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as journal:
        await journal.create_record(dataclasses.replace(FULL, phase=Phase.COMPLETING))
        await journal.finish('{"a": 1}')
        changed = journal.record
        assert changed is not None
    async with place.open() as store:
        assert await store.find(key="movie") == changed
    expected = dataclasses.replace(FULL, phase=Phase.DONE, result='{"a": 1}', error=None)
    assert dataclasses.replace(changed, created_at=None, updated_at=None) == expected


async def test_writes_before_create_are_refused(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        with pytest.raises(StateError, match="add_part in phase none"):
            await journal.add_part(part(1))
        with pytest.raises(StateError, match="record_error in phase none"):
            await journal.record_error("x")


async def test_a_record_of_another_key_is_refused(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        with pytest.raises(ValueError, match="other"):
            await journal.create_record(record("other"))


async def test_an_unfinished_record_is_not_replaced(store: StateStore) -> None:
    await add(store, "movie", phase=Phase.UPLOADING, video_id="v-1")
    async with store.claim("movie") as journal:
        with pytest.raises(StateError, match="create_record in phase uploading"):
            await journal.create_record(record(fingerprint="other"))
        assert journal.record is not None
        assert journal.record.video_id == "v-1"


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.ABORTED])
async def test_a_finished_record_is_replaced_with_its_acks(place: Place, phase: Phase) -> None:
    async with place.open() as store, store.claim("movie") as journal:
        await journal.create_record(record(video_id="v-1"))
        await journal.add_part(part(1))
        if phase is Phase.DONE:
            await journal.start_completing()
            await journal.finish("{}")
        else:
            await journal.abort()
        await journal.create_record(record(video_id="v-1", phase=Phase.NEW))
        assert journal.acks == {}
    async with place.open() as store, store.claim("movie") as journal:
        assert journal.acks == {}
        assert journal.record is not None
        assert journal.record.phase is Phase.NEW


async def test_a_video_belongs_to_one_key(store: StateStore) -> None:
    await add(store, "first", video_id="v-1")
    async with store.claim("second") as journal:
        with pytest.raises(StateError, match="'first'"):
            await journal.create_record(record("second", video_id="v-1"))
        await journal.create_record(record("second", phase=Phase.NEW))
        with pytest.raises(StateError, match="'first'"):
            await set_video(journal, "v-1")
        assert journal.record is not None
        assert journal.record.phase is Phase.NEW
    assert await store.find(video_id="v-2") is None


async def test_a_video_is_free_again_once_its_record_names_it_no_longer(store: StateStore) -> None:
    await add(store, "first", video_id="v-1")
    await store.forget("first")
    await add(store, "second", video_id="v-1", phase=Phase.ABORTED)
    async with store.claim("second") as journal:
        await journal.create_record(record("second", phase=Phase.NEW))
        await set_video(journal, "v-2")
    await add(store, "third", video_id="v-1")
    found = [await store.find(video_id=name) for name in ("v-1", "v-2")]
    assert [one.key for one in found if one is not None] == ["third", "second"]


async def test_restarting_keeps_the_former_upload_as_an_orphan(place: Place) -> None:
    async with place.open() as store, store.claim("movie") as journal:
        await journal.create_record(record(upload_id="u-1", video_id="v-1", region="r", **TARGET))
        await journal.add_part(part(1))
        await journal.restart()
        assert journal.acks == {}
        await journal.restart()
        await journal.set_upload_id("u-2", plan="v1 8M")
        await journal.restart()
    async with place.open() as store:
        first, second = await store.orphans()
        assert first == Orphan(upload_id="u-1", video_id="v-1", region="r", **TARGET)
        assert second.upload_id == "u-2"
        await store.forget_orphan("u-1")
        await store.forget_orphan("u-1")
        assert await store.orphans() == [second]
        async with store.claim("movie") as journal:
            assert journal.acks == {}


async def test_forgetting_removes_everything_but_the_multipart(place: Place) -> None:
    async with place.open() as store:
        async with store.claim("movie") as journal:
            await journal.create_record(
                record(upload_id="u-1", phase=Phase.UPLOADING, video_id="v-1", **TARGET)
            )
            await journal.add_part(part(1))
        await store.forget("movie")
        await store.forget("movie")
        assert await statuses(store) == []
        assert [orphan.upload_id for orphan in await store.orphans()] == ["u-1"]
        async with store.claim("movie") as journal:
            assert journal.record is None
            await journal.create_record(record(video_id="v-1"))
            assert journal.acks == {}


async def test_forgetting_a_finished_upload_leaves_no_orphan(store: StateStore) -> None:
    await add(store, "movie", upload_id="u-1", phase=Phase.DONE, **TARGET)
    await store.forget("movie")
    assert await store.orphans() == []


async def test_a_claimed_upload_is_not_forgotten(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        await journal.create_record(record())
        with pytest.raises(UploadLocked):
            await store.forget("movie")
    assert await store.find(key="movie") is not None


async def test_uploads_are_listed_newest_first_with_their_progress(store: StateStore) -> None:
    for number in range(5):
        async with store.claim(f"m{number}") as journal:
            await journal.create_record(record(f"m{number}"))
            for done in range(number):
                await journal.add_part(part(done + 1))
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
    async with store.claim("movie") as journal:
        await journal.create_record(record())
        (status,) = await statuses(store)
    assert status.owner is not None
    assert "process" in status.owner


async def test_a_claim_without_a_record_leaves_nothing(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        assert journal.record is None
        assert journal.acks == {}
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
    async with store.claim("movie") as journal:
        await journal.create_record(record())
    with pytest.raises(LeaseLost):
        await journal.add_part(part(1))
    with pytest.raises(LeaseLost):
        await journal.record_error("late")
    with pytest.raises(LeaseLost):
        await journal.restart()
    async with store.claim("other") as journal:
        pass
    with pytest.raises(LeaseLost):
        await journal.create_record(record("other"))
    async with store.claim("movie") as journal:
        assert journal.acks == {}


async def test_an_old_checkpoint_stays_worthless_after_the_key_was_forgotten(
    store: StateStore,
) -> None:
    async with store.claim("movie") as old:
        await old.create_record(record())
    await store.forget("movie")
    async with store.claim("movie") as fresh:
        await fresh.create_record(record())
        with pytest.raises(LeaseLost):
            await old.add_part(part(1))
        assert fresh.acks == {}


async def test_acks_and_record_cannot_be_changed_from_outside(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        await journal.create_record(record())
        with pytest.raises(TypeError):
            journal.acks[1] = part(1)  # type: ignore[index]


async def test_find_takes_one_question(store: StateStore) -> None:
    with pytest.raises(TypeError):
        await store.find()
    with pytest.raises(TypeError):
        await store.find(key="a", video_id="b")


def test_open_state_understands_what_users_write() -> None:
    assert isinstance(open_state("memory"), MemoryState)
    for where in (None, "x.db", "sqlite:///x.db", "sqlite:////x.db"):
        assert isinstance(open_state(where), SqlState)
    for where in ("postgresql://u@h/d", "postgres://u@h/d"):
        assert isinstance(open_state(where), SqlState)


@pytest.mark.parametrize("where", ["", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d"])
def test_open_state_refuses_the_rest_without_repeating_secrets(where: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_state(where)
    assert "secret" not in str(caught.value)


async def test_a_claim_knows_whether_it_holds(store: StateStore) -> None:
    async with store.claim("movie") as journal:
        assert journal.is_certainly_ours
        await journal.confirm()


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="NoSuchState"):
        _ = state.NoSuchState


async def test_two_processes_do_not_take_one_message(place: Place) -> None:
    message = OutboxMessage(message_id="a", receiver="r", body="one\0\udc80")
    async with place.open() as state:
        assert isinstance(state, Outbox)
        await state.add_message(message)
        await state.add_message(message)
        assert await state.take_messages("other", count=9, for_s=60) == []
        assert await state.take_messages("r", count=9, for_s=60) == [message]
        assert await state.take_messages("r", count=9, for_s=60) == []
        assert await state.count_waiting("r") == 1
        await state.end_messages([message], is_delivered=False)
        assert await state.take_messages("r", count=9, for_s=0.0) == [message]
        assert await state.take_messages("r", count=9, for_s=60) == [message]
        await state.end_messages([message], is_delivered=True)
        await state.add_message(message)
        assert await state.count_waiting("r") == 0
        assert await state.take_messages("r", count=9, for_s=60) == []
