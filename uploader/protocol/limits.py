"""What VOD accepts of a file and of the words about it, as far as it can be known before asking."""

from __future__ import annotations

import json
import re

from uploader.protocol.vod import VideoMeta

__all__ = ["EXTENSIONS", "problem_of", "refuses_name"]

# "VOD: Overview of media upload": the formats of video and of audio files.
EXTENSIONS = frozenset(
    """
    3gp asf avi dat dv flv f4v gif m2t m3u8 m4v mj2 mjpeg mkv mov mp4 mpe mpg mpeg mts ogg qt rm
    rmvb swf ts vob wmv webm aac ac3 acm amr ape caf flac m4a mp3 ra wav wma aiff
    """.split()
)

# VOD API: CreateUploadVideo.
_MAX_LENGTHS = {"title": 128, "description": 1024}
_MAX_TAG_COUNT = 16
_MAX_TAG_LENGTH = 32
_REFERENCE_ID = re.compile(r"[A-Za-z0-9_-]{6,64}")
_REFUSED_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\U00010000-\U0010ffff]")
_TEXTS = (
    "title description cover_url template_group_id workflow_id storage_location app_id file_name"
).split()


def refuses_name(file_name: str) -> bool:
    """Whether CreateUploadVideo would answer `InvalidFileName.Extension`."""
    return file_name.rpartition(".")[2].lower() not in EXTENSIONS or "." not in file_name


def problem_of(meta: VideoMeta) -> str | None:
    """Say why CreateUploadVideo would refuse this description; None when nothing is known."""
    for name in _TEXTS:
        value = getattr(meta, name)
        if value is not None and (problem := _text_problem(name, value)) is not None:
            return problem
    if (problem := _tags_problem(meta.tags)) is not None:
        return problem
    if meta.reference_id is not None and not _REFERENCE_ID.fullmatch(meta.reference_id):
        return "reference_id must be 6 to 64 letters, digits, _ or -"
    if meta.cate_id is not None and meta.cate_id < 0:
        return "cate_id must not be negative"
    if meta.user_data is not None and not _is_object(meta.user_data):
        return "user_data must be a JSON object"
    return None


def _text_problem(name: str, value: str) -> str | None:
    most = _MAX_LENGTHS.get(name, 2048)
    if len(value) > most:
        return f"{name} has {len(value):,} characters, VOD takes {most:,}"
    if _REFUSED_CHARACTERS.search(value):
        return f"{name} has characters VOD refuses (emoji, control characters)"
    return None


def _tags_problem(tags: tuple[str, ...]) -> str | None:
    if len(tags) > _MAX_TAG_COUNT:
        return f"there are {len(tags)} tags, VOD takes {_MAX_TAG_COUNT}"
    for tag in tags:
        if len(tag) > _MAX_TAG_LENGTH:
            return f"a tag has {len(tag)} characters, VOD takes {_MAX_TAG_LENGTH}"
        if "," in tag or _REFUSED_CHARACTERS.search(tag):
            return "a tag has characters VOD refuses (commas, emoji, control characters)"
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
