"""The groups of flags that several commands share: names, values and help texts.

A class is a group, a field is a flag (`options.py`). Secrets are never flags: other users of the
machine can read the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from uploader.cli.options import (
    BANDWIDTH,
    BOOLEAN,
    CHANGED,
    COMMAND,
    CONCURRENCY,
    DURATION,
    ENCODING,
    PART_SIZE,
    PROXY,
    SIZE,
    argument,
    group,
    number,
    one_of,
    option,
    switch,
)

if TYPE_CHECKING:
    from uploader import Bandwidth
    from uploader.upload.request import OnSourceChange


@group
class OutputFlags:
    """What is printed."""

    json: bool = switch("Write JSON lines to standard output.")
    quiet: bool = switch("Print only results and errors.", "-q")
    verbose: bool = switch("Print more details, such as checksums; -vv also logs.", "-v")
    output: str = option(
        one_of("text", "json"), "Format of the results; json is --json.", default="text", short="-o"
    )
    progress: bool = switch("Show progress.", default=True)
    color: str = option(
        one_of("auto", "always", "never"),
        "When to use colors; auto: on a terminal, unless NO_COLOR is set.",
        default="auto",
    )
    log_file: str | None = option(
        "FILE", "Append log messages to FILE, by default those of level info and above."
    )
    log_level: str = option(
        one_of("debug", "info", "warning", "error", "critical"),
        "Write log messages of this level and above to standard error.",
        default="critical",
    )


@group
class StateFlags:
    """Where uploads are recorded."""

    state: str | None = option(
        "URL",
        "Where uploads are recorded: a file, postgresql://..., or memory. "
        "[default: a file in your state directory]",
    )


@group
class AccessFlags:
    """Where credentials come from, and which hosts may receive them."""

    region: str | None = option(
        "REGION", "Region of the VOD or IMS service. [default: cn-shanghai]"
    )
    service: str = option(
        one_of("vod", "ims"),
        "Service that creates the videos: VOD, or Intelligent Media Services (IMS).",
        default="vod",
    )
    vod_endpoint: str | None = option(
        "URL", "VOD endpoint. [default: https://vod.REGION.aliyuncs.com]", also="--endpoint-url"
    )
    ims_endpoint: str | None = option(
        "URL", "IMS endpoint. [default: https://ice.REGION.aliyuncs.com]"
    )
    api_signature: Literal["acs3", "v2"] = option(
        one_of("acs3", "v2"),
        "How calls to VOD and IMS are signed; v2 only for gateways that do not know acs3.",
        default="acs3",
    )
    credentials: str | None = option(
        "SOURCE", "AccessKey only from: env, aliyun[:PROFILE], ecs[:ROLE] or oidc."
    )
    auth_command: str | None = option(
        "CMD", "Command that prints upload credentials, for machines without an AccessKey."
    )
    auth_url: str | None = option(
        "URL",
        "App server that returns upload credentials. Its bearer token is read from "
        "VODUP_AUTH_URL_TOKEN.",
    )
    allow_host: tuple[str, ...] = option(
        "HOST", "Additional host that may receive credentials.", default=()
    )


@group
class NetworkFlags:
    """How services and source URLs are reached."""

    oss_endpoint: str | None = option(
        "KIND|URL",
        "OSS endpoint: public, internal, accelerate, dualstack, auto (internal on ECS in the "
        "bucket's region), or a domain bound to the bucket. [default: as the address says]",
    )
    oss_region: str | None = option("REGION", "Region of the bucket, if no host names it.")
    proxy: str | None = option(
        PROXY,
        "HTTP proxy for all requests; env: as HTTPS_PROXY, ALL_PROXY and NO_PROXY say. Its login "
        "is read from VODUP_PROXY_USER and VODUP_PROXY_PASSWORD. [default: none]",
    )
    proxy_login_file: str | None = option(
        "FILE", "File with the login for --proxy, as USER:PASSWORD."
    )
    ca_file: str | None = option(
        "FILE", "Additional CA certificates to trust, such as those of a proxy that inspects TLS."
    )


@group
class ConnectionFlags(AccessFlags, NetworkFlags, StateFlags):
    """What an `Uploader` is made of."""


@group
class TransferFlags(NetworkFlags):
    """How data is sent."""

    part_size: int | None = option(
        PART_SIZE, "Size of a part, such as 8MiB. [default: depends on the file size]"
    )
    concurrency: int | Literal["auto"] = option(
        CONCURRENCY,
        "Connections, shared by all files.",
        default="auto",
        short="-j",
    )
    bwlimit: Bandwidth | None = option(
        BANDWIDTH,
        'Bandwidth limit in bytes per second: 10M, or a timetable: "08:00,10M 20:00,off".',
        also="--limit-rate",
    )
    signature: Literal["v4", "v1"] = option(
        one_of("v4", "v1"), "OSS signature version.", default="v4"
    )
    on_target_change: Literal["fail", "restart"] = option(
        one_of("fail", "restart"),
        "What to do when VOD moves an upload to another bucket or object key.",
        default="fail",
    )
    retry_for: float | None = option(
        DURATION, "Keep retrying a failing request for this long. [default: 15m]"
    )
    timeout: float | None = option(
        DURATION, "Repeat a request after this long without a byte sent or received. [default: 30]"
    )
    on_finished: list[str] | None = option(
        COMMAND,
        "Run a command after each upload, with the result in VODUP_STATUS, "
        "VODUP_VIDEO_ID, ..., and as JSON on its standard input.",
    )
    notify: str | None = option(
        "URL",
        "Send a signed notification to URL when an upload is verified or has failed. The secret "
        "is read from VODUP_NOTIFY_SECRET.",
    )
    installed_hooks: bool = switch("Run hooks provided by installed packages.", default=True)
    metrics_port: str | None = option(
        "[HOST:]PORT", "Serve metrics for Prometheus, on 127.0.0.1 unless HOST is given."
    )


@group
class WaitFlags:
    """Whether a command waits until videos play."""

    wait: float | None = option(
        DURATION,
        "Wait until VOD can play the video, at most this long (24h without a value), and print how "
        "it plays. Interrupted, the same command goes on waiting.",
        bare="24h",
    )


@group
class VideoFlags:
    """Fields of CreateUploadVideo that several videos may share."""

    description: str | None = option("TEXT", "Description of the video (up to 1,024 characters).")
    tags: str | None = option("A,B", "Comma-separated tags of the video (up to 16).")
    cate_id: int | None = option(number(0, 10**15), "Category ID.")
    template_group_id: str | None = option("ID", "Transcoding template group ID.")
    workflow_id: str | None = option(
        "ID", "Transcoding workflow ID (overrides --template-group-id)."
    )
    storage_location: str | None = option(
        "BUCKET", "Bucket to store the video in, as shown in the VOD console."
    )
    app_id: str | None = option("ID", "VOD application ID.")
    cover_url: str | None = option("URL", "URL of a cover image.")
    user_data: str | None = option("JSON", "Callback settings and extensions of the video.")
    enable_first_frame_cover: bool | None = option(BOOLEAN, "Use the first frame as cover.")
    generate_thumbnail: bool | None = option(BOOLEAN, "Make a thumbnail.")
    set: tuple[str, ...] = option(
        "NAME=VALUE", "Another parameter of CreateUploadVideo, by its own name.", default=()
    )


@group
class UrlFlags(NetworkFlags):
    """Where source URLs may lead."""

    allow_private_sources: bool = switch(
        "Allow source URLs that lead to this machine or to private networks."
    )
    max_redirects: int = option(number(0, 20), "Redirects to follow for a source URL.", default=5)
    any_content_type: bool = switch(
        "Upload from source URLs even what is served as a web page, XML or JSON."
    )


@group
class StreamFlags(UrlFlags):
    """How sources are read that are not finished files."""

    pipe_command: list[str] | None = option(
        COMMAND, "Upload the output of a command, if it exits with status 0."
    )
    follow: bool = switch("Upload a file while it is still being written.")
    until_file: str | None = option("FILE", "With --follow: stop when FILE exists.")
    until_exit: int | None = option(
        number(1, 2**31, "PID"), "With --follow: stop when process PID exits."
    )
    until_idle: float | None = option(
        DURATION,
        "With --follow: stop after this long without new data. [default: 30, if no other "
        "--until flag is given]",
    )
    memory: int | None = option(SIZE, "Memory to buffer streamed data. [default: 96MiB]")
    spool: str | None = option(
        "FOLDER", "Buffer streamed data in FOLDER instead of memory; it survives restarts."
    )
    spool_size: int | None = option(SIZE, "Largest size of the --spool folder. [default: 8GiB]")
    expected_size: int | None = option(
        SIZE, "Approximate size of a stream, to choose the part size."
    )


@group
class RowFlags:
    """Which files a batch uploads."""

    manifests: tuple[str, ...] = argument(
        "MANIFEST", "CSV, JSON Lines or Parquet files.", default=(), many=True
    )
    recursive: tuple[str, ...] = option(
        "FOLDER", "Upload all videos below FOLDER.", default=(), short="-r"
    )
    manifest_encoding: str | None = option(
        ENCODING, "Encoding of manifests and lists that are not UTF-8, such as gbk or cp1252."
    )
    files_from: str | None = option("FILE|-", "Upload the files of a list, one path per line.")
    include: tuple[str, ...] = option(
        "GLOB", "With --recursive: upload only matching files, of any type.", default=()
    )
    exclude: tuple[str, ...] = option("GLOB", "With --recursive: skip matching files.", default=())
    root: str | None = option(
        "FOLDER",
        "Folder that paths are relative to and must stay below. [default: the manifest's folder]",
    )
    follow_symlinks: bool = switch("Allow symbolic links that lead out of the root.")
    changed: OnSourceChange = option(
        CHANGED,
        "What to do with a file that has changed since it was uploaded: fail, upload it into a "
        "new video, or overwrite its video.",
        default="fail",
    )
    overwrite: bool = switch("Replace the content of videos that are already finished.")
    title_template: str | None = option(
        "TEXT", "Title of rows without one; may contain {stem}, {name}, {folder} and {row}."
    )


@group
class ReportFlags:
    """Where the results of a batch are written."""

    report: str | None = option(
        "FILE",
        "Record the result of each row as a JSON line. Run again with the same FILE to resume.",
    )
    failed: str | None = option("FILE", "Write the failed rows to FILE, a manifest to run again.")


@group
class ClusterFlags(StateFlags):
    """Which database holds the queue."""

    embedded: str | None = option(
        "FOLDER",
        "Run a private PostgreSQL in FOLDER instead of using --state, to try a cluster "
        "on one machine.",
    )
