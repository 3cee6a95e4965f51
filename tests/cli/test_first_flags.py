"""Flags that people try first: they work, or the answer names what does."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from uploader.cli import run
from uploader.cli.app import app
from uploader.cli.app import run as command
from uploader.cli.flags import PushFlags
from uploader.cli.man import man_page
from uploader.cli.printing import Outputs, is_coloured
from uploader.cli.settings import make_options
from uploader.units import MIB


@pytest.fixture(autouse=True)
def outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a command sets in this process is undone; there is no config file."""
    for name in ("is_json", "is_quiet", "color", "has_progress"):
        monkeypatch.setattr(Outputs, name, getattr(Outputs, name))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        command(words)
    return int(ended.value.code or 0)


def flags_of(*words: str) -> PushFlags:
    push = app.commands["push"]
    return PushFlags(**push.make_context("push", [*words]).params)


@pytest.mark.parametrize("words", [("--version",), ("-V",), ("version",)])
def test_the_version_is_printed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*words) == 0
    assert capsys.readouterr().out.startswith("vodup ")


@pytest.mark.parametrize("words", [("help",), ("help", "push")])
def test_help_is_a_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*words) == 0
    assert capsys.readouterr().out.startswith("Usage: vodup")


def test_names_of_other_programs_are_the_same_flags() -> None:
    flags = flags_of("-j", "3", "--limit-rate", "4MB/s", "--endpoint-url", "http://vod", "a.mp4")
    assert flags.concurrency == 3
    assert flags.bwlimit is not None
    assert flags.bwlimit.changes == ((0, 4 * MIB),)
    assert flags.vod_endpoint == "http://vod"


def test_a_timeout_is_how_long_nothing_may_move() -> None:
    assert make_options(flags_of("--timeout", "1m", "a.mp4")).stall_timeout_s == 60
    assert make_options(flags_of("a.mp4")).stall_timeout_s == 30


def test_retry_for_holds_for_first_contact_too() -> None:
    retry = make_options(flags_of("--retry-for", "2h", "a.mp4")).retry
    assert (retry.patience_s, retry.first_contact_patience_s) == (7200, 7200)


@pytest.mark.parametrize(
    ("word", "level"), [("-v", "critical"), ("-vv", "info"), ("-vvv", "debug")]
)
def test_more_details_are_logged(word: str, level: str) -> None:
    flags = flags_of(word, "a.mp4")
    assert flags.verbose
    assert flags.log_level == level


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("-r", "vodup ingest -r FOLDER"),
        ("--recursive", "vodup ingest -r FOLDER"),
        ("-y", "never asks for confirmation"),
        ("--retries", "--retry-for DURATION"),
        ("--jobs", "-j N"),
        ("--insecure", "--ca-file FILE"),
        ("--resume", "run the same command again"),
    ],
)
def test_what_does_not_exist_is_answered_by_name(
    flag: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("push", flag, "x") == run.USAGE
    err = capsys.readouterr().err
    assert f"Error: {flag}: " in err
    assert answer in err


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("push", "--nothing") == run.USAGE
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--json",), ("-o", "json"), ("--output=json",)])
def test_an_error_about_no_file_is_a_json_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("push", *words) == run.USAGE
    line = json.loads(capsys.readouterr().out)
    assert (line["type"], line["error"], line["exit_code"]) == ("error", "ConfigurationError", 2)
    assert line["message"] == "No files given."


def test_a_mistake_on_the_command_line_is_a_json_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Outputs, "is_json", True)
    assert code_of("push", "-y") == run.USAGE
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"


def test_a_dry_run_checks_files_and_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(2 * MIB))
    (tmp_path / "b.txt").write_text("no video")
    assert code_of("push", "-n", "a.mp4") == 0
    assert capsys.readouterr().out == "Would upload a.mp4 (2.0 MiB). Dry run: nothing sent.\n"
    assert code_of("push", "--dry-run", "a.mp4", "b.txt", "missing.mp4") == run.FAILED
    captured = capsys.readouterr()
    assert captured.out.count("Would upload") == 1
    assert "VOD does not accept files like 'b.txt'." in captured.err
    assert "missing.mp4" in captured.err
    assert code_of("push", "-n", "--json", "a.mp4") == 0
    assert json.loads(capsys.readouterr().out)["size"] == 2 * MIB


def test_a_log_file_is_for_its_owner_and_gets_what_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "vodup.log"
    assert code_of("status", "--state", "memory", "--log-file", str(log)) in {0, run.USAGE}
    assert log.stat().st_mode & 0o077 == 0
    assert code_of("status", "--log-file", "/nowhere/x.log") == run.USAGE
    assert "--log-file: cannot write /nowhere/x.log" in capsys.readouterr().err


def test_colours_are_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    class Terminal:
        def isatty(self) -> bool:
            return True

    assert is_coloured(Terminal())
    assert not is_coloured(object())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_coloured(Terminal())
    monkeypatch.setattr(Outputs, "color", "always")
    assert is_coloured(object())


def test_help_has_headings_with_the_flags_of_the_command_first() -> None:
    push = app.commands["push"]
    help = push.get_help(click.Context(push, info_name="push"))
    headings = [line for line in help.splitlines() if line.endswith(":") and line[:1].isalpha()]
    assert headings[:2] == ["Arguments:", "Options:"]
    assert {"Transfer:", "Fields of the video:", "Output:"} <= set(headings)
    assert help.count("--concurrency") == 1


def test_a_shell_completes_choices() -> None:
    push = app.commands["push"]
    ctx = click.Context(push)
    color = next(each for each in push.get_params(ctx) if each.name == "color")
    assert [item.value for item in color.shell_complete(ctx, "a")] == ["auto", "always"]


def test_the_man_page_has_every_command_flag_and_exit_code() -> None:
    page = man_page()
    plain = page.replace("\\-", "-")
    for name, each_command in app.commands.items():
        if isinstance(each_command, click.Group):
            continue
        assert f'.SS "vodup {name} ' in plain
        for each in each_command.get_params(click.Context(each_command)):
            if isinstance(each, click.Option):
                assert each.opts[-1] in plain
    for code in run.EXIT_CODES.values():
        assert f"\\fB{code}\\fR" in page
    requests = {line.split()[0] for line in page.splitlines() if line.startswith(".")}
    assert requests == {".TH", ".SH", ".B", ".SS", ".TP"}
