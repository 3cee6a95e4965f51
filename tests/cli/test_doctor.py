"""What `doctor` finds out about the network, over a scripted one."""

from __future__ import annotations

import dataclasses
from urllib.parse import urlsplit

import pytest

from tests.clocks import SkippingClock
from uploader.cli import doctor, run
from uploader.cli.doctor import Finding
from uploader.cli.flags import DoctorFlags
from uploader.credentials import Network
from uploader.devserver import Fault
from uploader.errors import TransportError
from uploader.network import with_endpoints
from uploader.options import UploadOptions
from uploader.pace import Pace
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.wire import Response, SignedRequest
from uploader.session import RetryPolicy

from .conftest import Cli

ORIGIN = "https://vod.cn-shanghai.aliyuncs.com"


class Hosts:
    """Answers of hosts by name; the others do not answer."""

    def __init__(self, machine_region: str | None, *names: str) -> None:
        self.machine_region, self.names = machine_region, names

    async def send(self, request: SignedRequest, *, answer_timeout_s: float) -> Response:
        assert "authorization" not in request.headers
        parts = urlsplit(request.url)
        if parts.hostname == "100.100.100.200" and self.machine_region:
            text = self.machine_region if parts.path.endswith("region-id") else "token"
            return Response(200, {}, text.encode())
        name = (parts.hostname or "").removeprefix("vodup-doctor.")
        if name not in self.names:
            raise TransportError("Nothing answers.", is_sent=False)
        return Response(403, {"x-oss-request-id": "1"}, b"")


async def found_at_oss(choice: str | None, hosts: Hosts) -> Finding:
    clock = SkippingClock()
    network = Network(hosts, Pace(clock=clock), clock, RetryPolicy(), TrustPolicy())
    network = with_endpoints(network, UploadOptions(oss_endpoint=choice))
    return await doctor._reach_oss(DoctorFlags(oss_endpoint=choice), ORIGIN, network)


PUBLIC, INTERNAL = "oss-cn-shanghai.aliyuncs.com", "oss-cn-shanghai-internal.aliyuncs.com"


@pytest.mark.parametrize(
    ("choice", "machine_region", "host", "words"),
    [
        (None, None, PUBLIC, "--oss-endpoint not given"),
        ("auto", "cn-shanghai", INTERNAL, "auto, this machine is in cn-shanghai"),
        ("auto", "cn-beijing", PUBLIC, "auto, this machine is in cn-beijing"),
        ("auto", None, PUBLIC, "auto, this is no ECS instance"),
        ("internal", None, INTERNAL, "--oss-endpoint internal"),
    ],
)
async def test_doctor_reports_which_endpoint_of_oss_is_used(
    choice: str | None, machine_region: str | None, host: str, words: str
) -> None:
    found = await found_at_oss(choice, Hosts(machine_region, PUBLIC, INTERNAL))
    assert (found.name, found.status) == ("OSS", "ok")
    assert found.detail.startswith(f"https://{host} answers in")
    assert found.detail.endswith(words)


async def test_doctor_reports_a_chosen_endpoint_that_does_not_answer() -> None:
    found = await found_at_oss("internal", Hosts(None, PUBLIC))
    assert (found.status, found.code) == ("failed", run.TEMPORARY)
    assert found.detail == f"https://vodup-doctor.{INTERNAL} does not answer."


# --- permissions ------------------------------------------------------------------------

UPLOAD_POLICY = ["CreateUploadVideo", "RefreshUploadVideo", "CreateUploadImage"]
IMS_POLICY = ["CreateUploadMedia", "RefreshUploadMedia"]


@pytest.mark.parametrize(
    ("service", "policy", "code", "statuses"),
    [
        ("vod", None, 0, ["ok", "ok", "ok"]),
        ("vod", UPLOAD_POLICY, 0, ["ok", "ok", "warning"]),
        ("vod", ["CreateUploadVideo"], 3, ["ok", "failed", "warning"]),
        ("ims", IMS_POLICY, 0, ["ok", "ok", "warning"]),
    ],
)
def test_doctor_lists_each_permission(
    cli: Cli, service: str, policy: list[str] | None, code: int, statuses: list[str]
) -> None:
    created = len(cli.server.stats.created_with)
    cli.server.set_options(allowed_vod_operations=policy)
    try:
        env = {"VODUP_IMS_ENDPOINT": cli.server.vod_endpoint}
        ended = cli.run("doctor", "--json", "--service", service, env=env)
    finally:
        cli.server.set_options(allowed_vod_operations=None)

    found = {line["name"]: line for line in ended.lines}
    assert ended.code == code, ended.out
    assert found["AccessKey"]["status"] == "ok"
    prefix = {"vod": "vod:", "ims": "ice:"}[service]
    permissions = [line for name, line in found.items() if name.startswith(prefix)]
    assert [line["status"] for line in permissions] == statuses
    assert permissions[0]["detail"].startswith("not checked")
    assert len(cli.server.stats.created_with) == created


def test_doctor_distinguishes_a_key_from_an_account_without_vod(cli: Cli) -> None:
    refused = Fault(action="error", operation="RefreshUploadVideo", code="OperationDenied")
    cli.server.faults.replace([dataclasses.replace(refused, status=403)])

    ended = cli.run("doctor")

    assert ended.code == 3
    assert "VOD is not activated" in ended.out
