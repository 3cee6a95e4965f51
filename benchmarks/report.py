"""Writes what was found: Markdown for people, JSON for `--check` and the docs, SVG to look at.

Sections are measured one by one, on different evenings if need be. What was measured
earlier on the same machine stays until its piece is measured again, with its own date.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bench import Piece, Section, Table
from benchmarks.measure import ROOT
from benchmarks.targets import check
from benchmarks.transfer import overview

__all__ = [
    "facts",
    "figures",
    "machine",
    "markdown_table",
    "merge",
    "read",
    "rows_of",
    "take",
    "write",
]

_Document = dict[str, Any]


def machine() -> dict[str, Any]:
    """What it runs on. No names of hosts or paths."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
    }


def facts() -> dict[str, Any]:
    """When something is measured, on which sources, and on how busy a machine."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "uploader": _sources("uploader"),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _sources(folder: str) -> str:
    """Git's name for the folder's content (`git rev-parse COMMIT:uploader` tells the same)."""
    tree = _git("rev-parse", "--short=12", f"HEAD:{folder}") or "unknown"
    return f"{tree}, changed" if _git("status", "--porcelain", "--", folder) else tree


def _git(*arguments: str) -> str:
    argv = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


# --- the document ---------------------------------------------------------------------


def read(folder: Path) -> _Document | None:
    """The results in a folder, if there are any."""
    path = folder / "results.json"
    found: _Document | None = json.loads(path.read_text()) if path.exists() else None
    return found


def merge(
    earlier: _Document | None,
    here: Mapping[str, Any],
    versions: Mapping[str, str],
    sections: Sequence[Section],
    *,
    is_whole: bool,
) -> _Document:
    """Put new pieces in the place of old ones.

    Args:
        is_whole: these sections were measured whole: what else they once held goes.
    """
    document = _earlier_of(earlier, here, versions)
    for section in sections:
        pieces = {key: _piece(piece) for key, piece in section.pieces.items()}
        if pieces:
            head = {"title": section.title, "notes": section.notes}
            former = document["sections"].get(section.name, {}).get("pieces", {})
            pieces = pieces if is_whole else former | pieces
            document["sections"][section.name] = {**head, "pieces": pieces}
    return document


def _earlier_of(
    earlier: _Document | None, here: Mapping[str, Any], versions: Mapping[str, str]
) -> _Document:
    """What stays; figures of two machines do not mix."""
    if earlier is None or earlier["machine"] != here:
        earlier = {"sections": {}, "versions": {}}
    known = earlier["versions"] | dict(versions)
    return {"machine": dict(here), "versions": known, "sections": dict(earlier["sections"])}


def take(folder: Path, other: Path) -> Path:
    """Put the pieces of the results in `other` in the place of those in `folder`.

    Raises:
        FileNotFoundError: there are no results in `other`.
    """
    if (taken := read(other)) is None:
        raise FileNotFoundError(other / "results.json")
    document = _earlier_of(read(folder), taken["machine"], taken["versions"])
    for name, section in taken["sections"].items():
        former = document["sections"].get(name, {}).get("pieces", {})
        document["sections"][name] = section | {"pieces": former | section["pieces"]}
    folder.mkdir(parents=True, exist_ok=True)
    for plot in other.glob("*.svg"):
        shutil.copy(plot, folder)
    return write(folder, document, [])


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "measured": dict(piece.measured),
        "table": asdict(piece.table),
        "data": dict(piece.data),
        "plots": sorted(piece.plots),
    }


def figures(document: _Document) -> dict[str, dict[str, Any]]:
    """The data alone: by section, then by piece."""
    return {
        name: {key: piece["data"] for key, piece in section["pieces"].items()}
        for name, section in document["sections"].items()
    }


def write(folder: Path, document: _Document, sections: Sequence[Section]) -> Path:
    """Write everything below `folder` and return the path of the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    overviews = overview(figures(document).get("transfer", {}))
    if "transfer" in document["sections"]:
        document["sections"]["transfer"]["plots"] = sorted(overviews)
    plots = [overviews, *(piece.plots for s in sections for piece in s.pieces.values())]
    for name, svg in (pair for found in plots for pair in found.items()):
        (folder / name).write_text(svg)
    _remove_stale_plots(folder, document)
    (folder / "results.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    path = folder / "results.md"
    path.write_text(_markdown(document))
    return path


def _remove_stale_plots(folder: Path, document: _Document) -> None:
    sections = document["sections"].values()
    named = {n for s in sections for piece in s["pieces"].values() for n in piece["plots"]}
    named |= {n for section in sections for n in section.get("plots", ())}
    for path in folder.glob("*.svg"):
        if path.name not in named:
            path.unlink()


# --- Markdown -------------------------------------------------------------------------


def _markdown(document: _Document) -> str:
    lines = ["# Benchmarks", "", _listed(document["machine"]), "", _listed(document["versions"])]
    lines += [
        "",
        "Client and server share the machine, so compare inside one table only; differences "
        "under 15 % are not resolved.",
        "",
        *markdown_table(check(figures(document))),
    ]
    for section in document["sections"].values():
        lines += [f"## {section['title']}", ""]
        for note in section["notes"]:
            lines += [note, ""]
        lines += _shown(section.get("plots", ()))
        for piece in section["pieces"].values():
            lines += markdown_table(Table(**piece["table"]))
            lines += [_measured(piece["measured"]), ""]
            lines += _shown(piece["plots"])
    return "\n".join(lines)


def _shown(plots: Sequence[str]) -> list[str]:
    return [line for name in plots for line in (f"![{name}]({name})", "")]


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _measured(facts: Mapping[str, Any]) -> str:
    return (
        f"Measured {facts['date']}; `uploader/` is tree {facts['uploader']}; "
        f"load average before: {facts['load']}."
    )


def markdown_table(table: Table) -> list[str]:
    """A table in Markdown, with its title and notes."""
    lines = [f"### {table.title}", "", *rows_of(table)]
    for note in table.notes:
        lines += [note, ""]
    return lines


def rows_of(table: Table) -> list[str]:
    """The table alone, and an empty line; nothing of an empty one."""
    if not table.rows:
        return []
    rule = "|".join(["---", *["---:"] * (len(table.columns) - 1)])
    lines = ["| " + " | ".join(table.columns) + " |", f"|{rule}|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in table.rows), ""]
