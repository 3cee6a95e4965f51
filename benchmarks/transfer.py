"""One file on one machine: everybody side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import GB, MB, Bench, Section, Table, make_cold
from benchmarks.contenders import CONTENDERS, Contender, Task
from benchmarks.measure import Run, alternating, median
from benchmarks.plots import bars

__all__ = ["measure"]

_COLUMNS = [
    "", "checked", "MB", "GB/s", "CPU-s/GB", "× curl", "process CPU s", "peak MiB", "above import",
    "switches",
]  # fmt: skip
_NOTES = [
    "GB/s and CPU-s/GB: the upload alone, after a first tiny one, for libraries; the whole "
    "process for commands. Process CPU: start, imports and all. Above import: peak RSS above "
    "what was resident before the first byte. Switches: voluntary + involuntary, of the upload.",
    "Checked: compares a CRC-64 of what it sent with the server's. The others do not look.",
]
_SLOW_LIMIT = 2 * GB
"""Contenders at several CPU seconds a gigabyte are not asked for more."""


@dataclass(frozen=True, slots=True)
class _Cell:
    size: int
    scheme: str
    connections: int
    temperature: str
    rounds: int

    @property
    def title(self) -> str:
        size = f"{self.size / GB:g} GB" if self.size >= GB else f"{self.size / MB:g} MB"
        return f"{self.scheme}, {size}, {self.connections} connections, {self.temperature} file"


def measure(bench: Bench) -> Section:
    """Run every cell of the scale over http and https."""
    section = Section("transfer", "One file, one machine")
    section.data["cells"] = []
    for size, connections, temperature, rounds in bench.scale.cells:
        for scheme in ("http", "https"):
            cell = _Cell(size, scheme, connections, temperature, rounds)
            bench.say(f"transfer: {cell.title}")
            _measure_cell(bench, cell, section)
    return section


def _measure_cell(bench: Bench, cell: _Cell, section: Section) -> None:
    table = Table(cell.title, _COLUMNS, notes=list(_NOTES) if not section.tables else [])
    contenders = [c for c in CONTENDERS if cell.scheme in c.schemes and _takes_part(c, cell)]
    bench.track.sink.reset()
    cpu_before = bench.track.sink.stats()["cpu_s"]
    runs = alternating(
        contenders,
        cell.rounds,
        lambda contender: _run(bench, contender, cell),
        lambda contender, error: table.notes.append(f"{contender.name}: {error}."),
    )
    stats = bench.track.sink.stats()
    sink_cost = (stats["cpu_s"] - cpu_before) / max(stats["body_bytes"] / GB, 1e-9)
    table.notes.append(
        f"Medians of {cell.rounds} alternating rounds. The sink itself: {sink_cost:.2f} CPU-s/GB, "
        f"{stats['rss_kib'] / 1024:.0f} MiB."
    )
    figures = {c.name: _figures(c, runs[c], _size_for(bench, c, cell)) for c in contenders}
    _fill(table, contenders, figures)
    section.tables.append(table)
    section.data["cells"].append(
        {
            "size": cell.size,
            "scheme": cell.scheme,
            "connections": cell.connections,
            "temperature": cell.temperature,
            "sink_cpu_s_per_gb": sink_cost,
            "contenders": figures,
        }
    )
    shown = [(name, f["cpu_s_per_gb"]) for name, f in figures.items() if f["rounds"]]
    name = f"cpu-{cell.scheme}-{cell.size // MB}MB-c{cell.connections}-{cell.temperature}.svg"
    section.plots[name] = bars(f"Client CPU seconds per GB: {cell.title}", shown)


def _takes_part(contender: Contender, cell: _Cell) -> bool:
    return not (contender.is_slow and cell.size > _SLOW_LIMIT)


def _size_for(bench: Bench, contender: Contender, cell: _Cell) -> int:
    return cell.size // (bench.scale.slow_share if contender.is_slow else 1)


def _run(bench: Bench, contender: Contender, cell: _Cell) -> Run:
    path = bench.make_file(_size_for(bench, contender, cell))
    _set_temperature(path, cell.temperature)
    task = Task((path,), scheme=cell.scheme, connections=cell.connections)
    return bench.track.run(contender, task)


def _set_temperature(path: Path, temperature: str) -> None:
    if temperature == "cold":
        make_cold(path)
        return
    with path.open("rb") as file:
        while file.read(16 * 2**20):
            pass


def _figures(contender: Contender, runs: Sequence[Run], size: int) -> dict[str, Any]:
    gigabytes = size / GB
    above = [run.above_import_mib for run in runs]
    return {
        "rounds": len(runs),
        "size": size,
        "is_checked": contender.is_checked,
        "gb_per_s": median(gigabytes / run.upload_wall_s for run in runs),
        "cpu_s_per_gb": median(run.upload_cpu_s / gigabytes for run in runs),
        "process_cpu_s": median(run.cpu_s for run in runs),
        "process_wall_s": median(run.wall_s for run in runs),
        "peak_mib": median(run.peak_kib / 1024 for run in runs),
        "above_import_mib": median(a for a in above if a is not None),
        "voluntary": median(run.switches[0] for run in runs),
        "involuntary": median(run.switches[1] for run in runs),
        "all_cpu_s": [round(run.upload_cpu_s, 4) for run in runs],
        "all_wall_s": [round(run.upload_wall_s, 4) for run in runs],
    }


def _fill(table: Table, contenders: Sequence[Contender], figures: dict[str, Any]) -> None:
    curl = figures.get("curl -T", {}).get("cpu_s_per_gb")
    for contender in contenders:
        found = figures[contender.name]
        if not found["rounds"]:
            table.rows.append([contender.name, *["–"] * (len(_COLUMNS) - 1)])
            continue
        above = found["above_import_mib"]
        table.rows.append(
            [
                contender.name,
                "yes" if contender.is_checked else "no",
                f"{found['size'] / MB:.0f}",
                f"{found['gb_per_s']:.2f}",
                f"{found['cpu_s_per_gb']:.2f}",
                f"{found['cpu_s_per_gb'] / curl:.2f}" if curl else "–",
                f"{found['process_cpu_s']:.2f}",
                f"{found['peak_mib']:.0f}",
                "–" if above is None else f"{above:.0f}",
                f"{found['voluntary']:.0f} + {found['involuntary']:.0f}",
            ]
        )
