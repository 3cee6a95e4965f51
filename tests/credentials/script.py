"""VOD as a script of answers, and grants and videos to play with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.clocks import SkippingClock
from uploader.credentials import (
    AccessKeys,
    GrantSource,
    Network,
    NewVideo,
    VodProvider,
)
from uploader.errors import TransportError
from uploader.pace import Pace
from uploader.protocol import oss
from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.vod import AccessKey, VideoMeta
from uploader.protocol.wire import Response, SignedRequest
from uploader.session import RetryPolicy

VIDEO_ID = "c6a23a870c8c4ffcd40cbd3813311111"
TARGET = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-bucket", "sv/a.mp4")
HEAD = oss.head_object(TARGET)
BROKEN = TransportError("The connection was reset.", is_sent=True)


def credentials(**changes: Any) -> StsCredentials:
    return replace(StsCredentials("STS.id", "secret", "token"), **changes)


def a_grant(target: UploadTarget = TARGET, **changes: Any) -> UploadGrant:
    return UploadGrant(VIDEO_ID, target, credentials(**changes))


VOD = "https://vod.cn-shanghai.aliyuncs.com"
KEY = AccessKey(id="id-1", secret="secret")
Answer = Response | Exception


class Vod:
    """VOD as a script of answers by action; the last one of each is given for ever. Mutable."""

    def __init__(self, **answers: Sequence[Answer]) -> None:
        self.answers = {action: list(script) for action, script in answers.items()}
        self.calls: list[dict[str, str]] = []
        self.requests: list[SignedRequest] = []

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        await asyncio.sleep(0)
        self.requests.append(request)
        query = dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True))
        body = getattr(request.body, "data", b"").decode()
        action = request.headers.get("x-acs-action")
        form = {"Action": action, **dict(parse_qsl(body))} if action else {"body": body}
        self.calls.append(query | form)
        script = self.answers[action or "any"]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def key_ids(self) -> list[str]:
        """The AccessKey that signed each call."""
        authorizations = (request.headers["authorization"] for request in self.requests)
        return [text.partition("Credential=")[2].partition(",")[0] for text in authorizations]

    @property
    def actions(self) -> list[str]:
        return [call["Action"] for call in self.calls]


def network(transport: Vod, *, trust: TrustPolicy | None = None) -> Network:
    clock = SkippingClock()
    pace = Pace(vod_calls_per_s=10_000.0, clock=clock)
    return Network(transport, pace, clock, RetryPolicy(), trust or TrustPolicy())


def at_vod(transport: Vod, key: AccessKey | AccessKeys = KEY) -> GrantSource:
    return VodProvider(key).connect(network(transport))


def answer(**fields: Any) -> Response:
    return Response(200, {}, json.dumps(fields).encode())


def granted(video_id: str | None = VIDEO_ID) -> Response:
    address = {"Endpoint": TARGET.endpoint, "Bucket": TARGET.bucket, "FileName": "sv/a.mp4"}
    auth = {"AccessKeyId": "STS.id", "AccessKeySecret": "s", "SecurityToken": "t"}
    fields: dict[str, Any] = {"UploadAddress": address, "UploadAuth": auth, "RequestId": "8906"}
    return answer(**fields, **({"VideoId": video_id} if video_id else {}))


def denied(code: str, status: int = 400) -> Response:
    return Response(status, {}, json.dumps({"Code": code, "RequestId": "8906"}).encode())


def mezzanine(status: str) -> Response:
    return answer(Mezzanine={"Status": status, "Size": 9})


GONE = denied("InvalidVideo.NotFound", 404)
NEW = NewVideo(
    meta=VideoMeta(title="Movie"), file_name="a.mp4", file_size=9, reference_id="vodup-1"
)
AGAIN = replace(NEW, is_repeat=True)
