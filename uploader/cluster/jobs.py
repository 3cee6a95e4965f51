"""What is queued for a row: enough to upload it elsewhere, later, without the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from uploader.bulk.ledger import KnownRow
from uploader.bulk.rows import RawRow, Root, Row, RowRules, identity_of_path, is_url
from uploader.bulk.runner import CheckedRow
from uploader.errors import ConfigurationError, UnsupportedState
from uploader.protocol.vod import VideoMeta
from uploader.upload.request import default_key

TASK: Final = "vodup.upload"

QUEUE: Final = "vodup"
"""Rows that every worker can read."""

_MAX_NODE: Final = 100
_VERSION: Final = 1
_ROW_FIELDS: Final = ("key", "upload_key", "path", "video_id", "columns", "stamp")


def queue_at(node: str) -> str:
    """Return the queue of rows that only one machine can read.

    Raises:
        ConfigurationError: the node's name is invalid.
    """
    if not node or len(node) > _MAX_NODE or not node.isprintable() or "@" in node:
        raise ConfigurationError(
            f"--node: {node[:200]!r} is not a valid name for a machine.",
            next_step=f"Use up to {_MAX_NODE} printable characters without '@'.",
        )
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
        folders = (Root.at(folder).folder for folder in shared)
        self._shared = tuple(f"{folder.rstrip('/')}/" for folder in folders)

    def queue_of(self, path: str) -> str:
        """Return the queue for a path or a URL."""
        return QUEUE if is_url(path) or path.startswith(self._shared) else self._local

    def with_node(self, row: Row, scope: str) -> Row:
        """Put the machine into the key of a local file.

        The same path on two machines is two files, and the state is shared.
        """
        has_key = row.error is not None or row.video_id is not None or "key" in row.columns
        if has_key or is_url(row.path):
            return row
        path = identity_of_path(row.path)
        if self.queue_of(path) != self._local:
            return row
        key = default_key(scope, f"{self._node}:{path}")
        return replace(row, key=key, upload_key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRules(RowRules):
    """Rules that know the machine they are applied on."""

    places: Places

    def identify(self, raw: RawRow, manifest: str) -> Row:
        """Find out which upload a row is."""
        return self.places.with_node(RowRules.identify(self, raw, manifest), self.scope)


def spec_of(checked: CheckedRow, *, overwrite: bool) -> str:
    """Return a row as text, for `checked_row`."""
    row = checked.row
    spec: dict[str, Any] = {
        "v": _VERSION,
        **{name: getattr(row, name) for name in _ROW_FIELDS},
        "meta": json.loads((row.meta or VideoMeta()).to_text()),
        "real_path": checked.real_path,
        "size": checked.size,
        "overwrite": overwrite or checked.overwrite,
        "on_source_change": checked.on_source_change,
    }
    return json.dumps(spec)


def checked_row(spec: Mapping[str, Any], manifest: str, number: int) -> CheckedRow:
    """Return the row that a spec was made of.

    Raises:
        UnsupportedState: a later version wrote the spec.
    """
    if spec.get("v") != _VERSION:
        raise UnsupportedState(
            "A newer vodup queued these rows.", next_step="Install that version here as well."
        )
    row = row_of(spec, manifest, number)
    return CheckedRow(
        row,
        KnownRow(),
        spec["real_path"],
        spec["size"],
        overwrite=spec["overwrite"],
        on_source_change=spec["on_source_change"],
    )


def row_of(spec: Mapping[str, Any], manifest: str, number: int) -> Row:
    """Return the row of a spec of this version."""
    meta = dict(spec["meta"])
    given: dict[str, Any] = {name: spec[name] for name in _ROW_FIELDS}
    given["stamp"] = tuple(given["stamp"]) if given["stamp"] else None
    tags = tuple(meta.pop("tags", ()))
    return Row(manifest, number, meta=VideoMeta(**meta, tags=tags), **given)


def storable(text: str) -> str:
    """Return a text that the database can hold: file names may be bytes that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "")
