"""A terminal in memory: what is visible after bytes were written to it."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\x1b\[(\d*)([AJKm])|\x1b\[[\d;?]*[a-zA-Z]|(\r?\n)|(\r)|([^\x1b\r\n])")


def lines_of(text: str, columns: int = 80) -> list[str]:
    """Return the lines of a terminal that knows what the display uses; long lines wrap."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for count, verb, line_end, start, character in _SEQUENCE.findall(text):
        if line_end:
            row, column = row + 1, 0
        elif start:
            column = 0
        elif verb == "A":
            row -= int(count or 1)
            assert row >= 0, "above the top"
        elif verb == "J":
            rows[row][column:] = []
            rows[row + 1 :] = []
        elif character:
            if column == columns:
                row, column = row + 1, 0
            rows += [[] for _ in range(row + 1 - len(rows))]
            rows[row][column : column + 1] = [character]
            column += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
    return ["".join(one).rstrip() for one in rows]
