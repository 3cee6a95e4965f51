"""Chooses the sizes of parts: for files, for streams and for packages.

Only the sizes are stored (`Plan`), so everything here may change without harm to uploads
that have begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from uploader.errors import ConfigurationError
from uploader.protocol.plan import (
    MAX_OBJECT_SIZE,
    MAX_PART_COUNT,
    MAX_PART_SIZE,
    MIN_PART_SIZE,
    Plan,
    Run,
    check_object_size,
)

KIB = 1024
MIB = 1024 * KIB

# --- cutting a file ---------------------------------------------------------------------

# Smaller: every part costs a round trip. Larger: more is sent again when a part fails.
DEFAULT_PART_SIZE = 8 * MIB
# Between these the part size follows the link.
LEAST_PART_SIZE = 1 * MIB
MOST_PART_SIZE = 64 * MIB
# A file that has hardly more than one part is not cut smaller than this for more connections.
SPREAD_PART_SIZE = 2 * MIB
# Bytes a second of one connection while nothing is known: 1 Mbit/s for four of them.
SLOWEST_CONNECTION_RATE = 32 * KIB
# Sending a part should take at most this share of a credential's life: credentials are renewed
# when half of it is left at the latest, and a part may take twice as long as expected.
CREDENTIAL_SHARE = 1 / 4
# Between two parts a connection waits for a round trip; this many are to be filled with bytes.
ROUND_TRIPS_A_PART = 10
TAIL_MIN_SIZE = 1 * MIB
# From this round trip on connections differ in speed by a factor of four and more where losses
# slow them down: the next part is 1/(4 × concurrency) of what remains, elsewhere twice that.
FAR_RTT_S = 0.01
UNEVEN_SHARES = 4
EVEN_SHARES = 2
# Far away the smallest parts are a quarter of the first, between these. Smaller: the round trip
# of each part shows. Larger: a slow connection needs seconds for its last one.
FAR_TAIL_SHARE = 1 / 4
FAR_TAIL_MIN_SIZE = 256 * KIB
MAX_TAIL_CONCURRENCY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of the path to OSS before the first part is sent.

    Attributes:
        connection_rate: bytes a second of one connection; None while nothing is known.
        rtt_s: the round trip; 0 while unknown.
        is_slowed_by_loss: whether losses slow connections down (cubic, and not bbr).
        credential_life_s: how long one credential lives.
    """

    connection_rate: float | None = None
    rtt_s: float = 0.0
    is_slowed_by_loss: bool = True
    credential_life_s: float = 3000.0  # VOD doc "Upload URLs and credentials"

    @property
    def is_far(self) -> bool:
        """Whether slow connections hold up the end of an upload."""
        return self.rtt_s >= FAR_RTT_S


_UNKNOWN = Outlook()


def plan_file(
    size: int,
    *,
    part_size: int | None = None,
    concurrency: int = 8,
    outlook: Outlook = _UNKNOWN,
) -> Plan:
    """Cut `size` bytes into equal parts, with smaller and smaller ones at the end.

    Args:
        size: of the source; at least 1 (callers refuse empty sources earlier).
        part_size: None chooses 8 MiB; more for sources above some 78 GiB and for links
            that are far and fast; less where a part would take much of a credential's life,
            or where 8 MiB would leave connections without a part. Too small: the round
            trip of each part shows, and 10,000 parts may not suffice. Too large: an
            interruption costs up to concurrency × part size sent again.
        concurrency: how many parts are in flight; the tail is shaped for it.
        outlook: the path to OSS and the credentials. On a far path no file has so few parts
            that all start at once: the slowest connection would send the last one alone.

    Raises:
        ConfigurationError: size, part size or concurrency are out of range, or the part
            size would need more than 10,000 parts.
    """
    check_object_size(size)
    if concurrency < 1:
        raise ConfigurationError("The concurrency must be at least 1.")
    connections = min(concurrency, MAX_TAIL_CONCURRENCY)
    is_far = outlook.is_far and part_size is None
    divisor = (UNEVEN_SHARES if is_far and outlook.is_slowed_by_loss else EVEN_SHARES) * connections
    tail_min_size = TAIL_MIN_SIZE
    if is_far:
        smallest = _four_binary_digits(int(size / divisor * FAR_TAIL_SHARE))
        tail_min_size = max(FAR_TAIL_MIN_SIZE, min(smallest, TAIL_MIN_SIZE))
    if part_size is not None:
        _check_part_size(part_size, size)
    else:
        wanted = _wanted_part_size(size, connections, outlook)
        part_size = _automatic_part_size(size, divisor, wanted)
    # A tail cannot help a single connection, parts that all start at once, or parts that are
    # hardly larger than the smallest of the tail.
    all_start_at_once = not is_far and _ceil_div(size, part_size) <= connections
    if connections == 1 or all_start_at_once or part_size < 2 * tail_min_size or size <= part_size:
        return Plan(_equal(size, part_size))
    tapered = _tapered(size, part_size, divisor, tail_min_size)
    has_numbers = sum(run.count for run in tapered) <= MAX_PART_COUNT
    return Plan(tapered if has_numbers else _equal(size, part_size))


