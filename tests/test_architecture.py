"""The shape of the house: which module may import which, and where each package lives.

`LINES` is the plan, read from the top: a module imports only from the lines above its own.
Imports under `TYPE_CHECKING` and inside functions count too, because they bind two modules
together as much as any other. A new module fails here until it is given its line.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "uploader"
SOURCE = Path(__file__).parents[1] / PACKAGE


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the plan: a module, or with `.*` a package whose inside is its own affair."""

    name: str
    third_party: frozenset[str] = frozenset()
    pure: bool = False

    def holds(self, module: str) -> bool:
        """Whether this is the module's line."""
        if self.name.endswith(".*"):
            package = self.name.removesuffix(".*")
            return module == package or module.startswith(f"{package}.")
        return module == self.name


def _value(name: str, *third_party: str) -> Line:
    return Line(name, frozenset(third_party), pure=True)


def _hand(name: str, *third_party: str) -> Line:
    return Line(name, frozenset(third_party))


ROOT = "__init__"

# Module names without the leading `uploader.`, and the third-party packages at home in each.
LINES = (
    # values: pure, no I/O, no clock, no asyncio
    _value("units"),
    _value("redaction"),
    _value("errors"),
    _value("protocol.documents", "defusedxml"),
    _value("protocol.grants"),
    _value("protocol.decode"),
    _value("protocol.trust", "yarl"),
    _value("protocol.plan"),
    _value("protocol.part_sizes"),
    _value("protocol.integrity", "fastcrc"),
    _value("protocol.wire"),
    _value("protocol.oss"),
    _value("protocol.vod"),
    _value("protocol.media"),
    _value("protocol.catalog"),
    _value("protocol.signing", "oss2"),
    _value("protocol.ims"),
    _value("protocol.hls"),
    _value("protocol.failures"),
    _value("protocol"),
    _value("events"),
    _value("pace.steering"),
    # hands: one kind of I/O each
    _hand("clock"),
    _hand("portable"),
    _hand("unexpected"),
    _hand("log", "structlog"),
    _hand("tasks"),
    _hand("threads"),
    _hand("commands"),
    _hand("tracker"),
    _hand("pace.bandwidth"),
    _hand("pace.slots"),
    _hand("pace.pace", "aiolimiter"),
    _hand("pace"),
    _hand("transport.sockets"),
    _hand("transport.proxies", "yarl"),
    _hand("transport.tls"),
    _hand("transport.errors", "aiohttp", "yarl"),
    _hand("transport.body_writer", "aiohttp"),
    _hand("transport.watchdog"),
    _hand("transport.client", "aiohttp", "yarl"),
    _hand("transport"),
    _hand("private_files"),
    _hand("sources.contract"),
    _hand("sources.bytes"),
    _hand("sources.files", "aiofiles"),
    _hand("sources.hls"),
    _hand("sources.followed", "aiofiles"),
    _hand("sources.readers"),
    _hand("sources.part_buffer"),
    _hand("sources.spool"),
    _hand("sources.streams"),
    _hand("sources.file_objects"),
    _hand("sources.url_policy", "yarl"),
    _hand("sources.url_client", "aiohttp", "yarl"),
    _hand("sources.urls", "aiohttp"),
    _hand("sources.fsspec", "fsspec"),
    _hand("sources"),
    _hand("state.*", "platformdirs", "psycopg"),
    _hand("session"),
    _hand("endpoints"),
    _hand("credentials.contract"),
    _hand("credentials.live"),
    _hand("credentials.caller", "alibabacloud_credentials"),
    _hand("credentials.vod"),
    _hand("credentials.ims"),
    _hand("credentials.app_server"),
    _hand("credentials"),
    _hand("library"),
    # engine
    _hand("hooks"),
    _hand("notifications"),
    _hand("options"),
    _hand("upload.proof"),
    _hand("upload.progress"),
    _hand("upload.request"),
    _hand("upload.resume"),
    _hand("upload.grant"),
    _hand("upload.object"),
    _hand("upload.parts"),
    _hand("upload.streaming"),
    _hand("upload.verify"),
    _hand("upload.former"),
    _hand("upload.settle"),
    _hand("upload.main"),
    _hand("upload.media"),
    _hand("upload.package"),
    _hand("upload"),
    _hand("batch"),
    _hand("handles"),
    _hand("network"),
    _hand("uploader"),
    _hand("companions"),
    _hand("blocking", "anyio"),
    # on top
    _hand("metrics", "prometheus_client"),
    _hand("tracing", "opentelemetry"),
    _hand("bulk.*", "aiohttp", "pyarrow"),
    _hand("watch.*", "watchfiles", "yaml"),
    _hand("serve.*", "aiohttp"),
    _hand("cluster.*", "procrastinate", "psycopg", "psycopg_pool"),
    _hand(ROOT),
    _hand("devserver.*", "aiohttp", "fastcrc", "trustme", "pytest", "yarl"),
    _hand("cli.*", "click", "platformdirs", "uvloop"),
    _hand("__main__"),
    _hand("_vodup"),
    _hand("pyinstaller.*", "PyInstaller"),
)

