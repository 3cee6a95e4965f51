"""What the queue costs: `python -m benchmarks.cluster [--rows N] [--idle SECONDS]`.

Everything runs on this machine: a PostgreSQL of its own (durable, as it is for users), the
development server, and workers. Prints one JSON object; times of the machine as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from uploader.cluster.embedded import EmbeddedPostgres
from uploader.devserver import DevServer, ThreadedDevServer

VODUP = [sys.executable, "-c", "from uploader.cli import main; main()"]
_TICKS = os.sysconf("SC_CLK_TCK")


def run(words: list[str], env: dict[str, str], folder: Path) -> tuple[float, float, float]:
    """Run a command; its wall time, CPU time and peak memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run([*VODUP, *words], env=env, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s, after.ru_maxrss / 1024


def enqueued(folder: Path, env: dict[str, str], count: int) -> dict[str, float]:
    """Queue a manifest, then the same again."""
    (folder / "a.mp4").write_bytes(b"x")
    rows = (f"a.mp4,key-{number}\n" for number in range(count))
    (folder / "many.csv").write_text("path,key\n" + "".join(rows))
    words = ["enqueue", "many.csv", "--shared", str(folder), "-q"]
    first_s, cpu_s, peak_mib = run(words, env, folder)
    again_s, _, _ = run(words, env, folder)
    return {
        "rows": count,
        "rows_per_s": count / first_s,
        "client_cpu_us_per_row": cpu_s / count * 1e6,
        "peak_mib": peak_mib,
        "again_rows_per_s": count / again_s,
    }


def idle(folder: Path, env: dict[str, str], url: str, seconds: float) -> dict[str, float]:
    """A worker that has nothing to do."""
    with subprocess.Popen([*VODUP, "worker", "-q"], env=env, cwd=folder) as worker:
        time.sleep(5)
        cpu_s, queries = cpu_of(worker.pid), transactions(url)
        time.sleep(seconds)
        used_s, queried = cpu_of(worker.pid) - cpu_s, transactions(url) - queries
        status = Path(f"/proc/{worker.pid}/status").read_text()
        worker.send_signal(signal.SIGTERM)
    rss_kib = int(status.partition("VmRSS:")[2].split()[0])
    return {
        "seconds": seconds,
        "cpu_percent_of_a_core": 100 * used_s / seconds,
        "transactions_per_s": queried / seconds,
        "rss_mib": rss_kib / 1024,
    }


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def transactions(url: str) -> int:
    """How many the database has carried out; it counts them once a second at best."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT sum(xact_commit) FROM pg_stat_database").fetchone()
    return int(row[0]) if row else 0


def drained(folder: Path, env: dict[str, str], server: DevServer, count: int) -> dict[str, float]:
    """Small files through one worker, from its start to its end."""
    shared = folder / "small"
    shared.mkdir()
    for number in range(count):
        (shared / f"{number}.mp4").write_bytes(os.urandom(100_000))
    (folder / "small.csv").write_text(
        "path\n" + "".join(f"small/{number}.mp4\n" for number in range(count))
    )
    run(["enqueue", "small.csv", "--shared", str(shared), "-q"], env, folder)
    with subprocess.Popen(
        [*VODUP, "worker", "-q", "--files", "32", "--api-rate", "1000"], env=env, cwd=folder
    ) as worker:
        while server.stats.creates < 50:
            time.sleep(0.01)
        began, first = time.perf_counter(), server.stats.creates
        while server.stats.creates < count:
            time.sleep(0.01)
        wall_s = time.perf_counter() - began
        cpu_s = cpu_of(worker.pid)
        worker.send_signal(signal.SIGTERM)
    return {
        "files": count,
        "files_per_s": (count - first) / wall_s,
        "worker_cpu_ms_per_file": cpu_s / count * 1000,
    }


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--idle", type=float, default=60)
    parser.add_argument("--files", type=int, default=1000)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    place = Path(tempfile.mkdtemp(prefix="vodup-bench-"))
    place.chmod(0o711)
    with (
        EmbeddedPostgres(place / "pg", is_temporary=True) as database,
        ThreadedDevServer() as threaded,
        tempfile.TemporaryDirectory(prefix="vodup-bench-") as name,
    ):
        folder = Path(name)
        env = os.environ | threaded.server.env | {"VODUP_STATE": database.url}
        run(["db", "upgrade", "-q"], env, folder)
        figures["idle"] = idle(folder, env, database.url, arguments.idle)
        figures["small files"] = drained(folder, env, threaded.server, arguments.files)
        figures["enqueue"] = enqueued(folder, env, arguments.rows)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