def _equal(size: int, part_size: int) -> tuple[Run, ...]:
    runs = Run(part_size, size // part_size), Run(size % part_size, 1)
    return tuple(run for run in runs if run.size and run.count)


def _tapered(size: int, part_size: int, divisor: int, tail_min_size: int) -> tuple[Run, ...]:
    """Cut parts of full size, and the last ones as 1/`divisor` of what remains.

    Equal parts end badly: while the last one crawls, the other connections idle. With parts
    of 1/(2 × concurrency) of what remains all connections end nearly together (measured on a
    lossy link with 16 connections: 65 instead of 40 Mbit/s).

    How many parts the tail has. Let d be the divisor, m the smallest and P the full size,
    R what remains, R < d·P at the start. While R ≥ d·m, the next part has at least 7/8 of
    R/d, because rounding to four binary digits takes away less than 1/8. So R shrinks by
    the factor 1 - 7/(8d) or better, and falls below d·m after at most 8d/7 × ln(P/m) + 1
    parts. From there parts have m bytes: at most d + 1 more. Equal parts would have taken d
    numbers for the same bytes, so the tail costs no more than 8d/7 × ln(P/m) + 2 extra: 39
    for 8 connections (d = 16), 8 MiB and 1 MiB; at most 9.8 × d + 2 for any P up to 5 GiB
    (11.4 × d + 2 where m is 256 KiB).
    """
    full_count = max(0, size // part_size - divisor + 1)
    runs = [Run(part_size, full_count)] if full_count else []
    remaining = size - full_count * part_size
    while remaining:
        share = max(_four_binary_digits(remaining // divisor), tail_min_size)
        runs.append(Run(min(remaining, part_size, share), 1))
        remaining -= runs[-1].size
    return tuple(runs)


def _four_binary_digits(size: int) -> int:
    """Round down to four significant binary digits.

    That keeps offsets aligned to 128 KiB, and the sizes few: joining CRCs costs by the
    distinct size.
    """
    low = max(size.bit_length() - 4, 0)
    return size >> low << low


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


def _automatic_part_size(size: int, divisor: int, wanted: int) -> int:
    """Return a part size, at least `wanted`, that leaves numbers for the tail.

    The largest objects need every number: there is no room for a tail then.
    """
    if size <= wanted:
        return wanted
    # 12 > ln(5 GiB / 256 KiB) × 8/7: see the bound in `_tapered`.
    room = min(12 * divisor + 4, MAX_PART_COUNT // 2)
    with_room = max(wanted, _least_part_size(size, MAX_PART_COUNT - room))
    return with_room if with_room <= MAX_PART_SIZE else _least_part_size(size, MAX_PART_COUNT)


def _least_part_size(size: int, count: int) -> int:
    """Return the smallest multiple of 1 MiB of which `count` suffice."""
    return _ceil_div(_ceil_div(size, count), MIB) * MIB


def _check_part_size(part_size: int, size: int) -> None:
    if not MIN_PART_SIZE <= part_size <= MAX_PART_SIZE:
        raise ConfigurationError(
            f"A part size of {part_size} bytes is not possible: OSS accepts "
            f"{MIN_PART_SIZE} (100 KiB) to {MAX_PART_SIZE} (5 GiB)."
        )
    least = _ceil_div(size, MAX_PART_COUNT)
    if part_size < least:
        raise ConfigurationError(
            f"With parts of {part_size} bytes this source needs more than "
            f"{MAX_PART_COUNT} of them.",
            next_step=f"Choose a part size of at least {least} bytes, or leave it out.",
        )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# --- cutting a stream -------------------------------------------------------------------

FIRST_PART_SIZE = 5 * MIB
"""Doubled ten times it is OSS's largest. Sixteen of them and one being filled fit into
the usual memory of a stream."""

FIRST_COUNT = 1024
"""Parts before the first doubling: 5 GiB at the usual size."""

STEP_COUNT = 128
"""Parts of each further size. More: sizes grow more gently, and the 10,000 parts hold less;
128 leaves 80 % of what 10,000 of the largest would hold."""


def plan_stream(
    *, part_size: int | None = None, expected_size: int | None = None, largest_size: int
) -> Plan:
    """Return the open plan of a source whose end is not known: larger and larger parts.

    Parts are small at first, because the stream may end soon and every part is buffered until
    OSS has it; and large in the end, because OSS accepts 10,000.

    Args:
        part_size: of the first parts; None chooses 5 MiB, or by the expected size.
        expected_size: a guess of the whole. Parts then stay as small as those of a file
            of that size, and grow after it. Too small: parts grow early. Too large: parts
            are larger than they need be.
        largest_size: bytes of one part that can be buffered until OSS has it.

    Raises:
        ConfigurationError: the expected size does not fit, or a number is out of range.
    """
    largest_size = min(largest_size, MAX_PART_SIZE)
    first_count, step_count = FIRST_COUNT, STEP_COUNT
    if expected_size is not None:
        if not 1 <= expected_size <= MAX_OBJECT_SIZE:
            raise ConfigurationError(
                f"{expected_size} bytes cannot be expected: OSS accepts 1 to {MAX_OBJECT_SIZE}."
            )
        # A tenth of the numbers is left for what was not expected.
        roomy = _least_part_size(expected_size, MAX_PART_COUNT * 9 // 10)
        part_size = part_size or min(max(FIRST_PART_SIZE, roomy), largest_size)
        first_count = min(_ceil_div(expected_size, part_size), MAX_PART_COUNT)
        step_count = max(1, min(STEP_COUNT, (MAX_PART_COUNT - first_count) // 16))
    size = part_size or min(FIRST_PART_SIZE, largest_size)
    _check_part_size(size, 1)
    plan = Plan(tuple(_growing(size, largest_size, first_count, step_count)), is_open=True)
    if plan.capacity < (expected_size or 0):
        raise ConfigurationError(
            f"{expected_size} bytes do not fit into {MAX_PART_COUNT} parts of at most "
            f"{max(size, largest_size)} bytes, which is what can be buffered of this stream.",
            next_step="Buffer parts on disk (--spool DIR), or allow larger buffers (--memory, "
            "--spool-size).",
        )
    return plan


def _growing(size: int, largest_size: int, first_count: int, step_count: int) -> Iterator[Run]:
    """Yield 10,000 parts whose size doubles every `step_count`, up to the largest."""
    left, count = MAX_PART_COUNT, first_count
    while left:
        count = left if size >= largest_size else min(count, left)
        yield Run(size, count)
        left -= count
        size, count = min(2 * size, largest_size), step_count


# --- cutting a package ------------------------------------------------------------------


def plan_package(sizes: Iterable[int], *, names_crc64: int) -> Plan:
    """Return the plan of an HLS package: each member is one part, as large as it is.

    Args:
        sizes: bytes of each member in order, at least 1.
        names_crc64: CRC-64 of the members' names.

    Raises:
        ValueError: there is no member, too many, or one is empty.
    """
    return Plan(tuple(Run(size, 1) for size in sizes), names_crc64=names_crc64)