# What an upload's outcome rests on; packages whole. Tests cover every line and branch of it
# (`make coverage`) and notice small changes in it (`make mutants`).
CORE = (
    "protocol",
    "state",
    "session",
    "credentials",
    "options",
    "upload",
    "uploader",
)

# The size from which a reader loses the thread, in lines.
LONGEST_MODULE, LONGEST_CLASS, LONGEST_FUNCTION = 500, 300, 50

# Lines of the package without the devserver. The layout was rebuilt with 25,000 in mind and came
# to 27,900; proxies, endpoints, profiles and encodings made it 30,500, and watched folders, media
# other than videos, notifications, the service and the terminal came after that. Lower it as the
# package shrinks.
MOST_LINES = 38_400

# What is longer today, and will be divided: modules, and classes as "module:Class".
TOO_LONG: frozenset[str] = frozenset()

# Classes that stand in two modules today, and will get names of their own.
SHARED_NAMES = frozenset("Journal Row".split())

# What a value has no use for: each of these waits, asks the clock, rolls dice or touches a device.
# `http` itself is not among them: HTTPStatus is a table of numbers.
IMPURE_MODULES = frozenset(
    {
        "asyncio",
        "concurrent",
        "fcntl",
        "http.client",
        "http.server",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib.request",
        "uuid",
    }
)
IMPURE_CALLS = frozenset({"open", "print", "input"})
CLOCK_METHODS = frozenset({"now", "utcnow", "today"})


@dataclass(frozen=True, slots=True)
class Import:
    """One name a module depends on, absolute, and where it says so."""

    target: str
    line_number: int


def sources_of(directory: Path) -> dict[str, str]:
    """Every module under `directory`, by its name without the leading `uploader.`."""
    found = {}
    for path in sorted(directory.rglob("*.py")):
        parts = path.relative_to(directory).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts) or ROOT] = path.read_text(encoding="utf-8")
    return found


def violations(sources: Mapping[str, str]) -> list[str]:
    """What in these modules does not agree with `LINES`, one sentence each."""
    known = frozenset(sources)
    packages = frozenset(name.rpartition(".")[0] for name in sources) - {""}
    found: list[str] = []
    ours: dict[str, set[str]] = {}
    for module, source in sources.items():
        line = _line_of(module)
        if line is None:
            found.append(f"{module}: has no line in LINES; give it its place")
            continue
        tree = ast.parse(source)
        imports = list(_imports(tree, module, is_package=module in packages, known=known))
        ours[module] = {_own_name(i.target, known) for i in imports if _is_ours(i.target)}
        found.extend(_misplaced(module, line, imports, known))
        found.extend(_foreign(module, line, imports))
        if line.pure:
            found.extend(_impure(module, tree, imports))
    found.extend(_cycles(ours))
    return found


def _line_of(module: str) -> Line | None:
    return next((line for line in LINES if line.holds(module)), None)


def _is_ours(target: str) -> bool:
    return target == PACKAGE or target.startswith(f"{PACKAGE}.")


def _own_name(target: str, known: frozenset[str]) -> str:
    """The module behind `uploader.a.b.name`: the longest prefix that exists or is planned."""
    planned = {line.name.removesuffix(".*") for line in LINES}
    name = target.removeprefix(PACKAGE).removeprefix(".")
    while name and name not in known and name not in planned:
        name = name.rpartition(".")[0]
    return name or ROOT


def _imports(
    tree: ast.AST, module: str, *, is_package: bool, known: frozenset[str]
) -> Iterator[Import]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, node.lineno)
            case ast.ImportFrom(names=names):
                base = _base(node, module, is_package=is_package)
                for alias in names:
                    yield Import(f"{base}.{alias.name}", node.lineno)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if _is_import_call(node):
                yield Import(name, node.lineno)


