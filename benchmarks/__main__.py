"""The command line: `python -m benchmarks [--all | --quick] [--only NAME] [--check]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import bulk, growth, networks, quotes, report, resume, startup, transfer
from benchmarks.bench import ALL, QUICK, SHORT, Bench, Scale, Section
from benchmarks.contenders import Track, versions
from benchmarks.measure import ROOT, Failed, end_on_sigterm
from benchmarks.native import Toolbox, has_compiler
from benchmarks.peers import lock, peers_python
from benchmarks.targets import check

_SECTIONS: dict[str, tuple[str, Callable[[Bench, Section], None]]] = {
    "transfer": ("One file, one machine", transfer.measure),
    "growth": ("Growth with size and parts", growth.measure),
    "networks": ("Long, lossy and changing links", networks.measure),
    "bulk": ("Many files", bulk.measure),
    "resume": ("Resuming, and what the state costs", resume.measure),
    "startup": ("Starting up", startup.measure),
}
_RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 1 when `--check` finds a target missed."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if unknown := {only.partition("/")[0] for only in arguments.only} - {*_SECTIONS}:
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(_SECTIONS)}")
    if arguments.lock:
        return lock()
    if arguments.check:
        return _check(arguments.out)
    if arguments.quote:
        return quotes.write(arguments.out, ROOT)
    if arguments.take:
        report.take(arguments.out, arguments.take)
        return 0
    if not has_compiler():
        print("benchmarks: they need a C compiler (Debian: apt install gcc)", file=sys.stderr)
        return 2
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="vodup-bench-", dir=arguments.dir) as folder:
        return _measure(arguments, Path(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--all", action="store_true", help="everything; one to two hours")
    parser.add_argument("--quick", action="store_true", help="does it run at all? Seconds")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SECTION[/PIECE]",
        help="may be repeated; pieces may have wildcards: transfer/https-*. What was measured "
        "earlier and is not named stays in the results",
    )
    parser.add_argument("--check", action="store_true", help="compare the last results")
    parser.add_argument("--quote", action="store_true", help="copy the results into the docs")
    parser.add_argument("--take", type=Path, metavar="DIR", help="merge results written there")
    parser.add_argument("--no-peers", action="store_true", help="do not install the peers")
    parser.add_argument("--dir", type=Path, help="where the files to upload are made")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where results are written")
    parser.add_argument("--lock", action="store_true", help="resolve the peers again; needs uv")
    return parser


def _scale(arguments: argparse.Namespace) -> Scale:
    return ALL if arguments.all else QUICK if arguments.quick else SHORT


def _measure(arguments: argparse.Namespace, folder: Path) -> int:
    tools, only = Toolbox(folder), arguments.only
    python, why_none = (None, "--no-peers") if arguments.no_peers else peers_python()
    with tools.sink() as sink:
        track = Track(tools, sink, python, why_none)
        bench = Bench(track, _scale(arguments), folder, only)
        names = [n for n in _SECTIONS if not only or n in {o.partition("/")[0] for o in only}]
        sections = [_section(bench, name) for name in names]
    is_whole = not any("/" in pattern for pattern in only)
    earlier = report.read(arguments.out)
    document = report.merge(
        earlier, report.machine(), versions(python), sections, is_whole=is_whole
    )
    print(report.write(arguments.out, document, sections).read_text())
    return 0


def _section(bench: Bench, name: str) -> Section:
    """Measure one section; what the others found must not be lost with it."""
    title, measure = _SECTIONS[name]
    section = Section(name, title, report.facts)
    try:
        measure(bench, section)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        bench.say(f"{name} failed: {error}")
    return section


def _check(out: Path) -> int:
    if (document := report.read(out)) is None:
        print("benchmarks: there are no results yet", file=sys.stderr)
        return 2
    table = check(report.figures(document))
    print("\n".join(report.markdown_table(table)))
    return 1 if any(row[3] == "MISSED" for row in table.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
