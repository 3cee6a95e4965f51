"""The Chinese pages have the structure and the commands of the English ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gates import cli_page
from tests.pages import DOCS

PAGES = sorted(path.name for path in (DOCS / "zh").glob("*.md"))
_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def english(name: str) -> Path:
    """README stands above the docs."""
    return DOCS.parent / name if name == "README.md" else DOCS / name


def headings(page: Path) -> list[int]:
    """The level of each heading, in order; a comment in a block is none."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    return [len(found) for found in re.findall(r"^(#+) ", text, re.MULTILINE)]


def blocks(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text("utf-8"))


def codes(page: Path) -> set[str]:
    """What stands in code in the first column of tables: flags, codes, variables."""
    cells = re.findall(r"^\| ([^|]*) \|", page.read_text("utf-8"), re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`([^`]+)`", cell)}


def test_the_pages_that_beginners_read_are_translated() -> None:
    assert {*PAGES} >= {"README.md", "install.md", "tutorial.md", "cli.md", "troubleshooting.md"}


@pytest.mark.parametrize("name", PAGES)
def test_a_translation_has_the_same_headings_blocks_and_codes(name: str) -> None:
    translated = DOCS / "zh" / name
    assert headings(translated) == headings(english(name))
    assert blocks(translated) == blocks(english(name))
    assert codes(translated) == codes(english(name))


@pytest.mark.parametrize("name", PAGES)
def test_a_translation_is_chinese(name: str) -> None:
    text = _BLOCK.sub("", (DOCS / "zh" / name).read_text("utf-8"))
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > len(text) / 10


def test_translations_are_of_texts_that_exist() -> None:
    stale = cli_page.translations().keys() - cli_page.texts()
    assert sorted(stale) == [], "remove or correct them in tests/gates/flags_zh.toml"
