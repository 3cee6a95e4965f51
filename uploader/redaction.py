"""The removal of secrets from texts of others: a server, a command, a caller's exception.

Whoever makes credentials calls `remember`. `VodupError`, the log and the printer of the command
line pass every text through `redacted`, so that an echo is removed before it is kept or shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

REDACTED: Final = "[redacted]"

_TOKEN: Final = r"[A-Za-z0-9+/=%_.~-]"
_PATTERN: Final = re.compile(
    # A token may be percent-encoded: it also travels in URLs. "eyJ": base64 of a JSON object.
    rf"STS\.[A-Za-z0-9]{{8,}}|CAIS{_TOKEN}{{20,}}|eyJ{_TOKEN}{{60,}}"
    rf"|(?P<name>(?:AccessKeySecret|SecurityToken|UploadAuth)[\"']?\s*[:=]\s*[\"']?){_TOKEN}{{16,}}"
)
_LEAST_SIZE: Final = 8
"""Characters of a secret. Fewer: ordinary words would be taken for it."""
_BEGIN_SIZE: Final = 12
"""Characters that make an echo known that was cut off. Fewer: ordinary words are redacted. More:
as many of a secret may be shown at the end of a text that was cut."""
_MOST: Final = 4096

_live: dict[str, None] = {}
"""Secrets of this process, the latest last. Mutable; several threads add to it."""


def remember(*secrets: str | None) -> None:
    """Remove these secrets from every text from now on; the oldest of very many are forgotten."""
    for secret in secrets:
        if secret is not None and len(secret) >= _LEAST_SIZE:
            _live.pop(secret, None)
            _live[secret] = None
    while len(_live) > _MOST:
        _live.pop(next(iter(_live)), None)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without the secrets of this process, and without these."""
    for secret in (*secrets, *list(_live)):
        for spelling in {secret, quote(secret, safe="")}:
            if len(secret) >= _LEAST_SIZE and spelling[:_BEGIN_SIZE] in text:
                begin = re.escape(spelling[:_BEGIN_SIZE])
                text = re.sub(f"{begin}{_TOKEN}*", REDACTED, text.replace(spelling, REDACTED))
    return _PATTERN.sub(lambda found: f"{found['name'] or ''}{REDACTED}", text)
