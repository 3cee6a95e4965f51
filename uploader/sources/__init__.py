"""Where bytes come from: by position, as often as needed, and only while they stay the same."""

from uploader.sources.bytes import BytesSource
from uploader.sources.choosing import AnySource, as_source, of_path, of_url
from uploader.sources.contract import Arrival, Source
from uploader.sources.file_objects import FileObjectSource
from uploader.sources.files import FileSource
from uploader.sources.fingerprints import Fingerprint
from uploader.sources.followed import FollowedFile, Until
from uploader.sources.hls import HlsPackage
from uploader.sources.part_buffer import MemoryWindow
from uploader.sources.readers import CommandInflow, DescriptorInflow
from uploader.sources.spool import Spool
from uploader.sources.streams import StreamSource
from uploader.sources.url_policy import UrlPolicy

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
