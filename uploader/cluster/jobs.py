"""What is queued for a row: enough to upload it elsewhere, later, with no manifest at hand."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import basename
from typing import Any, Final

from uploader.batch import UploadItem
from uploader.bulk.paths import Root
from uploader.bulk.rows import RawRow, Row, RowRules, is_url
from uploader.bulk.runner import CheckedRow
from uploader.errors import ConfigurationError, UnsupportedState
from uploader.opening import default_key
from uploader.protocol.vod import VideoMeta
from uploader.sources import of_path, of_url
from uploader.sources.url_policy import UrlPolicy

__all__ = [
    "QUEUE",
    "PlacedRules",
    "Places",
    "item_of",
    "queue_at",
    "require_known",
    "row_of",
    "spec_of",
    "storable",
    "this_node",
]

QUEUE: Final = "vodup"
"""Of what every worker can read."""

_MAX_NODE: Final = 100
_VERSION: Final = 1


def this_node() -> str:
    """What this machine is called, unless it is told otherwise."""
    return socket.gethostname()


def queue_at(node: str) -> str:
    """Name the queue of what only one machine can read.

    Raises:
        ConfigurationError: the name is no name.
    """
    if not node or len(node) > _MAX_NODE or not node.isprintable() or "@" in node:
        raise ConfigurationError(f"--node: {node[:200]!r} is no name for a machine.")
    return f"{QUEUE}@{node}"


class Places:
    """Which queue a source belongs to.

    Args:
        node: this machine.
        shared: folders that every worker has under the same path.
    """

    def __init__(self, node: str, shared: Sequence[str]) -> None:
        self._local = queue_at(node)
        self._node = node
        self._shared = [Root.at(folder, follow_symlinks=True) for folder in shared]

    def queue_of(self, path: str) -> str:
        """The queue for a path (or URL)."""
        return QUEUE if is_url(path) or self._is_shared(path) else self._local

    def _is_shared(self, path: str) -> bool:
        return any(path.startswith(root.folder.rstrip("/") + "/") for root in self._shared)

    def named(self, row: Row, scope: str) -> Row:
        """Give a local file a key that says which machine it is on.

        The same path on two machines is two files, and the state is shared.
        """
        is_named = row.error is not None or row.video_id is not None or "key" in row.columns
        if is_named or self.queue_of(row.path) != self._local:
            return row
        key = default_key(scope, f"{self._node}:{row.path}")
        return replace(row, key=key, upload_key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRules(RowRules):
    """Rules that know which machine they are applied on."""

    places: Places

    def identify(self, raw: RawRow, manifest: str) -> Row:
        """Understand which upload a row is."""
        return self.places.named(RowRules.identify(self, raw, manifest), self.scope)


def spec_of(checked: CheckedRow, *, overwrite: bool) -> str:
    """Write a row down; what `row_of` and `item_of` read."""
    row = checked.row
    spec: dict[str, Any] = {
        "v": _VERSION,
        "key": row.key,
        "upload_key": row.upload_key,
        "path": row.path,
        "real_path": checked.real_path,
        "size": checked.size,
        "video_id": row.video_id,
        "meta": json.loads((row.meta or VideoMeta()).to_text()),
        "columns": dict(row.columns),
        "overwrite": overwrite,
    }
    return json.dumps(spec)


def require_known(spec: Mapping[str, Any]) -> None:
    """Refuse what a later version wrote.

    Raises:
        UnsupportedState: this vodup does not know what it says.
    """
    if spec.get("v") != _VERSION:
        raise UnsupportedState(
            "A newer vodup queued these rows.", next_step="Install that version here as well."
        )


def storable(text: str) -> str:
    """A text that the database can hold: files may be called by bytes that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "")


def row_of(spec: Mapping[str, Any], manifest: str, number: int) -> Row:
    """The row that a spec was made of."""
    meta = dict(spec["meta"])
    return Row(
        manifest,
        number,
        key=spec["key"],
        upload_key=spec["upload_key"],
        path=spec["path"],
        video_id=spec["video_id"],
        meta=VideoMeta(**meta | {"tags": tuple(meta.get("tags", ()))}),
        columns=spec["columns"],
    )


def item_of(spec: Mapping[str, Any], row: Row, urls: UrlPolicy) -> UploadItem:
    """What `Uploader.upload` is told; `urls` says which addresses this worker may read."""
    meta, real_path = row.meta, spec["real_path"]
    name = basename(row.path)
    if meta is not None and meta.file_name is None and real_path and name != basename(real_path):
        meta = replace(meta, file_name=name)  # what it is called there, not where a link leads
    return UploadItem(
        # Links were judged when the row was queued; what changed since is not followed.
        source=of_path(real_path, follow_symlinks=False)
        if real_path
        else of_url(row.path, policy=urls),
        meta=meta,
        video_id=row.video_id,
        key=row.upload_key,
        overwrite=spec["overwrite"],
        size=spec["size"] or None,
    )
