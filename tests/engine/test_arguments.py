"""What a caller gives arrives where it is meant to, and what is written down is all of it."""

from __future__ import annotations

import asyncio
import inspect
import re
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from uploader import (
    BlockingUploader,
    ConfigurationError,
    Event,
    NewVideo,
    RetryPolicy,
    SourceUnreadable,
    StsCredentials,
    TrustPolicy,
    UploadCancelled,
    Uploader,
    UploadFailed,
    UploadFinished,
    UploadGrant,
    UploadItem,
    UploadOptions,
    UploadRestarted,
    UploadResult,
    UploadStarted,
    UploadTarget,
    VideoMeta,
    VodupError,
    decode_answer,
    upload_sync,
)
from uploader.clock import SystemClock
from uploader.credentials import GrantSource, Network
from uploader.devserver import ThreadedDevServer
from uploader.events import Listener
from uploader.pace import MAX_CONCURRENCY, Bandwidth, LinkProbe, Pace
from uploader.protocol.wire import Response, SignedRequest, Transport
from uploader.state import Journal, MemoryState, Phase, UploadRecord
from uploader.transport import AiohttpTransport
from uploader.upload.request import default_key

from .harness import LOOPBACK, PART, Desk, created, options

GRANT = UploadGrant(
    video_id="0" * 32,
    target=UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-1", "sv/a.mp4"),
    credentials=StsCredentials("STS.A", "b", "c"),
)
META = VideoMeta(title="A title")


def result_for(key: str) -> UploadResult:
    given: dict[str, Any] = {field.name: 0 for field in fields(UploadResult)}
    return UploadResult(**given | {"key": key, "video_id": "v", "hook_failures": ()})


class Recording(Uploader):
    """Uploads nothing; remembers what was requested and emits one event. Mutable."""

    emitted = UploadRestarted(key="k", video_id="v", reason="r", lost_bytes=1)

    def __init__(self) -> None:
        super().__init__(state="memory")
        self.requested: list[UploadItem] = []
        self.resumed: list[asyncio.Event | None] = []

    async def _upload(
        self,
        item: UploadItem,
        *listeners: Listener | None,
        resumed: asyncio.Event | None = None,
    ) -> UploadResult:
        for listener in filter(None, listeners):
            listener(self.emitted)
        self.requested.append(item)
        self.resumed.append(resumed)
        return result_for(item.key or "")


ALL = {
    "source": "movie.mp4",
    "meta": META,
    "video_id": "0" * 32,
    "grant": GRANT,
    "key": "mine",
    "overwrite": True,
}


async def test_uploads_are_requested_alike_by_every_method() -> None:
    events: list[Event] = []
    async with Recording() as up:
        await up.upload(**ALL, on_event=events.append)  # type: ignore[arg-type]
        await (await up.submit(**ALL, on_event=events.append))  # type: ignore[arg-type]
        items = [UploadItem(**ALL)]  # type: ignore[arg-type]
        ended = [outcome async for outcome in up.upload_many(items, on_event=events.append)]
        await up.upload("other.mp4")

    assert up.requested == [*items * 3, UploadItem(source="other.mp4")]
    assert events == [up.emitted] * 3
    assert [outcome.result for outcome in ended] == [result_for("mine")]


async def test_only_an_upload_with_a_handle_can_be_paused() -> None:
    async with Recording() as up:
        await up.upload("movie.mp4")
        await (await up.submit("movie.mp4"))

    never, resumed = up.resumed
    assert never is None
    assert resumed is not None
    assert resumed.is_set()


async def test_no_more_uploads_run_than_requested() -> None:
    under_way = most = 0

    class Slow(Recording):
        async def _upload(self, *given: Any, **options: Any) -> UploadResult:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1
            return await super()._upload(*given, **options)

    async with Slow() as up:
        items = [UploadItem(source="x") for _ in range(20)]
        assert len([outcome async for outcome in up.upload_many(items, files=3)]) == 20
    assert most == 3


