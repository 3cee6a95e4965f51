"""Every request as a line of JSON, with its secrets masked: what a client really sends."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Final

from .encoding import Pairs, parse_query, split_target
from .exchange import Exchange

_SECRETS: Final = frozenset(
    """
    authorization signature security-token securitytoken x-oss-security-token x-oss-signature
    x-acs-security-token x-acs-signature
    """.split()
)
MASK: Final = "***"


class Recorder:
    """Appends to a file that only its owner reads. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = open(path, "a", encoding="utf-8", opener=_open_private)  # noqa: SIM115 - close() does

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, exchange: Exchange) -> None:
        """Write a request that has ended."""
        request = exchange.request
        path, query = split_target(request.raw_path)
        line = {
            "method": request.method,
            "path": path,
            "query": _masked(parse_query(query)),
            "headers": _masked(tuple(request.headers.items())),
            # VOD's calls are small; the bodies of OSS are films.
            "form": _masked(parse_query(exchange.body.decode("utf-8", "replace"))),
            **asdict(exchange.record),
        }
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _masked(pairs: Pairs) -> list[list[str]]:
    """Pairs, since a name may come twice."""
    return [[name, MASK if name.lower() in _SECRETS else value] for name, value in pairs]


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
