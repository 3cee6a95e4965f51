"""Mutation tests of the core: which small wrongs in the code no test would notice.

    python -m tests.gates.mutants                          every module, whole
    python -m tests.gates.mutants protocol/plan session    these
    python -m tests.gates.mutants engine --sample 120      so many of it, drawn with --seed
    python -m tests.gates.mutants --seconds 180            stop then; the same command goes on
    python -m tests.gates.mutants --report                 what is known so far, nothing run

mutmut changes one thing in one function (a comparison, a number, an argument, a text) and
runs the tests that reach the function. `tests/gates/modules.py` tells which modules are the
core and which tests judge them. Each module has a workspace of its own in build/mutants, so
that one can be repeated alone; it keeps its results until the module or its tests change.

A change of a message is noticed by the list of all messages (tests/gates/messages.py), which is
not run for every mutant: such survivors count as killed.

The gate fails below the score. What survives is listed in build/mutants/survivors.tsv: for each
line either a test is missing, or the change makes no difference to a user. The second kind is
not pinned anywhere; where it would surprise a reader, a comment beside the code says why.

Functions under decorators other than staticmethod and classmethod, and what stands outside
of functions, are not changed by mutmut.
"""

from __future__ import annotations

import argparse
import ast
import functools
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

from tests.gates.messages import Messages, sources
from tests.gates.modules import core_files, tests_of

__all__ = ["Found", "Workspace", "main", "workspaces"]

ROOT = Path(__file__).parents[2]
WORKSPACES = ROOT / "build" / "mutants"
SURVIVORS = WORKSPACES / "survivors.tsv"
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
class Workspace:
    """A copy of the project in which one module is mutated."""

    name: str
    tests: list[str]

    @property
    def folder(self) -> Path:
        """For example build/mutants/protocol-plan."""
        return WORKSPACES / self.name.replace("/", "-")

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
        # Of pyproject.toml only mutmut's own table: the rest changes no result.
        with (ROOT / "pyproject.toml").open("rb") as file:
            table = tomllib.load(file)["tool"]["mutmut"]
        settings = json.dumps(table | self._choices(), sort_keys=True)
        digest = hashlib.sha256(settings.encode())
        digest.update((ROOT / "uploader" / f"{self.name}.py").read_bytes())
        for test in self.tests:
            digest.update((ROOT / test).read_bytes())
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
        counts = Counter(map(_kind, codes.values()))
        survivors = []
        for name, code in codes.items():
            if _kind(code) not in ("survived", "untested"):
                continue
            if changes_a_message(f"{self.name}.py", self._diff(name)):
                counts.subtract([_kind(code)])
                counts["killed"] += 1
            else:
                survivors.append(name)
        return Found(counts, survivors)

    def change(self, mutant: str) -> str:
        """The lines that differ: `- was` and `+ is`, on one line."""
        return " ".join(f"{line[0]} {line[1:].strip()}" for line in self._diff(mutant))

    def _diff(self, mutant: str) -> list[str]:
        argv = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "show", mutant]
        shown = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, check=False)
        return [
            line
            for line in shown.stdout.splitlines()
            if line[:1] in "+-" and line[:3] not in ("---", "+++")
        ]


def _kind(code: int | None) -> str:
    if code in _TIMEOUTS:
        return "timeout"
    return _KINDS.get(code, "crashed" if code in _CRASHES else "killed")


@functools.cache
def _messages() -> Messages:
    return Messages(sources())


def changes_a_message(module: str, diff: list[str]) -> bool:
    """Whether a change changes the list of messages.

    `diff`: the lines that differ, with "-" or "+" before each; mutmut indents them by its own.
    """
    was = [line[1:].strip() for line in diff if line[0] == "-"]
    now = [line[1:].strip() for line in diff if line[0] == "+"]
    lines = sources()[module].splitlines()
    plain = [line.strip() for line in lines]
    at = next((i for i in range(len(plain)) if plain[i : i + len(was)] == was), None)
    if at is None or len(was) != len(now):
        return False
    for i, text in enumerate(now, at):
        lines[i] = lines[i][: len(lines[i]) - len(lines[i].lstrip())] + text
    try:
        changed = ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    return _messages().lines_of(changed) != _messages().lines[module]


def workspaces(names: list[str]) -> list[Workspace]:
    """Those of the modules named, or of all modules of the core."""
    known = core_files()
    if unknown := set(names) - set(known):
        raise SystemExit(f"mutants: {', '.join(sorted(unknown))}: not a module of the core")
    return [Workspace(name, tests_of(name)) for name in names or known]


def function_of(mutant: str) -> str:
    """The function's name, without numbers: they move with every change."""
    module, _, mangled = mutant.rpartition("__mutmut_")[0].rpartition(".")
    name = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return f"{module}.{name}"


def report(chosen: list[Workspace]) -> int:
    """Print the results so far; returns the exit status."""
    total: Counter[str] = Counter()
    survivors: list[str] = []
    for space in chosen:
        found = space.found()
        total += found.counts
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.counts.items()))
        print(f"mutants: {space.name:24} {found.score:5.1f} %  {kinds}")
        survivors += [f"{function_of(name)}\t{space.change(name)}\n" for name in found.survivors]
    whole = Found(total, [])
    print(
        f"mutants: {whole.killed} of {whole.tried} killed: {whole.score:.1f} % (at least {SCORE})"
    )
    SURVIVORS.write_text("".join(survivors))
    print(f"mutants: {len(survivors)} survivors: {SURVIVORS.relative_to(ROOT)}")
    if total["open"]:
        print(f"mutants: {total['open']} not tried yet: run the same command again")
    return 0 if whole.score >= SCORE and not total["open"] else 1


def main(argv: list[str] | None = None) -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="tests.gates.mutants")
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--seconds", type=float, default=24 * 3600.0)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = workspaces(options.modules)
    WORKSPACES.mkdir(parents=True, exist_ok=True)
    ends_s = time.monotonic() + options.seconds
    for space in [] if options.report else chosen:
        space.prepare()
        if options.sample:
            space.draw(options.sample, options.seed, seconds=options.seconds)
        left_s = ends_s - time.monotonic()
        if left_s <= 0 or not space.run(seconds=left_s, children=options.children):
            break
    return report(chosen)


if __name__ == "__main__":
    sys.exit(main())
