"""OSS and VOD in memory, answering as the real ones do, and what they saw.

A `Line` is one process's connection to them, a `Transport`. What becomes of a request is
its `Fate`: carried out or not, answered truly, falsely or not at all. The world is also the
oracle: requests that must never be sent are recorded in `breaches`.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

import crcmod
from defusedxml import ElementTree

from uploader.devserver.crc import combine_all
from uploader.errors import TransportError
from uploader.protocol.integrity import crc64
from uploader.protocol.wire import Body, Response, SentBody, SignedRequest

from .virtual import VirtualClock

__all__ = ["PART", "Call", "Fate", "Line", "Video", "World", "at_once"]

PART = 100 * 1024
"""The smallest part OSS takes."""

BUCKET = "outin-0123456789abcdef"
OTHER_BUCKET = "outin-fedcba9876543210"
FOR_GOOD = frozenset({"CompleteMultipartUpload", "PutObject", "AbortMultipartUpload"})
"""Requests that a process must not send once it has lost the upload."""

_SKEW_S = 900.0
_UNIT = 64 * 1024

# oss2's own polynomial and parameters: the engine's CRCs come from another package.
_CRC64 = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, xorOut=0xFFFFFFFFFFFFFFFF, rev=True)


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of a part, with what OSS says of them."""

    data: bytes = field(repr=False)
    md5: str
    crc64: int


@functools.lru_cache(maxsize=512)
def stored(data: bytes) -> Stored:
    """Compute once what is used often."""
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
    return Stored(data, md5, int(_CRC64(data)))


@dataclass(frozen=True, slots=True)
class Object:
    """What OSS holds under a key."""

    parts: tuple[Stored, ...]
    etag: str
    crc64: int

    @property
    def size(self) -> int:
        return sum(len(part.data) for part in self.parts)

    @property
    def data(self) -> bytes:
        return b"".join(part.data for part in self.parts)


@dataclass
class Video:
    """VOD's record. Mutable: `status`, and where refreshes point."""

    video_id: str
    reference_id: str
    object_key: str
    bucket: str = BUCKET
    status: str = "Uploading"
    refresh_count: int = 0


@dataclass(frozen=True)
class Credential:
    """What VOD handed out for one video."""

    token: str
    video_id: str
    allowed: frozenset[tuple[str, str]]
    dies_at: datetime


@dataclass
class Upload:
    """An open multipart upload. Mutable: its parts."""

    bucket: str
    object_key: str
    parts: dict[int, Stored] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one request.

    Attributes:
        is_applied: the service carries it out.
        is_lost: no answer arrives; `is_sent` is what the network reports.
        refusal: (status, code) answered in place of the truth. A status of 200 carries
            the error inside a success, as S3 is known to do.
        is_late: carried out some time later, when its caller has stopped waiting (`World.zombies`).
    """

    is_applied: bool = True
    is_lost: bool = False
    is_sent: bool = True
    refusal: tuple[int, str] | None = None
    is_late: bool = False


@dataclass
class Call:
    """One request as the service reads it. Mutable: `fate`, once it is decided."""

    line: Line
    service: str
    operation: str
    bucket: str
    key: str
    params: dict[str, str]
    headers: dict[str, str]
    url: str
    body: bytes = field(repr=False)
    sent: SentBody
    fate: asyncio.Future[Fate] | None = None

    @property
    def token(self) -> str:
        return self.headers.get("x-oss-security-token", "")

    @property
    def part_number(self) -> int:
        return int(self.params.get("partNumber", 0))


async def at_once(call: Call) -> Fate:
    """Everything works."""
    await asyncio.sleep(0.001)
    return Fate()


class Line:
    """One process's way to the services, and what it has learnt on it.

    Mutable: `is_cut`, after which nothing of this process has any effect; `is_frozen`, when
    it does not know yet that its lease is gone; the tokens known to be expired.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_cut = self.is_frozen = False
        self.dead_tokens: set[str] = set()
        self.sent_bytes = 0

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        """Carry a request, as `Transport` has it."""
        world = self.world
        call = _call_of(self, request)
        world.check_signed(call)
        call.body, call.sent = await _read(request.body, needs_md5=request.needs_md5)
        self.sent_bytes += call.sent.size
        fate = await world.decide(call)
        if self.is_cut:
            await asyncio.Event().wait()
        response = world.carry_out(call, fate)
        if response is None:
            raise TransportError(f"{call.operation}: the connection broke.", is_sent=fate.is_sent)
        return response


