"""Runs the commands of a page of the docs as they stand there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def commands(page: str) -> list[str]:
    """Every line after a prompt in blocks marked "console", in the order of the page."""
    blocks = re.findall(r"```console\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def run(lines: list[str], folder: Path, *, timeout_s: float = 100) -> str:
    """Run the lines in one shell in `folder`; the first that fails fails. What they print."""
    script = "\n".join(["set -eu", "trap 'kill $(jobs -p) 2>/dev/null' EXIT", *lines])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VODUP_", "ALIBABA_"))}
    path = f"{Path(sys.executable).parent}:{inherited.get('PATH', '')}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**inherited, "PATH": path},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
