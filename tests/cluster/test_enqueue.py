"""What is queued, for whom, and how often."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.cli.conftest import VODUP
from tests.cluster.conftest import PART, Cluster, content
from tests.sources.web import Site, serving
from tests.waiting import wait_until

QUEUED = "SELECT count(*) FROM procrastinate_jobs"


def records_in(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_queueing_twice_uploads_once(cluster: Cluster) -> None:
    cluster.files(4, size=PART)
    first = cluster.enqueue("--json").last
    assert (first["queued_count"], first["waiting_count"]) == (4, 0)
    second = cluster.enqueue("--json").last
    assert (second["queued_count"], second["waiting_count"]) == (0, 4)
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.output
    third = cluster.enqueue("--json").last
    assert (third["queued_count"], third["done_count"]) == (0, 4)
    assert cluster.count(QUEUED) == 0
    cluster.check(4, size=PART, resent=0)


def test_enqueueing_killed_in_the_middle_and_repeated_queues_every_row_once(
    cluster: Cluster,
) -> None:
    manifest = cluster.folder / "m.csv"
    count = 12_000
    (cluster.folder / "shared").mkdir()
    (cluster.folder / "shared" / "a.mp4").write_bytes(b"x")
    rows = [f"shared/a.mp4,k{number}" for number in range(count)]
    manifest.write_text("\n".join(["path,key", *rows]))
    words = ["enqueue", "m.csv", "--shared", str(cluster.folder / "shared")]
    with subprocess.Popen([*VODUP, *words], cwd=cluster.folder, env=cluster.env()) as process:
        wait_until(lambda: process.poll() is not None or cluster.count(QUEUED) > 0)
        process.kill()
    queued = cluster.count(QUEUED)
    assert 0 < queued < count, "it was not killed in the middle"
    assert queued == cluster.left()
    last = cluster.enqueue("--json").last
    assert last["queued_count"] == count - queued
    assert cluster.count(QUEUED) == cluster.left() == count
    assert cluster.count("SELECT count(DISTINCT args->>'id') FROM procrastinate_jobs") == count


def test_two_concurrent_enqueues_queue_every_row_once(cluster: Cluster) -> None:
    cluster.files(300, size=1)
    words = ["enqueue", "m.csv", "--shared", str(cluster.folder / "shared")]
    running = [
        subprocess.Popen([*VODUP, *words], cwd=cluster.folder, env=cluster.env()) for _ in range(2)
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert cluster.count(QUEUED) == cluster.left() == 300


def test_a_row_whose_job_was_deleted_is_queued_again(cluster: Cluster) -> None:
    cluster.files(2, size=PART)
    cluster.enqueue()
    cluster.execute(
        "DELETE FROM procrastinate_jobs WHERE id = (SELECT min(id) FROM procrastinate_jobs)"
    )
    assert cluster.enqueue("--json").last["queued_count"] == 1
    assert cluster.count(QUEUED) == 2


def test_every_row_has_one_record_and_so_have_bad_ones(cluster: Cluster) -> None:
    cluster.files(3, size=PART)
    cluster.add("shared/none.mp4\nshared/0.mp4\n../up.mp4\n")
    cluster.enqueue(code=1)
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.output
    records = cluster.records(code=1)
    assert sorted(int(r["row"]) for r in records) == [2, 3, 4, 5, 6, 7]
    assert {r["row"]: r.get("error") for r in records if r["status"] == "failed"} == {
        5: "SourceUnreadable",
        6: "ConfigurationError",
        7: "UnsafePath",
    }


def test_a_corrected_manifest_leaves_no_record_of_the_wrong_rows(cluster: Cluster) -> None:
    manifest = cluster.files(1, size=PART)
    right = manifest.read_text()
    manifest.write_text(right + "../up.mp4\n")
    cluster.enqueue(code=7)
    manifest.write_text(right)
    cluster.enqueue()
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.output
    assert [r["row"] for r in cluster.records(code=0)] == [2]


def test_waiting_writes_the_ledger_as_rows_end_and_exits_as_ingest_does(cluster: Cluster) -> None:
    cluster.files(4, size=PART)
    cluster.add("shared/none.mp4\n")
    report, failed = cluster.folder / "r.jsonl", cluster.folder / "f.jsonl"
    cluster.worker()
    words = ("--wait", "--report", str(report), "--failed", str(failed))
    cluster.enqueue(*words, code=4)
    assert sorted(r["row"] for r in records_in(report)) == [2, 3, 4, 5, 6]  # type: ignore[type-var]
    assert [r["row"] for r in records_in(failed)] == [6]
    (cluster.folder / "shared" / "none.mp4").write_bytes(b"now it is there")
    cluster.enqueue(*words)
    assert sorted((r["row"], r["status"]) for r in records_in(report)) == [
        (row, "done") for row in range(2, 7)
    ]
    assert cluster.server.stats.creates == 5


def test_a_report_is_a_manifest_of_its_failures(cluster: Cluster) -> None:
    cluster.files(1, size=PART)
    cluster.add("shared/none.mp4\n")
    failed = cluster.folder / "f.jsonl"
    cluster.enqueue("--report", "r.jsonl", "--failed", str(failed), code=4)
    (cluster.folder / "shared" / "none.mp4").write_bytes(b"x")
    done = cluster.run("enqueue", "f.jsonl", "--shared", str(cluster.folder / "shared"))
    assert done.code == 0, done.err
    assert cluster.count(QUEUED) == 2


def test_a_local_file_is_uploaded_only_by_workers_on_its_machine(cluster: Cluster) -> None:
    cluster.files(1, size=PART)
    done = cluster.run("enqueue", "m.csv", node="one")
    assert done.code == 0, done.err
    assert cluster.count("SELECT count(*) FROM vodup_job WHERE queue = 'vodup@one'") == 1
    other = cluster.worker("--drain", node="two")
    assert other.ended() == 0, other.output
    assert cluster.left() == 1
    right = cluster.worker("--drain", node="one")
    assert right.ended() == 0, right.output
    assert cluster.left() == 0


def test_the_same_path_on_two_machines_is_two_uploads(cluster: Cluster) -> None:
    cluster.files(1, size=PART)
    for node in ("one", "two"):
        assert cluster.run("enqueue", "m.csv", node=node).code == 0
    assert cluster.left() == 2


def test_the_fields_of_a_row_reach_vod(cluster: Cluster) -> None:
    cluster.files(1, size=PART)
    (cluster.folder / "m.csv").write_text(
        "path,title,tags,cate_id,reference_id\n"
        'shared/0.mp4,"Der Film, 1. Teil","a,b",7,reference-1\n'
    )
    cluster.enqueue("--description", "of all rows")
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.output
    (video,) = cluster.server.videos.values()
    assert (video.title, video.reference_id) == ("Der Film, 1. Teil", "reference-1")
    with psycopg.connect(cluster.url) as connection:
        row = connection.execute("SELECT meta FROM vodup_upload").fetchone()
    stored = json.loads(row[0]) if row else {}
    assert (stored["tags"], stored["cate_id"]) == (["a", "b"], 7)
    assert stored["description"] == "of all rows"


def test_a_source_that_is_missing_here_is_left_to_others_and_fails_in_the_end(
    cluster: Cluster,
) -> None:
    cluster.files(1, size=PART)
    cluster.enqueue()
    (cluster.folder / "shared" / "0.mp4").unlink()
    worker = cluster.worker()
    wait_until(lambda: cluster.count("SELECT max(failure_count) FROM vodup_job") == 1)
    cluster.execute("UPDATE procrastinate_jobs SET scheduled_at = now(), attempts = 9")
    cluster.execute("UPDATE vodup_job SET failure_count = 2")
    wait_until(lambda: cluster.left() == 0)
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0
    (record,) = cluster.records(code=4)
    assert (record["error"], record["attempts"]) == ("SourceUnreadable", 3)


def test_a_worker_without_credentials_stops_and_fails_no_row(cluster: Cluster) -> None:
    cluster.files(3, size=PART)
    cluster.enqueue()
    worker = cluster.worker(ALIBABA_CLOUD_ACCESS_KEY_ID="LTAIwrong")
    assert worker.ended() == 3, worker.output
    assert cluster.left() == 3
    assert cluster.count("SELECT max(failure_count) FROM vodup_job") == 0


@pytest.mark.parametrize("command", ["enqueue m.csv", "worker", "results m.csv", "db upgrade"])
def test_without_postgresql_the_error_names_what_is_needed(cluster: Cluster, command: str) -> None:
    cluster.files(1, size=1)
    done = cluster.run(*command.split(), VODUP_STATE=str(cluster.folder / "s.db"))
    assert done.code == 2
    assert "postgresql://" in done.err


def test_a_url_is_read_by_any_worker_and_its_query_is_not_shown(cluster: Cluster) -> None:
    data = content(1, 5 * PART)
    with serving_apart(data) as plain_url:
        url = f"{plain_url}?OSSAccessKeyId=k&Signature=can4ry&Expires=1"
        (cluster.folder / "m.csv").write_text(f"path,title\n{url},Film\n")
        queued = cluster.run("enqueue", "m.csv", node="one")
        assert queued.code == 0, queued.err
        refused = cluster.worker("--drain", node="two")
        assert refused.ended() == 0, refused.output
        (record,) = cluster.records(code=7)
        assert record["error"] == "PolicyError"
        cluster.run("enqueue", "m.csv", node="one")
        worker = cluster.worker("--drain", "--allow-private-sources", node="two")
        assert worker.ended() == 0, worker.output
    (record,) = cluster.records(code=0)
    assert cluster.server.object_bytes(record["video_id"]) == data
    assert "can4ry" not in refused.output + worker.output + cluster.run("status").out
    # With another signature it is the same upload.
    (cluster.folder / "m.csv").write_text(
        f"path,title\n{url.replace('can4ry', 'other').replace('=1', '=2')},Film\n"
    )
    assert cluster.enqueue("--json").last["done_count"] == 1


@contextmanager
def serving_apart(data: bytes) -> Iterator[str]:
    """A web server in a thread, for workers in processes of their own."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with serving(Site(data)) as site:
            urls.append(site.url.partition("?")[0])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_names_that_are_not_utf8_go_through_the_queue(cluster: Cluster) -> None:
    cluster.files(1, size=PART)
    folder = cluster.folder / "shared"
    name = "fi\udcfflm.mp4"
    (folder / "0.mp4").rename(folder / name)
    (folder / "go\udcffne.mp4").write_bytes(b"x")
    queued = cluster.run("enqueue", "-r", str(folder), "--shared", str(folder))
    assert queued.code == 0, queued.err
    (folder / "go\udcffne.mp4").unlink()
    worker = cluster.worker()
    wait_until(lambda: cluster.count("SELECT max(failure_count) FROM vodup_job") == 1)
    wait_until(lambda: cluster.left() == 1)
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0, worker.output
    report = cluster.folder / "r.jsonl"
    assert cluster.run("results", "--report", str(report)).code == 5
    assert [record["path"] for record in records_in(report)] == [str(folder / name)]


