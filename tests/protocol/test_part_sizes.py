"""Parts lie within OSS's limits, end together, and reach as far as OSS does."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.errors import ConfigurationError
from uploader.protocol.part_sizes import Outlook, plan_file, plan_package, plan_stream
from uploader.protocol.plan import (
    MAX_OBJECT_SIZE,
    MAX_PART_COUNT,
    MAX_PART_SIZE,
    MIN_PART_SIZE,
    Part,
    Plan,
    Run,
    read_plan,
)

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

# Spread over orders of magnitude: uniform numbers would nearly all be above 1 TB.
_SIZES = st.integers(0, 45).flatmap(lambda k: st.integers(2**k, min(2 ** (k + 1), MAX_OBJECT_SIZE)))
_CONCURRENCIES = st.sampled_from([1, 2, 3, 4, 8, 16, 33, 64, 256, 1000])


def _assert_sound(plan: Plan) -> None:
    parts = list(plan.parts)
    assert [part.number for part in parts] == list(range(1, plan.part_count + 1))
    assert len(parts) <= MAX_PART_COUNT
    assert parts[0].offset == 0
    assert all(b.offset == a.offset + a.size for a, b in pairwise(parts))
    assert parts[-1].offset + parts[-1].size == plan.size
    assert all(MIN_PART_SIZE <= part.size <= MAX_PART_SIZE for part in parts[:-1])
    assert 1 <= parts[-1].size <= MAX_PART_SIZE
    assert read_plan(plan.to_text()) == plan


def _largest(plan: Plan) -> int:
    """The size of the parts before the tail, if there are any."""
    return plan.part(1).size


def _has_tail(plan: Plan) -> bool:
    """Whether the last parts are smaller, apart from what is left for the last one."""
    return len({part.size for part in list(plan.parts)[:-1]}) > 1


# --- files ----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(_SIZES, _CONCURRENCIES)
def test_automatic_plans_are_sound(size: int, concurrency: int) -> None:
    plan = plan_file(size, concurrency=concurrency)
    _assert_sound(plan)
    assert plan.size == size
    assert not plan.is_open
    assert plan.is_single or _largest(plan) % (128 * KIB) == 0


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(MIN_PART_SIZE, MAX_PART_SIZE), _CONCURRENCIES)
def test_plans_with_a_given_part_size_are_sound(
    data: st.DataObject, part_size: int, concurrency: int
) -> None:
    size = data.draw(st.integers(1, part_size * MAX_PART_COUNT))
    plan = plan_file(size, part_size=part_size, concurrency=concurrency)
    _assert_sound(plan)
    assert plan.size == size
    assert _largest(plan) <= part_size
    if size >= 2 * concurrency * part_size:
        assert _largest(plan) == part_size


@pytest.mark.parametrize("size", [MAX_OBJECT_SIZE, MAX_OBJECT_SIZE - 1, MAX_OBJECT_SIZE - 5 * GIB])
@pytest.mark.parametrize("concurrency", [1, 8, 256])
def test_the_largest_objects_use_the_last_part_number(size: int, concurrency: int) -> None:
    plan = plan_file(size, concurrency=concurrency)
    _assert_sound(plan)
    assert MAX_PART_COUNT - 1 <= plan.part_count <= MAX_PART_COUNT


# --- the link and the credentials -----------------------------------------------------

_OUTLOOKS = st.builds(
    Outlook,
    connection_rate=st.none() | st.floats(1, 1e10),
    rtt_s=st.floats(0, 2),
    is_slowed_by_loss=st.booleans(),
    credential_life_s=st.floats(1, 43_200),
)
MBIT = 125_000


@settings(max_examples=150, deadline=None)
@given(_SIZES, _CONCURRENCIES, _OUTLOOKS)
def test_plans_are_sound_whatever_the_outlook(
    size: int, concurrency: int, outlook: Outlook
) -> None:
    plan = plan_file(size, concurrency=concurrency, outlook=outlook)
    _assert_sound(plan)
    assert plan.size == size
    parts = list(plan.parts)
    assert all(a.size >= b.size for a, b in pairwise(parts))
    assert all(part.size >= 256 * KIB for part in parts[:-1])


@settings(max_examples=150, deadline=None)
@given(st.integers(9 * MIB, 100 * GIB), st.integers(2, 64), st.floats(0.01, 2), st.booleans())
def test_parts_never_all_start_at_once_on_a_far_path(
    size: int, concurrency: int, rtt_s: float, is_slowed_by_loss: bool
) -> None:
    """No part is more than its share of what remains, or of the smallest size a far path has."""
    outlook = Outlook(rtt_s=rtt_s, is_slowed_by_loss=is_slowed_by_loss)
    plan = plan_file(size, concurrency=concurrency, outlook=outlook)
    shares = (4 if is_slowed_by_loss else 2) * concurrency
    smallest = max(256 * KIB, min(MIB, size // shares // 4))
    for part in plan.parts:
        assert part.size <= max(smallest, (size - part.offset) // shares)
        if part.number > 300:
            break
    has_small_parts = size < shares * 256 * KIB
    assert plan.part_count >= shares or has_small_parts


@pytest.mark.parametrize(
    ("size", "concurrency", "outlook", "largest", "smallest"),
    [
        # Measured: 200 Mbit/s, 50 ms, 0.5 % of packets lost.
        (125_000_000, 64, Outlook(rtt_s=0.05), 448 * KIB, 256 * KIB),
        (125_000_000, 8, Outlook(rtt_s=0.05, is_slowed_by_loss=False), 7 * MIB, MIB),
        # 1 Gbit/s, 100 ms, 0.1 %.
        (500_000_000, 64, Outlook(rtt_s=0.1), 1.75 * MIB, 448 * KIB),
        # 20 Mbit/s, 200 ms, 2 %.
        (20_000_000, 64, Outlook(rtt_s=0.2), 256 * KIB, 256 * KIB),
        # Near: fifteen of 8 MiB, which all start at once.
        (125_000_000, 16, Outlook(rtt_s=0.001), 8 * MIB, 8 * MIB),
    ],
)
def test_a_far_path_has_several_parts_for_each_connection(
    size: int, concurrency: int, outlook: Outlook, largest: float, smallest: float
) -> None:
    plan = plan_file(size, concurrency=concurrency, outlook=outlook)
    assert _largest(plan) == largest
    assert min(part.size for part in list(plan.parts)[:-1]) == smallest


@pytest.mark.parametrize(
    ("what", "size", "outlook", "part_size"),
    [
        ("nothing is known", 10 * GIB, Outlook(), 8 * MIB),
        ("short-lived credentials", 10 * GIB, Outlook(credential_life_s=300), 2 * MIB),
        ("very short-lived ones", GIB, Outlook(credential_life_s=20), MIB),
        (
            "a slow link",
            GIB,
            Outlook(connection_rate=MBIT / 16, credential_life_s=3000),
            5 * MIB,
        ),
        ("near and fast", 10 * GIB, Outlook(connection_rate=1e9, rtt_s=0.0003), 8 * MIB),
        ("far and fast", 10 * GIB, Outlook(connection_rate=125 * MBIT, rtt_s=0.2), 30 * MIB),
        ("as far as it gets", 10 * GIB, Outlook(connection_rate=1e9, rtt_s=1), 64 * MIB),
    ],
)
def test_the_part_size_follows_link_and_credentials(
    what: str, size: int, outlook: Outlook, part_size: int
) -> None:
    assert _largest(plan_file(size, outlook=outlook)) == part_size


@pytest.mark.parametrize("life_s", [120, 300, 3000])
@pytest.mark.parametrize("rate", [None, 40 * KIB, MBIT, 25 * MBIT])
def test_a_part_fits_well_inside_one_credential(life_s: float, rate: float | None) -> None:
    plan = plan_file(GIB, outlook=Outlook(connection_rate=rate, credential_life_s=life_s))
    assert _largest(plan) / (rate or 32 * KIB) <= max(life_s / 4, MIB / (rate or 32 * KIB))


@pytest.mark.parametrize("life_s", [300, 3000])
def test_forty_gigabytes_over_1_mbit_fit_all_the_same(life_s: float) -> None:
    """10,000 parts ask for 4 MiB; the one connection left on such a link takes 34 s for it."""
    plan = plan_file(40 * 10**9, outlook=Outlook(credential_life_s=life_s))
    assert _largest(plan) == (4 * MIB if life_s < 3000 else 8 * MIB)
    assert _largest(plan) / MBIT <= life_s / 4


def test_a_file_of_a_few_parts_occupies_all_connections() -> None:
    plan = plan_file(40 * MIB, concurrency=16)
    assert (_largest(plan), plan.part_count) == (3 * MIB, 14)
    assert _largest(plan_file(9 * MIB, concurrency=64)) == 2 * MIB, "but none is tiny"


# --- the tail -------------------------------------------------------------------------


def test_small_sources_are_one_part() -> None:
    assert plan_file(1).is_single
    assert plan_file(8 * MIB) == Plan((Run(8 * MIB, 1),))
    assert not plan_file(8 * MIB + 1).is_single


def test_a_source_of_an_ordinary_size_has_parts_of_8_mib_before_the_tail() -> None:
    plan = plan_file(10 * GIB)
    assert all(part.size == 8 * MIB for part in list(plan.parts)[:1000])
    assert plan.last_part.size <= MIB


def test_the_tail_is_1_of_16_of_what_remains_in_four_binary_digits() -> None:
    plan = plan_file(100_000_001, part_size=8 * MIB, concurrency=4)
    # fmt: off
    assert [part.size // 65536 for part in plan.parts] == [
        128, 128, 128, 128, 120, 104, 96, 80, 72, 64, 56, 52, 44, 40, 32, 30, 26, 24, 20, 18,
        16, 16, 16, 16, 16, 16, 16, 16, 7,
    ]
    # fmt: on
    assert all(part.size % 65536 == 0 for part in list(plan.parts)[:-1])


@settings(max_examples=100, deadline=None)
@given(st.integers(100 * MIB, 400 * GIB), st.sampled_from([2, 4, 8, 16, 64]))
def test_no_tail_part_is_larger_than_its_share_of_the_rest(size: int, concurrency: int) -> None:
    plan = plan_file(size, concurrency=concurrency)
    if not _has_tail(plan):
        return
    for part in list(plan.parts)[-200:]:
        share = (size - part.offset) // (2 * concurrency)
        assert part.size <= max(MIB, share)
        is_last = part.number == plan.part_count
        assert part.size > min(share * 7 // 8, _largest(plan)) - 1 or is_last


@settings(max_examples=100, deadline=None)
@given(_SIZES, _CONCURRENCIES)
def test_parts_never_grow(size: int, concurrency: int) -> None:
    parts = plan_file(size, concurrency=concurrency).parts
    assert all(a.size >= b.size for a, b in pairwise(parts))


@pytest.mark.parametrize(
    ("size", "part_size", "concurrency", "equal"),
    [
        (10 * GIB, None, 1, 8 * MIB),  # nothing else could end earlier
        (64 * MIB, None, 8, 8 * MIB),  # all start at once
        (64 * MIB, MIB, 8, MIB),  # they are small already
        (64 * MIB, 2 * MIB - 1, 8, 2 * MIB - 1),
        (10_000 * 8 * MIB, 8 * MIB, 8, 8 * MIB),  # there is no number left
    ],
)
def test_there_is_no_tail_where_it_cannot_help(
    size: int, part_size: int | None, concurrency: int, equal: int
) -> None:
    plan = plan_file(size, part_size=part_size, concurrency=concurrency)
    assert {part.size for part in list(plan.parts)[:-1]} == {equal}


@pytest.mark.parametrize("concurrency", [2, 8, 64, 256, 1000])
@pytest.mark.parametrize("part_size", [2 * MIB, 8 * MIB, 640 * MIB, 5 * GIB])
def test_the_tail_stays_within_its_proven_bound(concurrency: int, part_size: int) -> None:
    size = 600 * part_size
    plan = plan_file(size, part_size=part_size, concurrency=concurrency)
    even = -(-size // part_size)
    d = 2 * min(concurrency, 256)
    assert plan.part_count - even <= 8 * d / 7 * math.log(part_size / MIB) + 2
    assert _has_tail(plan)


@pytest.mark.parametrize("concurrency", [2, 8, 64, 256])
@pytest.mark.parametrize("size", [10_000 * 8 * MIB, 1 << 40, 5 << 40, 20 << 40])
def test_automatic_part_sizes_leave_numbers_for_the_tail(size: int, concurrency: int) -> None:
    assert _has_tail(plan_file(size, concurrency=concurrency))


def test_the_tail_is_for_8_connections_by_default() -> None:
    assert plan_file(10 * GIB) == plan_file(10 * GIB, concurrency=8)


# 10,000 numbers less 2 × 8 × 12 + 4 for the tail of 8 connections.
ROOM_LEFT = 9804


@pytest.mark.parametrize("part_size", [8 * MIB, 9 * MIB, 100 * MIB, 5 * GIB])
def test_a_part_size_lasts_until_the_tail_would_run_out_of_numbers(part_size: int) -> None:
    size = ROOM_LEFT * part_size
    assert _largest(plan_file(size)) == part_size
    if part_size < 5 * GIB:
        assert _largest(plan_file(size + 1)) == part_size + MIB


def test_distinct_sizes_stay_few() -> None:
    for size in (10 * GIB, 5 << 40, 30 << 40):
        plan = plan_file(size, concurrency=64)
        assert len({part.size for part in plan.parts}) <= 120
        assert len(plan.to_text()) < 1000


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "part_size", "concurrency"),
    [
        (0, None, 8),
        (-1, None, 8),
        (MAX_OBJECT_SIZE + 1, None, 8),
        (1, MIN_PART_SIZE - 1, 8),
        (1, MAX_PART_SIZE + 1, 8),
        (1, 0, 8),
        (MAX_PART_COUNT * MIB + 1, MIB, 8),
        (1, None, 0),
    ],
)
def test_impossible_sizes_of_parts_are_refused(
    size: int, part_size: int | None, concurrency: int
) -> None:
    with pytest.raises(ConfigurationError):
        plan_file(size, part_size=part_size, concurrency=concurrency)


def test_a_too_small_part_size_is_answered_with_the_least_possible() -> None:
    size = MAX_PART_COUNT * MIB + 1
    with pytest.raises(ConfigurationError) as caught:
        plan_file(size, part_size=MIB)
    assert str(MIB + 1) in caught.value.next_step
    assert plan_file(size, part_size=MIB + 1).part_count <= MAX_PART_COUNT


# --- streams --------------------------------------------------------------------------

_STREAMS = st.builds(
    lambda part_size, expected, largest: plan_stream(
        part_size=part_size, expected_size=expected, largest_size=largest
    ),
    st.none() | st.integers(MIN_PART_SIZE, MAX_PART_SIZE),
    st.none() | st.integers(1, 2**29),
    st.integers(MIN_PART_SIZE, 2 * MAX_PART_SIZE),
)


@given(_STREAMS)
def test_plans_of_streams_are_open_and_use_every_part_number(plan: Plan) -> None:
    assert plan.is_open
    assert plan.size == 0
    assert plan.part_count == MAX_PART_COUNT
    assert read_plan(plan.to_text()) == plan


@given(_STREAMS, st.data())
def test_the_plan_of_a_stream_that_has_ended_is_sound(plan: Plan, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(plan.capacity, 3000 * _largest(plan))))
    closed = plan.closed(size)
    _assert_sound(closed)
    assert closed.size == size


@given(_STREAMS)
def test_sizes_of_streams_never_shrink(plan: Plan) -> None:
    sizes = [part.size for part in plan.parts]
    assert sizes == sorted(sizes)
    assert sizes[-1] <= MAX_PART_SIZE


@given(st.integers(MIN_PART_SIZE, MAX_PART_SIZE))
def test_no_part_is_larger_than_what_can_be_kept(largest: int) -> None:
    assert plan_stream(largest_size=largest).last_part.size == largest


def test_the_first_five_gigabytes_have_small_parts() -> None:
    plan = plan_stream(largest_size=MAX_PART_SIZE)
    assert {part.size for part in list(plan.closed(5 * 10**9).parts)[:-1]} == {5 * MIB}
    assert plan.runs[:3] == (Run(5 * MIB, 1024), Run(10 * MIB, 128), Run(20 * MIB, 128))


def test_ten_thousand_parts_come_near_the_limit_of_oss() -> None:
    plan = plan_stream(largest_size=MAX_PART_SIZE)
    assert plan.part(MAX_PART_COUNT).size == MAX_PART_SIZE
    assert plan.capacity > 0.79 * MAX_OBJECT_SIZE


def test_an_expected_size_reaches_the_limit_of_oss() -> None:
    plan = plan_stream(expected_size=MAX_OBJECT_SIZE, largest_size=MAX_PART_SIZE)
    assert plan.capacity == MAX_OBJECT_SIZE


@given(_SIZES)
def test_any_expected_size_fits(expected: int) -> None:
    plan = plan_stream(expected_size=expected, largest_size=MAX_PART_SIZE)
    assert plan.capacity >= expected


@given(st.integers(1 * GIB, 40 * TIB))
def test_parts_of_what_is_expected_are_about_those_of_a_file(expected: int) -> None:
    plan = plan_stream(expected_size=expected, largest_size=MAX_PART_SIZE)
    assert _largest(plan) <= 1.2 * _largest(plan_file(expected)) + MIB


def test_an_expected_size_decides_how_many_parts_come_before_the_first_doubling() -> None:
    plan = plan_stream(part_size=MIB, expected_size=100 * MIB, largest_size=4 * MIB)
    assert plan.runs == (Run(MIB, 100), Run(2 * MIB, 128), Run(4 * MIB, 9772))
    much = plan_stream(part_size=MIB, expected_size=9840 * MIB, largest_size=GIB)
    assert much.runs[:3] == (Run(MIB, 9840), Run(2 * MIB, 10), Run(4 * MIB, 10))
    most = plan_stream(part_size=MIB, expected_size=9999 * MIB, largest_size=GIB)
    assert most.runs == (Run(MIB, 9999), Run(2 * MIB, 1))


def test_more_than_expected_still_has_room() -> None:
    plan = plan_stream(expected_size=100 * GIB, largest_size=MAX_PART_SIZE)
    assert plan.capacity > 1 * TIB


def test_what_cannot_be_kept_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigurationError, match="of at most 12582912 bytes") as caught:
        plan_stream(expected_size=500 * GIB, largest_size=12 * MIB)
    assert "--spool" in caught.value.next_step
    assert plan_stream(expected_size=120_000 * MIB, largest_size=12 * MIB).capacity


def test_a_small_window_keeps_parts_small() -> None:
    plan = plan_stream(largest_size=12 * MIB)
    assert plan.part(MAX_PART_COUNT).size == 12 * MIB
    assert _largest(plan_stream(largest_size=MIB)) == MIB
    assert plan_stream(part_size=2 * MIB, largest_size=MIB).runs == (Run(2 * MIB, 10_000),)


@pytest.mark.parametrize(
    "numbers",
    [
        {"part_size": MIN_PART_SIZE - 1, "largest_size": MIB},
        {"part_size": MAX_PART_SIZE + 1, "largest_size": MIB},
        {"part_size": -1, "largest_size": MIB},
        {"part_size": -1, "expected_size": GIB, "largest_size": MIB},
        {"largest_size": MIN_PART_SIZE - 1},
    ],
)
def test_numbers_outside_of_the_limits(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="is not possible: OSS accepts"):
        plan_stream(**numbers)


@pytest.mark.parametrize("size", [0, MAX_OBJECT_SIZE + 1])
def test_impossible_expected_sizes_are_refused(size: int) -> None:
    with pytest.raises(ConfigurationError, match="cannot be expected"):
        plan_stream(expected_size=size, largest_size=MAX_PART_SIZE)


# --- packages -------------------------------------------------------------------------


def test_each_member_of_a_package_is_one_part() -> None:
    plan = plan_package([7, 7, 3 * GIB, 1], names_crc64=99)
    assert list(plan.parts) == [
        Part(1, 0, 7),
        Part(2, 7, 7),
        Part(3, 14, 3 * GIB),
        Part(4, 14 + 3 * GIB, 1),
    ]
    assert plan.size == 15 + 3 * GIB
    assert not plan.is_open
    assert not plan.is_single
    assert plan != plan_package([7, 7, 3 * GIB, 1], names_crc64=98)


def test_a_package_of_one_member_is_not_sent_as_a_file() -> None:
    assert not plan_package([7], names_crc64=99).is_single


@pytest.mark.parametrize("sizes", [[], [1, 0], [1, -1]])
def test_a_package_without_bytes_is_no_plan(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"empty|fewer"):
        plan_package(sizes, names_crc64=1)
