"""The VOD API: gateway, rules of each operation, variations of what it hands out."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
import urllib.parse
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from uploader.devserver import DevServer
from uploader.devserver.encoding import parse_query
from uploader.devserver.signatures import rpc_signature, rpc_string_to_sign

from .clients import PART, Oss, Reply, Vod, decoded, granted, send, start_upload

CREATE = {"Title": "A title", "FileName": "movie.mp4"}


def test_the_documented_signature_is_computed() -> None:
    # The sample of "VOD: Signature mechanism".
    query = (
        "Timestamp=2017-10-10T12:02:54Z&Format=JSON&AccessKeyId=testAccessKeyId"
        "&Action=GetVideoPlayAuth&SignatureMethod=HMAC-SHA1"
        "&SignatureNonce=8f8a035d-6496-4268-afd4-67c22837e38d&Version=2017-03-21"
        "&SignatureVersion=1.0&VideoId=5aed81b74ba84920be578cdfe004af4b"
    )
    text = rpc_string_to_sign("GET", parse_query(query))
    assert text.endswith("Version%3D2017-03-21%26VideoId%3D5aed81b74ba84920be578cdfe004af4b")
    assert rpc_signature("testAccessKeySecret", text) == "Ibgh7y8Vp47LBuAsf5Xhi1SvDss="


def test_create_answers_as_documented(vod: Vod, server: DevServer) -> None:
    answer = vod.ok("CreateUploadVideo", **CREATE)
    assert set(answer) == {"RequestId", "VideoId", "UploadAddress", "UploadAuth"}
    assert re.fullmatch("[0-9a-f]{32}", answer["VideoId"])
    address = decoded(answer["UploadAddress"])
    assert set(address) == {"Endpoint", "Bucket", "FileName"}
    assert re.fullmatch("outin-[0-9a-f]{32}", address["Bucket"])
    assert re.fullmatch(r"sv/[0-9a-f-]+/[0-9a-f-]+\.mp4", address["FileName"])
    auth = decoded(answer["UploadAuth"])
    names = {"AccessKeyId", "AccessKeySecret", "SecurityToken", "ExpireUTCTime", "Expiration"}
    assert set(auth) == {*names, "Region"}
    assert auth["AccessKeyId"].startswith("STS.N")
    assert (len(auth["AccessKeyId"]), len(auth["AccessKeySecret"])) == (29, 44)
    assert auth["SecurityToken"].startswith("CAIS")
    assert 900 < len(auth["SecurityToken"]) < 1000
    assert auth["Expiration"] == "3000"
    expires = datetime.strptime(auth["ExpireUTCTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert timedelta(0) < expires - datetime.now(UTC) <= timedelta(seconds=3000)
    assert server.stats.creates == 1


def test_xml_is_the_default_format(vod: Vod) -> None:
    answer = vod.get(vod.target("CreateUploadVideo", _format="", **CREATE))
    assert answer.body.startswith(b"<?xml")
    assert answer.element("VideoId")
    assert b"<CreateUploadVideoResponse>" in answer.body
    refused = vod.get(vod.target("CreateUploadVideo", _format="XML", Title="x"))
    assert refused.element("Code") == "MissingParameter"


def test_refresh_issues_new_credentials_for_the_same_object(server: DevServer, vod: Vod) -> None:
    created = vod.ok("CreateUploadVideo", **CREATE)
    refreshed = vod.ok("RefreshUploadVideo", VideoId=created["VideoId"])
    assert refreshed["VideoId"] == created["VideoId"]
    assert refreshed["UploadAddress"] == created["UploadAddress"]
    old, new = granted(created), granted(refreshed)
    assert old.access_key_id != new.access_key_id
    upload_id = old.initiate()
    assert new.put_part(upload_id, 1).status == 200
    assert old.put_part(upload_id, 2).status == 200
    assert server.stats.bytes_by_generation == {1: len(PART), 2: len(PART)}
    assert server.stats.refreshes_by_video == {created["VideoId"]: 1}


def test_refresh_by_reference_id_finds_the_video(vod: Vod) -> None:
    created = vod.ok("CreateUploadVideo", ReferenceId="job-000001", **CREATE)
    answer = vod.ok("RefreshUploadVideo", ReferenceId="job-000001")
    assert answer["VideoId"] == created["VideoId"]


@pytest.mark.parametrize("video_id", ["0" * 32, "not-an-id"])
@pytest.mark.parametrize("action", ["RefreshUploadVideo", "GetMezzanineInfo", "GetVideoInfo"])
def test_an_unknown_video_is_not_found(vod: Vod, action: str, video_id: str) -> None:
    reply = vod.call(action, VideoId=video_id)
    assert (reply.status, reply.code) == (404, "InvalidVideo.NotFound")
    body = json.loads(reply.body)
    assert set(body) == {"RequestId", "HostId", "Code", "Message", "Recommend"}
    assert body["HostId"] == "vod.cn-shanghai.aliyuncs.com"


def test_a_damaged_video_cannot_be_refreshed(server: DevServer, vod: Vod, oss: Oss) -> None:
    server.damage_video(oss.video_id)
    reply = vod.call("RefreshUploadVideo", VideoId=oss.video_id)
    assert (reply.status, reply.code) == (400, "InvalidVideo.Damaged")


def test_a_deleted_video_is_not_found(server: DevServer, vod: Vod, oss: Oss) -> None:
    server.delete_video(oss.video_id)
    assert vod.call("RefreshUploadVideo", VideoId=oss.video_id).code == "InvalidVideo.NotFound"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"Title": ""}, 400, "MissingParameter"),
        ({"FileName": ""}, 400, "MissingParameter"),
        ({"FileName": "movie"}, 400, "InvalidFileName.Extension"),
        ({"FileName": "movie.exe"}, 400, "InvalidFileName.Extension"),
        ({"Title": "x" * 129}, 400, "LengthExceededMax"),
        ({"Description": "x" * 1025}, 400, "LengthExceededMax"),
        ({"Tags": ",".join("abcdefghijklmnopq")}, 400, "TagsExceededMax"),
        ({"Tags": "x" * 33}, 400, "LengthExceededMax"),
        ({"Title": "smile 😀"}, 400, "IllegalCharacters"),
        ({"ReferenceId": "short"}, 400, "InvalidParameter"),
        ({"ReferenceId": "has space"}, 400, "InvalidParameter"),
        ({"FileSize": "many"}, 400, "InvalidParameter"),
    ],
)
def test_create_refuses(vod: Vod, changes: dict[str, str], status: int, code: str) -> None:
    params = {k: v for k, v in {**CREATE, **changes}.items() if v}
    reply = vod.call("CreateUploadVideo", **params)
    assert (reply.status, reply.code) == (status, code)


@pytest.mark.parametrize(
    "changes",
    [
        {"Title": "标" * 128},
        {"Description": "述" * 1024},
        {"Tags": ",".join("abcdefghijklmnop")},
        {"FileName": "/a/b/MOVIE.MKV"},
        {"ReferenceId": "abc_-123"},
    ],
)
def test_create_accepts_the_limits(vod: Vod, changes: dict[str, str]) -> None:
    assert vod.ok("CreateUploadVideo", **{**CREATE, **changes})


def test_a_reference_id_is_unique(server: DevServer, vod: Vod) -> None:
    first = vod.ok("CreateUploadVideo", ReferenceId="job-000001", **CREATE)
    again = vod.call("CreateUploadVideo", ReferenceId="job-000001", **CREATE)
    assert (again.status, again.code) == (400, "InvalidReferenceId.Duplicate")
    server.set_options(duplicate_reference="same_video")
    same = vod.ok("CreateUploadVideo", ReferenceId="job-000001", **CREATE)
    assert same["VideoId"] == first["VideoId"]
    assert server.stats.creates == 1


def test_the_status_follows_the_upload(server: DevServer, vod: Vod, oss: Oss) -> None:
    def statuses() -> tuple[str, str, int]:
        mezzanine = vod.ok("GetMezzanineInfo", VideoId=oss.video_id)["Mezzanine"]
        video = vod.ok("GetVideoInfo", VideoId=oss.video_id)["Video"]
        return mezzanine["Status"], video["Status"], mezzanine["Size"]

    assert statuses() == ("Uploading", "Uploading", 0)
    assert oss.call("PUT", {}, PART).status == 200
    assert statuses() == ("Normal", "Normal", len(PART))
    server.set_options(processing_s=1000)
    assert statuses() == ("Normal", "UploadSucc", len(PART))


def test_a_refresh_of_a_finished_video_is_counted_as_overwrite(
    server: DevServer, vod: Vod, oss: Oss
) -> None:
    oss.call("PUT", {}, b"first")
    again = granted(vod.ok("RefreshUploadVideo", VideoId=oss.video_id))
    assert server.stats.overwrite_refreshes == 1
    assert again.call("PUT", {}, b"second").status == 200
    assert server.object_bytes(oss.video_id) == b"second"


def test_delete_multipart_upload_drops_open_uploads(server: DevServer, vod: Vod, oss: Oss) -> None:
    upload_id = oss.initiate()
    vod.ok("DeleteMultipartUpload", MediaId=oss.video_id, MediaType="video")
    assert oss.put_part(upload_id, 1).code == "NoSuchUpload"
    assert server.open_upload_count == 0


# the gateway


def test_a_wrong_secret_does_not_match(vod: Vod) -> None:
    reply = vod.call("CreateUploadVideo", _secret="wrong", **CREATE)
    assert (reply.status, reply.code) == (400, "SignatureDoesNotMatch")


def test_a_changed_parameter_does_not_match(vod: Vod) -> None:
    target = vod.target("CreateUploadVideo", **CREATE).replace("movie.mp4", "other.mp4")
    assert vod.get(target).code == "SignatureDoesNotMatch"


def test_another_access_key_is_not_found(vod: Vod) -> None:
    reply = vod.call("CreateUploadVideo", _key_id="LTAIother", **CREATE)
    assert (reply.status, reply.code) == (404, "InvalidAccessKeyId.NotFound")


def test_a_nonce_is_good_once(server: DevServer, vod: Vod) -> None:
    target = vod.target("CreateUploadVideo", **CREATE)
    assert vod.get(target).status == 200
    reply = vod.get(target)
    assert (reply.status, reply.code) == (400, "SignatureNonceUsed")
    assert server.stats.creates == 1


@pytest.mark.parametrize(("offset", "code"), [(880, ""), (920, "InvalidTimeStamp.Expired")])
def test_timestamps_are_good_for_15_minutes(
    server: DevServer, vod: Vod, offset: float, code: str
) -> None:
    server.set_options(clock_offset_s=offset)
    reply = vod.call("CreateUploadVideo", **CREATE)
    assert (reply.status, reply.code) == ((400, code) if code else (200, ""))


def test_an_unknown_action_is_not_found(vod: Vod) -> None:
    reply = vod.call("MakeCoffee")
    assert (reply.status, reply.code) == (404, "InvalidAction.NotFound")


def rpc_signed(vod: Vod, **changes: str) -> Reply:
    """A call signed by hand, with parameters Alibaba Cloud's SDKs would never send."""
    params = {
        "Action": "CreateUploadVideo",
        "Version": "2017-03-21",
        "Format": "JSON",
        "AccessKeyId": vod.server.access_key_id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **CREATE,
        **changes,
    }
    kept = sorted((name, value) for name, value in params.items() if value)
    query = urllib.parse.urlencode(kept, quote_via=urllib.parse.quote)
    text = "GET&%2F&" + urllib.parse.quote(query, safe="")
    key = (vod.server.access_key_secret + "&").encode()
    signature = base64.b64encode(hmac.digest(key, text.encode(), "sha1")).decode()
    return vod.get(f"/?{query}&Signature={urllib.parse.quote(signature, safe='')}")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("Title", "fine", ""),
        ("Action", "", "MissingParameter"),
        ("AccessKeyId", "", "MissingParameter"),
        ("Timestamp", "", "MissingParameter"),
        ("SignatureNonce", "", "MissingParameter"),
        ("Timestamp", "2026-11-22 09:00", "InvalidTimeStamp.Format"),
        ("SignatureMethod", "HMAC-MD5", "IncompleteSignature"),
        ("SignatureVersion", "2.0", "IncompleteSignature"),
    ],
)
def test_the_gateway_insists_on_its_common_parameters(
    vod: Vod, name: str, value: str, code: str
) -> None:
    assert rpc_signed(vod, **{name: value}).code == code


