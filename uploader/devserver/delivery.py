"""Sending answers: correctly, or dropped, slowed down, cut off and garbled."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from .answers import Answer, FileSlice
from .exchange import Dropped, Exchange

_SEND_SIZE = 256 * 1024
_LINGER_S = 0.2
_ZEROS = Path("/dev/zero")


async def deliver(exchange: Exchange, answer: Answer) -> web.StreamResponse:
    """Send an answer as the faults of this request require.

    Raises: Dropped when the connection ends instead.
    """
    slow = exchange.fault("slow")
    if slow is not None:
        await asyncio.sleep(slow.delay_s)
    await _drop(exchange, answer)
    await _send_broken(exchange, answer)
    await _send_early(exchange, answer)
    if answer.slices:
        return await _send_slices(exchange, answer)
    return _response(answer)


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


async def _send_slices(exchange: Exchange, answer: Answer) -> web.StreamResponse:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(exchange.request)
    for piece in answer.slices:
        await _send_slice(exchange, response, piece)
    await response.write_eof()
    return response


async def _send_slice(exchange: Exchange, response: web.StreamResponse, piece: FileSlice) -> None:
    left = piece.size
    with (piece.path or _ZEROS).open("rb", buffering=0) as file:
        file.seek(piece.offset if piece.path else 0)
        while left:
            data = file.read(min(_SEND_SIZE, left))
            if not data:
                raise Dropped("a stored body is shorter than recorded")
            left -= len(data)
            for throttle in exchange.throttles:
                await throttle.spend(len(data))
            await response.write(data)


async def _drop(exchange: Exchange, answer: Answer) -> None:
    drop = exchange.fault("drop_answer")
    if drop is not None:
        exchange.close(drop.close)
        raise Dropped("answer dropped")
    lost = exchange.fault("lose_refusal")
    if lost is not None and answer.status >= 400:
        exchange.close(lost.close)
        raise Dropped("refusal lost")
    if exchange.fault("zombie"):
        raise Dropped("zombie")
    if exchange.fault("no_answer"):
        await exchange.wait_until_closed()
        raise Dropped("no answer")


async def _send_broken(exchange: Exchange, answer: Answer) -> None:
    garbage = exchange.fault("garbage")
    if garbage is not None:
        exchange.write_raw(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        await _end(exchange, "fin", "garbage")
    headers = exchange.fault("truncate_headers")
    if headers is not None:
        raw = serialised(answer)
        exchange.write_raw(raw[: raw.index(b"\r\n\r\n") - 10])
        await _end(exchange, headers.close, "truncated headers")
    body = exchange.fault("truncate_body")
    if body is not None:
        raw = serialised(answer)
        exchange.write_raw(raw[: raw.index(b"\r\n\r\n") + 4 + body.after_bytes])
        await _end(exchange, body.close, "truncated body")
    drip = exchange.fault("drip")
    if drip is not None:
        await _drip(exchange, serialised(answer), drip.delay_s)


async def _drip(exchange: Exchange, raw: bytes, delay_s: float) -> None:
    for position in range(len(raw)):
        if exchange.is_closed():
            break
        exchange.write_raw(raw[position : position + 1])
        await asyncio.sleep(delay_s)
    await _end(exchange, "fin", "dripped")


async def _send_early(exchange: Exchange, answer: Answer) -> None:
    early = exchange.fault("early_answer")
    if early is None or early.close == "keep":
        return  # aiohttp answers before it reads the rest
    exchange.write_raw(serialised(answer))
    await _end(exchange, early.close, "answered early")


async def _end(exchange: Exchange, how: object, why: str) -> None:
    """Wait a moment until written bytes are sent, then close."""
    await asyncio.sleep(_LINGER_S if how == "rst" else 0)
    exchange.close("rst" if how == "rst" else "fin")
    raise Dropped(why)


def serialised(answer: Answer) -> bytes:
    """An answer as bytes, for those that are sent below HTTP."""
    reason = HTTPStatus(answer.status).phrase
    headers = {
        "Content-Type": answer.content_type,
        **answer.headers,
        "Content-Length": str(len(answer.body)),
    }
    lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body