def test_code_without_a_loop_gives_all_of_it(tmp_path: Path) -> None:
    received: list[Event] = []
    with ThreadedDevServer() as threaded:
        desk = Desk(threaded.server, tmp_path)
        result = upload_sync(
            desk.file(3 * PART),
            provider=desk.provider(),
            state=desk.state_path,
            options=options(),  # parts of this size, or it would be one request
            trust=LOOPBACK,  # or the server would be refused
            meta=META,
            key="mine",
            on_event=received.append,
        )
        (video,) = desk.server.videos.values()
    record = asyncio.run(desk.record(key="mine"))
    assert (record.phase, record.video_id, record.meta) == (
        Phase.DONE,
        video.video_id,
        META.to_text(),
    )
    assert (video.title, result.part_count) == (META.title, 3)
    assert isinstance(received[-1], UploadFinished)


# --- the network that providers are given --------------------------------------------------


class Provider:
    """Hands out nothing; remembers the networks it was connected to. Mutable."""

    scope = "cn-shanghai"

    def __init__(self) -> None:
        self.networks: list[Network] = []

    def connect(self, network: Network) -> GrantSource:
        self.networks.append(network)
        return self  # type: ignore[return-value]  # it is never used


class Nowhere:
    """A network that answers nothing."""

    async def send(self, request: SignedRequest, **arguments: Any) -> Response:
        raise NotImplementedError


class StoppedClock(SystemClock):
    """Its own kind, distinct from others."""


async def network_of(transport: Transport | None = None, **given: Any) -> Network:
    provider = Provider()
    async with Uploader(provider, state="memory", transport=transport, **given) as up:
        assert isinstance(up.grants, Provider)
        assert up.scope == "cn-shanghai"
    (network,) = provider.networks
    return network


@pytest.mark.parametrize("transport", [None, Nowhere()])
async def test_a_provider_is_given_the_network_of_its_uploader(transport: Transport | None) -> None:
    clock, retry = StoppedClock(), RetryPolicy(patience_s=7.0)
    opts = UploadOptions(concurrency=5, retry=retry, stall_timeout_s=3.0)

    network = await network_of(transport, options=opts, trust=LOOPBACK, clock=clock)

    assert network.clock is clock
    assert network.retry is retry
    assert network.trust is LOOPBACK
    assert (network.pace.limit, network.pace.max_concurrency) == (5, 5)
    if transport is not None:
        assert network.transport is transport
        assert network.congestion() == ""
    else:
        assert isinstance(network.transport, AiohttpTransport)
        assert network.congestion() == network.transport.congestion()


async def test_without_a_word_everything_has_its_default() -> None:
    network = await network_of()
    assert network.retry == RetryPolicy()
    assert network.trust == TrustPolicy()
    assert isinstance(network.clock, SystemClock)
    assert network.pace.max_concurrency == MAX_CONCURRENCY


