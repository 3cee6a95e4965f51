"""Cuts what has no known end into parts within OSS's limits: larger and larger ones.

Parts must be small at first, because whoever produces a stream may stop soon and every
part under way is kept until OSS has it; and large in the end, because OSS takes 10,000.
So the first parts have one size, and from then on the size doubles every so many parts,
up to the largest that can be kept.

A plan is a pure function of its numbers, which are stored with the upload. It is open,
with size 0, until the end is known; the closed plan has the same parts, the last one cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.documents import MalformedDocument, parse_json
from uploader.protocol.members import MemberPlan
from uploader.protocol.plan import (
    MAX_OBJECT_SIZE,
    MAX_PART_COUNT,
    MAX_PART_SIZE,
    MIN_PART_SIZE,
    Part,
    PartPlan,
)

__all__ = ["FIRST_PART_SIZE", "Plan", "StepPlan", "plan_steps", "read_plan"]

MIB = 1024 * 1024

MAX_PLAN_SIZE = 2 * MIB
"""Bytes of a plan as text; that of a package tells the size of every member."""

FIRST_PART_SIZE = 5 * MIB
"""Doubled ten times it is OSS's largest. Sixteen of them and one being filled fit into
the usual memory of a stream."""

FIRST_COUNT = 1024
"""Parts before the first step: 5 GiB at the usual size."""

STEP_COUNT = 128
"""Parts of each further size. More: the steps are gentler, and the 10,000 parts hold less;
128 leaves 80 % of what 10,000 of the largest would hold."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How a stream is cut. Equal numbers mean equal parts, always.

    Attributes:
        part_size: of the first `first_count` parts.
        largest_size: no part is larger.
        first_count, step_count: parts before the first doubling, and between the others.
        size: bytes; 0 while the end is not known.

    Raises:
        ConfigurationError: the parts would break OSS's limits.
    """

    part_size: int
    largest_size: int
    first_count: int = FIRST_COUNT
    step_count: int = STEP_COUNT
    size: int = 0

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def is_open(self) -> bool:
        """Whether the end is not known yet."""
        return self.size == 0

    @property
    def is_single(self) -> bool:
        """Never: it is begun as a multipart upload before its size is known."""
        return False

    @property
    def capacity(self) -> int:
        """Bytes that 10,000 parts hold."""
        return self._end_of(MAX_PART_COUNT)

    @property
    def part_count(self) -> int:
        """The number of parts; while the plan is open, as many as there may be."""
        if self.is_open:
            return MAX_PART_COUNT
        low, high = 1, MAX_PART_COUNT
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._end_of(middle) >= self.size else (middle + 1, high)
        return low

    @property
    def parts(self) -> Sequence[Part]:
        """All parts in order, made on demand."""
        return _Parts(self)

    def part(self, number: int) -> Part:
        """Return the part with this number, from 1.

        Raises:
            IndexError: the plan has no such part.
        """
        offset = self._end_of(number - 1)
        is_there = 1 <= number <= MAX_PART_COUNT and (self.is_open or offset < self.size)
        if not is_there:
            raise IndexError(f"there is no part {number}")
        end = self._end_of(number)
        return Part(number, offset, (end if self.is_open else min(end, self.size)) - offset)

    def closed(self, size: int) -> StepPlan:
        """The same plan, now that the size is known."""
        return replace(self, size=size)

    def to_text(self) -> str:
        """Return the numbers as compact JSON with the version of the cutting rule."""
        numbers = {
            "steps": _VERSION,
            "part_size": self.part_size,
            "largest_size": self.largest_size,
            "first_count": self.first_count,
            "step_count": self.step_count,
            "size": self.size,
        }
        return json.dumps(numbers, separators=(",", ":"))

    def _end_of(self, number: int) -> int:
        """Bytes in the first `number` parts, if all are full."""
        end = min(number, self.first_count) * self.part_size
        left, size = number - self.first_count, self.part_size
        while left > 0:
            size = min(2 * size, self.largest_size)
            count = left if size == self.largest_size else min(left, self.step_count)
            end += count * size
            left -= count
        return end


Plan = PartPlan | StepPlan | MemberPlan


class _Parts(Sequence[Part]):
    """The parts of a plan as a read-only sequence that holds none of them."""

    __slots__ = ("_count", "_plan")

    def __init__(self, plan: StepPlan) -> None:
        self._plan, self._count = plan, plan.part_count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | Sequence[Part]:
        numbers = range(1, self._count + 1)[index]
        if isinstance(numbers, int):
            return self._plan.part(numbers)
        return tuple(self._plan.part(number) for number in numbers)

    def __iter__(self) -> Iterator[Part]:
        return (self._plan.part(number) for number in range(1, self._count + 1))


def plan_steps(
    *, part_size: int | None = None, expected_size: int | None = None, largest_size: int
) -> StepPlan:
    """Choose the open plan of a stream.

    Args:
        part_size: of the first parts; None chooses 5 MiB, or by the expected size.
        expected_size: a guess of the whole. Parts then stay as small as those of a file
            of that size, and the steps come after it. Too small: parts grow early. Too
            large: parts are larger than they need be.
        largest_size: bytes of one part that can be kept until OSS has it.

    Raises:
        ConfigurationError: the expected size does not fit, or a number is out of range.
    """
    largest_size = min(largest_size, MAX_PART_SIZE)
    if expected_size is None:
        first = part_size or min(FIRST_PART_SIZE, largest_size)
        return StepPlan(first, max(first, largest_size))
    plan = _plan_for(expected_size, part_size, largest_size)
    if plan.capacity < expected_size:
        raise ConfigurationError(
            f"{expected_size} bytes do not fit into {MAX_PART_COUNT} parts of at most "
            f"{plan.largest_size} bytes, which is what can be kept of this stream.",
            next_step="Keep parts in a spool (--spool DIR), or allow more (--memory, "
            "--spool-size).",
        )
    return plan


def _plan_for(expected_size: int, part_size: int | None, largest_size: int) -> StepPlan:
    if not 1 <= expected_size <= MAX_OBJECT_SIZE:
        raise ConfigurationError(
            f"{expected_size} bytes cannot be expected: OSS takes 1 to {MAX_OBJECT_SIZE}."
        )
    if part_size is None:
        # A tenth of the numbers is left for what was not expected.
        roomy = _ceil_div(_ceil_div(expected_size, MAX_PART_COUNT * 9 // 10), MIB) * MIB
        part_size = min(max(FIRST_PART_SIZE, roomy), largest_size)
    first_count = max(1, min(_ceil_div(expected_size, part_size), MAX_PART_COUNT))
    step_count = max(1, min(STEP_COUNT, (MAX_PART_COUNT - first_count) // 16))
    return StepPlan(part_size, max(part_size, largest_size), first_count, step_count)


def read_plan(text: str) -> Plan:
    """Read what any kind of plan wrote.

    Raises:
        UnsupportedState: a newer version wrote it.
        MalformedDocument: it is something else.
    """
    numbers = parse_json(text, max_bytes=MAX_PLAN_SIZE)
    if "members" in numbers:
        return MemberPlan.from_numbers(numbers)
    if "steps" not in numbers:
        return PartPlan.from_text(text)
    version = numbers.pop("steps")
    if type(version) is int and version > _VERSION:
        raise UnsupportedState(f"The plan of steps has version {version}; this is {_VERSION}.")
    try:
        if version != _VERSION:
            raise TypeError
        return StepPlan(**numbers)
    except (TypeError, ConfigurationError):
        raise MalformedDocument("it is not a plan of steps") from None


def _check_numbers(plan: StepPlan) -> None:
    numbers = (plan.part_size, plan.largest_size, plan.first_count, plan.step_count, plan.size)
    if not all(type(number) is int for number in numbers):
        raise ConfigurationError("A plan of steps is made of five whole numbers.")
    if not MIN_PART_SIZE <= plan.part_size <= plan.largest_size <= MAX_PART_SIZE:
        raise ConfigurationError("The part sizes must be between 100 KiB and 5 GiB.")
    if plan.first_count < 1 or plan.step_count < 1:
        raise ConfigurationError("Each step of a plan needs at least one part.")
    if not 0 <= plan.size <= plan.capacity:
        raise ConfigurationError(f"{plan.size} bytes do not fit into {MAX_PART_COUNT} parts.")


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
