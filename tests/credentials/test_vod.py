"""Videos of ApsaraVideo VOD: made once, and renewed with the caller's own key."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.credentials.script import (
    AGAIN,
    BROKEN,
    GONE,
    KEY,
    NEW,
    TARGET,
    VIDEO_ID,
    VOD,
    Answer,
    Vod,
    answer,
    at_vod,
    denied,
    granted,
    mezzanine,
    network,
)
from uploader.credentials import (
    AccessKeys,
    NewVideo,
    ReferenceUsed,
    VodProvider,
)
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    InvalidGrant,
    OverwriteRefused,
    PermissionDenied,
    ServiceError,
    TransportError,
    UntrustedEndpoint,
    VodupError,
)
from uploader.protocol.vod import AccessKey, VideoMeta
from uploader.protocol.wire import Response


async def test_a_video_is_made_with_one_call() -> None:
    transport = Vod(CreateUploadVideo=[granted()])
    grant = await at_vod(transport).create(NEW)
    assert (grant.video_id, grant.target) == (VIDEO_ID, TARGET)
    assert transport.actions == ["CreateUploadVideo"]
    assert transport.calls[0]["ReferenceId"] == "vodup-1"


@pytest.mark.parametrize("lost", [BROKEN, denied("InternalError", 500), Response(200, {}, b"<p>")])
async def test_a_video_whose_create_answer_was_lost_is_found_again(lost: Answer) -> None:
    transport = Vod(
        CreateUploadVideo=[lost],
        RefreshUploadVideo=[granted()],
        GetMezzanineInfo=[mezzanine("Uploading")],
    )
    grant = await at_vod(transport).create(NEW)
    assert grant.video_id == VIDEO_ID
    assert transport.actions == ["CreateUploadVideo", "RefreshUploadVideo", "GetMezzanineInfo"]
    assert transport.calls[1]["ReferenceId"] == "vodup-1"
    assert "VideoId" not in transport.calls[1]


async def test_a_video_that_was_not_made_is_made() -> None:
    transport = Vod(CreateUploadVideo=[BROKEN, granted()], RefreshUploadVideo=[GONE])
    await at_vod(transport).create(NEW)
    assert transport.actions == ["CreateUploadVideo", "RefreshUploadVideo", "CreateUploadVideo"]


async def test_a_video_of_an_earlier_run_is_looked_up_first() -> None:
    transport = Vod(RefreshUploadVideo=[granted()], GetMezzanineInfo=[mezzanine("Uploading")])
    assert (await at_vod(transport).create(AGAIN)).video_id == VIDEO_ID
    assert "CreateUploadVideo" not in transport.actions


@pytest.mark.parametrize("video", [NEW, AGAIN])
async def test_without_permission_to_query_videos_ours_is_found_by_our_own_id(
    video: NewVideo,
) -> None:
    transport = Vod(
        CreateUploadVideo=[BROKEN],
        RefreshUploadVideo=[granted()],
        GetMezzanineInfo=[denied("Forbidden.RAM", 403)],
    )
    assert (await at_vod(transport).create(video)).video_id == VIDEO_ID

    theirs = replace(video, meta=VideoMeta(reference_id="their-id"))
    with pytest.raises(PermissionDenied) as caught:
        await at_vod(transport).create(theirs)
    assert "vod:GetMezzanineInfo" in caught.value.next_step


async def test_another_refusal_of_the_query_is_no_matter_of_permissions() -> None:
    transport = Vod(
        RefreshUploadVideo=[granted()], GetMezzanineInfo=[denied("OperationDenied.Suspended", 403)]
    )
    with pytest.raises(PermissionDenied, match="OperationDenied"):
        await at_vod(transport).create(AGAIN)


async def test_a_duplicate_of_what_an_earlier_run_made_is_found() -> None:
    transport = Vod(
        CreateUploadVideo=[denied("InvalidParameter")],
        RefreshUploadVideo=[GONE, granted()],
        GetMezzanineInfo=[mezzanine("Uploading")],
    )
    assert (await at_vod(transport).create(AGAIN)).video_id == VIDEO_ID
    assert transport.actions.count("CreateUploadVideo") == 1


async def test_a_plain_refusal_is_raised_without_looking_further() -> None:
    transport = Vod(CreateUploadVideo=[denied("LengthExceededMax")])
    with pytest.raises(ConfigurationError, match="LengthExceededMax"):
        await at_vod(transport).create(NEW)
    assert transport.actions == ["CreateUploadVideo"]


async def test_a_used_reference_id_of_a_finished_video_is_reported_with_its_facts() -> None:
    transport = Vod(
        CreateUploadVideo=[denied("Odd")],
        GetMezzanineInfo=[answer(Mezzanine={"Status": "Normal", "Size": 9, "VideoId": VIDEO_ID})],
    )
    with pytest.raises(ReferenceUsed) as caught:
        await at_vod(transport).create(NEW)
    assert caught.value.video_id == VIDEO_ID
    assert caught.value.facts is not None
    assert transport.actions == ["CreateUploadVideo", "GetMezzanineInfo"]
    assert transport.calls[1]["ReferenceId"] == "vodup-1"


async def test_a_finished_video_without_its_id_leaves_the_refusal() -> None:
    transport = Vod(CreateUploadVideo=[denied("Odd")], GetMezzanineInfo=[mezzanine("Normal")])
    with pytest.raises(ServiceError, match="Odd"):
        await at_vod(transport).create(NEW)


@pytest.mark.parametrize("code", ["InvalidReferenceId.Duplicate", "InvalidParameter.ReferenceId"])
async def test_a_used_reference_id_of_a_video_that_is_gone_is_reported(code: str) -> None:
    transport = Vod(
        CreateUploadVideo=[denied(code)], GetMezzanineInfo=[GONE], RefreshUploadVideo=[GONE]
    )
    with pytest.raises(ReferenceUsed, match="a video that is gone") as caught:
        await at_vod(transport).create(NEW)
    assert (caught.value.video_id, caught.value.facts) == (None, None)


@pytest.mark.parametrize("code", ["MissingParameter", "Forbidden.RAM"])
async def test_where_an_earlier_video_cannot_be_looked_up_the_refusal_is_raised(code: str) -> None:
    transport = Vod(
        CreateUploadVideo=[denied("InvalidReferenceId.Duplicate")], GetMezzanineInfo=[denied(code)]
    )
    with pytest.raises(ServiceError, match="Duplicate") as caught:
        await at_vod(transport).create(NEW)
    assert ("vod:GetMezzanineInfo" in caught.value.next_step) == (code == "Forbidden.RAM")


async def test_a_busy_service_is_no_duplicate() -> None:
    transport = Vod(CreateUploadVideo=[denied("Throttling.User")])
    with pytest.raises(ServiceError):
        await at_vod(transport).create(NEW)
    assert set(transport.actions) == {"CreateUploadVideo"}


async def test_making_a_video_in_doubt_has_an_end() -> None:
    transport = Vod(CreateUploadVideo=[BROKEN], RefreshUploadVideo=[GONE])
    with pytest.raises(TransportError):
        await at_vod(transport).create(NEW)
    assert transport.actions.count("CreateUploadVideo") == 3


@pytest.mark.parametrize("code", ["MissingParameter", "InvalidParameter", "MissingParameter.Id"])
@pytest.mark.parametrize("video", [NEW, AGAIN], ids=["in this run", "in an earlier run"])
async def test_where_lookup_is_impossible_no_second_video_is_created(
    code: str, video: NewVideo
) -> None:
    transport = Vod(CreateUploadVideo=[BROKEN, granted()], RefreshUploadVideo=[denied(code)])
    with pytest.raises(VodupError) as caught:
        await at_vod(transport).create(video)
    assert transport.actions.count("CreateUploadVideo") == (0 if video.is_repeat else 1)
    assert "--video-id" in caught.value.next_step


async def test_what_else_keeps_a_video_from_being_looked_up_is_raised_as_it_is() -> None:
    transport = Vod(RefreshUploadVideo=[denied("Forbidden.RAM", 403)])
    with pytest.raises(PermissionDenied) as caught:
        await at_vod(transport).create(AGAIN)
    assert "console" not in caught.value.next_step


async def test_a_finished_video_is_not_overwritten_by_its_reference_id() -> None:
    transport = Vod(RefreshUploadVideo=[granted()], GetMezzanineInfo=[mezzanine("Normal")])
    with pytest.raises(OverwriteRefused) as caught:
        await at_vod(transport).create(AGAIN)
    assert caught.value.video_id == VIDEO_ID


async def test_a_video_found_again_without_its_id_is_no_find() -> None:
    transport = Vod(RefreshUploadVideo=[granted(None)])
    with pytest.raises(TransportError, match=r"^RefreshUploadVideo did not return the VideoId\."):
        await at_vod(transport).create(AGAIN)


async def test_the_callers_own_reference_id_is_used_for_the_lookup() -> None:
    transport = Vod(CreateUploadVideo=[BROKEN, granted()], RefreshUploadVideo=[GONE])
    await at_vod(transport).create(replace(NEW, meta=VideoMeta(reference_id="mine-01")))
    assert {call["ReferenceId"] for call in transport.calls} == {"mine-01"}


async def test_renewing_asks_for_the_same_video() -> None:
    transport = Vod(RefreshUploadVideo=[granted(None)])
    grant = await at_vod(transport).renew(VIDEO_ID)
    assert grant.video_id == VIDEO_ID
    assert transport.calls[0]["VideoId"] == VIDEO_ID


async def test_a_grant_for_another_video_is_not_used() -> None:
    with pytest.raises(InvalidGrant, match="not used") as caught:
        await at_vod(Vod(RefreshUploadVideo=[granted("other")])).renew(VIDEO_ID)
    assert caught.value.video_id == VIDEO_ID
    assert caught.value.next_step.startswith("Correct the grant service")


async def test_throttling_is_waited_out() -> None:
    transport = Vod(RefreshUploadVideo=[denied("Throttling.User"), granted()])
    await at_vod(transport).renew(VIDEO_ID)
    nonces = {request.headers["x-acs-signature-nonce"] for request in transport.requests}
    assert len(nonces) == 2


# --- the caller's own key ------------------------------------------------------------


def keys(*names: str, is_async: bool) -> AccessKeys:
    """A callable that returns the next key each time, the last one for ever."""
    left = list(names)

    def load() -> AccessKey:
        return AccessKey(id=left.pop(0) if len(left) > 1 else left[0], secret="secret")

    async def load_async() -> AccessKey:
        await asyncio.sleep(0)
        return load()

    return load_async if is_async else load


EXPIRED = denied("InvalidSecurityToken.Expired", 403)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_key_is_requested_once_and_again_when_it_is_refused(is_async: bool) -> None:
    transport = Vod(RefreshUploadVideo=[granted(), granted(), EXPIRED, granted()])
    source = at_vod(transport, keys("id-1", "id-2", is_async=is_async))
    for _ in range(3):
        await source.renew(VIDEO_ID)
    assert transport.key_ids == ["id-1"] * 3 + ["id-2"]


@pytest.mark.parametrize("key", [KEY, keys("id-1", is_async=False)])
async def test_the_same_key_again_is_no_renewal(key: AccessKey | AccessKeys) -> None:
    transport = Vod(RefreshUploadVideo=[EXPIRED])
    with pytest.raises(CallerNotAuthenticated) as caught:
        await at_vod(transport, key).renew(VIDEO_ID)
    assert len(transport.calls) == 1
    assert (caught.value.code, caught.value.request_id) == ("InvalidSecurityToken.Expired", "8906")


async def test_calls_side_by_side_renew_the_key_once() -> None:
    transport = Vod(
        RefreshUploadVideo=[EXPIRED, granted()],
        GetMezzanineInfo=[EXPIRED, mezzanine("Uploading")],
    )
    source = at_vod(transport, keys("id-1", "id-2", is_async=True))
    async with asyncio.TaskGroup() as group:
        group.create_task(source.renew(VIDEO_ID))
        group.create_task(source.facts(VIDEO_ID))
    assert sorted(transport.key_ids) == ["id-1"] * 2 + ["id-2"] * 2


async def test_what_the_callable_for_the_key_raises_becomes_ours_without_its_text() -> None:
    def fail() -> AccessKey:
        raise KeyError("canary")

    with pytest.raises(CallerNotAuthenticated, match="raised KeyError") as caught:
        await at_vod(Vod(), fail).renew(VIDEO_ID)
    assert "canary" not in str(caught.value)
    assert caught.value.next_step.startswith("Fix the callable")

    async def refuse() -> AccessKey:
        raise PermissionDenied("Not you.")

    with pytest.raises(PermissionDenied):
        await at_vod(Vod(), refuse).renew(VIDEO_ID)


async def test_an_sts_key_sends_its_token() -> None:
    transport = Vod(RefreshUploadVideo=[granted()])
    await at_vod(transport, replace(KEY, security_token="t0")).renew(VIDEO_ID)
    assert transport.requests[0].headers["x-acs-security-token"] == "t0"


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "ALIBABA_CLOUD_ACCESS_KEY_ID ALIBABA_CLOUD_ACCESS_KEY_SECRET "
        "ALIBABA_CLOUD_SECURITY_TOKEN VODUP_REGION VODUP_VOD_ENDPOINT".split()
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_key_comes_from_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", " id-1 ")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret\n")
    provider = VodProvider.from_env()
    assert provider.access_key == KEY
    assert (provider.region, provider.scope) == ("cn-shanghai", VOD)
    env.setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "t0")
    assert VodProvider.from_env().access_key == replace(KEY, security_token="t0")


def test_region_and_endpoint_come_from_the_environment_unless_given(
    env: pytest.MonkeyPatch,
) -> None:
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-1")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret")
    env.setenv("VODUP_REGION", "ap-southeast-1")
    assert VodProvider.from_env().scope == "https://vod.ap-southeast-1.aliyuncs.com"
    assert VodProvider.from_env(region="cn-beijing").scope.startswith("https://vod.cn-beijing.")
    env.setenv("VODUP_VOD_ENDPOINT", "https://vod-vpc.cn-beijing.aliyuncs.com")
    assert VodProvider.from_env().scope == "https://vod-vpc.cn-beijing.aliyuncs.com"
    assert VodProvider.from_env(endpoint=VOD).scope == VOD


@pytest.mark.parametrize("name", ["ID", "SECRET"])
def test_half_a_key_is_an_error_before_any_request(env: pytest.MonkeyPatch, name: str) -> None:
    env.setenv(f"ALIBABA_CLOUD_ACCESS_KEY_{name}", "x")
    with pytest.raises(CallerNotAuthenticated, match="Only one"):
        VodProvider.from_env()


ASK_THE_CHAIN = """
import asyncio, sys
from uploader import VodProvider, VodupError

