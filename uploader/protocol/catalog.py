"""VOD's operations on many media: search, delete, register, and pull from URLs (2017-03-21)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from uploader.errors import ConfigurationError
from uploader.protocol.media import VideoInfo, answer, objects, text, video_of, whole
from uploader.protocol.vod import VideoMeta, require_success, rpc_operation, title_of
from uploader.protocol.wire import Operation, Response

PAGE_SIZE: Final = 100
"""Of SearchMedia, the largest (VOD API)."""

MAX_REGISTERED: Final = 10
MAX_PULLED: Final = 10
"""URLs or jobs of one GetURLUploadInfos; UploadMediaByURL takes 20."""

_SHOWN: Final = "Title,Status,CreationTime,Size,Duration,CoverURL"
_PULLED: Final = frozenset({"SUCCESS", "UPLOAD_SUCCESS"})


@dataclass(frozen=True, slots=True)
class SearchPage:
    """A page of hits. `scroll_token`: for the next page, as far as there are more than 5,000."""

    total: int
    scroll_token: str
    videos: tuple[VideoInfo, ...]


@dataclass(frozen=True, slots=True)
class Registered:
    """An object that is a video now. `is_new`: False if VOD knew it before."""

    file_url: str
    video_id: str
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPull:
    """A file that VOD fetches from a URL (VOD API: GetURLUploadInfos).

    Attributes:
        status: "PENDING", "DOWNLOADING", ..., at last "SUCCESS" or "…_FAIL".
        video_id: "" until it is stored.
        error: VOD's code and message; "" without a failure.
    """

    job_id: str
    url: str = field(repr=False)
    status: str
    video_id: str = ""
    size: int | None = None
    created_at: str = ""
    error: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the file is stored."""
        return self.status in _PULLED

    @property
    def has_failed(self) -> bool:
        """Whether VOD has given up."""
        return self.status.endswith("_FAIL") or self.status == "CANCELED"


def match_of(
    *, statuses: Sequence[str] = (), title: str = "", after: str = "", before: str = ""
) -> str:
    """Return a condition of SearchMedia; times as VOD writes them, both included.

    Raises:
        ConfigurationError: a text has a quote, for which no escape is documented.
    """
    if any("'" in part for part in (*statuses, title)):
        raise ConfigurationError("VOD cannot search for texts with the character '.")
    conditions = []
    if statuses:
        quoted = ",".join(f"'{status}'" for status in statuses)
        conditions.append(f"Status in ({quoted})")
    if title:
        conditions.append(f"Title = '{title}'")
    if after or before:
        until = f"'{before}']" if before else ")"
        conditions.append(f"CreationTime = ['{after or '1970-01-01T00:00:00Z'}',{until}")
    return " and ".join(conditions)


def search_media(
    endpoint: str, match: str, *, page: int, scroll_token: str = ""
) -> Operation[SearchPage]:
    """Read a page of videos, the newest first. Pages after the 5,000th hit need the token."""
    params = {
        "SearchType": "video",
        "Match": match,
        "Fields": _SHOWN,
        "SortBy": "CreationTime:Desc",
        "PageNo": str(page),
        "PageSize": str(PAGE_SIZE),
        "ScrollToken": scroll_token,
    }

    def parse(action: str, response: Response) -> SearchPage:
        fields = answer(action, response)
        hits = [hit.get("Video") for hit in objects(fields, "MediaList")]
        videos = tuple(video_of(action, hit) for hit in hits if isinstance(hit, dict))
        token = text(fields, "ScrollToken", 64)
        return SearchPage(whole(fields, "Total") or 0, token, videos)

    return rpc_operation(endpoint, "SearchMedia", params, parse)


def delete_videos(endpoint: str, video_ids: Sequence[str]) -> Operation[frozenset[str]]:
    """Delete videos with all their files, up to 20; returns those that it did not delete."""

    def parse(action: str, response: Response) -> frozenset[str]:
        fields = answer(action, response)
        lists = (fields.get(name) for name in ("NonExistVideoIds", "ForbiddenVideoIds"))
        return frozenset(str(each) for found in lists if isinstance(found, list) for each in found)

    return rpc_operation(endpoint, "DeleteVideo", {"VideoIds": ",".join(video_ids)}, parse)


