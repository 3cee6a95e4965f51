"""Fault injection: which requests fail, and how.

A script is a list of faults. A fault names the requests it applies to (operation, part, attempt)
and one action. Every fault that matches a request applies, in the order of the script.

As JSON::

    [{"operation": "UploadPart", "part": 3, "attempt": 1, "action": "error",
      "status": 503, "code": "ServiceUnavailable"},
     {"operation": "CompleteMultipartUpload", "action": "drop_answer", "count": 1},
     {"operation": "*", "action": "reset", "probability": 0.05, "seed": 7, "count": null}]
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .json_fields import from_json

ACTIONS: Mapping[str, str] = {
    # on arrival, before the request is processed
    "error": "answer status/code/message as the service would, after reading the body",
    "early_answer": "answer status/code without reading the body, then close (rst, fin, keep)",
    "reset": "close (rst, fin) when after_bytes of the body have arrived; nothing is applied",
    "hang": "read the body, then never answer; nothing is applied",
    "stop_reading": "stop reading the body after after_bytes and stay silent",
    "delay": "wait delay_s before the request is looked at",
    "expire_credentials": "expire all credentials of the video just before this request",
    "vanish": "delete the multipart upload just before this request",
    "clock_offset": "set the server's clock offset to value seconds, from now on",
    "redirect": "answer status (302, 307 ...) with Location: location",
    "html": "answer an HTML page with status (502; 200 plays a captive portal)",
    # on the request itself
    "zombie": "drop the answer at once, apply the request delay_s later",
    "slow": "apply the request at once, answer delay_s later",
    "flip_bit": "flip one bit of the body in transit: ETag and CRC are those of other bytes",
    "rot": "flip one bit of the stored part, but answer the ETag and CRC of what was sent",
    # on ListParts
    "list_lag": "leave the last value parts out of the list",
    "list_page_size": "at most value parts a page",
    "list_repeat_page": "answer the first page whatever the marker says",
    "list_stuck_marker": "IsTruncated with a NextPartNumberMarker that does not grow",
    # on the answer, after the request was applied
    "drop_answer": "apply, then close (rst, fin) instead of answering",
    "lose_refusal": "close (rst, fin) where the answer would be a refusal; others pass",
    "no_answer": "apply, then never answer and keep the connection open",
    "drip": "send the answer byte by byte, delay_s apart",
    "truncate_body": "close (rst, fin) after after_bytes of the answer's body",
    "truncate_headers": "close in the middle of the answer's headers",
    "garbage": "answer something that is not HTTP",
    "error_body": "answer status 200 with an error document of code",
    "malformed": "cut the answer's document in half, with a matching Content-Length",
    "empty_body": "answer with an empty body",
    "repeated_key": "answer a JSON object that has its RequestId twice",
    "oversize": "append value bytes (64 MiB) of white space to the answer's document",
    "gzip_bomb": "answer a gzip body that unpacks to value bytes (512 MiB)",
    "wrong_etag": "answer another ETag",
    "missing_etag": "answer no ETag",
    "wrong_crc": "answer another x-oss-hash-crc64ecma",
    "missing_crc": "answer no x-oss-hash-crc64ecma",
    "stale_close": "answer, then close the connection when its next request arrives",
    "callback_failed": "apply, then answer 203 CallbackFailed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: requests that match get ``action``.

    ``operation`` is a name or ``"*"``; ``part`` a part number; ``attempt`` a number or a
    ``(from, to)`` pair, counted from 1 per operation, object (or VideoId) and part; ``subject``
    a VideoId, a ReferenceId or an object key, so that uploads side by side have faults of their
    own; ``every`` hits each n-th matching request; ``headers`` are added to the answer;
    ``count`` is how often it applies at most (``None``: for
    ever); ``probability`` is drawn from ``seed``.
    """

    action: str
    operation: str = "*"
    part: int | None = None
    attempt: int | tuple[int, int] | None = None
    subject: str = ""
    every: int = 1
    count: int | None = 1
    probability: float = 1.0
    seed: int = 0

    status: int = 0
    code: str = ""
    message: str = ""
    ec: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    after_bytes: int = 0
    delay_s: float = 0.0
    close: Literal["rst", "fin", "keep"] = "rst"
    location: str = ""
    value: float | None = None
    name: str = ""
    """Its name in the statistics; the action by default."""

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"unknown fault action {self.action!r}: {', '.join(ACTIONS)}")

    def label(self) -> str:
        """The name under which it is counted."""
        return self.name or self.action

    def is_about(
        self, operation: str, part: int | None, attempt: int, subjects: Collection[str] = ()
    ) -> bool:
        """Whether this fault applies to a request; ``subjects`` are all names of its video."""
        return (
            self.operation in ("*", operation)
            and self.part in (None, part)
            and (not self.subject or self.subject in subjects)
            and self._covers(attempt)
        )

    def _covers(self, attempt: int) -> bool:
        if self.attempt is None:
            return True
        first, last = (self.attempt,) * 2 if isinstance(self.attempt, int) else self.attempt
        return first <= attempt <= last


