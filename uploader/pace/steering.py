"""Chooses the number of connections from what the kernel reports about the open ones.

`decide` is a pure function: it takes the state and the last interval, and returns the next
state. `Meter` makes intervals of what the kernel reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

MAX_CONCURRENCY: Final = 64
"""The most connections that "auto" chooses."""

TICK_S: Final = 0.5
"""Seconds between two decisions. Too small sees noise, too large makes the ramp slow."""

FIRST_LIMIT: Final = 4
"""No path is worse off with four connections than with one."""

USUAL_CONCURRENCY: Final = 8
"""What the tail of a plan is cut for on a near link. More would cut more small parts, whose
requests cost CPU where a fast link needs none of them."""

FULL_SHARE: Final = 0.8
"""Share of a bandwidth limit from which more connections would only divide it further."""

GAIN: Final = 1.10
"""Goodput must grow by this factor to justify more connections: less is noise."""

RISING: Final = 1.25
"""Goodput that grows by this factor between two samples has not reached its level yet."""

NEAR_S: Final = 0.01
"""Round trip below which slow start is over before the next sample."""

FAST_LINK_RATE: Final = 32 * 1024**2
"""Bytes per second and connection above which the first steps are four-fold."""

SLOW_LINK_RATE: Final = 64 * 1024
"""Bytes per second and connection below which fewer connections share the link: with less, a
part of 8 MiB takes more than two minutes, and all of that is lost when it fails."""

REFUSED_HOLD_S: Final = 5.0
"""How long the limit stays low after the service refused a request for load."""

ACCEPTED_MORE_S: Final = 20.0
"""Seconds until one more connection is tried than the service was thought to accept."""

LASTING_QUEUE_S: Final = 4.0
"""A queue in every sample of this time is not the slow start of a new connection."""

LONGEST_HOLD_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LinkSample:
    """What the kernel reports about one open connection.

    Attributes:
        connection: identifies the connection within the process.
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


_UNSEEN: Final = LinkSample(0, 0, 0.0, 0.0, 0)


