"""Copies results into the docs, so that the figures there are the measured ones.

A page holds `<!-- results: NAME -->` and `<!-- /results -->`, each on a line of its own;
what stands between them is written by `python -m benchmarks --quote` and by nobody else.
A name is "targets", "machine", "versions", or SECTION/PIECE with, behind it, the columns
to show ("| GB/s | CPU-s/GB") or "| plots" for the plots alone; "SECTION | plots" are those
that belong to no single piece.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.bench import Table
from benchmarks.targets import check

__all__ = ["PAGES", "PLOTS", "plots_of", "quoted", "write"]

PAGES = ("README.md", "docs/performance.md")
PLOTS = "docs/plots"
"""Copies, for a site made of the docs holds nothing that lies outside of them."""
_REGION = re.compile(r"(?ms)^<!-- results: (?P<name>[^\n]+?) -->\n.*?^<!-- /results -->$")
_PLOT = re.compile(r"!\[[^]]*\]\(plots/([^)]+)\)")
_MACHINE = (
    "{cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}, Python {python}, OpenSSL {openssl}"
)


def write(results: Path, root: Path) -> int:
    """Write every region of every page, and copy the plots they show."""
    document = report.read(results)
    if document is None:
        print("benchmarks: there are no results to quote yet", file=sys.stderr)
        return 2
    for name in PAGES:
        path = root / name
        path.write_text(quoted(path.read_text(), document))
    plots = root / PLOTS
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir()
    for name in plots_of((root / "docs" / "performance.md").read_text()):
        shutil.copy(results / name, plots / name)
    return 0


def plots_of(text: str) -> list[str]:
    """The file names of the plots that a page shows."""
    return _PLOT.findall(text)


def quoted(text: str, document: Mapping[str, Any]) -> str:
    """The page with its regions filled from the results.

    Raises:
        KeyError: a region names what was not measured.
    """

    def fill(region: re.Match[str]) -> str:
        name = region["name"]
        body = "\n".join(_lines(name, document)).strip()
        return f"<!-- results: {name} -->\n{body}\n<!-- /results -->"

    return _REGION.sub(fill, text)


def _lines(name: str, document: Mapping[str, Any]) -> list[str]:
    if name == "targets":
        return report.rows_of(check(report.figures(dict(document))))
    if name == "machine":
        return [_MACHINE.format(**document["machine"])]
    if name == "versions":
        return [", ".join(f"{n} {version}" for n, version in document["versions"].items())]
    path, *wanted = (word.strip() for word in name.split("|"))
    section, _, key = path.partition("/")
    piece = document["sections"][section]
    if key:
        piece = piece["pieces"][key]
    if wanted == ["plots"]:
        return [line for plot in piece["plots"] for line in (f"![{plot}](plots/{plot})", "")]
    table = Table(**piece["table"])
    lines = [f"{table.title}:", "", *report.rows_of(_with_columns(table, wanted))]
    for note in [] if wanted else table.notes:
        lines += [note, ""]
    measured = piece["measured"]
    return [*lines, f"Measured {measured['date']}; `uploader/` is tree {measured['uploader']}."]


def _with_columns(table: Table, wanted: list[str]) -> Table:
    if not wanted:
        return table
    places = [0, *(table.columns.index(column) for column in wanted)]
    rows = [[row[place] for place in places] for row in table.rows]
    return Table(table.title, [table.columns[place] for place in places], rows)
