"""What the development server carries, and in how much memory: `python -m benchmarks.devserver`.

vodup uploads the same 1,024,000,000 bytes over loopback in large parts and in 10,000 small ones,
each to a server of its own that keeps no bodies.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = 10_000 * 102_400
PART_SIZES = (16 * 1024**2, 1024**2, 102_400)


def measure(folder: Path, part_size: int) -> tuple[float, int, int]:
    """Seconds of the upload, and the server's memory in KiB before it and at its peak."""
    film = folder / "film.mp4"
    with film.open("wb") as file:
        file.truncate(SIZE)
    options = json.dumps({"discard_bodies": True})
    words = ["devserver", "--options", options, "--until-stdin-ends"]
    with subprocess.Popen(
        _vodup(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        env = os.environ | json.loads(server.stdout.readline())["env"]
        before = _memory(server.pid, "VmRSS")
        began = time.monotonic()
        state = f"--state={folder / f'{part_size}.db'}"
        push = _vodup("push", str(film), state, f"--part-size={part_size}", "--quiet")
        subprocess.run(push, env=env, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        peak = _memory(server.pid, "VmHWM")
        server.communicate(timeout=20)
    return seconds, before, peak


def _vodup(*words: str) -> list[str]:
    return [sys.executable, "-c", "from uploader.cli import main; main()", *words]


def _memory(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1))


def main() -> None:
    """Print the table."""
    print("| parts | seconds | MB/s | memory before | peak |")
    print("|---|---|---|---|---|")
    for part_size in PART_SIZES:
        with tempfile.TemporaryDirectory() as folder:
            seconds, before, peak = measure(Path(folder), part_size)
        print(
            f"| {-(-SIZE // part_size):,} | {seconds:.1f} | {SIZE / seconds / 1e6:.0f} "
            f"| {before / 1024:.0f} MiB | {peak / 1024:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
