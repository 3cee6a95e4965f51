"""Where bytes come from: by position, as often as needed, and only while they stay the same."""

from uploader.sources.bytes import BytesSource
from uploader.sources.contract import Source
from uploader.sources.files import FileSource
from uploader.sources.fingerprints import Fingerprint

__all__ = ["BytesSource", "FileSource", "Fingerprint", "Source"]
