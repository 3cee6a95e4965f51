"""The documentation builds without a warning, and says nothing of where it was written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS

ROOT = DOCS.parent
PAGES = sorted(DOCS.rglob("*.md"))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ".mkdocs.yml", "-d",
         str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Uploader" in (tmp_path / "site" / "reference.html").read_text()
    tutorial = (tmp_path / "site" / "tutorial.html").read_text()
    assert '<span class="gp">$ </span>vodup' in tutorial  # copy.css leaves it out of what is copied
    assert "copy.css" in tutorial


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": (\S+\.md)$", (ROOT / ".mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_pages_name_no_place_on_a_machine() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        assert not re.search(r"/(?:root|work|home/\w+)/", page.read_text()), page


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.name)
def test_prompts_stand_only_in_blocks_that_are_copied_without_them(page: Path) -> None:
    """Those of consoles; the README has one as a picture."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
        has_prompt = bool(re.search(r"^\s*\$ ", block, re.MULTILINE))
        assert (
            not has_prompt
            or language == "console"
            or (language, page.name) == ("text", "README.md")
        )


@pytest.mark.parametrize("page", ["README.md", "docs/zh/README.md"])
def test_links_of_pages_outside_of_the_site_lead_somewhere(page: str) -> None:
    """The site's builder checks the others; it does not see these, or not as a repository does."""
    folder = (ROOT / page).parent
    links = re.findall(
        r"\]\((?!https?://)([^)#]+)(?:#([^)]+))?\)", (ROOT / page).read_text("utf-8")
    )
    for path, anchor in links:
        assert (folder / path).exists(), path
        if anchor and path.endswith(".md"):
            headings = re.findall(r"^#+ (.*)$", (folder / path).read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in slugs, f"{path}#{anchor}"
