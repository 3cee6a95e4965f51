"""Files that VOD fetches by URL, and the events that it posts, as the documents describe both."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from alibabacloud_vod20170321 import models as m

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

from .clients import PART, Vod, granted, start_upload
from .test_calibration import generated_client
from .test_vod_library import refused

if TYPE_CHECKING:
    from alibabacloud_vod20170321.client import Client as VodClient

URL = "https://www.example.com/your/callback"


class Site:
    """A web server of the application: it serves files, and takes callbacks."""

    def __init__(self) -> None:
        site = self

        class Requests(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = site.files.get(self.path, b"")
                self.send_response(200 if self.path in site.files else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                site.received.append((dict(self.headers.items()), json.loads(body)))
                self.send_response(site.statuses.pop(0) if site.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.files: dict[str, bytes] = {}
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.statuses: list[int] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def events(self) -> list[str]:
        return [str(event["EventType"]) for _, event in self.received]

    def event(self, kind: str) -> dict[str, Any]:
        eventually(lambda: kind in self.events())
        return next(event for _, event in self.received if event["EventType"] == kind)


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.http.serve_forever, args=(0.01,))
    thread.start()
    yield site
    site.http.shutdown()
    thread.join()
    site.http.server_close()


@pytest.fixture
def options(site: Site) -> DevServerOptions:
    return DevServerOptions(
        callback_url=f"{site.url}/events", callback_pause_s=0, fetch_max_size=len(PART) + 1
    )


@pytest.fixture
def server(options: DevServerOptions) -> Iterator[DevServer]:
    with ThreadedDevServer(options) as threaded:
        yield threaded.server


@pytest.fixture
def client(server: DevServer) -> VodClient:
    return generated_client(server)


def submit(client: VodClient, *urls: str, **given: str) -> list[str]:
    joined = ",".join(quote(url, safe="") for url in urls)
    request = m.UploadMediaByURLRequest(upload_urls=joined, **given)
    jobs = client.upload_media_by_url(request).body.upload_jobs
    assert [job.source_url for job in jobs] == list(urls)
    return [job.job_id for job in jobs]


def info(client: VodClient, job_id: str) -> Any:  # noqa: ANN401
    body = client.get_urlupload_infos(m.GetURLUploadInfosRequest(job_ids=job_id)).body
    return body.urlupload_info_list[0]


def ended(client: VodClient, job_id: str) -> Any:  # noqa: ANN401
    eventually(lambda: info(client, job_id).status in ("SUCCESS", "DOWNLOAD_FAIL"))
    return info(client, job_id)


def test_a_file_is_fetched_and_becomes_a_video(
    client: VodClient, server: DevServer, site: Site
) -> None:
    url = f"{site.url}/a%20film.mp4?sign=a,b%2F"
    site.files["/a%20film.mp4?sign=a,b%2F"] = PART
    metadata = [{"SourceURL": url, "Title": "A film", "Tags": "a,b"}]
    data = json.dumps({"Extend": {"row": 7}})
    (job_id,) = submit(client, url, upload_metadatas=json.dumps(metadata), user_data=data)
    job = ended(client, job_id)
    assert (job.status, job.file_size, job.upload_url) == ("SUCCESS", str(len(PART)), url)
    assert server.object_bytes(job.media_id) == PART
    video = client.get_video_info(m.GetVideoInfoRequest(video_id=job.media_id)).body.video
    assert (video.title, video.tags, video.status) == ("A film", "a,b", "Normal")

    event = site.event("UploadByURLComplete")
    assert (event["Status"], event["JobId"], event["SourceURL"]) == ("success", job_id, url)
    assert (event["VideoId"], event["Size"]) == (job.media_id, str(len(PART)))
    assert json.loads(event["Extend"]) == {"row": 7}
    assert site.event("FileUploadComplete")["VideoId"] == job.media_id
    assert site.event("TranscodeComplete")["Status"] == "success"


def test_what_cannot_be_fetched_fails_by_itself(client: VodClient, site: Site) -> None:
    site.files |= {"/large.mp4": bytes(len(PART) + 2), "/good.mp4": PART, "/no-film.exe": PART}
    cases = {
        f"{site.url}/absent.mp4": "HTTP status 404",
        f"{site.url}/large.mp4": "more than",
        f"{site.url}/no-film.exe": "extension",
        "http://192.0.2.1/far.mp4": "loopback",
        "http://127.0.0.1.evil.example/far.mp4": "loopback",
        "http://127.0.0.1:1/closed.mp4": "Cannot connect",
    }
    *failed, good = submit(client, *cases, f"{site.url}/good.mp4")
    assert ended(client, good).status == "SUCCESS"
    for job_id, reason in zip(failed, cases.values(), strict=True):
        job = ended(client, job_id)
        assert (job.status, job.error_code, job.media_id) == (
            "DOWNLOAD_FAIL",
            "URLInvalidError",
            "",
        )
        assert reason in job.error_message


def test_calls_that_are_refused(client: VodClient, vod: Vod) -> None:
    url = quote("http://127.0.0.1:1/a.mp4", safe="")
    many = m.UploadMediaByURLRequest(upload_urls=",".join([url] * 21))
    assert refused(client.upload_media_by_url, many) == "InvalidParameter.UploadURLs"
    odd = m.UploadMediaByURLRequest(upload_urls="ftp://x/y")
    assert refused(client.upload_media_by_url, odd) == "InvalidParameter.UploadURLs"
    assert vod.call("UploadMediaByURL").code == "MissingParameter"
    entries = json.dumps([{"SourceURL": "http://127.0.0.1:1/a.mp4"}])
    untitled = m.UploadMediaByURLRequest(upload_urls=url, upload_metadatas=entries)
    assert refused(client.upload_media_by_url, untitled) == "InvalidParameter"
    submit(client, "http://127.0.0.1:1/a.mp4", session_id="once")
    again = m.UploadMediaByURLRequest(upload_urls=url, session_id="once")
    assert refused(client.upload_media_by_url, again) == "InvalidParameter"


def test_jobs_are_found_by_url_and_cancelled(client: VodClient, site: Site) -> None:
    url = f"{site.url}/a.mp4"
    site.files["/a.mp4"] = PART
    ids = submit(client, url) + submit(client, url)
    for job_id in ids:
        ended(client, job_id)
    missing = "http://127.0.0.1:1/never"
    both = ",".join(quote(each, safe="") for each in (url, missing))
    body = client.get_urlupload_infos(m.GetURLUploadInfosRequest(upload_urls=both)).body
    assert [job.job_id for job in body.urlupload_info_list] == ids
    assert body.non_exists == [missing]
    request = m.CancelUrlUploadJobsRequest(job_ids=",".join([*ids, "f" * 32]))
    cancelled = client.cancel_url_upload_jobs(request).body
    assert (cancelled.canceled_jobs, cancelled.non_exists) == ([], ["f" * 32])


def test_jobs_survive_a_restart(site: Site, tmp_path: Path) -> None:
    """The process died while a file was being fetched: the next one fetches it."""
    options = DevServerOptions(data_dir=tmp_path)
    url = f"{site.url}/a.mp4"
    with ThreadedDevServer(options) as threaded:
        (job_id,) = submit(generated_client(threaded.server), url)
        storage = threaded.server.backend.storage
        eventually(lambda: storage.url_jobs()[0].status == "DOWNLOAD_FAIL")
        storage._db.execute(
            "UPDATE url_jobs SET document=json_set(document, '$.status', 'DOWNLOADING')"
        )
    site.files["/a.mp4"] = PART
    with ThreadedDevServer(options) as threaded:
        job = ended(generated_client(threaded.server), job_id)
        assert threaded.server.object_bytes(job.media_id) == PART


def test_events_are_signed_and_sent_three_times_at_most(
    server: DevServer, vod: Vod, site: Site
) -> None:
    site.statuses = [500, 204]
    oss = granted(
        vod.ok(
            "CreateUploadVideo",
            Title="t",
            FileName="a.mp4",
            TemplateGroupId="VOD_NO_TRANSCODE",
        )
    )
    oss.call("PUT", body=PART)
    eventually(lambda: len(site.received) == 3)
    url, key = f"{site.url}/events", server.backend.callback_key
    for headers, event in site.received:
        assert event["EventType"] == "FileUploadComplete"
        assert (event["VideoId"], event["Size"]) == (oss.video_id, len(PART))
        text = f"{url}|{headers['X-VOD-TIMESTAMP']}|{key}"
        assert (
            headers["X-VOD-SIGNATURE"]
            == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        )
    eventually(lambda: len(server.stats.callbacks) == 3)
    assert [each["status"] for each in server.stats.callbacks] == [500, 204, 200]
    site.statuses = [500] * 4
    vod.ok("DeleteVideo", VideoIds=oss.video_id)
    eventually(lambda: len(server.stats.callbacks) == 6)
    assert site.events()[3:] == ["DeleteMediaComplete"] * 3


def test_events_of_transcoding_come_in_time(server: DevServer, vod: Vod, site: Site) -> None:
    server.set_options(processing_s=0.1, status_after_upload="TranscodeFail")
    oss = start_upload(vod)
    oss.call("PUT", body=PART)
    assert vod.ok("GetVideoInfo", VideoId=oss.video_id)["Video"]["Status"] == "UploadSucc"
    assert site.event("TranscodeComplete")["StreamInfos"][0]["Status"] == "fail"
    assert site.event("StreamTranscodeComplete")["Status"] == "fail"
    assert vod.ok("GetVideoInfo", VideoId=oss.video_id)["Video"]["Status"] == "TranscodeFail"


def test_pictures_and_attached_media_have_events_of_their_own(vod: Vod, site: Site) -> None:
    own = json.dumps({"MessageCallback": json.dumps({"CallbackURL": f"{site.url}/own"})})
    image = vod.ok("CreateUploadImage", ImageType="cover", UserData=own)
    granted(image).call("PUT", body=PART)
    assert site.event("ImageUploadComplete")["ImageId"] == image["ImageId"]
    media = vod.ok("CreateUploadAttachedMedia", BusinessType="subtitle", MediaExt="srt")
    granted(media).call("PUT", body=PART)
    event = site.event("AttachedMediaUploadComplete")
    assert (event["AttachedMediaId"], event["Size"]) == (media["MediaId"], len(PART))


def test_events_go_to_no_host_of_others(server: DevServer, vod: Vod, site: Site) -> None:
    far = json.dumps({"MessageCallback": {"CallbackURL": "http://192.0.2.1/x"}})
    oss = granted(vod.ok("CreateUploadVideo", Title="t", FileName="a.mp4", UserData=far))
    oss.call("PUT", body=PART)
    site.event("FileUploadComplete")
    eventually(lambda: bool(server.stats.callbacks))
    assert {each["url"] for each in server.stats.callbacks} == {f"{site.url}/events"}


def test_events_are_chosen_and_off_by_default(server: DevServer, vod: Vod, site: Site) -> None:
    assert DevServerOptions().callback_url == ""
    server.set_options(callback_events=["TranscodeComplete"])
    start_upload(vod).call("PUT", body=PART)
    site.event("TranscodeComplete")
    assert site.events() == ["TranscodeComplete"]


def test_the_documented_signature() -> None:
    from uploader.devserver.vod_events import signature

    assert signature(URL, 1519375990, "test123") == {
        "X-VOD-TIMESTAMP": "1519375990",
        "X-VOD-SIGNATURE": "c72b60894140fa98920f1279219b7ed4",
    }
    assert signature(URL, 1519375990, "") == {}