async def _read(body: Body | None, *, needs_md5: bool) -> tuple[bytes, SentBody]:
    """Read a body as a transport does: piece by piece, at hand or not."""
    data = bytearray()
    size = body.size if body else 0
    while body is not None and len(data) < size:
        unit = memoryview(bytearray(min(_UNIT, size - len(data))))
        count = body.read_now(unit, len(data))
        if count is None:
            count = await body.read(unit, len(data))
        data += unit[:count]
        body.sent(len(data))
        await asyncio.sleep(0)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest().upper() if needs_md5 else None
    return bytes(data), SentBody(size=len(data), crc64=crc64(data), md5=md5)


def _damaged(whole: Object) -> Object:
    first = whole.parts[0].data
    part = stored(bytes([first[0] ^ 1]) + first[1:])
    parts = (part, *whole.parts[1:])
    etag = part.md5
    if "-" in whole.etag:
        joined = hashlib.md5("".join(p.md5 for p in parts).encode(), usedforsecurity=False)
        etag = f"{joined.hexdigest().upper()}-{len(parts)}"
    return Object(parts, etag, combine_all((p.crc64, len(p.data)) for p in parts))


class World:
    """An account at OSS and VOD.

    Mutable, all of it. The knobs:

        decide              what becomes of each request
        life_s              of new credentials
        vod_qps             calls a second before Throttling.User; None: any number
        is_vod_down         503 to every call
        tells_crc           OSS names CRC-64s
        can_list, can_head  what the STS policy allows
        tells_url           VOD gives a URL to read the object by
        file_url            that URL, if it is not the true one
        list_lag            this many of the last parts are missing in ListParts
        refresh_moves       a refresh names another key, and may write only that
        refresh_is_stale    a refresh hands out credentials that are over
        refresh_video_id    what a refresh calls the video, if not by its name
        is_rotten           the next object loses a bit before anybody looks
        min_part_size       of all parts but the last
    """

    def __init__(
        self, clock: VirtualClock, decide: Callable[[Call], Awaitable[Fate]] = at_once
    ) -> None:
        self.clock, self.decide = clock, decide
        self.life_s = 3000.0
        self.vod_qps: int | None = None
        self.is_vod_down = False
        self.tells_crc = self.can_list = self.can_head = self.tells_url = True
        self.list_lag = 0
        self.refresh_moves = self.refresh_is_stale = self.is_rotten = False
        self.refresh_video_id: str | None = None
        self.file_url: str | None = None
        self.min_part_size = PART
        self.videos: dict[str, Video] = {}
        self.credentials: dict[str, Credential] = {}
        self.uploads: dict[str, Upload] = {}
        self.objects: dict[tuple[str, str], Object] = {}
        self.zombies: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.vod_calls: list[tuple[float, str]] = []
        self.breaches: list[str] = []
        self.excused: set[tuple[str, int]] = set()
        self.recorded_upload_ids: set[str] = (
            set()
        )  # one that was not recorded is known to its creator alone
        self.has_ack: Callable[[str, int], bool] = lambda upload_id, number: False
        self.expected_part_count: int | None = None
        self._vod_second: tuple[int, Counter[str]] = (0, Counter())
        self._serial = 0

    def line(self) -> Line:
        """A connection for one more process."""
        return Line(self)

    def object_of(self, video_id: str) -> Object | None:
        """What OSS holds for a video."""
        video = self.videos[video_id]
        return self.objects.get((video.bucket, video.object_key))

    def expire_all(self) -> None:
        """Every credential dies now, whatever its document says."""
        now = self.clock.true_now()
        for token, credential in list(self.credentials.items()):
            self.credentials[token] = Credential(
                token, credential.video_id, credential.allowed, min(credential.dies_at, now)
            )

    def drop_uploads(self) -> None:
        """A lifecycle rule removes what is open."""
        self.uploads.clear()

    def apply_zombie(self) -> None:
        """A request whose caller has stopped waiting arrives after all."""
        if self.zombies:
            self._answer(self.zombies.pop(0))

    # --- a request's way ----------------------------------------------------------------

    def check_signed(self, call: Call) -> None:
        """What must not even be signed, whatever becomes of it."""
        if call.line.is_cut:
            return
        self.counts[call.operation] += 1
        if call.token and call.token in call.line.dead_tokens:
            self.breaches.append(f"{call.operation} was signed with credentials known to be dead")
        if call.operation == "UploadPart":
            self._check_not_acked(call)
        is_its_own = (
            call.operation == "AbortMultipartUpload"
            and call.params["uploadId"] not in self.recorded_upload_ids
        )
        if call.line.is_frozen and call.operation in FOR_GOOD and not is_its_own:
            self.breaches.append(f"{call.operation} was signed by one whose lease was gone")

    def _check_not_acked(self, call: Call) -> None:
        sent = (call.params["uploadId"], call.part_number)
        is_excused = call.line.is_frozen or sent in self.excused
        if not is_excused and self.has_ack(*sent):
            self.breaches.append(f"part {call.part_number} was sent again after its ack")

    def carry_out(self, call: Call, fate: Fate) -> Response | None:
        """Let a request meet its fate; None: no answer arrives."""
        if fate.is_late:
            self.zombies.append(call)
        truth = self._answer(call) if fate.is_applied else None
        if fate.is_lost:
            return None
        if fate.refusal is not None:
            status, code = fate.refusal
            truth = self._refuse(call, code, status)
        if truth is None:
            return None
        if truth.status == 403 and b"SecurityTokenExpired" in truth.body:
            call.line.dead_tokens.add(call.token)
        return _with_sent(truth, call.sent)

    def _answer(self, call: Call) -> Response:
        if call.service == "vod":
            return self._answer_vod(call)
        if (code := self._refused(call)) is not None:
            return self._refuse(call, code)
        return _OSS[call.operation](self, call)

    # --- VOD ------------------------------------------------------------------------------

    def _answer_vod(self, call: Call) -> Response:
        now_s = self.clock.elapsed_s()
        self.vod_calls.append((now_s, call.operation))
        if self.is_vod_down:
            return self._refuse(call, "ServiceUnAvailable", 503)
        if self._is_throttled(call.operation, now_s):
            return self._refuse(call, "Throttling.User", 400)
        signed_at = datetime.fromisoformat(call.headers["x-acs-date"])
        if abs((signed_at - self.clock.true_now()).total_seconds()) > _SKEW_S:
            return self._refuse(call, "InvalidTimeStamp.Expired", 400)
        return _VOD[call.operation](self, call)

    def _is_throttled(self, operation: str, now_s: float) -> bool:
        second, counts = self._vod_second
        if second != math.floor(now_s):
            second, counts = self._vod_second = (math.floor(now_s), Counter())
        counts[operation] += 1
        return self.vod_qps is not None and counts[operation] > self.vod_qps

    def _create(self, call: Call) -> Response:
        reference_id = call.params["ReferenceId"]
        if self._by_reference(reference_id) is not None:
            return self._refuse(call, "InvalidReferenceId.Duplicate", 400)
        video = Video(self._next("{:032x}"), reference_id, self._next("sv/{0:08x}/{0:08x}.mp4"))
        self.videos[video.video_id] = video
        return self._granted(video, video.video_id)

    def _refresh(self, call: Call) -> Response:
        video = self._named(call)
        if video is None:
            return self._refuse(call, "InvalidVideo.NotFound", 404)
        video.refresh_count += 1
        return self._granted(video, self.refresh_video_id or video.video_id)

    def _granted(self, video: Video, video_id: str) -> Response:
        key = video.object_key
        if self.refresh_moves and video.refresh_count:
            key = f"moved/{video.object_key}"
        now = self.clock.true_now()
        life_s = 0.0 if self.refresh_is_stale and video.refresh_count else self.life_s
        dies_at = datetime.fromtimestamp(math.ceil(now.timestamp() + life_s), UTC)
        token = self._next("token-{:06d}")
        self.credentials[token] = Credential(
            token, video.video_id, frozenset({(video.bucket, key)}), dies_at
        )
        address = {
            "Endpoint": "https://oss-cn-shanghai.aliyuncs.com",
            "Bucket": video.bucket,
            "FileName": key,
        }
        auth = {
            "SecurityToken": token,
            "AccessKeyId": f"STS.{token}",
            "AccessKeySecret": f"secret-of-{token}",
            "ExpireUTCTime": dies_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Expiration": str(round(max(life_s, 1))),
            "Region": "cn-shanghai",
        }
        return self._json(
            VideoId=video_id, UploadAddress=_base64_json(address), UploadAuth=_base64_json(auth)
        )

    def _mezzanine(self, call: Call) -> Response:
        video = self._named(call)
        if video is None:
            return self._refuse(call, "InvalidVideo.NotFound", 404)
        held = self.object_of(video.video_id)
        mezzanine: dict[str, Any] = {
            "VideoId": video.video_id,
            "Status": video.status,
            "Size": held.size if held else 0,
            "OutputType": "oss",
        }
        if held is not None and self.tells_url:
            host = f"{video.bucket}.oss-cn-shanghai.aliyuncs.com"
            true_url = f"https://{host}/{video.object_key}?Expires=1&Signature=url"
            mezzanine["FileURL"] = self.file_url or true_url
        return self._json(Mezzanine=mezzanine)

    def _named(self, call: Call) -> Video | None:
        if video_id := call.params.get("VideoId"):
            return self.videos.get(video_id)
        return self._by_reference(call.params.get("ReferenceId", ""))

    def _by_reference(self, reference_id: str) -> Video | None:
        found = (v for v in self.videos.values() if v.reference_id == reference_id)
        return next(found, None)

    def _json(self, **fields: object) -> Response:
        document = {"RequestId": self._next("{:08X}-0000"), **fields}
        return self._response(200, json.dumps(document).encode())

    # --- OSS ------------------------------------------------------------------------------

    def _refused(self, call: Call) -> str | None:
        if call.operation == "GetObject":
            return None  # its right is in its URL
        held = self.credentials.get(call.token)
        if held is None:
            return "InvalidAccessKeyId"
        if abs((_signed_at(call.headers) - self.clock.true_now()).total_seconds()) > _SKEW_S:
            return "RequestTimeTooSkewed"
        if self.clock.true_now() >= held.dies_at:
            return "SecurityTokenExpired"
        is_denied = (call.operation == "ListParts" and not self.can_list) or (
            call.operation == "HeadObject" and not self.can_head
        )
        if is_denied or (call.bucket, call.key) not in held.allowed:
            return "AccessDenied"
        return None

    def _is_protected(self, call: Call) -> bool:
        forbids = call.headers.get("x-oss-forbid-overwrite") == "true"
        return forbids and (call.bucket, call.key) in self.objects

    def _initiate(self, call: Call) -> Response:
        if self._is_protected(call):
            return self._refuse(call, "FileAlreadyExists", 409)
        upload_id = self._next("{:032X}")
        self.uploads[upload_id] = Upload(call.bucket, call.key)
        return self._xml(
            "InitiateMultipartUploadResult",
            f"<Bucket>{call.bucket}</Bucket><Key>{escape(call.key)}</Key>"
            f"<UploadId>{upload_id}</UploadId>",
        )

    def _upload_part(self, call: Call) -> Response:
        upload = self.uploads.get(call.params["uploadId"])
        if upload is None:
            return self._refuse(call, "NoSuchUpload")
        part = upload.parts[call.part_number] = stored(call.body)
        return self._response(200, b"", **self._figures(part.md5, part.crc64))

    def _put(self, call: Call) -> Response:
        if self._is_protected(call):
            return self._refuse(call, "FileAlreadyExists", 409)
        part = stored(call.body)
        self._store(call, Object((part,), part.md5, part.crc64))
        held = self.objects[call.bucket, call.key]
        return self._response(200, b"", **self._figures(held.etag, held.crc64))

    def _list_parts(self, call: Call) -> Response:
        upload_id = call.params["uploadId"]
        upload = self.uploads.get(upload_id)
        if upload is None:
            return self._refuse(call, "NoSuchUpload")
        shown = sorted(upload.parts)
        shown, hidden = shown[: len(shown) - self.list_lag], shown[len(shown) - self.list_lag :]
        self.excused |= {(upload_id, number) for number in hidden if self.list_lag}
        marker = int(call.params["part-number-marker"])
        # A real page has 1,000 parts; three make paging happen.
        later = [number for number in shown if number > marker]
        page = later[:3]
        parts = "".join(self._listed(number, upload.parts[number]) for number in page)
        return self._xml(
            "ListPartsResult",
            f"<UploadId>{upload_id}</UploadId>"
            f"<NextPartNumberMarker>{page[-1] if page else 0}</NextPartNumberMarker>"
            f"<IsTruncated>{'true' if len(later) > 3 else 'false'}</IsTruncated>{parts}",
        )

    def _listed(self, number: int, part: Stored) -> str:
        crc = f"<HashCrc64ecma>{part.crc64}</HashCrc64ecma>" if self.tells_crc else ""
        return (
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{part.md5}&quot;</ETag>"
            f"<LastModified>2026-11-22T09:00:00.000Z</LastModified>{crc}"
            f"<Size>{len(part.data)}</Size></Part>"
        )

    def _complete(self, call: Call) -> Response:
        upload_id = call.params["uploadId"]
        listed = _listed_in(call.body)
        self._check_plan([number for number, _ in listed])
        upload = self.uploads.get(upload_id)
        if upload is None:
            return self._refuse(call, "NoSuchUpload")
        parts = [upload.parts.get(number) for number, _ in listed]
        found = [part for part in parts if part is not None]
        etags = [etag.strip('"') for _, etag in listed]
        if [part.md5 for part in found] != etags:
            return self._refuse(call, "InvalidPart")
        if any(len(part.data) < self.min_part_size for part in found[:-1]):
            return self._refuse(call, "EntityTooSmall")
        joined = hashlib.md5("".join(part.md5 for part in found).encode(), usedforsecurity=False)
        whole = Object(
            tuple(found),
            f"{joined.hexdigest().upper()}-{len(found)}",
            combine_all((part.crc64, len(part.data)) for part in found),
        )
        del self.uploads[upload_id]
        self._store(call, whole)
        whole = self.objects[call.bucket, call.key]
        return self._xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{call.bucket}</Bucket><ETag>&quot;{whole.etag}&quot;</ETag>",
            **self._figures(whole.etag, whole.crc64),
        )

    def _check_plan(self, numbers: list[int]) -> None:
        expected = self.expected_part_count
        if expected is not None and numbers != list(range(1, expected + 1)):
            self.breaches.append(f"Complete lists {numbers}, the plan has {expected} parts")

    def _store(self, call: Call, whole: Object) -> None:
        if self.is_rotten:
            self.is_rotten, whole = False, _damaged(whole)
        self.objects[call.bucket, call.key] = whole
        for video in self.videos.values():
            if (video.bucket, video.object_key) == (call.bucket, call.key):
                video.status = "Normal"

    def _abort(self, call: Call) -> Response:
        if self.uploads.pop(call.params["uploadId"], None) is None:
            return self._refuse(call, "NoSuchUpload")
        return self._response(204, b"")

    def _look(self, call: Call) -> Response:
        held = self.objects.get((call.bucket, call.key))
        if held is None:
            return self._refuse(call, "NoSuchKey", 404)
        headers = self._figures(held.etag, held.crc64)
        if call.operation == "HeadObject":
            return self._response(200, b"", **headers, **{"content-length": str(held.size)})
        headers |= {"content-range": f"bytes 0-0/{held.size}", "content-length": "1"}
        return self._response(206, held.data[:1], **headers)

    def _figures(self, etag: str, crc: int) -> dict[str, str]:
        figures = {"x-oss-hash-crc64ecma": str(crc)} if self.tells_crc else {}
        return {"etag": f'"{etag}"', **figures}

    # --- documents --------------------------------------------------------------------------

    def _refuse(self, call: Call, code: str, status: int | None = None) -> Response:
        if call.service == "vod":
            document = {"RequestId": self._next("{:08X}-0000"), "Code": code, "Message": "No."}
            return self._response(status or 400, json.dumps(document).encode())
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
            f"<Message>No.</Message><RequestId>R</RequestId>"
            f"<SecurityToken>{call.token}</SecurityToken></Error>"
        ).encode()
        status = status or _STATUS.get(code, 400)
        if call.operation == "HeadObject":
            return self._response(status, b"", **{"x-oss-err": base64.b64encode(body).decode()})
        return self._response(status, body)

    def _xml(self, root: str, inside: str, **headers: str) -> Response:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{inside}</{root}>'
        return self._response(200, text.encode(), **headers)

    def _response(self, status: int, body: bytes, **headers: str) -> Response:
        always = {
            "date": format_datetime(self.clock.true_now(), usegmt=True),
            "x-oss-request-id": self._next("{:024X}"),
        }
        return Response(status, always | headers, body)

    def _next(self, form: str) -> str:
        self._serial += 1
        return form.format(self._serial)


