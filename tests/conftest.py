"""What every test shares."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Alibaba Cloud's credential chain would otherwise ask 100.100.100.200 and wait for an answer.
os.environ["ALIBABA_CLOUD_ECS_METADATA_DISABLED"] = "true"

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that takes long tells of a machine with other things to do, not of our code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

pytest_plugins = ["tests.faults.figures", "tests.postgres"]


@pytest.fixture(autouse=True)
def _logging_is_left_as_found() -> Iterator[None]:
    """A test that turns the process's logging down would blind the tests after it."""
    before = logging.root.level, logging.root.manager.disable
    yield
    assert (logging.root.level, logging.root.manager.disable) == before
