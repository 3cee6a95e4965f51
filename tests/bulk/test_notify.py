"""`--notify`: each upload and the end of a batch are posted; what is not delivered is reported."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.conftest import Quick
from uploader.devserver import DevServer

SECRET = {"VODUP_NOTIFY_SECRET": "a secret that both know"}


@pytest.fixture
def quick(server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    return Quick(server, tmp_path, monkeypatch=monkeypatch)


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver's URL, and what it was sent."""
    got: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{receiver.server_port}/hook", got
        receiver.shutdown()
        thread.join()


def test_a_batch_posts_its_rows_and_its_end(
    quick: Quick, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, got = hook
    for number in range(3):
        quick.file(f"v{number}.mp4", size=1000 + number)
    ended = quick.run("ingest", "-r", ".", "--report", "r.jsonl", "--notify", url, env=SECRET)

    assert ended.code == 0, ended.err
    assert sorted(each["type"] for each in got) == [
        "vodup.batch.finished", *["vodup.upload.verified"] * 3,
    ]  # fmt: skip
    (batch,) = [each["data"] for each in got if each["type"] == "vodup.batch.finished"]
    assert (batch["rows"], batch["uploaded"], batch["failed"]) == (3, 3, 0)


def test_without_a_secret_nothing_is_sent(quick: Quick, server: DevServer) -> None:
    quick.file(size=1000)
    creates = server.stats.creates
    ended = quick.run("push", "movie.mp4", "--notify", "http://127.0.0.1:9/")

    assert ended.code == 2
    assert "VODUP_NOTIFY_SECRET" in ended.err
    assert server.stats.creates == creates
