"""The event loop stays free while an upload runs, and a peer that stalls is noticed in time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError, blockbuster_ctx

from uploader import TransportError
from uploader.devserver import DevServerOptions, Fault, ThreadedDevServer
from uploader.protocol.wire import BytesBody, SignedRequest
from uploader.transport import AiohttpTransport

from ..engine.harness import Desk
from ..rawserver import Connection, serving

MIB = 1024 * 1024
STALL_S = 1.0


def _upload_through(threaded: ThreadedDevServer, folder: Path) -> Coroutine[Any, Any, None]:
    """Several files, a renewal, a retry, a resumption: what an ordinary day brings."""

    async def work() -> None:
        desk = Desk(threaded.server, folder)
        movies = [folder / f"{n}.mp4" for n in range(3)]
        for movie in movies:
            async with desk.uploader(part_size=MIB) as up:
                await up.upload(movie)
        await desk.push(movies[0])

    return work()


def _films(folder: Path, size: int) -> None:
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(random.Random(number).randbytes(size))


FAULTS = [
    Fault(action="error", operation="UploadPart", part=2, code="SecurityTokenExpired"),
    Fault(action="error", operation="UploadPart", part=3, code="InternalError"),
]


# --- nothing blocks -------------------------------------------------------------------------


def test_no_call_of_ours_blocks_the_loop(tmp_path: Path) -> None:
    _films(tmp_path, 5 * MIB + 3)
    with ThreadedDevServer(DevServerOptions(), FAULTS) as threaded:
        work = _upload_through(threaded, tmp_path)
        with (
            blockbuster_ctx("uploader", excluded_modules=["uploader.devserver"]) as watch,
            asyncio.Runner() as runner,
        ):
            # Neither looks at a disk: the kernel answers both from memory.
            watch.functions["os.path.abspath"].deactivate()
            watch.functions["io.TextIOWrapper.read"].can_block_in("state/leases.py", "_boot_id")
            # The thread has done its last work by then, and only has to return.
            watch.functions["threading.Lock.acquire"].can_block_in("uploader/threads.py", "join")
            runner.run(work)
        assert not threaded.server.faults.unconsumed
        assert threaded.server.open_upload_count == 0


def test_a_blocking_call_would_be_seen(tmp_path: Path) -> None:
    async def block() -> None:
        with pytest.raises(BlockingError):
            time.sleep(0.01)  # noqa: ASYNC251 - the point

    with blockbuster_ctx("tests"), asyncio.Runner() as runner:
        runner.run(block())


# --- no turn takes long -----------------------------------------------------------------------


class MeasuredLoop(asyncio.SelectorEventLoop):
    """Notes how much processor time each of its turns takes: other processes do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.turns_s: list[float] = []

    def _run_once(self) -> None:
        began_s = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.turns_s.append(time.thread_time() - began_s)


def test_sending_and_checksumming_leave_the_loop_free(tmp_path: Path) -> None:
    _films(tmp_path, 24 * MIB)
    with ThreadedDevServer(DevServerOptions(discard_bodies=True), FAULTS) as threaded:
        with asyncio.Runner(loop_factory=MeasuredLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, MeasuredLoop)
            runner.run(_upload_through(threaded, tmp_path))
            turns_s = sorted(loop.turns_s)
        assert threaded.server.open_upload_count == 0

    p99_s = turns_s[len(turns_s) * 99 // 100]
    print(f"{len(turns_s)} turns, p99 {p99_s * 1000:.1f} ms, longest {turns_s[-1] * 1000:.0f} ms")
    assert p99_s < 0.05


@pytest.mark.slow
def test_timers_are_on_time_while_sending(tmp_path: Path) -> None:
    """By the clock on the wall, and therefore on an idle machine only."""
    _films(tmp_path, 64 * MIB)
    lags_s: list[float] = []

    async def probe() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.005)
            lags_s.append(time.perf_counter() - began_s - 0.005)

    async def both(threaded: ThreadedDevServer) -> None:
        probing = asyncio.ensure_future(probe())
        await _upload_through(threaded, tmp_path)
        probing.cancel()

    with ThreadedDevServer(DevServerOptions(discard_bodies=True)) as threaded:
        asyncio.run(both(threaded))

    p99_s = sorted(lags_s)[len(lags_s) * 99 // 100]
    print(f"{len(lags_s)} timers, p99 {p99_s * 1000:.1f} ms late")
    assert p99_s < 0.05


# --- a stalled peer is noticed -----------------------------------------------------------------


async def _stops_reading(connection: Connection) -> None:
    connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await connection.idle()


async def _reads_a_little_and_stops(connection: Connection) -> None:
    await connection.read_head()
    await connection.reader.readexactly(MIB)
    connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await connection.idle()


async def _never_answers(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.idle()


async def _stops_in_the_headers(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.write(b"HTTP/1.1 200 OK\r\nETag: ")
    await connection.idle()


async def _stops_in_the_answer(connection: Connection) -> None:
    await connection.read_body(await connection.read_head())
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<Error>")
    await connection.idle()


async def _last_move_s(hands: AiohttpTransport, began_s: float) -> float:
    """When the peer's kernel last took a byte, seen until cancelled."""
    moved_at_s, most = began_s, 0
    try:
        while True:
            taken = max((link.acked_bytes for link in hands.sample()), default=0)
            if taken > most:
                moved_at_s, most = time.perf_counter(), taken
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        return moved_at_s


@pytest.mark.parametrize(
    "script",
    [
        _stops_reading,
        _reads_a_little_and_stops,
        _never_answers,
        _stops_in_the_headers,
        _stops_in_the_answer,
    ],
)
async def test_a_stalled_peer_is_noticed_in_every_phase(
    script: Callable[[Connection], Awaitable[None]],
) -> None:
    """Within 1.2 times the timeout. A busy machine may be late itself: three attempts."""
    body = BytesBody(bytes(24 * MIB))
    taken_s: list[float] = []
    for _ in range(3):
        async with serving(script) as server, AiohttpTransport(stall_timeout_s=STALL_S) as hands:
            request = SignedRequest("PUT", f"{server.url}/bucket/key", {}, body)
            looking = asyncio.ensure_future(_last_move_s(hands, time.perf_counter()))
            with pytest.raises(TransportError) as caught:
                await hands.send(request, answer_timeout_s=STALL_S)
            ended_s = time.perf_counter()
            looking.cancel()
            taken_s.append(ended_s - await looking)
        assert caught.value.is_sent
        if taken_s[-1] <= 1.2 * STALL_S:
            return
    raise AssertionError(f"noticed after {taken_s} s, {1.2 * STALL_S} at most are allowed")
