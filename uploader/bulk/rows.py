"""Rows of a manifest: from what somebody wrote to what is to be uploaded, or why not."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from uploader.errors import ConfigurationError, UnsafePath, VodupError
from uploader.opening import default_key
from uploader.protocol.limits import problem_of, refuses_name
from uploader.protocol.vod import VideoMeta, title_of
from uploader.sources.url_policy import identity_of, parsed_url, shown

from .paths import Root

__all__ = [
    "COLUMNS",
    "RESULT_COLUMNS",
    "RawRow",
    "Row",
    "RowRules",
    "is_url",
    "path_within",
    "require_title_template",
    "shown_path",
]

_META: Final = frozenset(
    (
        "title description tags cate_id template_group_id workflow_id storage_location cover_url "
        "user_data app_id reference_id file_name"
    ).split()
)
_NO_META: Final = VideoMeta()
_NOTHING: Final[tuple[object, ...]] = (None, "", [])
COLUMNS: Final = frozenset(["path", "source", "key", "video_id", *_META])

RESULT_COLUMNS: Final = frozenset(
    # What a ledger adds to its rows: a ledger is a manifest, too.
    """
    type id row manifest status at size crc64 etag bucket object_key upload_id part_count
    resumed_part_count renewal_count retry_count sent_bytes verified_by seconds is_receipt
    congestion hook_failures error message code request_id resumable temporary next_step exit_code
    attempts
    """.split()
)

_MAX_TEXT: Final = {"path": 4096, "key": 200, "video_id": 64}
_TEMPLATE_FIELDS: Final = frozenset({"stem", "name", "folder", "row"})


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read.

    Attributes:
        number: the line it begins at, or its number where there are no lines; from 1.
        fields: by column; empty when it could not be read.
        problem: why it could not be read.
    """

    number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row, understood or refused.

    Attributes:
        manifest: where it comes from, for people and for the ledger.
        key: what the row is known by, the same in every run; "" for one that was refused.
        upload_key: of the upload in the state; None lets the state say it for `video_id`.
        path: absolute, or a URL; "" where there is none.
        given: the columns that a corrected row would need again.
    """

    manifest: str
    number: int
    key: str = ""
    upload_key: str | None = None
    path: str = ""
    video_id: str | None = None
    meta: VideoMeta | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    error: VodupError | None = None

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.manifest}:{self.number}"

    @property
    def source_name(self) -> str:
        """The path, or the URL without what may be secret in it."""
        return shown_path(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What rows are measured by.

    Attributes:
        root: where paths may lead.
        scope: of the uploader; part of the key of rows that name none.
        title_template: for rows without a title: "{stem}", "{name}", "{folder}", "{row}".
        defaults: of the fields a row does not give.
    """

    root: Root
    scope: str = ""
    title_template: str | None = None
    defaults: VideoMeta = field(default_factory=VideoMeta)

    def begun(self, raw: RawRow, manifest: str) -> Row:
        """Understand which upload a row is; enough for rows that are done already.

        Never raises for what a row says: that is `Row.error`.
        """
        if raw.problem is not None:
            return Row(manifest, raw.number, given=_plain(raw.fields), error=_wrong(raw.problem))
        try:
            return self._begun(raw, manifest)
        except (ConfigurationError, UnsafePath) as error:
            return Row(manifest, raw.number, given=_plain(raw.fields), error=error)

    def _begun(self, raw: RawRow, manifest: str) -> Row:
        given = {n: v for n, v in raw.fields.items() if v not in _NOTHING and n in COLUMNS}
        named = _path_of(given)
        path, identity = named, named
        if is_url(named):
            identity = identity_of(parsed_url(named))
        else:
            path = identity = self.root.absolute(named)
        key = _text(given, "key")
        video_id = _text(given, "video_id")
        if key is None and video_id is None:
            key = default_key(self.scope, identity)
        given["path"] = path
        given.pop("source", None)
        return Row(
            manifest,
            raw.number,
            key=key or f"video-{video_id}",
            upload_key=key,
            path=path,
            video_id=video_id,
            given=given,
        )

    def described(self, row: Row) -> Row:
        """Understand what CreateUploadVideo is to be told, too."""
        try:
            meta = self._meta_of(row)
            name = meta.file_name or os.path.basename(path_within(row.path))
            if row.video_id is None and refuses_name(name):
                raise _wrong(
                    f"VOD does not take files like {name!r}.",
                    "Give file_name with an extension VOD takes, such as mp4, mov, mkv, flv or ts.",
                )
        except ConfigurationError as error:
            return replace(row, error=error)
        return replace(row, meta=meta)

    def _meta_of(self, row: Row) -> VideoMeta:
        values: dict[str, Any] = {}
        for name in row.given.keys() & _META:
            reader = _META_READERS.get(name) or _text
            values[name] = reader(row.given, name)
        if "title" not in values and self.defaults.title is None and self.title_template:
            values["title"] = _title(self.title_template, row.path, row.number)
        if not values:
            return self.defaults
        has_defaults = self.defaults != _NO_META
        meta = replace(self.defaults, **values) if has_defaults else VideoMeta(**values)
        if (problem := problem_of(meta)) is not None:
            raise _wrong(f"{problem[0].upper()}{problem[1:]}.")
        return meta


