"""Runs a contender and takes its figures; medians over alternating rounds."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "ROOT",
    "Failed",
    "Run",
    "alternating",
    "end_on_sigterm",
    "execute",
    "fit_line",
    "largest_deviation",
    "median",
]

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


class Failed(Exception):
    """A contender did not do what it should. The message is fit for a table's footnote."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender.

    Attributes:
        began_s: CLOCK_MONOTONIC when it was started.
        wall_s, cpu_s: of the whole process, interpreter and imports included.
        peak_kib: largest resident size.
        inner: what a driver measured around the upload alone; empty for commands.
        output: what it printed.
    """

    began_s: float
    wall_s: float
    cpu_s: float
    peak_kib: int
    voluntary: int
    involuntary: int
    is_cut: bool = False
    inner: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""

    @property
    def upload_wall_s(self) -> float:
        """Wall seconds of the upload, or of the whole process where that is all there is."""
        return float(self.inner.get("wall_s", self.wall_s))

    @property
    def upload_cpu_s(self) -> float:
        """CPU seconds of the upload, or of the whole process."""
        return float(self.inner.get("cpu_s", self.cpu_s))

    @property
    def switches(self) -> tuple[int, int]:
        """Voluntary and involuntary context switches of the upload, or of the process."""
        voluntary = self.inner.get("voluntary", self.voluntary)
        return int(voluntary), int(self.inner.get("involuntary", self.involuntary))

    @property
    def above_import_mib(self) -> float | None:
        """Peak RSS above what was resident before the first byte was read."""
        before = self.inner.get("before_kib")
        return None if before is None else (self.inner["peak_kib"] - before) / 1024


def end_on_sigterm() -> None:
    """Let SIGTERM end this process in order: its servers, folders and namespaces end with it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def execute(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    folder: Path = ROOT,
    timeout_s: float = 300.0,
    may_be_cut: bool = False,
) -> Run:
    """Run a command in `folder` to its end and return its figures.

    Raises:
        Failed: it failed, or took longer than `timeout_s` and may not be cut.
    """
    with tempfile.TemporaryDirectory(prefix="vodup-bench-") as results:
        result = Path(results, "result.json")
        meter = [sys.executable, "-I", "-S", str(Path(__file__).with_name("meter.py"))]
        done = subprocess.run(
            [*meter, str(result), str(timeout_s), *argv],
            cwd=folder,
            env={**_plain_environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        figures = json.loads(result.read_text())
    is_cut = figures["exit_code"] < 0 and figures["wall_s"] >= timeout_s
    if figures["exit_code"] != 0 and not (is_cut and may_be_cut):
        raise Failed(_why(figures, done.stderr, is_cut=is_cut))
    return Run(
        began_s=figures["began_s"],
        wall_s=figures["wall_s"],
        cpu_s=figures["user_s"] + figures["system_s"],
        peak_kib=figures["peak_kib"],
        voluntary=figures["voluntary"],
        involuntary=figures["involuntary"],
        is_cut=is_cut,
        inner=_inner(done.stdout),
        output=done.stdout,
    )


def _plain_environment() -> dict[str, str]:
    """No proxies, no certificate bundles, nobody's credentials: the same on every machine."""
    kept = ("HOME", "LANG", "PATH", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _why(figures: Mapping[str, Any], stderr: str, *, is_cut: bool) -> str:
    if is_cut:
        return f"cut after {figures['wall_s']:.0f} s"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"exit {figures['exit_code']}: {lines[-1][:160] if lines else 'without a word'}"


def _inner(stdout: str) -> Mapping[str, Any]:
    """The line a driver ends with (`drivers.common`)."""
    for line in reversed(stdout.splitlines()):
        if line.startswith('{"driver"'):
            found: dict[str, Any] = json.loads(line)["driver"]
            return found
    return {}


def alternating(
    contenders: Iterable[T],
    round_count: int,
    run: Callable[[T], Run],
    note: Callable[[T, Exception], None],
) -> dict[T, list[Run]]:
    """Run each contender once a round, in an order that rotates; one that fails is left out."""
    order = list(contenders)
    runs: dict[T, list[Run]] = {contender: [] for contender in order}
    for turn in range(round_count):
        shift = turn % max(1, len(order))
        for contender in [*order[shift:], *order[:shift]]:
            try:
                runs[contender].append(run(contender))
            except Failed as error:
                note(contender, error)
                order.remove(contender)
    return runs


def median(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    known = list(values)
    return statistics.median(known) if known else None


def fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Least squares: intercept, slope, and R² (1: a line explains everything)."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    slope, intercept = statistics.linear_regression(xs, ys)
    spread = sum((y - statistics.fmean(ys)) ** 2 for y in ys)
    rest = sum((y - intercept - slope * x) ** 2 for x, y in points)
    return intercept, slope, 1 - rest / spread if spread else 1.0


def largest_deviation(
    points: Sequence[tuple[float, float]], intercept: float, slope: float
) -> float:
    """How far the point lies from the line that lies farthest, in y."""
    return max((abs(y - intercept - slope * x) for x, y in points), default=0.0)
