"""The flags of every command.

A class is a command: its docstring is the help text, its bases are the groups that it shares with
others (`flag_groups.py`), its fields are its own flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uploader.cli.flag_groups import (
    AccessFlags,
    ClusterFlags,
    ConnectionFlags,
    OutputFlags,
    ReportFlags,
    RowFlags,
    StreamFlags,
    TransferFlags,
    UrlFlags,
    VideoFlags,
    WaitFlags,
)
from uploader.cli.options import (
    CHANGED,
    DURATION,
    SIZE,
    argument,
    group,
    number,
    option,
    size_from,
    switch,
)
from uploader.units import MIB

if TYPE_CHECKING:
    from uploader.upload.request import OnSourceChange


@group
class PushFlags(WaitFlags, VideoFlags, StreamFlags, TransferFlags, ConnectionFlags, OutputFlags):
    """Upload one or more files. Run the same command again to resume."""

    paths: tuple[str, ...] = argument(
        "PATH|URL|-", "Files, URLs, or - for standard input.", default=(), many=True
    )
    video_id: str | None = option(
        "ID", "Upload into this existing VideoId instead of creating a video."
    )
    grant: str | None = option(
        "FILE|-",
        "Upload with this response of CreateUploadVideo or RefreshUploadVideo, JSON or XML.",
    )
    key: str | None = option(
        "NAME", "Name this upload so that it can be resumed. [default: derived from the path]"
    )
    overwrite: bool = switch("Replace the content of a video that is already finished.")
    changed: OnSourceChange = option(
        CHANGED,
        "What to do if the file has changed since it was uploaded: fail, upload it into a new "
        "video, or overwrite its video.",
        default="fail",
    )
    title: str | None = option("TEXT", "Title of the video. [default: the file name]")
    file_name: str | None = option(
        "NAME", "File name for VOD, with a video extension. [default: the file name of PATH]"
    )
    reference_id: str | None = option("ID", "ID of your own for the video, unique in the account.")
    as_: str | None = option(
        "KIND",
        "Upload the files not as videos, but as image (image:default, image:cover) or as "
        "attached:subtitle, attached:watermark or attached:material.",
    )
    cover: str | None = option(
        "FILE", "Upload this image as well, and set it as the video's cover."
    )
    subtitle: tuple[str, ...] = option(
        "LANGUAGE=FILE",
        "Upload this subtitle, too, and print its id and URL; nothing ties it to the video.",
        default=(),
    )
    dry_run: bool = switch("Check the files and the fields of their videos; send nothing.", "-n")


@group
class ResumeFlags(WaitFlags, UrlFlags, TransferFlags, ConnectionFlags, OutputFlags):
    """Resume recorded uploads."""

    names: tuple[str, ...] = argument("KEY|VIDEO_ID", default=(), many=True)
    all: bool = switch("Resume all unfinished uploads of files and URLs.")


@group
class StatusFlags(ClusterFlags, OutputFlags):
    """Show recorded uploads: their progress, the process that sends them, their last error."""

    names: tuple[str, ...] = argument("KEY|VIDEO_ID", default=(), many=True)
    watch: bool = switch("Refresh every two seconds.")


@group
class AbortFlags(ConnectionFlags, OutputFlags):
    """Abort uploads and remove their parts from OSS. The videos stay in VOD."""

    names: tuple[str, ...] = argument("KEY|VIDEO_ID", many=True)
    delete_video: bool = switch("Delete the videos as well, if their uploads never ended.")


@group
class ListFlags(ConnectionFlags, OutputFlags):
    """List the videos that VOD holds, the newest first."""

    status: tuple[str, ...] = option(
        "STATUS", "Only videos with this status, such as Uploading or TranscodeFail.", default=()
    )
    title: str | None = option("TEXT", "Only videos whose title contains TEXT.")
    older_than: float | None = option(DURATION, "Only videos created at least this long ago.")
    newer_than: float | None = option(DURATION, "Only videos created since.")
    limit: int | None = option(number(1, 10**9), "Only so many. [default: all]")


@group
class DeleteFlags(ConnectionFlags, OutputFlags):
    """Delete videos from VOD for good, with all their files."""

    video_ids: tuple[str, ...] = argument("VIDEO_ID", many=True)
    yes: bool = switch("Do not ask for confirmation.", "-y")


@group
class PullFlags(VideoFlags, ConnectionFlags, OutputFlags):
    """Have VOD fetch files from URLs. Run the same command again to follow them to their end."""

    urls: tuple[str, ...] = argument("URL", many=True)
    again: bool = switch("Fetch a URL again that VOD has fetched or is fetching.")


@group
class RegisterFlags(VideoFlags, ConnectionFlags, OutputFlags):
    """Make videos of objects that are in a bucket of VOD already. Safe to repeat."""

    objects: tuple[str, ...] = argument("oss://BUCKET/KEY|URL", many=True)


@group
class CleanFlags(ConnectionFlags, OutputFlags):
    """Remove records of finished and aborted uploads."""

    names: tuple[str, ...] = argument("KEY|VIDEO_ID", default=(), many=True)
    done: bool = switch("Remove records of finished uploads.")
    aborted: bool = switch("Remove records of aborted uploads.")
    older_than: float | None = option(DURATION, "Only records not touched for this long.")
    orphans: bool = switch("Abort multipart uploads left behind at OSS.")
    stuck: bool = switch(
        "Delete videos that VOD has had in the status Uploading for --older-than (1 day if it is "
        "not given), except those that this state can resume."
    )
    yes: bool = switch("Do not ask for confirmation.", "-y")
    force: bool = switch("Remove the named records even if unfinished.")
    dry_run: bool = switch("Print what would be removed; remove nothing.", "-n")


@group
class VerifyFlags(ConnectionFlags, OutputFlags):
    """Read a file again and compare it with the object stored at OSS."""

    path: str = argument("PATH")
    key: str | None = option("NAME", "Name of the upload, if it has one.")


@group
class InspectFlags(AccessFlags, OutputFlags):
    """Show the contents of an UploadAddress and UploadAuth, without their secrets."""

    where: str = argument("FILE|-", default="-")


@group
class DoctorFlags(ConnectionFlags, OutputFlags):
    """Check credentials, network, clock, state and versions. Prints no secret."""


@group
class IngestFlags(
    WaitFlags,
    RowFlags,
    ReportFlags,
    UrlFlags,
    VideoFlags,
    TransferFlags,
    ConnectionFlags,
    OutputFlags,
):
    """Upload many files, listed in manifests or folders. Run the same command again to resume."""

    files: int | None = option(number(1, 1024), "Files to upload at the same time. [default: 32]")
    dry_run: bool = switch("Check every row and estimate the work; send nothing.", "-n")
    html: str | None = option("FILE", "Write an HTML report to FILE.")
    dashboard: int | None = option(
        number(0, 65535, "PORT"), "Serve a live page on 127.0.0.1; 0 selects a free port."
    )
    stop_on_error: bool = switch("Stop at the first failure.")
    max_duration: float | None = option(DURATION, "Stop after this long; the next run resumes.")
    retries: int = option(
        number(0, 100), "Rounds of retries for rows that failed temporarily.", default=1
    )
    api_rate: int = option(
        number(1, 1000), "VOD calls per second; the quotas of accounts are 40 to 80.", default=20
    )


@group
class WatchFlags(WaitFlags, VideoFlags, TransferFlags, ConnectionFlags, OutputFlags):
    """Upload the files that arrive in a folder, each once. Runs until stopped."""

    folder: str = argument("FOLDER", "The folder to watch, with all folders below it.")
    include: tuple[str, ...] = option(
        "GLOB", "Upload only matching files, of any type.", default=()
    )
    exclude: tuple[str, ...] = option("GLOB", "Skip matching files and folders.", default=())
    settle: float = option(
        DURATION, "A file is complete when it has not changed for this long.", default=10
    )
    ready: str | None = option(
        "NAME",
        "A file is complete when the file NAME exists, such as '{path}.done', instead of --settle; "
        "may contain {path}, {stem}, {folder} and {name}.",
    )
    after: str = option(
        "keep|delete|move:FOLDER",
        "What to do with a file once its video is verified.",
        default="keep",
    )
    failed_dir: str | None = option(
        "FOLDER", "Move files that failed for good to FOLDER, with the reason beside them."
    )
    report: str | None = option(
        "FILE",
        "Record the result of each file as a JSON line. [default: a file in your state directory]",
    )
    title_template: str | None = option(
        "TEXT", "Title of files without one; may contain {stem}, {name} and {folder}."
    )
    companions: bool = switch(
        "Upload the picture (FILE.jpg, .png) and the subtitles (FILE.zh.srt) beside a file.",
        default=True,
    )
    require_metadata: bool = switch("Wait until a file has its metadata (FILE.json, .yaml, .xml).")
    priority: tuple[str, ...] = option(
        "GLOB=N", "Priority of matching files, from -100 to 100; higher is uploaded first.", ()
    )
    files: int | None = option(number(1, 1024), "Files to upload at the same time. [default: 32]")
    once: bool = switch("End when the files that are there have ended.")
    poll: float | None = option(
        DURATION,
        "Look this often instead of using notifications. [default: 5, on network file systems]",
    )
    rescan: float = option(
        DURATION, "Look this often for files that notifications missed.", default=60
    )
    dashboard: int | None = option(
        number(0, 65535, "PORT"),
        "Serve a live page and /health on 127.0.0.1; 0 selects a free port.",
    )
    enqueue: bool = switch("Queue the files for workers (vodup worker) instead of uploading them.")
    shared: tuple[str, ...] = option(
        "FOLDER", "With --enqueue: folder mounted at the same path on every worker.", default=()
    )
    node: str | None = option(
        "NAME", "With --enqueue: name of this machine. [default: its host name]"
    )
    api_rate: int = option(
        number(1, 1000), "VOD calls per second; the quotas of accounts are 40 to 80.", default=20
    )


@group
class ServeFlags(UrlFlags, VideoFlags, TransferFlags, ConnectionFlags, OutputFlags):
    """Serve an HTTP interface on this machine, for pipelines that are not Python."""

    listen: str = option(
        "ADDRESS",
        "PORT or HOST:PORT of this machine, 0 for any free port; or unix:PATH, a Unix socket.",
        default="127.0.0.1:7374",
    )
    token_file: str | None = option(
        "FILE",
        "File with the token that requests must send; created with a new one if it is missing. "
        "[default: serve.token in your state directory]",
    )
    root: str | None = option(
        "FOLDER", "Folder that files must be in. [default: the current folder]"
    )
    allow_origin: tuple[str, ...] = option(
        "ORIGIN", "Web site whose pages may use the service, as https://HOST[:PORT].", default=()
    )
    files: int = option(number(1, 1024), "Files to upload at the same time.", default=8)
    jobs: str | None = option(
        "FILE",
        "File that keeps what the service was given. [default: serve.db in your state directory]",
    )


@group
class EnqueueFlags(RowFlags, ReportFlags, VideoFlags, AccessFlags, ClusterFlags, OutputFlags):
    """Queue many files for workers on many machines. No file is queued twice."""

    shared: tuple[str, ...] = option(
        "FOLDER",
        "Folder mounted at the same path on every worker (files elsewhere are only "
        "uploaded from this machine).",
        default=(),
    )
    node: str | None = option("NAME", "Name of this machine. [default: its host name]")
    priority: int = option(
        number(-100, 100), "Priority from -100 to 100; higher is uploaded first.", default=0
    )
    wait: bool = switch("Wait until every row has ended, and exit with the code of ingest.")


@group
class WorkerFlags(UrlFlags, TransferFlags, AccessFlags, ClusterFlags, OutputFlags):
    """Upload queued files until stopped. Run any number of workers, on any machine."""

    files: int = option(number(1, 1024), "Rows to upload at the same time.", default=8)
    memory: int | None = option(
        size_from(MIB), "Memory for data in transit, 1 MiB per connection; limits the connections."
    )
    node: str | None = option("NAME", "Name of this machine. [default: its host name]")
    heartbeat: float = option(
        DURATION,
        "Time between heartbeats; a worker that misses three counts as dead. Must be the "
        "same for all workers.",
        default=10,
    )
    grace: float = option(
        DURATION,
        "How long uploads may continue after SIGTERM before they return to the queue.",
        default=20,
    )
    tries: int = option(
        number(1, 1000), "Temporary failures after which a row has failed.", default=10
    )
    api_rate: int = option(
        number(1, 1000), "VOD calls per second, shared by all workers.", default=20
    )
    root: tuple[str, ...] = option(
        "FOLDER", "Upload only files below FOLDER, whatever the queue says.", default=()
    )
    drain: bool = switch("Exit when the queue is empty.")


@group
class ResultsFlags(ReportFlags, ClusterFlags, OutputFlags):
    """Write the results of queued uploads, in the format of ingest --report."""

    manifests: tuple[str, ...] = argument(
        "MANIFEST", "Only the rows of these manifests, as last queued.", default=(), many=True
    )


@group
class UpgradeFlags(ClusterFlags, OutputFlags):
    """Create or migrate the tables. Safe to repeat."""


@group
class DevserverFlags:
    """Run a local OSS and VOD server for experiments and tests. Prints one JSON line when ready."""

    host: str = option("ADDRESS", "Loopback address to listen on.", default="127.0.0.1")
    port: int = option(
        number(0, 65535, "PORT"), "Port of the VOD API; 0 selects a free port.", default=0
    )
    oss_port: int = option(
        number(0, 65535, "PORT"), "Port of OSS; 0 selects a free port.", default=0
    )
    data: str | None = option("FOLDER", "Keep videos and objects in FOLDER. [default: in memory]")
    credential_ttl: float | None = option(DURATION, "Lifetime of an UploadAuth. [default: 3000]")
    bandwidth: int | None = option(SIZE, "Bandwidth in bytes per second, such as 25M.")
    faults: str | None = option("FILE", "JSON file with faults to inject.")
    record: str | None = option(
        "FILE", "Append a line of JSON for each request to FILE, with secrets masked."
    )
    callback_url: str | None = option("URL", "Post VOD's events to URL, signed as VOD does.")
    seed: str | None = option("TEXT", "Make the same ids and keys in every run with this seed.")
    clock: str | None = option(
        "INSTANT", "Stop the server's clock at INSTANT, such as 2026-01-01T00:00:00Z."
    )
    options: str = option("JSON", "JSON object with further options.", default="{}")
    tls: bool = switch("Serve https with a certificate of its own.", default=False)
    until_stdin_ends: bool = switch("Stop when standard input, a pipe, is closed.")


@group
class DemoFlags:
    """Upload to a local server, kill the upload, resume it, and check that nothing was lost."""

    size: int = option(
        size_from(64 * MIB), "Size of the file. [default: 512MiB]", default=512 * MIB
    )
    keep: bool = switch("Keep the file and the data of the server.")
    json: bool = switch("Print the report as one JSON line.")


@group
class VersionFlags(OutputFlags):
    """Print the version."""
