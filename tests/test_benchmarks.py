"""The benchmarks run, and their sink does not lie."""

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oss2
import pytest

from benchmarks import quotes, report, startup
from benchmarks.bench import QUICK, Bench, Section, Table
from benchmarks.contenders import Task, Track, by_name
from benchmarks.measure import Failed, execute, fit_line
from benchmarks.native import Sink, Toolbox, has_compiler
from benchmarks.networks import Network, self_test, sweep, why_not
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


def answer_of(
    sink: Sink, method: str, path: str, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
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

    status, headers, _ = answer_of(sink, "PUT", "/bench/key", body)

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
def test_a_sink_fails_every_nth_body(sink: Sink) -> None:
    sink.reset(fail_every=3)

    statuses = [answer_of(sink, "PUT", "/bench/key", b"x")[0] for _ in range(6)]

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

    _, _, answer = answer_of(sink, "POST", "/?Action=CreateUploadVideo")
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
        lines("t", "x", "y", {"a": [(1, 2)]}, [(0, 0), (1, 2)]),
    ):
        assert ET.fromstring(svg).tag.endswith("svg")  # noqa: S314 (our own)


def test_targets_say_by_how_much_they_are_met_or_missed() -> None:
    contenders: dict[str, Any] = {
        "vodup (library)": {"cpu_s_per_gb": 0.6, "gb_per_s": 2.0, "above_import_mib": 20.0},
        "curl -T": {"cpu_s_per_gb": 0.5},
        "oss2.resumable_upload": {"cpu_s_per_gb": 7.5, "gb_per_s": 0.2},
    }
    cell = {"scheme": "http", "size": 10**9, "connections": 8, "temperature": "warm"}
    found = check({"transfer": {"http-1GB-c8-warm": {**cell, "contenders": contenders}}})
    rows = {row[0]: row[1:] for row in found.rows}

    assert rows["CPU per byte against curl -T, http"] == ["≤ 1", "1.2", "MISSED", "20 %"]
    assert rows["CPU per byte against oss2, http"] == ["≤ 0.1", "0.08", "met", "20 %"]
    assert rows["CPU per byte against curl -T, https"][2] == "not measured"


def test_tables_have_their_columns() -> None:
    text = "\n".join(markdown_table(Table("t", ["a", "b"], [["1", "2"]], ["note"])))

    assert "| a | b |\n|---|---:|\n| 1 | 2 |" in text


# --- results that stay ----------------------------------------------------------------

HERE = {"cpu": "c", "cores": 2}


def section_with(*keys: str, date: str = "today") -> Section:
    section = Section("bulk", "Many files", lambda: {"date": date, "uploader": "t", "load": 0})
    for key in keys:
        table = Table(key, ["", "GB/s"], [["vodup", date]], ["note"])
        section.add(key, table, {"of": date}, {f"{key}.svg": "<svg/>"})
    return section


def dates(document: dict[str, Any]) -> dict[str, str]:
    pieces = document["sections"]["bulk"]["pieces"]
    return {key: piece["measured"]["date"] for key, piece in pieces.items()}


def test_a_piece_measured_again_replaces_itself_and_nothing_else() -> None:
    first = [section_with("http", "https", date="monday")]
    again = [section_with("https", date="tuesday")]

    document = report.merge(None, HERE, {}, first, is_whole=True)
    document = report.merge(document, HERE, {}, again, is_whole=False)

    assert dates(document) == {"http": "monday", "https": "tuesday"}
    assert report.figures(document)["bulk"]["https"] == {"of": "tuesday"}


def test_a_section_measured_whole_leaves_nothing_of_its_former_self() -> None:
    document = report.merge(None, HERE, {}, [section_with("http", "gone")], is_whole=True)
    document = report.merge(document, HERE, {}, [section_with("http")], is_whole=True)

    assert list(dates(document)) == ["http"]


def test_a_section_that_failed_keeps_what_was_measured_before() -> None:
    document = report.merge(None, HERE, {}, [section_with("http")], is_whole=True)
    document = report.merge(document, HERE, {}, [section_with()], is_whole=True)

    assert list(dates(document)) == ["http"]


def test_figures_of_two_machines_do_not_mix() -> None:
    document = report.merge(None, HERE, {}, [section_with("http")], is_whole=True)
    there = {**HERE, "cores": 64}

    document = report.merge(document, there, {}, [section_with("https")], is_whole=False)

    assert list(dates(document)) == ["https"]


