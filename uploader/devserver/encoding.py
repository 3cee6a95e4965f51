"""Percent-encoding, query strings and XML as Alibaba Cloud writes them: pure functions."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

Pairs = tuple[tuple[str, str], ...]
OSS_XML_NAMESPACE = "http://doc.oss-cn-hangzhou.aliyuncs.com"


class Node:
    """One XML element: a name and either text or child elements."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: str | int | Sequence[Node]) -> None:
        self.name = name
        self.value = value


def percent_encode(text: str, *, safe: str = "") -> str:
    """RFC 3986 encoding: only ``A-Za-z0-9-_.~`` and ``safe`` stay as they are."""
    return quote(text, safe=safe + "~")


def percent_decode(text: str) -> str:
    """Decode ``%XX``; ``+`` is a literal plus, as OSS and VOD read it."""
    return unquote(text, errors="surrogateescape")


def split_target(raw_target: str) -> tuple[str, str]:
    """Split a request target into its still encoded path and query string."""
    path, _, query = raw_target.partition("?")
    return path, query


def parse_query(raw_query: str, *, plus_is_space: bool = False) -> Pairs:
    """Decode a query string into pairs, keeping order and empty values."""
    if plus_is_space:
        raw_query = raw_query.replace("+", "%20")
    pieces = (piece.partition("=") for piece in raw_query.split("&") if piece)
    return tuple((percent_decode(name), percent_decode(value)) for name, _, value in pieces)


def encode_query(pairs: Iterable[tuple[str, str]], *, bare_empty: bool) -> str:
    """Encode and sort pairs; ``bare_empty`` drops the ``=`` of an empty value (OSS V4)."""
    encoded = sorted((percent_encode(name), percent_encode(value)) for name, value in pairs)
    return "&".join(
        name if bare_empty and not value else f"{name}={value}" for name, value in encoded
    )


def to_base64(data: bytes) -> str:
    """Standard base64 with padding, as text."""
    return base64.b64encode(data).decode("ascii")


def render_xml(root: Node, *, namespace: str = "") -> bytes:
    """Serialise one document with the declaration OSS writes."""
    attribute = f' xmlns="{namespace}"' if namespace else ""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', *_xml_lines(root, attribute, "")]
    return "\n".join(lines).encode()


def _xml_lines(node: Node, attribute: str, indent: str) -> list[str]:
    if isinstance(node.value, (str, int)):
        text = escape(str(node.value))
        return [f"{indent}<{node.name}{attribute}>{text}</{node.name}>"]
    lines = [f"{indent}<{node.name}{attribute}>"]
    for child in node.value:
        lines.extend(_xml_lines(child, "", indent + "  "))
    return [*lines, f"{indent}</{node.name}>"]
