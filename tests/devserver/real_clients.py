"""Clients that others wrote do what their users do, while tokens expire and servers restart.

``python -m tests.devserver.real_clients --update`` runs all of them and writes the table of
operations and clients in docs/devserver.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import alibabacloud_oss_v2 as v2
import opendal
import oss2
from alibabacloud_oss_v2 import aio
from alibabacloud_vod20170321 import models as m
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.request import CommonRequest

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

from .clients import PART, Oss, Vod, granted
from .test_calibration import bucket, generated_client, v2_config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCS = ROOT / "docs" / "devserver.md"
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NODE_MODULES = ROOT / "tests" / "browsers" / "node_modules"
FILM = b"".join(bytes((n,)) + PART[1:] for n in range(5))
EXTRA = ("ListObjects", "DeleteObject")
_TROUBLE = (
    {"operation": "UploadPart", "part": 2, "action": "error", "status": 503,
     "code": "ServiceUnavailable", "count": 1},
    {"operation": "UploadPart", "part": 4, "action": "expire_credentials", "count": 1},
)  # fmt: skip
_TRIES = 8


class World:
    """A server that restarts on the same data and ports, and a file to upload. Mutable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "film.mp4"
        self.source.write_bytes(FILM)
        self.options = DevServerOptions(data_dir=folder / "data", allowed_actions=EXTRA)
        self._threaded: ThreadedDevServer | None = None
        self.performed: set[str] = set()
        self.codes: set[str] = set()
        self.errors: list[str] = []
        """What the attempts of the client raised."""
        self.start()

    @property
    def server(self) -> DevServer:
        assert self._threaded is not None
        return self._threaded.server

    def start(self) -> None:
        self._threaded = ThreadedDevServer(self.options).__enter__()
        ports = [
            urlsplit(u).port or 0 for u in (self.server.vod_endpoint, self.server.oss_endpoint)
        ]
        self.options = DevServerOptions(
            data_dir=self.folder / "data", allowed_actions=EXTRA, port=ports[0], oss_port=ports[1]
        )

    def stop(self) -> None:
        for answer in self.server.stats.answers:
            operation, status, *code = answer.split()
            if status.startswith("2"):
                self.performed.add(operation)
            self.codes |= set(code)
        assert self._threaded is not None
        self._threaded.__exit__(None, None, None)

    def restart(self) -> None:
        """Faults that have not happened yet are still to come."""
        left = self.server.faults.unconsumed
        self.stop()
        self.start()
        self.server.faults.replace(left)

    def create(self) -> Oss:
        answer = Vod(self.server).ok("CreateUploadVideo", Title="A film", FileName="film.mp4")
        return granted(answer)

    def refresh(self, video_id: str) -> Oss:
        return granted(Vod(self.server).ok("RefreshUploadVideo", VideoId=video_id))


Step = Callable[[World, Oss], None]


@dataclass(frozen=True)
class Client:
    """``upload`` sends the film, or goes on with it; ``others`` does what else its users do."""

    name: str
    upload: Step | None = None
    others: Step | None = None
    whole: Callable[[World], None] | None = None
    """For a client that makes the video itself."""
    slow: bool = False
    why_not: Callable[[], str] = field(default=lambda: "")


def run(client: Client, folder: Path) -> World:
    """Everything that a client does; the film must be there at the end."""
    world = World(folder)
    try:
        if client.whole is not None:
            client.whole(world)
        if client.upload is not None:
            _upload_in_trouble(world, client.upload, client.others)
    finally:
        world.stop()
    return world


def _upload_in_trouble(world: World, upload: Step, others: Step | None) -> None:
    """After each error: the server restarts, the client gets new credentials and goes on."""
    world.server.faults.replace(_TROUBLE)
    oss = world.create()
    for _ in range(_TRIES):
        try:
            upload(world, oss)
            break
        except Exception as error:  # of any client
            world.errors.append(f"{type(error).__name__}: {error}")
            world.restart()
            oss = world.refresh(oss.video_id)
    assert world.server.object_bytes(oss.video_id) == FILM, world.errors
    if others is not None:
        others(world, world.refresh(oss.video_id))


# --- clients of OSS ------------------------------------------------------------------------


def oss2_upload(version: str) -> Step:
    def upload(world: World, oss: Oss) -> None:
        store = oss2.ResumableStore(root=str(world.folder))
        oss2.resumable_upload(
            bucket(oss, version), oss.key, str(world.source),
            store=store, multipart_threshold=1, part_size=len(PART), num_threads=1,
        )  # fmt: skip

    return upload


