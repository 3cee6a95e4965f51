"""What proves that OSS holds what was sent: the acked parts of a plan, compared with an object.

Success needs figures of ours, computed over bytes that we sent, that equal OSS's figures for the
object: its CRC-64, else the ETag that follows from our MD5s. Figures of OSS alone prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from uploader.errors import IntegrityError
from uploader.protocol.integrity import join_crc64, multipart_etag, same_etag
from uploader.protocol.oss import ListedPart, ObjectFacts
from uploader.protocol.plan import Part, Plan
from uploader.state import PartAck

Proof = Literal["crc64", "etag"]

UNKNOWN = ObjectFacts(etag=None, crc64=None, size=None, request_id="")
"""What is known of an object that we may not read."""

ABSENT = ObjectFacts(etag=None, crc64=None, size=0, request_id="")
"""What is known of an object that does not exist: no source is empty."""


@dataclass(frozen=True, slots=True)
class FoundObject:
    """What OSS says it holds, and where that was read.

    Attributes:
        how: "" in the answer of Complete or PutObject, "-head" by HeadObject, "-url"
            through a URL from VOD; the suffix of `UploadResult.verified_by`.
    """

    facts: ObjectFacts
    how: Literal["", "-head", "-url"] = ""


class AckedParts:
    """OSS's answers for the parts of one plan, each compared with what we sent.

    The parts of a package are objects of their own, and its last part is the object that VOD
    waits for: that one alone is proved here, the others were proved when they were acked.

    Mutable: grows while parts are sent. Acks add up to the plan or prove nothing at all.

    Attributes:
        is_put: the object is stored by one PutObject, and its ETag is the plain MD5 (OSS
            API: PutObject).
        size: bytes of the acked parts.
    """

    def __init__(self, plan: Plan, acks: Iterable[PartAck], *, is_put: bool) -> None:
        self.plan = plan
        self._is_package = plan.names_crc64 is not None
        self.is_put = is_put or self._is_package
        self._acks = {ack.number: ack for ack in acks if 1 <= ack.number <= plan.part_count}
        self.size = sum(ack.size for ack in self._acks.values())
        self._joined_crc64: int | None = None

    def __len__(self) -> int:
        return len(self._acks)

    def __contains__(self, part_number: int) -> bool:
        return part_number in self._acks

    def get(self, part_number: int) -> PartAck | None:
        """The ack of a part."""
        return self._acks.get(part_number)

    @property
    def end(self) -> int:
        """Where the last acked part ends, in bytes from the start."""
        ends = (self.plan.part(ack.number).offset + ack.size for ack in self._acks.values())
        return max(ends, default=0)

    def with_plan(self, plan: Plan) -> AckedParts:
        """The same acks for a plan that has the same parts as far as they were sent."""
        return AckedParts(plan, self._acks.values(), is_put=self.is_put)

    def missing(self) -> list[Part]:
        """The parts without an ack, in order."""
        return [part for part in self.plan.parts if part.number not in self._acks]

    def add(self, ack: PartAck) -> None:
        """Add an ack, or replace one."""
        self.remove(ack.number)
        self._acks[ack.number] = ack
        self.size += ack.size
        self._joined_crc64 = None

    def remove(self, part_number: int) -> None:
        """Forget an ack: the part will be sent again."""
        if (former := self._acks.pop(part_number, None)) is not None:
            self.size -= former.size
            self._joined_crc64 = None

    def remove_unlike(self, listed: dict[int, ListedPart]) -> None:
        """Forget the acks of parts that OSS lists with other figures."""
        for number, part in listed.items():
            if number in self._acks and not is_same_part(self._acks[number], part):
                self.remove(number)

    def remove_unlisted(self, listed: dict[int, ListedPart]) -> None:
        """Forget the acks of parts that OSS does not list; `listed` must be the whole list."""
        for number in self._acks.keys() - listed.keys():
            self.remove(number)

    def in_order(self) -> list[PartAck]:
        """All acks, by part number.

        Raises:
            IntegrityError: they do not add up to the plan. OSS joins whatever it is given,
                so less than all must never be completed.
        """
        acks = [
            ack
            for part in self.plan.parts
            if (ack := self._acks.get(part.number)) is not None and ack.size == part.size
        ]
        if len(acks) != self.plan.part_count:
            raise IntegrityError("The acked parts do not add up to the plan; nothing completed.")
        return acks

    @property
    def crc64(self) -> int:
        """CRC-64 of everything that was sent, joined from the parts."""
        if self._joined_crc64 is None:
            self._joined_crc64 = join_crc64((ack.crc64, ack.size) for ack in self.in_order())
        return self._joined_crc64

    def of_object(self) -> list[PartAck]:
        """The acks of the parts that make the object."""
        acks = self.in_order()
        return acks[-1:] if self._is_package else acks

    @property
    def etag(self) -> str | None:
        """The ETag that OSS's formula gives for our MD5s; None without all of them."""
        acks = self.of_object()
        md5s = [ack.md5 for ack in acks if ack.md5 is not None]
        if len(md5s) != len(acks):
            return None
        return md5s[0] if self.is_put else multipart_etag(md5s)

    def proof(self, facts: ObjectFacts) -> Proof | None:
        """Compare OSS's figures with ours; None if there are none that prove anything.

        Raises:
            IntegrityError: they differ.
        """
        last = self.of_object()[-1]
        size, crc64 = (last.size, last.crc64) if self._is_package else (self.plan.size, self.crc64)
        if facts.size is not None and facts.size != size:
            raise _differs("size", facts.size, size, facts)
        if facts.crc64 is not None:
            if facts.crc64 != crc64:
                raise _differs("CRC-64", facts.crc64, crc64, facts)
            return "crc64"
        ours = self.etag
        if facts.etag is None or ours is None:
            return None
        if not same_etag(facts.etag, ours):
            raise _differs("ETag", facts.etag, ours, facts)
        return "etag"

    def is_proved_by(self, facts: ObjectFacts) -> bool:
        """Whether the object is, provably, made of these parts."""
        try:
            return self.proof(facts) is not None
        except IntegrityError:
            return False


def is_same_part(ack: PartAck, listed: ListedPart) -> bool:
    """Whether OSS lists the part with the figures of its ack."""
    is_same_crc = listed.crc64 is None or listed.crc64 == ack.crc64
    return ack.size == listed.size and same_etag(ack.etag, listed.etag) and is_same_crc


def _differs(what: str, theirs: object, ours: object, facts: ObjectFacts) -> IntegrityError:
    return IntegrityError(
        f"The object in OSS is not what was sent: its {what} is {theirs}, ours is {ours}.",
        request_id=facts.request_id,
    )
