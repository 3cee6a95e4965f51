"""Cuts a size into parts within OSS's limits, with smaller and smaller ones at the end.

Equal parts end badly: while the last one crawls, the other connections idle. So once less
than 2 × concurrency parts' worth remains, each next part is 1/(2 × concurrency) of what
remains, and all connections end nearly together (measured on a lossy link with 16
connections: 40 instead of 65 Mbit/s without it).

A plan is a pure function of four numbers, which are stored with the upload: parts must
stay the same for one UploadId whatever the options of a later run or its link say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.documents import MalformedDocument, parse_json

__all__ = [
    "MAX_OBJECT_SIZE",
    "MAX_PART_COUNT",
    "MAX_PART_SIZE",
    "MAX_PUT_SIZE",
    "MIN_PART_SIZE",
    "Outlook",
    "Part",
    "PartPlan",
    "plan_parts",
]

KIB = 1024
MIB = 1024 * KIB

# OSS doc "UploadPart": every part but the last has 100 KB to 5 GB, numbers are 1 to 10,000.
MIN_PART_SIZE = 100 * KIB
MAX_PART_SIZE = 5 * 2**30
MAX_PART_COUNT = 10_000
# 53,687,091,200,000 bytes. OSS doc "Multipart upload" writes it as 48.8 TB; it follows
# from the two limits above.
MAX_OBJECT_SIZE = MAX_PART_SIZE * MAX_PART_COUNT
# OSS doc "PutObject".
MAX_PUT_SIZE = 5 * 2**30

# Too small costs a round trip a part; too large costs more when a part has to be repeated.
DEFAULT_PART_SIZE = 8 * MIB
# Between these the part size follows the link.
LEAST_PART_SIZE = 1 * MIB
MOST_PART_SIZE = 64 * MIB
# A file that has hardly more than one part is not cut smaller than this for more connections.
SPREAD_PART_SIZE = 2 * MIB
# Bytes a second of one connection while nothing is known: 1 Mbit/s for four of them.
SLOWEST_CONNECTION_RATE = 32 * KIB
# A part shall take at most this share of a credential's life: they are renewed when half of it
# is left at the latest, and a part may take twice as long as expected.
CREDENTIAL_SHARE = 1 / 4
# Between two parts a connection waits for a round trip; this many are to be filled with bytes.
ROUND_TRIPS_A_PART = 10
TAIL_MIN_SIZE = 1 * MIB
# On links that are not near. There a connection may be so slow, and take so long to become
# faster when the others have ended, that its last MiB takes a second or more.
FAR_TAIL_MIN_SIZE = 512 * KIB
FAR_RTT_S = 0.01
MAX_TAIL_CONCURRENCY = 256

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of the way to OSS before the first part is sent.

    Attributes:
        connection_rate: bytes a second of one connection; None while nothing is known.
        rtt_s: the round trip; 0 while unknown.
        credential_life_s: how long one credential lives.
    """

    connection_rate: float | None = None
    rtt_s: float = 0.0
    credential_life_s: float = 3000.0  # VOD doc "Upload URLs and credentials"


_UNKNOWN = Outlook()