def _base(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """What the names of a `from … import` hang on, absolute."""
    if node.level == 0:
        return node.module or ""
    parts = [PACKAGE] if module == ROOT else [PACKAGE, *module.split(".")]
    up = node.level - (1 if is_package or module == ROOT else 0)
    parts = parts[: len(parts) - up]
    return ".".join([*parts, node.module] if node.module else parts)


def _is_import_call(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in {"import_module", "__import__"}
    return False


def _misplaced(
    module: str, line: Line, imports: list[Import], known: frozenset[str]
) -> Iterator[str]:
    """Imports of ours from a line that is not above; the root may name anything."""
    for imported in imports:
        if not _is_ours(imported.target) or module == ROOT:
            continue
        target = _own_name(imported.target, known)
        target_line = _line_of(target)
        where = f"{module}:{imported.line_number}"
        if target_line is None:
            yield f"{where}: imports {target}, which has no line in LINES"
        elif target_line is line:
            continue  # inside one package, or a module naming itself: cycles are looked for apart
        elif line.name == "devserver.*":
            yield f"{where}: the devserver imports nothing of ours, but names {target}"
        elif target_line.name == "devserver.*" and line.name != "cli.*":
            yield f"{where}: only cli may start the devserver"
        elif LINES.index(target_line) > LINES.index(line):
            yield f"{where}: imports {target}, which stands below it"


def _foreign(module: str, line: Line, imports: list[Import]) -> Iterator[str]:
    for imported in imports:
        package = imported.target.partition(".")[0]
        if package == PACKAGE or package in sys.stdlib_module_names:
            continue
        if package not in line.third_party:
            yield f"{module}:{imported.line_number}: {package} is not at home here"


def _impure(module: str, tree: ast.AST, imports: list[Import]) -> Iterator[str]:
    for imported in imports:
        parts = imported.target.split(".")
        prefixes = {".".join(parts[: n + 1]) for n in range(len(parts))}
        if banned := prefixes & IMPURE_MODULES:
            yield f"{module}:{imported.line_number}: a value has no use for {min(banned)}"
    for node in ast.walk(tree):
        match node:
            case ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield f"{module}:{node.lineno}: a value does not wait"
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                yield f"{module}:{node.lineno}: a value does no I/O, but calls {name}()"
            case ast.Call(func=ast.Attribute(attr=name)) if name in CLOCK_METHODS:
                yield f"{module}:{node.lineno}: a value has no clock, but calls {name}()"


def _cycles(ours: Mapping[str, set[str]]) -> Iterator[str]:
    graph = {module: targets - {module} for module, targets in ours.items() if module != ROOT}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "modules import each other: " + " → ".join(reversed(error.args[1]))


def too_long(sources: Mapping[str, str]) -> dict[str, str]:
    """Modules, classes and functions above the limits: by name, each with a sentence."""
    found = {}
    for module, source in sources.items():
        if (size := source.count("\n")) > LONGEST_MODULE:
            found[module] = f"{module}: {size} lines, at most {LONGEST_MODULE}"
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.ClassDef(name=name):
                    limit = LONGEST_CLASS
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    limit = LONGEST_FUNCTION
                case _:
                    continue
            if (size := (node.end_lineno or 0) - node.lineno + 1) > limit:
                found[f"{module}:{name}"] = f"{module}:{name}: {size} lines, at most {limit}"
    return found


def test_nothing_is_longer_than_a_reader_can_follow() -> None:
    found = too_long(sources_of(SOURCE))
    assert [sentence for name, sentence in found.items() if name not in TOO_LONG] == []
    assert TOO_LONG - found.keys() == set(), "no longer too long: remove it from TOO_LONG"


def test_a_planted_long_definition_is_caught() -> None:
    body = "    x = 1\n" * 300
    house = {
        "pace": f"class A:\n{body}async def f():\n{body[:700]}",
        "events": "x = 1\n" * 501,
        "clock": f"class A:\n{body[10:]}\ndef f():\n{body[:490]}",
    }
    assert list(too_long(house)) == ["pace:A", "pace:f", "events"]


def test_the_package_does_not_grow() -> None:
    sizes = {
        module: source.count("\n")
        for module, source in sources_of(SOURCE).items()
        if module.partition(".")[0] != "devserver"
    }
    assert sum(sizes.values()) <= MOST_LINES, sorted(sizes.items(), key=lambda item: -item[1])[:20]


def shared_names(sources: Mapping[str, str]) -> dict[str, str]:
    """Classes of one name in several modules, by name: a search should find one thing."""
    homes: dict[str, list[str]] = {}
    for module, source in sources.items():
        if module.partition(".")[0] == "devserver":
            continue  # it shares no code with the rest, so its names are its own
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(module)
    return {
        name: f"class {name} stands in {' and '.join(modules)}"
        for name, modules in homes.items()
        if len(modules) > 1
    }


def test_a_class_name_stands_for_one_thing() -> None:
    found = shared_names(sources_of(SOURCE))
    assert [sentence for name, sentence in found.items() if name not in SHARED_NAMES] == []
    assert SHARED_NAMES - found.keys() == set(), "no longer shared: remove it from SHARED_NAMES"


def test_a_planted_shared_name_is_caught() -> None:
    house = {
        "pace": "class Job: pass",
        "session": "class _Job: pass",
        "devserver.vod": "class Job: pass",
    }
    assert shared_names(house) == {"Job": "class Job stands in pace and session"}


def test_the_core_is_in_the_plan() -> None:
    planned = {line.name.removesuffix(".*") for line in LINES}
    packages = {name.partition(".")[0] for name in planned}
    assert set(CORE) <= planned | packages


def test_modules_import_only_from_above() -> None:
    assert violations(sources_of(SOURCE)) == []


def test_the_whole_package_is_read() -> None:
    assert len(sources_of(SOURCE)) == len(list(SOURCE.rglob("*.py")))


RECORD_WRITES = frozenset({"add_record", "add_ack"})
"""The calls of `UploadClaim` that change a record; `update` is looked for by its receiver."""


def _record_writes(source: str) -> list[int]:
    """The lines on which a record is written."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        function.lineno
        for function in calls
        if isinstance(function, ast.Attribute)
        and (
            function.attr in RECORD_WRITES
            or (function.attr == "update" and ast.unparse(function.value).endswith("claim"))
        )
    ]


def test_only_the_journal_writes_records() -> None:
    found = {name for name, source in sources_of(SOURCE).items() if _record_writes(source)}
    assert found == {"state.journal"}


@pytest.mark.parametrize(
    "call", ["journal._claim.update({})", "c.add_ack(p)", "claim.add_record(r)"]
)
def test_a_planted_write_is_caught(call: str) -> None:
    assert _record_writes(f"async def f(): await {call}") == [1]


def test_every_line_is_its_own() -> None:
    names = [line.name for line in LINES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        ("plan", "", "plan: has no line in LINES; give it its place"),
        (
            "pace",
            "from uploader import blocking",
            "pace:1: imports blocking, which stands below it",
        ),
        (
            "pace",
            "from uploader.blocking import X",
            "pace:1: imports blocking, which stands below it",
        ),
        ("pace", "import uploader.blocking", "pace:1: imports blocking, which stands below it"),
        ("pace", "from .blocking import X", "pace:1: imports blocking, which stands below it"),
        ("pace", "from . import blocking", "pace:1: imports blocking, which stands below it"),
        ("pace", "from uploader import X", "pace:1: imports __init__, which stands below it"),
        (
            "protocol.grants",
            "from .vod import X",
            "protocol.grants:1: imports protocol.vod, which stands below it",
        ),
        (
            "protocol.vod",
            "from ..session import X",
            "protocol.vod:1: imports session, which stands below it",
        ),
        (
            "pace",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .blocking import X",
            "pace:3: imports blocking, which stands below it",
        ),
        (
            "pace",
            "def f():\n    from uploader import blocking",
            "pace:2: imports blocking, which stands below it",
        ),
        (
            "pace",
            "import importlib\nimportlib.import_module('uploader.blocking')",
            "pace:2: imports blocking, which stands below it",
        ),
        (
            "devserver.oss",
            "from uploader.errors import X",
            "devserver.oss:1: the devserver imports nothing of ours, but names errors",
        ),
        (
            "__main__",
            "from uploader.devserver import X",
            "__main__:1: only cli may start the devserver",
        ),
        ("blocking", "import aiohttp", "blocking:1: aiohttp is not at home here"),
        ("session", "from oss2.auth import X", "session:1: oss2 is not at home here"),
        ("sources", "import psycopg.pq", "sources:1: psycopg is not at home here"),
        ("events", "import asyncio", "events:1: a value has no use for asyncio"),
        ("protocol.oss", "from time import time", "protocol.oss:1: a value has no use for time"),
        (
            "protocol.oss",
            "from http.client import X",
            "protocol.oss:1: a value has no use for http.client",
        ),
        (
            "protocol.vod",
            "def f(dt):\n    return dt.datetime.now()",
            "protocol.vod:2: a value has no clock, but calls now()",
        ),
        ("protocol.plan", "open('x')", "protocol.plan:1: a value does no I/O, but calls open()"),
        (
            "protocol.wire",
            "async def f(x):\n    await x",
            "protocol.wire:2: a value does not wait",
        ),
    ],
)
def test_a_planted_violation_is_caught(module: str, source: str, sentence: str) -> None:
    house = dict.fromkeys(
        [ROOT, "errors", "protocol", "protocol.vod", "session", "blocking", "devserver"], ""
    )
    assert violations(house) == []
    assert violations(house | {module: source}) == [sentence]


def test_two_modules_of_one_package_may_not_import_each_other() -> None:
    house = {
        "state": "from .sql import A",
        "state.leases": "from .sql import A",
        "state.sql": "from . import leases",
    }
    [sentence] = violations(house)
    assert sentence.startswith("modules import each other: ")
    assert {"state.leases", "state.sql"} <= set(sentence.split(": ")[1].split(" → "))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (ROOT, "from uploader.cli import main"),
        ("cli.demo", "from uploader.devserver import X\nfrom uploader import Uploader"),
        ("protocol.vod", "from datetime import datetime\nfrom http import HTTPStatus"),
        ("protocol.oss", "from uploader.protocol.trust import oss_region"),
        ("blocking", "from uploader.state import StateStore"),
        ("protocol.wire", "async def read(): return b''"),
        ("state.sql", "from uploader.state.leases import Lease\nimport psycopg"),
    ],
)
def test_what_the_plan_allows_passes(module: str, source: str) -> None:
    house = dict.fromkeys(["uploader", "cli", "devserver", "state", "state.leases"], "")
    assert violations(house | {module: source}) == []


TOP_LEVEL = frozenset(
    "pyproject.toml README.md LICENSE Makefile uploader tests benchmarks docs".split()
)


def test_nothing_new_stands_at_the_top_level() -> None:
    """Examples belong in docs/examples, tools in tests or benchmarks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=SOURCE.parent, capture_output=True, check=False, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = {name.partition("/")[0] for name in listed.stdout.split("\0") if name}
    strange = {n for n in found - TOP_LEVEL if not n.startswith(".") and not n.endswith(".lock")}
    assert strange == set()


# What Windows has not, or only Linux has: `uploader.portable` has a way without each.
_NOT_EVERYWHERE = frozenset("fcntl grp pty pwd resource termios tty".split())
_NOT_EVERYWHERE_IN_OS = frozenset(
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_PATH RWF_NOWAIT fchmod geteuid getuid "
    "killpg preadv pread readv register_at_fork setsid posix_fadvise sched_getaffinity".split()
)
_POSIX_ONLY = {
    "portable": "the home of the differences",
    "commands": "runs nothing without process groups",
    "cluster.supervise": "a process of its own, started by cluster.embedded",
    "cluster.embedded": "refuses other systems",
    "watch.after": "works below descriptors of folders, or refuses",
    "pyinstaller.hook-uploader": "runs while a bundle is made",
}


def not_everywhere(sources: Mapping[str, str]) -> Iterator[str]:
    """Imports and names of `os` and `signal` that some systems do not have."""
    for module, source in sources.items():
        if module in _POSIX_ONLY or module.partition(".")[0] == "devserver":
            continue
        tree = ast.parse(source)
        for statement in tree.body:
            names = [a.name for a in statement.names] if isinstance(statement, ast.Import) else []
            for name in _NOT_EVERYWHERE & {*names, getattr(statement, "module", None)}:
                yield f"{module}:{statement.lineno}: imports {name}"
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id="os"), attr=name):
                    if name in _NOT_EVERYWHERE_IN_OS:
                        yield f"{module}:{node.lineno}: uses os.{name}"
                case ast.Attribute(value=ast.Name(id="signal"), attr="SIGHUP" | "SIGCHLD" as name):
                    yield f"{module}:{node.lineno}: uses signal.{name}"


def test_only_portable_knows_what_systems_lack() -> None:
    assert list(not_everywhere(sources_of(SOURCE))) == []


def test_a_planted_use_of_one_system_is_caught() -> None:
    house = {
        "a": "import fcntl\nfrom pwd import getpwnam\ndef f():\n    import resource\n",
        "b": "import os, signal\nos.preadv(1, [], 0)\nsignal.SIGHUP\nos.read(0, 1)\n",
        "portable": "import fcntl\n",
    }
    assert sorted(not_everywhere(house)) == [
        "a:1: imports fcntl",
        "a:2: imports pwd",
        "b:2: uses os.preadv",
        "b:3: uses signal.SIGHUP",
    ]
