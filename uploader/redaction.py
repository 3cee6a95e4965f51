"""Removes secrets from what servers, commands and callers say, before it is kept or shown."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
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

_live: dict[str, str] = {}
"""Secrets by their beginnings, the latest last: a text is searched once, however many there are."""
_sizes: set[int] = {_BEGIN_SIZE}  # of the beginnings: that of a shorter secret is all of it


def remember(*secrets: str | None) -> None:
    """Have `redacted` remove these secrets from now on; the oldest of very many are forgotten."""
    for begin, secret in _beginnings(*filter(None, secrets)).items():
        _live.pop(begin, None)
        _live[begin] = secret
        _sizes.add(len(begin))
    if len(_live) > _MOST:
        for begin in list(_live)[:-_MOST]:
            _live.pop(begin, None)


def redacted(text: str, *secrets: str) -> str:
    """Return `text` without the secrets of this process, and without these.

    A server, a command or a caller's exception may repeat them. Errors, the log and the printer
    of the command line pass every text through this before it is kept or shown.
    """
    text = _without(text, _live, _sizes)
    if own := _beginnings(*secrets):
        text = _without(text, own, {len(begin) for begin in own})
    return _PATTERN.sub(lambda found: f"{found['name'] or ''}{REDACTED}", text)


def _beginnings(*secrets: str) -> dict[str, str]:
    """The secrets by their first characters, as they are and percent-encoded."""
    return {
        begin[:_BEGIN_SIZE]: secret
        for secret in secrets
        if len(secret) >= _LEAST_SIZE
        for begin in (secret[:_BEGIN_SIZE], quote(secret[:_BEGIN_SIZE], safe=""))
    }


def _without(text: str, live: Mapping[str, str], sizes: Collection[int]) -> str:
    for size in tuple(sizes):
        windows = (text[start : start + size] for start in range(len(text) - size + 1))
        for begin in {window for window in windows if window in live}:
            secret = live.get(begin, begin)
            text = text.replace(secret, REDACTED).replace(quote(secret, safe=""), REDACTED)
            text = re.sub(f"{re.escape(begin)}{_TOKEN}*", REDACTED, text)
    return text