@dataclass(frozen=True, slots=True)
class Part:
    """One planned piece of the source: numbered from 1, `size` bytes from `offset`."""

    number: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PartPlan:
    """How a source of `size` bytes is cut. Equal numbers mean equal parts, always.

    Attributes:
        part_size: of every part before the tail.
        tail_concurrency: how many connections shall end together; 0: no tapered tail.
        tail_min_size: the tail's parts do not get smaller than this, except the last.

    Raises:
        ConfigurationError: the parts would break OSS's limits.
    """

    size: int
    part_size: int
    tail_concurrency: int
    tail_min_size: int
    # Follows from the four numbers; kept because looking parts up is frequent.
    _full_count: int = field(init=False, repr=False, compare=False)
    _tail: tuple[Part, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_numbers(self)
        full_count = _full_part_count(self)
        # Through object: that is how a frozen dataclass sets its own fields.
        object.__setattr__(self, "_full_count", full_count)
        object.__setattr__(self, "_tail", _cut_tail(self, full_count))
        _check_count(self.part_count)

    @property
    def part_count(self) -> int:
        """The number of parts."""
        return self._full_count + len(self._tail)

    @property
    def parts(self) -> Sequence[Part]:
        """All parts in order, made on demand."""
        return _Parts(self)

    @property
    def is_open(self) -> bool:
        """Never: the size is known."""
        return False

    @property
    def is_single(self) -> bool:
        """Whether everything fits into one part, and so into one PutObject."""
        return self.part_count == 1

    def __len__(self) -> int:
        return self.part_count

    def part(self, number: int) -> Part:
        """Return the part with this number, from 1.

        Raises:
            IndexError: the plan has no such part.
        """
        if not 1 <= number <= self.part_count:
            raise IndexError(f"part {number} is not one of {self.part_count}")
        if number > self._full_count:
            return self._tail[number - self._full_count - 1]
        return Part(number, (number - 1) * self.part_size, self.part_size)

    def to_text(self) -> str:
        """Return the four numbers as compact JSON with the version of the cutting rule."""
        numbers = {
            "v": _VERSION,
            "size": self.size,
            "part_size": self.part_size,
            "tail_concurrency": self.tail_concurrency,
            "tail_min_size": self.tail_min_size,
        }
        return json.dumps(numbers, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> PartPlan:
        """Read what `to_text` wrote.

        Raises:
            UnsupportedState: a newer version wrote it.
            MalformedDocument: it is something else.
        """
        numbers = parse_json(text)
        _check_version(numbers.pop("v", None))
        try:
            return cls(**numbers)
        except (TypeError, ConfigurationError):
            raise MalformedDocument("it is not a plan of parts") from None


class _Parts(Sequence[Part]):
    """The parts of a plan as a read-only sequence that holds none of them."""

    __slots__ = ("_plan",)

    def __init__(self, plan: PartPlan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return self._plan.part_count

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | Sequence[Part]:
        if isinstance(index, slice):
            return tuple(self._plan.part(i + 1) for i in range(len(self))[index])
        return self._plan.part(range(len(self))[index] + 1)

    def __iter__(self) -> Iterator[Part]:
        return (self._plan.part(number) for number in range(1, len(self) + 1))


def plan_parts(
    size: int,
    *,
    part_size: int | None = None,
    concurrency: int = 8,
    first_concurrency: int | None = None,
    outlook: Outlook = _UNKNOWN,
) -> PartPlan:
    """Choose the parts for `size` bytes.

    Args:
        size: of the source; at least 1 (callers refuse empty sources earlier).
        part_size: None chooses 8 MiB; more for sources above some 78 GiB and for links
            that are far and fast; less where a part would take much of a credential's life,
            or where 8 MiB would leave connections without a part. Too small: the round
            trip of each part shows, and 10,000 parts may not suffice. Too large: an
            interruption costs up to concurrency × part size sent again.
        concurrency: how many parts are in flight; the tail is shaped for it.
        first_concurrency: how many are at first, where more are hoped for. On links that
            are not near, so few parts that they would all start at once are then cut like
            others: otherwise the last of them would start when the first have ended.
        outlook: the link and the credentials.

    Raises:
        ConfigurationError: size, part size or concurrency are out of range, or the part
            size would need more than 10,000 parts.
    """
    _check_object_size(size)
    if concurrency < 1:
        raise ConfigurationError("The concurrency must be at least 1.")
    connections = min(concurrency, MAX_TAIL_CONCURRENCY)
    at_once, tail_min_size = connections, TAIL_MIN_SIZE
    if part_size is not None:
        _check_part_size(part_size, size)
    else:
        if outlook.rtt_s >= FAR_RTT_S:
            at_once, tail_min_size = first_concurrency or connections, FAR_TAIL_MIN_SIZE
        wanted = _wanted_part_size(size, connections, outlook)
        part_size = _automatic_part_size(size, connections, wanted)
    even = PartPlan(size, part_size, 0, part_size)
    # A tail cannot help parts that all start at once.
    if even.part_count <= at_once:
        return even
    return _tapered_if_useful(even, connections, tail_min_size)


def _wanted_part_size(size: int, connections: int, outlook: Outlook) -> int:
    """Return the multiple of 1 MiB that suits the link and the credentials best."""
    rate = outlook.connection_rate or SLOWEST_CONNECTION_RATE
    wanted = DEFAULT_PART_SIZE
    if outlook.connection_rate:
        wanted = max(wanted, min(MOST_PART_SIZE, int(rate * ROUND_TRIPS_A_PART * outlook.rtt_s)))
    if size > DEFAULT_PART_SIZE:
        wanted = min(wanted, max(SPREAD_PART_SIZE, _ceil_div(size, connections)))
    wanted = min(_ceil_div(wanted, MIB) * MIB, MOST_PART_SIZE)
    longest = int(rate * outlook.credential_life_s * CREDENTIAL_SHARE)
    return max(LEAST_PART_SIZE, min(wanted, longest // MIB * MIB))


def _automatic_part_size(size: int, connections: int, wanted: int) -> int:
    """Return a part size, at least `wanted`, that leaves numbers for the tail.

    The largest objects need every number: there is no room for a tail then.
    """
    if size <= wanted:
        return wanted
    # 11 > ln(5 GiB / 512 KiB) × 8/7: see the bound in `_cut_tail`.
    room = 2 * connections * 11 + 4
    with_room = max(wanted, _least_part_size(size, MAX_PART_COUNT - room))
    return with_room if with_room <= MAX_PART_SIZE else _least_part_size(size, MAX_PART_COUNT)


def _least_part_size(size: int, count: int) -> int:
    """Return the smallest multiple of 1 MiB of which `count` suffice."""
    return _ceil_div(_ceil_div(size, count), MIB) * MIB


def _tapered_if_useful(even: PartPlan, connections: int, tail_min_size: int) -> PartPlan:
    """Return the plan with a tail, or without where it cannot help.

    It cannot help a single connection, or parts that are hardly larger than the tail's
    smallest.
    """
    if connections == 1 or even.part_size < 2 * tail_min_size:
        return even
    try:
        return PartPlan(even.size, even.part_size, connections, tail_min_size)
    except ConfigurationError:
        return even  # the tail would take more numbers than there are


# --- cutting --------------------------------------------------------------------------


def _full_part_count(plan: PartPlan) -> int:
    """Return how many parts of full size come before the tail."""
    if not plan.tail_concurrency:
        return plan.size // plan.part_size
    tail_limit = 2 * plan.tail_concurrency * plan.part_size
    if plan.size < tail_limit:
        return 0
    # Full parts are cut as long as the remainder is not below the limit.
    return (plan.size - tail_limit) // plan.part_size + 1


def _cut_tail(plan: PartPlan, full_count: int) -> tuple[Part, ...]:
    """Cut what the full parts leave.

    How many parts that makes. Let d = 2 × concurrency, m the smallest and P the full
    size, R what remains, R < d·P at the start. While R ≥ d·m, the next part has at least
    7/8 of R/d, because rounding to four binary digits takes away less than 1/8. So R
    shrinks by the factor 1 - 7/(8d) or better, and falls below d·m after at most
    8d/7 × ln(P/m) + 1 parts. From there parts have m bytes: at most d + 1 more. Equal
    parts would have taken d numbers for the same bytes, so the tail costs no more than
    8d/7 × ln(P/m) + 2 extra: 39 for 8 connections, 8 MiB and 1 MiB; at most 9.8 × d + 2
    for any P up to 5 GiB (10.6 × d + 2 where m is 512 KiB).
    """
    parts: list[Part] = []
    offset = full_count * plan.part_size
    while offset < plan.size:
        size = _next_size(plan, plan.size - offset)
        parts.append(Part(full_count + len(parts) + 1, offset, size))
        _check_count(parts[-1].number)
        offset += size
    return tuple(parts)


def _next_size(plan: PartPlan, remaining: int) -> int:
    if not plan.tail_concurrency:
        return min(remaining, plan.part_size)
    share = _four_binary_digits(remaining // (2 * plan.tail_concurrency))
    return min(remaining, plan.part_size, max(share, plan.tail_min_size))


def _four_binary_digits(size: int) -> int:
    """Round down to four significant binary digits.

    That keeps offsets aligned to 128 KiB, and the sizes few: joining CRCs costs by the
    distinct size.
    """
    low = max(size.bit_length() - 4, 0)
    return size >> low << low


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# --- limits ---------------------------------------------------------------------------


def _check_numbers(plan: PartPlan) -> None:
    numbers = (plan.size, plan.part_size, plan.tail_concurrency, plan.tail_min_size)
    if not all(type(number) is int for number in numbers):
        raise ConfigurationError("A plan of parts is made of four whole numbers.")
    _check_object_size(plan.size)
    if not MIN_PART_SIZE <= plan.part_size <= MAX_PART_SIZE:
        raise ConfigurationError("The part size must be between 100 KiB and 5 GiB.")
    if not 0 <= plan.tail_concurrency <= MAX_TAIL_CONCURRENCY:
        raise ConfigurationError("The tail's concurrency is out of range.")
    if not MIN_PART_SIZE <= plan.tail_min_size <= plan.part_size:
        raise ConfigurationError("The tail's smallest part is out of range.")


def _check_object_size(size: int) -> None:
    if size < 1:
        raise ConfigurationError("There are no bytes to plan for: an empty file is no video.")
    if size > MAX_OBJECT_SIZE:
        raise ConfigurationError(
            f"{size} bytes are more than an OSS object can have ({MAX_OBJECT_SIZE}, 48.8 TB)."
        )


def _check_part_size(part_size: int, size: int) -> None:
    if not MIN_PART_SIZE <= part_size <= MAX_PART_SIZE:
        raise ConfigurationError(
            f"A part size of {part_size} bytes is not possible: OSS takes "
            f"{MIN_PART_SIZE} (100 KiB) to {MAX_PART_SIZE} (5 GiB)."
        )
    least = _ceil_div(size, MAX_PART_COUNT)
    if part_size < least:
        raise ConfigurationError(
            f"With parts of {part_size} bytes this source needs more than "
            f"{MAX_PART_COUNT} of them.",
            next_step=f"Choose a part size of at least {least} bytes, or leave it out.",
        )


def _check_count(count: int) -> None:
    if count > MAX_PART_COUNT:
        raise ConfigurationError(f"The plan has more than {MAX_PART_COUNT} parts.")


def _check_version(version: object) -> None:
    if type(version) is not int or version < 1:
        raise MalformedDocument("it is not a plan of parts")
    if version > _VERSION:
        raise UnsupportedState(f"The plan of parts has version {version}; this is {_VERSION}.")
