"""Parts cover the source exactly, within OSS's limits, and end together."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.plan import (
    MAX_OBJECT_SIZE,
    MAX_PART_COUNT,
    MAX_PART_SIZE,
    MAX_PUT_SIZE,
    MIN_PART_SIZE,
    Outlook,
    Part,
    PartPlan,
    plan_parts,
)

KIB, MIB, GIB = 2**10, 2**20, 2**30

# Spread over orders of magnitude: uniform numbers would nearly all be above 1 TB.
_SIZES = st.integers(0, 45).flatmap(lambda k: st.integers(2**k, min(2 ** (k + 1), MAX_OBJECT_SIZE)))
_CONCURRENCIES = st.sampled_from([1, 2, 3, 4, 8, 16, 33, 64, 256, 1000])


def _assert_sound(plan: PartPlan) -> None:
    parts = list(plan.parts)
    assert [part.number for part in parts] == list(range(1, len(plan) + 1))
    assert len(parts) == plan.part_count <= MAX_PART_COUNT
    assert parts[0].offset == 0
    assert all(b.offset == a.offset + a.size for a, b in pairwise(parts))
    assert parts[-1].offset + parts[-1].size == plan.size
    assert all(MIN_PART_SIZE <= part.size <= MAX_PART_SIZE for part in parts[:-1])
    assert 1 <= parts[-1].size <= MAX_PART_SIZE


def test_limits_are_those_of_oss() -> None:
    assert MIN_PART_SIZE == 102_400
    assert MAX_PART_SIZE == MAX_PUT_SIZE == 5_368_709_120
    assert MAX_PART_COUNT == 10_000
    assert MAX_OBJECT_SIZE == 53_687_091_200_000


@settings(max_examples=150, deadline=None)
@given(_SIZES, _CONCURRENCIES)
def test_automatic_plans_are_sound(size: int, concurrency: int) -> None:
    plan = plan_parts(size, concurrency=concurrency)
    _assert_sound(plan)
    assert plan.part_size % MIB == 0


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(MIN_PART_SIZE, MAX_PART_SIZE), _CONCURRENCIES)
def test_plans_with_a_given_part_size_are_sound(
    data: st.DataObject, part_size: int, concurrency: int
) -> None:
    size = data.draw(st.integers(1, part_size * MAX_PART_COUNT))
    plan = plan_parts(size, part_size=part_size, concurrency=concurrency)
    _assert_sound(plan)
    assert plan.part_size == part_size


@pytest.mark.parametrize("size", [MAX_OBJECT_SIZE, MAX_OBJECT_SIZE - 1, MAX_OBJECT_SIZE - 5 * GIB])
@pytest.mark.parametrize("concurrency", [1, 8, 256])
def test_the_largest_objects_use_the_last_part_number(size: int, concurrency: int) -> None:
    plan = plan_parts(size, concurrency=concurrency)
    _assert_sound(plan)
    assert MAX_PART_COUNT - 1 <= len(plan) <= MAX_PART_COUNT


@settings(max_examples=60, deadline=None)
@given(_SIZES, _CONCURRENCIES)
def test_a_part_is_found_by_its_number(size: int, concurrency: int) -> None:
    plan = plan_parts(size, concurrency=concurrency)
    parts = plan.parts
    assert parts[0] == plan.part(1)
    assert parts[-1] == plan.part(len(plan))
    assert parts[len(plan) // 2] == plan.part(len(plan) // 2 + 1)
    assert list(parts[-3:]) == list(parts)[-3:]
    assert Part(1, 0, parts[0].size) in parts


@pytest.mark.parametrize("number", [0, -1, 4])
def test_there_are_no_other_parts(number: int) -> None:
    plan = plan_parts(3 * MIB, part_size=MIB)
    with pytest.raises(IndexError):
        plan.part(number)


# --- the link and the credentials -----------------------------------------------------

_OUTLOOKS = st.builds(
    Outlook,
    connection_rate=st.none() | st.floats(1, 1e10),
    rtt_s=st.floats(0, 2),
    credential_life_s=st.floats(1, 43_200),
)
MBIT = 125_000


@settings(max_examples=150, deadline=None)
@given(_SIZES, _CONCURRENCIES, st.none() | st.integers(1, 256), _OUTLOOKS)
def test_plans_are_sound_whatever_the_outlook(
    size: int, concurrency: int, first: int | None, outlook: Outlook
) -> None:
    plan = plan_parts(size, concurrency=concurrency, first_concurrency=first, outlook=outlook)
    _assert_sound(plan)
    assert plan.part_size % MIB == 0
    assert PartPlan.from_text(plan.to_text()) == plan


@pytest.mark.parametrize(
    ("first", "rtt_s", "tail_concurrency"),
    [(8, 0.05, 16), (15, 0.05, 0), (None, 0.05, 0), (8, 0.001, 0)],
)
def test_parts_that_do_not_all_start_at_once_get_a_tail_where_the_link_is_far(
    first: int | None, rtt_s: float, tail_concurrency: int
) -> None:
    """Fifteen of 8 MiB over eight connections: seven would end long after the others."""
    plan = plan_parts(
        125_000_000, concurrency=16, first_concurrency=first, outlook=Outlook(rtt_s=rtt_s)
    )

    assert plan.part_size == 8 * MIB
    assert plan.tail_concurrency == tail_concurrency


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
    assert plan_parts(size, outlook=outlook).part_size == part_size


@pytest.mark.parametrize("life_s", [120, 300, 3000])
@pytest.mark.parametrize("rate", [None, 40 * KIB, MBIT, 25 * MBIT])
def test_a_part_fits_well_inside_one_credential(life_s: float, rate: float | None) -> None:
    plan = plan_parts(GIB, outlook=Outlook(connection_rate=rate, credential_life_s=life_s))
    assert plan.part_size / (rate or 32 * KIB) <= max(life_s / 4, MIB / (rate or 32 * KIB))


@pytest.mark.parametrize("life_s", [300, 3000])
def test_forty_gigabytes_over_1_mbit_fit_all_the_same(life_s: float) -> None:
    """10,000 parts ask for 4 MiB; the one connection left on such a link takes 34 s for it."""
    plan = plan_parts(40 * 10**9, outlook=Outlook(credential_life_s=life_s))
    assert plan.part_size == (4 * MIB if life_s < 3000 else 8 * MIB)
    assert plan.part_size / MBIT <= life_s / 4


def test_a_file_of_a_few_parts_occupies_all_connections() -> None:
    plan = plan_parts(40 * MIB, concurrency=16)
    assert (plan.part_size, plan.part_count) == (3 * MIB, 14)
    assert plan_parts(9 * MIB, concurrency=64).part_size == 2 * MIB, "but none is tiny"


# --- the tail -------------------------------------------------------------------------


def test_small_sources_are_one_part() -> None:
    assert plan_parts(1).is_single
    assert plan_parts(8 * MIB).is_single
    assert not plan_parts(8 * MIB + 1).is_single


def test_a_source_of_an_ordinary_size_has_parts_of_8_mib_before_the_tail() -> None:
    plan = plan_parts(10 * GIB)
    assert plan.part_size == 8 * MIB
    assert all(part.size == 8 * MIB for part in plan.parts[:1000])
    assert plan.parts[-1].size <= MIB


@settings(max_examples=100, deadline=None)
@given(st.integers(100 * MIB, 400 * GIB), st.sampled_from([2, 4, 8, 16, 64]))
def test_no_tail_part_is_larger_than_its_share_of_the_rest(size: int, concurrency: int) -> None:
    plan = plan_parts(size, concurrency=concurrency)
    if not plan.tail_concurrency:
        return
    for part in plan.parts[-200:]:
        share = (size - part.offset) // (2 * concurrency)
        assert part.size <= max(MIB, share)
        assert part.size > min(share * 7 // 8, plan.part_size) - 1 or part.number == len(plan)


@settings(max_examples=100, deadline=None)
@given(_SIZES, _CONCURRENCIES)
def test_parts_never_grow(size: int, concurrency: int) -> None:
    parts = plan_parts(size, concurrency=concurrency).parts
    assert all(a.size >= b.size for a, b in pairwise(parts))


@pytest.mark.parametrize(
    ("size", "part_size", "concurrency"),
    [
        (10 * GIB, None, 1),  # nothing else could end earlier
        (64 * MIB, None, 8),  # all start at once
        (64 * MIB, MIB, 8),  # they are small already
        (10_000 * 8 * MIB, 8 * MIB, 8),  # there is no number left
    ],
)
def test_there_is_no_tail_where_it_cannot_help(
    size: int, part_size: int | None, concurrency: int
) -> None:
    plan = plan_parts(size, part_size=part_size, concurrency=concurrency)
    assert plan.tail_concurrency == 0
    assert {part.size for part in plan.parts[:-1]} == {plan.part_size}


@pytest.mark.parametrize("concurrency", [2, 8, 64, 256])
@pytest.mark.parametrize("part_size", [2 * MIB, 8 * MIB, 640 * MIB, 5 * GIB])
def test_the_tail_stays_within_its_proven_bound(concurrency: int, part_size: int) -> None:
    size = 600 * part_size
    plan = plan_parts(size, part_size=part_size, concurrency=concurrency)
    even = -(-size // part_size)
    d = 2 * concurrency
    assert len(plan) - even <= 8 * d / 7 * math.log(part_size / MIB) + 2
    assert plan.tail_concurrency == min(concurrency, 256)


@pytest.mark.parametrize("concurrency", [2, 8, 64, 256])
@pytest.mark.parametrize("size", [10_000 * 8 * MIB, 1 << 40, 5 << 40, 20 << 40])
def test_automatic_part_sizes_leave_numbers_for_the_tail(size: int, concurrency: int) -> None:
    assert plan_parts(size, concurrency=concurrency).tail_concurrency == concurrency


def test_the_tail_is_for_8_connections_where_nobody_says() -> None:
    assert plan_parts(10 * GIB).tail_concurrency == 8


# 10,000 numbers less 2 × 8 × 11 + 4 for the tail of 8 connections.
ROOM_LEFT = 9820


@pytest.mark.parametrize("part_size", [8 * MIB, 9 * MIB, 100 * MIB, 5 * GIB])
def test_a_part_size_lasts_until_the_tail_would_run_out_of_numbers(part_size: int) -> None:
    size = ROOM_LEFT * part_size
    assert plan_parts(size).part_size == part_size
    if part_size < 5 * GIB:
        assert plan_parts(size + 1).part_size == part_size + MIB


def test_distinct_sizes_stay_few() -> None:
    for size in (10 * GIB, 5 << 40, 30 << 40):
        assert len({part.size for part in plan_parts(size, concurrency=64).parts}) <= 120


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
def test_impossible_wishes_are_refused(size: int, part_size: int | None, concurrency: int) -> None:
    with pytest.raises(ConfigurationError):
        plan_parts(size, part_size=part_size, concurrency=concurrency)


def test_a_too_small_part_size_is_answered_with_the_least_possible() -> None:
    size = MAX_PART_COUNT * MIB + 1
    with pytest.raises(ConfigurationError) as caught:
        plan_parts(size, part_size=MIB)
    assert str(MIB + 1) in caught.value.next_step
    assert len(plan_parts(size, part_size=MIB + 1)) <= MAX_PART_COUNT


# --- stored ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(_SIZES, _CONCURRENCIES)
def test_a_stored_plan_cuts_the_same_parts(size: int, concurrency: int) -> None:
    plan = plan_parts(size, concurrency=concurrency)
    again = PartPlan.from_text(plan.to_text())
    assert again == plan
    assert list(again.parts) == list(plan.parts)


def test_the_cutting_rule_of_version_1_never_changes() -> None:
    # Uploads under way were cut by it. A different rule needs a new version number.
    text = (
        '{"v":1,"size":100000001,"part_size":8388608,"tail_concurrency":4,"tail_min_size":1048576}'
    )
    plan = PartPlan.from_text(text)
    assert plan.to_text() == text
    # fmt: off
    assert [part.size // 65536 for part in plan.parts] == [
        128, 128, 128, 128, 120, 104, 96, 80, 72, 64, 56, 52, 44, 40, 32, 30, 26, 24, 20, 18,
        16, 16, 16, 16, 16, 16, 16, 16, 7,
    ]
    # fmt: on
    assert all(part.size % 65536 == 0 for part in plan.parts[:-1])


def test_a_newer_version_is_told_apart_from_garbage() -> None:
    with pytest.raises(UnsupportedState):
        PartPlan.from_text('{"v":2,"pieces":[]}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"v":1}',
        '{"v":true,"size":1,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":0,"size":1,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":"1","size":1,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":1,"size":"1","part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":1,"size":1.0,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":1,"size":0,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":1,"size":1,"part_size":1,"tail_concurrency":0,"tail_min_size":1048576}',
        '{"v":1,"size":1,"part_size":1048576,"tail_concurrency":-1,"tail_min_size":1048576}',
        '{"v":1,"size":1,"part_size":1048576,"tail_concurrency":9999,"tail_min_size":1048576}',
        '{"v":1,"size":1,"part_size":1048576,"tail_concurrency":8,"tail_min_size":1}',
        '{"v":1,"size":1,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576,"x":1}',
        '{"v":1,"size":53687091200000,"part_size":102400,"tail_concurrency":8,'
        '"tail_min_size":102400}',
        '{"v":1,"size":53687091200000,"part_size":5368709120,"tail_concurrency":256,'
        '"tail_min_size":102400}',
        '{"v":1,"size":1,"size":1,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
    ],
)
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(MalformedDocument):
        PartPlan.from_text(text)


@settings(max_examples=200)
@given(st.text(max_size=60) | st.text('{}":,v1size_part0', max_size=60))
def test_plan_fuzz_ends_in_a_refusal(text: str) -> None:
    with pytest.raises((MalformedDocument, UnsupportedState)):
        PartPlan.from_text(text)


def test_ten_thousand_parts_take_milliseconds() -> None:
    started = time.process_time()
    parts = list(plan_parts(MAX_OBJECT_SIZE).parts)
    assert time.process_time() - started < 0.2  # 12 ms when nothing else runs
    assert len(parts) == MAX_PART_COUNT
