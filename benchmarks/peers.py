"""The environment of the other uploaders, apart from the project's own.

Locked in `requirements.txt` with hashes. To resolve it again, with `uv` at hand:
`python -m benchmarks --lock`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import ROOT

__all__ = ["lock", "peers_python"]

_HERE = Path(__file__).parent
_LOCK = _HERE / "requirements.txt"
_VENV = ROOT / ".venv-bench"


def peers_python() -> tuple[str | None, str]:
    """The interpreter that has the peers, and why there is none if there is none."""
    python, ready = _VENV / "bin" / "python", _VENV / ".ready"
    if ready.exists() and ready.read_text() == _LOCK.read_text():
        return str(python), ""
    print("benchmarks: install the peers", file=sys.stderr)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(_VENV)],
        [*pip, "install", "--require-hashes", "-r", str(_LOCK)],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None, "its environment cannot be made: is a package index within reach?"
    ready.write_text(_LOCK.read_text())
    return str(python), ""


def lock() -> int:
    """Resolve `requirements.in` into `requirements.txt`; names no index and no path."""
    uv = shutil.which("uv") or str(ROOT / ".venv-lock" / "bin" / "uv")
    argv = [uv, "pip", "compile", "requirements.in", "--quiet", "--no-config", "--universal"]
    argv += ["--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    argv += ["--no-emit-index-url", "--no-emit-find-links", "-o", "requirements.txt"]
    argv += ["--custom-compile-command", "python -m benchmarks --lock", "--upgrade"]
    return subprocess.run(argv, cwd=_HERE, stdout=subprocess.DEVNULL, check=False).returncode
