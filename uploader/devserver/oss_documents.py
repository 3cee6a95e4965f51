"""The documents and headers OSS answers with."""

from __future__ import annotations

from collections.abc import Mapping

from .answers import Answer
from .backend import Backend
from .bodies import ReceivedBody
from .encoding import OSS_XML_NAMESPACE, Node, percent_encode, render_xml
from .oss_call import OssCall


def document(
    backend: Backend, name: str, nodes: list[Node], headers: Mapping[str, str] | None = None
) -> Answer:
    """A 200 with one document."""
    return Answer(200, xml(backend, Node(name, nodes)), dict(headers or {}))


def xml(backend: Backend, root: Node) -> bytes:
    """A document, with a namespace if the options require it."""
    namespace = OSS_XML_NAMESPACE if backend.options.xml_namespace else ""
    return render_xml(root, namespace=namespace)


def crc_header(backend: Backend, value: int) -> dict[str, str]:
    """``x-oss-hash-crc64ecma`` unless the options leave it out."""
    return {"x-oss-hash-crc64ecma": str(value)} if backend.options.crc_headers else {}


def encoding_node(call: OssCall) -> list[Node]:
    """The element that repeats ``encoding-type``."""
    encoding = call.parameter("encoding-type")
    return [Node("EncodingType", encoding)] if encoding else []


def listed_key(call: OssCall, key: str) -> str:
    """A key as a document shows it: percent-encoded if the request has an ``encoding-type``."""
    return percent_encode(key) if call.parameter("encoding-type") == "url" else key


def body_headers(backend: Backend, etag: str, body: ReceivedBody) -> dict[str, str]:
    """Checksums of a stored body."""
    return {
        "ETag": f'"{etag}"',
        "Content-MD5": body.content_md5,
        **crc_header(backend, body.crc64),
    }
