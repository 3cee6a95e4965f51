"""Going on after a crash with nearly everything acknowledged, and the price of remembering."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

from benchmarks.bench import Bench, Section, Table
from benchmarks.contenders import Task, by_name, vodup_command, vodup_environment
from benchmarks.measure import Failed, Run, alternating, execute, median

__all__ = ["measure"]

_SMALL_PART = 100 * 1024
_PARTS_PER_S = 125


def measure(bench: Bench) -> Section:
    """Kill an upload before its last part and run it again; then weigh the state store."""
    section = Section("resume", "Resuming, and what the state costs")
    _measure_resume(bench, section)
    _measure_state(bench, section)
    return section


# --- resuming -------------------------------------------------------------------------


def _measure_resume(bench: Bench, section: Section) -> None:
    count = bench.scale.resume_parts
    bench.say(f"resume: {count} parts, the last one missing")
    table = Table(
        f"vodup push, killed (SIGKILL) with {count - 1:,} of {count:,} parts acknowledged",
        ["", "seconds"],
    )
    path = bench.make_sparse_file(count * _SMALL_PART)
    try:
        figures = _resumed(bench, path, count)
    except Failed as error:
        table.notes.append(f"Not measured: {error}.")
    else:
        section.data["resume"] = figures
        table.rows = [
            ["from start to the first new byte", f"{figures['first_byte_s']:.2f}"],
            ["the same without Python's start and imports", f"{figures['without_start_s']:.2f}"],
            ["whole run, CPU", f"{figures['cpu_s']:.2f}"],
        ]
    path.unlink()
    section.tables.append(table)


def _resumed(bench: Bench, path: Path, count: int) -> dict[str, float]:
    sink = bench.track.sink
    argv = _push_command(bench, path)
    sink.reset(fail_part=count)
    _kill_when_only_one_is_missing(bench, argv, count)
    before = sink.stats()["body_bytes"]
    sink.reset_clock()
    run = execute(argv, env=vodup_environment(bench.track.tools), timeout_s=120)
    stats = sink.stats()
    if stats["body_bytes"] - before != _SMALL_PART:
        raise Failed(f"{stats['body_bytes'] - before} bytes were sent again, not one part")
    first_byte_s = stats["first_body_s"] - run.began_s
    return {
        "parts": count,
        "first_byte_s": first_byte_s,
        "without_start_s": first_byte_s - _start_s(),
        "cpu_s": run.cpu_s,
    }


def _push_command(bench: Bench, path: Path) -> list[str]:
    port = bench.track.sink.http_port
    state = bench.folder / f"resume-{uuid.uuid4().hex}.sqlite3"
    argv = [*vodup_command(), "push", str(path), "--quiet", "--state", str(state)]
    argv += ["--vod-endpoint", f"http://127.0.0.1:{port}", "--oss-region", "cn-shanghai"]
    return [*argv, "--part-size", str(_SMALL_PART), "--concurrency", "8"]


def _kill_when_only_one_is_missing(bench: Bench, argv: list[str], count: int) -> None:
    env = {**os.environ, **vodup_environment(bench.track.tools)}
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 180
    try:
        while not _is_only_one_missing(bench, count):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed("the upload to be killed ended or took too long")
            time.sleep(0.1)
        time.sleep(0.5)  # longer than acknowledgements wait for their flush
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def _is_only_one_missing(bench: Bench, count: int) -> bool:
    stats = bench.track.sink.stats()
    return bool(stats["failures"] and stats["bodies"] - stats["failures"] >= count - 1)


def _start_s() -> float:
    """What Python and the imports of an upload take."""
    code = "import uploader.cli.app, uploader.engine, oss2, aliyunsdkcore.auth.composer"
    argv = [*vodup_command()[:1], "-c", code]
    return median(execute(argv).wall_s for _ in range(3)) or 0.0


# --- the state ------------------------------------------------------------------------


def _measure_state(bench: Bench, section: Section) -> None:
    count = int(bench.scale.paced_s * _PARTS_PER_S)
    bench.say(f"resume: state, {count} parts at {_PARTS_PER_S} a second")
    table = Table(
        f"State in SQLite against none, {_PARTS_PER_S} parts of 100 KiB a second",
        ["state", "CPU s", "% of a core", "CPU µs a part"],
    )
    path = bench.make_sparse_file(count * _SMALL_PART)
    rate = f"{_PARTS_PER_S * _SMALL_PART // 1024}K"

    def run(state: str) -> Run:
        options = {"state": state, "bwlimit": rate}
        task = Task((path,), part_size=_SMALL_PART, options=options)
        return bench.track.run(by_name("vodup (library)"), task)

    rounds = min(3, bench.scale.rounds)
    note = lambda state, error: table.notes.append(f"{state}: {error}.")  # noqa: E731
    runs = alternating(["sqlite", "memory"], rounds, run, note)
    path.unlink()
    cpu = {state: median(r.upload_cpu_s for r in taken) for state, taken in runs.items()}
    wall = median(r.upload_wall_s for r in runs["sqlite"])
    section.tables.append(table)
    if cpu["sqlite"] is None or cpu["memory"] is None or not wall:
        return
    cost = cpu["sqlite"] - cpu["memory"]
    for state, seconds in (("sqlite", cpu["sqlite"]), ("memory", cpu["memory"]), ("cost", cost)):
        row = [f"{seconds:.3f}", f"{seconds / wall * 100:.1f}", f"{seconds / count * 1e6:.0f}"]
        table.rows.append([state, *row])
    table.notes.append(f"Medians of {rounds} alternating rounds of {wall:.1f} s.")
    section.data["state"] = {
        "core_share": cost / wall,
        "cpu_us_per_part": cost / count * 1e6,
        "parts": count,
    }
