"""Mutation tests of the core: which small wrongs in the code no test would notice.

    python -m tests.gates.mutants                          every module, whole
    python -m tests.gates.mutants protocol/plan session    these
    python -m tests.gates.mutants engine --sample 120      so many of it, drawn with --seed
    python -m tests.gates.mutants --seconds 180            stop then; the same command goes on
    python -m tests.gates.mutants --report                 what is known so far, nothing run

mutmut changes one thing in one function (a comparison, a number, an argument, a text) and
runs the tests that reach the function. Each module of `[tool.vodup.mutants]` has its own
tests there and its own room in build/mutants, so that one can be repeated alone. A room
keeps what it found until the module or its tests change.

Functions under decorators other than staticmethod and classmethod, and what stands outside
of functions, are not changed by mutmut.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Found", "Room", "main", "rooms"]

ROOT = Path(__file__).parents[2]
ROOMS = ROOT / "build" / "mutants"
EXPLAINED = Path(__file__).with_name("survivors.tsv")
SCORE = 85.0
"""Percent of a whole run that must be killed."""

SKIPPED = 34
"""What mutmut calls a mutant that is not to be tried."""

_KINDS = {None: "open", 0: "survived", 5: "untested", 33: "untested", SKIPPED: "skipped"}
_TIMEOUTS = {-24, 24, 36, 152, 255}
_CRASHES = {-9, -11}


@dataclass(frozen=True)
class Found:
    """What became of the mutants of one module."""

    counts: Counter[str]
    survivors: list[str]

    @property
    def tried(self) -> int:
        """How many have been judged."""
        return sum(self.counts[kind] for kind in ("killed", "timeout", "survived", "untested"))

    @property
    def killed(self) -> int:
        """Those that a test noticed; one that never ends is noticed too."""
        return self.counts["killed"] + self.counts["timeout"]

    @property
    def score(self) -> float:
        """Percent."""
        return 100.0 * self.killed / self.tried if self.tried else 0.0


@dataclass(frozen=True)
class Room:
    """A copy of the project in which one module is mutated."""

    name: str
    tests: list[str]

    @property
    def folder(self) -> Path:
        """For example build/mutants/protocol-plan."""
        return ROOMS / self.name.replace("/", "-")

    @property
    def _known(self) -> Path:
        return self.folder / "mutants" / "uploader" / f"{self.name}.py.meta"

    def prepare(self) -> None:
        """Copy the project, unless what matters here is as it was."""
        mark = self.folder / ".fingerprint"
        fingerprint = self._fingerprint()
        if mark.exists() and mark.read_text() == fingerprint:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("uploader", "tests", "benchmarks"):
            leave = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / name, self.folder / name, ignore=leave)
        (self.folder / "pyproject.toml").write_text(self._configuration())
        mark.write_text(fingerprint)

    def _fingerprint(self) -> str:
        # Not all of pyproject.toml: most of what changes there is no concern of a mutant's.
        told = _tables()["mutmut"] | self._choices()
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        digest.update((ROOT / "uploader" / f"{self.name}.py").read_bytes())
        for named in self.tests:
            path = ROOT / named
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                digest.update(file.read_bytes())
        return digest.hexdigest()

    def _choices(self) -> dict[str, list[str]]:
        return {
            "only_mutate": [f"uploader/{self.name}.py"],
            "pytest_add_cli_args_test_selection": self.tests,
        }

    def _configuration(self) -> str:
        """Append this module's choices to `[tool.mutmut]`, which ends pyproject.toml."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in self._choices().items()]
        return "\n".join([(ROOT / "pyproject.toml").read_text(), *lines, ""])

    def run(self, *names: str, seconds: float, children: int) -> bool:
        """Try mutants until all are judged or the time is over; whether all are."""
        argv = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()"]
        argv += ["run", "--max-children", str(children), *names]
        with (self.folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                argv, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
            try:
                return process.wait(seconds) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                process.wait()
                return False
            finally:  # also when we are interrupted: nothing goes on without us
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def draw(self, size: int, seed: int, *, seconds: float) -> None:
        """Leave out all but a sample; what was tried before stays."""
        if not self._known.exists():
            self.run("make.them.only", seconds=seconds, children=1)
        document = json.loads(self._known.read_text())
        names = sorted(document["exit_code_by_key"])
        kept = set(random.Random(seed).sample(names, min(size, len(names))))
        for name, code in document["exit_code_by_key"].items():
            wanted = name in kept
            if code is None and not wanted:
                document["exit_code_by_key"][name] = SKIPPED
            elif code == SKIPPED and wanted:
                document["exit_code_by_key"][name] = None
        self._known.write_text(json.dumps(document, indent=4))

    def found(self) -> Found:
        """What is known by now."""
        if not self._known.exists():
            return Found(Counter(open=1), [])
        codes: dict[str, int | None] = json.loads(self._known.read_text())["exit_code_by_key"]
        survivors = [
            name for name, code in codes.items() if _kind(code) in ("survived", "untested")
        ]
        return Found(Counter(map(_kind, codes.values())), survivors)

    def change(self, mutant: str) -> str:
        """The lines that differ: `- was` and `+ is`, on one line."""
        argv = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "show", mutant]
        shown = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, check=False)
        lines = [
            line
            for line in shown.stdout.splitlines()
            if line[:1] in "+-" and line[:3] not in ("---", "+++")
        ]
        return " ".join(f"{line[0]} {line[1:].strip()}" for line in lines)


