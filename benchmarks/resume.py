"""Resuming after a crash with nearly everything acknowledged, and the price of remembering."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, Section, Table
from benchmarks.contenders import Task, by_name, vodup_command, vodup_environment
from benchmarks.measure import Failed, Run, alternating, execute, median

__all__ = ["measure"]

_SMALL_PART = 100 * 1024
_PARTS_PER_S = 125


def measure(bench: Bench, section: Section) -> None:
    """Kill an upload before its last part and run it again; then weigh the state store."""
    if bench.wants(section.name, "resume"):
        _measure_resume(bench, section)
    if bench.wants(section.name, "state"):
        _measure_state(bench, section)


# --- resuming -------------------------------------------------------------------------


def _measure_resume(bench: Bench, section: Section) -> None:
    count = bench.scale.resume_parts
    bench.say(f"resume: {count} parts, the last one missing")
    table = Table(
        f"vodup push, killed (SIGKILL) with {count - 1:,} of {count:,} parts acknowledged",
        ["", "wall s", "CPU s"],
    )
    path = bench.make_sparse_file(count * _SMALL_PART)
    try:
        data = _resumed(bench, path, count, table)
    except Failed as error:
        table.notes.append(f"Not measured: {error}.")
        data = {}
    path.unlink()
    section.add("resume", table, data)


def _resumed(bench: Bench, path: Path, count: int, table: Table) -> dict[str, Any]:
    killed = bench.folder / "killed"
    bench.track.sink.reset(fail_part=count)
    _kill_when_only_one_is_missing(bench, _push_command(bench, path, killed), count)
    rounds = bench.scale.rounds
    near = [_until_first_byte(bench, path, killed, latency_ms=0) for _ in range(rounds)]
    far = [_until_first_byte(bench, path, killed, latency_ms=50) for _ in range(rounds)]
    bench.track.sink.change(latency_ms=0)
    whole = _to_the_end(bench, path, killed)
    start_s = _start_s(bench)
    first_s, first_cpu_s = (median(column) or 0.0 for column in zip(*near, strict=True))
    far_s, far_cpu_s = (median(column) or 0.0 for column in zip(*far, strict=True))
    table.rows = [
        ["start to the first new byte", f"{first_s:.2f}", f"{first_cpu_s:.2f}"],
        ["of that, Python and imports", f"{start_s:.2f}", ""],
        ["where every answer takes 50 ms", f"{far_s:.2f}", f"{far_cpu_s:.2f}"],
        ["whole run", f"{whole.wall_s:.2f}", f"{whole.cpu_s:.2f}"],
    ]
    table.notes.append(
        f"Medians of {rounds} runs from copies of one checkpoint; the whole run once: it sends "
        "the one missing part and nothing else."
    )
    return {
        "parts": count,
        "first_byte_s": first_s,
        "first_byte_cpu_s": first_cpu_s,
        "first_byte_50ms_s": far_s,
        "start_s": start_s,
        "whole_wall_s": whole.wall_s,
        "whole_cpu_s": whole.cpu_s,
        "all_first_byte_s": [round(seconds, 3) for seconds, _ in near],
    }


def _until_first_byte(
    bench: Bench, path: Path, killed: Path, *, latency_ms: int
) -> tuple[float, float]:
    """Wall and CPU seconds of a run until its first new byte, at which it is killed."""
    sink = bench.track.sink
    argv = _push_command(bench, path, _copy(killed))
    sink.reset_clock()
    # The part is refused, so that the upload is not finished by whoever is killed too late.
    sink.change(fail_part=bench.scale.resume_parts, latency_ms=latency_ms)
    used = _children_cpu_s()
    began_s = time.monotonic()
    with _started(bench, argv) as process:
        while not (first_s := sink.stats()["first_body_s"]):
            if process.poll() is not None or time.monotonic() > began_s + 60:
                raise Failed("it ended or took more than a minute without sending anything")
            time.sleep(0.02)
    return first_s - began_s, _children_cpu_s() - used


def _to_the_end(bench: Bench, path: Path, killed: Path) -> Run:
    sink = bench.track.sink
    sink.reset_clock()
    before = sink.stats()["body_bytes"]
    argv = _push_command(bench, path, _copy(killed))
    run = execute(argv, env=vodup_environment(bench.track.tools), timeout_s=120)
    sent = sink.stats()["body_bytes"] - before
    if sent != _SMALL_PART:
        raise Failed(f"{sent} bytes were sent again, not one part")
    return run


def _copy(killed: Path) -> Path:
    folder = killed.with_name(f"again-{uuid.uuid4().hex}")
    shutil.copytree(killed, folder)
    return folder


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _started(bench: Bench, argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A run of vodup that is killed at the end of the block."""
    env = {**os.environ, **vodup_environment(bench.track.tools)}
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def _push_command(bench: Bench, path: Path, folder: Path) -> list[str]:
    port = bench.track.sink.http_port
    state = folder / "state.sqlite3"
    argv = [*vodup_command(), "push", str(path), "--quiet", "--state", str(state)]
    argv += ["--vod-endpoint", f"http://127.0.0.1:{port}", "--oss-region", "cn-shanghai"]
    return [*argv, "--part-size", str(_SMALL_PART), "--concurrency", "8"]


def _kill_when_only_one_is_missing(bench: Bench, argv: list[str], count: int) -> None:
    deadline = time.monotonic() + 180
    with _started(bench, argv) as process:
        while not _is_only_one_missing(bench, count):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed("the upload to be killed ended or took too long")
            time.sleep(0.1)
        time.sleep(0.5)  # longer than acknowledgements wait for their flush


def _is_only_one_missing(bench: Bench, count: int) -> bool:
    stats = bench.track.sink.stats()
    return bool(stats["failures"] and stats["bodies"] - stats["failures"] >= count - 1)


def _start_s(bench: Bench) -> float:
    """What Python and the imports of an upload take."""
    code = "import uploader.cli.app, uploader.uploader, oss2, aliyunsdkcore.auth.composer"
    argv = [*vodup_command()[:1], "-c", code]
    return median(execute(argv).wall_s for _ in range(bench.scale.rounds)) or 0.0


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

    rounds = bench.scale.rounds
    note = lambda state, error: table.notes.append(f"{state}: {error}.")  # noqa: E731
    runs = alternating(["sqlite", "memory"], rounds, run, note)
    path.unlink()
    cpu = {state: median(r.upload_cpu_s for r in taken) for state, taken in runs.items()}
    wall = median(r.upload_wall_s for r in runs["sqlite"])
    if cpu["sqlite"] is None or cpu["memory"] is None or not wall:
        section.add("state", table)
        return
    cost = cpu["sqlite"] - cpu["memory"]
    for state, seconds in (("sqlite", cpu["sqlite"]), ("memory", cpu["memory"]), ("cost", cost)):
        row = [f"{seconds:.3f}", f"{seconds / wall * 100:.1f}", f"{seconds / count * 1e6:.0f}"]
        table.rows.append([state, *row])
    table.notes.append(f"Medians of {rounds} alternating rounds of {wall:.1f} s.")
    data = {"core_share": cost / wall, "cpu_us_per_part": cost / count * 1e6, "parts": count}
    section.add("state", table, data)
