"""Rules for every upload: titles are short, rehearsals are not uploaded, results are logged.

As hooks of an uploader: `UploadOptions(hooks=[HOOKS])`. As hooks of every `vodup` command on a
machine, declared by the package that provides them:

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
    """Shorten the title, or refuse the video before anything exists at VOD."""
    title = planned.meta.title or os.path.basename(planned.source)
    if title.startswith("Rehearsal"):
        raise PolicyError(
            f"{title} is a rehearsal; rehearsals are not uploaded.",
            next_step="Give it another title to upload it.",
        )
    return replace(planned.meta, title=title[:LONGEST_TITLE])


def log_result(ended: EndedUpload) -> None:
    """Append a line for each result. A later run may report the same one again."""
    line = {
        "video": ended.video_id,
        "file": ended.source,
        "error": ended.error.message if ended.error else None,
    }
    with open(ENDINGS, "a", encoding="utf-8") as endings:
        endings.write(json.dumps(line) + "\n")


HOOKS = Hooks(
    name="house", before_create=before_create, after_verify=log_result, on_failure=log_result
)
