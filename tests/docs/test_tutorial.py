"""The tutorial does what it says, command by command."""

from __future__ import annotations

import re
from pathlib import Path

from tests.pages import DOCS, commands, run


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

    told = [line for line in printed.splitlines() if "stored" in line]
    assert "nothing was sent" in told[1]
    assert re.search(r"[1-9]\d* credentials? renewed|renewed [1-9]", told[2]), told[2]
    assert re.search(r"[1-9]\d* of them from an earlier run", told[3]), told[3]
    assert "uploading" in (tmp_path / "killed.txt").read_text()
    assert len((tmp_path / "done.jsonl").read_text().splitlines()) == 5
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert printed.rstrip().endswith("crc64")
