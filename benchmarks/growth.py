"""Cost against size and against the number of parts: lines, or something is quadratic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import GB, Bench, Section, Table
from benchmarks.contenders import Task, by_name
from benchmarks.measure import Run, alternating, fit_line, largest_deviation, median
from benchmarks.plots import lines

__all__ = ["measure"]

_SMALL_PART = 100 * 1024
_Points = list[tuple[float, float]]


def measure(bench: Bench, section: Section) -> None:
    """Grow the file, then the number of parts."""
    if bench.wants(section.name, "size"):
        _grow_size(bench, section)
    if bench.wants(section.name, "parts"):
        _grow_parts(bench, section)


def _grow_size(bench: Bench, section: Section) -> None:
    table = Table(
        "vodup (library), http, 16 connections, part size automatic, sparse files",
        ["GB", "CPU s", "CPU-s/GB", "GB/s", "peak MiB", "above import"],
    )
    runs = _grow(bench, table, bench.scale.growth_sizes, lambda size: size, part_size=0)
    cpu: _Points = []
    memory: _Points = []
    for size, taken in runs.items():
        cpu_s, above, wall_s, peak = _medians(taken)
        cpu.append((size / GB, cpu_s))
        memory.append((size / GB, above))
        row = [f"{size / GB:g}", f"{cpu_s:.2f}", f"{cpu_s / size * GB:.2f}"]
        table.rows.append([*row, f"{size / GB / wall_s:.2f}", f"{peak:.0f}", f"{above:.1f}"])
    _conclude(bench, section, table, "size", "GB", cpu, memory)


def _grow_parts(bench: Bench, section: Section) -> None:
    table = Table(
        "vodup (library), http, 16 connections, parts of 100 KiB",
        ["parts", "CPU s", "CPU ms a part", "parts/s", "above import"],
    )
    counts = bench.scale.part_counts
    runs = _grow(bench, table, counts, lambda count: count * _SMALL_PART, part_size=_SMALL_PART)
    cpu: _Points = []
    memory: _Points = []
    for count, taken in runs.items():
        cpu_s, above, wall_s, _ = _medians(taken)
        cpu.append((count, cpu_s))
        memory.append((count, above))
        row = [f"{count:,}", f"{cpu_s:.2f}", f"{cpu_s / count * 1000:.2f}"]
        table.rows.append([*row, f"{count / wall_s:.0f}", f"{above:.1f}"])
    _conclude(bench, section, table, "parts", "parts", cpu, memory)


def _grow(
    bench: Bench,
    table: Table,
    steps: Sequence[int],
    size_of: Callable[[int], int],
    *,
    part_size: int,
) -> dict[int, list[Run]]:
    """All steps in one round, then again; only those that succeeded."""
    paths: dict[int, Path] = {step: bench.make_sparse_file(size_of(step)) for step in steps}
    bench.track.sink.reset()

    def run(step: int) -> Run:
        bench.say(f"growth: {step:,}")
        task = Task((paths[step],), connections=16, part_size=part_size, timeout_s=600)
        return bench.track.run(by_name("vodup (library)"), task)

    note = lambda step, error: table.notes.append(f"{step:,}: {error}.")  # noqa: E731
    runs = alternating(steps, bench.scale.growth_rounds, run, note)
    for path in paths.values():
        path.unlink()
    return {step: taken for step, taken in runs.items() if taken}


def _medians(runs: Sequence[Run]) -> tuple[float, float, float, float]:
    """CPU seconds, MiB above import, wall seconds, peak MiB."""
    values = (
        (run.upload_cpu_s for run in runs),
        (run.above_import_mib or 0.0 for run in runs),
        (run.upload_wall_s for run in runs),
        (run.peak_kib / 1024 for run in runs),
    )
    cpu_s, above, wall_s, peak = (median(column) or 0.0 for column in values)
    return cpu_s, above, wall_s, peak


def _conclude(
    bench: Bench,
    section: Section,
    table: Table,
    name: str,
    unit: str,
    cpu: _Points,
    memory: _Points,
) -> None:
    data: dict[str, Any] = {"cpu_s": cpu, "above_import_mib": memory}
    guide: _Points = []
    table.notes.append(f"Medians of {bench.scale.growth_rounds} alternating rounds.")
    if len(cpu) > 2:
        data |= _fits(cpu, memory)
        guide = data["cpu_line"]
        intercept, slope, r2 = data["cpu_fit"]
        table.notes.append(
            f"CPU = {intercept:.2f} s + {slope * 1000:.3f} ms × {unit}, R² = {r2:.4f} (1: a "
            f"straight line); the largest deviation from it is {data['cpu_deviation_s']:.2f} s. "
            f"Memory grows by {data['memory_fit'][1]:.4f} MiB per {unit}."
        )
    section.add(
        name,
        table,
        data,
        {
            f"growth-{name}-cpu.svg": lines(
                f"CPU seconds against {unit}", unit, "CPU s", {"vodup": cpu}, guide
            ),
            f"growth-{name}-memory.svg": lines(
                f"Memory against {unit}", unit, "MiB above import", {"vodup": memory}
            ),
        },
    )


def _fits(cpu: _Points, memory: _Points) -> dict[str, Any]:
    intercept, slope, r2 = fit_line(cpu)
    ends = (min(cpu)[0], max(cpu)[0])
    return {
        "cpu_fit": (intercept, slope, r2),
        "cpu_line": [(x, intercept + slope * x) for x in ends],
        "cpu_deviation_s": largest_deviation(cpu, intercept, slope),
        "memory_fit": fit_line(memory),
    }
