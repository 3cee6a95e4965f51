"""Cross-origin rules of a bucket, as browsers meet them.

Sources: "OSS API: PutBucketCors, OptionObject", "OSS: CORS". What VOD's own buckets allow is not
documented; its JavaScript SDK works from any origin, so the default rule is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from .answers import Answer, Refusal

_METHODS: Final = ("GET", "PUT", "DELETE", "POST", "HEAD")
_EXPOSED: Final = ("ETag", "Date", "x-oss-request-id", "x-oss-hash-crc64ecma", "x-oss-ec")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsRule:
    """One rule. ``*`` stands for any text in an origin or a header, once."""

    origins: tuple[str, ...] = ("*",)
    methods: tuple[str, ...] = _METHODS
    headers: tuple[str, ...] = ("*",)
    expose: tuple[str, ...] = _EXPOSED
    max_age_s: int | None = 600

    def __post_init__(self) -> None:
        for name in ("origins", "methods", "headers", "expose"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def allows(self, origin: str, method: str, headers: Iterable[str] = ()) -> bool:
        """Whether a request of this origin may be made."""
        return (
            method in self.methods
            and any(_matches(allowed, origin) for allowed in self.origins)
            and all(any(_matches(a, name) for a in self.headers) for name in headers)
        )

    def answer_headers(self, origin: str) -> dict[str, str]:
        """Headers of the answer to a request that the rule allows."""
        allowed = "*" if "*" in self.origins else origin
        headers = {"Access-Control-Allow-Origin": allowed}
        if self.expose:
            headers["Access-Control-Expose-Headers"] = ", ".join(self.expose)
        return headers


OPEN: Final = (CorsRule(),)


def preflight(rules: Iterable[CorsRule], headers: Mapping[str, str]) -> Answer:
    """The answer to OPTIONS, which nobody signs; header names are in lower case.

    Raises: Refusal(AccessForbidden).
    """
    origin = headers.get("origin", "")
    method = headers.get("access-control-request-method", "")
    given = headers.get("access-control-request-headers", "")
    names = [name.strip().lower() for name in given.split(",") if name.strip()]
    rule = next((rule for rule in rules if origin and rule.allows(origin, method, names)), None)
    if rule is None:
        raise Refusal("AccessForbidden")
    allowed = {"Access-Control-Allow-Methods": ", ".join(rule.methods)}
    if names:
        allowed["Access-Control-Allow-Headers"] = ", ".join(names)
    if rule.max_age_s is not None:
        allowed["Access-Control-Max-Age"] = str(rule.max_age_s)
    return Answer(200, headers=allowed | rule.answer_headers(origin))


def cors_headers(rules: Iterable[CorsRule], method: str, origin: str | None) -> dict[str, str]:
    """Headers of an answer; none without a rule, and it is performed all the same."""
    if origin is None:
        return {}
    rule = next((rule for rule in rules if rule.allows(origin, method)), None)
    return rule.answer_headers(origin) if rule else {}


def _matches(pattern: str, text: str) -> bool:
    begin, star, end = pattern.lower().partition("*")
    text = text.lower()
    if not star:
        return text == begin
    return len(text) >= len(begin) + len(end) and text.startswith(begin) and text.endswith(end)