_STATUS = {
    "NoSuchUpload": 404,
    "NoSuchKey": 404,
    "AccessDenied": 403,
    "SecurityTokenExpired": 403,
    "InvalidAccessKeyId": 403,
    "RequestTimeTooSkewed": 403,
}

_Handler = Callable[[World, Call], Response]

_VOD: dict[str, _Handler] = {
    "CreateUploadVideo": World._create,
    "RefreshUploadVideo": World._refresh,
    "GetMezzanineInfo": World._mezzanine,
}

_OSS: dict[str, _Handler] = {
    "InitiateMultipartUpload": World._initiate,
    "UploadPart": World._upload_part,
    "PutObject": World._put,
    "ListParts": World._list_parts,
    "CompleteMultipartUpload": World._complete,
    "AbortMultipartUpload": World._abort,
    "HeadObject": World._look,
    "GetObject": World._look,
}


# --- reading requests ---------------------------------------------------------------------


def _call_of(line: Line, request: SignedRequest) -> Call:
    parts = urlsplit(request.url)
    host = parts.hostname or ""
    params = dict(parse_qsl(parts.query, keep_blank_values=True))
    empty = SentBody()
    if host.startswith("vod."):
        params |= dict(parse_qsl(getattr(request.body, "data", b"").decode()))
        headers = dict(request.headers)
        action = headers["x-acs-action"]
        return Call(line, "vod", action, "", "", params, headers, request.url, b"", empty)
    bucket, key = host.partition(".")[0], unquote(parts.path[1:])
    operation = _operation(request.method, params)
    headers = dict(request.headers)
    return Call(line, "oss", operation, bucket, key, params, headers, request.url, b"", empty)


def _operation(method: str, params: dict[str, str]) -> str:
    if "uploadId" not in params:
        plain = {"PUT": "PutObject", "HEAD": "HeadObject", "GET": "GetObject"}
        return plain.get(method, "InitiateMultipartUpload")
    return {
        "PUT": "UploadPart",
        "GET": "ListParts",
        "POST": "CompleteMultipartUpload",
        "DELETE": "AbortMultipartUpload",
    }[method]


def _signed_at(headers: dict[str, str]) -> datetime:
    date = headers["x-oss-date"]
    return parsedate_to_datetime(date) if "," in date else datetime.fromisoformat(date)


def _listed_in(body: bytes) -> list[tuple[int, str]]:
    root = ElementTree.fromstring(body)
    return [
        (int(part.findtext("PartNumber", "0")), part.findtext("ETag", ""))
        for part in root.iter("Part")
    ]


def _base64_json(fields: dict[str, str]) -> str:
    return base64.b64encode(json.dumps(fields).encode()).decode()


def _with_sent(response: Response, sent: SentBody) -> Response:
    return Response(response.status, response.headers, response.body, sent)