def test_a_worker_reads_only_below_its_roots_whatever_is_queued(cluster: Cluster) -> None:
    cluster.files(2, size=PART)
    other = cluster.folder / "shared2"
    other.mkdir()
    (other / "secret.mp4").write_bytes(b"x")
    for name in ("link", "dots"):
        (cluster.folder / "shared" / name).mkdir()
        (cluster.folder / "shared" / name / "secret.mp4").write_bytes(b"x")
    cluster.add("shared2/secret.mp4\nshared/link/secret.mp4\nshared/dots/secret.mp4\n")
    words = ("--shared", str(cluster.folder))
    assert cluster.run("enqueue", "m.csv", *words).code == 0
    (cluster.folder / "shared/link").rename(cluster.folder / "away")
    (cluster.folder / "shared/link").symlink_to(other)
    cluster.execute(
        "UPDATE vodup_job SET spec = replace(spec::text, 'shared/dots', 'shared/../shared2')::json"
    )
    worker = cluster.worker("--drain", "--root", str(cluster.folder / "shared"))
    assert worker.ended() == 0, worker.output
    records = {r["row"]: r for r in cluster.records(code=7)}
    assert [records[row]["status"] for row in range(2, 7)] == ["done"] * 2 + ["failed"] * 3
    assert {records[row]["error"] for row in (4, 5, 6)} == {"UnsafePath"}


