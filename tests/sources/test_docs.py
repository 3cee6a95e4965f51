"""The commands of docs/sources.md are run as they stand there."""

from __future__ import annotations

from pathlib import Path

from tests.pages import commands, free_port, run


def test_the_commands_of_the_page_upload_what_they_claim(tmp_path: Path) -> None:
    port = str(free_port())
    lines = [line.replace("8765", port) for line in commands("sources.md")]
    printed = run(lines, tmp_path)
    pushes = [line for line in lines if "vodup push" in line]
    uploaded = [line for line in printed.splitlines() if ", verified" in line]
    again = [line for line in printed.splitlines() if "nothing to send" in line]
    assert len(uploaded) + len(again) == len(pushes) >= 7, printed
    assert len(again) == 1
