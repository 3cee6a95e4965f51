"""Signatures as OSS and VOD compute them, of URLs that are encoded exactly once."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import oss2
import oss2.http
import pytest
from aliyunsdkcore.auth.composer import rpc_signature_composer
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import ConfigurationError
from uploader.protocol import signing
from uploader.protocol.grants import StsCredentials, UploadTarget
from uploader.protocol.oss import abort_multipart_upload, head_object, put_object, upload_part
from uploader.protocol.plan import Part
from uploader.protocol.signing import ApiSignature, OssDialect, sign_oss, sign_rpc
from uploader.protocol.vod import AccessKey, refresh_upload_video, rpc_operation
from uploader.protocol.wire import BytesBody, Operation, SignedRequest

from .test_oss import BODY, KEYS, UPLOAD_ID, every_operation, target
from .test_vod import ENDPOINT, FULL, HOSTILE, KEY, REFRESH, STS_KEY, create
from .test_vod import EVERY as CALLS
from .test_vod import IDS as CALL_IDS

TOKEN = "CAIStOkEnCaNaRy4711+/=abc"
CREDENTIALS = StsCredentials("STS.id4711", "secret4711", TOKEN)
AT = datetime(2026, 11, 22, 9, 3, 54, tzinfo=UTC)

# --- OSS ------------------------------------------------------------------------------


def signed_by_us(
    operation: Operation[Any], at: datetime = AT, dialect: OssDialect | None = None
) -> SignedRequest:
    return sign_oss(operation, CREDENTIALS, at=at, generation=3, dialect=dialect or OssDialect())


def asked_of_oss2(operation: Operation[Any]) -> oss2.http.Request:
    request = operation.request
    return oss2.http.Request(
        request.method,
        "https://unused",
        params=dict(request.params),
        headers=dict(request.headers),
        region="cn-shanghai",
        product="oss",
    )


provider = oss2.credentials.StaticCredentialsProvider(
    CREDENTIALS.access_key_id, CREDENTIALS.access_key_secret, TOKEN
)


def sts_auth(version: str) -> oss2.StsAuth:
    return oss2.StsAuth(CREDENTIALS.access_key_id, CREDENTIALS.access_key_secret, TOKEN, version)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("auth", [oss2.ProviderAuthV4(provider), sts_auth("v4")])
def test_v4_signatures_are_those_of_oss2(key: str, auth: Any) -> None:  # noqa: ANN401
    for operation in every_operation(key):
        theirs = asked_of_oss2(operation)
        auth._sign_request(theirs, "bkt", key)
        date = theirs.headers["x-oss-date"]
        at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        ours = signed_by_us(operation, at)
        assert ours.headers == {
            name: value
            for name, value in theirs.headers.items()
            if name not in {"Accept-Encoding", "User-Agent"}
        }


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("auth", [oss2.ProviderAuth(provider), sts_auth("v1")])
def test_v1_signatures_are_those_of_oss2(key: str, auth: Any) -> None:  # noqa: ANN401
    for operation in every_operation(key):
        theirs = asked_of_oss2(operation)
        # It goes before Date, and oss2 signs it in Date's place like OSS does.
        theirs.headers["x-oss-date"] = "Sun, 22 Nov 2026 09:03:54 GMT"
        auth._sign_request(theirs, "bkt", key)
        ours = signed_by_us(operation, dialect=OssDialect(signature="v1"))
        for name in ("authorization", "x-oss-date", "x-oss-security-token"):
            assert ours.headers[name] == theirs.headers[name]


@pytest.mark.parametrize("key", KEYS)
def test_v4_signatures_are_those_of_the_newer_client(key: str) -> None:
    v2 = pytest.importorskip("alibabacloud_oss_v2")
    from alibabacloud_oss_v2.signer import SignerV4
    from alibabacloud_oss_v2.types import SigningContext

    for operation in every_operation(key):
        ours = signed_by_us(operation)
        headers = v2.types.CaseInsensitiveDict(operation.request.headers)
        request = v2.types.HttpRequest(operation.request.method, ours.url, headers=headers)
        context = SigningContext(
            product="oss",
            region="cn-shanghai",
            bucket="bkt",
            key=key,
            request=request,
            credentials=v2.credentials.Credentials("STS.id4711", "secret4711", TOKEN),
            signing_time=AT,
        )
        SignerV4().sign(context)
        # The two write the pieces of the header with and without a space.
        assert request.headers["authorization"].replace(" ", "") == ours.headers[
            "authorization"
        ].replace(" ", "")


def test_pinned_v4_signature() -> None:
    operation = upload_part(target(KEYS[1]), UPLOAD_ID, Part(17, 0, 4), BODY)
    signed = signed_by_us(operation)
    assert signed.method == "PUT"
    assert signed.url == (
        "https://bkt.oss-cn-shanghai.aliyuncs.com/"
        "a%20b%2Bc%26d%3De%3Ff%23g%25h%2F%E4%B8%AD%E6%96%87%20%C3%A9~%21%2A%27%28%29.mp4"
        "?partNumber=17&uploadId=0004B9894A22E5B1888A1E29F8236E2D"
    )
    assert signed.headers == {
        "x-oss-security-token": TOKEN,
        "x-oss-date": "20261122T090354Z",
        "x-oss-content-sha256": "UNSIGNED-PAYLOAD",
        "authorization": "OSS4-HMAC-SHA256 "
        "Credential=STS.id4711/20261122/cn-shanghai/oss/aliyun_v4_request, "
        "Signature=acca0fe05ff709a4c504f67302b9d29c928e7a2e21a8056373559749dbb2f9be",
    }


def test_pinned_v1_signature() -> None:
    operation = upload_part(target(KEYS[1]), UPLOAD_ID, Part(17, 0, 4), BODY)
    signed = signed_by_us(operation, dialect=OssDialect(signature="v1"))
    assert signed.headers == {
        "x-oss-security-token": TOKEN,
        "x-oss-date": "Sun, 22 Nov 2026 09:03:54 GMT",
        "authorization": "OSS STS.id4711:WuLMlsJOpSO59wKCpcJMhtu+9os=",
    }


def test_the_time_is_signed_in_utc() -> None:
    at = AT.astimezone(timezone(timedelta(hours=8)))
    assert signed_by_us(head_object(target()), at) == signed_by_us(head_object(target()))


def test_a_signed_request_has_generation_body_and_needs_md5() -> None:
    signed = signed_by_us(upload_part(target(), "u", Part(1, 0, 4), BODY, needs_md5=True))
    assert (signed.generation, signed.body, signed.needs_md5) == (3, BODY, True)
    assert not signed_by_us(put_object(target(), BODY)).needs_md5


def test_the_region_is_the_dialects_else_the_endpoints_else_that_of_the_credentials() -> None:
    def region(endpoint: str, chosen: str | None, of_credentials: str | None) -> str:
        operation = head_object(UploadTarget(endpoint, "bkt", "k"))
        credentials = StsCredentials("id", "secret", "token", region=of_credentials)
        dialect = OssDialect(region=chosen)
        signed = sign_oss(operation, credentials, at=AT, generation=1, dialect=dialect)
        return signed.headers["authorization"].split("/")[2]

    shanghai, unnamed = (
        "https://oss-cn-shanghai.aliyuncs.com",
        "https://oss-accelerate.aliyuncs.com",
    )
    assert region(shanghai, "cn-beijing", "cn-shenzhen") == "cn-beijing"
    assert region(shanghai, None, "cn-shenzhen") == "cn-shanghai"
    assert region(unnamed, None, "cn-shenzhen") == "cn-shenzhen"
    with pytest.raises(ConfigurationError, match="region"):
        region(unnamed, None, None)


def test_v1_signatures_need_no_region() -> None:
    operation = head_object(UploadTarget("https://media.example.com", "bkt", "k"))
    signed = signed_by_us(operation, dialect=OssDialect(signature="v1", is_cname=True))
    assert signed.headers["authorization"].startswith("OSS STS.id4711:")


def test_a_v4_signature_imports_the_signers_alone() -> None:
    code = (
        "import sys\n"
        "from uploader.protocol import signing\n"
        "signing._oss2_auth().ProviderAuthV4\n"
        "print(sys.modules.keys() & {'oss2', 'requests', 'urllib3', 'cffi', 'Crypto', 'crcmod'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("signature", ["v4", "v1"])
def test_nothing_logged_at_any_level_holds_the_token(
    signature: Any,  # noqa: ANN401
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(1)
    logging.getLogger("oss2").debug("a record of oss2, so that its logger is known")
    signed_by_us(head_object(target()), dialect=OssDialect(signature=signature))
    assert "tOkEnCaNaRy" not in caplog.text
    assert "secret4711" not in caplog.text


def test_a_signed_request_shows_no_secret() -> None:
    shown = repr(signed_by_us(head_object(target())))
    assert "tOkEnCaNaRy" not in shown
    assert "Signature" not in shown


# --- URLs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "is_cname", "url"),
    [
        ("https://oss-cn-shanghai.aliyuncs.com", False, "https://bkt.oss-cn-shanghai.aliyuncs.com"),
        ("http://127.0.0.1:8000", False, "http://127.0.0.1:8000/bkt"),
        ("http://[::1]:8000", False, "http://[::1]:8000/bkt"),
        ("https://10.0.0.7", False, "https://10.0.0.7/bkt"),
        ("http://localhost:80", False, "http://localhost:80/bkt"),
        ("https://media.example.com", True, "https://media.example.com"),
    ],
)
def test_the_bucket_goes_before_the_host_or_into_the_path(
    endpoint: str, is_cname: bool, url: str
) -> None:
    operation = head_object(UploadTarget(endpoint, "bkt", "sv/a.mp4"))
    dialect = OssDialect(region="cn-shanghai", is_cname=is_cname)
    assert signed_by_us(operation, dialect=dialect).url == f"{url}/sv%2Fa.mp4"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_keys_are_encoded_exactly_once(key: str) -> None:
    url = signed_by_us(head_object(target(key)), dialect=OssDialect(signature="v1")).url
    path = url.removeprefix("https://bkt.oss-cn-shanghai.aliyuncs.com/")
    assert re.fullmatch(r"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+", path)
    assert unquote(path) == key


def test_hostile_upload_ids_stay_one_parameter() -> None:
    upload_id = "a&partNumber=1#é +%26"
    query = urlsplit(signed_by_us(abort_multipart_upload(target(), upload_id)).url).query
    assert parse_qsl(query, keep_blank_values=True) == [("uploadId", upload_id)]


# --- VOD and IMS ----------------------------------------------------------------------


def signed_call(
    operation: Operation[Any],
    key: AccessKey = KEY,
    at: datetime = AT,
    signature: ApiSignature = "acs3",
) -> SignedRequest:
    return sign_rpc(operation, key, at=at, nonce="nonce-1", generation=3, signature=signature)


def query_of(request: SignedRequest) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True))


def form_of(request: SignedRequest) -> dict[str, str]:
    assert isinstance(request.body, BytesBody)
    return dict(parse_qsl(request.body.data.decode(), keep_blank_values=True))


# Signatures of Alibaba Cloud's own signer (alibabacloud_tea_openapi 0.4.6).
GOLDEN_KEY = AccessKey(id="LTAI5tEXAMPLEKEYID000001", secret="exampleAccessKeySecret0000000001")
GOLDEN_STS = replace(GOLDEN_KEY, security_token="CAISexample+Token/with=chars==")
GOLDEN_NONCE = "3156853299f313e23d1673dc12e1703d"
GOLDEN_AT = datetime(2026, 11, 30, 8, tzinfo=UTC)


def golden(operation: Operation[Any], key: AccessKey, at: datetime = GOLDEN_AT) -> SignedRequest:
    return sign_rpc(operation, key, at=at, nonce=GOLDEN_NONCE, generation=1)


def test_pinned_acs3_signature() -> None:
    operation = refresh_upload_video(ENDPOINT, video_id="93ab850b4f6f54b6e91d24d81d44f5d2")
    signed = golden(operation, GOLDEN_KEY)
    assert signed.method == "POST"
    assert signed.url == f"{ENDPOINT}/?VideoId=93ab850b4f6f54b6e91d24d81d44f5d2"
    assert signed.body == BytesBody(b"")
    assert signed.headers == {
        "accept": "application/json",
        "x-acs-action": "RefreshUploadVideo",
        "x-acs-version": "2017-03-21",
        "x-acs-date": "2026-11-30T08:00:00Z",
        "x-acs-signature-nonce": GOLDEN_NONCE,
        "x-acs-content-sha256": sha256(b"").hexdigest(),
        "authorization": f"ACS3-HMAC-SHA256 Credential={GOLDEN_KEY.id},SignedHeaders="
        "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,"
        "Signature=3ddf41b0fa80ea2bd2c5f4ec07150b06ab1dd9037efeecec19f80836ce1b8b46",
    }


def test_pinned_acs3_signature_with_a_token() -> None:
    params = {"Title": "a b+c&d=e/中文*~'()!", "FileName": "x y.mp4", "FileSize": "1024"}
    operation = rpc_operation(ENDPOINT, "CreateUploadVideo", params, lambda *_: None)
    signed = golden(operation, GOLDEN_STS)
    assert signed.url == (
        f"{ENDPOINT}/?FileName=x%20y.mp4&FileSize=1024"
        "&Title=a%20b%2Bc%26d%3De%2F%E4%B8%AD%E6%96%87%2A~%27%28%29%21"
    )
    assert signed.headers["x-acs-security-token"] == GOLDEN_STS.security_token
    assert signed.headers["x-acs-accesskey-id"] == GOLDEN_STS.id
    assert signed.headers["authorization"].endswith(
        "SignedHeaders=host;x-acs-accesskey-id;x-acs-action;x-acs-content-sha256;x-acs-date;"
        "x-acs-security-token;x-acs-signature-nonce;x-acs-version,"
        "Signature=b3f440276d21d4f7a427e3dee000a2d76e6e54c6534449751a4bc44411f594a9"
    )


def test_the_documented_acs3_signature() -> None:
    # Alibaba Cloud doc "V3 request body and signature": its sample, and what it says comes out.
    params = {
        "ImageId": "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd",
        "RegionId": "cn-shanghai",
    }
    operation = rpc_operation(
        "https://ecs.cn-shanghai.aliyuncs.com",
        "RunInstances",
        params,
        lambda *_: None,
        version="2014-05-26",
    )
    key = AccessKey(id="YourAccessKeyId", secret="YourAccessKeySecret")
    signed = golden(operation, key, datetime(2023, 10, 26, 10, 22, 32, tzinfo=UTC))
    assert signed.headers["authorization"].endswith(
        "Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
    )


def long_create() -> Operation[Any]:
    return create(replace(FULL, description="说" * 1024))


@pytest.mark.parametrize("key", [KEY, STS_KEY], ids=["key", "sts"])
@pytest.mark.parametrize(
    "operation", [*CALLS, long_create()], ids=[*CALL_IDS, "CreateUploadVideo-long"]
)
def test_acs3_signatures_are_those_of_the_sdk(operation: Operation[Any], key: AccessKey) -> None:
    utils = pytest.importorskip("alibabacloud_tea_openapi.utils").Utils
    from darabonba.request import DaraRequest

    ours = signed_call(operation, key)
    assert isinstance(ours.body, BytesBody)
    theirs = DaraRequest()
    theirs.method, theirs.pathname, theirs.query = ours.method, "/", query_of(ours)
    theirs.headers = {**ours.headers, "host": urlsplit(ENDPOINT).netloc}
    signed_by_default = {name: theirs.headers.pop(name) for name in ("authorization", "accept")}
    signature = utils.get_authorization(
        theirs, "ACS3-HMAC-SHA256", sha256(ours.body.data).hexdigest(), key.id, key.secret
    )
    assert signed_by_default["authorization"] == signature


def test_parameters_travel_in_the_query_unless_it_would_be_long() -> None:
    request = signed_call(create())
    assert (request.method, request.generation) == ("POST", 3)
    assert query_of(request)["Title"] == HOSTILE
    assert not set(query_of(request)) & {"Action", "Version", "Format"}
    assert request.body == BytesBody(b"")
    assert "content-type" not in request.headers
    assert "+" not in request.url  # a space is %20: signed and sent alike

    request = signed_call(long_create())
    assert request.url == f"{ENDPOINT}/"
    assert form_of(request)["Title"] == HOSTILE
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "SignedHeaders=content-type;host;" in request.headers["authorization"]


@pytest.mark.parametrize(
    "change", [{"nonce": "nonce-2"}, {"at": AT + timedelta(seconds=1)}, {"key": STS_KEY}]
)
@pytest.mark.parametrize("signature", ["acs3", "v2"])
def test_nonce_time_and_token_are_signed(signature: ApiSignature, change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"key": KEY, "at": AT, "nonce": "nonce-1"}
    one, other = (
        sign_rpc(
            REFRESH,
            given["key"],
            at=given["at"],
            nonce=given["nonce"],
            generation=1,
            signature=signature,
        )
        for given in (usual, usual | change)
    )
    assert signature_of(one) != signature_of(other)


def signature_of(request: SignedRequest) -> str:
    """The signature, wherever it is."""
    in_header = request.headers.get("authorization", "").rpartition("Signature=")[2]
    return in_header or query_of(request)["Signature"]


@pytest.mark.parametrize("signature", ["acs3", "v2"])
def test_the_time_of_a_call_is_signed_in_utc(signature: ApiSignature) -> None:
    at = AT.astimezone(timezone(timedelta(hours=8)))
    assert signed_call(REFRESH, at=at, signature=signature) == signed_call(
        REFRESH, signature=signature
    )


@pytest.mark.parametrize("signature", ["acs3", "v2"])
def test_nothing_secret_is_shown(signature: ApiSignature) -> None:
    shown = repr(signed_call(create(), STS_KEY, signature=signature)) + repr(STS_KEY)
    for secret in ("tOkEn4711", "testAccessKey", "Signature="):
        assert secret not in shown


def test_the_documented_v2_signature() -> None:
    # VOD doc "Signature mechanism": its sample, and what it says comes out.
    params = {
        "Timestamp": "2017-10-10T12:02:54Z",
        "Format": "JSON",
        "AccessKeyId": "testAccessKeyId",
        "Action": "GetVideoPlayAuth",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureNonce": "8f8a035d-6496-4268-afd4-67c22837e38d",
        "Version": "2017-03-21",
        "SignatureVersion": "1.0",
        "VideoId": "5aed81b74ba84920be578cdfe004af4b",
    }
    signature = signing._v2_signature("GET", params, "testAccessKeySecret")
    assert signature == "Ibgh7y8Vp47LBuAsf5Xhi1SvDss="


@pytest.mark.parametrize("key", [KEY, STS_KEY], ids=["key", "sts"])
@pytest.mark.parametrize("operation", CALLS, ids=CALL_IDS)
def test_v2_signatures_are_those_of_the_sdk(operation: Operation[Any], key: AccessKey) -> None:
    params = dict(operation.request.params)
    system = {name: params.pop(name) for name in ("Action", "Version", "Format")}
    if key.security_token:
        system["SecurityToken"] = key.security_token
    url, _ = rpc_signature_composer.get_signed_url(
        system, key.id, key.secret, "JSON", "POST", params
    )
    theirs = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    at = datetime.strptime(theirs["Timestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    nonce = theirs["SignatureNonce"]
    ours = sign_rpc(operation, key, at=at, nonce=nonce, generation=1, signature="v2")
    assert query_of(ours) == theirs
    assert form_of(ours) == params


def test_pinned_v2_signature() -> None:
    assert query_of(signed_call(create(), STS_KEY, signature="v2")) == {
        "Action": "CreateUploadVideo",
        "Version": "2017-03-21",
        "Format": "JSON",
        "AccessKeyId": "testAccessKeyId",
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureType": "",
        "SignatureNonce": "nonce-1",
        "Timestamp": "2026-11-22T09:03:54Z",
        "SecurityToken": "CAIStOkEn4711+/=",
        "Signature": "cXyCxFNyNkUAUiNwCWLy2f2s81o=",
    }


def test_parameters_of_v2_travel_in_the_body_and_the_rest_in_the_query() -> None:
    request = signed_call(create(), signature="v2")
    assert (request.method, request.generation) == ("POST", 3)
    assert request.url.startswith(f"{ENDPOINT}/?")
    assert request.headers == {"content-type": "application/x-www-form-urlencoded"}
    assert form_of(request)["Title"] == HOSTILE
    assert not set(form_of(request)) & set(query_of(request))
    assert isinstance(request.body, BytesBody)
    assert request.body.data.isascii()
    assert b"+" not in request.body.data  # a space is %20: signed and sent alike
