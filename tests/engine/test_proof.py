"""Acked parts add up to the plan or prove nothing; only our figures prove OSS's."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import IntegrityError
from uploader.protocol.integrity import crc64
from uploader.protocol.oss import ListedPart, ObjectFacts
from uploader.protocol.part_sizes import plan_file, plan_package
from uploader.protocol.plan import Plan
from uploader.state.records import PartAck
from uploader.upload.proof import ABSENT, UNKNOWN, AckedParts, is_same_part

PART = 100 * 1024
"""The smallest part OSS takes."""


def plan_of(size: int) -> Plan:
    return plan_file(size, part_size=PART, concurrency=1)


def ack_of(number: int, data: bytes, *, has_md5: bool = True) -> PartAck:
    md5 = hashlib.md5(data).hexdigest().upper()  # noqa: S324  # the ETag of a part
    return PartAck(number, len(data), md5, crc64(data), md5 if has_md5 else None)


def listed_of(ack: PartAck, **changes: Any) -> ListedPart:
    return replace(ListedPart(ack.number, ack.size, ack.etag, ack.crc64), **changes)


def pieces_of(data: bytes) -> list[bytes]:
    return [data[p.offset : p.offset + p.size] for p in plan_of(len(data)).parts]


def acks_of(data: bytes, *, has_md5: bool = True) -> list[PartAck]:
    pieces = enumerate(pieces_of(data), 1)
    return [ack_of(number, piece, has_md5=has_md5) for number, piece in pieces]


def acked_of(data: bytes, *, has_md5: bool = True) -> AckedParts:
    return AckedParts(plan_of(len(data)), acks_of(data, has_md5=has_md5), is_put=False)


MOVIE = bytes(range(256)) * 1700  # 425 KiB: five parts
MOVIE_ACKS = acks_of(MOVIE)
NUMBERS = range(1, len(MOVIE_ACKS) + 1)


def total(acked: AckedParts) -> int:
    return sum(ack.size for ack in MOVIE_ACKS if ack.number in acked)


# --- adding up -----------------------------------------------------------------------


@given(st.sets(st.sampled_from(NUMBERS)))
def test_acks_add_up_only_when_none_is_missing(known: set[int]) -> None:
    acks = [ack for ack in MOVIE_ACKS if ack.number in known]
    acked = AckedParts(plan_of(len(MOVIE)), reversed(acks), is_put=False)
    assert len(acked) == len(known)
    assert acked.size == sum(ack.size for ack in acks)
    assert [part.number for part in acked.missing()] == sorted(set(NUMBERS) - known)
    if len(known) == len(MOVIE_ACKS):
        assert acked.in_order() == MOVIE_ACKS
    else:
        with pytest.raises(IntegrityError):
            acked.in_order()


@pytest.mark.parametrize("sizes", [(PART - 1, PART), (PART + 1, PART - 1), (0, 2 * PART)])
def test_acks_of_other_sizes_do_not_add_up(sizes: tuple[int, int]) -> None:
    acks = [PartAck(number, size, "A", 0) for number, size in enumerate(sizes, 1)]
    with pytest.raises(IntegrityError):
        AckedParts(plan_of(2 * PART), acks, is_put=False).in_order()


def test_acks_outside_the_plan_do_not_count() -> None:
    strangers = [PartAck(0, 1, "A", 0), PartAck(len(MOVIE_ACKS) + 1, 1, "A", 0)]
    acked = AckedParts(plan_of(len(MOVIE)), [*MOVIE_ACKS, *strangers], is_put=False)
    assert len(acked) == len(MOVIE_ACKS)
    assert acked.size == len(MOVIE)
    assert acked.in_order() == MOVIE_ACKS


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(NUMBERS)), max_size=20))
def test_sizes_follow_adding_and_removing(steps: list[tuple[bool, int]]) -> None:
    acked = AckedParts(plan_of(len(MOVIE)), [], is_put=False)
    for is_added, number in steps:
        if is_added:
            acked.add(MOVIE_ACKS[number - 1])
        else:
            acked.remove(number)
        assert (number in acked) is is_added
        assert acked.size == total(acked)


def test_a_newer_ack_replaces_the_older() -> None:
    acked = acked_of(MOVIE)
    acked.add(PartAck(1, PART, "NEW", 5))
    assert acked.in_order()[0].etag == "NEW"
    assert acked.size == len(MOVIE)


@given(st.binary(min_size=1, max_size=400_000))
def test_joined_crc_is_the_crc_of_the_whole(data: bytes) -> None:
    assert acked_of(data).crc64 == crc64(data)


# --- what OSS lists ------------------------------------------------------------------

_CHANGES: list[dict[str, Any]] = [
    {},
    {"crc64": None},
    {"crc64": 1},
    {"size": 1},
    {"etag": "B" * 32},
    {"etag": ""},
]


@given(st.lists(st.sampled_from([*_CHANGES, None]), min_size=5, max_size=5))
def test_what_oss_lists_otherwise_is_sent_again(changes: list[dict[str, Any] | None]) -> None:
    acked = acked_of(MOVIE)
    listed = {
        ack.number: listed_of(ack, **change)
        for ack, change in zip(MOVIE_ACKS, changes, strict=True)
        if change is not None
    }
    acked.remove_unlike(listed)
    other = {
        number
        for number, change in zip(NUMBERS, changes, strict=True)
        if change is not None and change not in ({}, {"crc64": None})
    }
    assert {number for number in NUMBERS if number in acked} == set(NUMBERS) - other
    assert acked.size == total(acked)
    acked.remove_unlisted(listed)
    assert {number for number in NUMBERS if number in acked} == set(listed) - other
    assert acked.size == total(acked)


def test_etags_are_compared_whatever_their_quotes_and_case() -> None:
    ack = MOVIE_ACKS[0]
    assert is_same_part(ack, listed_of(ack, etag=f'"{ack.etag.lower()}"'))


# --- proof ---------------------------------------------------------------------------


def right_etag(acks: list[PartAck]) -> str:
    joined = "".join(ack.etag for ack in acks).encode()
    return f"{hashlib.md5(joined).hexdigest().upper()}-{len(acks)}"  # noqa: S324


_WORDS = ("right", "wrong", "absent")


@pytest.mark.parametrize(("crc", "etag", "size"), [*itertools.product(_WORDS, repeat=3)])
@pytest.mark.parametrize("has_md5", [True, False])
def test_proof_over_all_that_oss_may_tell(crc: str, etag: str, size: str, has_md5: bool) -> None:
    acked = acked_of(MOVIE, has_md5=has_md5)
    facts = ObjectFacts(
        etag={"right": right_etag(MOVIE_ACKS), "wrong": "B" * 32 + "-5", "absent": None}[etag],
        crc64={"right": crc64(MOVIE), "wrong": crc64(MOVIE) ^ 1, "absent": None}[crc],
        size={"right": len(MOVIE), "wrong": len(MOVIE) - 1, "absent": None}[size],
        request_id="5C3D",
    )
    # An ETag decides only where there is no CRC, and only if we know all MD5s.
    counts = crc if crc != "absent" else etag if has_md5 else "absent"
    if "wrong" in (size, counts):
        with pytest.raises(IntegrityError) as caught:
            acked.proof(facts)
        assert caught.value.request_id == "5C3D"
        assert not acked.is_proved_by(facts)
    else:
        kind = "crc64" if crc == "right" else "etag"
        expected = kind if counts == "right" else None
        assert acked.proof(facts) == expected
        assert acked.is_proved_by(facts) is (expected is not None)


def test_a_crc_of_zero_is_a_crc() -> None:
    acked = acked_of(MOVIE)
    with pytest.raises(IntegrityError):
        acked.proof(ObjectFacts(None, 0, None, ""))


def test_one_missing_md5_leaves_no_etag() -> None:
    acked = acked_of(MOVIE)
    acked.add(ack_of(3, pieces_of(MOVIE)[2], has_md5=False))
    assert acked.etag is None


def test_the_etag_of_one_put_is_its_md5() -> None:
    data = b"short"
    ack = ack_of(1, data)
    put = AckedParts(plan_of(len(data)), [ack], is_put=True)
    multipart = AckedParts(plan_of(len(data)), [ack], is_put=False)
    assert put.etag == ack.md5
    assert multipart.etag == right_etag([ack])
    assert put.proof(ObjectFacts(ack.etag.lower(), None, None, "")) == "etag"


def test_incomplete_acks_prove_nothing() -> None:
    acked = acked_of(MOVIE)
    acked.remove(2)
    for facts in (
        ObjectFacts(None, crc64(MOVIE), len(MOVIE), ""),
        ObjectFacts(right_etag(MOVIE_ACKS), None, len(MOVIE), ""),
        UNKNOWN,
        ABSENT,
    ):
        assert not acked.is_proved_by(facts)


def test_an_object_that_is_not_there_is_not_ours() -> None:
    assert not acked_of(MOVIE).is_proved_by(ABSENT)
    assert not acked_of(MOVIE).is_proved_by(UNKNOWN)


@pytest.mark.parametrize(
    ("facts", "detail"),
    [
        (ObjectFacts(None, None, 7, ""), f"its size is 7, ours is {len(MOVIE)}"),
        (ObjectFacts(None, 7, None, ""), f"its CRC-64 is 7, ours is {crc64(MOVIE)}"),
        (ObjectFacts("B-5", None, None, ""), f"its ETag is B-5, ours is {right_etag(MOVIE_ACKS)}"),
    ],
)
def test_what_differs_is_named_with_both_figures(facts: ObjectFacts, detail: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        acked_of(MOVIE).proof(facts)
    assert caught.value.message == f"The object in OSS is not what was sent: {detail}."


def test_acks_that_do_not_add_up_say_so() -> None:
    acked = acked_of(MOVIE)
    acked.remove(2)
    with pytest.raises(IntegrityError) as caught:
        acked.in_order()
    detail = "The acked parts do not add up to the plan; nothing completed."
    assert caught.value.message == detail


def test_an_ack_is_found_by_its_part() -> None:
    acked = acked_of(MOVIE)
    assert [acked.get(number) for number in NUMBERS] == MOVIE_ACKS
    assert acked.get(99) is None


@pytest.mark.parametrize("is_put", [True, False])
def test_acks_go_along_to_a_plan_with_the_same_parts(is_put: bool) -> None:
    acked = AckedParts(plan_of(len(MOVIE)), MOVIE_ACKS[:3], is_put=is_put)
    longer = acked.with_plan(plan_of(len(MOVIE) + PART))
    assert (len(longer), longer.size, longer.is_put) == (3, acked.size, is_put)
    assert longer.plan.part_count == acked.plan.part_count + 1
    assert [part.number for part in longer.missing()] == [4, 5, 6]


def test_a_package_is_proved_by_its_last_object() -> None:
    package_plan = plan_package((ack.size for ack in MOVIE_ACKS), names_crc64=1)
    package = AckedParts(package_plan, MOVIE_ACKS, is_put=False)
    last = MOVIE_ACKS[-1]
    assert package.of_object() == [last]
    assert package.etag == last.md5
    assert package.proof(ObjectFacts(None, last.crc64, last.size, "")) == "crc64"
    assert package.proof(ObjectFacts(last.etag, None, None, "")) == "etag"
    with pytest.raises(IntegrityError):
        package.proof(ObjectFacts(None, crc64(MOVIE), len(MOVIE), ""))
    package.remove(1)
    assert not package.is_proved_by(ObjectFacts(None, last.crc64, last.size, ""))


def test_the_joined_crc_follows_every_change() -> None:
    acked = acked_of(MOVIE)
    assert acked.crc64 == crc64(MOVIE)
    other = bytes(PART)
    acked.add(ack_of(2, other))
    assert acked.crc64 == crc64(MOVIE[:PART] + other + MOVIE[2 * PART :])
    acked.remove(3)
    with pytest.raises(IntegrityError):
        assert acked.crc64
    acked.add(MOVIE_ACKS[2])
    assert acked.crc64 == crc64(MOVIE[:PART] + other + MOVIE[2 * PART :])