@pytest.mark.posix
async def test_few_descriptors_mean_few_connections() -> None:
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, most))
    try:
        automatic = await network_of()
        fixed = await network_of(options=UploadOptions(concurrency=100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
    assert automatic.pace.max_concurrency < MAX_CONCURRENCY
    assert fixed.pace.limit == automatic.pace.max_concurrency


async def test_the_transport_is_created_with_the_given_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: dict[str, Any] = {}
    watched: list[object] = []

    class Recorded(AiohttpTransport):
        def __init__(self, **given: Any) -> None:
            made.update(given)
            super().__init__(**given)

    steering = Pace.steering

    def watching(pace: Pace, probe: LinkProbe) -> AbstractAsyncContextManager[None]:
        watched.append(probe)
        return steering(pace, probe)

    monkeypatch.setattr("uploader.network.AiohttpTransport", Recorded)
    monkeypatch.setattr(Pace, "steering", watching)
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca_file = tmp_path / "ca.pem"
    opts = UploadOptions(concurrency=5, stall_timeout_s=7.0, ca_file=ca_file, proxy="env")

    network = await network_of(options=opts)

    assert made == {
        "pace": network.pace,
        "stall_timeout_s": 7.0,
        "ca_file": ca_file,
        "proxy": "env",
    }
    assert watched == [network.transport]


async def test_vod_calls_and_bandwidth_are_limited() -> None:
    waited = 0

    async def shared() -> None:
        nonlocal waited
        waited += 1

    bandwidth = Bandwidth.constant(12345)
    opts = UploadOptions(bandwidth=bandwidth, vod_calls_per_s=1e6)
    network = await network_of(Nowhere(), options=opts, shared_vod_budget=shared)
    await network.pace.vod_call()
    assert waited == 1
    assert network.pace.connection_rate == 12345 / network.pace.limit


# --- what is written down ------------------------------------------------------------------


class Diary(MemoryState):
    """Remembers every write to a record. Mutable."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[dict[str, Any]] = []

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[Journal]:
        async with super().claim(key) as journal:
            claim: Any = journal._claim
            update = claim.update

            async def recorded(fields: dict[str, Any], **more: Any) -> datetime:
                self.written.append(fields)
                time: datetime = await update(fields, **more)
                return time

            claim.update = recorded
            yield journal


async def test_a_small_file_waits_for_the_disk_once_before_it_is_sent(desk: Desk) -> None:
    state = Diary()
    result = await desk.push(desk.file(PART), state=state)

    target, ending = state.written
    assert target.pop("plan") is not None
    assert target == {
        "phase": Phase.COMPLETING,
        "video_id": result.video_id,
        "endpoint": desk.server.oss_endpoint,
        "region": target["region"],
        "bucket": result.bucket,
        "object_key": result.object_key,
    }
    assert ending["phase"] is Phase.DONE


async def test_a_file_in_parts_plans_once_it_knows_the_way(desk: Desk) -> None:
    state = Diary()
    await desk.push(desk.file(3 * PART), state=state)

    assert state.written[0]["phase"] is Phase.UPLOADING
    assert state.written[0]["plan"] is None
    assert [*state.written[1]] == ["upload_id", "plan"]
    assert [change.get("phase") for change in state.written[2:]] == [Phase.COMPLETING, Phase.DONE]


async def test_a_record_says_all_there_is_to_know(desk: Desk) -> None:
    movie = desk.file(6 * PART)
    record = await desk.interrupted(movie, after=2, meta=META)
    (video,) = desk.server.videos.values()
    assert record.reference_id is not None
    assert record.plan is not None
    assert record.upload_id is not None
    assert isinstance(record.created_at, datetime)
    assert isinstance(record.updated_at, datetime)
    written = replace(record, created_at=None, updated_at=None)
    assert written == UploadRecord(
        key=default_key(desk.provider().scope, str(movie)),
        phase=Phase.UPLOADING,
        source=str(movie),
        fingerprint=record.fingerprint,
        size=6 * PART,
        scope=desk.provider().scope,
        reference_id=record.reference_id,
        meta=META.to_text(),
        video_id=video.video_id,
        endpoint=desk.server.oss_endpoint,
        region=record.region,
        bucket=video.bucket,
        object_key=video.object_key,
        plan=record.plan,
        upload_id=record.upload_id,
        error=f"PermissionDenied: {desk.events_of(UploadFailed)[0].message}",
    )


async def test_create_receives_every_fact_about_the_file(desk: Desk) -> None:
    videos: list[NewVideo] = []

    class Maker(Provider):
        async def create(self, video: NewVideo) -> UploadGrant:
            videos.append(video)
            if len(videos) == 1:
                raise VodupError("Not now.")
            return decode_answer(await created(desk.server))

        async def facts(self, video_id: str) -> None:
            return None

    movie = desk.file(PART)
    error = await desk.fail(movie, provider=Maker(), meta=META)
    assert (error.message, error.phase) == ("Not now.", "create")
    async with desk.uploader(Maker()) as up:
        await up.upload(movie, meta=META)

    first, second = videos
    assert re.fullmatch(r"vodup-[0-9a-f]{32}", first.reference_id)
    assert first == NewVideo(
        meta=META,
        file_name="movie.mp4",
        file_size=PART,
        reference_id=first.reference_id,
        is_repeat=False,
    )
    assert second == replace(first, is_repeat=True)


async def test_a_failure_while_a_grant_is_renewed_says_so(desk: Desk) -> None:
    desk.server.set_options(denied_vod_operations=["RefreshUploadVideo"])
    video_id = (await created(desk.server))["VideoId"]
    error = await desk.fail(desk.file(PART), video_id=video_id)
    assert (error.phase, error.video_id) == ("renew", video_id)


# --- events -------------------------------------------------------------------------------


async def test_events_bear_the_key_and_the_video_from_the_first_to_the_last(desk: Desk) -> None:
    movie = desk.file(3 * PART)
    result = await desk.push(movie, key="mine")
    again = await desk.push(movie, key="mine")

    assert {(event.key, event.video_id) for event in desk.events} == {("mine", result.video_id)}
    assert desk.events_of(UploadStarted)[0].is_resumed is False
    finished = desk.events_of(UploadFinished)
    assert [event.result for event in finished] == [result, again]
    assert again == replace(result, is_earlier_result=True, sent_bytes=0)


async def test_a_source_that_cannot_be_opened_is_reported_under_its_key(desk: Desk) -> None:
    movie = desk.file(2 * PART)
    result = await desk.push(movie, key="mine")
    desk.events.clear()
    await asyncio.to_thread(movie.unlink)

    await desk.fail(movie, key="mine", video_id=result.video_id)
    async with desk.uploader() as up:
        with pytest.raises(SourceUnreadable):
            await up.verify(movie, key="mine")

    received = [(type(event), event.key, event.video_id) for event in desk.events]
    assert received == [(UploadFailed, "mine", result.video_id)] * 2


async def test_an_upload_without_a_key_is_reported_under_none_before_it_is_open(desk: Desk) -> None:
    await desk.fail(desk.folder / "nothing.mp4")
    assert [(event.key, event.video_id) for event in desk.events] == [("", None)]


async def test_a_listener_of_one_upload_is_called_after_that_of_all(desk: Desk) -> None:
    seen: list[tuple[str, Event]] = []
    async with Uploader(
        desk.provider(),
        state="memory",
        options=options(),
        trust=LOOPBACK,
        on_event=lambda event: seen.append(("all", event)),
    ) as up:
        await up.upload(desk.file(PART), on_event=lambda event: seen.append(("one", event)))

    assert [who for who, _ in seen] == ["all", "one"] * (len(seen) // 2)
    assert [event for who, event in seen if who == "all"] == [
        event for who, event in seen if who == "one"
    ]


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
async def test_a_listener_that_raises_is_logged_once_and_ends_no_upload(
    desk: Desk, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []

    def listener(event: Event) -> None:
        seen.append(event)
        raise kind

    async with Uploader(
        desk.provider(), state="memory", options=options(), trust=LOOPBACK, on_event=listener
    ) as up:
        await up.upload(desk.file(PART), on_event=listener)
        items = [UploadItem(source=desk.file(PART, "a.mp4"))]
        outcomes = [outcome async for outcome in up.upload_many(items, on_event=listener)]
        result = await (await up.submit(desk.file(2 * PART, "b.mp4"), on_event=listener))

    assert [type(seen[-1]), result.part_count] == [UploadFinished, 2]
    assert [outcome.error for outcome in outcomes] == [None]
    logged = [
        record for record in caplog.records if record.getMessage().startswith("listener.failed: ")
    ]
    assert len(logged) == 4  # one for each time that a listener was passed


async def test_a_cancellation_is_not_swallowed_by_a_listener_that_raises(desk: Desk) -> None:
    seen: list[Event] = []

    def listener(event: Event) -> None:
        seen.append(event)
        task.cancel()
        raise ValueError

    async with Uploader(
        desk.provider(), state="memory", options=options(), trust=LOOPBACK, on_event=listener
    ) as up:
        task = asyncio.ensure_future(up.upload(desk.file(3 * PART)))
        with pytest.raises(asyncio.CancelledError):
            await task
    assert type(seen[-1]) is UploadCancelled


async def _listen(event: Event) -> None: ...


class _Listening:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize("listener", [_listen, partial(_listen), _Listening(), "print"])
async def test_a_listener_that_cannot_be_called_plainly_is_refused(listener: Listener) -> None:
    def refused() -> AbstractContextManager[object]:
        return pytest.raises(ConfigurationError, match="on_event must be an ordinary function")

    with refused():
        Uploader(on_event=listener)
    async with Recording() as up:
        with refused():
            await up.upload("movie.mp4", on_event=listener)
        with refused():
            await up.submit("movie.mp4", on_event=listener)
        with refused():
            await anext(up.upload_many([], on_event=listener))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source": None}, "NoneType cannot be uploaded."),
        ({"source": 17}, "int cannot be uploaded."),
        ({"meta": {"title": "A"}}, "meta must be VideoMeta, and not dict."),
        ({"meta": "A"}, "meta must be VideoMeta, and not str."),
        ({"grant": {"UploadAuth": ""}}, "grant must be UploadGrant, and not dict."),
        ({"video_id": 17}, "video_id must be str, and not int."),
        ({"key": Path("a")}, "key must be str, and not PosixPath."),
        ({"overwrite": "no"}, "overwrite must be bool, and not str."),
    ],
)
async def test_arguments_of_a_wrong_type_are_refused_at_the_call(
    wrong: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"source": "movie.mp4"} | wrong
    async with Recording() as up:
        for refused in (up.upload(**given), up.submit(**given)):
            with pytest.raises(ConfigurationError) as caught:
                await refused
            assert caught.value.message == message
        assert up.requested == []
    with pytest.raises(ConfigurationError) as caught:
        upload_sync(**given)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"part_size": "8 meters"}, "part_size: '8 meters' is no size."),
        ({"part_size": True}, "part_size must be int or str, and not bool."),
        ({"concurrency": "many"}, "concurrency must be int, and not str."),
        ({"bandwidth": "fast"}, "Cannot parse 'fast' as a bandwidth."),
        ({"bandwidth": 4.5}, "bandwidth must be Bandwidth or int or str, and not float."),
        ({"retry": 3}, "retry must be RetryPolicy, and not int."),
        ({"proxy": True}, "proxy must be str, and not bool."),
        ({"hooks": [len]}, "hooks must be Hooks, and not builtin_function_or_method."),
    ],
)
def test_options_of_a_wrong_type_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        UploadOptions(**wrong)
    assert caught.value.message == message


def test_sizes_and_rates_may_be_texts() -> None:
    texts = UploadOptions(part_size="8MiB", bandwidth="4M")
    numbers = UploadOptions(part_size=8 * 2**20, bandwidth=4 * 2**20)

    assert texts.part_bytes == numbers.part_bytes == 8 * 2**20
    assert texts.bandwidth_limit == numbers.bandwidth_limit == Bandwidth.constant(4 * 2**20)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"provider": "cn-shanghai"}, "provider must be GrantProvider, and not str."),
        ({"state": 5}, "state must be str or Path, and not int."),
        ({"options": {}}, "options must be UploadOptions, and not dict."),
        ({"trust": "all"}, "trust must be TrustPolicy, and not str."),
    ],
)
def test_an_uploader_refuses_arguments_of_a_wrong_type(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Uploader(**wrong)
    assert caught.value.message == message


async def test_in_a_running_loop_upload_sync_names_what_to_use_instead() -> None:
    with pytest.raises(ConfigurationError, match="running event loop") as caught:
        upload_sync("movie.mp4", state="memory")
    assert "await up.upload(" in caught.value.next_step


@pytest.mark.parametrize("name", ["upload", "submit", "upload_many", "__init__"])
def test_blocking_methods_take_what_the_others_take(name: str) -> None:
    def parameters(of: Callable[..., object]) -> list[tuple[object, ...]]:
        found = inspect.signature(of).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    blocking = parameters(getattr(BlockingUploader, name))
    assert blocking == parameters(getattr(Uploader, name))
    assert {*parameters(Uploader.upload)[1:]} <= {*parameters(upload_sync)}


async def test_a_listener_that_returns_a_coroutine_is_logged(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.uploader() as up:
        await up.upload(desk.file(PART), on_event=lambda event: _listen(event))  # type: ignore[arg-type]

    assert [record.getMessage() for record in caplog.records].count(
        "listener.failed: TypeError"
    ) == 1


# --- aborting -------------------------------------------------------------------------------


async def test_an_abort_without_parts_is_recorded(desk: Desk) -> None:
    desk.server.set_options(denied_vod_operations=["CreateUploadVideo"])
    await desk.fail(desk.file(2 * PART), key="mine")

    async with desk.uploader() as up:
        await up.abort("mine")

    assert (await desk.record(key="mine")).phase is Phase.ABORTED
    assert desk.count("AbortMultipartUpload") == 0
