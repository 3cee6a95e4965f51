"""What OSS's figures prove about the bytes we sent.

Only figures of ours, computed over bytes handed to the network, are compared with OSS's.
Two figures of OSS's being equal proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from uploader.errors import IntegrityError
from uploader.protocol.integrity import join_crc64, multipart_etag, same_etag
from uploader.protocol.oss import ListedPart, ObjectFacts
from uploader.protocol.plan import Part, Plan
from uploader.state.records import PartAck

__all__ = ["ABSENT", "NOTHING", "PackageReceipts", "Proof", "Receipts", "Stored", "is_same_part"]

Proof = Literal["crc64", "etag"]

NOTHING = ObjectFacts(etag=None, crc64=None, size=None, request_id="")
"""What is known of an object nobody lets us look at."""

ABSENT = ObjectFacts(etag=None, crc64=None, size=0, request_id="")
"""What is known of an object that is not there: no source is as empty."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What OSS says it holds, and how we came to know.

    Attributes:
        how: "" from the answer of Complete or PutObject, "-head" by HeadObject, "-url"
            through a URL of VOD's; the suffix of `UploadResult.verified_by`.
    """

    facts: ObjectFacts
    how: Literal["", "-head", "-url"] = ""


class Receipts:
    """OSS's receipts for the parts of one plan, each checked against what we sent.

    Mutable: grows while parts are sent. A set of receipts adds up to the plan or proves
    nothing at all.
    """

    def __init__(self, plan: Plan, acks: Iterable[PartAck], *, is_put: bool) -> None:
        """`is_put`: one PutObject, whose ETag is the plain MD5 (OSS API: PutObject)."""
        self.plan, self.is_put = plan, is_put
        self._acks = {ack.number: ack for ack in acks if 1 <= ack.number <= plan.part_count}
        self.size = sum(ack.size for ack in self._acks.values())
        self._joined_crc64: int | None = None

    def __len__(self) -> int:
        return len(self._acks)

    def __contains__(self, part_number: int) -> bool:
        return part_number in self._acks

    def of(self, part_number: int) -> PartAck | None:
        """The receipt of a part."""
        return self._acks.get(part_number)

    @property
    def end(self) -> int:
        """Where the last part ends that has a receipt."""
        ends = (self.plan.part(ack.number).offset + ack.size for ack in self._acks.values())
        return max(ends, default=0)

    def under(self, plan: Plan) -> Receipts:
        """The same receipts, for a plan that has the same parts as far as they are sent."""
        return Receipts(plan, self._acks.values(), is_put=self.is_put)

    def missing(self) -> list[Part]:
        """The parts without a receipt, in order."""
        return [part for part in self.plan.parts if part.number not in self._acks]

    def keep(self, ack: PartAck) -> None:
        """Add a receipt, or replace one."""
        self.drop(ack.number)
        self._acks[ack.number] = ack
        self.size += ack.size
        self._joined_crc64 = None

    def drop(self, part_number: int) -> None:
        """Forget a receipt: the part will be sent again."""
        if (former := self._acks.pop(part_number, None)) is not None:
            self.size -= former.size
            self._joined_crc64 = None

    def drop_unlike(self, listed: dict[int, ListedPart]) -> None:
        """Forget what OSS lists otherwise than we have it."""
        for number, part in listed.items():
            if number in self._acks and not is_same_part(self._acks[number], part):
                self.drop(number)

    def drop_unlisted(self, listed: dict[int, ListedPart]) -> None:
        """Forget what OSS does not list; only a whole list says so."""
        for number in self._acks.keys() - listed.keys():
            self.drop(number)

    def in_order(self) -> list[PartAck]:
        """All receipts, by part number.

        Raises:
            IntegrityError: they do not add up to the plan. OSS would join what it is
                given, so nothing less must ever be completed.
        """
        acks = [
            ack
            for part in self.plan.parts
            if (ack := self._acks.get(part.number)) is not None and ack.size == part.size
        ]
        if len(acks) != self.plan.part_count:
            raise IntegrityError("The receipts do not add up to the plan; nothing was completed.")
        return acks

    @property
    def crc64(self) -> int:
        """CRC-64 of the whole, joined from those of the parts."""
        if self._joined_crc64 is None:
            acks = self.in_order()
            self._joined_crc64 = join_crc64((ack.crc64, ack.size) for ack in acks)
        return self._joined_crc64

    def proving(self) -> list[PartAck]:
        """The receipts whose MD5s make the object's ETag."""
        return self.in_order()

    @property
    def etag(self) -> str | None:
        """The ETag OSS must give, by its formula over our MD5s; None without all of them."""
        acks = self.proving()
        md5s = [ack.md5 for ack in acks if ack.md5 is not None]
        if len(md5s) != len(acks):
            return None
        return md5s[0] if self.is_put else multipart_etag(md5s)

    def proof(self, facts: ObjectFacts) -> Proof | None:
        """Compare OSS's figures with ours; None if it gave none that proves anything.

        Raises:
            IntegrityError: they differ.
        """
        size, crc64 = self._object()
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

    def _object(self) -> tuple[int, int]:
        """Size and CRC-64 the object must have."""
        return self.plan.size, self.crc64

    def describe(self, facts: ObjectFacts) -> bool:
        """Whether the object is, provably, the one these receipts are for."""
        try:
            return self.proof(facts) is not None
        except IntegrityError:
            return False


class PackageReceipts(Receipts):
    """Receipts for the objects of a package; the last one is the object VOD waits for."""

    def __init__(self, plan: Plan, acks: Iterable[PartAck]) -> None:
        super().__init__(plan, acks, is_put=True)

    def proving(self) -> list[PartAck]:
        """That of the last object: the others were proved one by one."""
        return self.in_order()[-1:]

    def _object(self) -> tuple[int, int]:
        last = self.in_order()[-1]
        return last.size, last.crc64


def is_same_part(ack: PartAck, listed: ListedPart) -> bool:
    """Whether OSS lists the part as the receipt has it."""
    is_same_crc = listed.crc64 is None or listed.crc64 == ack.crc64
    return ack.size == listed.size and same_etag(ack.etag, listed.etag) and is_same_crc


def _differs(what: str, theirs: object, ours: object, facts: ObjectFacts) -> IntegrityError:
    return IntegrityError(
        f"The object in OSS is not what was sent: its {what} is {theirs}, ours is {ours}.",
        request_id=facts.request_id,
    )