def oss2_others(version: str) -> Step:
    def others(world: World, oss: Oss) -> None:
        client = bucket(oss, version)
        assert client.get_object(oss.key).read() == FILM
        assert client.head_object(oss.key).content_length == len(FILM)
        upload_id = client.init_multipart_upload(oss.key).upload_id
        client.upload_part(oss.key, upload_id, 1, PART)
        assert [p.part_number for p in oss2.PartIterator(client, oss.key, upload_id)] == [1]
        assert [u.upload_id for u in client.list_multipart_uploads().upload_list] == [upload_id]
        client.abort_multipart_upload(oss.key, upload_id)
        client.put_object(oss.key, PART)
        assert [o.key for o in client.list_objects().object_list] == [oss.key]
        assert [o.key for o in client.list_objects_v2().object_list] == [oss.key]
        client.batch_delete_objects([oss.key])
        client.delete_object(oss.key)

    return others


def v2_upload(world: World, oss: Oss) -> None:
    config = v2_config(oss)
    config.retry_max_attempts = 1
    uploader = v2.Client(config).uploader(
        part_size=len(PART), parallel_num=1, enable_checkpoint=True,
        checkpoint_dir=str(world.folder), leave_parts_on_error=True,
    )  # fmt: skip
    request = v2.PutObjectRequest(bucket=oss.bucket, key=oss.key)
    uploader.upload_file(request, str(world.source))


def v2_others(world: World, oss: Oss) -> None:
    client, place = v2.Client(v2_config(oss)), {"bucket": oss.bucket, "key": oss.key}
    got = client.get_object(v2.GetObjectRequest(**place)).body
    assert got is not None
    assert got.content == FILM
    assert client.head_object(v2.HeadObjectRequest(**place)).content_length == len(FILM)
    started = client.initiate_multipart_upload(v2.InitiateMultipartUploadRequest(**place))
    client.list_parts(v2.ListPartsRequest(**place, upload_id=started.upload_id))
    client.list_multipart_uploads(v2.ListMultipartUploadsRequest(bucket=oss.bucket))
    client.abort_multipart_upload(
        v2.AbortMultipartUploadRequest(**place, upload_id=started.upload_id)
    )
    client.put_object(v2.PutObjectRequest(**place, body=PART))
    client.list_objects(v2.ListObjectsRequest(bucket=oss.bucket))
    client.list_objects_v2(v2.ListObjectsV2Request(bucket=oss.bucket))
    named = [v2.DeleteObject(key=oss.key)]
    client.delete_multiple_objects(
        v2.DeleteMultipleObjectsRequest(bucket=oss.bucket, objects=named)
    )
    client.delete_object(v2.DeleteObjectRequest(**place))


def aio_upload(world: World, oss: Oss) -> None:
    asyncio.run(_aio_upload(world, oss))


async def _aio_upload(world: World, oss: Oss) -> None:
    """It has no uploader of its own: its users keep the UploadId, and list the parts."""
    place, kept = {"bucket": oss.bucket, "key": oss.key}, world.folder / "upload_id"
    async with aio.AsyncClient(v2_config(oss)) as client:
        if not kept.exists():
            request = v2.InitiateMultipartUploadRequest(**place)
            kept.write_text(str((await client.initiate_multipart_upload(request)).upload_id))
        about = {**place, "upload_id": kept.read_text()}
        listed = await client.list_parts(v2.ListPartsRequest(**about))
        etags = {part.part_number: part.etag for part in listed.parts or []}
        for start in range(0, len(FILM), len(PART)):
            number = start // len(PART) + 1
            if number not in etags:
                body = FILM[start : start + len(PART)]
                request = v2.UploadPartRequest(**about, part_number=number, body=body)
                etags[number] = (await client.upload_part(request)).etag
        parts = [v2.UploadPart(part_number=n, etag=etags[n]) for n in sorted(etags)]
        done = v2.CompleteMultipartUpload(parts=parts)
        await client.complete_multipart_upload(
            v2.CompleteMultipartUploadRequest(**about, complete_multipart_upload=done)
        )


def aio_others(world: World, oss: Oss) -> None:
    async def others() -> None:
        place = {"bucket": oss.bucket, "key": oss.key}
        async with aio.AsyncClient(v2_config(oss)) as client:
            await client.put_object(v2.PutObjectRequest(**place, body=PART))
            await client.head_object(v2.HeadObjectRequest(**place))
            await client.list_objects_v2(v2.ListObjectsV2Request(bucket=oss.bucket))
            await client.delete_object(v2.DeleteObjectRequest(**place))

    asyncio.run(others())


def _operator(oss: Oss) -> opendal.Operator:
    return opendal.Operator(
        "oss", bucket=oss.bucket, endpoint=oss.endpoint, access_key_id=oss.access_key_id,
        access_key_secret=oss.secret, security_token=oss.token, addressing_style="path", root="/",
    )  # fmt: skip


