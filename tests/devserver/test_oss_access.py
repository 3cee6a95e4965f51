"""Who OSS lets in: signature, token, expiry, date, region, policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uploader.devserver import DevServer

from .clients import PART, Oss, Vod, granted, send, start_upload, with_version


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_both_signature_versions_of_oss2_are_accepted(oss: Oss, version: str) -> None:
    assert with_version(oss, version).initiate()


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_a_wrong_secret_does_not_match(oss: Oss, version: str) -> None:
    reply = replace(oss, secret="x" * 44, version=version).call("POST", {"uploads": ""})
    assert (reply.status, reply.code) == (403, "SignatureDoesNotMatch")
    assert reply.headers["x-oss-ec"] == "0002-00000040"
    assert reply.element("OSSAccessKeyId") == oss.access_key_id


@pytest.mark.parametrize("version", ["v1", "v4"])
@pytest.mark.parametrize(("name", "value"), [("Content-Type", "text/plain"), ("x-oss-meta-a", "1")])
def test_headers_that_are_signed_cannot_be_added_afterwards(
    oss: Oss, version: str, name: str, value: str
) -> None:
    target, headers = with_version(oss, version).signed("PUT", {}, {})
    reply = send(oss.endpoint, "PUT", target, {**headers, name: value}, PART)
    assert reply.code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_the_query_is_signed(oss: Oss, version: str) -> None:
    upload_id = oss.initiate()
    target, headers = with_version(oss, version).signed(
        "PUT", {"partNumber": "1", "uploadId": upload_id}, {}
    )
    other = target.replace("partNumber=1", "partNumber=2")
    assert send(oss.endpoint, "PUT", other, headers, PART).code == "SignatureDoesNotMatch"


def test_parameters_outside_the_v1_sub_resources_are_signed_by_v4_only(oss: Oss) -> None:
    upload_id = oss.initiate()
    for version, code in (("v1", ""), ("v4", "SignatureDoesNotMatch")):
        target, headers = with_version(oss, version).signed("GET", {"uploadId": upload_id}, {})
        reply = send(oss.endpoint, "GET", target + "&max-parts=5", headers, None)
        assert reply.code == code


@pytest.mark.parametrize("key", ["a b+c&d=e?f#g%h/中文 é~!*'().mp4", "x//y/../z;:@,$.mp4", "%2F"])
@pytest.mark.parametrize("version", ["v1", "v4"])
def test_hostile_keys_are_read_from_the_raw_target(
    server: DevServer, oss: Oss, version: str, key: str
) -> None:
    reply = with_version(oss, version).call("PUT", {}, PART, key=key)
    assert reply.code == "AccessDenied"  # the signature passed, the policy did not
    assert server.stats.log[-1].subject == key


def test_no_authorization_is_denied_by_the_bucket(oss: Oss) -> None:
    reply = send(oss.endpoint, "GET", f"/{oss.bucket}/{oss.key}", {}, None)
    assert (reply.status, reply.code) == (403, "AccessDenied")


def test_an_authorization_of_neither_version_is_an_invalid_argument(oss: Oss) -> None:
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=a"}
    reply = send(oss.endpoint, "GET", f"/{oss.bucket}/{oss.key}", headers, None)
    assert (reply.status, reply.code) == (400, "InvalidArgument")


def test_an_unknown_key_id_is_not_in_the_records(oss: Oss) -> None:
    reply = replace(oss, access_key_id="STS.unknown").call("POST", {"uploads": ""})
    assert (reply.status, reply.code) == (403, "InvalidAccessKeyId")
    assert reply.headers["x-oss-ec"] == "0002-00000902"


def test_the_callers_own_access_key_opens_no_bucket_of_vod(server: DevServer, oss: Oss) -> None:
    own = replace(oss, access_key_id=server.access_key_id, secret=server.access_key_secret)
    assert own.call("POST", {"uploads": ""}).code == "InvalidAccessKeyId"


def test_a_token_is_required(oss: Oss) -> None:
    assert replace(oss, token="").call("POST", {"uploads": ""}).code == "InvalidAccessKeyId"


def test_a_made_up_token_is_invalid(oss: Oss) -> None:
    assert replace(oss, token="CAISx").call("POST", {"uploads": ""}).code == "InvalidSecurityToken"


def test_the_token_of_other_credentials_does_not_match(vod: Vod, oss: Oss) -> None:
    other = start_upload(vod)
    reply = replace(oss, token=other.token).call("POST", {"uploads": ""})
    assert reply.code == "AccessKeyIdAndSecurityTokenNotMatch"


def test_an_expired_token_is_refused_and_echoed(server: DevServer, oss: Oss) -> None:
    server.expire_credentials()
    reply = oss.call("POST", {"uploads": ""})
    assert (reply.status, reply.code) == (403, "SecurityTokenExpired")
    assert reply.element("SecurityToken") == oss.token
    assert reply.element("EC") == "0002-00000007"
    assert server.stats.expired_refusals == 1


def test_a_long_expired_key_id_is_unknown(server: DevServer, oss: Oss) -> None:
    server.set_options(expired_grace_s=0)
    server.expire_credentials()
    reply = oss.call("POST", {"uploads": ""})
    assert reply.code == "InvalidAccessKeyId"
    assert reply.headers["x-oss-ec"] == "0002-00000002"


def test_credentials_expire_by_themselves(server: DevServer, vod: Vod) -> None:
    server.set_options(credential_ttl_s=0)
    assert start_upload(vod).call("POST", {"uploads": ""}).code == "SecurityTokenExpired"


def test_expiring_one_video_leaves_the_others(server: DevServer, vod: Vod, oss: Oss) -> None:
    other = start_upload(vod)
    server.expire_credentials(oss.video_id)
    assert oss.call("POST", {"uploads": ""}).code == "SecurityTokenExpired"
    assert other.initiate()


@pytest.mark.parametrize("at_end", [False, True])
def test_expiry_may_be_checked_again_after_the_body(
    server: DevServer, oss: Oss, at_end: bool
) -> None:
    upload_id = oss.initiate()
    server.set_options(check_expiry_at_end=at_end, connection_bandwidth=len(PART) / 0.3)
    server.backend.storage.expire_credentials(_soon(0.15))
    reply = oss.put_part(upload_id, 1)
    assert reply.code == ("SecurityTokenExpired" if at_end else "")
    assert server.stats.parts_stored == (0 if at_end else 1)


def _soon(seconds: float) -> float:
    import time

    return time.time() + seconds


@pytest.mark.parametrize("version", ["v1", "v4"])
@pytest.mark.parametrize(("offset", "code"), [(890, ""), (-890, ""), (910, "X"), (-910, "X")])
def test_a_clock_more_than_15_minutes_off_is_too_skewed(
    server: DevServer, oss: Oss, version: str, offset: float, code: str
) -> None:
    server.set_options(clock_offset_s=offset)
    reply = with_version(oss, version).call("POST", {"uploads": ""})
    assert reply.code == ("RequestTimeTooSkewed" if code else "")
    if code:
        assert reply.element("MaxAllowedSkewMilliseconds") == "900000"
        assert reply.element("RequestTime") != reply.element("ServerTime")


def test_a_request_without_date_is_denied(oss: Oss) -> None:
    target, headers = oss.signed("POST", {"uploads": ""}, {})
    bare = {k: v for k, v in headers.items() if k.lower() not in ("x-oss-date", "date")}
    reply = send(oss.endpoint, "POST", target, bare, None)
    assert reply.headers["x-oss-ec"] == "0002-00000503"


def test_the_region_of_a_v4_signature_is_the_buckets(oss: Oss) -> None:
    reply = replace(oss, region="oss-cn-shanghai").call("POST", {"uploads": ""})
    assert (reply.status, reply.code) == (400, "InvalidArgument")
    assert "signing region" in reply.element("Message")


def test_the_day_of_a_v4_scope_is_the_signing_day(oss: Oss) -> None:
    target, headers = oss.signed("POST", {"uploads": ""}, {})
    day = headers["x-oss-date"][:8]
    name = "authorization" if "authorization" in headers else "Authorization"
    headers[name] = headers[name].replace(day, "20200101")
    reply = send(oss.endpoint, "POST", target, headers, None)
    assert "signing date" in reply.element("Message")


@pytest.mark.parametrize(("right", "wrong"), [("/oss/", "/ecs/"), ("v4_request", "v5_request")])
def test_the_scope_of_a_v4_signature_names_oss(oss: Oss, right: str, wrong: str) -> None:
    target, headers = oss.signed("POST", {"uploads": ""}, {})
    name = next(name for name in headers if name.lower() == "authorization")
    headers[name] = headers[name].replace(right, wrong)
    reply = send(oss.endpoint, "POST", target, headers, None)
    assert (reply.status, reply.code) == (400, "InvalidArgument")


@pytest.mark.parametrize(("version", "ec"), [("v1", "0002-00000503"), ("v4", "0002-00000212")])
def test_a_date_that_is_none_is_refused(oss: Oss, version: str, ec: str) -> None:
    target, headers = with_version(oss, version).signed("POST", {"uploads": ""}, {})
    kept = {k: v for k, v in headers.items() if k.lower() not in ("x-oss-date", "date")}
    reply = send(oss.endpoint, "POST", target, {**kept, "x-oss-date": "yesterday"}, None)
    assert reply.headers["x-oss-ec"] == ec


def test_v1_can_be_switched_off(server: DevServer, oss: Oss) -> None:
    server.set_options(signature_versions=("v4",))
    reply = with_version(oss, "v1").call("POST", {"uploads": ""})
    assert (reply.status, reply.headers["x-oss-ec"]) == (403, "0002-00000080")
    assert oss.initiate()


def test_v4_can_be_switched_off(server: DevServer, oss: Oss) -> None:
    server.set_options(signature_versions=("v1",))
    assert oss.call("POST", {"uploads": ""}).code == "InvalidArgument"
    assert with_version(oss, "v1").initiate()


def test_an_unknown_bucket_does_not_exist(oss: Oss) -> None:
    reply = replace(oss, bucket="outin-other").call("POST", {"uploads": ""})
    assert (reply.status, reply.code) == (404, "NoSuchBucket")


def test_a_token_is_good_for_its_videos_object_only(vod: Vod, oss: Oss) -> None:
    reply = oss.call("POST", {"uploads": ""}, key=start_upload(vod).key)
    assert (reply.status, reply.code) == (403, "AccessDenied")


def test_an_hls_upload_may_write_below_its_prefix(vod: Vod) -> None:
    answer = vod.ok("CreateUploadVideo", Title="t", FileName="list.m3u8")
    oss = granted(answer)
    prefix = oss.key.rpartition("/")[0] + "/"
    assert oss.call("PUT", {}, b"seg", key=prefix + "1.ts").status == 200
    assert oss.call("PUT", {}, b"seg", key="sv/elsewhere.ts").code == "AccessDenied"


@pytest.mark.parametrize(
    ("operation", "method", "params"),
    [
        ("ListParts", "GET", {"uploadId": "U"}),
        ("HeadObject", "HEAD", {}),
        ("GetObject", "GET", {}),
        ("AbortMultipartUpload", "DELETE", {"uploadId": "U"}),
    ],
)
def test_operations_can_be_denied_by_policy(
    server: DevServer, oss: Oss, operation: str, method: str, params: dict[str, str]
) -> None:
    assert oss.call(method, params).status == 404
    server.set_options(denied_operations=(operation,))
    reply = oss.call(method, params)
    assert (reply.status, reply.code) == (403, "AccessDenied")
    assert reply.headers["x-oss-ec"].startswith("0003-")


def test_virtual_host_style_takes_the_bucket_from_the_host(oss: Oss) -> None:
    target, headers = oss.signed("POST", {"uploads": ""}, {})
    bare = target.removeprefix(f"/{oss.bucket}")
    host = f"{oss.bucket}.oss-cn-shanghai.aliyuncs.com"
    reply = send(oss.endpoint, "POST", bare, {**headers, "Host": host}, None)
    assert reply.element("Bucket") == oss.bucket
    assert reply.element("Key") == oss.key
