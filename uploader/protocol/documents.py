"""Parses JSON and XML that cannot be trusted.

Documents come from services, proxies, files and people. Whatever they hold, the functions here
return a value within known limits or raise `MalformedDocument`.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn
from xml.etree import ElementTree  # only its tree builder: defusedxml does the parsing

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# A page of ListParts holds at most 1,000 parts of 5 fields (OSS doc "ListParts").
MAX_XML_ELEMENTS = 20_000
# OSS nests ListPartsResult/Part/ETag; VOD's answers are flat.
MAX_XML_DEPTH = 8
# Sizes go up to 48.8 TiB (14 digits), CRC-64 values to 20.
MAX_DIGITS = 20

_DIGITS = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")
# json turns "\\ud800" into one; it could not be written to UTF-8 again.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Neither OSS nor VOD ever sends one; entities are what XML bombs are made of.
_DECLARATION = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)


class MalformedDocument(ValueError):
    """A document is malformed; the message never quotes its content."""


def clean_text(text: str, max_length: int = 300) -> str:
    """Return untrusted `text` as it can safely be shown in a terminal or a log.

    Control characters (escape sequences, line breaks), bidirectional overrides, lone
    surrogates and odd spaces become a single space; what is too long is cut.
    """
    # What is cut away anyway need not be cleaned: a hostile text may be large.
    head = text[: 4 * max_length]
    if text.isprintable() and len(text) <= max_length and text == " ".join(text.split()):
        return text
    clean = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    is_cut = len(clean) > max_length or len(text) > len(head)
    return clean[: max_length - 1] + "…" if is_cut else clean


def decimal(text: str) -> int:
    """Read a decimal number as the services write it: ASCII digits, nothing else.

    `int()` alone would accept " 1_0 ", "+5" and Arabic digits.

    Raises:
        MalformedDocument: anything else, or more than 20 digits.
    """
    if not _DIGITS.fullmatch(text):
        raise MalformedDocument("a number must be written with 1 to 20 ASCII digits")
    return int(text)


def _utf8(data: bytes | str, max_bytes: int) -> str:
    text = _decoded_text(data, max_bytes)
    # Raised here, outside `except`: a UnicodeError holds all of the data, and would stay
    # reachable as the context of ours.
    if text is None:
        raise MalformedDocument(f"it is larger than {max_bytes} bytes or not valid UTF-8")
    if text.startswith("\ufeff"):
        raise MalformedDocument("it starts with a byte order mark")
    return text


def _decoded_text(data: bytes | str, max_bytes: int) -> str | None:
    try:
        raw = data.encode() if isinstance(data, str) else data
        return raw.decode() if len(raw) <= max_bytes else None
    except UnicodeError:
        return None


def parse_json(data: bytes | str, *, max_bytes: int = 65536, max_depth: int = 8) -> dict[str, Any]:
    """Parse a JSON object.

    Stricter than `json.loads`: a duplicate key is an error rather than "the last one
    wins" (two readers could otherwise disagree on what was signed off), and so are NaN,
    infinities, lone surrogates and a byte order mark.

    Raises:
        MalformedDocument: for any input that is not such an object within the limits.
    """
    text = _utf8(data, max_bytes)
    value = _decoded_json(text)
    if not isinstance(value, dict):
        raise MalformedDocument("it is not a JSON object, or nested too deeply to be one")
    _check_nesting(value, max_depth)
    # The text is UTF-8, so half a pair can only come from an escape.
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise MalformedDocument("it holds half of a surrogate pair")
    return value


def _decoded_json(text: str) -> object:
    """Return what `text` holds; None, which is no object, when it cannot be decoded."""
    try:
        return _DECODER.decode(text)
    except MalformedDocument:
        raise
    except (ValueError, RecursionError):
        # Not raised from here: a JSONDecodeError holds the whole document, and would stay
        # reachable as the context of ours. ValueError also comes from int(), which
        # refuses thousands of digits.
        return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedDocument("it has the same key twice")
    return found


def _refuse_constant(_name: str) -> NoReturn:
    raise MalformedDocument("it holds NaN or Infinity")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedDocument("it holds a number out of range")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
)


def _check_nesting(document: dict[str, Any], max_depth: int) -> None:
    level: list[Any] = [document]
    for _ in range(max_depth):
        level = [child for container in level for child in _containers_in(container)]
    if level:
        raise MalformedDocument(f"it is nested deeper than {max_depth} levels")


def _containers_in(container: dict[str, Any] | list[Any]) -> list[Any]:
    values = container.values() if isinstance(container, dict) else container
    return [value for value in values if isinstance(value, dict | list)]


def parse_xml(data: bytes, *, max_bytes: int = 1 << 20) -> Element:
    """Parse an XML document into an element tree whose tags have no namespaces.

    OSS and the gateways in front of it differ in whether they declare a namespace; no caller
    needs one.

    Raises:
        MalformedDocument: not UTF-8, not well-formed, with a DOCTYPE or entities, too
            large, too deep, too many elements.
    """
    text = _utf8(data, max_bytes)
    if _DECLARATION.search(text):
        raise MalformedDocument("it declares a DOCTYPE or an entity")
    # Imported here: JSON is the common case, and the command line must start quickly.
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    parser = DefusedXMLParser(target=_LimitedBuilder(), forbid_dtd=True)
    try:
        # As text, so that no encoding named inside the document is ever applied.
        parser.feed(text)
        root: Element = parser.close()
    except MalformedDocument:
        raise
    except (ElementTree.ParseError, DefusedXmlException, ValueError, AssertionError):
        raise MalformedDocument("it is not well-formed XML") from None
    return root


class _LimitedBuilder(ElementTree.TreeBuilder):
    """Builds the tree, strips namespaces, and stops at the limits rather than after."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._count = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_XML_DEPTH:
            raise MalformedDocument(f"it is nested deeper than {MAX_XML_DEPTH} levels")
        if self._count > MAX_XML_ELEMENTS:
            raise MalformedDocument(f"it has more than {MAX_XML_ELEMENTS} elements")
        return super().start(tag.rpartition("}")[2], attrs)

    def end(self, tag: str, /) -> Element:
        self._depth -= 1
        return super().end(tag.rpartition("}")[2])
