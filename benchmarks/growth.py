"""Cost against size and against the number of parts: lines, or something is quadratic."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bench import GB, Bench, Section, Table
from benchmarks.contenders import Task, by_name
from benchmarks.measure import Failed, Run, fit_line
from benchmarks.plots import lines

__all__ = ["measure"]

_SMALL_PART = 100 * 1024
_Points = list[tuple[float, float]]


def measure(bench: Bench) -> Section:
    """Grow the file, then the number of parts."""
    section = Section("growth", "Growth with size and parts")
    _grow_size(bench, section)
    _grow_parts(bench, section)
    return section


def _grow_size(bench: Bench, section: Section) -> None:
    table = Table(
        "vodup (library), http, 8 connections, part size automatic, sparse files",
        ["GB", "CPU s", "GB/s", "peak MiB", "above import"],
    )
    cpu: _Points = []
    memory: _Points = []
    for size in bench.scale.growth_sizes:
        bench.say(f"growth: {size / GB:g} GB")
        path = bench.make_sparse_file(size)
        run = _run(bench, Task((path,), part_size=0, timeout_s=600), table)
        path.unlink()
        if run is None:
            break
        above = run.above_import_mib or 0.0
        cpu.append((size / GB, run.upload_cpu_s))
        memory.append((size / GB, above))
        table.rows.append(
            [
                f"{size / GB:g}",
                f"{run.upload_cpu_s:.2f}",
                f"{size / GB / run.upload_wall_s:.2f}",
                f"{run.peak_kib / 1024:.0f}",
                f"{above:.1f}",
            ]
        )
    _conclude(section, table, "size", "GB", cpu, memory)


def _grow_parts(bench: Bench, section: Section) -> None:
    table = Table(
        "vodup (library), http, 8 connections, parts of 100 KiB",
        ["parts", "CPU s", "CPU ms a part", "parts/s", "above import"],
    )
    cpu: _Points = []
    memory: _Points = []
    for count in bench.scale.part_counts:
        bench.say(f"growth: {count} parts")
        path = bench.make_sparse_file(count * _SMALL_PART)
        run = _run(bench, Task((path,), part_size=_SMALL_PART, timeout_s=600), table)
        path.unlink()
        if run is None:
            break
        above = run.above_import_mib or 0.0
        cpu.append((count, run.upload_cpu_s))
        memory.append((count, above))
        table.rows.append(
            [
                f"{count:,}",
                f"{run.upload_cpu_s:.2f}",
                f"{run.upload_cpu_s / count * 1000:.2f}",
                f"{count / run.upload_wall_s:.0f}",
                f"{above:.1f}",
            ]
        )
    _conclude(section, table, "parts", "parts", cpu, memory)


def _run(bench: Bench, task: Task, table: Table) -> Run | None:
    try:
        return bench.track.run(by_name("vodup (library)"), task)
    except Failed as error:
        table.notes.append(f"Stopped: {error}.")
        return None


def _conclude(
    section: Section, table: Table, name: str, unit: str, cpu: _Points, memory: _Points
) -> None:
    data = {"cpu_s": cpu, "above_import_mib": memory, **_fits(cpu, memory)}
    if len(cpu) > 2:
        intercept, slope, r2 = data["cpu_fit"]
        table.notes.append(
            f"CPU = {intercept:.2f} s + {slope * 1000:.3f} ms × {unit}, R² = {r2:.4f} "
            f"(1: a straight line). Memory grows by {data['memory_fit'][1]:.4f} MiB per {unit}."
        )
    section.tables.append(table)
    section.data[name] = data
    section.plots[f"growth-{name}-cpu.svg"] = lines(
        f"CPU seconds against {unit}", unit, "CPU s", {"vodup": cpu}
    )
    section.plots[f"growth-{name}-memory.svg"] = lines(
        f"Memory against {unit}", unit, "MiB above import", {"vodup": memory}
    )


def _fits(cpu: Sequence[tuple[float, float]], memory: Sequence[tuple[float, float]]) -> dict:
    if len(cpu) < 3:
        return {}
    return {"cpu_fit": fit_line(cpu), "memory_fit": fit_line(memory)}
