"""The readers of `test_fuzz`, guided by coverage: for hours, by hand.

    pip install atheris
    python -m tests.fuzz_atheris "answers to ListParts" -max_total_time=300

Without a name it lists them. libFuzzer's options follow the name; a folder among them is
the corpus, which is begun with the valid documents.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path


def main(argv: list[str]) -> int:
    """Fuzz one reader until libFuzzer ends."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install atheris")
        return 2
    # Ours alone: instrumenting everything a test needs takes minutes.
    with atheris.instrument_imports(include=["uploader"]):
        fuzz = importlib.import_module("tests.test_fuzz")
    if len(argv) < 2 or argv[1] not in fuzz.READERS:
        print("Name one of:", *fuzz.READERS, sep="\n  ")
        return 2
    reader = fuzz.READERS[argv[1]]
    with tempfile.TemporaryDirectory() as folder:
        for number, document in enumerate(reader.documents):
            (Path(folder) / f"valid-{number}").write_bytes(document)
        atheris.Setup(
            [argv[0], *argv[2:], folder], lambda data: fuzz.require_harmless(reader, data)
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
