"""The plan of an upload: which parts it has.

A plan stores the sizes of the parts, not how they were chosen: parts must stay the same for
one UploadId, whatever the options or the network of a later run, while the way of choosing
them (`part_sizes`) may change. Sizes repeat, so they are kept as runs.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from operator import attrgetter

from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.documents import MalformedDocument

KIB = 1024
MIB = 1024 * KIB

# OSS doc "UploadPart": every part but the last has 100 KB to 5 GB, numbers are 1 to 10,000.
MIN_PART_SIZE = 100 * KIB
MAX_PART_SIZE = 5 * 2**30
MAX_PART_COUNT = 10_000
# 53,687,091,200,000 bytes. OSS doc "Multipart upload" writes it as 48.8 TB; it follows
# from the two limits above.
MAX_OBJECT_SIZE = MAX_PART_SIZE * MAX_PART_COUNT
MAX_PUT_SIZE = 5 * 2**30
"""Bytes of the largest object that one request stores. OSS doc "PutObject"."""

MAX_MEMBER_COUNT = 100_000
"""Objects of one package."""

MAX_PLAN_SIZE = 2 * MIB
"""Bytes of a plan as text. That of a package may hold the size of every member."""

# --- the plan ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One planned piece of the source: numbered from 1, `size` bytes from `offset`."""

    number: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Run:
    """`count` consecutive parts of `size` bytes each."""

    size: int
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of one upload, in order.

    Attributes:
        runs: the sizes of the parts. Neighbours of equal size are joined, so that equal
            parts mean equal plans.
        is_open: whether the end of the source is not known yet. The runs are then the
            parts there may be; `closed` cuts them once the end is known.
        names_crc64: of an HLS package, in which every part is an object of its own: CRC-64
            of the members' names, so that a package with other members of the same sizes
            is recognised. None for everything else.

    Raises:
        ValueError: the parts would break OSS's limits.
    """

    runs: tuple[Run, ...]
    is_open: bool = False
    names_crc64: int | None = None
    # Where each run begins, and one entry for the end: part numbers from 1, and bytes.
    _numbers: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        runs = tuple(_joined(self.runs))
        # Through object: that is how a frozen dataclass sets its own fields.
        object.__setattr__(self, "runs", runs)
        counts, sizes = (run.count for run in runs), (run.size * run.count for run in runs)
        object.__setattr__(self, "_numbers", tuple(accumulate(counts, initial=1)))
        object.__setattr__(self, "_offsets", tuple(accumulate(sizes, initial=0)))
        _check_limits(self)

    @property
    def part_count(self) -> int:
        """The number of parts; while the plan is open, as many as there may be."""
        return self._numbers[-1] - 1

    @property
    def capacity(self) -> int:
        """Bytes that all parts hold."""
        return self._offsets[-1]

    @property
    def size(self) -> int:
        """Bytes of the source; 0 while the end is not known."""
        return 0 if self.is_open else self.capacity

    @property
    def is_single(self) -> bool:
        """Whether everything fits into one part, and so into one PutObject: 5 GiB at most."""
        return self.part_count == 1 and not self.is_open and self.names_crc64 is None

    @property
    def parts(self) -> Iterator[Part]:
        """All parts in order, made on demand."""
        number, offset = 1, 0
        for run in self.runs:
            for _ in range(run.count):
                yield Part(number, offset, run.size)
                number, offset = number + 1, offset + run.size

    @property
    def last_part(self) -> Part:
        """The last part; of an open plan, the last there may be."""
        return self.part(self.part_count)

    def part(self, number: int) -> Part:
        """Return the part with this number, from 1.

        Raises:
            IndexError: the plan has no such part.
        """
        if not 1 <= number <= self.part_count:
            raise IndexError(f"part {number} is not one of {self.part_count}")
        index = bisect_right(self._numbers, number) - 1
        size = self.runs[index].size
        return Part(number, self._offsets[index] + (number - self._numbers[index]) * size, size)

    def closed(self, size: int) -> Plan:
        """Return the same parts up to `size` bytes, where the source turned out to end.

        Raises:
            ConfigurationError: the source is empty, or longer than the parts hold.
        """
        check_object_size(size)
        if size > self.capacity:
            raise ConfigurationError(f"{size} bytes do not fit into {self.part_count} parts.")
        index = bisect_right(self._offsets, size - 1) - 1
        last = self._numbers[index] + (size - 1 - self._offsets[index]) // self.runs[index].size
        rest = Run(size - self.part(last).offset, 1)
        return replace(self, runs=(*self._runs_before(last), rest), is_open=False)

    def to_text(self) -> str:
        """Return the plan as one short line: `v1 8M*12 7M*2 6656K 1234`.

        Sizes are in bytes, or in KiB or MiB where they are whole. `open` or `names=CRC`
        follows.
        """
        words = ["v1", *map(_text_of, self.runs)]
        if self.is_open:
            words.append("open")
        if self.names_crc64 is not None:
            words.append(f"names={self.names_crc64}")
        return " ".join(words)

    def _runs_before(self, number: int) -> Iterator[Run]:
        for run, first in zip(self.runs, self._numbers, strict=False):
            if first < number:
                yield Run(run.size, min(run.count, number - first))


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Join neighbours of the same size."""
    for size, same in groupby(runs, key=attrgetter("size")):
        yield Run(size, sum(run.count for run in same))


