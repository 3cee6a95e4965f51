"""How many connections: a pure function of what the kernel reports about the open ones.

`decide` takes the state and what was seen since the last look, and returns the new state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Final, Protocol

__all__ = [
    "MAX_CONCURRENCY",
    "TICK_S",
    "USUAL_CONCURRENCY",
    "Interval",
    "LinkProbe",
    "LinkSample",
    "Meter",
    "Steering",
    "begin",
    "decide",
    "first_limit",
    "set_back",
]

MAX_CONCURRENCY: Final = 64
"""The most connections that "auto" chooses."""

TICK_S: Final = 0.5
"""How often the links are looked at. Less sees noise, more makes the ramp slow."""


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


class Meter:
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
