"""The list of messages matches the source, and every error says what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gates import messages, mutants
from uploader import errors
from uploader.errors import VodupError

PUBLIC = sorted(messages.PUBLIC_ERRORS)
SAMPLE = """
LATER = "Try later."

def _refuse(why: str) -> NoReturn:
    raise UntrustedEndpoint(f"Refused: {why}.")

def check(path: str, size: int) -> None:
    if size < 0:
        _refuse("the size is negative")
    text = f"{path} is empty"
    text += " or gone." if size else "."
    error = SourceUnreadable(text, next_step=LATER)
    error.next_step = "Check the path."
    raise ConfigurationError("It is " + ("short." if size else "long."), next_step=None)

class Odd(SourceError):
    default_next_step = "Report it."

raise Odd(str(size))
"""


def lines_of(source: str) -> list[str]:
    return messages.Messages({"sample.py": source}).lines["sample.py"]


def test_the_list_matches_the_source() -> None:
    found = messages.Messages(messages.sources()).as_text()
    renew = "run: python -m tests.gates.messages --update"
    assert found.splitlines() == messages.SNAPSHOT.read_text().splitlines(), renew


def test_messages_are_found_wherever_they_are_made() -> None:
    assert lines_of(SAMPLE) == [
        "ConfigurationError: It is long.",
        "ConfigurationError: It is short.",
        "SourceUnreadable:  or gone.",
        "SourceUnreadable: .",
        "SourceUnreadable: {path} is empty",
        "UntrustedEndpoint: Refused: {why}.",
        "_refuse: the size is negative",
        "next step: Check the path.",
        "next step: Report it.",
        "next step: Try later.",
    ]


def test_update_writes_the_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "messages.txt"
    stored.write_text("old")
    monkeypatch.setattr(messages, "SNAPSHOT", stored)
    assert messages.main([]) == 1
    assert "--update" in capsys.readouterr().out
    assert messages.main(["--update"]) == 0
    assert messages.main([]) == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_error_names_a_next_step(name: str) -> None:
    kind: type[VodupError] = getattr(errors, name)
    step = kind.default_next_step
    assert step[0].isupper() or step[0] == "`"
    assert step.endswith(".")


def test_messages_and_next_steps_are_sentences() -> None:
    kinds = {*PUBLIC, "next step"}
    for module, lines in messages.Messages(messages.sources()).lines.items():
        for line in lines:
            kind, _, text = line.partition(": ")
            is_complete = text.endswith((".", ")", "}", "…"))
            assert is_complete or kind not in kinds, f"{module}: {line}"


@pytest.mark.parametrize(
    ("diff", "is_noticed"),
    [
        (
            [
                '-         raise ConfigurationError("The concurrency must be at least 1.")',
                '+         raise ConfigurationError("XXThe concurrency must be at least 1.XX")',
            ],
            True,
        ),
        (["-     if concurrency < 1:", "+     if concurrency < 2:"], False),
        (["- what is not there", "+ 1"], False),
        (["-     if concurrency < 1:", "+     if concurrency <"], False),
    ],
)
def test_a_mutant_that_changes_a_message_is_noticed(diff: list[str], is_noticed: bool) -> None:
    assert mutants.changes_a_message("protocol/part_sizes.py", diff) is is_noticed
