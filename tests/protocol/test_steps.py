"""Plans of streams: parts that join, grow, and reach as far as OSS does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.plan import MAX_OBJECT_SIZE, MAX_PART_COUNT, MAX_PART_SIZE, plan_parts
from uploader.protocol.steps import StepPlan, plan_steps, read_plan

MIB = 1024 * 1024
GIB = 1024 * MIB
TIB = 1024 * GIB

part_sizes = st.integers(100 * 1024, MAX_PART_SIZE)
plans = st.builds(
    lambda a, b, first, step: StepPlan(min(a, b), max(a, b), first, step),
    part_sizes,
    part_sizes,
    st.integers(1, 2000),
    st.integers(1, 500),
)


@given(plans, st.data())
def test_closed_parts_cover_the_size_without_gaps(plan: StepPlan, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(plan.capacity, 3000 * plan.part_size)))
    closed = plan.closed(size)
    end = 0
    for part in closed.parts:
        assert part.offset == end
        assert 0 < part.size <= MAX_PART_SIZE
        end += part.size
    assert end == size
    assert len(closed.parts) == closed.part_count <= MAX_PART_COUNT
    assert closed.parts[-1] == closed.part(closed.part_count)


@given(plans, st.integers(1, MAX_PART_COUNT))
def test_closing_changes_no_part_but_the_last(plan: StepPlan, number: int) -> None:
    part = plan.part(number)
    closed = plan.closed(part.offset + part.size)
    assert closed.part(number) == part
    assert closed.part_count == number
    if number > 1:
        assert closed.part(number - 1) == plan.part(number - 1)


@given(plans)
def test_sizes_never_shrink(plan: StepPlan) -> None:
    sizes = [part.size for part in plan.parts]
    assert sizes == sorted(sizes)
    assert sizes[-1] <= plan.largest_size


@given(plans)
def test_a_plan_survives_as_text(plan: StepPlan) -> None:
    assert read_plan(plan.to_text()) == plan
    assert read_plan(plan.closed(plan.capacity).to_text()) == plan.closed(plan.capacity)


def test_the_first_five_gigabytes_have_small_parts() -> None:
    plan = plan_steps(largest_size=MAX_PART_SIZE)
    assert {part.size for part in plan.closed(5 * 10**9).parts[:-1]} == {5 * MIB}


def test_ten_thousand_parts_come_near_the_limit_of_oss() -> None:
    plan = plan_steps(largest_size=MAX_PART_SIZE)
    assert plan.part(MAX_PART_COUNT).size == MAX_PART_SIZE
    assert plan.capacity > 0.79 * MAX_OBJECT_SIZE


def test_an_expected_size_reaches_the_limit_of_oss() -> None:
    plan = plan_steps(expected_size=MAX_OBJECT_SIZE, largest_size=MAX_PART_SIZE)
    assert plan.capacity == MAX_OBJECT_SIZE


@given(st.integers(1, MAX_OBJECT_SIZE))
def test_whatever_is_expected_fits(expected: int) -> None:
    plan = plan_steps(expected_size=expected, largest_size=MAX_PART_SIZE)
    assert plan.capacity >= expected


@given(st.integers(1 * GIB, 40 * TIB))
def test_parts_of_what_is_expected_are_about_those_of_a_file(expected: int) -> None:
    plan = plan_steps(expected_size=expected, largest_size=MAX_PART_SIZE)
    last = plan.closed(expected).part(1)
    assert last.size <= 1.2 * plan_parts(expected).part_size + MIB


def test_more_than_expected_still_has_room() -> None:
    plan = plan_steps(expected_size=100 * GIB, largest_size=MAX_PART_SIZE)
    assert plan.capacity > 1 * TIB


def test_what_cannot_be_kept_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigurationError, match="do not fit") as caught:
        plan_steps(expected_size=500 * GIB, largest_size=12 * MIB)
    assert "--spool" in caught.value.next_step


def test_a_small_window_keeps_parts_small() -> None:
    plan = plan_steps(largest_size=12 * MIB)
    assert plan.part(MAX_PART_COUNT).size == 12 * MIB
    assert plan_steps(largest_size=MIB).part_size == MIB


@pytest.mark.parametrize("number", [0, -1, 4])
def test_no_part_beyond_the_end(number: int) -> None:
    plan = StepPlan(MIB, MIB).closed(2 * MIB + 1)
    with pytest.raises(IndexError):
        plan.part(number)


def test_the_parts_are_a_sequence() -> None:
    parts = StepPlan(MIB, MIB).closed(2 * MIB + 1).parts
    assert [part.number for part in parts] == [1, 2, 3]
    assert parts[-1].size == 1
    assert [part.offset for part in parts[1:]] == [MIB, 2 * MIB]


@pytest.mark.parametrize(
    "changes",
    [{"part_size": 1}, {"largest_size": MIB - 1}, {"first_count": 0}, {"step_count": 0},
     {"size": -1}, {"size": 10**15}, {"part_size": 1.0 * MIB}],
)  # fmt: skip
def test_numbers_outside_of_the_limits(changes: dict) -> None:
    numbers = {"part_size": MIB, "largest_size": 2 * MIB} | changes
    with pytest.raises(ConfigurationError):
        StepPlan(**numbers)


@pytest.mark.parametrize("size", [0, MAX_OBJECT_SIZE + 1])
def test_sizes_nobody_can_expect(size: int) -> None:
    with pytest.raises(ConfigurationError, match="cannot be expected"):
        plan_steps(expected_size=size, largest_size=MAX_PART_SIZE)


@pytest.mark.parametrize("text", ['{"steps":1}', '{"steps":0,"part_size":1}', "[]", "x", "{}"])
def test_other_text_is_no_plan(text: str) -> None:
    with pytest.raises(MalformedDocument):
        read_plan(text)


def test_a_newer_plan_is_left_alone() -> None:
    with pytest.raises(UnsupportedState):
        read_plan('{"steps":2,"part_size":1}')


def test_a_plan_of_a_file_is_read_too() -> None:
    plan = plan_parts(100 * MIB)
    assert read_plan(plan.to_text()) == plan
