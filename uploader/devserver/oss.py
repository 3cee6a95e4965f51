"""OSS behind one port: from a request to its operation, and its errors."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from .answers import OSS_ERRORS, Answer, Refusal
from .backend import Backend, http_date
from .cors import cors_headers, preflight
from .encoding import Node, to_base64
from .exchange import BodyTimeout, Exchange
from .oss_access import WRONG_REGION, OssTarget, check_access
from .oss_bucket import BucketObjects
from .oss_call import OssCall, host_name, parse_call
from .oss_documents import xml
from .oss_headers import check_headers, is_performed
from .oss_multipart import Multipart
from .oss_objects import Objects
from .signatures import parse_oss_authorization
from .stats import RequestRecord
from .storage import Credential


class OssService:
    """OSS behind one port."""

    name = "oss"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._storage = backend.storage
        multipart, objects = Multipart(backend), Objects(backend)
        bucket = BucketObjects(backend)
        self._operations: Mapping[
            str, Callable[[Exchange, OssCall, Credential], Awaitable[Answer]]
        ] = {
            "InitiateMultipartUpload": multipart.initiate,
            "UploadPart": multipart.upload_part,
            "ListParts": multipart.list_parts,
            "CompleteMultipartUpload": multipart.complete,
            "AbortMultipartUpload": multipart.abort,
            "ListMultipartUploads": multipart.list_uploads,
            "PutObject": objects.put,
            "HeadObject": objects.head,
            "GetObject": objects.get,
            "ListObjects": bucket.list_v1,
            "ListObjectsV2": bucket.list_v2,
            "DeleteObject": bucket.delete,
            "DeleteMultipleObjects": bucket.delete_many,
        }

    # what `front` calls

    async def describe(self, exchange: Exchange) -> None:
        """Identify a request, before anything is checked or read."""
        call, record = self._parse(exchange), exchange.record
        record.operation = call.operation
        record.subject = call.object_key
        record.part_number = call.part_number
        record.upload_id = call.upload_id
        self._describe_credential(call, record)

    def _parse(self, exchange: Exchange) -> OssCall:
        cname, bucket = self._backend.options.cname, self._backend.bucket
        return parse_call(exchange.request, cname=cname, bound_bucket=bucket)

    def _describe_credential(self, call: OssCall, record: RequestRecord) -> None:
        try:
            authorization = parse_oss_authorization(call.headers.get("authorization", ""))
        except ValueError:
            return
        record.signature_version = authorization.version
        credential = self._storage.credential(authorization.access_key_id)
        if credential is not None:
            record.video_id = credential.video_id
            record.generation = credential.generation

    async def perform(self, exchange: Exchange) -> Answer:
        """Check a request and perform it."""
        call = self._parse(exchange)
        if call.operation == "OptionObject":
            return preflight(self._backend.options.cors_rules(), call.headers)
        self._check_endpoint(call)
        target = OssTarget(call.operation, call.bucket, call.object_key)
        credential = check_access(self._backend, target, call.signed)
        if not is_performed(call):
            # The policy of upload credentials names what this server performs, and no more.
            raise Refusal("AccessDenied")
        check_headers(call)
        operation = self._operations[call.operation]
        try:
            return await operation(exchange, call, credential)
        except BodyTimeout:
            raise Refusal("RequestTimeout") from None

    def _check_endpoint(self, call: OssCall) -> None:
        options, name = self._backend.options, host_name(call.host)
        if not options.public_endpoint and name != options.cname and "-internal." not in name:
            raise Refusal("PublicEndpointForbidden")

    def refuse(self, exchange: Exchange, refusal: Refusal, request_id: str) -> Answer:
        """The error document of OSS; the answer to HEAD has it in ``x-oss-err``."""
        request = exchange.request
        row = refusal.row(OSS_ERRORS)
        nodes = [
            Node("Code", refusal.code),
            Node("Message", row.message),
            Node("RequestId", request_id),
            Node("HostId", request.headers.get("Host", "")),
            *(Node(name, value) for name, value in refusal.fields.items()),
        ]
        headers = {}
        if row.ec:
            nodes.append(Node("EC", row.ec))
            doc = f"https://api.aliyun.com/troubleshoot?q={row.ec}"
            nodes.append(Node("RecommendDoc", doc))
            headers["x-oss-ec"] = row.ec
        if row.ec in WRONG_REGION and self._backend.options.bucket_region_header:
            headers["x-oss-bucket-region"] = f"oss-{self._backend.options.region}"
        body = xml(self._backend, Node("Error", nodes))
        if request.method == "HEAD":
            headers["x-oss-err"] = to_base64(body)
            body = b""
        return Answer(row.status, body, headers, code=refusal.code)

    def decorate(self, exchange: Exchange, request_id: str) -> dict[str, str]:
        """Headers every answer of OSS has."""
        elapsed_ms = max(1, round((time.time() - exchange.record.started_at) * 1000))
        request, rules = exchange.request, self._backend.options.cors_rules()
        return {
            **cors_headers(rules, request.method, request.headers.get("Origin")),
            "Server": "AliyunOSS",
            "Date": http_date(self._backend.now()),
            "x-oss-request-id": request_id,
            "x-oss-server-time": str(elapsed_ms),
        }

    def request_id(self) -> str:
        """24 upper-case hex digits."""
        return self._backend.ids.hex("request", 12).upper()
