"""What it costs to begin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bench import Bench, Section, Table
from benchmarks.contenders import Task, by_name, vodup_command, vodup_environment
from benchmarks.measure import ROOT, Failed, Run, alternating, execute, median

__all__ = ["measure"]


def measure(bench: Bench, section: Section) -> None:
    """Start things and stop them again."""
    if not bench.wants(section.name, "startup"):
        return
    bench.say("start-up")
    table = Table(
        "CPU and wall seconds of the whole process", ["", "CPU s", "wall s", "peak MiB", "modules"]
    )
    data: dict[str, dict[str, float]] = {}
    try:
        small, state = bench.make_file(100_000), bench.folder / "startup" / "state.sqlite3"
        commands = _commands(state)
        env = vodup_environment(bench.track.tools)
        bench.track.run(by_name("vodup (command)"), Task((small,), options={"state": str(state)}))
    except Failed as error:
        section.add("startup", Table(table.title, [""], notes=[f"Not measured: {error}."]))
        return
    runs = alternating(
        commands,
        bench.scale.rounds,
        lambda name: execute(commands[name], env=env),
        lambda name, error: table.notes.append(f"{name}: {error}."),
    )
    for name, taken in runs.items():
        if taken:
            modules = _module_count(commands[name], env)
            data[name] = {**_figures(taken), "modules": modules}
            table.rows.append([*_row(name, data[name]), str(modules)])
    _add_first_request(bench, table, data, small)
    table.notes.append(f"Medians of {bench.scale.rounds} alternating rounds.")
    section.add("startup", table, data)


def _commands(state: Path) -> dict[str, Sequence[str]]:
    python, vodup = [sys.executable, "-c"], vodup_command()
    return {
        "python -c pass": [*python, "pass"],
        "import uploader": [*python, "import uploader"],
        "from uploader import Uploader": [*python, "from uploader import Uploader"],
        "vodup --help": [*vodup, "--help"],
        "vodup push --help": [*vodup, "push", "--help"],
        "vodup status (one upload)": [*vodup, "status", "--state", str(state)],
    }


def _module_count(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """How many modules a command imports after Python itself has started."""
    timed = [argv[0], "-X", "importtime", *argv[1:]]
    done = subprocess.run(timed, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    after_site = [line.rpartition("|")[2].strip() for line in lines]
    return len(lines) - after_site.index("site") - 1


def _figures(runs: list[Run]) -> dict[str, float]:
    return {
        "cpu_s": median(run.cpu_s for run in runs) or 0.0,
        "wall_s": median(run.wall_s for run in runs) or 0.0,
        "peak_mib": median(run.peak_kib / 1024 for run in runs) or 0.0,
    }


def _row(name: str, figures: Mapping[str, float]) -> list[str]:
    cpu, wall, peak = (figures[column] for column in ("cpu_s", "wall_s", "peak_mib"))
    return [name, f"{cpu:.3f}", f"{wall:.3f}", f"{peak:.0f}"]


def _add_first_request(
    bench: Bench, table: Table, data: dict[str, dict[str, float]], path: Path
) -> None:
    """`vodup push` of a small file: until its first byte has arrived, and to its end."""
    arrivals, runs = [], []
    try:
        for _ in range(bench.scale.rounds):
            bench.track.sink.reset()
            runs.append(bench.track.run(by_name("vodup (command)"), Task((path,))))
            arrivals.append(bench.track.sink.stats()["first_body_s"] - runs[-1].began_s)
    except Failed as error:
        table.notes.append(f"vodup push: {error}.")
        return
    data["vodup push of 100 KB"] = _figures(runs)
    table.rows.append([*_row("vodup push of 100 KB", data["vodup push of 100 KB"]), ""])
    first_s = median(arrivals) or 0.0
    data["first byte of vodup push"] = {"wall_s": first_s}
    table.rows.append(["its first byte arrives after", "", f"{first_s:.3f}", "", ""])
