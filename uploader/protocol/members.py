"""The plan of a package: each member is one part, as large as it is."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from uploader.errors import UnsupportedState
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.plan import Part

__all__ = ["MemberPlan"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """Parts of given sizes, one for each member, in order.

    Attributes:
        sizes: bytes of each member, at least 1.
        names_crc64: CRC-64 of the members' names, so that a package with other members
            of the same sizes is told apart.
    """

    sizes: tuple[int, ...]
    names_crc64: int
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = (self.names_crc64, *self.sizes)
        if not self.sizes or not all(type(n) is int and n >= 0 for n in numbers) or 0 in self.sizes:
            raise ValueError("members have sizes of at least one byte")
        object.__setattr__(self, "_ends", tuple(accumulate(self.sizes)))

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return self._ends[-1]

    @property
    def part_count(self) -> int:
        """The number of members."""
        return len(self.sizes)

    @property
    def parts(self) -> Sequence[Part]:
        """All members in order."""
        return [self.part(number) for number in range(1, self.part_count + 1)]

    @property
    def is_open(self) -> bool:
        """Never: a package is finished before it is sent."""
        return False

    @property
    def is_single(self) -> bool:
        """Never: a playlist comes with what it plays."""
        return False

    def part(self, number: int) -> Part:
        """Return the member with this number, from 1.

        Raises:
            IndexError: the plan has no such member.
        """
        if not 1 <= number <= self.part_count:
            raise IndexError(f"there is no member {number}")
        size = self.sizes[number - 1]
        return Part(number, self._ends[number - 1] - size, size)

    def number_at(self, offset: int) -> int:
        """Return the number of the member that holds the byte at `offset`."""
        return bisect_left(self._ends, offset + 1) + 1

    def to_text(self) -> str:
        """Return the sizes as compact JSON with a version."""
        numbers = {"members": _VERSION, "names_crc64": self.names_crc64, "sizes": self.sizes}
        return json.dumps(numbers, separators=(",", ":"))

    @classmethod
    def from_numbers(cls, numbers: dict[str, Any]) -> MemberPlan:
        """Read what `to_text` wrote, as JSON parsed it.

        Raises:
            UnsupportedState: a newer version wrote it.
            MalformedDocument: it is something else.
        """
        version = numbers.get("members")
        if type(version) is int and version > _VERSION:
            raise UnsupportedState(f"The plan of a package has version {version}.")
        try:
            if type(version) is not int or version != _VERSION:
                raise TypeError
            return cls(tuple(numbers["sizes"]), numbers["names_crc64"])
        except (KeyError, TypeError, ValueError):
            raise MalformedDocument("it is not a plan of members") from None
