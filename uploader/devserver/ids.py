"""Ids, keys and tokens: random, or the same ones in every run of the server with a seed."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable

_ALPHABET = "".join(c for c in string.ascii_letters + string.digits if c not in "0IOl")
_URL_ALPHABET = string.ascii_letters + string.digits + "-_"


class Ids:
    """Mutable: with a seed, each kind of id has a sequence of its own.

    The n-th VideoId is then the same however many requests came before it. ``start`` counts the
    starts of the server on the same data, so that no id is given twice.
    """

    def __init__(self, seed: str | None, start: int) -> None:
        self._source: Callable[[str], random.Random]
        sequences: dict[str, random.Random] = {}
        if seed is None:
            system = random.SystemRandom()
            self._source = lambda kind: system
        else:
            self._source = lambda kind: sequences.setdefault(
                kind,
                random.Random(f"{seed}/{start}/{kind}"),  # nosec B311  # not for secrecy
            )

    def hex(self, kind: str, size: int) -> str:
        """``size`` random bytes as lower-case hex digits."""
        return self._source(kind).randbytes(size).hex()

    def uuid(self, kind: str) -> str:
        """A UUID in lower case."""
        return str(uuid.UUID(bytes=self._source(kind).randbytes(16), version=4))

    def text(self, kind: str, length: int) -> str:
        """Letters and digits."""
        return "".join(self._source(kind).choices(_ALPHABET, k=length))

    def token(self, kind: str) -> str:
        """A SecurityToken: about 960 characters that begin with ``CAIS``."""
        source = self._source(kind)
        rest = "".join(source.choices(_URL_ALPHABET, k=920)).rstrip("-_")
        return "CAIS" + source.randbytes(4).hex().upper() + rest + "=="
