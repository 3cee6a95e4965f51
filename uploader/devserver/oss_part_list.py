"""The part list of CompleteMultipartUpload, and the ETag it results in."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

from .answers import Refusal
from .oss_rules import MAX_PART_NUMBER
from .storage import Part


def multipart_etag(etags: Iterable[str]) -> str:
    """OSS's ETag of a multipart object: MD5 of the upper-case hex ETags joined, and the count."""
    names = [etag.strip('"').upper() for etag in etags]
    digest = hashlib.md5("".join(names).encode(), usedforsecurity=False).hexdigest().upper()
    return f"{digest}-{len(names)}"


def parse_part_list(body: bytes) -> tuple[tuple[int, str], ...]:
    """The (number, ETag) pairs of a Complete request.

    Raises: Refusal when it is no such document or not in ascending order.
    """
    try:
        root = ElementTree.fromstring(body)  # nosec B314  # from a client on this machine
    except ElementTree.ParseError:
        raise Refusal("MalformedXML") from None
    if _local(root.tag) != "CompleteMultipartUpload":
        raise Refusal("MalformedXML")
    pairs = tuple(_parse_part(element) for element in root)
    numbers = [number for number, _ in pairs]
    if any(not 1 <= number <= MAX_PART_NUMBER for number in numbers):
        raise Refusal(
            "InvalidPartOrder", "Part number must be an integer between 1 and 10000, inclusive."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise Refusal("InvalidPartOrder")
    return pairs


def _parse_part(element: ElementTree.Element) -> tuple[int, str]:
    values = {_local(child.tag): (child.text or "").strip() for child in element}
    if _local(element.tag) != "Part" or not values.get("PartNumber", "").isdecimal():
        raise Refusal("MalformedXML")
    if "ETag" not in values:
        raise Refusal("MalformedXML")
    return int(values["PartNumber"]), values["ETag"]


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def matching_part(known: Mapping[int, Part], number: int, etag: str) -> Part:
    """The stored part a list entry names.

    Raises: Refusal when it is missing or has another ETag.
    """
    part = known.get(number)
    if part is None or part.etag != etag.strip('"').upper():
        fields = {"PartNumber": str(number), "ETag": etag}
        raise Refusal("InvalidPart", fields=fields)
    return part
