"""Writes what was found: Markdown for people, JSON for `--check`, SVG to look at."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bench import Section, Table
from benchmarks.measure import ROOT

__all__ = ["machine", "markdown_table", "write"]


def machine() -> dict[str, Any]:
    """What it ran on. No names of hosts or paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    argv = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(
    folder: Path,
    facts: Mapping[str, Any],
    versions: Mapping[str, str],
    sections: Sequence[Section],
    verdict: Table,
) -> Path:
    """Write everything below `folder` and return the path of the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for name, svg in section.plots.items():
            (folder / name).write_text(svg)
    data = {section.name: section.data for section in sections}
    document = {"machine": dict(facts), "versions": dict(versions), "data": data}
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    path = folder / "results.md"
    path.write_text(_markdown(facts, versions, sections, verdict))
    return path


def _markdown(
    facts: Mapping[str, Any],
    versions: Mapping[str, str],
    sections: Sequence[Section],
    verdict: Table,
) -> str:
    lines = ["# Benchmarks", "", ", ".join(f"{name} {value}" for name, value in facts.items())]
    lines += ["", ", ".join(f"{name} {value}" for name, value in versions.items()), ""]
    lines += [
        "Client and server share the machine over loopback, so compare inside one table only; "
        "differences under 15 % are not resolved.",
        "",
        *markdown_table(verdict),
    ]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for table in section.tables:
            lines += markdown_table(table)
        lines += [f"![{name}]({name})" for name in section.plots] + [""]
    return "\n".join(lines)


def markdown_table(table: Table) -> list[str]:
    """A table in Markdown, with its title and notes."""
    lines = [f"### {table.title}", ""]
    if table.rows:
        lines.append("| " + " | ".join(table.columns) + " |")
        lines.append("|" + "|".join(["---", *["---:"] * (len(table.columns) - 1)]) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines.append("")
    for note in table.notes:
        lines += [note, ""]
    return lines
