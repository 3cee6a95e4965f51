"""The fault recipes of the docs: each happens, and a client that goes on gets its film there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import oss2
import pytest

from .real_clients import DOCS, FILM, World, oss2_upload

RECIPES: dict[str, dict[str, Any]] = {
    name: json.loads(fault)
    for name, fault in re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \|$", DOCS.read_text(), re.MULTILINE)
}


def test_there_are_ten() -> None:
    assert len(RECIPES) == 10


def forget_checkpoint(world: World) -> None:
    """oss2 reports the damaged part, but takes it from ListParts when it goes on."""
    for path in (world.folder / ".py-oss-upload").iterdir():
        path.unlink()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_happens_and_is_recovered_from(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.server.faults.replace([RECIPES[name]])
        oss = world.create()
        for _ in range(4):
            try:
                oss2_upload("v4")(world, oss)
                break
            except Exception as error:  # of oss2, requests or urllib3
                world.errors.append(str(error))
                if isinstance(error, oss2.exceptions.InconsistentError):
                    forget_checkpoint(world)
                left = world.server.faults.unconsumed
                world.server.set_options(clock_offset_s=0)
                world.server.faults.replace(left)
                oss = world.refresh(oss.video_id)
        assert world.server.object_bytes(oss.video_id) == FILM, world.errors
        assert not world.server.faults.unconsumed
    finally:
        world.stop()
