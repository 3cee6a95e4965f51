"""Modelled links for the steering of connections: fluid, deterministic, seconds in milliseconds.

Each connection has a window that grows and shrinks as CUBIC's or BBR's does, an object to
carry in parts, and a pause of one round trip after each part, when the answer is awaited.
What the controller sees is what TCP_INFO would tell.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from uploader.pace.steering import TICK_S, Interval, Steering, back_off, decide

__all__ = ["Controller", "Link", "Run", "constant", "goodput_only", "steered"]

STEP_S = 0.02
SEGMENT = 1448
FIRST_WINDOW = 10 * SEGMENT
PART = 8 * 2**20


@dataclass(frozen=True)
class Link:
    """A bottleneck.

    Attributes:
        rate: bytes a second.
        rtt_s: without a queue.
        loss: share of segments lost at random.
        queue: bytes that fit in front of the bottleneck, in bandwidth-delay products.
        is_bbr: whether connections ignore losses.
        most_served: connections above this are refused with 503.
        later: what the link is from the moment `later_s`.
    """

    rate: float
    rtt_s: float
    loss: float = 0.0
    queue: float = 1.0
    is_bbr: bool = False
    most_served: int = 1000
    later: Link | None = None
    later_s: float = math.inf

    def at(self, now_s: float) -> Link:
        return self.later if self.later is not None and now_s >= self.later_s else self


@dataclass
class _Connection:
    """The window of one connection, and how far its part is. Mutable."""

    window: float = FIRST_WINDOW
    threshold: float = math.inf
    top: float = 0.0
    since_loss_s: float = 0.0
    quiet_until_s: float = 0.0
    left: float = PART

    def grow(self, rtt_s: float, cap: float) -> None:
        if self.window < self.threshold:
            self.window *= 2 ** (STEP_S / rtt_s)
        else:
            self.since_loss_s += STEP_S
            k = (self.top / SEGMENT * 0.3 / 0.4) ** (1 / 3)
            cubic = (0.4 * (self.since_loss_s - k) ** 3 + self.top / SEGMENT) * SEGMENT
            reno = self.window + 0.5 * SEGMENT * STEP_S / rtt_s
            self.window = max(reno, min(cubic, self.window * 1.5 ** (STEP_S / rtt_s)))
        self.window = min(self.window, cap)

    def lose(self, now_s: float, rtt_s: float) -> None:
        """React once a round trip."""
        if now_s < self.quiet_until_s:
            return
        self.quiet_until_s = now_s + rtt_s
        self.top, self.since_loss_s = self.window, 0.0
        self.window = self.threshold = max(2 * SEGMENT, 0.7 * self.window)


_Offers = list[tuple[_Connection, float]]
"""Connections with the bytes each would send in this step."""


@dataclass
class Controller:
    """What chooses the number of connections. Mutable through its functions."""

    limit: Callable[[], int]
    tick: Callable[[Interval], None]
    refuse: Callable[[], None]


@dataclass
class Run:
    """Time that passes on a link under a controller."""

    link: Link
    controller: Controller
    seed: int = 1
    now_s: float = 0.0
    carried: float = 0.0
    limits: list[int] = field(default_factory=list)
    _queued: float = 0.0
    _open: list[_Connection] = field(default_factory=list)
    _idle: list[_Connection] = field(default_factory=list)
    _waiting: list[tuple[float, _Connection]] = field(default_factory=list)
    _lost: int = 0
    _moved: float = 0.0
    _halved_at_s: float = -1.0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def carry(self, size: float, *, within_s: float = 600.0) -> float:
        """Seconds until so many bytes have arrived."""
        next_tick_s = self.now_s + TICK_S
        end = self.carried + size
        while self.carried < end and self.now_s < within_s:
            self._step()
            if self.now_s >= next_tick_s:
                next_tick_s += TICK_S
                self._tick()
        return self.now_s

    def _step(self) -> None:
        link = self.link.at(self.now_s)
        self.now_s += STEP_S
        self._admit(link)
        rtt_s = link.rtt_s + self._queued / link.rate
        offered: _Offers = [(one, one.window * STEP_S / rtt_s) for one in self._open]
        if link.is_bbr:
            offered = self._paced(link, offered)
        self._transmit(link, rtt_s, offered)

    def _admit(self, link: Link) -> None:
        done = [one for ready_s, one in self._waiting if ready_s <= self.now_s]
        self._waiting = [(s, one) for s, one in self._waiting if s > self.now_s]
        self._idle += done
        while len(self._open) + len(self._waiting) < self.controller.limit():
            if len(self._open) >= link.most_served:
                if self.now_s - self._halved_at_s >= 1.0:
                    self._halved_at_s = self.now_s
                    self.controller.refuse()
                break
            one = self._idle.pop() if self._idle else _Connection()
            self._open.append(replace(one, left=PART))

    @staticmethod
    def _paced(link: Link, offered: _Offers) -> _Offers:
        """BBR paces at what it has measured, which adds up to what the link has."""
        total = sum(size for _, size in offered)
        room = 1.1 * link.rate * STEP_S
        scale = min(1.0, room / total) if total else 1.0
        return [(one, size * scale) for one, size in offered]

    def _transmit(self, link: Link, rtt_s: float, offered: _Offers) -> None:
        total = sum(size for _, size in offered)
        room = link.rate * STEP_S
        self._queued = max(0.0, self._queued + total - room)
        most = link.queue * link.rate * link.rtt_s
        overflow, self._queued = max(0.0, self._queued - most), min(self._queued, most)
        if link.is_bbr:
            overflow, self._queued = 0.0, min(self._queued, 0.4 * link.rate * link.rtt_s)
        share = (total - overflow) / total if total else 0.0
        arriving = min(1.0, (room + self._queued) / total) if total > room else 1.0
        for one, size in offered:
            self._move(link, rtt_s, one, size, size * min(share, arriving), overflow > 0)

    def _move(
        self, link: Link, rtt_s: float, one: _Connection, size: float, moved: float, is_full: bool
    ) -> None:
        is_hit = self._draw.random() < 1 - (1 - link.loss) ** (size / SEGMENT)
        is_hit = is_hit or (is_full and self._draw.random() < min(1.0, 2 * STEP_S / rtt_s))
        if is_hit:
            self._lost += 1
            if not link.is_bbr:
                one.lose(self.now_s, rtt_s)
        one.grow(rtt_s, cap=2.0 * link.rate * link.rtt_s if link.is_bbr else 2 * 2**20)
        one.left -= moved
        self.carried += moved
        self._moved += moved
        if one.left <= 0:
            self._open.remove(one)
            self._waiting.append((self.now_s + rtt_s, one))

    def _tick(self) -> None:
        link = self.link.at(self.now_s)
        rtt_s = link.rtt_s + self._queued / link.rate
        self.limits.append(self.controller.limit())
        self.controller.tick(
            Interval(
                seconds=TICK_S,
                acked_bytes=int(self._moved),
                retransmit_count=0 if link.is_bbr else self._lost,
                rtt_s=rtt_s,
                min_rtt_s=link.rtt_s,
                is_slowed_by_loss=not link.is_bbr,
            )
        )
        self._moved, self._lost = 0.0, 0


# --- controllers ----------------------------------------------------------------------


def steered(
    ceiling: int = 64, *, judge: Callable[[Steering, Interval], Steering] = decide
) -> Controller:
    """Ours, or ours with another judgement."""
    state = Steering.automatic(ceiling)

    def tick(interval: Interval) -> None:
        nonlocal state
        state = judge(state, interval)

    def refuse() -> None:
        nonlocal state
        state = back_off(state)

    return Controller(lambda: state.limit, tick, refuse)


def constant(limit: int) -> Controller:
    """Always so many."""
    return Controller(lambda: limit, lambda _: None, lambda: None)


def goodput_only() -> Controller:
    """Ours, blind to queues and losses."""

    def judge(state: Steering, interval: Interval) -> Steering:
        return decide(state, replace(interval, retransmit_count=0, rtt_s=0.0, min_rtt_s=0.0))

    return steered(judge=judge)
