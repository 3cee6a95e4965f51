"""A plan covers the source exactly, within OSS's limits, and is stored as one short line."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.plan import (
    MAX_MEMBER_COUNT,
    MAX_OBJECT_SIZE,
    MAX_PART_COUNT,
    MAX_PART_SIZE,
    MAX_PUT_SIZE,
    MIN_PART_SIZE,
    Part,
    Plan,
    Run,
    read_plan,
)

KIB, MIB, GIB = 2**10, 2**20, 2**30

# Whole KiB and MiB are written shorter; both are drawn often.
_PART_SIZES = (
    st.integers(MIN_PART_SIZE, MAX_PART_SIZE)
    | st.integers(100, 5 * MIB).map(lambda size: size * KIB)
    | st.integers(1, 5 * KIB).map(lambda size: size * MIB)
)
_RUNS = st.lists(st.builds(Run, _PART_SIZES, st.integers(1, 400)), min_size=1, max_size=25)
_OPEN = _RUNS.map(lambda runs: Plan(tuple(runs), is_open=True))
_CLOSED = st.builds(
    lambda runs, last: Plan((*runs, Run(last, 1))), _RUNS, st.integers(1, MAX_PART_SIZE)
)
_PACKAGES = st.builds(
    lambda runs, names: Plan(tuple(runs), names_crc64=names),
    st.lists(st.builds(Run, st.integers(1, 2**40), st.integers(1, 3)), min_size=1, max_size=40),
    st.integers(0, 2**64 - 1),
)
_PLANS = _OPEN | _CLOSED | _PACKAGES


def plan_of(*runs: tuple[int, int], is_open: bool = False) -> Plan:
    """A plan of runs given as sizes and counts."""
    return Plan(tuple(Run(size, count) for size, count in runs), is_open=is_open)


def test_limits_are_those_of_oss() -> None:
    assert MIN_PART_SIZE == 102_400
    assert MAX_PART_SIZE == MAX_PUT_SIZE == 5_368_709_120
    assert MAX_PART_COUNT == 10_000
    assert MAX_OBJECT_SIZE == 53_687_091_200_000


# --- parts ----------------------------------------------------------------------------


@given(_PLANS)
def test_parts_cover_the_source_without_gaps(plan: Plan) -> None:
    parts = list(plan.parts)
    assert [part.number for part in parts] == list(range(1, plan.part_count + 1))
    assert parts[0].offset == 0
    assert all(b.offset == a.offset + a.size for a, b in pairwise(parts))
    assert parts[-1].offset + parts[-1].size == plan.capacity
    assert plan.size == (0 if plan.is_open else plan.capacity)


@given(_PLANS, st.data())
def test_a_part_is_found_by_its_number(plan: Plan, data: st.DataObject) -> None:
    parts = list(plan.parts)
    number = data.draw(st.integers(1, plan.part_count))
    assert plan.part(number) == parts[number - 1]


def test_parts_are_numbered_from_one_and_join() -> None:
    plan = plan_of((3 * MIB, 2), (2 * MIB, 1), (1, 1))
    assert list(plan.parts) == [
        Part(1, 0, 3 * MIB),
        Part(2, 3 * MIB, 3 * MIB),
        Part(3, 6 * MIB, 2 * MIB),
        Part(4, 8 * MIB, 1),
    ]
    assert plan.last_part == Part(4, 8 * MIB, 1)


@pytest.mark.parametrize("number", [0, -1, 4])
def test_there_are_no_other_parts(number: int) -> None:
    plan = plan_of((MIB, 3))
    with pytest.raises(IndexError, match=f"^part {number} is not one of 3$"):
        plan.part(number)


def test_plans_with_the_same_parts_are_equal() -> None:
    plan = plan_of((MIB, 1), (MIB, 2), (2 * MIB, 1))
    assert plan == plan_of((MIB, 3), (2 * MIB, 1))
    assert plan.runs == (Run(MIB, 3), Run(2 * MIB, 1))
    assert hash(plan) == hash(plan_of((MIB, 3), (2 * MIB, 1)))
    assert plan != plan_of((MIB, 3), (2 * MIB, 1), is_open=True)
    assert "_offsets" not in repr(plan)


@pytest.mark.parametrize(
    ("plan", "is_single"),
    [
        (plan_of((1, 1)), True),
        (plan_of((MIB, 1)), True),
        (plan_of((MIB, 2)), False),
        (plan_of((MIB, 1), is_open=True), False),
        (Plan((Run(MIB, 1),), names_crc64=0), False),
    ],
)
def test_one_part_of_known_size_is_single(plan: Plan, is_single: bool) -> None:
    assert plan.is_single is is_single


def test_ten_thousand_parts_take_milliseconds() -> None:
    started = time.process_time()
    plan = plan_of((MAX_PART_SIZE, MAX_PART_COUNT))
    assert time.process_time() - started < 0.02  # 20 µs when nothing else runs
    assert len(list(plan.parts)) == MAX_PART_COUNT
    assert time.process_time() - started < 0.2  # 7 ms


# --- limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        plan_of((MIN_PART_SIZE, MAX_PART_COUNT - 1), (1, 1)),
        plan_of((MAX_PART_SIZE, MAX_PART_COUNT)),
        plan_of((MIN_PART_SIZE, 1), (MAX_PART_SIZE, 1), is_open=True),
        Plan((Run(1, 2), Run(MAX_OBJECT_SIZE, 1)), names_crc64=2**64 - 1),
        Plan((Run(1, MAX_MEMBER_COUNT),), names_crc64=0),
    ],
)
def test_plans_reach_the_limits(plan: Plan) -> None:
    assert read_plan(plan.to_text()) == plan


@pytest.mark.parametrize(
    ("runs", "is_open", "names_crc64", "message"),
    [
        ([], False, None, "no run of it is empty"),
        ([(MIB, 0)], False, None, "no run of it is empty"),
        ([(MIB, 2), (2 * MIB, -1)], False, None, "no run of it is empty"),
        ([(0, 1)], False, None, "fewer than 102400"),
        ([(-1, 1)], False, None, "fewer than 102400"),
        ([(MIN_PART_SIZE - 1, 2)], False, None, "fewer than 102400"),
        ([(MIN_PART_SIZE - 1, 1), (MIB, 1)], False, None, "fewer than 102400"),
        ([(MIN_PART_SIZE - 1, 1)], True, None, "fewer than 102400"),
        ([(MAX_PART_SIZE + 1, 1)], False, None, "more than 5368709120"),
        ([(MAX_PART_SIZE + 1, 1), (MIB, 1)], False, None, "more than 5368709120"),
        ([(MIB, MAX_PART_COUNT), (1, 1)], False, None, "10001 parts, more than 10000"),
        ([(0, 1), (1, 1)], False, 1, "fewer than 1 "),
        ([(MAX_OBJECT_SIZE + 1, 1)], False, 1, "more than 53687091200000"),
        ([(1, MAX_MEMBER_COUNT + 1)], False, 1, "100001 parts, more than 100000"),
        ([(MIB, 1)], True, 1, "a package is complete"),
        ([(MIB, 1)], False, -1, "64 bits"),
        ([(MIB, 1)], False, 2**64, "64 bits"),
    ],
)
def test_parts_outside_of_the_limits_are_no_plan(
    runs: list[tuple[int, int]], is_open: bool, names_crc64: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(tuple(Run(*run) for run in runs), is_open=is_open, names_crc64=names_crc64)


# --- the end becomes known ------------------------------------------------------------


@given(_OPEN, st.data())
def test_closing_keeps_every_part_that_was_begun(plan: Plan, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(plan.capacity, MAX_OBJECT_SIZE)))
    closed = plan.closed(size)
    assert closed.size == size
    assert not closed.is_open
    *begun, last = closed.parts
    assert begun == list(plan.parts)[: len(begun)]
    open_last = plan.part(last.number)
    assert (last.offset, min(last.size, open_last.size)) == (open_last.offset, last.size)
    assert closed.closed(size) == closed


@given(_OPEN, st.data())
def test_an_end_between_two_parts_cuts_none(plan: Plan, data: st.DataObject) -> None:
    part = plan.part(data.draw(st.integers(1, plan.part_count)))
    closed = plan.closed(part.offset + part.size)
    assert closed.last_part == part
    assert plan.closed(part.offset + 1).last_part == Part(part.number, part.offset, 1)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "The source is empty"),
        (-1, "The source is empty"),
        (3 * MIB + 1, f"^{3 * MIB + 1} bytes do not fit into 3 parts"),
        (MAX_OBJECT_SIZE + 1, "more than an OSS object can have"),
    ],
)
def test_an_end_that_the_parts_do_not_reach_is_refused(size: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_of((MIB, 3), is_open=True).closed(size)


# --- as text --------------------------------------------------------------------------


@given(_PLANS)
def test_a_stored_plan_has_the_same_parts(plan: Plan) -> None:
    text = plan.to_text()
    again = read_plan(text)
    assert again == plan
    assert again.to_text() == text
    assert list(again.parts) == list(plan.parts)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (plan_of((1, 1)), "v1 1"),
        (plan_of((8 * MIB, 12), (7 * MIB, 1), (6656 * KIB, 3), (77, 1)), "v1 8M*12 7M 6656K*3 77"),
        (plan_of((102_401, 2), (GIB, 1)), "v1 102401*2 1024M"),
        (plan_of((5 * MIB, 1024), (10 * MIB, 8976), is_open=True), "v1 5M*1024 10M*8976 open"),
        (Plan((Run(7, 2), Run(9, 1)), names_crc64=2**64 - 1), f"v1 7*2 9 names={2**64 - 1}"),
        (Plan((Run(KIB, 1),), names_crc64=0), "v1 1K names=0"),
    ],
)
def test_a_plan_is_stored_as_a_short_line(plan: Plan, text: str) -> None:
    assert plan.to_text() == text
    assert read_plan(text) == plan


def test_a_package_of_the_largest_size_can_be_read_again() -> None:
    sizes = range(MAX_PART_SIZE, MAX_PART_SIZE + MAX_MEMBER_COUNT)
    plan = Plan(tuple(Run(size, 1) for size in sizes), names_crc64=2**64 - 1)
    assert read_plan(plan.to_text()) == plan


@pytest.mark.parametrize("text", ["v2 8M", "v2", "v10 {}", "v999999999 anything"])
def test_a_newer_version_is_recognised(text: str) -> None:
    version = text.split()[0].removeprefix("v")
    with pytest.raises(UnsupportedState) as caught:
        read_plan(text)
    assert caught.value.message == f"The plan of parts has version {version}; this is 1."


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "v1",
        "v1 ",
        "v1  8M",
        "v1 8M ",
        " v1 8M",
        "v1 8M\n",
        "v1\t8M",
        "v0 8M",
        "v01 8M",
        "v-1 8M",
        "V1 8M",
        "1 8M",
        "8M",
        "v1 open",
        "v1 open 8M",
        "v1 8M open open",
        "v1 8M closed",
        "v1 names=1",
        "v1 names=1 8M",
        "v1 8M open names=1",
        "v1 8M names=1 open",
        "v1 8M names=",
        "v1 8M names=-1",
        "v1 8M names=01",
        "v1 8M names=18446744073709551616",
        "v1 8M names=99999999999999999999999",
        "v1 0",
        "v1 0M",
        "v1 -8M",
        "v1 +8M",
        "v1 08M",
        "v1 8m",
        "v1 8G",
        "v1 8.5M",
        "v1 8MM",
        "v1 8M*",
        "v1 8M*0",
        "v1 8M*1",
        "v1 8M*02",
        "v1 8M*-2",
        "v1 8M*2*2",
        "v1 8M*10001",
        "v1 8M*9999999",
        "v1 99999999999999M",
        "v1 999999999999999999999999999999",
        "v1 8M 8M",
        "v1 1024K",
        "v1 1048576",
        "v1 1K 8M",
        "v1 5121M",
        "v1 99K*2",
        "v1 99K open",
        "v1 \u0668M",
        "v1 8\u2006M",
        '{"v":1,"size":1,"part_size":1048576,"tail_concurrency":0,"tail_min_size":1048576}',
        "v1 8M" + " " * (3 * MIB),
        "v1" + " 1 2" * MIB + " names=1",
        "v1" + " 1 2" * 60_000 + " names=1",
    ],
)
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(MalformedDocument, match=r"^it is not a plan of parts$"):
        read_plan(text)


@settings(max_examples=300)
@given(st.text(max_size=40) | st.text("v10 8KM*names=open", max_size=40).map("v1 {}".format))
def test_any_text_is_a_plan_or_refused(text: str) -> None:
    try:
        plan = read_plan(text)
    except (MalformedDocument, UnsupportedState):
        return
    assert plan.to_text() == text


@settings(max_examples=200)
@given(_PLANS, st.data())
def test_a_damaged_text_is_refused_or_another_plan_within_the_limits(
    plan: Plan, data: st.DataObject
) -> None:
    text = plan.to_text()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.sampled_from("0123456789*KM v=x")) + text[at + 1 :]
    try:
        again = read_plan(damaged)
    except (MalformedDocument, UnsupportedState):
        return
    assert again.to_text() == damaged
    assert again.part_count <= MAX_MEMBER_COUNT
