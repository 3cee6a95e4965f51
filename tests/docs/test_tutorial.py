"""The tutorial does what it says, command by command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import DOCS, commands, run


@pytest.mark.slow  # the commands of the page are parsed by test_commands
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    """Its Python runs too, with what the page says a development server needs."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    code = code.replace(
        'state="state.db"', 'state="state.db", trust=TrustPolicy(allow_loopback=True)'
    ).replace("import Uploader,", "import TrustPolicy, Uploader,")
    (tmp_path / "example.py").write_text(code)
    lines = commands("tutorial.md")
    killed = next(n for n, line in enumerate(lines) if "kill -9" in line)
    lines[killed + 1] = "vodup status > killed.txt; cat killed.txt"
    printed = run([*lines, "python example.py"], tmp_path)

    results = [line for line in printed.splitlines() if "video" in line and " → " in line]
    assert "movie.mp4 is already uploaded" in printed
    assert re.search(r"credentials renewed [1-9]", results[1]), results[1]
    assert re.search(r"[1-9]\d* of \d+ parts from an earlier run", results[2]), results[2]
    assert "uploading" in (tmp_path / "killed.txt").read_text()
    assert len((tmp_path / "done.jsonl").read_text().splitlines()) == 5
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert printed.rstrip().endswith("crc64")
