"""The commands of docs/sources.md are run as they stand there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


def commands() -> list[str]:
    """Every line after a prompt, in the order of the page."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_commands_of_the_page_store_what_they_say(tmp_path: Path) -> None:
    port = str(free_port())
    lines = [line.replace("8765", port) for line in commands()]
    script = "\n".join(["set -eu", "trap 'kill $(jobs -p) 2>/dev/null' EXIT", *lines])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VODUP_", "ALIBABA_"))}
    path = f"{Path(sys.executable).parent}:{inherited.get('PATH', '')}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**inherited, "PATH": path},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pushes = [line for line in lines if "vodup push" in line]
    told = [line for line in done.stdout.splitlines() if "stored" in line]
    assert len(told) == len(pushes) >= 7, done.stdout
    assert len([line for line in told if "nothing was sent" in line]) == 1
    assert all("verified by crc64" in line for line in told if "nothing was sent" not in line)
