"""No request is answered as if it had been performed: every operation of both OSS SDKs is tried."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import alibabacloud_oss_v2 as v2
import oss2
import pytest

from uploader.devserver import DevServer
from uploader.devserver.oss_headers import PARAMETERS

from .clients import PART, Oss
from .test_calibration import bucket, v2_config

DOCS = Path(__file__).parents[2] / "docs" / "devserver.md"

PERFORMED_BY_OSS2 = {
    "abort_multipart_upload": "AbortMultipartUpload",
    "complete_multipart_upload": "CompleteMultipartUpload",
    "get_object": "GetObject",
    "get_object_to_file": "GetObject",
    "get_object_meta": "HeadObject",
    "head_object": "HeadObject",
    "init_multipart_upload": "InitiateMultipartUpload",
    "list_multipart_uploads": "ListMultipartUploads",
    "list_parts": "ListParts",
    "object_exists": "HeadObject",
    "put_object": "PutObject",
    "put_object_from_file": "PutObject",
    "upload_part": "UploadPart",
}
PERFORMED_BY_V2 = {
    "abort_multipart_upload": "AbortMultipartUpload",
    "complete_multipart_upload": "CompleteMultipartUpload",
    "get_object": "GetObject",
    "get_object_meta": "HeadObject",
    "head_object": "HeadObject",
    "initiate_multipart_upload": "InitiateMultipartUpload",
    "list_multipart_uploads": "ListMultipartUploads",
    "list_parts": "ListParts",
    "put_object": "PutObject",
    "upload_part": "UploadPart",
}
NO_SINGLE_REQUEST = {  # helpers over other methods, and what sends nothing
    "batch_delete_objects",
    "get_object_with_url",
    "get_object_with_url_to_file",
    "put_object_with_url",
    "put_object_with_url_from_file",
    "select_object_to_file",
    "sign_rtmp_url",
    "sign_url",
}


def oss2_methods() -> list[str]:
    found = inspect.getmembers(oss2.Bucket, inspect.isfunction)
    return [name for name, _ in found if name[0] != "_" and name not in NO_SINGLE_REQUEST]


def v2_methods() -> list[str]:
    """Those that take a request object, which is what OSS's API has."""
    found = inspect.getmembers(v2.Client, inspect.isfunction)
    takes_request = (name for name, method in found if request_type(method) is not None)
    return [name for name in takes_request if not name.endswith("_paginator")]


def request_type(method: Callable[..., Any]) -> type[Any] | None:
    found = typing.get_type_hints(method).get("request")
    return found if inspect.isclass(found) else None


class Given:
    """Values for the parameters of SDK methods, by name."""

    def __init__(self, oss: Oss, folder: Path) -> None:
        source = folder / "source.mp4"
        source.write_bytes(PART)
        self._known = {
            "key": oss.key,
            "object_name": oss.key,
            "source_bucket_name": oss.bucket,
            "source_bucket": oss.bucket,
            "source_key": oss.key,
            "target_object_name": oss.key,
            "upload_id": oss.initiate(),
            "source_version_id": None,
            "part_number": 1,
            "position": 0,
            "byte_range": (0, 9),
            "filename": str(source),
            "data": PART,
            "body": PART,
            "permission": "private",
            "acl": "private",
            "tagset": tagging(),
            "parts": [],
            "headers": None,
            "params": None,
            "start_after": "",
            "bucket": oss.bucket,
            "region": "cn-shanghai",
        }

    def arguments(self, method: Callable[..., Any]) -> Iterator[Any]:
        for parameter in list(inspect.signature(method).parameters.values())[1:]:
            if parameter.default is parameter.empty and parameter.kind < parameter.VAR_POSITIONAL:
                yield self._known.get(parameter.name, "x")

    def request(self, kind: type[Any]) -> object:
        names = inspect.signature(kind).parameters
        return kind(**{name: self._known[name] for name in names if name in self._known})


def tagging() -> oss2.models.Tagging:
    rule = oss2.models.TaggingRule()
    rule.add("kind", "raw")
    return oss2.models.Tagging(rule)


def assert_only_that_is_performed(
    server: DevServer, oss: Oss, call: Callable[[], Any], performed: str | None
) -> None:
    """The call is answered with an error, or is performed; the object stays what it was."""
    oss.call("PUT", body=b"what is there")
    before = len(server.stats.log)
    error: object = None
    try:
        call()
    except Exception as raised:  # whatever the SDK makes of a refusal, or of our arguments
        error = raised
    requests = list(server.stats.log)[before:]
    if performed is None:
        assert error is not None, call
        assert all(request.status >= 300 for request in requests), (call, requests)
        assert server.object_bytes(oss.video_id) == b"what is there"
    else:
        assert [request.operation for request in requests] == [performed], (call, error)


def test_oss2_is_answered_only_what_is_performed(
    server: DevServer, oss: Oss, tmp_path: Path
) -> None:
    client = bucket(oss, "v4")
    for name in oss2_methods():
        arguments = [*Given(oss, tmp_path).arguments(getattr(oss2.Bucket, name))]
        call = partial(getattr(client, name), *arguments)
        assert_only_that_is_performed(server, oss, call, PERFORMED_BY_OSS2.get(name))


