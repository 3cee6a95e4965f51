"""Fixtures for other projects' tests, found by pytest where vodup is installed.

`vodup_devserver` is a running server of its own for each test. Options and faults come from the
marker of that name::

    @pytest.mark.vodup_devserver(credential_ttl_s=2, faults=[{"action": "reset", "part": 3}])
    def test_my_uploader(vodup_devserver): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import DevServer


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "vodup_devserver(faults=[], **options): how the server of this test behaves, with the "
        "fields of DevServerOptions and a list of faults",
    )


@pytest.fixture
def vodup_devserver(request: pytest.FixtureRequest) -> Iterator[DevServer]:
    """Run a local OSS and ApsaraVideo VOD during one test.

    `vod_endpoint` and `oss_endpoint` are its addresses, `access_key_id` and `access_key_secret`
    the caller's key, `env` the variables that make vodup use it. `stats`, `videos` and
    `object_bytes(video_id)` say what arrived.
    """
    from .options import DevServerOptions
    from .threaded import ThreadedDevServer

    options: dict[str, object] = {}
    for marker in reversed([*request.node.iter_markers("vodup_devserver")]):  # the nearest wins
        options |= marker.kwargs
    faults = options.pop("faults", ())
    with ThreadedDevServer(DevServerOptions(**options), faults) as running:  # type: ignore[arg-type]
        yield running.server