def test_rows_of_a_newer_vodup_stay_queued(cluster: Cluster) -> None:
    cluster.files(1, size=PART)
    cluster.enqueue()
    cluster.execute("UPDATE vodup_job SET spec = '{\"v\": 2}'")
    worker = cluster.worker()
    assert worker.ended() == 2, worker.output
    assert "newer vodup" in worker.output
    assert cluster.left() == cluster.count(QUEUED) == 1


def test_an_interrupted_enqueue_keeps_the_records_of_rows_it_did_not_read(
    cluster: Cluster,
) -> None:
    cluster.files(1, size=PART)
    rows = [f"shared/0.mp4,k{number}" for number in range(1100)]
    (cluster.folder / "m.csv").write_text("\n".join(["path,key", *rows, "shared/none.mp4,k"]))
    report = cluster.folder / "r.jsonl"
    cluster.enqueue("--report", str(report), code=4)
    before = records_in(report)
    assert len(before) == 1
    cluster.execute("ALTER TABLE vodup_job RENAME TO away")
    words = ("--shared", str(cluster.folder), "--report", str(report))
    assert cluster.run("enqueue", "m.csv", *words).code == 5
    assert records_in(report) == before


def test_an_aborted_upload_leaves_the_queue(cluster: Cluster) -> None:
    cluster.files(2, size=PART)
    (cluster.folder / "m.csv").write_text("path,key\nshared/0.mp4,keep\nshared/1.mp4,drop\n")
    cluster.enqueue()
    given_up = cluster.run("abort", "drop", "--json")
    assert given_up.code == 0, given_up.err
    assert given_up.last["type"] == "upload.aborted"
    assert (given_up.last["key"], given_up.last["video_id"]) == ("drop", None)
    assert cluster.run("abort", "drop").code == 2
    assert cluster.count(QUEUED) == 1
    worker = cluster.worker("--drain")
    assert worker.ended() == 0, worker.output
    assert {r["key"]: r["status"] for r in cluster.records(code=1)} == {
        "keep": "done",
        "drop": "failed",
    }
    assert cluster.server.stats.creates == 1