def test_alibabacloud_oss_v2_is_answered_only_what_is_performed(
    server: DevServer, oss: Oss, tmp_path: Path
) -> None:
    client = v2.Client(v2_config(oss))
    for name in v2_methods():
        kind = request_type(getattr(v2.Client, name))
        assert kind is not None
        call = partial(getattr(client, name), Given(oss, tmp_path).request(kind))
        assert_only_that_is_performed(server, oss, call, PERFORMED_BY_V2.get(name))


# --- what the findings of real clients were ------------------------------------------------


def test_a_copy_makes_no_empty_object(server: DevServer, oss: Oss) -> None:
    oss.call("PUT", body=PART)
    source = {"x-oss-copy-source": f"/{oss.bucket}/{oss.key}"}
    assert oss.call("PUT", headers=source).status == 403
    upload_id = oss.initiate()
    part = oss.call("PUT", {"uploadId": upload_id, "partNumber": "1"}, headers=source)
    assert part.status == 403
    assert server.object_bytes(oss.video_id) == PART


@pytest.mark.parametrize("name", ["acl", "symlink", "tagging", "restore", "legalHold", "unheard"])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "POST", "DELETE"])
def test_a_subresource_is_not_the_object(
    server: DevServer, oss: Oss, method: str, name: str
) -> None:
    oss.call("PUT", body=PART)
    reply = oss.call(method, {name: ""}, body=b"<X/>" if method in {"PUT", "POST"} else None)
    assert (reply.status, reply.code) == (403, "AccessDenied")
    assert server.object_bytes(oss.video_id) == PART


@pytest.mark.parametrize(
    ("header", "value", "status", "code"),
    [
        ("x-oss-object-acl", "public-read", 403, "AccessDenied"),
        ("x-oss-tagging", "a=b", 403, "AccessDenied"),
        ("x-oss-callback", "e30=", 501, "NotImplemented"),
        ("x-oss-unheard-of", "1", 501, "NotImplemented"),
        ("if-none-match", "*", 501, "NotImplemented"),
        ("x-oss-storage-class", "Nope", 400, "InvalidArgument"),
        ("x-oss-server-side-encryption", "ROT13", 400, "InvalidEncryptionAlgorithmError"),
        ("x-oss-server-side-encryption-key-id", "k", 400, "InvalidArgument"),
        ("x-oss-traffic-limit", "1", 400, "InvalidArgument"),
        ("x-oss-traffic-limit", "838860801", 400, "InvalidArgument"),
    ],
)
def test_a_header_that_is_not_acted_on_is_refused(
    server: DevServer, oss: Oss, header: str, value: str, status: int, code: str
) -> None:
    reply = oss.call("PUT", headers={header: value}, body=PART)
    assert (reply.status, reply.code) == (status, code)
    assert server.stats.puts == 0


def test_headers_of_an_object_are_kept(oss: Oss) -> None:
    given = {
        "cache-control": "no-store",
        "content-type": "video/mp4",
        "x-oss-meta-reel": "7",
        "x-oss-storage-class": "IA",
        "x-oss-server-side-encryption": "AES256",
    }
    assert oss.call("PUT", headers=given, body=PART).status == 200
    for method in ("HEAD", "GET"):
        reply = oss.call(method)
        assert {name: reply.headers[name] for name in given} == given
    replaced = oss.call("GET", {"response-content-type": "text/plain", "response-expires": "0"})
    assert (replaced.headers["content-type"], replaced.headers["expires"]) == ("text/plain", "0")


def test_headers_given_at_initiate_are_the_objects(oss: Oss) -> None:
    given = {"x-oss-meta-reel": "7", "content-disposition": "attachment"}
    started = oss.call("POST", {"uploads": ""}, headers=given)
    upload_id = started.element("UploadId")
    part = oss.put_part(upload_id, 1)
    assert oss.complete(upload_id, [(1, part.headers["etag"])]).status == 200
    kept = oss.call("HEAD").headers
    assert {name: kept[name] for name in given} == given


def test_conditions_of_a_read(oss: Oss) -> None:
    etag = oss.call("PUT", body=PART).headers["etag"]
    modified = oss.call("HEAD").headers["last-modified"]
    earlier = "Mon, 01 Jan 2024 00:00:00 GMT"
    for method in ("GET", "HEAD"):
        for name, value, status in [
            ("if-match", etag, 200),
            ("if-match", '"0"', 412),
            ("if-none-match", etag, 304),
            ("if-none-match", '"0"', 200),
            ("if-modified-since", modified, 304),
            ("if-modified-since", earlier, 200),
            ("if-unmodified-since", modified, 200),
            ("if-unmodified-since", earlier, 412),
        ]:
            assert oss.call(method, headers={name: value}).status == status, (method, name, value)


def test_a_range_beyond_the_end(oss: Oss) -> None:
    oss.call("PUT", body=PART)
    beyond = {"range": f"bytes={len(PART)}-"}
    assert oss.call("GET", headers=beyond).body == PART
    reply = oss.call("GET", headers={**beyond, "x-oss-range-behavior": "standard"})
    assert (reply.status, reply.code) == (416, "InvalidRange")


# --- the table in the docs -----------------------------------------------------------------


def test_the_docs_name_every_operation_and_its_parameters() -> None:
    section = DOCS.read_text().partition("## What OSS performs")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, flags=re.MULTILINE))
    for operation, parameters in PARAMETERS.items():
        assert set(re.findall(r"`([\w-]+)`", rows.pop(operation))) == set(parameters), operation
    assert not rows, "the docs name an operation too many"