class LinkProbe(Protocol):
    """Samples the open connections."""

    def sample(self) -> list[LinkSample]:
        """One sample per open connection; empty where the kernel reports nothing."""


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two samples.

    Attributes:
        seconds: its length.
        acked_bytes: bytes that arrived.
        retransmit_count: segments lost by connections that slow down for it.
        rtt_s, min_rtt_s: medians over the connections that moved, over all if none did;
            0 when unknown.
        is_saturated: whether every slot was held at some moment.
        allowed_rate: bytes per second our own limit allows; None without one.
        is_slowed_by_loss: whether a loss slows any of the connections down.
    """

    seconds: float
    acked_bytes: int
    retransmit_count: int = 0
    rtt_s: float = 0.0
    min_rtt_s: float = 0.0
    is_saturated: bool = True
    allowed_rate: float | None = None
    is_slowed_by_loss: bool = True

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.acked_bytes / self.seconds if self.seconds else 0.0

    @property
    def is_at_our_limit(self) -> bool:
        """Whether our own bandwidth limit is what keeps the rate down."""
        return self.allowed_rate is not None and self.rate >= FULL_SHARE * self.allowed_rate

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
        is_fixed: the caller chose the number; only refusals of the service lower it.
        floor: a queue alone does not lower the limit below this, unless the link is slow.
        trusted_limit, trusted_rate: the best proven limit, and its bytes per second.
        is_trial: `limit` is above `trusted_limit`, and the next intervals judge it.
        trial_s: how long the trial has lasted.
        last_rate: bytes per second of the last saturated interval.
        queued_s: for how long every sample has shown a queue.
        growth: factor of the next trial.
        hold_s: how long until the next trial.
        next_hold_s: length of the hold after that; failed trials double it.
        is_refused: a refusal started the hold: nothing ends it early.
        accepted: how many connections the service is thought to accept; refusals lower it,
            time raises it.
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
        """Starts at `FIRST_LIMIT` and adapts."""
        limit = min(FIRST_LIMIT, ceiling)
        return cls(limit=limit, trusted_limit=limit, ceiling=ceiling)

    @classmethod
    def fixed(cls, limit: int) -> Steering:
        """Stays where it is unless the service refuses."""
        return cls(limit=limit, trusted_limit=limit, ceiling=limit, is_fixed=True, is_trial=False)

    @property
    def is_new(self) -> bool:
        """Whether nothing is known about the link yet."""
        return not self.is_fixed and self.floor == 0


def first_limit(min_rtt_s: float, *, is_slowed_by_loss: bool) -> int:
    """How many connections to start with on a link of that round trip.

    Each connection idles for a round trip after each part and starts slowly; the longer the
    round trip, the more others must fill the gaps. Measured on 200 Mbit/s: at 50 ms four to
    eight suffice, at 200 ms sixty-four carry 1.4 times what sixteen do, or as much; where
    losses slow each of them down (cubic), sixty-four carry two to three times as much, and
    without losses no less. On 2 Gbit/s at 200 ms it takes sixty-four; with bbr forty-eight
    carry nine tenths of that, and a third more on a narrower link with losses.
    """
    if min_rtt_s < NEAR_S:
        return FIRST_LIMIT
    if min_rtt_s >= 0.1:
        return 64 if is_slowed_by_loss else 48
    return 32 if is_slowed_by_loss else 8


def decide(state: Steering, interval: Interval) -> Steering:
    """The next state: grow, hold or shrink.

    A queue means that the link is full. Without one there is room: when segments are lost
    then, loss keeps each connection slow and another one adds its share; when bytes arrive
    more slowly than they did, the hold ends. Otherwise more connections are tried and must
    show more goodput. Goodput alone is not enough, as slow start makes any new connection
    look good.
    """
    if state.is_fixed:
        return _recover(state, interval)
    decided = _steer(with_first_limit(state, interval), interval)
    return replace(decided, last_rate=interval.rate) if interval.is_saturated else decided


def _steer(state: Steering, interval: Interval) -> Steering:
    accepted = state.accepted + interval.seconds / ACCEPTED_MORE_S
    hold_s = max(0.0, state.hold_s - interval.seconds)
    queued_s = state.queued_s + interval.seconds if interval.has_queue else 0.0
    was_held = state.hold_s > 0
    state = replace(state, accepted=accepted, hold_s=hold_s, queued_s=queued_s)
    if not interval.is_saturated or (was_held and state.is_refused):
        return state
    if interval.has_queue:
        return _when_full(state, interval)
    if interval.is_at_our_limit:
        return replace(state, limit=state.trusted_limit, is_trial=False)
    if state.is_trial:
        return _judge_trial(replace(state, trial_s=state.trial_s + interval.seconds), interval)
    if was_held and not _has_spare_room(state, interval):
        return state
    return _begin_trial(state, interval)


def back_off(state: Steering) -> Steering:
    """The next state after a refusal or a timeout: half the limit, and no trial for a while."""
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


def _recover(state: Steering, interval: Interval) -> Steering:
    """A fixed limit doubles back to its number once the hold is over."""
    if state.hold_s > 0:
        return replace(state, hold_s=max(0.0, state.hold_s - interval.seconds))
    return replace(state, limit=min(state.ceiling, state.limit * 2))


def with_first_limit(state: Steering, interval: Interval) -> Steering:
    """The state that starts with as many connections as the round trip suggests.

    Unchanged while the round trip is unknown. Under a bandwidth limit it starts with few:
    connections that share a limit finish their parts all at once and late.
    """
    if not state.is_new or interval.min_rtt_s <= 0:
        return state
    first = first_limit(interval.min_rtt_s, is_slowed_by_loss=interval.is_slowed_by_loss)
    floor = min(first, first if interval.allowed_rate is None else FIRST_LIMIT, state.ceiling)
    limit = state.limit if interval.has_queue else max(state.limit, floor)
    return replace(state, floor=floor, limit=limit, trusted_limit=limit)


def _has_spare_room(state: Steering, interval: Interval) -> bool:
    """Whether to end a hold early: the link carries less than it could."""
    return interval.retransmit_count > 0 or interval.rate < 0.8 * state.trusted_rate


def _when_full(state: Steering, interval: Interval) -> Steering:
    """The link is full: stay, and shrink if the queue lasts.

    A short queue may come from the slow start of new connections, so it changes nothing.
    """
    trusted = max(interval.rate, state.trusted_rate)
    state = replace(
        state, trusted_limit=state.limit, trusted_rate=trusted, is_trial=False, growth=1.5
    )
    if state.queued_s < LASTING_QUEUE_S:
        return replace(state, hold_s=max(state.hold_s, 1.0), is_refused=False)
    is_slow = interval.rate < state.limit * SLOW_LINK_RATE
    fewer = state.limit // 2 if is_slow else max(state.floor, state.limit * 3 // 4)
    limit = max(1, min(state.limit, fewer))
    return replace(
        state,
        limit=limit,
        trusted_limit=limit,
        trusted_rate=interval.rate,
        queued_s=0.0,
        hold_s=2.0,
        is_refused=False,
    )


def _judge_trial(state: Steering, interval: Interval) -> Steering:
    if interval.retransmit_count > 0:
        return _begin_trial(replace(state, next_hold_s=4.0), interval)
    if state.trial_s < 10 * interval.rtt_s or _is_rising(state, interval):
        return state  # new connections are still in slow start
    if interval.rate > 0 and interval.rate >= GAIN * state.trusted_rate:
        return _begin_trial(replace(state, next_hold_s=4.0), interval)
    return _end_trial(state, interval)


def _is_rising(state: Steering, interval: Interval) -> bool:
    """Whether goodput still grows by itself: then it is too early to judge the trial."""
    return interval.rtt_s >= NEAR_S and interval.rate > RISING * state.last_rate


def _end_trial(state: Steering, interval: Interval) -> Steering:
    return replace(
        state,
        limit=state.trusted_limit,
        trusted_rate=interval.rate,
        is_trial=False,
        growth=1.5,
        hold_s=state.next_hold_s,
        next_hold_s=min(LONGEST_HOLD_S, state.next_hold_s * 2),
        is_refused=False,
    )


def _begin_trial(state: Steering, interval: Interval) -> Steering:
    is_fast = state.growth >= 2 and interval.rate / state.limit > FAST_LINK_RATE
    larger = max(state.limit + 1, int(state.limit * (4.0 if is_fast else state.growth)))
    accepted = max(state.limit, math.floor(min(state.accepted, state.ceiling)))
    limit = min(state.ceiling, larger, accepted)
    return replace(
        state,
        limit=limit,
        trusted_limit=state.limit,
        trusted_rate=interval.rate,
        is_trial=limit > state.limit,
        trial_s=0.0,
        hold_s=0.0,
    )


class Meter:
    """Turns counters since a connection was opened into intervals between two samples.

    Mutable: the last sample of each connection.
    """

    def __init__(self) -> None:
        self._before: dict[int, LinkSample] = {}

    def read(
        self, samples: Iterable[LinkSample], *, seconds: float = TICK_S, sent_bytes: int = 0
    ) -> Interval:
        """What happened since the last call; `sent_bytes` stands in for absent samples."""
        now = {sample.connection: sample for sample in samples}
        before, self._before = self._before, now
        if not now:
            return Interval(seconds=seconds, acked_bytes=sent_bytes)
        steps = [(new, before.get(new.connection, _UNSEEN)) for new in now.values()]
        moved = [new for new, old in steps if new.acked_bytes > old.acked_bytes]
        known = [sample for sample in moved or now.values() if sample.min_rtt_s > 0]
        slowed = [(new, old) for new, old in steps if new.is_slowed_by_loss]
        return Interval(
            seconds=seconds,
            acked_bytes=sum(new.acked_bytes - old.acked_bytes for new, old in steps),
            retransmit_count=sum(n.retransmit_count - o.retransmit_count for n, o in slowed),
            rtt_s=_median([sample.rtt_s for sample in known]),
            min_rtt_s=_median([sample.min_rtt_s for sample in known]),
            is_slowed_by_loss=any(sample.is_slowed_by_loss for sample in now.values()),
        )


def _median(values: list[float]) -> float:
    """0 for no values. `statistics` would load `decimal` and `fractions` at import."""
    if not values:
        return 0.0
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