def test_another_api_version_is_refused(vod: Vod) -> None:
    assert vod.call("CreateUploadVideo", Version="2016-01-01").code == "InvalidVersion"


def test_an_unsigned_call_misses_parameters(vod: Vod) -> None:
    reply = vod.get("/?Action=CreateUploadVideo&Version=2017-03-21")
    assert (reply.status, reply.element("Code")) == (400, "MissingParameter")


def test_the_callers_policy_can_deny(server: DevServer, vod: Vod) -> None:
    server.set_options(denied_vod_operations=("CreateUploadVideo",))
    reply = vod.call("CreateUploadVideo", **CREATE)
    assert (reply.status, reply.code) == (403, "Forbidden.RAM")


def test_too_many_calls_a_second_are_throttled_with_400(server: DevServer, vod: Vod) -> None:
    server.set_options(vod_qps=2)
    replies = [vod.call("CreateUploadVideo", **CREATE) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 400]
    assert replies[-1].code == "Throttling.User"


def test_a_temporary_caller_key_needs_its_token(server: DevServer, vod: Vod) -> None:
    server.set_options(caller_security_token=True)
    assert vod.call("CreateUploadVideo", **CREATE).code == "MissingSecurityToken"
    wrong = vod.call("CreateUploadVideo", SecurityToken="wrong", **CREATE)
    assert wrong.code == "InvalidSecurityToken.MismatchWithAccessKey"
    token = server.env["ALIBABA_CLOUD_SECURITY_TOKEN"]
    assert vod.ok("CreateUploadVideo", SecurityToken=token, **CREATE)