def opendal_upload(world: World, oss: Oss) -> None:
    with _operator(oss).open(oss.key, "wb", chunk=len(PART)) as file:
        for start in range(0, len(FILM), len(PART)):
            file.write(FILM[start : start + len(PART)])


def opendal_others(world: World, oss: Oss) -> None:
    operator = _operator(oss)
    assert operator.stat(oss.key).content_length == len(FILM)
    assert bytes(operator.read(oss.key)) == FILM
    # Its listing keeps the GIL while it waits, and the server is in this process.
    operator.write(oss.key, PART)
    operator.delete(oss.key)


# --- clients in processes of their own -----------------------------------------------------


def process(command: list[str], job: Mapping[str, Any]) -> None:
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=100
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:] or done.stdout[-2000:])


def job(world: World, oss: Oss, **more: str) -> dict[str, Any]:
    grant = {"endpoint": oss.endpoint, "bucket": oss.bucket, "key": oss.key}
    grant |= {"id": oss.access_key_id, "secret": oss.secret, "token": oss.token}
    return {**grant, "source": str(world.source), "folder": str(world.folder), **more}


def node(step: str) -> Step:
    def act(world: World, oss: Oss) -> None:
        script = str(HERE / "ali_oss.js")
        process(["node", script], job(world, oss, step=step, modules=str(NODE_MODULES)))

    return act


def foreign(step: str) -> Step:
    def act(world: World, oss: Oss) -> None:
        process([str(CLIENTS_PYTHON), str(HERE / "foreign.py")], job(world, oss, step=step))

    return act


def _no_node() -> str:
    has_package = (NODE_MODULES / "ali-oss").exists()
    return "" if shutil.which("node") and has_package else "node, or `npm ci` in tests/browsers"


def _no_clients() -> str:
    return "" if CLIENTS_PYTHON.exists() else "`make clients`"


def _no_namespace() -> str:
    can = os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip")
    return _no_clients() or ("" if can else "root, `unshare` and `ip`")


