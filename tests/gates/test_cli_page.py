"""docs/cli.md, its Chinese translation and the table of variables match the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gates import cli_page

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_pages_of_flags_match_the_commands() -> None:
    stale = [p.name for p, text in cli_page.pages().items() if p.read_text("utf-8") != text]
    assert stale == [], "run: python -m tests.gates.cli_page --update"


def test_update_writes_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zh").mkdir()
    (tmp_path / "configuration.md").write_text("<!-- variables -->\n<!-- /variables -->\n")
    monkeypatch.setattr(cli_page, "DOCS", tmp_path)
    assert cli_page.main([]) == 1
    assert cli_page.main(["--update"]) == 0
    assert cli_page.main([]) == 0
    assert "`VODUP_PART_SIZE`" in (tmp_path / "configuration.md").read_text()
