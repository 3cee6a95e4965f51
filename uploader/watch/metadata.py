"""The metadata of a video, from a file beside it: the fields are the columns of a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from uploader.bulk.rows import COLUMNS
from uploader.errors import ConfigurationError
from uploader.protocol.documents import MalformedDocument, parse_json, parse_xml
from uploader.sources.files import open_regular_file

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_MAX_SIZE: Final = 64_000
_FIELDS: Final = COLUMNS - {"path", "source"}


def read_metadata(path: str, *, root: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Read a file of metadata; returns the fields of a row, and the names it ignores.

    Raises:
        ConfigurationError: it is not a JSON or YAML object or an XML element with one element
            for each field, or it is longer than 64,000 bytes.
        SourceError, OSError: it cannot be read.
    """
    with open(open_regular_file(path, root=root), "rb") as file:
        data = file.read(_MAX_SIZE + 1)
    name = os.path.basename(path)
    try:
        if len(data) > _MAX_SIZE:
            raise MalformedDocument(f"it is longer than {_MAX_SIZE:,} bytes")
        fields = _READERS[name.rpartition(".")[2].lower()](data)
    except MalformedDocument as error:
        raise ConfigurationError(
            f"{path} cannot be used as metadata: {error}.",
            next_step="Correct it; the video is tried again when it has changed.",
        ) from None
    known = {key: value for key, value in fields.items() if key in _FIELDS}
    return known, frozenset(map(str, fields.keys() - known.keys()))


def _read_json(data: bytes) -> Mapping[str, Any]:
    return parse_json(data.removeprefix(b"\xef\xbb\xbf"))


def _read_yaml(data: bytes) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigurationError(
            "Metadata in YAML needs PyYAML.", next_step="Run `pip install 'vodup[watch]'`."
        ) from error
    try:
        # Aliases make a text of a kilobyte a value of gigabytes; metadata has no use for them.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(data, yaml.SafeLoader)):
            raise MalformedDocument("it has an alias")
        fields = yaml.safe_load(data)
    except MalformedDocument:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        raise MalformedDocument("it is not YAML") from None
    if not isinstance(fields, dict):
        raise MalformedDocument("it is not a YAML mapping")
    return parse_json(json.dumps(fields, default=str))


def _read_xml(data: bytes) -> Mapping[str, Any]:
    fields: dict[str, Any] = {}
    for child in parse_xml(data.removeprefix(b"\xef\xbb\xbf")):
        if child.tag in fields:
            raise MalformedDocument(f"it has two elements {child.tag[:60]}")
        fields[child.tag] = _xml_value(child)
    if not fields:
        raise MalformedDocument("its root element has no elements")
    return fields


def _xml_value(element: Element) -> Any:  # noqa: ANN401
    """Text, or a list where the element has elements of its own (`<tags><tag>a</tag></tags>`)."""
    if len(element):
        return [(child.text or "").strip() for child in element]
    return (element.text or "").strip()


_READERS: Final[Mapping[str, Callable[[bytes], Mapping[str, Any]]]] = {
    "json": _read_json,
    "yaml": _read_yaml,
    "yml": _read_yaml,
    "xml": _read_xml,
}
