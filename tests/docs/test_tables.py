"""The pages for reference match the code: flags, variables, exit codes, errors."""

from __future__ import annotations

import re

import pytest

import uploader
from tests.gates import cli_page
from tests.gates.messages import PUBLIC_ERRORS
from tests.pages import DOCS
from uploader import errors, hooks
from uploader.cli import printing, run
from uploader.protocol.failures import APP_SERVER, OSS, VOD
from uploader.transport.errors import _CODES, _NEXT_STEPS

SOURCE = DOCS.parent / "uploader"
PAGES = ["troubleshooting.md", "zh/troubleshooting.md"]
_OF_CERTIFICATES = {"CertificateIssuer", "CertificateTime", "CertificateHost", "WebPage"}
_VARIABLE = re.compile(r"\b(?:VODUP|ALIBABA_CLOUD)_[A-Z0-9_]+\b(?!\*)")
_HELD_ELSEWHERE = {"VODUP_COMPLETE"}  # of click's own, for completion


def test_every_variable_that_is_read_is_in_the_configuration_page_and_no_other() -> None:
    """The code's variables are those in its texts; of click's flags, those that flags have."""
    modules = [p for p in SOURCE.rglob("*.py") if "devserver" not in p.parts]
    read = {name for p in modules for name in _VARIABLE.findall(p.read_text("utf-8"))}
    of_hooks = {f"VODUP_{name.upper()}" for name in hooks._VARIABLES}
    known = of_hooks | cli_page.variables().keys()
    page = set(_VARIABLE.findall((DOCS / "configuration.md").read_text("utf-8")))
    assert (read | known) - page - _HELD_ELSEWHERE == set()
    assert page - read - known == set()


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of a page."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if line[:1] == "|"]


def test_every_error_has_its_exit_code_in_the_page() -> None:
    table = {cells[0].strip("` "): cells[-1] for cells in rows("exit-codes.md")}
    for name in PUBLIC_ERRORS:
        assert int(re.findall(r"\d+", table[name])[0]) == run.code_of(getattr(errors, name)), name


def test_every_exit_code_has_a_row() -> None:
    codes = {int(cells[0]) for cells in rows("exit-codes.md") if cells[0].strip().isdigit()}
    named = {v for k, v in vars(run).items() if k.isupper() and isinstance(v, int)}
    assert codes == named | {printing.LOST, 130, 143}


# --- troubleshooting ---------------------------------------------------------------------------


def entries(page: str) -> dict[str, set[str]]:
    """The first cells of the tables of a page, by section, without the first section."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^## ", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE)[1:]:
        cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
        found[section.partition("\n")[0]] = {
            name.strip("` ") for cell in cells for name in cell.split(", ")
        }
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_failure_has_an_entry(page: str) -> None:
    _, codes, classes, connection, oss, vod, app_server = entries(page).values()
    exits = {cells[0] for cells in rows("exit-codes.md") if cells[0].isdigit()}
    assert exits == {code for code in codes if code.isdigit()}
    assert classes & PUBLIC_ERRORS == PUBLIC_ERRORS
    assert {*_CODES.values(), *_NEXT_STEPS, *_OF_CERTIFICATES} - connection == set()
    for service, named in ((OSS, oss), (VOD, vod), (APP_SERVER, app_server)):
        assert service.rows.keys() - {""} - named == set()
        assert {name for name in named if name.isascii()} - service.rows.keys() <= {"code", "---"}


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference.md").read_text()
    whole = {"uploader.events", "uploader.errors"}
    described = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    for name in set(uploader.__all__) - described:
        value = getattr(uploader, name)
        assert getattr(value, "__module__", "") in whole or f"`{name}` is" in page, name
