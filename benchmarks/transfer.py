"""One file on one machine: everybody side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import GB, MB, Bench, Section, Table, make_cold, make_warm
from benchmarks.contenders import CONTENDERS, Contender, Task
from benchmarks.measure import Run, alternating, median
from benchmarks.plots import bars, lines

__all__ = ["measure", "overview"]

_COLUMNS = [
    "", "checked", "MB", "GB/s", "CPU-s/GB", "× curl", "process CPU s", "peak MiB", "above import",
    "switches", "connections",
]  # fmt: skip
_NOTES = [
    "GB/s and CPU-s/GB: the upload alone, after a first tiny one, for libraries; the whole "
    "process for commands. Process CPU: start, imports and all. Above import: peak RSS above "
    "what was resident before the first byte. Switches: voluntary + involuntary, of the upload. "
    "Connections: as the server counts them.",
    "Checked: compares a CRC-64 of what it sent with the server's. The others do not look. "
    "curl --parallel is given one file for each connection, together as large as the one of "
    "the others.",
]
_SHOWN = ("vodup (library)", "curl --parallel", "obstore", "boto3", "awscrt")
_SLOW_LIMIT = 2 * GB
"""Contenders at several CPU seconds a gigabyte are not run for more, and once is enough."""
_OWN_CONNECTIONS = 3
"""Of the benchmark itself between two looks at the sink: those of `Track.run`, and the look."""


@dataclass(frozen=True, slots=True)
class _Cell:
    size: int
    scheme: str
    connections: int
    temperature: str
    rounds: int

    @property
    def key(self) -> str:
        """For example "https-1GB-c8-warm"."""
        return f"{self.scheme}-{_amount(self.size)}-c{self.connections}-{self.temperature}"

    @property
    def title(self) -> str:
        """For people."""
        size = _amount(self.size).replace("GB", " GB").replace("MB", " MB")
        count = f"{self.connections} connection{'s' if self.connections > 1 else ''}"
        return f"{self.scheme}, {size}, {count}, {self.temperature} file"


def _amount(size: int) -> str:
    return f"{size / GB:g}GB" if size >= GB else f"{size / MB:g}MB"


def measure(bench: Bench, section: Section) -> None:
    """Run every cell of the scale over http and https."""
    section.notes = _NOTES
    for size, connections, temperature, rounds in bench.scale.cells:
        for scheme in ("http", "https"):
            cell = _Cell(size, scheme, connections, temperature, rounds)
            if bench.wants(section.name, cell.key):
                bench.say(f"transfer: {cell.title}")
                _measure_cell(bench, cell, section)


def _measure_cell(bench: Bench, cell: _Cell, section: Section) -> None:
    table = Table(cell.title, _COLUMNS)
    contenders = [c for c in CONTENDERS if cell.scheme in c.schemes and _takes_part(c, cell)]
    bench.track.sink.reset()
    before, ciphers = bench.track.sink.stats(), set[str]()
    counts: dict[str, list[int]] = {contender.name: [] for contender in contenders}

    def run(contender: Contender) -> Run:
        opened = bench.track.sink.stats()["connections"]
        taken = _run(bench, contender, cell)
        stats = bench.track.sink.stats()
        ciphers.add(stats["tls"])
        # The query is a connection too.
        counts[contender.name].append(stats["connections"] - opened - _OWN_CONNECTIONS)
        return taken

    runs = alternating(
        contenders,
        cell.rounds,
        run,
        lambda contender, error: table.notes.append(f"{contender.name}: {error}."),
    )
    stats = bench.track.sink.stats()
    sink_cost = (stats["cpu_s"] - before["cpu_s"]) / max(stats["body_bytes"] / GB, 1e-9)
    table.notes.append(
        f"Medians of {cell.rounds} alternating rounds. The sink itself: {sink_cost:.2f} CPU-s/GB, "
        f"{stats['rss_kib'] / 1024:.0f} MiB; it computes a CRC-64 of every byte for everybody."
    )
    if cell.scheme == "https":
        table.notes.append(f"Everybody used {' or '.join(sorted(ciphers))}.")
    figures = {c.name: _figures(c, runs[c], _size_for(bench, c, cell)) for c in contenders}
    for name, found in figures.items():
        found["connections"] = median(counts[name])
    _fill(table, contenders, figures)
    data = {
        "size": cell.size,
        "scheme": cell.scheme,
        "connections": cell.connections,
        "temperature": cell.temperature,
        "rounds": cell.rounds,
        "sink_cpu_s_per_gb": sink_cost,
        "tls": sorted(ciphers),
        "contenders": figures,
    }
    section.add(cell.key, table, data, _plots(cell, figures))


def _plots(cell: _Cell, figures: Mapping[str, Any]) -> dict[str, str]:
    found = {name: f for name, f in figures.items() if f["rounds"]}
    cpu = [(name, f["cpu_s_per_gb"]) for name, f in found.items()]
    wall = [(name, f["gb_per_s"]) for name, f in found.items()]
    return {
        f"cpu-{cell.key}.svg": bars(f"Client CPU seconds per GB: {cell.title}", cpu),
        f"wall-{cell.key}.svg": bars(f"GB a second: {cell.title}", wall),
    }


def overview(cells: Mapping[str, Any]) -> dict[str, str]:
    """Plots over the number of connections, of cells that differ in nothing else."""
    plots = {}
    for scheme in ("http", "https"):
        alike = [cell for cell in cells.values() if cell and _is_usual(cell, scheme)]
        if len(alike) > 2:
            for figure, label in (("cpu_s_per_gb", "CPU-s/GB"), ("gb_per_s", "GB/s")):
                title = f"{label} against connections: {scheme}, 1 GB, warm file"
                series = {name: _line_of(alike, name, figure) for name in _SHOWN}
                name = f"connections-{label.partition('/')[0].lower()}-{scheme}.svg"
                plots[name] = lines(title, "connections", label, series)
    return plots


def _is_usual(cell: Mapping[str, Any], scheme: str) -> bool:
    return bool((cell["scheme"], cell["size"], cell["temperature"]) == (scheme, GB, "warm"))


def _line_of(
    cells: Sequence[Mapping[str, Any]], name: str, figure: str
) -> list[tuple[float, float]]:
    found = ((cell["connections"], cell["contenders"].get(name, {}).get(figure)) for cell in cells)
    return [(x, y) for x, y in found if y is not None]


def _takes_part(contender: Contender, cell: _Cell) -> bool:
    if contender.is_sliced and cell.connections == 1:
        return False
    return not contender.is_slow or (cell.size <= _SLOW_LIMIT and cell.connections == 8)


def _size_for(bench: Bench, contender: Contender, cell: _Cell) -> int:
    return cell.size // (bench.scale.slow_share if contender.is_slow else 1)


def _run(bench: Bench, contender: Contender, cell: _Cell) -> Run:
    size = _size_for(bench, contender, cell)
    count = cell.connections if contender.is_sliced else 1
    paths = bench.make_slices(size, count) if count > 1 else (bench.make_file(size),)
    for path in paths:
        (make_cold if cell.temperature == "cold" else make_warm)(path)
    task = Task(paths, scheme=cell.scheme, connections=cell.connections)
    return bench.track.run(contender, task)


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
                f"{found['connections']:.0f}",
            ]
        )
