"""What it costs to begin.

    python -m benchmarks.startup [--rounds N] [--against CHECKOUT]

Starts commands in turn and prints the medians of their wall and CPU milliseconds; the push
sends 10 KB to a development server of its own. CHECKOUT is another tree of this project with
its own `.venv`: its commands take turns with these, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Bench, Section, Table
from benchmarks.contenders import Task, by_name, vodup_command, vodup_environment
from benchmarks.measure import ROOT, Failed, Run, alternating, end_on_sigterm, execute, median
from benchmarks.report import markdown_table

__all__ = ["main", "measure"]

_PUSH_SIZE = 10_000


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


# --- one tree against another ---------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a command failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, metavar="N")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args(argv)
    trees = {"this tree": ROOT}
    if arguments.against is not None:
        trees["the other"] = arguments.against.resolve()
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="vodup-startup-") as folder, _server() as env:
        table = _compare(trees, arguments.rounds, Path(folder), env)
    print("\n".join(markdown_table(table)))
    return 1 if table.notes else 0


@contextmanager
def _server() -> Iterator[dict[str, str]]:
    """A development server of this tree; the environment in which vodup talks to it."""
    command = [sys.executable, "-m", "uploader.devserver", "--until-stdin-ends"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["env"]
        finally:
            server.stdin.close()


def _compare(
    trees: Mapping[str, Path], round_count: int, folder: Path, env: Mapping[str, str]
) -> Table:
    names = ["import uploader", "vodup --help", "vodup status", "vodup push of 10 KB"]
    columns = [f"{kind} ms, {tree}" for tree in trees for kind in ("wall", "CPU")]
    table = Table(f"Medians of {round_count} alternating runs", ["", *columns])
    numbers = itertools.count()
    runs = alternating(
        list(itertools.product(names, trees)),
        round_count,
        lambda each: _run(each[0], trees[each[1]], folder / str(next(numbers)), env),
        lambda each, error: table.notes.append(f"{' of '.join(each)}: {error}."),
    )
    for name in names:
        row = [name]
        for tree in trees:
            taken = runs[name, tree]
            for value in (median(r.wall_s for r in taken), median(r.cpu_s for r in taken)):
                row.append("" if value is None else f"{value * 1000:.0f}")
        table.rows.append(row)
    return table


def _run(name: str, tree: Path, folder: Path, env: Mapping[str, str]) -> Run:
    """Run a command of a tree with its own Python, in an empty folder of its own."""
    folder.mkdir(mode=0o700)
    own = tree / ".venv" / "bin" / "python"
    python = str(own if own.exists() else sys.executable)
    argv = [python, *vodup_command()[1:]]
    match name:
        case "import uploader":
            argv = [python, "-c", name]
        case "vodup --help":
            argv += ["--help"]
        case "vodup status":
            argv += ["status", "--state", str(folder / "state.db")]
        case _:
            film = folder / "film.mp4"
            film.write_bytes(os.urandom(_PUSH_SIZE))
            argv += ["push", str(film), "--state", str(folder / "state" / "state.db")]
    return execute(argv, env={**env, "PYTHONPATH": str(tree)}, folder=folder)


if __name__ == "__main__":
    sys.exit(main())
