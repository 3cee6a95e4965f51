"""Injects faults: on arrival, into the request, and into the answer."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from .answers import Answer, Refusal
from .exchange import Dropped, Exchange
from .faults import Fault

_PROXY_PAGE = b"<html><head><title>%d</title></head><body><h1>nginx</h1></body></html>\r\n"
_DEFAULT_OVERSIZE = 64 * 1024 * 1024
_DEFAULT_BOMB = 512 * 1024 * 1024


async def arrive(exchange: Exchange) -> Answer | None:
    """Inject the faults that act before the request is processed.

    Returns an answer that takes the place of the service's, or ``None`` to go on.

    Raises: Refusal for an error the service would word; Dropped when the connection ended.
    """
    _change_the_world(exchange)
    delay = exchange.fault("delay")
    if delay is not None:
        await asyncio.sleep(delay.delay_s)
    await _fall_silent(exchange)
    return await _answer_instead(exchange)


def _change_the_world(exchange: Exchange) -> None:
    backend, record = exchange.backend, exchange.record
    if exchange.fault("expire_credentials"):
        backend.expire_credentials(record.video_id or None)
    if exchange.fault("vanish"):
        backend.storage.remove_upload(record.upload_id)
    clock = exchange.fault("clock_offset")
    if clock is not None:
        backend.set_options(clock_offset_s=clock.value or 0.0)


async def _fall_silent(exchange: Exchange) -> None:
    reset = exchange.fault("reset")
    if reset is not None:
        await exchange.read_at_most(reset.after_bytes)
        exchange.close(reset.close)
        raise Dropped("reset")
    if exchange.fault("hang"):
        await exchange.drain()
        await _stay_silent(exchange)
    stop = exchange.fault("stop_reading")
    if stop is not None:
        await exchange.read_at_most(stop.after_bytes)
        await _stay_silent(exchange)


async def _stay_silent(exchange: Exchange) -> None:
    await exchange.wait_until_closed()
    raise Dropped("silence")


async def _answer_instead(exchange: Exchange) -> Answer | None:
    early = exchange.fault("early_answer")
    if early is not None and early.status < 300:
        return Answer(early.status or 200, headers={"ETag": f'"{"0" * 32}"'})
    if early is not None:
        raise ordered_refusal(early)
    redirect = exchange.fault("redirect")
    if redirect is not None:
        await exchange.drain()
        return Answer(redirect.status or 307, headers={"Location": redirect.location})
    page = exchange.fault("html")
    if page is not None:
        await exchange.drain()
        status = page.status or 502
        return Answer(status, _PROXY_PAGE % status, content_type="text/html")
    error = exchange.fault("error")
    if error is not None:
        await exchange.drain()
        raise ordered_refusal(error)
    return None


def ordered_refusal(fault: Fault) -> Refusal:
    """The refusal that a fault specifies."""
    return Refusal(fault.code or "InternalError", fault.message, status=fault.status, ec=fault.ec)


def alter(exchange: Exchange, answer: Answer) -> Answer:
    """Change the content of an answer as the faults of this request require."""
    for fault in exchange.faults:
        change = _CHANGES.get(fault.action)
        if change is not None:
            answer = change(answer, fault)
        if fault.headers:
            answer = dataclasses.replace(answer, headers={**answer.headers, **fault.headers})
    return answer


def _malformed(answer: Answer, fault: Fault) -> Answer:
    return dataclasses.replace(answer, body=answer.body[: len(answer.body) // 2])


def _empty_body(answer: Answer, fault: Fault) -> Answer:
    return dataclasses.replace(answer, body=b"")


def _repeated_key(answer: Answer, fault: Fault) -> Answer:
    return dataclasses.replace(answer, body=answer.body.replace(b"{", b'{"RequestId": "",', 1))


def _oversize(answer: Answer, fault: Fault) -> Answer:
    padding = b" " * int(fault.value or _DEFAULT_OVERSIZE)
    return dataclasses.replace(answer, body=answer.body + padding)


def _gzip_bomb(answer: Answer, fault: Fault) -> Answer:
    body = _packed_zeros(int(fault.value or _DEFAULT_BOMB))
    headers = {**answer.headers, "Content-Encoding": "gzip"}
    return dataclasses.replace(answer, body=body, headers=headers)


@lru_cache(maxsize=4)
def _packed_zeros(size: int) -> bytes:
    """A gzip stream that unpacks to at least ``size`` zero bytes."""
    block = gzip.compress(bytes(8 * 1024 * 1024))
    return block * max(1, size // (8 * 1024 * 1024))


def _wrong_etag(answer: Answer, fault: Fault) -> Answer:
    wrong = "F" * 32
    body = re.sub(rb"<ETag>[^<]*</ETag>", b'<ETag>"' + wrong.encode() + b'"</ETag>', answer.body)
    headers = {**answer.headers, "ETag": f'"{wrong}"'}
    return dataclasses.replace(answer, body=body, headers=headers)


def _missing_etag(answer: Answer, fault: Fault) -> Answer:
    body = re.sub(rb"\s*<ETag>[^<]*</ETag>", b"", answer.body)
    return dataclasses.replace(answer, body=body, headers=_without(answer.headers, "ETag"))


def _wrong_crc(answer: Answer, fault: Fault) -> Answer:
    headers = {**answer.headers, "x-oss-hash-crc64ecma": "1234567890"}
    return dataclasses.replace(answer, headers=headers)


def _missing_crc(answer: Answer, fault: Fault) -> Answer:
    headers = _without(answer.headers, "x-oss-hash-crc64ecma")
    return dataclasses.replace(answer, headers=headers)


def _without(headers: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


_CHANGES: Mapping[str, Callable[[Answer, Fault], Answer]] = {
    "malformed": _malformed,
    "empty_body": _empty_body,
    "oversize": _oversize,
    "repeated_key": _repeated_key,
    "gzip_bomb": _gzip_bomb,
    "wrong_etag": _wrong_etag,
    "missing_etag": _missing_etag,
    "wrong_crc": _wrong_crc,
    "missing_crc": _missing_crc,
}