def delete_multipart_upload(endpoint: str, video_id: str) -> Operation[None]:
    """Remove the parts of an unfinished upload."""
    params = {"MediaId": video_id, "MediaType": "video"}
    return rpc_operation(endpoint, "DeleteMultipartUpload", params, require_success)


def register_media(
    endpoint: str, file_urls: Mapping[str, str], meta: VideoMeta
) -> Operation[tuple[tuple[Registered, ...], tuple[str, ...]]]:
    """Make videos of objects in buckets that VOD uses, up to 10; returns also what failed.

    Args:
        file_urls: with their titles. Safe to repeat: the same URL is the same video.
    """
    entries = [
        _described(meta, FileURL=url, Title=title_of(title, max_bytes=128))
        for url, title in file_urls.items()
    ]

    def parse(action: str, response: Response) -> tuple[tuple[Registered, ...], tuple[str, ...]]:
        fields = answer(action, response)
        found = tuple(
            Registered(text(e, "FileURL", 1024), text(e, "MediaId"), e.get("NewRegister") is True)
            for e in objects(fields, "RegisteredMediaList")
        )
        failed = fields.get("FailedFileURLs")
        return found, tuple(map(str, failed)) if isinstance(failed, list) else ()

    params = {"RegisterMetadatas": json.dumps(entries), **_processing(meta)}
    return rpc_operation(endpoint, "RegisterMedia", params, parse)


def upload_media_by_url(
    endpoint: str, urls: Sequence[str], meta: VideoMeta, *, session_id: str
) -> Operation[Mapping[str, str]]:
    """Have VOD fetch files; returns the JobId of each URL.

    Not repeatable after an unknown outcome: each call makes new videos. `session_id` keeps VOD
    from carrying the same call out twice within ten minutes.
    """
    described = [
        _described(meta, SourceURL=url, Title=title_of(meta.title or _name_in(url), max_bytes=128))
        for url in urls
    ]
    params = {
        "UploadURLs": ",".join(quote(url, safe="") for url in urls),
        "UploadMetadatas": json.dumps(described),
        "StorageLocation": meta.storage_location,
        "AppId": meta.app_id,
        "SessionId": session_id,
        **_processing(meta),
    }

    def parse(action: str, response: Response) -> Mapping[str, str]:
        jobs = objects(answer(action, response), "UploadJobs")
        return {text(job, "SourceURL", 4096): text(job, "JobId") for job in jobs}

    return rpc_operation(endpoint, "UploadMediaByURL", params, parse, is_repeatable=False)


def get_url_uploads(
    endpoint: str, *, job_ids: Sequence[str] = (), urls: Sequence[str] = ()
) -> Operation[tuple[UrlPull, ...]]:
    """Read jobs by their ids, or all jobs of a URL (VOD API: only in Shanghai and Singapore)."""
    params = {
        "JobIds": ",".join(job_ids),
        "UploadURLs": ",".join(quote(url, safe="") for url in urls),
    }

    def parse(action: str, response: Response) -> tuple[UrlPull, ...]:
        return tuple(
            UrlPull(
                job_id=text(entry, "JobId"),
                url=text(entry, "UploadURL", 4096),
                status=text(entry, "Status", 40),
                video_id=text(entry, "MediaId"),
                size=whole(entry, "FileSize"),
                created_at=text(entry, "CreationTime", 40),
                error=": ".join(
                    filter(None, (text(entry, "ErrorCode"), text(entry, "ErrorMessage")))
                ),
            )
            for entry in objects(answer(action, response), "URLUploadInfoList")
        )

    return rpc_operation(endpoint, "GetURLUploadInfos", params, parse)


def _name_in(url: str) -> str:
    return url.partition("?")[0].rstrip("/").rpartition("/")[2] or "video"


def _described(meta: VideoMeta, **own: str) -> dict[str, str]:
    given = {
        "Description": meta.description,
        "Tags": ",".join(meta.tags),
        "CoverURL": meta.cover_url,
        "CateId": None if meta.cate_id is None else str(meta.cate_id),
    }
    return own | {name: value for name, value in given.items() if value}


def _processing(meta: VideoMeta) -> dict[str, str | None]:
    return {
        "TemplateGroupId": meta.template_group_id,
        "WorkflowId": meta.workflow_id,
        "UserData": meta.user_data,
    }
