"""The metadata service of an ECS instance, in security-hardened mode.

Source: "ECS: Instance metadata".
"""

from __future__ import annotations

import hmac
import secrets

from .answers import Answer
from .signatures import SignedRequest

ROOT = "/latest/"
_TOKEN = "x-aliyun-ecs-metadata-token"


class Metadata:
    """Answers with the region of a machine. Mutable: the token that it has issued."""

    def __init__(self) -> None:
        self._token = secrets.token_urlsafe(30)

    def answer(self, request: SignedRequest, region: str | None) -> Answer:
        """The answer to a request below ``/latest/``; ``None``: no machine, nothing is there."""
        if region is None:
            return _text(404, "Not Found")
        if (request.method, request.resource) == ("PUT", "/latest/api/token"):
            life = request.headers.get(f"{_TOKEN}-ttl-seconds", "")
            is_valid = life.isdecimal() and 1 <= int(life) <= 21600
            return _text(200, self._token) if is_valid else _text(400, "Bad Request")
        if not hmac.compare_digest(request.headers.get(_TOKEN, ""), self._token):
            return _text(403, "Forbidden")
        is_known = (request.method, request.resource) == ("GET", "/latest/meta-data/region-id")
        return _text(200, region) if is_known else _text(404, "Not Found")


def _text(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), content_type="text/plain")
