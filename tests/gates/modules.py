"""The core's modules, and the tests that judge each; derived from the plan of modules.

    python -m tests.gates.modules core     what `coverage report --include` takes
    python -m tests.gates.modules tests    every module of the core and its tests

The plan stands in `tests/test_architecture.py`. A module of package `p` is judged by the tests
in `tests/p`, a module `m` by `tests/test_m.py`; `JUDGED_BY` lists those that are not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.test_architecture import CORE

__all__ = ["core_files", "core_patterns", "main", "tests_of"]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "uploader"

_ENGINE = (
    "tests/bulk/test_batch.py",
    "tests/engine",
    "tests/model/test_findings.py",
    "tests/sources/test_streams.py",
    "tests/test_log.py",
    "tests/test_public.py",
)

JUDGED_BY: dict[str, tuple[str, ...]] = {
    "credentials": (
        "tests/credentials",
        "tests/engine/test_issuers.py",
        "tests/engine/test_providers.py",
    ),
    "options": ("tests/engine/test_arguments.py",),
    "upload": _ENGINE,
    "uploader": _ENGINE,
}
"""Modules and packages whose tests stand elsewhere than their names suggest."""

NO_JUDGES = frozenset({"tests/engine/test_kill.py", "tests/engine/test_hostile_endpoints.py"})
"""Tests that run uploads in processes of their own: mutmut does not see what those reach."""


def core_patterns() -> list[str]:
    """The core as `coverage report --include` takes it."""
    return [
        f"uploader/{path}/*" if (SOURCE / path).is_dir() else f"uploader/{path}.py"
        for path in (name.replace(".", "/") for name in CORE)
    ]


def core_files() -> list[str]:
    """Every module of the core that holds code, for example "protocol/plan"."""
    found = [file for pattern in core_patterns() for file in sorted(ROOT.glob(pattern))]
    return [
        str(file.relative_to(SOURCE).with_suffix(""))
        for file in found
        if file.suffix == ".py" and file.stem != "__init__"
    ]


def tests_of(module: str) -> list[str]:
    """The test files that judge a module, for example of "protocol/plan"."""
    package = module.partition("/")[0]
    named = JUDGED_BY.get(module.replace("/", ".")) or JUDGED_BY.get(package)
    places = named or (f"tests/{package}" if "/" in module else f"tests/test_{package}.py",)
    files: list[str] = []
    for place in map(ROOT.joinpath, places):
        files += map(str, sorted(place.glob("test_*.py")) if place.is_dir() else [place])
    paths = [str(Path(file).relative_to(ROOT)) for file in files]
    return [path for path in paths if path not in NO_JUDGES]


def main(argv: list[str]) -> int:
    """Print one of the lists."""
    match argv:
        case ["core"]:
            print(",".join(core_patterns()))
        case ["tests"]:
            for module in core_files():
                print(f"{module}: {' '.join(tests_of(module))}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
