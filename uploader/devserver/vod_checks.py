"""The rules of VOD for titles, tags, file names and sizes.

Sources: "VOD API: CreateUploadVideo", "VOD: Overview of media upload".
"""

from __future__ import annotations

from .answers import Refusal
from .vod_access import VodCall

Fields = dict[str, "str | int | Fields | list[Fields] | list[str]"]
"""The fields of an answer."""

# "VOD: Overview of media upload", the formats of audio and video files.
EXTENSIONS = frozenset(
    """
    3gp asf avi dat dv flv f4v gif m2t m3u8 m4v mj2 mjpeg mkv mov mp4 mpe mpg mpeg mts ogg qt rm
    rmvb swf ts vob wmv webm aac ac3 acm amr ape caf flac m4a mp3 ra wav wma aiff
    """.split()
)
MAX_TITLE_LENGTH = 128
MAX_DESCRIPTION_LENGTH = 1024
MAX_TAG_COUNT = 16
MAX_TAG_LENGTH = 32


def checked_metadata(call: VodCall) -> str:
    """Check the parameters of Create and return the file name."""
    title, file_name = call.parameter("Title"), call.parameter("FileName")
    for name, value in (("Title", title), ("FileName", file_name)):
        if not value:
            raise Refusal("MissingParameter", f"{name} is mandatory for this action.")
    description = call.parameter("Description")
    if len(title) > MAX_TITLE_LENGTH or len(description) > MAX_DESCRIPTION_LENGTH:
        raise Refusal("LengthExceededMax")
    check_tags(call.parameter("Tags"))
    for text in (title, description, call.parameter("Tags")):
        check_characters(text)
    check_extension(file_name)
    _check_size(call.parameter("FileSize"))
    for name in ("EnableFirstFrameCover", "GenerateThumbnail"):
        if call.parameter(name).lower() not in ("", "true", "false"):
            raise Refusal("InvalidParameter", f"The specified {name} is not valid.")
    return file_name


def check_tags(tags: str) -> None:
    """At most 16 tags of at most 32 characters."""
    names = tags.split(",") if tags else []
    if len(names) > MAX_TAG_COUNT:
        raise Refusal("TagsExceededMax")
    if any(len(name) > MAX_TAG_LENGTH for name in names):
        raise Refusal("LengthExceededMax")


def check_characters(text: str) -> None:
    """Characters of four UTF-8 bytes (emoji) and control characters are refused."""
    if any(ord(char) > 0xFFFF or (ord(char) < 32 and char not in "\r\n\t") for char in text):
        raise Refusal("IllegalCharacters")


def check_extension(file_name: str) -> None:
    """VOD knows the format by the extension."""
    _, dot, extension = file_name.rpartition(".")
    if not dot or extension.lower() not in EXTENSIONS:
        raise Refusal("InvalidFileName.Extension")


def _check_size(text: str) -> None:
    if text and not (text.isdecimal() and text.isascii()):
        raise Refusal("InvalidParameter", "The specified FileSize is not valid.")