# POST and V3


def test_form_fields_of_a_post_are_signed(vod: Vod) -> None:
    from aliyunsdkcore.auth.composer import rpc_signature_composer

    server = vod.server
    form = {"Title": "中文 *~+ title", "FileName": "movie.mp4"}
    query, _ = rpc_signature_composer.get_signed_url(
        {"Action": "CreateUploadVideo", "Version": "2017-03-21"},
        server.access_key_id,
        server.access_key_secret,
        "JSON",
        "POST",
        form,
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    forged = urllib.parse.urlencode({**form, "Title": "other"}).encode()
    refused = send(server.vod_endpoint, "POST", query, headers, forged)
    assert refused.code == "SignatureDoesNotMatch"
    body = urllib.parse.urlencode(form).encode()
    assert send(server.vod_endpoint, "POST", query, headers, body).status == 200
    assert next(iter(server.videos.values())).title == "中文 *~+ title"


def v3_call(
    vod: Vod,
    *,
    payload_hash: str = "",
    nonce: str | None = None,
    secret: str = "",
    date: str = "",
    unsigned: str = "",
    scheme: str = "ACS3-HMAC-SHA256 Credential=",
) -> Reply:
    server = vod.server
    query = urllib.parse.urlencode(sorted(CREATE.items()), quote_via=urllib.parse.quote)
    headers = {
        "host": server.vod_endpoint.removeprefix("http://"),
        "x-acs-action": "CreateUploadVideo",
        "x-acs-content-sha256": payload_hash or hashlib.sha256(b"").hexdigest(),
        "x-acs-date": date or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "x-acs-signature-nonce": uuid.uuid4().hex if nonce is None else nonce,
        "x-acs-version": "2017-03-21",
    }
    signed = {name: value for name, value in headers.items() if name != unsigned}
    names = ";".join(signed)
    lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
    canonical = f"POST\n/\n{query}\n{lines}\n{names}\n{headers['x-acs-content-sha256']}"
    text = "ACS3-HMAC-SHA256\n" + hashlib.sha256(canonical.encode()).hexdigest()
    key = (secret or server.access_key_secret).encode()
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"{scheme}{server.access_key_id},SignedHeaders={names},Signature={signature}"
    )
    return send(server.vod_endpoint, "POST", f"/?{query}", headers, None)


