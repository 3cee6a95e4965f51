"""The figures that docs/sources.md quotes, measured against a server in a process of its own.

python -m pytest -s tests/sources/test_figures.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 1024 * 1024
FIGURES = [sys.executable, "-m", "tests.sources.figures"]

WRITER = """
import sys, time
piece, began = bytes(200_000), time.monotonic()
with open(sys.argv[1], "r+b", buffering=0) as file:
    for number in range(3000):  # 600 MB in 30 s
        time.sleep(max(0, began + number / 100 - time.monotonic()))
        file.write(piece)
    file.seek(4)
    file.write(b"moov")
print(time.time())
"""


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """A server that keeps no bytes, and where it is."""
    command = [sys.executable, "-m", "uploader.devserver", "--options", '{"discard_bodies": true}']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        yield {**os.environ, **ready["env"]}
        server.terminate()


def figures_of(done: subprocess.CompletedProcess[str] | str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(done if isinstance(done, str) else done.stdout)
    print(json.dumps(figures))
    return figures


def test_five_gigabytes_of_a_pipe_take_less_than_128_mib(env: dict[str, str]) -> None:
    size = 5 * 10**9
    producer = subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE)
    done = subprocess.run(
        [*FIGURES, "pipe"], env=env, stdin=producer.stdout, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert producer.stdout is not None
    producer.stdout.close()
    assert producer.wait() == 0
    figures = figures_of(done)
    assert (figures["size"], figures["verified_by"]) == (size, "crc64")
    assert figures["above_import_mib"] <= 128


def test_a_file_at_20_mb_a_second_is_verified_within_3_s_of_its_last_byte(
    env: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "recording.mp4"
    path.touch()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    follower = subprocess.Popen(
        [*FIGURES, "follow", str(path), str(writer.pid)], env=env, stdout=subprocess.PIPE, text=True
    )
    last_byte_at = float(writer.communicate()[0])
    figures = figures_of(follower.communicate()[0])
    after_s = figures["verified_at"] - last_byte_at
    print(f"verified {after_s:.2f} s after the last byte")
    assert (figures["size"], figures["verified_by"]) == (600_000_000, "crc64")
    assert after_s <= 3
