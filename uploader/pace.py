"""How many connections, how many bytes a second: one budget for every upload of an `Uploader`.

Three limits live here. *Slots* bound how many requests with a body are under way; their
number is fixed or steered by what the kernel reports about the open connections.
*Bandwidth* bounds bytes a second, by the time of day if wished. *VOD calls* bound
requests a second to the VOD API.

The steering is a pure function, `decide`: state and what was seen in, new state out.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Final, Literal, Protocol

from aiolimiter import AsyncLimiter

from uploader.clock import Clock, SystemClock
from uploader.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "MAX_CONCURRENCY",
    "Bandwidth",
    "Interval",
    "LinkProbe",
    "LinkSample",
    "Pace",
    "Steering",
    "begin",
    "decide",
    "first_limit",
    "parse_bandwidth",
    "set_back",
]

TICK_S: Final = 0.5
"""How often the links are looked at. Less sees noise, more makes the ramp slow."""


# --- bandwidth ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second, by the local time of day.

    Attributes:
        changes: (minute of the day, bytes a second or None for no limit), by minute.
            Before the first change of a day the last one of the day before holds.
    """

    changes: tuple[tuple[int, int | None], ...]

    @classmethod
    def constant(cls, bytes_per_s: int | None) -> Bandwidth:
        """The same all day."""
        return cls(((0, bytes_per_s),))

    def rate_at(self, local: datetime) -> int | None:
        """Bytes a second at that local time; None when there is no limit."""
        minute = local.hour * 60 + local.minute
        past = [rate for starts, rate in self.changes if starts <= minute]
        return past[-1] if past else self.changes[-1][1]


_RATE = re.compile(r"(\d+(?:\.\d+)?)([BKMG])", re.IGNORECASE)
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
MAX_CONCURRENCY: Final = 64
"""The most connections that "auto" chooses."""

