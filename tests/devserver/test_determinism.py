"""With a seed and a clock that stands still, two runs of the server answer the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from uploader.devserver import DevServer, DevServerOptions, ThreadedDevServer

from .clients import PART, Vod, send, start_upload

OPTIONS = DevServerOptions(seed="s", clock="2026-01-01T00:00:00Z", processing_s=10)


@dataclass
class Run:
    answers: list[Any]
    keys: tuple[str, str]


def run(options: DevServerOptions) -> Run:
    with ThreadedDevServer(options) as threaded:
        vod = Vod(threaded.server)
        created = [vod.ok("CreateUploadVideo", Title="t", FileName="a.mp4") for _ in range(2)]
        oss = start_upload(vod)
        oss.call("PUT", body=PART)
        upload_id = oss.initiate()
        info = vod.ok("GetVideoInfo", VideoId=oss.video_id)
        ids = [each["VideoId"] for each in created]
        answers = [ids, oss.token, oss.secret, upload_id, info["Video"]["CreationTime"]]
        answers.append(info["RequestId"])
        return Run(answers, (threaded.server.access_key_id, threaded.server.access_key_secret))


def test_two_runs_are_the_same_and_another_seed_is_another_run() -> None:
    assert run(OPTIONS) == run(OPTIONS)
    other = DevServerOptions(seed="t", clock=OPTIONS.clock)
    assert run(other).keys != run(OPTIONS).keys


def test_no_id_is_given_twice_after_a_restart(tmp_path: Path) -> None:
    options = DevServerOptions(seed="s", data_dir=tmp_path)
    first, second = run(options), run(options)
    assert first.keys == second.keys
    assert not set(first.answers[0]) & set(second.answers[0])


def video_status(server: DevServer, video_id: str) -> str:
    return str(Vod(server).ok("GetVideoInfo", VideoId=video_id)["Video"]["Status"])


def test_time_passes_only_as_it_is_moved() -> None:
    with ThreadedDevServer(OPTIONS) as threaded:
        server = threaded.server
        oss = start_upload(Vod(server))
        assert oss.call("PUT", body=PART).status == 200
        assert video_status(server, oss.video_id) == "UploadSucc"
        token = {"X-Vodup-Token": server.admin_token}
        body = json.dumps({"advance_s": 6}).encode()
        assert send(server.vod_endpoint, "POST", "/_vodup/clock", token, body).status == 200
        assert video_status(server, oss.video_id) == "Transcoding"
        server.advance_clock(5)
        assert video_status(server, oss.video_id) == "Normal"
        server.advance_clock(3000)
        assert oss.call("HEAD").status == 403
        with pytest.raises(ValueError, match="forwards"):
            server.advance_clock(-1)


def test_a_clock_that_runs_is_not_moved() -> None:
    with ThreadedDevServer() as threaded, pytest.raises(ValueError, match="stands still"):
        threaded.server.advance_clock(1)
    with pytest.raises(ValueError, match="instant"):
        DevServerOptions(clock="noon")
