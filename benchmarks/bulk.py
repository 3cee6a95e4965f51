"""Many files through one client: files a second, and what one file costs."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.bench import Bench, Section, Table
from benchmarks.contenders import Contender, Task, by_name
from benchmarks.measure import Run, alternating, median

__all__ = ["measure"]

_CONTENDERS = ("vodup (library)", "obstore", "boto3", "oss2.resumable_upload")
_CONNECTIONS = 16


def measure(bench: Bench, section: Section) -> None:
    """Upload each set over http and https."""
    for name, count, size in bench.scale.bulk:
        schemes = [s for s in ("http", "https") if bench.wants(section.name, f"{name}, {s}")]
        paths = _make_files(bench, count, size) if schemes else ()
        for scheme in schemes:
            bench.say(f"bulk: {name}, {scheme}")
            _measure_set(bench, section, name, paths, scheme)
        for path in paths:
            path.unlink()


def _make_files(bench: Bench, count: int, size: int) -> tuple[Path, ...]:
    """`size` 0: sizes from 20 KB to 20 MB, small ones more often; the same in every run."""
    draw = random.Random(7)
    sizes = [size or int(20_000 * 1000 ** draw.random()) for _ in range(count)]
    return tuple(bench.make_file(s, f"bulk-{number}.mp4") for number, s in enumerate(sizes))


def _measure_set(
    bench: Bench, section: Section, name: str, paths: tuple[Path, ...], scheme: str
) -> None:
    table = Table(
        f"{name}, {scheme}, {_CONNECTIONS} connections",
        ["", "files/s", "CPU ms a file", "peak MiB", "above import"],
    )
    bench.track.sink.reset()
    task = Task(paths, scheme=scheme, connections=_CONNECTIONS, part_size=0)
    rounds = bench.scale.rounds
    runs = alternating(
        [by_name(contender) for contender in _CONTENDERS],
        rounds,
        lambda contender: bench.track.run(contender, task),
        lambda contender, error: table.notes.append(f"{contender.name}: {error}."),
    )
    data = {}
    for contender, taken in runs.items():
        if taken:
            figures = data[contender.name] = _figures(taken, len(paths))
            table.rows.append(_row(contender, figures))
    table.notes.append(f"Medians of {rounds} alternating rounds; peers with 16 threads.")
    section.add(f"{name}, {scheme}", table, {"files": len(paths), "contenders": data})


def _figures(runs: list[Run], count: int) -> dict[str, float]:
    return {
        "files_per_s": median(count / run.upload_wall_s for run in runs) or 0.0,
        "cpu_ms_per_file": median(run.upload_cpu_s / count * 1000 for run in runs) or 0.0,
        "peak_mib": median(run.peak_kib / 1024 for run in runs) or 0.0,
        "above_import_mib": median(run.above_import_mib or 0.0 for run in runs) or 0.0,
    }


def _row(contender: Contender, figures: dict[str, float]) -> list[str]:
    return [
        contender.name,
        f"{figures['files_per_s']:.0f}",
        f"{figures['cpu_ms_per_file']:.2f}",
        f"{figures['peak_mib']:.0f}",
        f"{figures['above_import_mib']:.0f}",
    ]