def _check_limits(plan: Plan) -> None:
    least, most, most_parts = MIN_PART_SIZE, MAX_PART_SIZE, MAX_PART_COUNT
    if plan.names_crc64 is not None:
        least, most, most_parts = 1, MAX_OBJECT_SIZE, MAX_MEMBER_COUNT
        if plan.is_open or not 0 <= plan.names_crc64 < 2**64:
            raise ValueError("a package is complete, and the CRC-64 of its names has 64 bits")
    if not plan.runs or min(run.count for run in plan.runs) < 1:
        raise ValueError("a plan has parts, and no run of it is empty")
    if plan.part_count > most_parts:
        raise ValueError(f"the plan has {plan.part_count} parts, more than {most_parts}")
    *others, last = plan.runs
    least_last = 1 if last.count == 1 and not plan.is_open else least
    sizes = [run.size for run in others]
    if not least_last <= last.size <= most or not all(least <= size <= most for size in sizes):
        raise ValueError(f"a part has fewer than {least} or more than {most} bytes")


def check_object_size(size: int) -> None:
    """Raise a `ConfigurationError` unless an object can have this size."""
    if size < 1:
        raise ConfigurationError("The source is empty: there is nothing to upload.")
    if size > MAX_OBJECT_SIZE:
        raise ConfigurationError(
            f"{size} bytes are more than an OSS object can have ({MAX_OBJECT_SIZE}, 48.8 TiB)."
        )


# --- as text ----------------------------------------------------------------------------

_UNITS = {"K": KIB, "M": MIB}
_TEXT = re.compile(
    r"v1((?: [1-9][0-9]{0,13}[KM]?(?:\*[1-9][0-9]{0,5})?)+)( open)?(?: names=([0-9]{1,20}))?"
)
_NEWER = re.compile(r"v([1-9][0-9]{0,8})(?: .*)?", re.DOTALL)


def read_plan(text: str) -> Plan:
    """Read what `Plan.to_text` wrote; only exactly that.

    Raises:
        UnsupportedState: a newer version wrote it.
        MalformedDocument: it is something else.
    """
    found = _TEXT.fullmatch(text) if len(text) <= MAX_PLAN_SIZE else None
    if found is None:
        newer = _NEWER.fullmatch(text)
        if newer is not None and newer[1] != "1":
            raise UnsupportedState(f"The plan of parts has version {newer[1]}; this is 1.")
        raise MalformedDocument("it is not a plan of parts")
    try:
        names_crc64 = int(found[3]) if found[3] else None
        plan = Plan(_runs_of(found[1]), is_open=bool(found[2]), names_crc64=names_crc64)
    except ValueError:
        raise MalformedDocument("it is not a plan of parts") from None
    # A plan has one text; a second spelling of it is refused.
    if plan.to_text() != text:
        raise MalformedDocument("it is not a plan of parts")
    return plan


def _runs_of(text: str) -> tuple[Run, ...]:
    words = text.split()
    if len(words) > MAX_MEMBER_COUNT:
        raise ValueError("it has more sizes than any plan")
    pairs = (word.partition("*") for word in words)
    return tuple(Run(_size_of(size), int(count or 1)) for size, _, count in pairs)


def _size_of(text: str) -> int:
    return int(text.rstrip("KM")) * _UNITS.get(text[-1], 1)


def _text_of(run: Run) -> str:
    unit = "M" if run.size % MIB == 0 else "K" if run.size % KIB == 0 else ""
    size = f"{run.size // _UNITS.get(unit, 1)}{unit}"
    return size if run.count == 1 else f"{size}*{run.count}"
