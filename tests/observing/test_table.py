"""docs/observability.md lists every event there is, with its level and its fields."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from uploader import events
from uploader.upload.progress import _level_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+\.[a-z_]+)` \| ([a-z]*) ?\| .* \| ([^|]*)\|$", re.M)
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def table(heading: str) -> dict[str, tuple[str, set[str]]]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {
        name: (level, set(re.findall(r"`(\w+)`", named)))
        for name, level, named in ROW.findall(section)
    }


def kinds() -> list[type[events.Event]]:
    return events.Event.__subclasses__()


def test_every_event_is_listed_with_its_fields() -> None:
    common = {field.name for field in fields(events.Event)}
    there = {kind.type: {f.name for f in fields(kind)} - common for kind in kinds()}
    assert {name: named for name, (_, named) in table("Events").items()} == there


def test_every_event_is_listed_with_its_level() -> None:
    there = {}
    for kind in kinds():
        made = kind(**{field.name: None for field in fields(kind)})  # type: ignore[arg-type]
        level = logging.getLevelName(_level_of(made)).lower()
        there[kind.type] = "" if kind is events.UploadProgress else level
    assert {name: level for name, (level, _) in table("Events").items()} == there


def logged() -> Iterator[tuple[str, str]]:
    """Event and level of each call of a logger with a name in it, wherever it is."""
    for path in (ROOT / "uploader").rglob("*.py"):
        if "devserver" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=level), args=[ast.Constant(value=str(name)), *_]
                ) if level in LEVELS and re.fullmatch(r"[a-z_]+\.[a-z_]+", name):
                    yield name, "error" if level == "exception" else level


def test_every_other_log_event_is_listed() -> None:
    assert {name: level for name, (level, _) in table("Logs").items()} == dict(logged())