async def main():
    load = VodProvider.from_env(credentials=sys.argv[1] or None).access_key
    for _ in range(2):
        key = await load()
        print(key.id, key.secret, key.security_token)

try:
    asyncio.run(main())
except VodupError as error:
    print(type(error).__name__, error.message)
"""


def answer_of_the_chain(home: Path, source: str = "", **variables: str) -> str:
    """In a process of its own: the chain's package reads the environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if "ALIBABA" not in name}
    env = kept | {"HOME": str(home), "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"} | variables
    argv = [sys.executable, "-c", ASK_THE_CHAIN, source]
    done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
    assert done.stderr == ""  # the package prints the tracebacks of all that it tries
    return done.stdout


def test_the_default_chain_reads_its_file(tmp_path: Path) -> None:
    file = tmp_path / ".alibabacloud" / "credentials.ini"
    file.parent.mkdir()
    file.write_text(
        "[default]\nenable = true\ntype = access_key\n"
        "access_key_id = LTAI-file\naccess_key_secret = secret-file\n"
    )
    assert answer_of_the_chain(tmp_path) == "LTAI-file secret-file None\n" * 2


def test_a_default_chain_that_finds_nothing_is_reported(tmp_path: Path) -> None:
    message = answer_of_the_chain(tmp_path)
    words = "No AccessKey found in the default credential chain"
    assert message.startswith(f"CallerNotAuthenticated {words}")


