"""The benchmarks run, and their sink does not lie."""

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oss2
import pytest

from benchmarks.bench import Table
from benchmarks.contenders import Task, Track, by_name
from benchmarks.measure import Failed, execute, fit_line
from benchmarks.native import Sink, Toolbox, has_compiler
from benchmarks.networks import Network, self_test, why_not
from benchmarks.plots import bars, lines
from benchmarks.report import markdown_table
from benchmarks.targets import check
from uploader.protocol.integrity import crc64

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C compiler (cc)")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Toolbox:
    return Toolbox(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def sink(tools: Toolbox) -> Iterator[Sink]:
    with tools.sink() as running:
        yield running


def ask(sink: Sink, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", sink.http_port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()
    finally:
        connection.close()


def bucket_of(sink: Sink) -> oss2.Bucket:
    auth = oss2.StsAuth("bench", "bench", "bench")
    return oss2.Bucket(auth, f"http://127.0.0.1:{sink.http_port}", "bench")


# --- the sink -------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("size", [0, 1, 7, 15, 128, 255, 256, 257, 4096, 1_000_003])
def test_sink_computes_the_crc_of_what_it_was_sent(sink: Sink, size: int) -> None:
    body = random.Random(size).randbytes(size)

    status, headers, _ = ask(sink, "PUT", "/bench/key", body)

    assert status == 200
    assert int(headers["x-oss-hash-crc64ecma"]) == crc64(body)


@needs_compiler
def test_sink_joins_parts_into_the_crc_and_etag_of_the_whole(tools: Toolbox, sink: Sink) -> None:
    if not tools.has_tls:
        pytest.skip(tools.why_no_https or "")
    sink.change(md5=1)
    bucket = bucket_of(sink)
    bodies = [random.Random(n).randbytes(100 * 1024 + n) for n in range(5)]
    upload_id = bucket.init_multipart_upload("key").upload_id
    stored = [bucket.upload_part("key", upload_id, n, b) for n, b in enumerate(bodies, 1)]
    parts = [oss2.models.PartInfo(n, s.etag) for n, s in enumerate(stored, 1)]

    done = bucket.complete_multipart_upload("key", upload_id, parts)

    from uploader.protocol.integrity import multipart_etag

    assert done.crc == crc64(b"".join(bodies))
    assert done.etag == multipart_etag([s.etag for s in stored])
    assert bucket.head_object("key").content_length == sum(map(len, bodies))


@needs_compiler
def test_sink_lists_parts_by_pages(sink: Sink) -> None:
    bucket = bucket_of(sink)
    upload_id = bucket.init_multipart_upload("key").upload_id
    for number in (1, 2, 5):
        bucket.upload_part("key", upload_id, number, b"x" * number)

    page = bucket.list_parts("key", upload_id, max_parts=2)
    rest = bucket.list_parts("key", upload_id, marker=page.next_marker)

    assert page.is_truncated
    assert [p.part_number for p in [*page.parts, *rest.parts]] == [1, 2, 5]
    assert [p.size for p in rest.parts] == [5]


@needs_compiler
def test_sink_refuses_to_join_what_it_does_not_have(sink: Sink) -> None:
    bucket = bucket_of(sink)
    upload_id = bucket.init_multipart_upload("key").upload_id
    bucket.upload_part("key", upload_id, 1, b"x")

    with pytest.raises(oss2.exceptions.ServerError) as refused:
        bucket.complete_multipart_upload("key", upload_id, [oss2.models.PartInfo(2, "x")])

    assert refused.value.status == 400


@needs_compiler
def test_sink_fails_every_nth_body_when_told_so(sink: Sink) -> None:
    sink.reset(fail_every=3)

    statuses = [ask(sink, "PUT", "/bench/key", b"x")[0] for _ in range(6)]

    assert statuses == [200, 200, 503, 200, 200, 503]
    assert sink.stats()["failures"] == 2


@needs_compiler
def test_sink_reads_chunked_bodies(sink: Sink) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sink.http_port, timeout=10)
    pieces = [b"a" * 10, b"b" * 70_000, b"c"]
    connection.request("PUT", "/bench/key", iter(pieces), encode_chunked=True)
    answer = connection.getresponse()
    answer.read()
    connection.request("HEAD", "/bench/key")
    stored = connection.getresponse()
    connection.close()

    assert int(stored.headers["content-length"]) == 70_011
    assert int(stored.headers["x-oss-hash-crc64ecma"]) == crc64(b"".join(pieces))


@needs_compiler
def test_sink_answers_create_upload_video_with_a_grant_for_itself(sink: Sink) -> None:
    from uploader import decode_answer

    _, _, answer = ask(sink, "POST", "/?Action=CreateUploadVideo")
    grant = decode_answer(answer)

    assert grant.target.endpoint == f"http://127.0.0.1:{sink.http_port}"
    assert grant.target.object_key == f"video/{grant.video_id}.mp4"


# --- measuring ------------------------------------------------------------------------


def test_a_small_command_is_not_charged_with_the_memory_of_its_parent() -> None:
    ballast = bytearray(os.urandom(1)) * (150 * 2**20)

    run = execute([sys.executable, "-I", "-S", "-c", "pass"])

    assert len(ballast) > run.peak_kib * 1024
    assert run.cpu_s > 0


def test_a_command_that_takes_too_long_is_ended() -> None:
    with pytest.raises(Failed, match="cut after"):
        execute(["sleep", "60"], timeout_s=0.2)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(Failed, match="exit 3: because"):
        execute([sys.executable, "-c", "import sys; print('because', file=sys.stderr); exit(3)"])


@needs_compiler
def test_a_contender_that_loses_bytes_is_found_out(
    tools: Toolbox, sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "movie"
    path.write_bytes(b"x" * 1000)
    track = Track(tools, sink, None)
    monkeypatch.setattr(Track, "_argv", lambda *_: ["true"])

    with pytest.raises(Failed, match="only 0 bytes arrived"):
        track.run(by_name("curl -T"), Task((path,)))


@needs_compiler
def test_what_is_not_there_is_reported_as_such(tools: Toolbox, sink: Sink, tmp_path: Path) -> None:
    track = Track(tools, sink, None, "nobody installed it")

    with pytest.raises(Failed, match="not available: nobody installed it"):
        track.run(by_name("obstore"), Task((tmp_path,)))


def test_a_line_is_recognised_as_a_line() -> None:
    intercept, slope, r2 = fit_line([(0, 1), (1, 3), (2, 5), (3, 7)])

    assert (round(intercept, 6), round(slope, 6), round(r2, 6)) == (1, 2, 1)


# --- reporting ------------------------------------------------------------------------


def test_plots_are_well_formed_xml() -> None:
    for svg in (
        bars("a & b", [("vodup", 1.0), ("<x>", 0.0)]),
        lines("t", "x", "y", {"a": [(1, 2)]}),
    ):
        assert ET.fromstring(svg).tag.endswith("svg")  # noqa: S314 (our own)


def test_targets_say_by_how_much_they_are_met_or_missed() -> None:
    contenders: dict[str, Any] = {
        "vodup (library)": {"cpu_s_per_gb": 0.6, "gb_per_s": 2.0, "above_import_mib": 20.0},
        "curl -T": {"cpu_s_per_gb": 0.5},
        "oss2.resumable_upload": {"cpu_s_per_gb": 7.5, "gb_per_s": 0.2},
    }
    cell = {"scheme": "http", "size": 10**9, "connections": 8, "temperature": "warm"}
    rows = check({"transfer": {"cells": [{**cell, "contenders": contenders}]}}).rows

    assert rows[0] == ["CPU per byte against curl, http", "≤ 1", "1.2", "MISSED", "20 %"]
    assert rows[3] == ["CPU per byte against oss2, http", "≤ 0.1", "0.08", "met", "20 %"]
    assert rows[1][3] == "not measured"


def test_tables_have_their_columns() -> None:
    text = "\n".join(markdown_table(Table("t", ["a", "b"], [["1", "2"]], ["note"])))

    assert "| a | b |\n|---|---:|\n| 1 | 2 |" in text


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_mode_writes_a_table_json_and_plots(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--no-peers", "--out", str(tmp_path)]
    sections = ["--only", "transfer", "--only", "growth", "--only", "startup"]

    subprocess.run([*argv, *sections], cwd=ROOT, check=True, capture_output=True)

    text = (tmp_path / "quick" / "results.md").read_text()
    cells = json.loads((tmp_path / "quick" / "results.json").read_text())["data"]["transfer"]
    assert "| CPU-s/GB | × curl | process CPU s | peak MiB | above import | switches |" in text
    assert "obstore: not available" in text
    assert cells["cells"][0]["contenders"]["vodup (library)"]["rounds"] == 1
    assert list((tmp_path / "quick").glob("cpu-*.svg"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_an_emulated_link_is_as_long_slow_and_lossy_as_asked(tools: Toolbox) -> None:
    found = self_test(tools, Network("test", 20, 40, 2.0))

    assert 40 <= found["rtt_ms"] < 60
    assert 12 < found["rate_mbit"] <= 20.5
    assert 1.0 < found["loss_percent"] < 3.2
