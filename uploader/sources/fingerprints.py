"""How we know that a source is still the same."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from uploader.protocol.documents import MalformedDocument

__all__ = ["Fingerprint"]

_WORDS: Final = {
    "size": "size",
    "mtime_ns": "modification time",
    "ctime_ns": "change time",
    "inode": "inode",
    "device": "device",
}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """How we know that a source is still the same.

    Attributes:
        size: bytes.
        mtime_ns, ctime_ns: last change of the content, and of content or inode. The
            second one cannot be set back, so it shows an edit that hides in the first.
        inode, device: which file it is. For bytes in memory the inode is their CRC-64.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    def to_text(self) -> str:
        """As it is kept in a checkpoint."""
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @classmethod
    def from_text(cls, text: str) -> Fingerprint:
        """The reverse of `to_text`.

        Raises:
            MalformedDocument: it is something else.
        """
        found = dict(word.partition("=")[::2] for word in text.split())
        if found.keys() != {f.name for f in fields(cls)}:
            raise MalformedDocument("it is not a fingerprint")
        try:
            return cls(**{name: int(value) for name, value in found.items()})
        except ValueError:
            raise MalformedDocument("it is not a fingerprint") from None

    def changes(self, other: Fingerprint) -> list[str]:
        """What is different about `other`, in words for people."""
        is_of_a_file = self.mtime_ns or other.mtime_ns
        words = _WORDS if is_of_a_file else _WORDS | {"inode": "content"}
        return [
            words[f.name] for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)
        ]