def _kind(code: int | None) -> str:
    if code in _TIMEOUTS:
        return "timeout"
    return _KINDS.get(code, "crashed" if code in _CRASHES else "killed")


def _tables() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["tool"])


def rooms(names: list[str]) -> list[Room]:
    """The modules named, or all of them."""
    known = _tables()["vodup"]["mutants"]
    if unknown := set(names) - known.keys():
        raise SystemExit(f"mutants: {', '.join(sorted(unknown))}: not in [tool.vodup.mutants]")
    return [Room(name, known[name]) for name in names or known]


def explained() -> dict[tuple[str, str], str]:
    """The reasons given for survivors: by function and change."""
    if not EXPLAINED.exists():
        return {}
    rows = (line.split("\t") for line in EXPLAINED.read_text().splitlines() if line)
    return {(function, change): reason for function, change, reason in rows}


def function_of(mutant: str) -> str:
    """The function's name, without numbers: they move with every change."""
    module, _, mangled = mutant.rpartition("__mutmut_")[0].rpartition(".")
    name = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return f"{module}.{name}"


def report(chosen: list[Room]) -> int:
    """Print what is known; whether it will do."""
    total: Counter[str] = Counter()
    reasons, missing = explained(), []
    for room in chosen:
        found = room.found()
        total += found.counts
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.counts.items()))
        print(f"mutants: {room.name:24} {found.score:5.1f} %  {kinds}")
        for mutant in found.survivors:
            row = (function_of(mutant), room.change(mutant))
            if row not in reasons:
                missing.append("\t".join(row))
    whole = Found(total, [])
    print(
        f"mutants: {whole.killed} of {whole.tried} killed: {whole.score:.1f} % (at least {SCORE})"
    )
    left = ROOMS / "unexplained.tsv"
    left.write_text("".join(f"{line}\n" for line in missing))
    print(f"mutants: {len(missing)} survivors without a reason in {EXPLAINED.name}: {left}")
    if total["open"]:
        print(f"mutants: {total['open']} not tried yet: run the same command again")
    return 0 if whole.score >= SCORE and not missing and not total["open"] else 1


def main(argv: list[str] | None = None) -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="tests.gates.mutants")
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--seconds", type=float, default=24 * 3600.0)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = rooms(asked.modules)
    ROOMS.mkdir(parents=True, exist_ok=True)
    ends_s = time.monotonic() + asked.seconds
    for room in [] if asked.report else chosen:
        room.prepare()
        if asked.sample:
            room.draw(asked.sample, asked.seed, seconds=asked.seconds)
        left_s = ends_s - time.monotonic()
        if left_s <= 0 or not room.run(seconds=left_s, children=asked.children):
            break
    return report(chosen)


if __name__ == "__main__":
    sys.exit(main())
