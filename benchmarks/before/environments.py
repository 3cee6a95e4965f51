"""The libraries' environments, apart from the project's own: two, for they do not agree.

Locked with hashes beside this file: `libraries.in`, and `aiooss2.in`, which needs an aiohttp
from before 3.10.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import ROOT

__all__ = ["NAMES", "lock", "python_of"]

_HERE = Path(__file__).parent
NAMES = ("libraries", "aiooss2")


def python_of(name: str) -> Path:
    """The interpreter that has these libraries; makes it where there is none.

    Raises:
        RuntimeError: it cannot be made.
    """
    folder, wanted = ROOT / f".venv-before-{name}", (_HERE / f"{name}.txt").read_text()
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"before: install {name}", file=sys.stderr)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    for step in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "install", "--require-hashes", "--no-deps", "-r", str(_HERE / f"{name}.txt")],
    ):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{name} cannot be installed: is a package index within reach?")
    ready.write_text(wanted)
    return python


def lock() -> int:
    """Resolve the versions again; names no index and no path."""
    uv = shutil.which("uv") or str(ROOT / ".venv-lock" / "bin" / "uv")
    argv = [uv, "pip", "compile", "--quiet", "--no-config", "--universal", "--upgrade"]
    argv += ["--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    argv += ["--no-emit-index-url", "--no-emit-find-links"]
    argv += ["--custom-compile-command", "python -m benchmarks.before --lock"]
    codes = [
        subprocess.run(
            [*argv, f"{name}.in", "-o", f"{name}.txt"],
            cwd=_HERE,
            stdout=subprocess.DEVNULL,
            check=False,
        ).returncode
        for name in NAMES
    ]
    return max(codes)
