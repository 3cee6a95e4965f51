"""The objects of a bucket: listed and deleted, where the policy of the credentials allows it.

Sources: "OSS API: ListObjects, ListObjectsV2, DeleteObject, DeleteMultipleObjects",
"OSS: EC 0016-00000606, 0016-00000613".
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from xml.etree import ElementTree

from .answers import Answer, Refusal
from .backend import Backend, iso_date
from .encoding import Node, to_base64
from .exchange import Exchange
from .oss_call import OssCall
from .oss_documents import document, encoding_node, listed_key
from .oss_rules import invalid_argument, number_parameter
from .storage import Credential, StoredObject

_MAX_DELETED = 1000
_MAX_DELETE_BODY_SIZE = 2 * 1024**2


@dataclass(frozen=True, slots=True)
class _Page:
    """What one answer lists: objects and groups of keys, each by its name."""

    objects: tuple[StoredObject, ...]
    groups: tuple[str, ...]
    last: str
    """The name to continue after; empty if nothing follows."""


class BucketObjects:
    """The operations on several objects; every one is called after access was checked."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._storage = backend.storage

    async def list_v1(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """One page, after ``marker``."""
        marker = call.parameter("marker")
        page, limit = self._page(call, marker)
        nodes = [
            Node("Marker", listed_key(call, marker)),
            *([Node("NextMarker", listed_key(call, page.last))] if page.last else []),
            *self._common_nodes(call, page, limit, with_owner=True),
        ]
        return document(self._backend, "ListBucketResult", nodes)

    async def list_v2(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """One page, after ``start-after`` or where the ``continuation-token`` says."""
        if call.parameter("list-type") != "2":
            raise invalid_argument("Invalid list-type.", "list-type", call.parameter("list-type"))
        token, start_after = call.parameter("continuation-token"), call.parameter("start-after")
        page, limit = self._page(call, _from_token(token) if token else start_after)
        following = to_base64(page.last.encode("utf-8", "surrogateescape"))
        nodes = [
            Node("StartAfter", listed_key(call, start_after)),
            *([Node("ContinuationToken", token)] if token else []),
            *([Node("NextContinuationToken", following)] if page.last else []),
            Node("KeyCount", len(page.objects) + len(page.groups)),
            *self._common_nodes(
                call, page, limit, with_owner=call.parameter("fetch-owner") == "true"
            ),
        ]
        return document(self._backend, "ListBucketResult", nodes)

    def _page(self, call: OssCall, marker: str) -> tuple[_Page, int]:
        prefix, delimiter = call.parameter("prefix"), call.parameter("delimiter")
        limit = number_parameter(call, "max-keys", 100, 1, 1000)
        objects: list[StoredObject] = []
        groups: list[str] = []
        last = ""
        for stored in sorted(self._storage.objects(call.bucket), key=lambda o: o.object_key):
            key = stored.object_key
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            group = prefix + head + found if found else ""
            is_listed = group and group in (marker, groups[-1] if groups else "")
            if not key.startswith(prefix) or key <= marker or is_listed:
                continue
            if len(objects) + len(groups) == min(limit, self._backend.options.list_page_size):
                return _Page(tuple(objects), tuple(groups), last), limit
            if group:
                groups.append(group)
            else:
                objects.append(stored)
            last = group or key
        return _Page(tuple(objects), tuple(groups), ""), limit

    def _common_nodes(
        self, call: OssCall, page: _Page, limit: int, *, with_owner: bool
    ) -> list[Node]:
        return [
            *encoding_node(call),
            Node("Name", call.bucket),
            Node("Prefix", listed_key(call, call.parameter("prefix"))),
            Node("MaxKeys", limit),
            Node("Delimiter", listed_key(call, call.parameter("delimiter"))),
            Node("IsTruncated", "true" if page.last else "false"),
            *(_object_node(call, stored, with_owner=with_owner) for stored in page.objects),
            *(
                Node("CommonPrefixes", [Node("Prefix", listed_key(call, group))])
                for group in page.groups
            ),
        ]

    async def delete(self, exchange: Exchange, call: OssCall, credential: Credential) -> Answer:
        """Delete an object; it need not exist."""
        await exchange.drain()
        self._storage.remove_object(call.bucket, call.object_key)
        return Answer(204)

    async def delete_many(
        self, exchange: Exchange, call: OssCall, credential: Credential
    ) -> Answer:
        """Delete the objects that the body names: all of them, or none."""
        try:
            body = await exchange.read_body(_MAX_DELETE_BODY_SIZE)
        except ValueError:
            raise Refusal("MalformedXML") from None
        claimed = call.headers.get("content-md5")
        if claimed is None:
            raise Refusal("InvalidArgument", "Content-MD5 is missing.", ec="0016-00000606")
        if claimed != to_base64(hashlib.md5(body, usedforsecurity=False).digest()):
            raise Refusal("InvalidDigest", fields={"Content-MD5": claimed})
        keys, is_quiet = _delete_request(body)
        if not all(credential.may_touch(call.bucket, key) for key in keys):
            raise Refusal("AccessDenied")
        for key in keys:
            self._storage.remove_object(call.bucket, key)
        if is_quiet:
            return Answer(200)
        nodes = [Node("Deleted", [Node("Key", listed_key(call, key))]) for key in keys]
        return document(self._backend, "DeleteResult", [*encoding_node(call), *nodes])


def _object_node(call: OssCall, stored: StoredObject, *, with_owner: bool) -> Node:
    owner = Node("Owner", [Node("ID", "1000000"), Node("DisplayName", "1000000")])
    return Node(
        "Contents",
        [
            Node("Key", listed_key(call, stored.object_key)),
            Node("LastModified", iso_date(stored.modified_at, millis=True)),
            Node("ETag", f'"{stored.etag}"'),
            Node("Type", stored.kind),
            Node("Size", stored.size),
            Node("StorageClass", dict(stored.kept_headers).get("x-oss-storage-class", "Standard")),
            *([owner] if with_owner else []),
        ],
    )


def _from_token(token: str) -> str:
    try:
        return base64.b64decode(token, validate=True).decode("utf-8", "surrogateescape")
    except ValueError:
        message = "The continuation token provided is incorrect."
        raise invalid_argument(message, "continuation-token", token) from None


def _delete_request(body: bytes) -> tuple[list[str], bool]:
    """The keys, and whether the answer is to be empty.

    Raises: Refusal when it is no such document, or names no key or more than a thousand.
    """
    try:
        root = ElementTree.fromstring(body)  # nosec B314  # from a client on this machine
    except ElementTree.ParseError:
        raise Refusal("MalformedXML") from None
    keys = [node.findtext("{*}Key") or "" for node in root.iterfind("{*}Object")]
    if root.tag.rpartition("}")[2] != "Delete" or not 1 <= len(keys) <= _MAX_DELETED:
        raise Refusal("MalformedXML")
    if not all(keys):
        raise Refusal("MalformedXML", ec="0016-00000613")
    return keys, (root.findtext("{*}Quiet") or "").strip().lower() == "true"
