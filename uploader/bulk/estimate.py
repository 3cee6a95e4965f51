"""What a batch would take, without sending anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from uploader.errors import ConfigurationError, VodupError
from uploader.protocol.part_sizes import plan_file

from .runner import CheckedRow

ASSUMED_BYTES_PER_S: Final = 12_500_000
"""100 Mbit/s, where no bandwidth is given."""

_CREDENTIAL_LIFE_S: Final = 3000 - 300
"""VOD doc "Upload URLs and credentials": 3,000 s, renewed five minutes ahead."""


@dataclass
class Estimate:
    """Counters of a dry run. Mutable.

    Attributes:
        bytes_per_s: assumed for the whole batch.
        part_size: as for the uploads; None for the automatic one.
        vod_calls_per_s: the budget.
    """

    bytes_per_s: float = ASSUMED_BYTES_PER_S
    part_size: int | None = None
    vod_calls_per_s: float = 20.0
    row_count: int = 0
    skipped_count: int = 0
    good_count: int = 0
    byte_count: int = 0
    part_count: int = 0
    oss_request_count: int = 0
    vod_call_count: int = 0
    renewal_count: int = 0
    largest_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)

    def add(self, checked: CheckedRow) -> VodupError | None:
        """Count a row; returns the error it would fail with."""
        self.row_count += 1
        if checked.known.is_done:
            self.skipped_count += 1
            return None
        error = checked.row.error
        if error is None:
            try:
                self._add_good(checked.size)
            except ConfigurationError as problem:  # larger than OSS allows in such parts
                error = problem
        if error is not None:
            self.errors[type(error).__name__] += 1
        return error

    def _add_good(self, size: int) -> None:
        plan = plan_file(size, part_size=self.part_size)
        is_put = plan.is_single
        renewal_count = int(size / self.bytes_per_s // _CREDENTIAL_LIFE_S)
        self.good_count += 1
        self.byte_count += size
        self.largest_bytes = max(self.largest_bytes, size)
        self.part_count += plan.part_count
        self.oss_request_count += 1 if is_put else plan.part_count + 2
        self.renewal_count += renewal_count
        self.vod_call_count += 1 + renewal_count

    @property
    def seconds(self) -> float:
        """The longer of: the bytes at the assumed rate, the VOD calls at their budget."""
        return max(self.byte_count / self.bytes_per_s, self.vod_call_count / self.vod_calls_per_s)

    def figures(self) -> dict[str, Any]:
        """Return all counts as JSON values."""
        return {
            "rows": self.row_count,
            "good": self.good_count,
            "skipped": self.skipped_count,
            "refused": sum(self.errors.values()),
            "errors": dict(self.errors),
            "bytes": self.byte_count,
            "largest_bytes": self.largest_bytes,
            "parts": self.part_count,
            "oss_requests": self.oss_request_count,
            "vod_calls": self.vod_call_count,
            "renewals": self.renewal_count,
            "assumed_bytes_per_s": round(self.bytes_per_s),
            "seconds": round(self.seconds, 1),
        }