def is_url(path: str) -> bool:
    """Whether a row's path is read over the network."""
    return "://" in path


def shown_path(path: str) -> str:
    """A path, or a URL without what may be secret in it: a presigned one is a key."""
    return shown(parsed_url(path)) if is_url(path) else path


def path_within(path: str) -> str:
    """A path, or that of a URL: what has a folder and a name."""
    return parsed_url(path).path if is_url(path) else path


def _wrong(words: str, next_step: str = "Correct the row and run again.") -> ConfigurationError:
    return ConfigurationError(words, next_step=next_step)


def _path_of(given: Mapping[str, Any]) -> str:
    path, source = _text(given, "path"), _text(given, "source")
    if path is not None and source is not None and path != source:
        raise _wrong("The columns path and source name different files.")
    if (named := path or source) is None:
        raise _wrong("The row names no path.")
    return named


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(f"{name} must be text, not {_kind(value)}.")
    if "\0" in value:
        raise _wrong(f"{name} has a NUL character.")
    if len(value) > (most := _MAX_TEXT.get(name, 65536)):
        raise _wrong(f"{name} has {len(value):,} characters, at most {most:,} are taken.")
    if name != "path" and name != "source" and not _is_unicode(value):
        raise _wrong(f"{name} is not UTF-8 text.")
    return value


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if isinstance(value, str):
        value = value.strip()
        if not (value.isascii() and value.isdecimal() and len(value) <= 18):
            raise _wrong(f"{name} must be a whole number, not {value[:40]!r}.")
        return int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(f"{name} must be a whole number, not {_kind(value)}.")
    return value


def _tags(given: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = given.get(name)
    if value is None:
        return None
    tags = value.split(",") if isinstance(value, str) else value
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise _wrong("tags must be text with commas, or a list of texts.")
    return tuple(filter(None, (tag.strip() for tag in tags)))


def _json(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    return json.dumps(value) if isinstance(value, dict) else _text(given, name)


_META_READERS: Final[dict[str, Callable[[Mapping[str, Any], str], Any]]] = {
    "cate_id": _number,
    "tags": _tags,
    "user_data": _json,
}


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "something else")


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a refused row said, as far as a ledger can hold it."""
    return {
        name: value if len(value) <= 4096 else f"{value[:4096]}…"
        for name, value in fields.items()
        if name in COLUMNS and isinstance(value, str)
    } | {n: v for n, v in fields.items() if n in COLUMNS and isinstance(v, int | float)}


def _title(template: str, path: str, number: int) -> str:
    folder, name = os.path.split(path_within(path))
    words = {
        "stem": name.rpartition(".")[0] or name,
        "name": name,
        "folder": os.path.basename(folder),
        "row": str(number),
    }
    return title_of(template.format_map(words).encode(errors="replace").decode())


def require_title_template(template: str) -> str:
    """Return `template` if it names only what there is.

    Raises:
        ConfigurationError: it does not.
    """
    try:
        pieces = list(string.Formatter().parse(template))
        plain = all(name is None or name in _TEMPLATE_FIELDS for _, name, _, _ in pieces)
        if plain and not any(spec or conversion for _, _, spec, conversion in pieces):
            return template
    except ValueError:
        pass
    raise ConfigurationError(
        f"--title-template: {template!r} is not understood.",
        next_step="Write for example '{stem}'; there are {stem}, {name}, {folder} and {row}.",
    )