def test_a_machine_without_an_access_key_queues_the_same_uploads(cluster: Cluster) -> None:
    cluster.files(3, size=PART)
    no_key = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": ""}
    words = ("enqueue", "m.csv", "--shared", str(cluster.folder), "--json")
    assert cluster.run(*words, **no_key).last["queued_count"] == 3
    assert cluster.run(*words).last["waiting_count"] == 3
    assert cluster.run("results", "m.csv", **no_key).code == 5
    assert cluster.run("status", **no_key).code == 0


def test_a_file_that_changed_after_it_was_verified_is_not_called_done(cluster: Cluster) -> None:
    cluster.files(2, size=PART)
    cluster.enqueue("--report", "e.jsonl")
    assert cluster.worker("--drain").ended() == 0
    first = {r["row"]: r for r in cluster.records(code=0)}
    path = cluster.folder / "shared" / "1.mp4"

    path.write_bytes(content(5, PART))
    ended = cluster.enqueue("--report", "e.jsonl", code=4)  # as the database knows
    assert "--changed new-video" in ended.err
    for report in ("e.jsonl", "other.jsonl"):  # as both know, and as the database alone knows
        cluster.enqueue("--report", report, code=4)
    failed = {r["row"]: r for r in cluster.records(code=4)}[3]
    assert failed["error"] == "SourceChanged"
    assert failed["former_video_id"] == first[3]["video_id"]

    cluster.enqueue("--report", "e.jsonl", "--changed", "new-video")
    assert cluster.worker("--drain").ended() == 0
    second = {r["row"]: r for r in cluster.records(code=0)}
    assert second[2]["video_id"] == first[2]["video_id"]
    assert second[3]["video_id"] != first[3]["video_id"]

    path.write_bytes(content(6, PART + 1))
    cluster.enqueue("--changed", "overwrite")
    assert cluster.worker("--drain").ended() == 0
    third = {r["row"]: r for r in cluster.records(code=0)}
    assert third[3]["video_id"] == second[3]["video_id"]
    assert cluster.server.object_bytes(third[3]["video_id"]) == content(6, PART + 1)
    assert cluster.enqueue("--json").last["done_count"] == 2
    assert cluster.server.stats.creates == 3

    path.write_bytes(b"")
    cluster.enqueue(code=4)
    path.unlink()
    cluster.enqueue(code=4)


def test_a_row_has_a_priority_of_its_own_in_the_queue(cluster: Cluster) -> None:
    cluster.files(3, size=10)
    manifest = cluster.folder / "m.csv"
    path, *rows = manifest.read_text().splitlines()
    manifest.write_text(
        "\n".join([f"{path},priority", f"{rows[0]},50", f"{rows[1]},", f"{rows[2]},-5"]) + "\n"
    )
    cluster.enqueue("--priority", "7")
    for priority in (50, 7, -5):
        assert cluster.count(f"{QUEUED} WHERE priority = {priority}") == 1
