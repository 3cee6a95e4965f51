"""What other projects' tests get: a pytest fixture, and a record of every request."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

from uploader.devserver import DevServerOptions, ThreadedDevServer

from .clients import PART, Vod, start_upload

THEIR_TESTS = """
import pytest

pytestmark = pytest.mark.vodup_devserver(region="cn-beijing", credential_ttl_s=2)

@pytest.mark.vodup_devserver(region="cn-hangzhou", faults=[{"action": "reset"}])
def test_nearest_marker(vodup_devserver):
    options = vodup_devserver.backend.options
    assert (options.region, options.credential_ttl_s) == ("cn-hangzhou", 2)
    assert vodup_devserver.faults.unconsumed
    assert vodup_devserver.env["VODUP_VOD_ENDPOINT"] == vodup_devserver.vod_endpoint

def test_a_server_of_its_own(vodup_devserver):
    assert not vodup_devserver.videos
    assert vodup_devserver.backend.options.region == "cn-beijing"
"""


def test_the_fixture_is_found_where_vodup_is_installed(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(THEIR_TESTS)
    plugin = ["-p", "uploader.devserver.pytest_plugin"]  # as the entry point names it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--strict-markers", *plugin, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_every_request_is_recorded_without_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with ThreadedDevServer(DevServerOptions(record=file)) as running:
        oss = start_upload(Vod(running.server))
        upload_id = oss.initiate()
        oss.put_part(upload_id, 1, PART)
        oss.call("GET", {"acl": ""})
        secrets = running.server.backend.secrets()
    text = file.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["operation"], line["status"]) for line in lines] == [
        ("CreateUploadVideo", 200),
        ("InitiateMultipartUpload", 200),
        ("UploadPart", 200),
        ("GetObject", 403),
    ]
    assert lines[2]["body_bytes"] == len(PART)
    assert ["uploadId", upload_id] in lines[2]["query"]
    assert ["x-oss-security-token", "***"] in [[n.lower(), v] for n, v in lines[2]["headers"]]
    assert not any(secret in text for secret in secrets)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_plugin_costs_other_projects_nothing() -> None:
    code = (
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import uploader.devserver.pytest_plugin\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        ["uploader", "uploader.devserver", "uploader.devserver.pytest_plugin"]
    )
