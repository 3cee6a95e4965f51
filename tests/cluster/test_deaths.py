"""Workers that are killed, frozen or stopped: every row ends once, little is sent again."""

from __future__ import annotations

import signal
import time

import pytest

from tests.cluster.conftest import PART, Cluster, acked_parts, until_under_way
from tests.waiting import is_stopped, wait_until
from uploader.devserver import DevServer

SIZE = 12 * PART
IN_FLIGHT = 2 * PART
"""Of one worker: its connections times a part."""


@pytest.fixture
def server(server: DevServer) -> DevServer:
    """Slow enough to be killed in the middle."""
    server.set_options(connection_bandwidth=4 * PART)
    return server


def test_another_machine_resumes_the_rows_of_a_killed_worker(cluster: Cluster) -> None:
    cluster.files(2, size=SIZE)
    cluster.enqueue()
    first = cluster.worker(node="one")
    until_under_way(cluster)
    first.kill()
    cluster.server.set_options(connection_bandwidth=None)
    second = cluster.worker("--drain", node="two")
    assert second.ended() == 0, second.output
    cluster.check(2, size=SIZE, resent=IN_FLIGHT)


def test_sigterm_gives_rows_back_and_keeps_their_parts(cluster: Cluster) -> None:
    cluster.files(2, size=SIZE)
    cluster.enqueue()
    # With a heartbeat too long to wait for: a row that is not given back would stay there.
    first = cluster.worker("--grace", "0", "--heartbeat", "600", node="one")
    until_under_way(cluster)
    first.send(signal.SIGTERM)
    assert first.ended() == 0, first.output
    assert cluster.count("SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'") == 2
    assert cluster.count("SELECT count(*) FROM vodup_lease") == 0
    cluster.server.set_options(connection_bandwidth=None)
    second = cluster.worker("--drain", "--heartbeat", "600", node="two")
    assert second.ended() == 0, second.output
    cluster.check(2, size=SIZE, resent=IN_FLIGHT)


def test_a_stopping_worker_finishes_rows_within_its_grace_and_takes_no_more(
    cluster: Cluster,
) -> None:
    cluster.files(5, size=4 * PART)
    cluster.enqueue()
    worker = cluster.worker("--grace", "60", node="one")
    until_under_way(cluster, parts=1)
    worker.send(signal.SIGTERM)
    assert worker.ended() == 0, worker.output
    done = cluster.count("SELECT count(*) FROM vodup_job WHERE status = 'done'")
    assert 1 <= done <= 3
    assert cluster.left() == 5 - done
    assert cluster.count("SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'") == 0


def test_a_stopping_worker_still_sends_heartbeats(cluster: Cluster) -> None:
    cluster.files(1, size=18 * PART)
    cluster.enqueue()
    stopping = cluster.worker("--grace", "60", node="one")
    until_under_way(cluster, parts=1)
    stopping.send(signal.SIGTERM)
    other = cluster.worker(node="two")
    assert stopping.ended() == 0, stopping.output  # much later than after three beats
    wait_until(lambda: other.is_ready)
    other.send(signal.SIGTERM)
    assert other.ended() == 0, other.output
    assert "is already being uploaded by" not in other.output, "its row was given to another worker"
    cluster.check(1, size=18 * PART, resent=0)


def test_a_worker_frozen_beyond_its_lease_changes_nothing_when_it_wakes(cluster: Cluster) -> None:
    cluster.files(1, size=SIZE)
    cluster.enqueue()
    frozen = cluster.worker(node="one")
    until_under_way(cluster)
    frozen.send(signal.SIGSTOP)
    wait_until(lambda: is_stopped(frozen.process.pid))
    second = cluster.worker(node="two")
    wait_until(lambda: acked_parts(cluster) >= 8)
    frozen.send(signal.SIGCONT)  # while the other one is at it
    wait_until(lambda: cluster.left() == 0)
    frozen.send(signal.SIGTERM)
    second.send(signal.SIGTERM)
    assert frozen.ended() == 0, frozen.output
    assert second.ended() == 0, second.output
    # The frozen one was cut off in the middle of its parts, and sends no others.
    cluster.check(1, size=SIZE, resent=IN_FLIGHT)


def test_rows_of_a_dead_worker_are_given_back_while_all_slots_are_busy(cluster: Cluster) -> None:
    cluster.files(2, size=40 * PART)
    cluster.enqueue()
    busy = cluster.worker("--files", "1", node="one")
    wait_until(lambda: cluster.count("SELECT count(*) FROM vodup_lease") == 1)
    dying = cluster.worker("--files", "1", node="two")
    wait_until(lambda: cluster.count("SELECT count(*) FROM vodup_lease") == 2)
    dying.kill()
    given_back = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'"
    wait_until(lambda: cluster.count(given_back) == 1)
    assert cluster.left() == 2, "the busy one was not busy any more"
    assert busy.process.poll() is None


def test_a_row_that_the_queue_wrongly_assigns_to_us_is_given_back(cluster: Cluster) -> None:
    """The answer to a fetch may be lost: then a job is called running and no worker has it."""
    worker = cluster.worker(node="one")
    wait_until(lambda: worker.is_ready)
    wait_until(lambda: cluster.count("SELECT count(*) FROM procrastinate_workers") == 1)
    cluster.files(1, size=PART)
    cluster.execute(
        "ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER"
    )  # it gets no notification
    cluster.enqueue()
    cluster.execute(
        "UPDATE procrastinate_jobs SET status = 'doing', "
        "worker_id = (SELECT id FROM procrastinate_workers)"
    )
    cluster.execute("ALTER TABLE procrastinate_jobs ENABLE TRIGGER USER")
    wait_until(lambda: cluster.left() == 0)
    cluster.check(1, size=PART, resent=0)


def kill_often(cluster: Cluster, *, seconds: float, count: int, every_s: float = 2.0) -> None:
    """Four workers on four machines; again and again one is killed and another one started."""
    cluster.files(count, size=SIZE)
    cluster.enqueue()
    workers = [cluster.worker(node=f"n{number}") for number in range(4)]
    ends_at = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < ends_at:
        time.sleep(every_s)
        victim = workers.pop(0)
        victim.kill()
        kills += 1
        workers.append(cluster.worker(node=f"n{3 + kills}"))
    assert cluster.left(), "everything had ended before the last kill"
    cluster.server.set_options(connection_bandwidth=None)
    wait_until(lambda: cluster.left() == 0, within_s=90)
    wait_until(lambda: all(worker.is_ready for worker in workers))
    for worker in workers:
        worker.send(signal.SIGTERM)
    for worker in workers:
        assert worker.ended() == 0, worker.output
    cluster.check(count, size=SIZE, resent=kills * IN_FLIGHT)


def test_four_workers_one_killed_every_two_seconds(cluster: Cluster) -> None:
    kill_often(cluster, seconds=6, count=40)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_four_workers_one_killed_every_two_seconds_for_half_a_minute(cluster: Cluster) -> None:
    kill_often(cluster, seconds=30, count=120)