ALIYUN = {
    "current": "work",
    "profiles": [
        {"name": "work", "mode": "AK", "region_id": "cn-hangzhou", "access_key_id": "LTAI-work",
         "access_key_secret": "secret-work"},
        {"name": "beijing", "mode": "AK", "region_id": "cn-beijing", "access_key_id": "LTAI-bj",
         "access_key_secret": "secret-bj"},
        {"name": "none", "mode": "AK", "region_id": "", "access_key_id": "",
         "access_key_secret": ""},
    ],
}  # fmt: skip


@pytest.fixture
def aliyun(tmp_path: Path, env: pytest.MonkeyPatch) -> Path:
    """A home with a config file of the aliyun CLI."""
    file = tmp_path / ".aliyun" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(ALIYUN))
    for name in ("VODUP_REGION", "ALIBABA_CLOUD_PROFILE", "ALIBABA_CLOUD_REGION_ID"):
        env.delenv(name, raising=False)
    env.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "key"), [("aliyun", "LTAI-work"), ("aliyun:beijing", "LTAI-bj")]
)
def test_a_source_is_the_only_one_that_is_used(aliyun: Path, source: str, key: str) -> None:
    secret = key.replace("LTAI", "secret")
    in_env = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "other", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "x"}
    assert answer_of_the_chain(aliyun, source, **in_env) == f"{key} {secret} None\n" * 2


