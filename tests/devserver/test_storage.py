"""The devserver's own memory, which tests read from their threads while it works in its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from uploader.devserver.storage import Storage, StoredObject


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads that take turns far more often than they would."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("switching")
def test_two_threads_that_ask_the_same_get_their_own_answers(tmp_path: Path) -> None:
    wrong: list[object] = []

    def call(storage: Storage, step: int) -> None:
        for turn in range(3000):
            key = str(turn * step % 50)
            try:
                found = storage.object("bucket", key)
            except Exception as error:
                wrong.append(error)
            else:
                if found is None or found.object_key != key:
                    wrong.append(found)

    with closing(Storage(tmp_path)) as storage:
        for number in range(50):
            storage.save_object(
                StoredObject("bucket", str(number), 1, "E", 7, "Normal", "", 0.0, (("f", 1),))
            )
        threads = [threading.Thread(target=call, args=(storage, step)) for step in (7, 11, 13)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