def test_v3_signatures_are_accepted_and_answered_in_json(vod: Vod) -> None:
    assert json.loads(v3_call(vod).body)["VideoId"]


def test_v3_signatures_are_checked(vod: Vod) -> None:
    assert v3_call(vod, secret="wrong").code == "SignatureDoesNotMatch"
    assert v3_call(vod, payload_hash="0" * 64).code == "SignatureDoesNotMatch"
    assert v3_call(vod, nonce="").code == "MissingParameter"
    assert v3_call(vod, date="2026-11-22 09:00").code == "InvalidTimeStamp.Format"
    assert v3_call(vod, unsigned="x-acs-action").code == "IncompleteSignature"
    assert v3_call(vod, scheme="ACS3-HMAC-SHA256 Name=").code == "IncompleteSignature"
    assert v3_call(vod, nonce="once").status == 200
    assert v3_call(vod, nonce="once").code == "SignatureNonceUsed"


# variations of what is handed out


def refreshed(vod: Vod, oss: Oss) -> dict[str, str]:
    return vod.ok("RefreshUploadVideo", VideoId=oss.video_id)


def test_a_refreshed_key_may_differ(server: DevServer, vod: Vod, oss: Oss) -> None:
    server.set_options(refresh_target="key")
    new = granted(refreshed(vod, oss))
    assert new.key != oss.key
    assert new.call("PUT", {}, b"x").status == new.call("PUT", {}, b"x", key=oss.key).status == 200
    server.set_options(refresh_scope="refreshed")
    strict = granted(refreshed(vod, oss))
    assert strict.call("PUT", {}, b"x", key=oss.key).code == "AccessDenied"
    server.set_options(refresh_scope="original")
    kept = granted(refreshed(vod, oss))
    assert kept.call("PUT", {}, b"x").code == "AccessDenied"
    assert kept.call("PUT", {}, b"x", key=oss.key).status == 200


