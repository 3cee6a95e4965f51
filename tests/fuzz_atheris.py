"""The readers of `test_fuzz`, guided by coverage, for as long as one likes.

    make fuzz SECONDS=60                                      each reader for a minute
    python -m tests.fuzz_atheris --seconds 300 "answers to ListParts"

libFuzzer's options follow the names; a folder among them is the corpus, which is begun with
the valid documents. atheris comes with requirements-audit.lock.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_RUNS = re.compile(r"^Done (\d+) runs", re.MULTILINE)


def _parsed(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="tests.fuzz_atheris")
    parser.add_argument("names", nargs="*", help="of readers; all where there is none")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", action="store_true", help="fuzz in this process")
    return parser.parse_known_args(argv)


def _fuzz_here(name: str, options: list[str]) -> None:
    """Fuzz one reader until libFuzzer ends, which ends the process."""
    atheris = importlib.import_module("atheris")
    # Ours alone: instrumenting everything a test needs takes minutes.
    with atheris.instrument_imports(include=["uploader"]):
        fuzz = importlib.import_module("tests.test_fuzz")
    reader = fuzz.READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        for number, document in enumerate(reader.documents):
            (Path(folder) / f"valid-{number}").write_bytes(document)
        atheris.Setup(
            [sys.argv[0], *options, folder], lambda data: fuzz.require_harmless(reader, data)
        )
        atheris.Fuzz()


def _fuzz_apart(name: str, seconds: int, options: list[str]) -> tuple[int, bool]:
    """Fuzz one reader in a process of its own; how many inputs, and whether all was well."""
    argv = [sys.executable, "-m", "tests.fuzz_atheris", "--here", name, *options]
    limit = [f"-max_total_time={seconds}"]
    done = subprocess.run(argv + limit, capture_output=True, text=True, check=False)
    runs = sum(map(int, _RUNS.findall(done.stderr + done.stdout)))
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n")
    return runs, done.returncode == 0


def main(argv: list[str]) -> int:
    """Fuzz the readers named, one after another; whether none was found wanting."""
    arguments, options = _parsed(argv)
    if arguments.here:
        _fuzz_here(arguments.names[0], options)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: make fuzz installs it")
        return 2
    known = importlib.import_module("tests.test_fuzz").READERS
    if unknown := set(arguments.names) - known.keys():
        print(f"No reader is called {', '.join(unknown)}. There are:", *known, sep="\n  ")
        return 2
    total, is_well = 0, True
    for name in arguments.names or known:
        runs, is_fine = _fuzz_apart(name, arguments.seconds, options)
        print(f"fuzz: {name}: {runs} inputs{'' if is_fine else ', FAILED'}", flush=True)
        total, is_well = total + runs, is_well and is_fine
    print(f"fuzz: {total} inputs, {arguments.seconds} s for each reader")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
