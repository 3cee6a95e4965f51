"""JSON, XML and text from elsewhere: a value within limits, or MalformedDocument."""

from __future__ import annotations

import contextlib
import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.protocol.documents import (
    MalformedDocument,
    clean_text,
    decimal,
    parse_json,
    parse_xml,
)

_KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.from_regex(re.compile(r"[A-Za-z][A-Za-z0-9]{0,9}", re.ASCII), fullmatch=True)


# --- JSON -----------------------------------------------------------------------------


@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_what_json_writes_is_read_back(document: dict[str, object]) -> None:
    assert parse_json(json.dumps(document), max_depth=20) == document
    assert parse_json(json.dumps(document, ensure_ascii=False).encode(), max_depth=20) == document


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":1,"a":1}',
        b'{"b":{"a":1,"a":2}}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\n"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":' + b"[" * 9 + b"]" * 9 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"a":"' + b"x" * 70_000 + b'"}',
        '{"a":"\ud800"}',
    ],
)
def test_anything_but_one_clean_object_is_refused(data: bytes | str) -> None:
    with pytest.raises(MalformedDocument):
        parse_json(data)


def test_nesting_is_counted_in_containers() -> None:
    assert parse_json('{"a":1}', max_depth=1) == {"a": 1}
    assert parse_json('{"a":[{}]}', max_depth=3) == {"a": [{}]}
    with pytest.raises(MalformedDocument, match="deeper than 2"):
        parse_json('{"a":[{}]}', max_depth=2)


@pytest.mark.parametrize(
    "data", [b'{"secret-4711":', b'{"a":"secret-4711\xff"}', "secret-4711\ud800"]
)
def test_a_refusal_carries_nothing_of_the_document(data: bytes | str) -> None:
    with pytest.raises(MalformedDocument) as caught:
        parse_json(data)
    link: BaseException | None = caught.value
    while link is not None:
        assert "4711" not in repr(link)
        assert "4711" not in repr(vars(link))
        assert "4711" not in repr(getattr(link, "object", "")) + repr(getattr(link, "doc", ""))
        link = link.__cause__ or link.__context__


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: f'{{"a":{t}}}'.encode()))
def test_json_fuzz_ends_in_a_dict_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(MalformedDocument):
        assert isinstance(parse_json(data), dict)


# --- XML ------------------------------------------------------------------------------


def test_namespaces_do_not_matter() -> None:
    plain = parse_xml(b"<R><Part><Size>5</Size></Part></R>")
    spaced = parse_xml(b'<o:R xmlns:o="urn:x" xmlns="urn:y"><Part><Size>5</Size></Part></o:R>')
    assert ElementTree.tostring(plain) == ElementTree.tostring(spaced)
    assert spaced.findtext("Part/Size") == "5"


def test_predefined_entities_are_text() -> None:
    assert parse_xml(b"<R><ETag>&quot;A&amp;B&quot;</ETag></R>").findtext("ETag") == '"A&B"'


def test_a_full_page_of_parts_is_read() -> None:
    part = b"<Part><PartNumber>1</PartNumber><LastModified>x</LastModified><ETag>e</ETag>"
    part += b"<HashCrc64ecma>1</HashCrc64ecma><Size>5</Size></Part>"
    page = b"<ListPartsResult>" + part * 1000 + b"</ListPartsResult>"
    assert len(parse_xml(page).findall("Part")) == 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"<R>",
        b"<R></S>",
        b"<R/><R/>",
        b"<x:R/>",
        b"<R>&undefined;</R>",
        b"<R>\x00</R>",
        b"<R>\xff</R>",
        b"<!DOCTYPE html><html/>",
        b"<!doctype R><R/>",
        b'<!DOCTYPE R [<!ENTITY a "b">]><R>&a;</R>',
        b'<!DOCTYPE R [<!ENTITY a SYSTEM "file:///etc/passwd">]><R>&a;</R>',
        b"<R><!ENTITY></R>",
        '<?xml version="1.0" encoding="utf-16"?><R/>'.encode("utf-16"),
        b"\xef\xbb\xbf<R/>",
        b"<a>" * 9 + b"</a>" * 9,
        b"<a>" * 200_000,
        b"<R>" + b"<a/>" * 20_000 + b"</R>",
        b"<R>" + b"x" * (1 << 20) + b"</R>",
    ],
)
def test_unwanted_xml_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedDocument):
        parse_xml(data)


def test_an_encoding_named_inside_is_not_applied() -> None:
    # The bytes are UTF-8 whatever they say: what was scanned is what is parsed.
    data = '<?xml version="1.0" encoding="cp037"?><R>é</R>'.encode()
    assert parse_xml(data).text == "é"


@settings(max_examples=300)
@given(st.binary(max_size=100) | st.text("<>/ab&;!\"'= x:[]?-", max_size=60).map(str.encode))
def test_xml_fuzz_ends_in_a_tree_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(MalformedDocument):
        parse_xml(data)


@given(_NAMES, _NAMES, st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=20))
def test_written_xml_is_read_back(root: str, name: str, text: str) -> None:
    tree = ElementTree.Element(root)
    ElementTree.SubElement(tree, name).text = text
    assert (parse_xml(ElementTree.tostring(tree)).findtext(name) or "") == text


# --- text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("The token has expired.", "The token has expired."),
        ("  two\r\n lines\t", "two lines"),
        ("\x1b[2J\x1b]0;title\x07gone", "[2J ]0;title gone"),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        ("half \ud800 pair", "half pair"),
        ("\u2028\u0085\x00", ""),
        ("视频不存在 é 🎬", "视频不存在 é 🎬"),
        ("a\u200bb\ufeffc", "a b c"),
    ],
)
def test_text_of_others_is_made_harmless(given: str, shown: str) -> None:
    assert clean_text(given) == shown


@given(st.text(max_size=400) | st.text("\x00\x1b \u202e\ud800a", max_size=400), st.integers(1, 90))
def test_cleaned_text_is_printable_and_short(text: str, max_length: int) -> None:
    clean = clean_text(text, max_length)
    assert len(clean) <= max_length
    assert clean.isprintable()
    assert clean == clean.strip()


def test_long_text_shows_that_it_was_cut() -> None:
    assert clean_text("x" * 1000, 5) == "xxxx…"
    assert clean_text("x" * 5, 5) == "xxxxx"


# --- numbers --------------------------------------------------------------------------


@given(st.integers(0, 10**20 - 1))
def test_decimal_reads_what_services_write(number: int) -> None:
    assert decimal(str(number)) == number


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1\n", "1_0", "+5", "-5", "0x1", "1.0", "1e3", "٣", "²", "1" * 21]
)
def test_decimal_refuses_what_int_would_take(text: str) -> None:
    with pytest.raises(MalformedDocument):
        decimal(text)
