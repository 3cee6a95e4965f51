"""What it costs to begin."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.bench import Bench, Section, Table
from benchmarks.contenders import Task, by_name, vodup_command
from benchmarks.measure import Failed, Run, alternating, execute, median

__all__ = ["measure"]

_COMMANDS: dict[str, Sequence[str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import uploader": [sys.executable, "-c", "import uploader"],
    "from uploader import Uploader": [sys.executable, "-c", "from uploader import Uploader"],
    "import uploader.engine, oss2": [sys.executable, "-c", "import uploader.engine, oss2"],
    "vodup --help": [*vodup_command(), "--help"],
    "vodup push --help": [*vodup_command(), "push", "--help"],
}


def measure(bench: Bench) -> Section:
    """Start things and stop them again."""
    bench.say("start-up")
    section = Section("startup", "Starting up")
    table = Table("CPU and wall seconds of the whole process", ["", "CPU s", "wall s", "peak MiB"])
    runs = alternating(
        _COMMANDS,
        bench.scale.rounds,
        lambda name: execute(_COMMANDS[name]),
        lambda name, error: table.notes.append(f"{name}: {error}."),
    )
    for name, taken in runs.items():
        if taken:
            _add(section, table, name, taken)
    _add_first_request(bench, section, table)
    section.tables.append(table)
    return section


def _add(section: Section, table: Table, name: str, runs: list[Run]) -> None:
    cpu, wall = median(r.cpu_s for r in runs) or 0.0, median(r.wall_s for r in runs) or 0.0
    peak = median(r.peak_kib / 1024 for r in runs) or 0.0
    section.data[name] = {"cpu_s": cpu, "wall_s": wall, "peak_mib": peak}
    table.rows.append([name, f"{cpu:.3f}", f"{wall:.3f}", f"{peak:.0f}"])


def _add_first_request(bench: Bench, section: Section, table: Table) -> None:
    """`vodup push` of a small file: until its first byte has arrived, and to its end."""
    path = bench.make_file(100_000)
    arrivals, runs = [], []
    try:
        for _ in range(bench.scale.rounds):
            bench.track.sink.reset()
            runs.append(bench.track.run(by_name("vodup (command)"), Task((path,))))
            arrivals.append(bench.track.sink.stats()["first_body_s"] - runs[-1].began_s)
    except Failed as error:
        table.notes.append(f"vodup push: {error}.")
        return
    _add(section, table, "vodup push of 100 KB", runs)
    first_s = median(arrivals) or 0.0
    section.data["first byte of vodup push"] = {"wall_s": first_s}
    table.rows.append(["its first byte arrives after", "", f"{first_s:.3f}", ""])
