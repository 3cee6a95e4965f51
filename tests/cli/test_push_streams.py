"""`vodup push` of pipes, commands, URLs and growing files, killed and run again."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from uploader.devserver import DevServer

from .conftest import MIB, SLOWLY, VODUP, Cli, Ended, Running, is_under_way

PART = 100 * 1024
DATA = bytes(range(256)) * (12 * 1024) + b"the end"
"""3 MiB; the `slow_server` of these tests takes three seconds for them."""

SMALL = (*SLOWLY, "--part-size", str(PART), "--memory", "1M")


@pytest.fixture
def slow_server(slow_server: DevServer) -> DevServer:
    """At 1 MiB/s: what is killed after two parts must not have come to its end meanwhile."""
    slow_server.set_options(bandwidth=MIB)
    return slow_server


def piped(cli: Cli, *words: str, data: bytes = DATA) -> Ended:
    """Run with `data` on standard input."""
    done = subprocess.run(
        [*VODUP, *words], cwd=cli.folder, env=cli.env, input=data, capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def started(cli: Cli, *words: str, data: Path) -> Running:
    """Start with a file's bytes coming through a pipe."""
    producer = subprocess.Popen(["cat", str(data)], stdout=subprocess.PIPE)
    process = subprocess.Popen(
        [*VODUP, *words], cwd=cli.folder, env=cli.env, stdin=producer.stdout,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert producer.stdout is not None
    producer.stdout.close()
    running = Running(process)
    running.producer = producer  # type: ignore[attr-defined]
    return running


def killed(running: Running, *, when: Callable[[dict[str, Any]], bool] = is_under_way) -> None:
    running.until(when)
    running.process.send_signal(signal.SIGKILL)
    running.ended()
    running.producer.wait(10)  # type: ignore[attr-defined]


@contextmanager
def serving_in_thread(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """A plain web server without ranges; its URL, and the requests it got."""
    requests: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/movie.mp4?token=SECRET", requests
        server.shutdown()
        thread.join()


def movie(cli: Cli) -> Path:
    path = cli.folder / "content"
    path.write_bytes(DATA)
    return path


def test_standard_input_is_uploaded(cli: Cli) -> None:
    ended = piped(cli, "push", "-", "--file-name", "movie.mp4", "--json")

    assert ended.code == 0, ended.err
    assert cli.server.object_bytes(ended.last["video_id"]) == DATA
    assert (ended.last["verified_by"], ended.last["size"]) == ("crc64", len(DATA))
    assert ended.lines[0]["size"] == 0, "unknown yet"


def test_a_file_on_standard_input_is_uploaded(cli: Cli) -> None:
    with movie(cli).open("rb") as file:
        done = subprocess.run(
            [*VODUP, "push", "-", "--file-name", "movie.mp4", "-q"],
            cwd=cli.folder, env=cli.env, stdin=file, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert cli.server.object_bytes(done.stdout.strip()) == DATA


def test_standard_input_without_a_file_name_is_a_usage_error(cli: Cli) -> None:
    ended = piped(cli, "push", "-")
    assert ended.code == 2
    assert "Add --file-name" in ended.err


def test_flags_that_contradict_each_other_are_usage_errors(cli: Cli) -> None:
    assert cli.run("push").code == 2
    assert cli.run("push", "a.mp4", "--pipe-command", "cat b").code == 2
    assert cli.run("push", "-", "--pipe-command", "'", "--file-name", "movie.mp4").code == 2
    both = ("--memory", "1M", "--spool", "spool", "--file-name", "movie.mp4")
    assert cli.run("push", "-", *both).code == 2


def test_an_empty_pipe_is_4(cli: Cli) -> None:
    ended = piped(cli, "push", "-", "--file-name", "movie.mp4", data=b"")
    assert ended.code == 4
    assert "movie.mp4 is empty" in ended.err


def test_a_killed_push_resumes_with_the_same_producer(cli: Cli, slow_server: DevServer) -> None:
    words = ("push", "-", "--file-name", "movie.mp4", "--key", cli.folder.name, *SMALL)
    content = movie(cli)
    twice = slow_server.stats.bytes_sent_twice
    killed(started(cli, *words, data=content))
    slow_server.set_options(bandwidth=None)

    ended = piped(cli, *words)

    assert ended.code == 0, ended.err
    assert slow_server.object_bytes(ended.last["video_id"]) == DATA
    assert ended.last["resumed_part_count"] >= 2
    assert slow_server.stats.bytes_sent_twice - twice <= 2 * PART


@pytest.mark.parametrize("kind", ["http", "fsspec"])
def test_a_killed_push_of_a_url_resumes(cli: Cli, slow_server: DevServer, kind: str) -> None:
    with serving_in_thread(DATA) as (url, _):
        if kind == "fsspec":
            url = f"file://{movie(cli).rename(cli.folder / 'movie.mp4')}"
        words = ("push", url, "--allow-private-sources", *SLOWLY, "--part-size", str(PART))
        running = cli.start(*words)
        running.until(is_under_way)
        running.process.send_signal(signal.SIGKILL)
        running.ended()
        twice = slow_server.stats.bytes_sent_twice
        slow_server.set_options(bandwidth=None)

        ended = cli.run(*words)

    assert ended.code == 0, ended.err
    assert slow_server.object_bytes(ended.last["video_id"]) == DATA
    assert ended.last["resumed_part_count"] >= 2
    assert slow_server.stats.bytes_sent_twice - twice <= 2 * PART


def test_an_interrupted_pipe_prints_how_to_resume(cli: Cli, slow_server: DevServer) -> None:
    running = started(cli, "push", "-", "--file-name", "movie.mp4", *SMALL, data=movie(cli))
    running.until(is_under_way)
    running.process.send_signal(signal.SIGINT)
    ended = running.ended()
    running.producer.wait(10)  # type: ignore[attr-defined]
    assert ended.code == 130
    found = re.search(r"with --key (\S+), and send the data from its start", ended.last["message"])
    assert found is not None, ended.last["message"]
    slow_server.set_options(bandwidth=None)

    again = piped(cli, "push", "-", "--file-name", "movie.mp4", "--key", found[1], *SMALL)

    assert again.code == 0, again.err
    assert again.last["video_id"] == ended.last["video_id"]


def test_a_different_producer_is_refused(cli: Cli, slow_server: DevServer) -> None:
    words = ("push", "-", "--file-name", "movie.mp4", "--key", cli.folder.name, *SMALL)
    killed(started(cli, *words, data=movie(cli)))
    completed = slow_server.stats.completes

    ended = piped(cli, *words, data=DATA[::-1])

    assert ended.code == 4
    assert ended.last["error"] == "SourceChanged"
    assert slow_server.stats.completes == completed


def test_a_spool_resumes_without_the_producer(cli: Cli, slow_server: DevServer) -> None:
    small = (*SLOWLY, "--part-size", str(PART))
    words = ("push", "-", "--file-name", "movie.mp4", "--spool", "spool", *small)
    running = started(cli, *words, data=movie(cli))
    running.until(is_under_way)
    running.producer.wait(10)  # type: ignore[attr-defined]
    journal = cli.folder / "spool" / "movie.mp4.spool" / "journal"
    while '["end"' not in journal.read_text():
        time.sleep(0.01)
    running.process.send_signal(signal.SIGKILL)
    running.ended()
    slow_server.set_options(bandwidth=None)

    ended = piped(cli, *words, data=b"")

    assert ended.code == 0, ended.err
    assert slow_server.object_bytes(ended.last["video_id"]) == DATA
    assert ended.last["resumed_part_count"] >= 2
    assert os.listdir(cli.folder / "spool") == []


def test_resume_of_a_stream_needs_its_producer(cli: Cli, slow_server: DevServer) -> None:
    key = cli.folder.name
    words = ("push", "-", "--file-name", "movie.mp4", "--key", key, *SMALL)
    killed(started(cli, *words, data=movie(cli)))

    ended = cli.run("resume", key, "--json")

    assert ended.code == 4
    assert ended.last["error"] == "SourceNotRepeatable"
    assert not ended.last["resumable"]
    assert f"--key {key}" in ended.last["next_step"]


def test_a_url_of_a_private_address_is_refused_and_shown_without_its_query(cli: Cli) -> None:
    ended = cli.run("push", "http://127.0.0.1:9/movie.mp4?token=SECRET", "--json")

    assert ended.code == 7
    assert ended.last["error"] == "PolicyError"
    assert "--allow-private-sources" in ended.last["next_step"]
    assert "SECRET" not in ended.out + ended.err


def test_a_url_is_uploaded_where_a_flag_allows_it_also_from_a_manifest(cli: Cli) -> None:
    with serving_in_thread(DATA) as (url, requests):
        ended = cli.run("push", url, "--allow-private-sources", "--json")
        assert ended.code == 0, ended.err
        assert cli.server.object_bytes(ended.last["video_id"]) == DATA
        assert "SECRET" not in ended.out + ended.err

        rows = [{"path": url, "key": "from-a-manifest"}, {"path": "file:///etc/passwd"}]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (cli.folder / "rows.jsonl").write_text(lines)
        del requests[:]
        words = ("ingest", "rows.jsonl", "--report", "done.jsonl", "--json", "--retries", "0")
        refused = cli.run(*words)
        assert requests == [], "a row cannot allow it"
        codes = {line["row"]: line["exit_code"] for line in refused.lines if "exit_code" in line}
        assert codes == {1: 7, 2: 2}

        allowed = cli.run(*words, "--allow-private-sources")
        [done] = [line for line in allowed.lines if line["type"] == "row.done"]
        assert cli.server.object_bytes(done["video_id"]) == DATA


def test_a_killed_push_of_a_growing_file_resumes(cli: Cli, slow_server: DevServer) -> None:
    path, done = cli.folder / "recording.mp4", cli.folder / "done"
    path.write_bytes(DATA[: 2 * MIB])
    small = (*SLOWLY, "--part-size", str(PART))
    words = ("push", "--follow", path.name, "--until-file", "done", *small)
    running = cli.start(*words)
    running.until(is_under_way)
    running.process.send_signal(signal.SIGKILL)
    running.ended()
    twice = slow_server.stats.bytes_sent_twice
    with path.open("ab") as file:
        file.write(DATA[2 * MIB :])
    done.touch()
    slow_server.set_options(bandwidth=None)

    ended = cli.run(*words)

    assert ended.code == 0, ended.err
    assert slow_server.object_bytes(ended.last["video_id"]) == DATA
    assert ended.last["resumed_part_count"] >= 2
    assert slow_server.stats.bytes_sent_twice - twice <= 2 * PART


def test_flags_of_follow_without_follow_are_usage_errors(cli: Cli) -> None:
    assert cli.run("push", "a.mp4", "--until-idle", "3").code == 2
    assert cli.run("push", "-", "--follow", "--file-name", "a.mp4").code == 2
    assert cli.run("push", "--follow", "a.mp4", "--until-exit", "nobody").code == 2


def test_the_output_of_a_command_counts_only_with_exit_status_0(cli: Cli) -> None:
    content = movie(cli)
    completed = cli.server.stats.completes
    fails = f"{sys.executable} -c \"import sys; print('x' * {MIB}); sys.exit(7)\""

    ended = cli.run("push", "--pipe-command", fails, "--file-name", "movie.mp4", "--json")
    assert ended.code == 4
    assert "failed with exit status 7" in ended.last["message"]
    assert cli.server.stats.completes == completed

    command = f"cat '{content}'"
    ended = cli.run("push", "--pipe-command", command, "--file-name", "movie.mp4", "--json")
    assert ended.code == 0, ended.err
    assert cli.server.object_bytes(ended.last["video_id"]) == DATA


def test_a_command_has_an_exit_status_also_where_the_parent_ignores_sigchld(cli: Cli) -> None:
    words = ["push", "--pipe-command", "head -c 300000 /dev/zero", "--file-name", "a.mp4"]
    ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    parent = f"import os, signal, sys; {ignore}; os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", parent, *VODUP, *words, "--json"],
        cwd=cli.folder, env=cli.env, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
