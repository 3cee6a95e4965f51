"""The budget: slots, bandwidth, calls, and how the slots are steered."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import accumulate, count, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.links import Controller, Run, constant, goodput_only, steered
from tests.links import Link as Path
from uploader.errors import ConfigurationError, SourceChanged
from uploader.pace import Bandwidth, LinkSample, Pace, parse_bandwidth
from uploader.pace.steering import (
    FAST_LINK_RATE,
    REFUSED_HOLD_S,
    TICK_S,
    Interval,
    Steering,
    back_off,
    decide,
)

KIB, MIB = 1024, 1024 * 1024


@dataclass
class VirtualClock:
    """Time that passes only when everybody sleeps; at once."""

    now_s: float = 1000.0
    day: datetime = datetime(2024, 5, 1, tzinfo=UTC)
    _sleepers: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _order: count = field(default_factory=count)

    def utc_now(self) -> datetime:
        return self.day + timedelta(seconds=self.now_s - 1000)

    def elapsed_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), done))
        await done

    async def run(self, until_s: float = float("inf")) -> None:
        """Let time pass up to that moment, or until nobody sleeps."""
        while True:
            for _ in range(10):
                await asyncio.sleep(0)
            if not self._sleepers or self._sleepers[0][0] > until_s:
                return
            self.now_s, _, done = heapq.heappop(self._sleepers)
            if not done.done():
                done.set_result(None)


@dataclass(frozen=True)
class Sent:
    """Bytes that were allowed out."""

    at: float
    connection: int
    size: int


# --- bandwidth: what is written -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("512B", 512),
        ("10K", 10 * KIB),
        ("10M", 10 * MIB),
        ("1.5m", 1536 * KIB),
        ("2G", 2048 * MIB),
        ("10MiB", 10 * MIB),
        ("10MB", 10 * MIB),
        ("10mb/s", 10 * MIB),
        ("10M/s", 10 * MIB),
        ("512B/s", 512),
        ("off", None),
        ("OFF", None),
    ],
)
def test_one_rate_holds_all_day(text: str, rate: int | None) -> None:
    assert parse_bandwidth(text) == Bandwidth.constant(rate)


@pytest.mark.parametrize(
    ("hour", "minute", "rate"),
    [(0, 0, None), (7, 59, None), (8, 0, 10 * MIB), (19, 59, 10 * MIB), (20, 0, None)],
)
def test_a_timetable_changes_at_its_minutes_and_wraps(
    hour: int, minute: int, rate: int | None
) -> None:
    table = parse_bandwidth("20:00,off 8:00,10M")
    assert table.rate_at(datetime(2024, 1, 1, hour, minute)) == rate


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "10",
            "0",
            "0K",
            "-1M",
            "10P",
            "ten",
            "nan",
            "1e3K",
            "1M 2M",
            "10/s",
            "10iB",
            "10M/",
        ),
        *("8,10M", "25:00,1M", "08:60,1M", "08:00,", ",1M", "08:00 1M", "08:00,1M 08:00,2M"),
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_bandwidth(text)
    assert caught.value.message == f"Cannot parse {text!r} as a bandwidth."
    assert "such as 10M, or a timetable" in caught.value.next_step


@given(st.text(max_size=20))
def test_any_text_is_a_bandwidth_or_a_configuration_error(text: str) -> None:
    try:
        parse_bandwidth(text)
    except ConfigurationError:
        return


# --- bandwidth: what is spent ---------------------------------------------------------


async def spend_all(
    pace: Pace, clock: VirtualClock, callers: list[list[int]]
) -> list[tuple[float, int, int]]:
    """(time, caller, bytes) of every spending that was granted."""
    granted = []

    async def spend(caller: int, amounts: list[int]) -> None:
        for amount in amounts:
            await pace.spend(amount)
            granted.append((clock.now_s, caller, amount))

    async with asyncio.TaskGroup() as group:
        for caller, amounts in enumerate(callers):
            group.create_task(spend(caller, amounts))
        await clock.run()
    return granted


@given(
    rate=st.integers(1, 10**6),
    callers=st.lists(st.lists(st.integers(1, 10**6), min_size=1, max_size=5), max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_never_more_than_the_rate_over_any_span(rate: int, callers: list[list[int]]) -> None:
    """What a caller was granted piece by piece counts when its last piece is."""
    total = sum(map(sum, callers))
    rate = max(rate, total // 10 + 1)

    async def scenario() -> list[tuple[float, int, int]]:
        clock = VirtualClock()
        pace = Pace(bandwidth=Bandwidth.constant(rate), clock=clock)
        return await spend_all(pace, clock, callers)

    granted = asyncio.run(scenario())
    tolerance = sum(map(max, callers)) + rate * SLACK_S + 1
    for first, (since, _, _) in enumerate(granted):
        span = accumulate((amount for _, _, amount in granted[first + 1 :]), initial=0)
        for (at, _, _), spent in zip(granted[first:], span, strict=True):
            assert spent <= rate * (at - since) + tolerance
    if granted:
        assert granted[-1][0] - 1000 == pytest.approx(total / rate, abs=SLACK_S)


SLACK_S = 0.1
"""A slice, the credit for a late wake-up and a nap, with room."""


async def test_idle_time_does_not_allow_a_burst() -> None:
    clock = VirtualClock()
    pace = Pace(bandwidth=Bandwidth.constant(1000), clock=clock)
    clock.now_s += 3600
    granted = await spend_all(pace, clock, [[100] * 10])
    assert granted[-1][0] - 4600 == pytest.approx(1.0, abs=0.05)


async def test_callers_share_evenly_whatever_they_ask_for() -> None:
    clock = VirtualClock()
    pace = Pace(bandwidth=Bandwidth.constant(100_000), clock=clock)
    granted = await spend_all(pace, clock, [[50_000] * 4, [5_000] * 40])
    half = granted[len(granted) // 2][0]
    shares = [sum(n for at, who, n in granted if who == w and at <= half) for w in (0, 1)]
    assert abs(shares[0] - shares[1]) <= 55_000


async def test_without_a_limit_nothing_waits() -> None:
    clock = VirtualClock()
    assert [at for at, _, _ in await spend_all(Pace(clock=clock), clock, [[10**12] * 3])] == [
        1000.0
    ] * 3


async def test_the_limit_follows_the_time_of_day() -> None:
    clock = VirtualClock()
    midnight = clock.utc_now().astimezone()
    soon = midnight + timedelta(minutes=1)
    table = Bandwidth(
        tuple(
            sorted(
                ((midnight.hour * 60 + midnight.minute, 1000), (soon.hour * 60 + soon.minute, None))
            )
        )
    )
    pace = Pace(bandwidth=table, clock=clock)
    granted = await spend_all(pace, clock, [[10_000_000]])
    assert granted[0][0] - 1000 == pytest.approx(60, abs=1)


def test_few_bytes_are_sent_at_once_only_where_the_rate_is_low() -> None:
    assert Pace().send_size(512 * KIB) == 512 * KIB
    assert Pace(bandwidth=Bandwidth.constant(100 * MIB)).send_size(512 * KIB) == 512 * KIB
    assert Pace(bandwidth=Bandwidth.constant(80 * KIB)).send_size(512 * KIB) == 4 * KIB
    assert Pace(bandwidth=Bandwidth.constant(10)).send_size(512 * KIB) == 1024


async def send_for(pace: Pace, clock: VirtualClock, connections: int, seconds: float) -> list[Sent]:
    """What that many busy connections hand to the network, as the transport does it."""
    sent: list[Sent] = []

    async def connection(number: int) -> None:
        while True:
            piece = pace.send_size(512 * KIB)
            await pace.spend(piece)
            sent.append(Sent(clock.now_s, number, piece))

    began_s = clock.now_s
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(connection(number)) for number in range(connections)]
        await clock.run(until_s=began_s + seconds)
        for task in tasks:
            task.cancel()
    return sent


@pytest.mark.parametrize("rate", [40 * KIB, MIB, 30 * MIB])
@pytest.mark.parametrize("connections", [1, 8, 64])
async def test_a_limit_is_kept_within_5_percent_over_10_s_and_without_bursts(
    rate: int, connections: int
) -> None:
    clock = VirtualClock()
    pace = Pace(bandwidth=Bandwidth.constant(rate), clock=clock)
    sent = await send_for(pace, clock, connections, 10)
    assert sum(one.size for one in sent) == pytest.approx(10 * rate, rel=0.05)
    for second in range(9):
        within = sum(s.size for s in sent if second <= s.at - 1000 < second + 1)
        assert within <= 1.15 * rate, f"a burst in second {second}"


async def test_connections_share_a_limit_evenly() -> None:
    clock = VirtualClock()
    pace = Pace(bandwidth=Bandwidth.constant(MIB), clock=clock)
    shares = Counter[int]()
    for one in await send_for(pace, clock, 6, 10):
        shares[one.connection] += one.size
    assert max(shares.values()) <= 1.1 * min(shares.values())


async def test_a_timetable_switches_while_bytes_flow() -> None:
    clock = VirtualClock()
    now = clock.utc_now().astimezone()
    minutes = [now + timedelta(minutes=k) for k in range(3)]
    rates: list[int | None] = [MIB, 4 * MIB, 2 * MIB]
    table = [(m.hour * 60 + m.minute, rate) for m, rate in zip(minutes, rates, strict=True)]
    pace = Pace(bandwidth=Bandwidth(tuple(sorted(table))), clock=clock)
    sent = await send_for(pace, clock, 8, 180)
    for minute, rate in enumerate(rates):
        since = 1000 + 60 * minute - now.second + 1
        carried = sum(one.size for one in sent if since <= one.at < since + 57)
        assert carried == pytest.approx(57 * (rate or 0), rel=0.05)


@pytest.mark.parametrize(
    ("utc", "rate"),
    [
        (datetime(2024, 3, 31, 0, 30, tzinfo=UTC), MIB),  # 01:30
        (datetime(2024, 3, 31, 1, 0, tzinfo=UTC), 2 * MIB),  # 03:00; 02:30 never came
        (datetime(2024, 10, 27, 0, 15, tzinfo=UTC), MIB),  # 02:15
        (datetime(2024, 10, 27, 0, 45, tzinfo=UTC), 2 * MIB),  # 02:45
        (datetime(2024, 10, 27, 1, 15, tzinfo=UTC), MIB),  # 02:15 for the second time
        (datetime(2024, 10, 27, 23, 30, tzinfo=UTC), 2 * MIB),  # 00:30: the day before's last
    ],
)
def test_a_timetable_holds_through_changes_to_summer_time(utc: datetime, rate: int) -> None:
    local = utc.astimezone(ZoneInfo("Europe/Berlin"))
    assert parse_bandwidth("1:00,1M 2:30,2M").rate_at(local) == rate


# --- slots ----------------------------------------------------------------------------


@dataclass
class Crowd:
    """Tasks that hold a slot until released."""

    pace: Pace
    entered: list[int] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)

    async def hold(self, number: int) -> None:
        async with self.pace.slot():
            self.entered.append(number)
            await self.gates[number].wait()

    def start(self, group: asyncio.TaskGroup, size: int) -> list[asyncio.Task[None]]:
        self.gates = [asyncio.Event() for _ in range(size)]
        return [group.create_task(self.hold(number)) for number in range(size)]

    def let_all_go(self) -> None:
        for gate in self.gates:
            gate.set()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_slots_are_given_in_the_order_of_the_calls() -> None:
    crowd = Crowd(Pace(concurrency=2))
    async with asyncio.TaskGroup() as group:
        crowd.start(group, 5)
        await settle()
        assert (crowd.entered, crowd.pace.in_use) == ([0, 1], 2)
        crowd.gates[1].set()
        await settle()
        assert crowd.entered == [0, 1, 2]
        crowd.let_all_go()
    assert crowd.entered == [0, 1, 2, 3, 4]
    assert crowd.pace.in_use == 0


async def test_slots_come_back_after_failures() -> None:
    pace = Pace(concurrency=1)
    for _ in range(3):
        with pytest.raises(SourceChanged):
            async with pace.slot():
                raise SourceChanged("x")
    assert pace.in_use == 0


async def test_a_small_upload_does_not_wait_for_a_large_one() -> None:
    pace = Pace(concurrency=4)
    entered: list[str] = []
    gates = [asyncio.Event() for _ in range(24)]

    async def part(owner: str, gate: asyncio.Event) -> None:
        async with pace.slot(owner):
            entered.append(owner)
            await gate.wait()

    async with asyncio.TaskGroup() as group:
        for gate in gates[:20]:
            group.create_task(part("large", gate))
        await settle()
        for gate in gates[20:]:
            group.create_task(part("small", gate))
        for gate in gates:
            gate.set()
            await settle()
    assert entered[:4] == ["large"] * 4
    assert entered[4:6] == ["small"] * 2, "as soon as slots come back"


async def test_owners_hold_as_many_slots_each() -> None:
    pace = Pace(concurrency=6)
    held: Counter[str] = Counter()

    async def part(owner: str) -> None:
        async with pace.slot(owner):
            held[owner] += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held[owner] -= 1

    async with asyncio.TaskGroup() as group:
        for owner, count_ in (("a", 200), ("b", 50), ("c", 50)):
            for _ in range(count_):
                group.create_task(part(owner))
        for _ in range(20):
            await asyncio.sleep(0)
            assert max(held.values()) <= 6
        assert all(1 <= held[owner] <= 3 for owner in "abc")


async def test_a_higher_limit_admits_waiting_tasks_at_once() -> None:
    pace = Pace(concurrency=4)
    for _ in range(3):
        pace.slow_down()
    assert pace.limit == 2, "a bunch of refusals counts once"
    crowd = Crowd(pace)
    async with asyncio.TaskGroup() as group:
        crowd.start(group, 4)
        await settle()
        assert crowd.entered == [0, 1]
        pace._apply(replace(pace._steering, limit=4))
        await settle()
        assert crowd.entered == [0, 1, 2, 3]
        pace._apply(replace(pace._steering, limit=1))
        assert pace.in_use == 4, "nobody is thrown out"
        crowd.let_all_go()


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30), st.integers(1, 4))
@example([(0, False), (1, True)], 1)  # cancelled at the moment its turn came
@settings(max_examples=60, deadline=None)
def test_no_slot_is_lost_to_cancellation(steps: list[tuple[int, bool]], limit: int) -> None:
    async def scenario() -> None:
        crowd = Crowd(Pace(concurrency=limit))
        async with asyncio.TaskGroup() as group:
            tasks = crowd.start(group, 10)
            await settle()
            for number, is_cancel in steps:
                if is_cancel:
                    tasks[number].cancel()
                else:
                    crowd.gates[number].set()
                await asyncio.sleep(0)
                assert crowd.pace.in_use <= limit
            crowd.let_all_go()
        assert crowd.pace.in_use == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pace(concurrency=0),
        lambda: Pace(max_concurrency=0),
        lambda: Pace(vod_calls_per_s=0),
    ],
)
def test_a_budget_of_nothing_is_refused(make: Callable[[], Pace]) -> None:
    with pytest.raises(ConfigurationError):
        make()


async def test_vod_calls_are_spread() -> None:
    pace = Pace(vod_calls_per_s=50)
    loop = asyncio.get_running_loop()
    started_at, times = loop.time(), []
    for _ in range(30):
        await pace.vod_call()
        times.append(loop.time() - started_at)
    assert times[9] < 0.1, "a fifth of a second's worth goes at once"
    assert 0.3 < times[-1] < 0.8


# --- steering: single decisions -------------------------------------------------------

START = Steering.automatic(32)


def seen(rate: float, **more: float | bool) -> Interval:
    return Interval(seconds=TICK_S, acked_bytes=int(rate * TICK_S), **more)  # type: ignore[arg-type]


QUEUE = {"rtt_s": 0.2, "min_rtt_s": 0.05}


def test_goodput_doubles_the_limit() -> None:
    assert decide(START, seen(MIB)).limit == 8


def test_a_fast_link_ramps_four_fold() -> None:
    assert decide(START, seen(5 * FAST_LINK_RATE)).limit == 16


def test_a_trial_without_gain_is_undone_and_followed_by_a_hold() -> None:
    grown = decide(START, seen(MIB))
    back = decide(grown, seen(1.05 * MIB))
    assert (back.limit, back.is_trial) == (4, False)
    held = back
    for _ in range(int(back.hold_s / TICK_S)):
        assert held.limit == 4
        held = decide(held, seen(MIB))
    assert decide(held, seen(MIB)).limit == 6, "then it is tried again, more carefully"


def test_failed_trials_become_rare() -> None:
    state, holds = START, []
    for _ in range(2000):
        before, state = state, decide(state, seen(MIB))
        if before.is_trial and not state.is_trial:
            holds.append(state.hold_s)
    assert holds[:5] == [4, 8, 16, 32, 60]


def test_a_queue_is_never_made_longer() -> None:
    state = decide(START, seen(MIB))
    for _ in range(50):
        state = decide(state, seen(4 * MIB, **QUEUE))
        assert state.limit <= 8


def test_a_short_queue_changes_nothing() -> None:
    grown = decide(START, seen(MIB))
    assert decide(grown, seen(4 * MIB, **QUEUE)).limit == 8


def test_a_lasting_queue_lowers_the_limit_to_the_floor() -> None:
    state, limits = replace(START, limit=32, floor=8), []
    for _ in range(80):
        state = decide(state, seen(8 * MIB, **QUEUE))
        limits.append(state.limit)
    assert sorted(set(limits)) == [8, 9, 13, 18, 24, 32]


def test_on_a_slow_link_one_connection_is_left() -> None:
    state = replace(START, floor=16)
    for _ in range(80):
        state = decide(state, seen(120 * KIB, **QUEUE))
    assert state.limit == 1


def test_a_hold_is_over_when_the_queue_is_gone_and_less_arrives() -> None:
    full = decide(decide(START, seen(MIB)), seen(10 * MIB, **QUEUE))
    assert full.hold_s > 0
    assert decide(full, seen(9 * MIB)).limit == full.limit
    assert decide(full, seen(5 * MIB)).limit > full.limit


def test_a_hold_is_over_when_segments_are_lost_without_a_queue() -> None:
    back = decide(decide(START, seen(MIB)), seen(MIB))
    assert back.hold_s > 0
    assert decide(back, seen(MIB, retransmit_count=3)).limit > back.limit


@pytest.mark.parametrize(
    ("min_rtt_s", "is_slowed_by_loss", "limit"),
    [(0.0003, True, 4), (0.05, False, 8), (0.05, True, 32), (0.2, False, 48), (0.2, True, 64)],
)
def test_the_first_limit_follows_from_the_round_trip(
    min_rtt_s: float, is_slowed_by_loss: bool, limit: int
) -> None:
    rtt = {"rtt_s": min_rtt_s, "min_rtt_s": min_rtt_s}
    idle = seen(0, **rtt, is_slowed_by_loss=is_slowed_by_loss, is_saturated=False)
    assert decide(Steering.automatic(64), idle).limit == limit
    assert decide(Steering.automatic(3), idle).limit == 3


def test_a_busy_scheduler_is_no_queue() -> None:
    assert not seen(MIB, rtt_s=0.002, min_rtt_s=0.00002).has_queue


def test_loss_without_a_queue_justifies_more_connections() -> None:
    grown = decide(START, seen(MIB))
    assert decide(grown, seen(MIB, retransmit_count=7)).limit == 16


def test_a_trial_is_judged_after_slow_start() -> None:
    grown = decide(START, seen(MIB))
    far = {"rtt_s": 0.2, "min_rtt_s": 0.19}
    state = replace(grown, floor=4)
    for _ in range(3):
        state = decide(state, seen(0.5 * MIB, **far))
        assert state.limit == 8
    assert decide(state, seen(0.5 * MIB, **far)).limit == 4


def test_an_unsaturated_interval_changes_nothing() -> None:
    assert decide(START, seen(MIB, is_saturated=False)) == START


def test_the_ceiling_holds() -> None:
    state = replace(START, ceiling=10)
    for factor in range(1, 8):
        state = decide(state, seen(MIB * 2**factor))
    assert state.limit == 10


def test_a_refusal_halves_and_holds() -> None:
    state = back_off(replace(START, limit=20))
    assert (state.limit, state.hold_s) == (10, REFUSED_HOLD_S)
    assert decide(state, seen(100 * MIB)).limit == 10
    assert back_off(back_off(back_off(START))).limit == 1


def test_a_refused_limit_is_not_tried_again_soon() -> None:
    state, now_s, limits = replace(START, floor=4, limit=16), 0.0, []
    state = back_off(state)
    while now_s < 120:
        state = decide(state, seen(MIB * state.limit))
        now_s += TICK_S
        limits.append((now_s, state.limit))
    assert max(limit for at_s, limit in limits if at_s < 50) < 16
    assert max(limit for _, limit in limits) >= 16


def test_nothing_shortens_the_hold_after_a_refusal() -> None:
    state = back_off(replace(START, floor=4, limit=16))
    for look in (seen(0), seen(MIB, retransmit_count=9), seen(MIB, **QUEUE)):
        assert decide(state, look).limit == 8


def test_a_fixed_number_comes_back_after_a_refusal() -> None:
    state = back_off(Steering.fixed(12))
    limits = []
    for _ in range(20):
        state = decide(state, seen(MIB))
        limits.append(state.limit)
    assert sorted(set(limits)) == [6, 12]


any_interval = st.builds(
    Interval,
    seconds=st.floats(0.1, 5),
    acked_bytes=st.integers(0, 10**10),
    retransmit_count=st.integers(0, 1000),
    rtt_s=st.floats(0, 5),
    min_rtt_s=st.floats(0, 5),
    is_saturated=st.booleans(),
)


@given(
    st.lists(st.one_of(any_interval, st.none()), max_size=60), st.integers(1, 100), st.booleans()
)
def test_the_limit_stays_within_its_bounds(
    history: list[Interval | None], ceiling: int, is_fixed: bool
) -> None:
    state = Steering.fixed(ceiling) if is_fixed else Steering.automatic(ceiling)
    for interval in history:
        state = back_off(state) if interval is None else decide(state, interval)
        assert 1 <= state.limit <= ceiling
        assert state.trusted_limit <= ceiling


# --- steering: whole links ------------------------------------------------------------

MBIT = 125_000
LINKS = {
    "clean": Path(200 * MBIT, 0.05),
    "clean, bbr": Path(200 * MBIT, 0.05, is_bbr=True),
    "lossy": Path(200 * MBIT, 0.05, 0.005),
    "lossy, bbr": Path(200 * MBIT, 0.05, 0.005, is_bbr=True),
    "a little lossy": Path(200 * MBIT, 0.05, 0.001),
    "very lossy": Path(200 * MBIT, 0.05, 0.02),
    "narrow": Path(50 * MBIT, 0.05),
    "far": Path(200 * MBIT, 0.2),
    "far, bbr": Path(200 * MBIT, 0.2, is_bbr=True),
    "far and lossy": Path(200 * MBIT, 0.2, 0.005),
    "wide": Path(2000 * MBIT, 0.05),
    "wide, bbr": Path(2000 * MBIT, 0.05, is_bbr=True),
    "wide and far, bbr": Path(2000 * MBIT, 0.2, is_bbr=True),
    "deep queue": Path(20 * MBIT, 0.05, queue=10),
    "changing": Path(200 * MBIT, 0.05, later=Path(40 * MBIT, 0.05, 0.005), later_s=8),
    "widening": Path(20 * MBIT, 0.05, later=Path(400 * MBIT, 0.05), later_s=8),
}
FIXED = (1, 4, 8, 16, 32, 64)


def seconds_for(link: Path, controller: Controller) -> float:
    return Run(link, controller).carry(15 * link.rate, within_s=60)


@cache
def best_seconds(link: Path) -> float:
    return min(seconds_for(link, constant(limit)) for limit in FIXED)


def share_of_best(link: Path, controller: Controller) -> float:
    """The best fixed number's time over this controller's: 1 is as good."""
    return best_seconds(link) / seconds_for(link, controller)


@pytest.mark.parametrize("name", LINKS)
def test_steered_connections_are_nearly_as_good_as_the_best_fixed_number(name: str) -> None:
    assert share_of_best(LINKS[name], steered()) >= 0.9


@pytest.mark.parametrize("name", ["changing", "widening"])
def test_a_controller_that_looks_at_goodput_alone_would_be_caught(name: str) -> None:
    assert share_of_best(LINKS[name], goodput_only()) < 0.9


@pytest.mark.parametrize(
    ("limit", "name"), [(4, "lossy"), (8, "wide and far, bbr"), (16, "very lossy"), (32, "storm")]
)
def test_a_constant_would_be_caught(limit: int, name: str) -> None:
    if name == "storm":
        assert _refusals(constant(limit)) > 2 * _refusals(steered())
    else:
        assert share_of_best(LINKS[name], constant(limit)) < 0.9


def test_a_full_link_is_not_crowded() -> None:
    """What goodput does not show: each connection more makes the queue longer for others."""
    for name in ("deep queue", "narrow"):
        run = Run(LINKS[name], steered())
        run.carry(20 * run.link.rate)
        assert max(run.limits) <= 16


def test_a_slow_link_gets_few_connections() -> None:
    run = Run(Path(1 * MBIT, 0.05, queue=20), steered())
    run.carry(120 * run.link.rate)
    assert run.limits[-1] <= 2


def test_a_service_that_refuses_is_tried_less_and_less_often() -> None:
    """It refuses whatever is above six connections, for two minutes of work."""
    assert _refusals(steered()) <= 8


def _refusals(controller: Controller) -> int:
    """Seconds with refusals, where the service takes six and the link would carry more."""
    refused_count = 0

    def count_refusal() -> None:
        nonlocal refused_count
        refused_count += 1
        controller.refuse()

    counting = Controller(controller.limit, controller.tick, count_refusal)
    Run(Path(1000 * MBIT, 0.1, 0.001, most_served=6), counting).carry(1e12, within_s=120)
    return refused_count


# --- steering: ticking ----------------------------------------------------------------


@dataclass
class FakeProbe:
    """Connections that go faster and faster."""

    samples: list[list[LinkSample]]

    def sample(self) -> list[LinkSample]:
        return self.samples.pop(0) if self.samples else []


def link(connection: int, acked: int, retransmits: int = 0) -> LinkSample:
    return LinkSample(connection, acked, 0.01, 0.01, retransmits)


async def test_ticks_steer_while_the_block_runs_and_not_after() -> None:
    clock = VirtualClock()
    pace = Pace(clock=clock)
    probe = FakeProbe([[link(n, (n + 1) * i * MIB) for n in range(4)] for i in range(1, 9)])
    crowd = Crowd(pace)
    async with asyncio.TaskGroup() as group:
        crowd.start(group, 40)
        async with pace.steering(probe):
            await clock.run(until_s=1000 + 2.1 * TICK_S)
            assert pace.limit > 4
        crowd.let_all_go()
    limit = pace.limit
    await clock.run()
    assert pace.limit == limit
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_two_blocks_tick_as_often_as_one() -> None:
    clock = VirtualClock()
    pace = Pace(clock=clock)
    probe = FakeProbe([[link(1, n * MIB)] for n in range(100)])
    async with pace.steering(probe), pace.steering(probe):
        await clock.run(until_s=1000 + 10 * TICK_S)
    assert 100 - len(probe.samples) == 10


async def test_an_error_leaves_the_block_as_it_is() -> None:
    pace = Pace()
    with pytest.raises(SourceChanged, match="itself"):
        async with pace.steering(FakeProbe([])):
            raise SourceChanged("itself")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), pace.steering(FakeProbe([])):
            await asyncio.sleep(5)


async def test_without_samples_of_the_kernel_sent_bytes_count() -> None:
    clock = VirtualClock()
    pace = Pace(clock=clock)
    async with asyncio.TaskGroup() as group:
        crowd = Crowd(pace)
        crowd.start(group, 10)
        await settle()
        pace.count_sent(10 * MIB)
        pace.tick(FakeProbe([]))
        crowd.let_all_go()
    assert pace.limit == 8


async def test_losses_that_slow_nothing_down_justify_nothing() -> None:
    meter = Pace(clock=VirtualClock())._meter
    lossy = replace(link(1, MIB, retransmits=50), is_slowed_by_loss=False)
    interval = meter.read([lossy], seconds=1, sent_bytes=0)
    assert interval.retransmit_count == 0
    known = replace(START, floor=4)
    states = [known]
    for _ in range(4):
        states.append(decide(states[-1], interval))
    assert [state.limit for state in states] == [4, 4, 8, 4, 4], "one trial, in vain"


async def test_the_round_trip_sets_the_limit_before_the_first_slot() -> None:
    """Whoever hands out grants has been spoken to by then."""
    clock = VirtualClock()
    pace = Pace(clock=clock)
    far = LinkSample(1, 1000, 0.21, 0.2, 0)
    async with pace.steering(FakeProbe([[far]])), pace.slot():
        assert pace.limit == 64


@pytest.mark.parametrize(
    ("rtt_s", "is_slowed_by_loss", "expected"),
    [(0.2, True, 64), (0.05, True, 64), (0.05, False, 8)],
)
async def test_a_plan_made_before_the_first_part_knows_the_round_trip(
    rtt_s: float, is_slowed_by_loss: bool, expected: int
) -> None:
    """And is not cut for more than "auto" will probably reach."""
    pace = Pace(clock=VirtualClock())
    sample = LinkSample(1, 1000, rtt_s, rtt_s, 0, is_slowed_by_loss)
    assert pace.expected_concurrency == 8
    async with pace.steering(FakeProbe([[sample]])):
        assert pace.expected_concurrency == expected


def test_under_our_own_limit_no_more_connections_are_tried() -> None:
    free = Interval(seconds=1.0, acked_bytes=3 * MIB, rtt_s=0.05, min_rtt_s=0.05)
    held = replace(free, allowed_rate=3.0 * MIB)
    state = Steering.automatic(64)
    assert decide(state, free).limit > state.limit
    state = decide(state, held)
    begun = state.limit
    for _ in range(10):
        state = decide(state, held)
    assert state.limit == begun == 4
    assert decide(state, replace(held, acked_bytes=MIB)).limit > begun, "it is not reached"


async def test_under_a_bandwidth_limit_few_connections_begin() -> None:
    far = LinkSample(1, MIB, 0.2, 0.2, 0)
    pace = Pace(bandwidth=Bandwidth.constant(3 * MIB), clock=VirtualClock())
    async with pace.steering(FakeProbe([[far]])), pace.slot():
        assert pace.limit == 4


async def test_the_rate_of_a_full_link_is_known_to_plans() -> None:
    clock = VirtualClock()
    pace = Pace(clock=clock)
    looks = [[LinkSample(1, n * 4 * MIB, 0.1, 0.05, 0)] for n in range(40)]
    assert (pace.connection_rate, pace.expected_concurrency) == (None, 8)
    async with asyncio.TaskGroup() as group:
        crowd = Crowd(pace)
        crowd.start(group, 40)
        async with pace.steering(FakeProbe(looks)):
            await clock.run(until_s=1000 + 3.1 * TICK_S)
            assert pace.connection_rate == pytest.approx(4 * MIB / TICK_S / pace.limit)
            assert pace.expected_concurrency == 64
            assert pace.rtt_s == 0.05
        crowd.let_all_go()


async def test_the_round_trip_is_sampled_by_ticks_not_for_every_file() -> None:
    clock = VirtualClock()
    pace = Pace(clock=clock)
    probe = FakeProbe([[LinkSample(1, MIB, rtt_s, rtt_s, 0)] for rtt_s in (0.05, 0.04)])
    assert pace.rtt_s == 0.0
    async with pace.steering(probe):
        assert {pace.rtt_s for _ in range(100)} == {0.05}
        await clock.run(until_s=1000 + 1.1 * TICK_S)
        assert {pace.rtt_s for _ in range(100)} == {0.04}


async def test_the_lowest_limit_of_the_day_is_known_to_plans() -> None:
    pace = Pace(concurrency=4, bandwidth=parse_bandwidth("08:00,400K 20:00,off 22:00,2M"))
    assert pace.connection_rate == 100 * KIB
    assert pace.expected_concurrency == 4


@pytest.mark.parametrize("is_slowed", [True, False])
async def test_plans_know_whether_losses_slow_connections_down(is_slowed: bool) -> None:
    clock = VirtualClock()
    pace = Pace(clock=clock)
    looks = [[LinkSample(1, MIB, 0.05, 0.05, 0, known)] for known in (is_slowed, not is_slowed)]
    async with pace.steering(FakeProbe(looks)):
        assert (pace.rtt_s, pace.is_slowed_by_loss) == (0.05, is_slowed)
        await clock.run(until_s=1000 + 1.1 * TICK_S)
        assert pace.is_slowed_by_loss is not is_slowed


async def test_closed_and_new_connections_do_not_confuse_the_meter() -> None:
    pace = Pace(clock=VirtualClock())
    meter = pace._meter
    looks = [[link(1, 10 * MIB, 5)], [link(2, MIB, 1)], [link(2, 3 * MIB, 1), link(3, 0)]]
    read = [meter.read(look, seconds=1, sent_bytes=0) for look in looks]
    assert [one.acked_bytes for one in read] == [10 * MIB, MIB, 2 * MIB]
    assert [one.retransmit_count for one in read] == [5, 1, 0]
    assert all(a.rate >= 0 for a, _ in pairwise(read))


# --- the end of a run -------------------------------------------------------------------


async def test_draining_waits_for_requests_under_way_and_begins_no_other() -> None:
    clock = VirtualClock()
    crowd = Crowd(Pace(concurrency=2, clock=clock))
    async with asyncio.TaskGroup() as group:
        tasks = crowd.start(group, 3)
        await settle()
        draining = group.create_task(crowd.pace.drain(5.0))
        await clock.run(until_s=clock.now_s + 1)
        crowd.let_all_go()
        await clock.run(until_s=clock.now_s + 0.2)
        assert draining.result() is True
        crowd.pace.slow_down()  # steering goes on, and admits nothing
        assert crowd.entered == [0, 1]
        tasks[2].cancel()


async def test_draining_waits_for_so_long_and_no_longer() -> None:
    clock = VirtualClock()
    crowd = Crowd(Pace(concurrency=2, clock=clock))
    async with asyncio.TaskGroup() as group:
        tasks = crowd.start(group, 2)
        await settle()
        began_s = clock.now_s
        draining = group.create_task(crowd.pace.drain(5.0))
        await clock.run(until_s=began_s + 4)
        assert not draining.done()
        crowd.gates[0].set()
        await clock.run(until_s=began_s + 20)
        assert draining.result() is True
        assert 5 <= clock.now_s - began_s < 5.2
        again = group.create_task(crowd.pace.drain(5.0))
        await clock.run(until_s=began_s + 40)
        assert again.result() is False
        tasks[1].cancel()
