"""The quick tests on every Python we claim, and with the oldest and newest dependencies.

    python -m tests.gates.versions 3.12 3.13 lowest latest -- tests/protocol -x

A Python version has the locked packages; `lowest` is Python 3.11 with the floors of
pyproject.toml (requirements-lowest.lock), `latest` Python 3.13 with the newest versions that
they allow today. Each has an environment of its own, `.venv-<name>`. A Python that is not on
this machine is skipped with a message.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).parents[2]
UV = ROOT / ".venv-lock" / "bin" / "uv"
EXTRAS = "cluster credentials devserver fsspec metrics otel parquet postgres uvloop".split()
LOWEST, LATEST = "3.11", "3.13"


def _python(version: str) -> str | None:
    """An interpreter that works: a name on PATH may belong to a version that is not active."""
    found = shutil.which(f"python{version}")
    if (
        found
        and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    ):
        return found
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(kept[-1]) if kept else None


def _uv(*argv: str) -> None:
    subprocess.run([str(UV), *argv, "--quiet", "--no-config"], cwd=ROOT, check=True)


def _install(python: Path, *wanted: str) -> None:
    _uv("pip", "install", "--python", str(python), "--no-deps", *wanted)


def _latest_lock() -> Path:
    """What a user who installs today would get."""
    lock = ROOT / "build" / "requirements-latest.lock"
    lock.parent.mkdir(exist_ok=True)
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    extras += ["--group", "paired"]
    wanted = ["--python-version", LATEST, "--upgrade", "--generate-hashes", "-o", str(lock)]
    _uv("pip", "compile", "pyproject.toml", *extras, *wanted)
    return lock


def _environment(name: str, interpreter: str) -> Path:
    folder = ROOT / f".venv-{name}"
    _uv("venv", "--clear", "--python", interpreter, str(folder))
    python = folder / "bin" / "python"
    _install(python, "--require-hashes", "-r", "requirements-dev.lock")
    if name == "lowest":
        _install(python, "--require-hashes", "-r", "requirements-lowest.lock")
    if name == "latest":
        _install(python, "--require-hashes", "-r", str(_latest_lock()))
    _install(python, "-e", ".")
    return python


def _tested(name: str, jobs: int, args: list[str]) -> str:
    version = {"lowest": LOWEST, "latest": LATEST}.get(name, name)
    interpreter = _python(version)
    if interpreter is None:
        return f"skipped: there is no Python {version} on this machine"
    python = _environment(name, interpreter)
    print(f"versions: {name}: Python {version}, tests without the slow ones", flush=True)
    pytest = ["-m", "pytest", "-q", "-n", str(jobs), "-m", "not slow", *args]
    code = subprocess.run([str(python), *pytest], cwd=ROOT, check=False).returncode
    return "passed" if code == 0 else f"failed ({code})"


def main() -> int:
    """Test each that was named; whether none failed."""
    parser = argparse.ArgumentParser(prog="tests.gates.versions")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--jobs", type=int, default=2)
    own, _, passed = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.removesuffix(" --").split())
    outcomes = {name: _tested(name, options.jobs, passed.split()) for name in options.names}
    for name, outcome in outcomes.items():
        print(f"versions: {name}: {outcome}")
    return 1 if any(outcome.startswith("failed") for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
