"""How a folder is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from uploader.protocol.vod import VideoMeta
from uploader.watch.after import AfterUpload


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """How a folder is watched.

    Attributes:
        include, exclude: patterns of names, or with a "/" of paths below the folder; without
            `include`, files of the types that VOD accepts.
        settle_s: how long a file must stay the same to be complete. Too short: a writer that
            pauses is taken for one that has finished. Too long: videos start late.
        ready: name of a marker that says that a file is complete, such as "{path}.done", instead
            of `settle_s`.
        after: what becomes of a file that is verified.
        failed_folder: where files that failed for good are moved, with the reason beside them.
        rescan_s: how often to look at the folder when nothing was reported. Too short: a large
            folder keeps the disk busy. Too long: what notifications lost is found late.
        poll_s: look this often, and use no notifications; None: only where the system has none.
        wait_s: put a file away only when its video plays, and report after this long that it does
            not yet; None: do not wait.
        is_once: end when what is there has ended, instead of waiting for more.
        files: uploads at once; None for the default.
        requires_metadata: a video waits until it has a file of metadata.
        title_template: as for `RowRules`.
        meta: for the fields that the metadata does not give.
        priorities: patterns, each with the priority of what it matches; the first one counts.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    settle_s: float = 10.0
    ready: str | None = None
    after: AfterUpload = field(default_factory=AfterUpload)
    failed_folder: str | None = None
    rescan_s: float = 60.0
    poll_s: float | None = None
    wait_s: float | None = None
    is_once: bool = False
    files: int | None = None
    requires_metadata: bool = False
    title_template: str | None = None
    meta: VideoMeta = field(default_factory=VideoMeta)
    priorities: Sequence[tuple[str, int]] = ()