def test_a_refreshed_bucket_or_endpoint_may_differ(server: DevServer, vod: Vod, oss: Oss) -> None:
    server.set_options(refresh_target="bucket")
    assert granted(refreshed(vod, oss)).bucket != oss.bucket
    server.set_options(refresh_target="endpoint")
    other = granted(refreshed(vod, oss))
    assert other.endpoint == oss.endpoint.replace("127.0.0.1", "localhost")
    assert (other.bucket, other.key) == (oss.bucket, oss.key)


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({"expiration": "number"}, "Expiration", 3000),
        ({"expiration_s": 3600}, "Expiration", "3600"),
        ({"expiration": "missing"}, "Expiration", None),
        ({"expire_utc_time": False}, "ExpireUTCTime", None),
    ],
)
def test_expiry_fields_vary(
    server: DevServer, vod: Vod, options: dict[str, object], name: str, expected: object
) -> None:
    server.set_options(**options)
    assert decoded(vod.ok("CreateUploadVideo", **CREATE)["UploadAuth"]).get(name) == expected


def test_refreshed_credentials_may_be_dead_on_arrival(
    server: DevServer, vod: Vod, oss: Oss
) -> None:
    server.set_options(refreshed_already_expired=True)
    dead = granted(refreshed(vod, oss))
    assert dead.call("POST", {"uploads": ""}).code == "SecurityTokenExpired"


def test_the_video_id_of_a_refresh_may_be_absent_or_another(
    server: DevServer, vod: Vod, oss: Oss
) -> None:
    server.set_options(refresh_video_id="absent")
    assert "VideoId" not in refreshed(vod, oss)
    server.set_options(refresh_video_id="different")
    assert refreshed(vod, oss)["VideoId"] != oss.video_id


def test_the_pair_may_be_swapped_and_broken_over_lines(server: DevServer, vod: Vod) -> None:
    server.set_options(swapped_pair=True)
    assert "Bucket" in decoded(vod.ok("CreateUploadVideo", **CREATE)["UploadAuth"])
    server.set_options(swapped_pair=False, newline="base64")
    assert "\n" in vod.ok("CreateUploadVideo", **CREATE)["UploadAuth"]
    server.set_options(newline="json")
    auth = vod.ok("CreateUploadVideo", **CREATE)["UploadAuth"]
    assert b"\n" in base64.b64decode(auth)
    assert decoded(auth)["Region"] == "cn-shanghai"


def test_every_secret_is_known_for_leak_scans(server: DevServer, vod: Vod) -> None:
    oss = start_upload(vod)
    known = server.secrets()
    assert {oss.secret, oss.token, server.access_key_secret} <= set(known)


def test_calls_go_to_the_root_by_get_or_post(server: DevServer, vod: Vod) -> None:
    target = vod.target("CreateUploadVideo", **CREATE)
    assert vod.get("/elsewhere" + target.removeprefix("/")).code == "InvalidAction.NotFound"
    assert send(server.vod_endpoint, "PUT", target, {}, b"").code == "InvalidAction.NotFound"


@pytest.mark.parametrize("action", ["RefreshUploadVideo", "GetMezzanineInfo", "GetVideoInfo"])
def test_a_video_must_be_named(vod: Vod, action: str) -> None:
    assert vod.call(action).code == "MissingParameter"


def test_delete_multipart_upload_is_for_videos(vod: Vod, oss: Oss) -> None:
    reply = vod.call("DeleteMultipartUpload", MediaId=oss.video_id, MediaType="image")
    assert reply.code == "InvalidParameter"