@pytest.mark.parametrize("source", ["aliyun:none", "aliyun:unknown", "oidc"])
def test_a_source_without_a_key_is_reported(aliyun: Path, source: str) -> None:
    kind = source.partition(":")[0]
    message = answer_of_the_chain(aliyun, source)
    assert message.startswith(f"CallerNotAuthenticated No AccessKey found in --credentials {kind} ")


def test_env_is_a_source_of_its_own(env: pytest.MonkeyPatch) -> None:
    with pytest.raises(CallerNotAuthenticated, match="is not set"):
        VodProvider.from_env(credentials="env")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-1")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret-1")
    assert isinstance(VodProvider.from_env(credentials="env").access_key, AccessKey)
    for source in ("ecs", "ecs:role", "oidc"):  # read when the first call is signed
        assert callable(VodProvider.from_env(credentials=source).access_key)


@pytest.mark.parametrize("source", ["file", "env:x", "oidc:x", "ECS", "default", ":x"])
def test_what_is_no_source_is_refused(env: pytest.MonkeyPatch, source: str) -> None:
    with pytest.raises(ConfigurationError, match="no source") as caught:
        VodProvider.from_env(credentials=source)
    assert "aliyun:PROFILE" in caught.value.next_step


def test_the_region_is_that_of_the_profile_of_the_aliyun_cli(
    aliyun: Path, env: pytest.MonkeyPatch
) -> None:
    def region(source: str | None, **given: str) -> str:
        return VodProvider.from_env(credentials=source, **given).region  # type: ignore[arg-type]

    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id-1")
    env.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret-1")
    assert region("aliyun:beijing") == "cn-beijing"
    assert region("aliyun") == "cn-shanghai"  # VOD serves cn-hangzhou there
    assert region("aliyun:none") == region("aliyun:unknown") == region("ecs") == "cn-shanghai"
    assert region(None) == "cn-shanghai"
    assert region("aliyun:beijing", region="us-west-1") == "us-west-1"
    env.setenv("ALIBABA_CLOUD_PROFILE", "beijing")
    assert region("aliyun") == "cn-beijing"
    env.setenv("ALIBABA_CLOUD_REGION_ID", "ap-southeast-1")
    assert (region("aliyun"), region("env"), region(None)) == (
        "cn-beijing",
        "ap-southeast-1",
        "ap-southeast-1",
    )
    env.setenv("ALIBABA_CLOUD_REGION_ID", "cn-hangzhou")
    assert region("env") == "cn-shanghai"
    env.delenv("ALIBABA_CLOUD_REGION_ID")
    assert region(None) == "cn-shanghai"  # the keys are not of the profile
    env.delenv("ALIBABA_CLOUD_ACCESS_KEY_ID")
    env.delenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET")
    assert region(None) == "cn-beijing"
    env.setenv("VODUP_REGION", "cn-shenzhen")
    assert region("aliyun") == "cn-shenzhen"
    env.delenv("VODUP_REGION")
    (aliyun / ".aliyun" / "config.json").write_text("[]")
    assert region("aliyun") == "cn-shanghai"


def test_without_a_key_and_without_the_default_chain_there_is_advice(
    env: pytest.MonkeyPatch,
) -> None:
    env.setitem(sys.modules, "alibabacloud_credentials.client", None)
    with pytest.raises(CallerNotAuthenticated) as caught:
        VodProvider.from_env()
    assert "vodup[credentials]" in caught.value.next_step
    with pytest.raises(ConfigurationError, match="--credentials ecs needs") as named:
        VodProvider.from_env(credentials="ecs")
    assert named.value.next_step == "Run `pip install 'vodup[credentials]'`."


def test_no_key_is_ever_shown() -> None:
    shown = repr(VodProvider(AccessKey(id="id-1", secret="canary", security_token="canary")))
    assert "canary" not in shown
    assert "id-1" not in shown


@pytest.mark.parametrize("endpoint", ["http://vod.cn-shanghai.aliyuncs.com", "https://evil.com"])
def test_vod_calls_go_to_vod_alone(endpoint: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        VodProvider(KEY, endpoint=endpoint).connect(network(Vod()))