def test_writing_results_removes_plots_that_nothing_names(tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("<svg/>")
    section = section_with("http")

    report.write(tmp_path, report.merge(None, HERE, {}, [section], is_whole=True), [section])

    assert [path.name for path in tmp_path.glob("*.svg")] == ["http.svg"]
    assert "| vodup | today |" in (tmp_path / "results.md").read_text()


def test_results_from_another_folder_take_the_place_of_their_pieces(tmp_path: Path) -> None:
    for day, keys in (("monday", ("http", "https")), ("tuesday", ("https",))):
        section = section_with(*keys, date=day)
        document = report.merge(None, HERE, {}, [section], is_whole=True)
        report.write(tmp_path / day, document, [section])

    report.take(tmp_path / "monday", tmp_path / "tuesday")

    merged = report.read(tmp_path / "monday")
    assert merged is not None
    assert dates(merged) == {"http": "monday", "https": "tuesday"}
    assert {path.name for path in (tmp_path / "monday").glob("*.svg")} == {"http.svg", "https.svg"}


@pytest.mark.parametrize(
    ("only", "is_wanted"),
    [
        ((), True),
        (("transfer",), True),
        (("growth",), False),
        (("transfer/https-*",), True),
        (("transfer/http-*",), False),
        (("growth", "transfer/*-c8"), True),
    ],
)
def test_only_names_sections_and_pieces(
    tools: Toolbox, only: tuple[str, ...], is_wanted: bool
) -> None:
    track = Track(tools, Sink(0, 0), None)

    assert Bench(track, QUICK, tools.folder, only).wants("transfer", "https-1GB-c8") is is_wanted


# --- quoting --------------------------------------------------------------------------


def test_quotes_replace_what_stood_in_their_place_and_nothing_else() -> None:
    document = report.merge(None, HERE, {}, [section_with("http")], is_whole=True)
    page = "before\n<!-- results: bulk/http | GB/s -->\nold\n<!-- /results -->\nbehind\n"

    text = quotes.quoted(page, document)

    assert "old" not in text
    assert "| vodup | today |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- /results -->\nbehind\n")
    assert quotes.quoted(text, document) == text


def test_a_quote_of_what_was_not_measured_is_an_error() -> None:
    document = report.merge(None, HERE, {}, [section_with("http")], is_whole=True)

    with pytest.raises(KeyError):
        quotes.quoted("<!-- results: bulk/ftp -->\n<!-- /results -->\n", document)


def _is_of_somebody_else() -> bool:
    """Whether benchmarks were run here, so that the results are not those of the docs."""
    argv = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "benchmarks/results"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


@pytest.mark.parametrize("name", quotes.PAGES)
def test_the_docs_quote_the_figures_that_were_measured(name: str) -> None:
    document = report.read(ROOT / "benchmarks" / "results")
    if document is None or _is_of_somebody_else():
        pytest.skip("the results are not committed: `python -m benchmarks --quote` copies them")
    text = (ROOT / name).read_text()

    assert "<!-- results: " in text
    assert quotes.quoted(text, document) == text


def test_the_plots_in_the_docs_are_those_of_the_results() -> None:
    if _is_of_somebody_else():
        pytest.skip("the results are not committed: `python -m benchmarks --quote` copies them")
    shown = quotes.plots_of((ROOT / "docs" / "performance.md").read_text())
    copies = {path.name: path.read_bytes() for path in (ROOT / quotes.PLOTS).glob("*.svg")}
    results = ROOT / "benchmarks" / "results"

    assert copies == {name: (results / name).read_bytes() for name in shown}


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_mode_writes_a_table_json_and_plots(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--no-peers", "--out", str(tmp_path)]
    only = ["--only", "transfer", "--only", "growth", "--only", "startup"]

    subprocess.run([*argv, *only], cwd=ROOT, check=True, capture_output=True)

    text = (tmp_path / "results.md").read_text()
    sections = json.loads((tmp_path / "results.json").read_text())["sections"]
    cell = sections["transfer"]["pieces"]["http-16MB-c4-warm"]
    assert "| CPU-s/GB | × curl | process CPU s | peak MiB | above import | switches |" in text
    assert "obstore: not available" in text
    assert cell["data"]["contenders"]["vodup (library)"]["rounds"] == 1
    assert cell["data"]["contenders"]["curl --parallel"]["connections"] == 4
    assert sections["startup"]["pieces"]["startup"]["data"]["vodup --help"]["modules"] > 0
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        plot for s in sections.values() for piece in s["pieces"].values() for plot in piece["plots"]
    }


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_namespaces_of_killed_runs_are_removed_and_no_others() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale, ours = (f"vodup-bench-{pid}-test" for pid in (gone.pid, os.getpid()))
    for name in (stale, ours):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        sweep()
        listed = namespaces()
        assert (stale in listed, ours in listed) == (False, True)
    finally:
        for name in (stale, ours):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@needs_compiler
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_benchmark_that_is_stopped_leaves_no_namespace() -> None:
    code = (
        "import tempfile, time\n"
        "from pathlib import Path\n"
        "from benchmarks.measure import end_on_sigterm\n"
        "from benchmarks.native import Toolbox\n"
        "from benchmarks.networks import NETWORKS, linked\n"
        "end_on_sigterm()\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with linked(Toolbox(Path(folder)), NETWORKS[0]):\n"
        "        print('linked', flush=True)\n"
        "        time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "linked\n"
        name = f"vodup-bench-{process.pid}-"
        assert name in namespaces()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert name not in namespaces()


def namespaces() -> str:
    return subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_an_emulated_link_is_as_long_slow_and_lossy_as_configured(tools: Toolbox) -> None:
    found = self_test(tools, Network("test", 20, 40, 2.0))

    assert 40 <= found["rtt_ms"] < 60
    assert 12 < found["rate_mbit"] <= 20.5
    assert 1.0 < found["loss_percent"] < 3.2


def test_starting_is_measured_against_another_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert startup.main(["--rounds", "1", "--against", str(ROOT)]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [row[0].strip() for row in rows[2:]] == [
        "import uploader", "vodup --help", "vodup status", "vodup push of 10 KB",
    ]  # fmt: skip
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[1:])
    assert all(len(row) == 5 for row in rows)