def fault_from_json(values: Mapping[str, Any]) -> Fault:
    """One fault from a JSON object whose names are the fields.

    Raises: ValueError for unknown names and values of other types.
    """
    return from_json(Fault, values, "fault field")


class FaultScript:
    """The active faults, and how often each was injected. Mutable."""

    def __init__(self, faults: Iterable[Fault | Mapping[str, Any]] = ()) -> None:
        self._faults: list[_Armed] = []
        self._attempts: Counter[tuple[str, str, int | None]] = Counter()
        self.replace(faults)

    def replace(self, faults: Iterable[Fault | Mapping[str, Any]]) -> None:
        """Replace the script; all counts restart at zero."""
        values = [f if isinstance(f, Fault) else fault_from_json(f) for f in faults]
        self._faults = [_Armed(fault) for fault in values]

    def add(self, *faults: Fault) -> None:
        """Append to the script."""
        self._faults.extend(_Armed(fault) for fault in faults)

    def forget(self, subject: str) -> None:
        """Remove the faults of one subject, with their counts."""
        self._faults = [armed for armed in self._faults if armed.fault.subject != subject]

    def next_attempt(self, operation: str, subject: str, part: int | None) -> int:
        """Number this request among those of its operation, object and part, from 1."""
        self._attempts[operation, subject, part] += 1
        return self._attempts[operation, subject, part]

    def take(
        self, operation: str, part: int | None, attempt: int, subjects: Collection[str] = ()
    ) -> tuple[Fault, ...]:
        """The faults that apply to this request; each counts as injected."""
        return tuple(
            armed.fault
            for armed in self._faults
            if armed.strikes(operation, part, attempt, subjects)
        )

    @property
    def consumed(self) -> dict[str, int]:
        """How often each fault was injected, by label."""
        counts: Counter[str] = Counter()
        for armed in self._faults:
            counts[armed.fault.label()] += armed.consumed
        return dict(counts)

    @property
    def unconsumed(self) -> tuple[Fault, ...]:
        """Faults that were never injected."""
        return tuple(armed.fault for armed in self._faults if not armed.consumed)


class _Armed:
    """One fault with its counters."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.consumed = 0
        self._seen = 0
        self._random = random.Random(fault.seed)

    def strikes(
        self, operation: str, part: int | None, attempt: int, subjects: Collection[str]
    ) -> bool:
        if not self.fault.is_about(operation, part, attempt, subjects) or self._is_spent():
            return False
        self._seen += 1
        hit = self._seen % self.fault.every == 0 and self._draws()
        self.consumed += hit
        return hit

    def _is_spent(self) -> bool:
        return self.fault.count is not None and self.consumed >= self.fault.count

    def _draws(self) -> bool:
        return self.fault.probability >= 1 or self._random.random() < self.fault.probability
