"""A pytest plugin: adds up what the fault matrix has played, over all workers.

One line at the end of the session; the same figures as JSON in the file that the variable
VODUP_FAULT_FIGURES names.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "faults"
"""A test's list of [site/failure/persistence, how it ended, seconds]."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cells and runs there were, and how they ended."""
    reports = list(_reports(terminalreporter))
    if not reports:
        return
    figures = _figures(reports)
    ended = ", ".join(f"{count} {how}" for how, count in figures["ended"].items())
    terminalreporter.write_line(
        f"fault matrix: {figures['cells']} cells, {figures['runs']} runs in "
        f"{figures['test_seconds']} s of tests ({ended})"
    )
    if path := os.environ.get("VODUP_FAULT_FIGURES"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


def _reports(reporter: pytest.TerminalReporter) -> Iterator[pytest.TestReport]:
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                yield from [report for name, _ in report.user_properties if name == PROPERTY]


def _figures(reports: list[pytest.TestReport]) -> dict[str, Any]:
    from .table import FAILURES, SITES, cells

    runs = [run for report in reports for run in dict(report.user_properties)[PROPERTY]]  # type: ignore[attr-defined]
    cell_count = len(list(cells()))
    return {
        "cells": len({name.rpartition("/")[0] for name, _, _ in runs}),
        "cells_in_the_table": cell_count,
        "not_applicable": len(SITES) * len(FAILURES) - cell_count,
        "runs": len(runs),
        "runs_by_persistence": dict(Counter(name.rpartition("/")[2] for name, _, _ in runs)),
        "ended": dict(Counter(how for _, how, _ in runs).most_common()),
        "slowest_run_seconds": max((seconds for _, _, seconds in runs), default=0),
        "test_seconds": round(sum(report.duration for report in reports), 1),
        "failed_tests": sum(report.failed for report in reports),
    }