def voduploadsdk(world: World) -> None:
    """Its hosts are fixed: in a namespace of its own, port 80 of VOD's name is this server."""
    result = world.folder / "result.json"
    names = world.folder / "hosts"
    names.write_text("127.0.0.1 localhost\n127.0.0.1 vod.cn-shanghai.aliyuncs.com\n")
    shell = 'mount --bind "$1" /etc/hosts && ip link set lo up && shift && exec "$@"'
    command = [
        "unshare", "-n", "-m", "sh", "-c", shell, "sh", str(names),
        sys.executable, "-m", "tests.devserver.namespace", str(CLIENTS_PYTHON),
        str(world.source), str(result),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    answers = json.loads(result.read_text())["answers"]
    world.performed |= {each.split()[0] for each in answers if each.split()[1] == "200"}


# --- clients of VOD ------------------------------------------------------------------------


def generated(world: World) -> None:
    client = generated_client(world.server)
    created = client.create_upload_video(
        m.CreateUploadVideoRequest(title="A film", file_name="film.mp4")
    ).body
    video_id = created.video_id
    one, many = {"video_id": video_id}, {"video_ids": video_id}
    world.restart()
    throttled = {"operation": "RefreshUploadVideo", "action": "error", "status": 400,
                 "code": "Throttling.User", "count": 1}  # fmt: skip
    world.server.faults.replace([throttled])
    with suppress(Exception):  # it does not try again
        client.refresh_upload_video(m.RefreshUploadVideoRequest(**one))
    refreshed = client.refresh_upload_video(m.RefreshUploadVideoRequest(**one)).body
    oss = granted({k: v for k, v in refreshed.to_map().items() if isinstance(v, str)})
    oss.initiate()
    delete = m.DeleteMultipartUploadRequest(media_id=video_id, media_type="video")
    client.delete_multipart_upload(delete)
    assert oss.call("PUT", body=FILM).status == 200
    client.get_video_info(m.GetVideoInfoRequest(**one))
    client.get_video_infos(m.GetVideoInfosRequest(**many))
    client.get_mezzanine_info(m.GetMezzanineInfoRequest(**one))
    client.get_play_info(m.GetPlayInfoRequest(**one))
    client.get_upload_details(m.GetUploadDetailsRequest(media_ids=video_id))
    client.update_video_info(m.UpdateVideoInfoRequest(**one, title="Another"))
    client.search_media(m.SearchMediaRequest(match="Title = 'Another'", fields="Title"))
    image = client.create_upload_image(m.CreateUploadImageRequest(image_type="cover")).body
    client.get_image_info(m.GetImageInfoRequest(image_id=image.image_id))
    attached = client.create_upload_attached_media(
        m.CreateUploadAttachedMediaRequest(business_type="subtitle", media_ext="srt")
    ).body
    client.get_attached_media_info(m.GetAttachedMediaInfoRequest(media_ids=attached.media_id))
    entries = json.dumps([{"FileURL": f"{oss.endpoint}/{oss.bucket}/{oss.key}", "Title": "t"}])
    client.register_media(m.RegisterMediaRequest(register_metadatas=entries))
    jobs = client.upload_media_by_url(m.UploadMediaByURLRequest(upload_urls="http%3A%2F%2Fx%2Fa"))
    job_id = jobs.body.upload_jobs[0].job_id
    client.get_urlupload_infos(m.GetURLUploadInfosRequest(job_ids=job_id))
    client.cancel_url_upload_jobs(m.CancelUrlUploadJobsRequest(job_ids=job_id))
    client.delete_video(m.DeleteVideoRequest(**many))


def core(world: World) -> None:
    def call(action: str, **parameters: str) -> dict[str, Any]:
        request = CommonRequest(
            domain=urlsplit(world.server.vod_endpoint).netloc,
            version="2017-03-21",
            action_name=action,
        )
        request.set_method("POST")
        for name, value in parameters.items():
            request.add_query_param(name, value)
        client = AcsClient(
            world.server.access_key_id, world.server.access_key_secret, "cn-shanghai"
        )
        return dict(json.loads(client.do_action_with_exception(request)))

    created = call("CreateUploadVideo", Title="影片 & film", FileName="film.mp4")
    video_id = created["VideoId"]
    world.restart()
    call("RefreshUploadVideo", VideoId=video_id)
    assert call("GetVideoInfo", VideoId=video_id)["Video"]["Title"] == "影片 & film"
    call("GetMezzanineInfo", VideoId=video_id)
    call("SearchMedia", Match="Title = 'film'")
    call("UpdateVideoInfo", VideoId=video_id, Tags="a,b")
    call("CreateUploadImage", ImageType="default")
    call("DeleteVideo", VideoIds=video_id)


CLIENTS = (
    Client("oss2 V1", oss2_upload("v1"), oss2_others("v1")),
    Client("oss2 V4", oss2_upload("v4"), oss2_others("v4")),
    Client("alibabacloud-oss-v2", v2_upload, v2_others),
    Client("alibabacloud-oss-v2 aio", aio_upload, aio_others),
    Client("opendal", opendal_upload, opendal_others),
    Client("alibabacloud-vod20170321", whole=generated),
    Client("aliyun-python-sdk-core", whole=core),
    Client("ali-oss V1", node("upload-v1"), node("others-v1"), slow=True, why_not=_no_node),
    Client("ali-oss V4", node("upload-v4"), node("others-v4"), slow=True, why_not=_no_node),
    Client("ossfs", foreign("upload"), foreign("others"), slow=True, why_not=_no_clients),
    Client("voduploadsdk", whole=voduploadsdk, slow=True, why_not=_no_namespace),
)

# --- the table -----------------------------------------------------------------------------

_START, _END = "<!-- clients: begin -->\n", "<!-- clients: end -->\n"


def table(performed: Mapping[str, set[str]]) -> str:
    """Operations down, clients across; `x` where the client's run had it performed."""
    rows = sorted(set().union(*performed.values()))
    lines = [
        "| operation | " + " | ".join(performed) + " |",
        "|---" * (len(performed) + 1) + "|",
    ]
    for operation in rows:
        cells = ["x" if operation in done else "" for done in performed.values()]
        lines.append(f"| `{operation}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def documented() -> dict[str, set[str]]:
    """The table in the docs as operations by client."""
    text = DOCS.read_text().partition(_START)[2].partition(_END)[0]
    lines = text.splitlines() or ["", ""]
    head, _, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {
        name: {row[0].strip("`") for row in rows if row[number] == "x"}
        for number, name in enumerate(head[1:], 1)
    }


def main() -> None:
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.devserver.real_clients --update")
    found = documented() if _START in DOCS.read_text() else {}
    performed: dict[str, set[str]] = {}
    for client in CLIENTS:
        if missing := client.why_not():
            print(f"{client.name}: not run, it needs {missing}", file=sys.stderr)
            performed[client.name] = found.get(client.name, set())
            continue
        with tempfile.TemporaryDirectory() as folder:
            performed[client.name] = run(client, Path(folder)).performed
    before, _, rest = DOCS.read_text().partition(_START)
    after = rest.partition(_END)[2]
    DOCS.write_text(before + _START + table(performed) + _END + after)


if __name__ == "__main__":
    main()
