"""Checks of the project's safety that do not run it.

    python -m tests.gates.audit

bandit over what is distributed, a bill of materials (CycloneDX) in build/sbom.json, known
vulnerabilities of what the locks name, the licences of what a user installs, and the locks:
hashes for everything, and no place named. Only the vulnerabilities need a network; without
one, the audit reports that they were not checked and does not fail.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["main", "misplaced", "unhashed"]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))
USERS = ROOT / "requirements.lock"

_PLACE = re.compile(r"://|^\s*-[^-]|^--|file:|@\s|^[./]")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)")


def misplaced(lock: str) -> list[str]:
    """The lines that say where packages come from: that is for whoever installs."""
    lines = (line for line in lock.splitlines() if not line.lstrip().startswith(("#", "--hash=")))
    return [line for line in lines if _PLACE.search(line)]


def unhashed(lock: str) -> list[str]:
    """The packages that could be exchanged on their way."""
    entries = lock.replace("\\\n", " ").splitlines()
    pins = (entry for entry in entries if entry and not entry.startswith("#"))
    return [pin for pin in pins if not _PIN.match(pin) or "--hash=sha256:" not in pin]


def _pins(lock: Path) -> Iterator[tuple[str, str]]:
    for line in lock.read_text().splitlines():
        if found := _PIN.match(line):
            yield found[1], found[2]


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / argv[0]), *argv[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )


def check_locks() -> bool:
    """Whether every lock has hashes and no places."""
    wrong = [
        f"{lock.name}: {line.strip()}"
        for lock in LOCKS
        for line in (*misplaced(lock.read_text()), *unhashed(lock.read_text()))
    ]
    counts = ", ".join(f"{lock.name} {sum(1 for _ in _pins(lock))}" for lock in LOCKS)
    _report("locks", wrong or [f"{counts}: every package hashed, no place named"])
    return not wrong


def _report(topic: str, lines: Iterable[str]) -> None:
    for line in lines:
        print(f"audit: {topic}: {line}")


def check_code() -> bool:
    """Whether bandit finds nothing."""
    done = _run("bandit", "-q", "-c", "pyproject.toml", "-r", "uploader", "-f", "json")
    document = json.loads(done.stdout)
    for found in document["results"]:
        place = f"{found['filename']}:{found['line_number']}"
        print(f"audit: bandit: {place}: {found['test_id']} {found['issue_text']}")
    totals = document["metrics"]["_totals"]
    skipped = f"{totals['nosec'] + totals['skipped_tests']} places excused on their line"
    print(f"audit: bandit: {len(document['results'])} findings in {totals['loc']} lines, {skipped}")
    return not document["results"]


def write_materials() -> bool:
    """Write build/sbom.json: what a user installs, with hashes and licences."""
    (ROOT / "build").mkdir(exist_ok=True)
    wanted = ["--output-reproducible", "--of", "JSON", "-o", "build/sbom.json"]
    done = _run(
        "cyclonedx-py", "requirements", "--pyproject", "pyproject.toml", *wanted, USERS.name
    )
    if done.returncode:
        print(f"audit: sbom: {done.stderr.strip()}")
        return False
    components = json.loads((ROOT / "build" / "sbom.json").read_text())["components"]
    print(f"audit: sbom: build/sbom.json, {len(components)} components")
    return True


def check_vulnerabilities() -> bool:
    """Whether nothing that the locks name is known to be vulnerable."""
    wanted = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "-f", "json"]
    is_well = True
    for lock in LOCKS:
        done = _run("pip-audit", "-s", "pypi", *wanted, "-r", lock.name)
        try:
            packages = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            print(f"audit: vulnerabilities: not known for {lock.name}: {reason}")
            continue
        silent = sum("skip_reason" in package for package in packages)
        known = [
            f"{package['name']} {package['version']}: {found['id']}, "
            f"fixed in {', '.join(found['fix_versions']) or 'no version'}"
            for package in packages
            for found in package.get("vulns", [])
        ]
        checked = f"{len(packages)} packages, {len(known)} vulnerable"
        rest = f", {silent} unknown to the index" if silent else ""
        print(f"audit: vulnerabilities: {lock.name}: {checked}{rest}")
        _report("vulnerabilities", known)
        # Old versions are the point of the lowest lock: what is known of them is a reason to
        # raise a floor, or to say in pyproject.toml why it stays.
        is_well = is_well and (not known or lock.stem.endswith("lowest"))
    return is_well


def list_licences() -> bool:
    """Print which licences come along with an installation."""
    done = _run("pip-licenses", "--from=mixed", "--format=json")
    of = {_plain(package["Name"]): package["License"] for package in json.loads(done.stdout)}
    by_licence: dict[str, list[str]] = defaultdict(list)
    for name, _ in _pins(USERS):
        by_licence[of.get(_plain(name), "not installed here")].append(name)
    for licence, names in sorted(by_licence.items()):
        print(f"audit: licence: {licence}: {', '.join(sorted(names))}")
    return True


def _plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Everything, even after something failed."""
    steps = (check_locks, check_code, write_materials, check_vulnerabilities, list_licences)
    failed = [step.__name__ for step in steps if not step()]
    print(f"audit: {'not clean: ' + ', '.join(failed) if failed else 'clean'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
