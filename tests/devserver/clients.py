"""Raw clients: signed by Alibaba Cloud's own SDKs, sent byte for byte with http.client."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlsplit

import oss2
from aliyunsdkcore.auth.composer import rpc_signature_composer

from uploader.devserver import DevServer

PART = bytes(range(256)) * 400  # 102,400 bytes, the smallest part OSS accepts


@dataclass(frozen=True)
class Reply:
    """An answer: status, lower-case headers, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error code, from the body or from ``x-oss-err``."""
        text = self.error_text
        found = re.search(r"<Code>(.*?)</Code>", text) or re.search(r'"Code": "(.*?)"', text)
        return found.group(1) if found else ""

    @property
    def error_text(self) -> str:
        if "x-oss-err" in self.headers:
            return base64.b64decode(self.headers["x-oss-err"]).decode()
        return self.body.decode()

    def element(self, name: str) -> str:
        found = re.search(f"<{name}>(.*?)</{name}>", self.error_text)
        assert found, f"no <{name}> in {self.error_text}"
        return found.group(1)

    def elements(self, name: str) -> list[str]:
        return re.findall(f"<{name}>(.*?)</{name}>", self.body.decode())


def send(
    url: str, method: str, target: str, headers: Mapping[str, str], body: bytes | None
) -> Reply:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(method, target, body=body, headers=dict(headers))
        answer = connection.getresponse()
        lowered = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, lowered, answer.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Vod:
    """Calls the VOD API with the caller's AccessKey, signed by aliyunsdkcore."""

    server: DevServer

    def target(self, action: str, **params: str) -> str:
        values = {"Action": action, "Version": "2017-03-21", **params}
        key = values.pop("_key_id", self.server.access_key_id)
        secret = values.pop("_secret", self.server.access_key_secret)
        form = values.pop("_format", "JSON")
        url, _ = rpc_signature_composer.get_signed_url(values, key, secret, form, "GET", {})
        return str(url)

    def call(self, action: str, **params: str) -> Reply:
        return self.get(self.target(action, **params))

    def get(self, target: str) -> Reply:
        return send(self.server.vod_endpoint, "GET", target, {}, None)

    def ok(self, action: str, **params: str) -> dict[str, Any]:
        reply = self.call(action, **params)
        assert reply.status == 200, reply.body
        return dict(json.loads(reply.body))


def decoded(text: str) -> dict[str, Any]:
    return dict(json.loads(base64.b64decode(text)))


@dataclass(frozen=True)
class Oss:
    """Talks to OSS about one video's object, signed by oss2 (or unsigned)."""

    endpoint: str
    bucket: str
    key: str
    access_key_id: str
    secret: str
    token: str
    video_id: str = ""
    version: str = "v4"
    region: str = "cn-shanghai"
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    def signed(
        self,
        method: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        key: str | None = None,
    ) -> tuple[str, dict[str, str]]:
        """The raw target and headers of a signed request."""
        key = self.key if key is None else key
        path = f"/{self.bucket}/{quote(key, safe='')}"
        request = oss2.http.Request(
            method,
            self.endpoint + path,
            params=dict(params),
            headers=dict(headers),
            region=self.region,
            product="oss",
        )
        self._auth()._sign_request(request, self.bucket, key)
        query = "&".join(
            quote(k, safe="") + ("=" + quote(v, safe="") if v else "")
            for k, v in request.params.items()
        )
        kept = {k: v for k, v in request.headers.items() if v is not None}
        return path + ("?" + query if query else ""), kept

    def _auth(self) -> oss2.ProviderAuth:
        provider = oss2.credentials.StaticCredentialsProvider(
            self.access_key_id, self.secret, self.token
        )
        return (oss2.ProviderAuthV4 if self.version == "v4" else oss2.ProviderAuth)(provider)

    def call(
        self,
        method: str,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> Reply:
        target, all_headers = self.signed(method, params or {}, headers or {}, key)
        return send(self.endpoint, method, target, all_headers, body)

    def initiate(self, **params: str) -> str:
        reply = self.call("POST", {"uploads": "", **params})
        assert reply.status == 200, reply.body
        return reply.element("UploadId")

    def put_part(
        self, upload_id: str, number: int | str, body: bytes = PART, **headers: str
    ) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call("PUT", {"partNumber": str(number), "uploadId": upload_id}, body, named)

    def list_parts(self, upload_id: str, **params: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in params.items()}
        return self.call("GET", {"uploadId": upload_id, **named})

    def complete(self, upload_id: str, parts: list[tuple[int, str]], **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call("POST", {"uploadId": upload_id}, part_list(parts), named)

    def abort(self, upload_id: str) -> Reply:
        return self.call("DELETE", {"uploadId": upload_id})


def part_list(parts: list[tuple[int, str]]) -> bytes:
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        for number, etag in parts
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()


def etag(body: bytes = PART) -> str:
    return '"' + hashlib.md5(body, usedforsecurity=False).hexdigest().upper() + '"'


def granted(answer: Mapping[str, Any]) -> Oss:
    """An OSS client from the answer of Create or Refresh."""
    address, auth = decoded(answer["UploadAddress"]), decoded(answer["UploadAuth"])
    return Oss(
        endpoint=address["Endpoint"],
        bucket=address["Bucket"],
        key=address["FileName"],
        access_key_id=auth["AccessKeyId"],
        secret=auth["AccessKeySecret"],
        token=auth["SecurityToken"],
        video_id=answer.get("VideoId", ""),
    )


def start_upload(vod: Vod, file_name: str = "movie.mp4") -> Oss:
    return granted(vod.ok("CreateUploadVideo", Title="A title", FileName=file_name))


def with_version(oss: Oss, version: str) -> Oss:
    return replace(oss, version=version)
