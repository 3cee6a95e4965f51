"""House rules for every upload: titles are kept short, rehearsals stay here, endings are noted.

As hooks of an uploader: `UploadOptions(hooks=[HOOKS])`. As hooks of every `vodup` command on a
machine, named by the package that brings them:

    [project.entry-points."vodup.hooks"]
    house = "house_rules:HOOKS"
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from uploader import EndedUpload, Hooks, PlannedVideo, PolicyError, VideoMeta

ENDINGS = os.environ.get("HOUSE_ENDINGS", "endings.jsonl")
LONGEST_TITLE = 40


def before_create(planned: PlannedVideo) -> VideoMeta | None:
    """Decide before anything exists at VOD."""
    title = planned.meta.title or os.path.basename(planned.source)
    if title.startswith("Rehearsal"):
        raise PolicyError(
            f"{title} is a rehearsal, and those stay in the house.",
            next_step="Give it another title if it is to be published.",
        )
    return replace(planned.meta, title=title[:LONGEST_TITLE])


def note(ended: EndedUpload) -> None:
    """Write a line for each ending. A later run may tell of the same one again."""
    line = {
        "video": ended.video_id,
        "file": ended.source,
        "error": ended.error.message if ended.error else None,
    }
    with open(ENDINGS, "a", encoding="utf-8") as endings:
        endings.write(json.dumps(line) + "\n")


HOOKS = Hooks(name="house", before_create=before_create, after_verify=note, on_failure=note)