_UNITS: Final = {"B": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_BANDWIDTH_HELP: Final = 'Write for example "10M" or "08:00,10M 20:00,off" (bytes a second).'


def parse_bandwidth(text: str) -> Bandwidth:
    """Read "10M", "off" or a timetable such as "08:00,10M 20:00,off".

    B, K, M and G are bytes a second in powers of 1024, as in rclone. A number without
    a unit is refused, because rclone reads it as KiB and others as bytes.

    Raises:
        ConfigurationError: it is neither.
    """
    words = text.split()
    if len(words) == 1 and "," not in words[0]:
        return Bandwidth.constant(_parse_rate(words[0], text))
    changes = sorted((_parse_change(word, text) for word in words), key=lambda change: change[0])
    if not changes or len({minute for minute, _ in changes}) < len(changes):
        raise _unreadable(text)
    return Bandwidth(tuple(changes))


def _parse_change(word: str, text: str) -> tuple[int, int | None]:
    when, comma, rate = word.partition(",")
    match = _TIME.fullmatch(when)
    if not comma or match is None:
        raise _unreadable(text)
    return int(match[1]) * 60 + int(match[2]), _parse_rate(rate, text)


def _parse_rate(word: str, text: str) -> int | None:
    if word.lower() == "off":
        return None
    match = _RATE.fullmatch(word)
    rate = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if rate < 1:
        raise _unreadable(text)
    return rate


def _unreadable(text: str) -> ConfigurationError:
    return ConfigurationError(f"{text!r} is not a bandwidth.", next_step=_BANDWIDTH_HELP)


SLICE_S: Final = 0.05
"""What goes out in one turn under a limit, in seconds of it. Larger is unfair, and as many
connections may burst at once; smaller wakes up often."""


class _Bucket:
    """Deals out bytes in the order of asking, without saving up for a burst.

    Mutable: when the line is free again.
    """

    _CREDIT_S: Final = 0.02  # a late wake-up may be made up for, idleness may not
    _NAP_S: Final = 0.002  # shorter waits cost more than they are worth: they add up instead

    def __init__(self, clock: Clock, bandwidth: Bandwidth | None) -> None:
        self._clock = clock
        self._free_at = clock.elapsed_s()
        self.bandwidth = bandwidth

    def rate(self) -> int | None:
        """Bytes a second right now."""
        if self.bandwidth is None:
            return None
        return self.bandwidth.rate_at(self._clock.utc_now().astimezone())

    def lowest_rate(self) -> int | None:
        """The least bytes a second at any time of the day."""
        rates = [rate for _, rate in self.bandwidth.changes if rate] if self.bandwidth else []
        return min(rates, default=None)

    async def spend(self, byte_count: int) -> None:
        """Wait until so many more bytes may go out."""
        while byte_count > 0 and (rate := self.rate()) is not None:
            piece = min(byte_count, max(1, int(rate * SLICE_S)))
            await self._take(piece / rate)
            byte_count -= piece

    async def _take(self, seconds: float) -> None:
        now = self._clock.elapsed_s()
        self._free_at = max(self._free_at, now - self._CREDIT_S) + seconds
        if self._free_at - now > self._NAP_S:
            await self._clock.sleep(self._free_at - now)


SMALLEST_PIECE: Final = 1024
"""Bytes; less costs more in packets than it carries."""


# --- slots ----------------------------------------------------------------------------


class _Slots:
    """Slots, handed out evenly among owners, whose number may change at any time.

    The owner who holds least has the next turn, among equals the one who has waited
    longest; a file of ten thousand parts does not keep a small one waiting. Mutable: who
    holds slots and who waits. Fewer slots than are held take effect as they come back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # longest wait first
        self._held: Counter[Hashable] = Counter()
        self.in_use = 0
        self.peak = 0

    @property
    def limit(self) -> int:
        """How many may be held at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._admit()

    async def acquire(self, owner: Hashable) -> None:
        """Wait for a slot."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._forgo(owner, turn)
            raise

    def release(self, owner: Hashable) -> None:
        """Give a slot back."""
        self.in_use -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._admit()

    def take_peak(self) -> int:
        """The most that were held at once since this was last asked."""
        peak, self.peak = self.peak, self.in_use
        return peak

    def _admit(self) -> None:
        while self._waiting and self.in_use < self._limit:
            owner = min(self._waiting, key=self._held.__getitem__)
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others: it has just had its turn
            if not turn.done():
                turn.set_result(None)
                self.in_use += 1
                self._held[owner] += 1
                self.peak = max(self.peak, self.in_use)

    def _forgo(self, owner: Hashable, turn: asyncio.Future[None]) -> None:
        """Undo the wait of a cancelled task, whose turn may have come at the same moment."""
        if not turn.cancelled():
            self.release(owner)
            return
        queue = self._waiting.get(owner)
        if queue and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]


# --- steering -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkSample:
    """What the kernel says of one open connection.

    Attributes:
        connection: names the connection for as long as the process lives.
        acked_bytes: bytes the peer has acknowledged since it was opened.
        rtt_s, min_rtt_s: smoothed and smallest round trip; 0 while unknown.
        retransmit_count: segments sent again since it was opened.
        is_slowed_by_loss: whether its congestion control takes a loss for a full link.
            bbr does not: there, more connections win nothing back.
    """

    connection: int
    acked_bytes: int
    rtt_s: float
    min_rtt_s: float
    retransmit_count: int
    is_slowed_by_loss: bool = True


class LinkProbe(Protocol):
    """Looks at the open connections."""

    def sample(self) -> list[LinkSample]:
        """One sample per open connection; empty where the kernel does not tell."""


@dataclass(frozen=True, slots=True)
class Interval:
    """What was seen between two looks.

    Attributes:
        seconds: how long it was.
        acked_bytes: bytes that arrived.
        retransmit_count: segments lost by connections that slow down for it.
        rtt_s, min_rtt_s: medians over the connections that moved, over all if none did;
            0 when unknown.
        is_used_up: whether every slot was held at some moment.
        allowed_rate: bytes a second our own limit allows; None without one.
        is_slowed_by_loss: whether a loss slows any of the connections down.
    """

    seconds: float
    acked_bytes: int
    retransmit_count: int = 0
    rtt_s: float = 0.0
    min_rtt_s: float = 0.0
    is_used_up: bool = True
    allowed_rate: float | None = None
    is_slowed_by_loss: bool = True

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.acked_bytes / self.seconds if self.seconds else 0.0

    @property
    def is_held_back(self) -> bool:
        """Whether our own limit is what there is no more than."""
        return self.allowed_rate is not None and self.rate >= HELD_BACK * self.allowed_rate

    @property
    def has_queue(self) -> bool:
        """Whether our own bytes wait in front of the bottleneck: more would not go faster.

        The absolute floor is for short links, where a busy scheduler looks like a queue.
        """
        delay_s = self.rtt_s - self.min_rtt_s
        return delay_s >= 0.005 and self.rtt_s >= 1.25 * self.min_rtt_s


@dataclass(frozen=True, slots=True)
class Steering:
    """The limit of slots and how it came about.

    Attributes:
        limit: slots in force.
        ceiling: never more than this.
        is_fixed: the ceiling was asked for; only refusals of the service lower it.
        floor: a queue alone does not bring the limit below this, unless the link is slow.
        trusted_limit, trusted_rate: the best that has proved itself, and its bytes a second.
        is_trial: `limit` is larger than what has proved itself and awaits judgement.
        trial_s: how long the trial has lasted.
        last_rate: bytes a second at the last look.
        queued_s: for how long there has been a queue at every look.
        growth: factor of the next trial.
        hold_s: how long to stay before the next trial.
        next_hold_s: how long the hold after that will be; failed trials double it.
        is_refused: the hold was made by a refusal: nothing ends it early.
        accepted: what the service is thought to accept; refusals lower it, time raises it.
    """

    limit: int
    trusted_limit: int
    ceiling: int
    is_fixed: bool = False
    floor: int = 0
    trusted_rate: float = 0.0
    is_trial: bool = True
    trial_s: float = 0.0
    last_rate: float = 0.0
    queued_s: float = 0.0
    growth: float = 2.0
    hold_s: float = 0.0
    next_hold_s: float = 4.0
    is_refused: bool = False
    accepted: float = math.inf

    @classmethod
    def automatic(cls, ceiling: int) -> Steering:
        """Starts at four connections, which no path is worse off with than with one."""
        limit = min(FIRST_LIMIT, ceiling)
        return cls(limit=limit, trusted_limit=limit, ceiling=ceiling)

    @classmethod
    def fixed(cls, limit: int) -> Steering:
        """Stays where it is unless the service refuses."""
        return cls(limit=limit, trusted_limit=limit, ceiling=limit, is_fixed=True, is_trial=False)

    @property
    def is_new(self) -> bool:
        """Whether nothing is known of the link yet."""
        return not self.is_fixed and self.floor == 0


FIRST_LIMIT: Final = 4

HELD_BACK: Final = 0.8
"""Of a bandwidth limit: from here on more connections would only share it."""

USUAL_CONCURRENCY: Final = 8
"""What the tail of a plan is tapered for on a near link. More would cut more small parts, whose
requests cost CPU where a fast link needs none of them."""

GAIN: Final = 1.10
"""Goodput must grow by this factor to justify more connections: below is noise."""

RISING: Final = 1.25
"""Goodput that grows by this factor between two looks has not yet arrived at its level."""

NEAR_S: Final = 0.01
"""Round trip below which slow start is over before anybody looks."""

FAST_LINK_RATE: Final = 32 * 1024**2
"""Bytes a second and connection above which the first steps are four-fold."""

SLOW_LINK_RATE: Final = 64 * 1024
"""Bytes a second and connection below which fewer connections share the link: with less, a
part of 8 MiB takes more than two minutes, and all of that is lost when it fails."""

REFUSED_HOLD_S: Final = 5.0
"""How long to stay small after the service asked for less."""

ACCEPTED_MORE_S: Final = 20.0
"""How long until one more connection is tried than the service was thought to accept."""

FULL_S: Final = 4.0
"""A queue that lasted so long at every look is not the slow start of a new connection."""

LONGEST_HOLD_S: Final = 60.0


def first_limit(min_rtt_s: float, *, is_slowed_by_loss: bool) -> int:
    """How many connections a link of that round trip deserves before it is known better.

    Each rests for a round trip after each part, and starts slowly; the longer the round
    trip, the more others must fill in. Measured on 200 Mbit/s: at 50 ms four to eight do,
    at 200 ms sixty-four carry 1.4 times what sixteen do, or as much; where losses slow each
    of them down (cubic), sixty-four carry two to three times as much, and without losses
    no less. On 2 Gbit/s at 200 ms it takes sixty-four; with bbr forty-eight carry nine tenths
    of that, and a third more on a narrower link with losses.
    """
    if min_rtt_s < NEAR_S:
        return FIRST_LIMIT
    if min_rtt_s >= 0.1:
        return 64 if is_slowed_by_loss else 48
    return 32 if is_slowed_by_loss else 8


def decide(state: Steering, seen: Interval) -> Steering:
    """The next state: grow, hold or step back.

    A queue means that the link is full. Without one there is room: when segments are lost
    then, each connection is held down by loss and another one adds its share; when bytes
    arrive more slowly than they did, the hold is over. Otherwise a trial of more must show
    more goodput; goodput alone does not do, as slow start makes any new connection look
    good.
    """
    if state.is_fixed:
        return _recover(state, seen)
    decided = _steer(begin(state, seen), seen)
    return replace(decided, last_rate=seen.rate) if seen.is_used_up else decided


def _steer(state: Steering, seen: Interval) -> Steering:
    accepted = state.accepted + seen.seconds / ACCEPTED_MORE_S
    hold_s = max(0.0, state.hold_s - seen.seconds)
    queued_s = state.queued_s + seen.seconds if seen.has_queue else 0.0
    was_held = state.hold_s > 0
    state = replace(state, accepted=accepted, hold_s=hold_s, queued_s=queued_s)
    if not seen.is_used_up or (was_held and state.is_refused):
        return state
    if seen.has_queue:
        return _settle(state, seen)
    if seen.is_held_back:
        return replace(state, limit=state.trusted_limit, is_trial=False)
    if state.is_trial:
        return _judge(replace(state, trial_s=state.trial_s + seen.seconds), seen)
    if was_held and not _has_room(state, seen):
        return state
    return _begin_trial(state, seen)


def set_back(state: Steering) -> Steering:
    """The next state after a refusal or a time-out: half, and no trial for a while."""
    half = max(1, state.limit // 2)
    return replace(
        state,
        limit=half,
        trusted_limit=half,
        trusted_rate=0.0,
        is_trial=False,
        growth=1.5,
        hold_s=REFUSED_HOLD_S,
        is_refused=True,
        accepted=max(1.0, 0.75 * state.limit),
    )


def _recover(state: Steering, seen: Interval) -> Steering:
    """A fixed number comes back after a refusal."""
    if state.hold_s > 0:
        return replace(state, hold_s=max(0.0, state.hold_s - seen.seconds))
    return replace(state, limit=min(state.ceiling, state.limit * 2))


def begin(state: Steering, seen: Interval) -> Steering:
    """Start where the link suggests, as soon as its round trip is known.

    But with few under a bandwidth limit: connections that share it finish their parts all
    at once and late.
    """
    if not state.is_new or seen.min_rtt_s <= 0:
        return state
    first = first_limit(seen.min_rtt_s, is_slowed_by_loss=seen.is_slowed_by_loss)
    floor = min(first, first if seen.allowed_rate is None else FIRST_LIMIT, state.ceiling)
    limit = state.limit if seen.has_queue else max(state.limit, floor)
    return replace(state, floor=floor, limit=limit, trusted_limit=limit)


def _has_room(state: Steering, seen: Interval) -> bool:
    """Whether a hold need not be waited for: the link carries less than it could."""
    return seen.retransmit_count > 0 or seen.rate < 0.8 * state.trusted_rate


def _settle(state: Steering, seen: Interval) -> Steering:
    """The link is full: stay, and make do with less where the queue does not go away.

    The queue may be what new connections leave behind in their slow start, so what is
    there stays until it has lasted.
    """
    trusted = max(seen.rate, state.trusted_rate)
    state = replace(
        state, trusted_limit=state.limit, trusted_rate=trusted, is_trial=False, growth=1.5
    )
    if state.queued_s < FULL_S:
        return replace(state, hold_s=max(state.hold_s, 1.0), is_refused=False)
    is_slow = seen.rate < state.limit * SLOW_LINK_RATE
    fewer = state.limit // 2 if is_slow else max(state.floor, state.limit * 3 // 4)
    limit = max(1, min(state.limit, fewer))
    return replace(
        state,
        limit=limit,
        trusted_limit=limit,
        trusted_rate=seen.rate,
        queued_s=0.0,
        hold_s=2.0,
        is_refused=False,
    )


def _judge(state: Steering, seen: Interval) -> Steering:
    if seen.retransmit_count > 0:
        return _begin_trial(replace(state, next_hold_s=4.0), seen)
    if state.trial_s < 10 * seen.rtt_s or _is_rising(state, seen):
        return state  # new connections are still in slow start
    if seen.rate > 0 and seen.rate >= GAIN * state.trusted_rate:
        return _begin_trial(replace(state, next_hold_s=4.0), seen)
    return _step_back(state, seen)


def _is_rising(state: Steering, seen: Interval) -> bool:
    """Whether goodput grows by itself: then it is too early to say what it will be."""
    return seen.rtt_s >= NEAR_S and seen.rate > RISING * state.last_rate


def _step_back(state: Steering, seen: Interval) -> Steering:
    return replace(
        state,
        limit=state.trusted_limit,
        trusted_rate=seen.rate,
        is_trial=False,
        growth=1.5,
        hold_s=state.next_hold_s,
        next_hold_s=min(LONGEST_HOLD_S, state.next_hold_s * 2),
        is_refused=False,
    )


def _begin_trial(state: Steering, seen: Interval) -> Steering:
    is_fast = state.growth >= 2 and seen.rate / state.limit > FAST_LINK_RATE
    larger = max(state.limit + 1, int(state.limit * (4.0 if is_fast else state.growth)))
    accepted = max(state.limit, math.floor(min(state.accepted, state.ceiling)))
    limit = min(state.ceiling, larger, accepted)
    return replace(
        state,
        limit=limit,
        trusted_limit=state.limit,
        trusted_rate=seen.rate,
        is_trial=limit > state.limit,
        trial_s=0.0,
        hold_s=0.0,
    )


class _Meter:
    """Turns what the kernel counts since a connection was opened into what happened since.

    Mutable: the samples of the last look, as many as there are connections.
    """

    def __init__(self) -> None:
        self._before: dict[int, LinkSample] = {}

    def read(
        self, samples: Iterable[LinkSample], *, seconds: float = TICK_S, sent_bytes: int = 0
    ) -> Interval:
        """What happened since the last reading; `sent_bytes` stands in for absent samples."""
        now = {sample.connection: sample for sample in samples}
        before, self._before = self._before, now
        if not now:
            return Interval(seconds=seconds, acked_bytes=sent_bytes)
        steps = [(sample, before.get(sample.connection)) for sample in now.values()]
        moved = [new for new, old in steps if new.acked_bytes > (old.acked_bytes if old else 0)]
        known = [sample for sample in moved or now.values() if sample.min_rtt_s > 0]
        return Interval(
            seconds=seconds,
            acked_bytes=sum(n.acked_bytes - (o.acked_bytes if o else 0) for n, o in steps),
            retransmit_count=sum(
                n.retransmit_count - (o.retransmit_count if o else 0)
                for n, o in steps
                if n.is_slowed_by_loss
            ),
            rtt_s=median([sample.rtt_s for sample in known]) if known else 0.0,
            min_rtt_s=median([sample.min_rtt_s for sample in known]) if known else 0.0,
            is_slowed_by_loss=any(sample.is_slowed_by_loss for sample in now.values()),
        )


# --- the budget -----------------------------------------------------------------------


class Pace:
    """The budget shared by all uploads of an `Uploader`. Mutable; one event loop.

    Args:
        concurrency: connections that carry bodies at once, or "auto". Too few leave a
            long or lossy link idle; too many fill queues and are refused with 503.
        max_concurrency: the most "auto" may choose. Memory is this times the unit of
            the transport. Too small caps lossy links; too large, other people's traffic.
        bandwidth: bytes a second; None for no limit.
        vod_calls_per_s: calls to the VOD API a second. Too few slow the start of many
            small files; too many are throttled by VOD.
        shared_vod_budget: waits for a turn that others must know of, too, before each of
            those calls.
        clock: the clock of bandwidth and steering.

    Raises:
        ConfigurationError: a number is below 1 (or not above 0 for `vod_calls_per_s`).
    """

    def __init__(
        self,
        *,
        concurrency: int | Literal["auto"] = "auto",
        max_concurrency: int = MAX_CONCURRENCY,
        bandwidth: Bandwidth | None = None,
        vod_calls_per_s: float = 20.0,
        shared_vod_budget: Callable[[], Awaitable[None]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._shared_vod_budget = shared_vod_budget
        self._steering = _first_steering(concurrency, max_concurrency)
        self._slots = _Slots(self._steering.limit)
        self._bucket = _Bucket(self._clock, bandwidth)
        self._vod_calls = _vod_limiter(vod_calls_per_s)
        self._meter = _Meter()
        self._probe: LinkProbe | None = None
        self._sent_bytes = 0
        self._full_rate = 0.0
        self._ticked_at = self._halved_at = float("-inf")

    @property
    def limit(self) -> int:
        """Slots that may be held at once, right now."""
        return self._slots.limit

    @property
    def max_concurrency(self) -> int:
        """Slots that may ever be held at once."""
        return self._steering.ceiling

    @property
    def in_use(self) -> int:
        """Slots held right now."""
        return self._slots.in_use

    @property
    def expected_concurrency(self) -> int:
        """How many connections will probably end an upload together.

        Where many are needed to begin with, "auto" goes beyond them, and a tail of small parts
        costs nothing there. Where few do, it stays with them: cut for more, the last parts
        would rest longer for their answers than their bytes take.
        """
        self._begin()
        steering = self._steering
        if steering.is_fixed:
            return steering.ceiling
        hoped_for = steering.floor if steering.floor <= USUAL_CONCURRENCY else 2 * steering.floor
        return min(steering.ceiling, max(USUAL_CONCURRENCY, hoped_for, steering.limit))

    @property
    def connection_rate(self) -> float | None:
        """Bytes a second one connection may expect; None while nothing is known.

        Known is a limit, and what the link carried when it was full.
        """
        known = [rate for rate in (self._full_rate, self._bucket.lowest_rate()) if rate]
        return min(known) / self.limit if known else None

    @property
    def rtt_s(self) -> float:
        """The shortest round trip to the peers; 0 while unknown."""
        samples = self._probe.sample() if self._probe is not None else []
        return min((sample.min_rtt_s for sample in samples if sample.min_rtt_s > 0), default=0.0)

    @property
    def bytes_per_s(self) -> int | None:
        """The bandwidth in force right now; None when there is no limit."""
        return self._bucket.rate()

    @asynccontextmanager
    async def slot(
        self, owner: Hashable = None, *, going: asyncio.Event | None = None
    ) -> AsyncIterator[None]:
        """Hold one connection slot; owners (uploads) share the slots evenly.

        `going`: the owner asks for one only while this is set.
        """
        if going is not None:
            await going.wait()
        self._begin()
        await self._slots.acquire(owner)
        try:
            yield
        finally:
            self._slots.release(owner)

    async def spend(self, byte_count: int) -> None:
        """Wait until the bandwidth allows so many more bytes."""
        await self._bucket.spend(byte_count)

    def piece_size(self, most: int) -> int:
        """How many bytes to hand to the network at once, so that a slow rate stays smooth."""
        rate = self._bucket.rate()
        return most if rate is None else min(most, max(SMALLEST_PIECE, int(rate * SLICE_S)))

    def set_bandwidth(self, bandwidth: Bandwidth | None) -> None:
        """Change the bandwidth while uploads run."""
        self._bucket.bandwidth = bandwidth

    async def vod_call(self) -> None:
        """Wait until one more call to the VOD API is due."""
        await self._vod_calls.acquire()
        if self._shared_vod_budget is not None:
            await self._shared_vod_budget()

    def note_sent(self, byte_count: int) -> None:
        """Count bytes handed to the network."""
        self._sent_bytes += byte_count

    def slow_down(self) -> None:
        """Halve the slots: the service refused for load, or requests timed out.

        Refusals come in bunches, one for every request that was under way; a bunch
        counts once.
        """
        now = self._clock.elapsed_s()
        if now - self._halved_at >= 1.0:
            self._halved_at = now
            self._apply(set_back(self._steering))

    @asynccontextmanager
    async def steering(self, probe: LinkProbe) -> AsyncIterator[None]:
        """Adapt the slots while the block runs; any number of blocks at once."""
        failure: Exception | None = None
        self._probe = probe
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(self._tick_forever(probe))
            try:
                yield
            except Exception as exc:  # unwrapped below: callers catch our errors, not groups
                failure = exc
            finally:
                ticking.cancel()
        if failure is not None:
            raise failure

    async def _tick_forever(self, probe: LinkProbe) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self.tick(probe)

    def tick(self, probe: LinkProbe) -> None:
        """Look at the links and decide; sooner than the last look allows, do nothing."""
        now = self._clock.elapsed_s()
        seconds = min(now - self._ticked_at, 4 * TICK_S)
        if seconds < 0.9 * TICK_S:
            return
        self._ticked_at = now
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        seen = self._meter.read(probe.sample(), seconds=seconds, sent_bytes=sent_bytes)
        is_used_up = self._slots.take_peak() >= self._slots.limit
        if is_used_up and seen.has_queue:
            self._full_rate = seen.rate
        seen = replace(seen, is_used_up=is_used_up, allowed_rate=self._bucket.rate())
        self._apply(decide(self._steering, seen))

    def _begin(self) -> None:
        """Start where the link suggests, once somebody has been spoken to."""
        if self._steering.is_new and self._probe is not None:
            seen = _Meter().read(self._probe.sample())
            self._apply(begin(self._steering, replace(seen, allowed_rate=self._bucket.rate())))

    def _apply(self, steering: Steering) -> None:
        self._steering = steering
        self._slots.limit = steering.limit


def _first_steering(concurrency: int | Literal["auto"], ceiling: int) -> Steering:
    if concurrency == "auto":
        _require(ceiling >= 1, "max_concurrency must be at least 1.")
        return Steering.automatic(ceiling)
    _require(concurrency >= 1, "concurrency must be at least 1.")
    return Steering.fixed(concurrency)


def _vod_limiter(calls_per_s: float) -> AsyncLimiter:
    """A fifth of a second's calls may go out at once, so that no second holds many more."""
    _require(calls_per_s > 0, "vod_calls_per_s must be above 0.")
    burst = max(1.0, calls_per_s / 5)
    return AsyncLimiter(burst, burst / calls_per_s)


def _require(is_true: bool, message: str) -> None:
    if not is_true:
        raise ConfigurationError(message)
