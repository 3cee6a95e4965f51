"""What other people's code relies on: the names, cheap imports, and errors that travel."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import uploader
from uploader import errors
from uploader.errors import ServiceError, TransportError, VodupError

HEAVY = (
    "aiohttp",
    "aliyunsdkcore",
    "aiofiles",
    "oss2",
    "psycopg",
    "pydantic",
    "structlog",
)


def loaded_by(code: str) -> set[str]:
    """Run `code` in a new interpreter; return the top-level modules it has loaded."""
    probe = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return set(done.stdout.decode().split())


def every_error() -> Iterator[type[VodupError]]:
    pending = [VodupError]
    while pending:
        kind = pending.pop()
        if kind.__module__ == errors.__name__:  # other tests make kinds of their own
            yield kind
        pending += kind.__subclasses__()


def an_error(kind: type[VodupError]) -> VodupError:
    return _an_error(kind).located(video_id="c6a2", phase="send")


def _an_error(kind: type[VodupError]) -> VodupError:
    if issubclass(kind, ServiceError):
        return kind(
            "It failed.",
            operation="UploadPart",
            status=403,
            code="AccessDenied",
            request_id="5C3D",
            ec="0003-00000001",
            server_epoch_s=1.5,
            retry_after_s=2.5,
        )
    if issubclass(kind, TransportError):
        return kind("It failed.", is_sent=False, is_timeout=True)
    return kind("It failed.", code="X.Y", request_id="5C3D")


ERRORS = sorted(every_error(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("name", uploader.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(uploader, name) is not None
    assert name in dir(uploader)


def test_public_names_are_sorted_and_without_twins() -> None:
    assert list(uploader.__all__) == sorted(set(uploader.__all__))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(uploader))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {a.asname: node.module for node in imports for a in node.names if a.asname == a.name}
    homes = {name: f"uploader.{home}" for name, home in uploader._HOME_OF.items()}
    assert seen == homes


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(uploader, "no_such_name")  # noqa: B009  # mypy knows the name is not there


def test_every_error_is_public() -> None:
    assert {kind.__name__ for kind in ERRORS} <= set(uploader.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import uploader") & set(HEAVY)


def test_importing_errors_loads_nothing_heavy() -> None:
    assert not loaded_by("from uploader import VodupError, CredentialsRejected") & set(HEAVY)


def test_the_uploader_does_not_load_the_signing_codecs() -> None:
    loaded = loaded_by("from uploader import Uploader, VodProvider")
    assert "aiohttp" in loaded
    assert not loaded & {"oss2", "aliyunsdkcore"}


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_say_what_where_and_what_next(kind: type[VodupError]) -> None:
    error = an_error(kind)
    assert (error.message, error.video_id, error.phase) == ("It failed.", "c6a2", "send")
    assert error.next_step == kind.default_next_step
    assert str(error) == f"It failed. {error.next_step}"


@pytest.mark.parametrize("kind", ERRORS)
def test_next_steps_are_sentences(kind: type[VodupError]) -> None:
    step = kind.default_next_step
    assert step[0].isupper()
    assert step.endswith(".")


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_survive_the_way_to_another_process(kind: type[VodupError]) -> None:
    error = an_error(kind)
    error.is_temporary = True
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(copied) is kind
        assert vars(copied) == vars(error)
        assert (str(copied), copied.args) == (str(error), error.args)


def test_a_given_next_step_replaces_the_usual_one() -> None:
    error = VodupError("It failed.", next_step="Do this.")
    assert str(error) == "It failed. Do this."


def test_the_place_is_filled_in_where_it_is_not_known() -> None:
    error = VodupError("It failed.", phase="send")
    assert error.located(video_id="c6a2", phase="complete") is error
    assert (error.video_id, error.phase) == ("c6a2", "send")


# --- under its other name -------------------------------------------------------------


@pytest.fixture
def alias(tmp_path: Path) -> Path:
    """A folder in which `vodup` is what the wheel installs by that name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vodup").symlink_to(Path(uploader.__path__[0]) / "_vodup")
    return tmp_path / "site"


def with_alias(alias: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": f"{alias}:{Path(uploader.__path__[0]).parent}"}
    return subprocess.run(
        [sys.executable, *argv],
        cwd=alias.parent,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_vodup_is_the_same_package(alias: Path) -> None:
    code = """
import vodup.errors, vodup.sources.files
import uploader
assert vodup is uploader
assert vodup.errors is uploader.errors
assert uploader.errors.__spec__.name == "uploader.errors"
from vodup.sources.files import FileSource
assert FileSource is vodup.FileSource
from importlib.metadata import version
assert vodup.__version__ == version("vodup")
"""
    done = with_alias(alias, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["vodup", "uploader"])
def test_both_names_run_the_command(name: str, alias: Path) -> None:
    done = with_alias(alias, "-m", name, "version")
    assert (done.returncode, done.stdout.split()) == (0, ["vodup", uploader.__version__])


def test_another_package_of_the_name_is_reported(alias: Path) -> None:
    (alias.parent / "uploader.py").write_text("")
    done = with_alias(alias, "-c", "import vodup")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert f"Python finds another one: {alias.parent}/uploader.py. Rename that file" in message


@pytest.mark.slow
def test_type_checkers_find_typing_errors_in_calls(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("""
from uploader import BlockingUploader, VideoMeta, upload_sync

upload_sync("movie.mp4", metadata=VideoMeta())  # 4
upload_sync("movie.mp4", meta="A")  # 5
with BlockingUploader(stat="a.db") as up:  # 6
    up.upload("movie.mp4", meta=VideoMeta(), overwrit=True)  # 7
    up.submit("movie.mp4", key=5).result(timeout="5")  # 8
    for outcome in up.upload_many([], file=3):  # 9
        print(outcome.result)
upload_sync("movie.mp4", meta=VideoMeta(title="A"), key="k")
""")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(Path(uploader.__path__[0]).parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    found = {line.split(":")[1] for line in done.stdout.splitlines() if line.startswith("program")}
    assert found == {"4", "5", "6", "7", "8", "9"}, done.stdout
