"""The command line: `python -m benchmarks [--all | --quick] [--only NAME] [--check]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import bulk, growth, networks, report, resume, startup, transfer
from benchmarks.bench import ALL, QUICK, SHORT, Bench, Scale, Section, Table
from benchmarks.contenders import Track, versions
from benchmarks.measure import Failed
from benchmarks.native import Toolbox, has_compiler
from benchmarks.peers import lock, peers_python
from benchmarks.targets import check

_SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "transfer": transfer.measure,
    "growth": growth.measure,
    "networks": networks.measure,
    "bulk": bulk.measure,
    "resume": resume.measure,
    "startup": startup.measure,
}
_RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 1 when `--check` finds a target missed."""
    arguments = _parser().parse_args(argv)
    if arguments.lock:
        return lock()
    out = arguments.out / _scale(arguments).name
    if arguments.check:
        return _check(out)
    if not has_compiler():
        print("benchmarks: they need a C compiler (Debian: apt install gcc)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="vodup-bench-", dir=arguments.dir) as folder:
        return _measure(arguments, Path(folder), out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--all", action="store_true", help="everything; one to two hours")
    parser.add_argument("--quick", action="store_true", help="does it run at all? Seconds")
    parser.add_argument("--only", action="append", choices=_SECTIONS, help="may be repeated")
    parser.add_argument("--check", action="store_true", help="compare the last results")
    parser.add_argument("--no-peers", action="store_true", help="do not install the peers")
    parser.add_argument("--dir", type=Path, help="where the files to upload are made")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where results are written")
    parser.add_argument("--lock", action="store_true", help="resolve the peers again; needs uv")
    return parser


def _scale(arguments: argparse.Namespace) -> Scale:
    return ALL if arguments.all else QUICK if arguments.quick else SHORT


def _measure(arguments: argparse.Namespace, folder: Path, out: Path) -> int:
    tools = Toolbox(folder)
    python, why_none = (None, "--no-peers") if arguments.no_peers else peers_python()
    facts = report.machine()
    with tools.sink() as sink:
        bench = Bench(Track(tools, sink, python, why_none), _scale(arguments), folder)
        names = arguments.only or list(_SECTIONS)
        sections = [_section(bench, name) for name in names]
    verdict = check({section.name: section.data for section in sections})
    path = report.write(out, facts, versions(python), sections, verdict)
    print(path.read_text())
    return 0


def _section(bench: Bench, name: str) -> Section:
    """Measure one section; what the others found must not be lost with it."""
    try:
        return _SECTIONS[name](bench)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        bench.say(f"{name} failed: {error}")
        return Section(name, name, [Table("Not measured", [""], notes=[f"{error}"])])


def _check(out: Path) -> int:
    path = out / "results.json"
    if not path.exists():
        print("benchmarks: there are no results of that scale yet", file=sys.stderr)
        return 2
    table: Table = check(json.loads(path.read_text())["data"])
    print("\n".join(report.markdown_table(table)))
    return 1 if any(row[3] == "MISSED" for row in table.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
