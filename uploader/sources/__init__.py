"""Where bytes come from: by position, as often as needed, and only while they stay the same."""

from uploader.sources.bytes import BytesSource
from uploader.sources.choosing import AnySource, as_source, of_path, of_url
from uploader.sources.contract import Arrival, Source
from uploader.sources.files import FileSource
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.growing import FollowedFile, Until
from uploader.sources.hls import HlsPackage
from uploader.sources.inflows import CommandInflow, DescriptorInflow
from uploader.sources.objects import FileObjectSource
from uploader.sources.policy import UrlPolicy
from uploader.sources.spool import Spool
from uploader.sources.streams import StreamSource
from uploader.sources.windows import MemoryWindow

__all__ = [
    "AnySource",
    "Arrival",
    "BytesSource",
    "CommandInflow",
    "DescriptorInflow",
    "FileObjectSource",
    "FileSource",
    "Fingerprint",
    "FollowedFile",
    "HlsPackage",
    "MemoryWindow",
    "Source",
    "Spool",
    "StreamSource",
    "Until",
    "UrlPolicy",
    "as_source",
    "of_path",
    "of_url",
]
