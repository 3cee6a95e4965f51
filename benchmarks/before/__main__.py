"""Plays every situation to every library, and writes down what they did."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.before import environments
from benchmarks.before.driver import LIBRARIES
from benchmarks.before.situations import SITUATIONS, Outcome, Situation
from benchmarks.before.stage import PART_SIZE, Stage
from benchmarks.measure import ROOT

RESULTS = ROOT / "benchmarks" / "results"
_MARKS = {True: "kept", False: "**broken**", None: "-"}

Table = dict[str, dict[str, Outcome]]


def played(situation: Situation, library: str) -> Outcome:
    """One situation, one library, a server and a folder of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="vodup-before-") as folder,
        Stage(library, Path(folder), situation.part_size or PART_SIZE) as stage,
    ):
        return situation.play(stage)


def _versions() -> str:
    versions = []
    for name in environments.NAMES:
        lock = Path(environments.__file__).with_name(f"{name}.txt").read_text().splitlines()
        pins = [line.split(" ")[0].split("==") for line in lock if line[:1].isalpha()]
        versions.append(
            ", ".join(" ".join(pin) for pin in pins if pin[0] in (*LIBRARIES, "aiohttp"))
        )
    return f"{versions[0]}; for aiooss2 {versions[1]}"


def _markdown(table: Table) -> str:
    names = list(LIBRARIES)
    rows = [
        "# What others do in the same situation",
        "",
        "Run by `python -m benchmarks.before` against the development server; the same figures,",
        f"for machines, are in `before.json`. Versions: {_versions()}.",
        "",
        "Each library does its ordinary upload of 24 parts over three connections. OSS's clients",
        "are given a video and its credentials; vodup and voduploadsdk make the video themselves.",
        "",
        f"| | situation | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for situation in SITUATIONS:
        if outcomes := table.get(situation.name):
            marks = [_MARKS[outcomes[name].is_kept] if name in outcomes else "" for name in names]
            rows.append(f"| {situation.promise} | {situation.title} | {' | '.join(marks)} |")
    for situation in SITUATIONS:
        if outcomes := table.get(situation.name):
            rows += ["", f"## {situation.title}", ""]
            rows += [f"- **{name}**: {outcome.sentence}." for name, outcome in outcomes.items()]
    return "\n".join([*rows, ""])


def _known() -> Table:
    try:
        document = json.loads((RESULTS / "before.json").read_text())
    except FileNotFoundError:
        return {}
    return {
        name: {library: Outcome(**outcome) for library, outcome in outcomes.items()}
        for name, outcomes in document["situations"].items()
    }


def _write(table: Table) -> None:
    RESULTS.mkdir(exist_ok=True)
    plain = {name: {of: asdict(o) for of, o in found.items()} for name, found in table.items()}
    document = {"versions": _versions(), "situations": plain}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (RESULTS / "before.json").write_text(f"{text}\n")
    (RESULTS / "before.md").write_text(_markdown(table))


def main() -> int:
    """Play, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.before")
    parser.add_argument("situations", nargs="*", help="all where there is none")
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--lock", action="store_true")
    arguments = parser.parse_args()
    if arguments.lock:
        return environments.lock()
    for name in environments.NAMES:
        environments.python_of(name)
    table = _known()
    for situation in SITUATIONS:
        if arguments.situations and situation.name not in arguments.situations:
            continue
        with ThreadPoolExecutor(len(arguments.only)) as threads:
            outcomes = list(threads.map(lambda of: played(situation, of), arguments.only))  # noqa: B023
        for library, outcome in zip(arguments.only, outcomes, strict=True):
            table.setdefault(situation.name, {})[library] = outcome
            print(f"before: {situation.name:13} {library:20} {_MARKS[outcome.is_kept]:11}", end="")
            print(outcome.sentence, flush=True)
        _write(table)
    return 0 if all(found["vodup"].is_kept for found in table.values() if "vodup" in found) else 1


if __name__ == "__main__":
    sys.exit(main())
