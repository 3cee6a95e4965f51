"""What a refusal says, word for word: at three in the morning it is all there is to go by."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from uploader.errors import ServiceError, VodupError
from uploader.protocol.decode import decode_answer, decode_grant
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.failures import OSS, VOD, Service
from uploader.protocol.grants import UploadTarget
from uploader.protocol.integrity import join_crc64, multipart_etag
from uploader.protocol.part_sizes import plan_file
from uploader.protocol.plan import read_plan
from uploader.protocol.trust import TrustPolicy

from .test_decode import ADDRESS, AUTH, GRANT, b64, without

KIB, MIB, GIB = 2**10, 2**20, 2**30
TARGET = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-1", "sv/a.mp4")


def grant(address: object = ADDRESS, auth: object = AUTH, **given: str) -> Callable[[], object]:
    return lambda: decode_grant(address, auth, **given)  # type: ignore[arg-type]  # wrong: the point


def answer(told: object) -> Callable[[], object]:
    return lambda: decode_answer(told)  # type: ignore[arg-type]  # wrong: the point


def target(**changes: str) -> Callable[[], object]:
    fields = {"endpoint": TARGET.endpoint, "bucket": "outin-1", "object_key": "sv/a.mp4"}
    return lambda: TrustPolicy().check_target(UploadTarget(**fields | changes))


def oss(endpoint: str, **policy: bool) -> Callable[[], object]:
    return lambda: TrustPolicy(**policy).check_endpoint("OSS", endpoint)  # type: ignore[arg-type]


def refused(code: str, *, by: Service, ec: str = "") -> Callable[[], object]:
    failure = ServiceError(
        "OSS said no.", operation="UploadPart", status=403, code=code, request_id="5C3D", ec=ec
    )

    def raise_it() -> None:
        raise by.final_error(failure)

    return raise_it


SAID: dict[str, Callable[[], object]] = {
    "address is no text": grant(address=7),
    "auth is no text": grant(auth=7),
    "address is too long": grant(address="a" * 65537),
    "auth is empty": grant(auth=" \n"),
    "base64 is too long": grant(address="a" * 16388),
    "too much padding": grant(address="abc==="),
    "cut base64": grant(address="abcde"),
    "both alphabets": grant(address="ab-/"),
    "no JSON": grant(address=b64(b"[1]")),
    "twice the same field": grant(address={**ADDRESS, "file_name": "x"}),
    "two auths": grant(address=AUTH),
    "two addresses": grant(auth=ADDRESS),
    "two of nothing": grant(address={}, auth={}),
    "nothing and an address": grant(address={}, auth=ADDRESS),
    "no endpoint": grant(address=without(ADDRESS, "Endpoint")),
    "no bucket": grant(address=without(ADDRESS, "Bucket")),
    "no file name": grant(address=without(ADDRESS, "FileName")),
    "a prefix that is a number": grant(address={**ADDRESS, "ObjectPrefix": 7}),
    "a long bucket": grant(address={**ADDRESS, "Bucket": "b" * 8193}),
    "a key with a line break": grant(address={**ADDRESS, "FileName": "a\nb"}),
    "no secret": grant(auth=without(AUTH, "AccessKeySecret")),
    "no token": grant(auth=without(AUTH, "SecurityToken")),
    "a token that is no header": grant(auth={**AUTH, "SecurityToken": "a b"}),
    "a key id that is a number": grant(auth={**AUTH, "AccessKeyId": 7}),
    "an end that is a list": grant(auth={**AUTH, "ExpireUTCTime": []}),
    "a life that is a list": grant(auth={**AUTH, "Expiration": []}),
    "a region that is a list": grant(auth={**AUTH, "Region": []}),
    "no region": grant(auth={**AUTH, "Region": "Shanghai!"}),
    "no video id": grant(video_id="a b"),
    "an answer that is no text": answer(7),
    "an answer without address": answer({"UploadAuth": b64(AUTH)}),
    "an answer without auth": answer({"UploadAddress": b64(ADDRESS)}),
    "an answer that is a web page": answer("<!doctype html><html>"),
    "an answer that is neither": answer("x"),
    "an answer that is too long": answer("x" * 65537),
    "an answer with an element twice": answer("<R><a/><a/></R>"),
    "an answer with a field twice": answer({"Video_Id": "v", "VideoId": "v"}),
    "an inner field twice": answer({"data": {"Video_Id": "v", "VideoId": "v"}}),
    "an answer with a wrong id": answer(
        {"UploadAddress": b64(ADDRESS), "UploadAuth": b64(AUTH), "VideoId": 7}
    ),
    "an error": answer({"Code": "Forbidden.RAM", "RequestId": "A-1"}),
    "an error without request": answer({"Code": "Forbidden.RAM"}),
    "an error nobody can read": answer({"Code": "no code", "RequestId": "A-1"}),
    "pickled credentials": lambda: pickle.dumps(GRANT.credentials),
    "no bytes": lambda: plan_file(0),
    "too many bytes": lambda: plan_file(53_687_091_200_001),
    "no connection": lambda: plan_file(1, concurrency=0),
    "a part too small": lambda: plan_file(1, part_size=1),
    "too many parts": lambda: plan_file(10_000 * MIB + 1, part_size=MIB),
    "another part": lambda: plan_file(3 * MIB, part_size=MIB).part(4),
    "no plan": lambda: read_plan("v1 8M*0"),
    "a newer plan": lambda: read_plan("v2 8M"),
    "a long endpoint": oss("a" * 2000),
    "no endpoint's form": oss("https://user@oss-cn-shanghai.aliyuncs.com"),
    "no port": oss("https://127.0.0.1:99999", allow_loopback=True),
    "plain http": oss("http://oss-cn-shanghai.aliyuncs.com"),
    "another port": oss("https://oss-cn-shanghai.aliyuncs.com:8443"),
    "an address of a machine": oss("https://10.0.0.1"),
    "this machine": oss("http://127.0.0.1:80"),
    "another host": oss("https://evil.example"),
    "another service": lambda: TrustPolicy().check_endpoint("VOD", TARGET.endpoint),
    "no bucket name": target(bucket="Evil/"),
    "another bucket": lambda: TrustPolicy(expected_bucket="outin-2").check_target(TARGET),
    "a key of no size": target(object_key=""),
    "a key with control characters": target(object_key="a\0"),
    "a key from the root": target(object_key="/a"),
    "a key that climbs": target(object_key="a/../b"),
    "a prefix that climbs": target(object_prefix=".."),
    "a host with a port": lambda: TrustPolicy(allowed_hosts=frozenset({"a.example:80"})),
    "a negative size": lambda: join_crc64([(1, -1)]),
    "no MD5s": lambda: multipart_etag([]),
    "denied by OSS": refused("AccessDenied", by=OSS),
    "signature at OSS": refused("SignatureDoesNotMatch", by=OSS),
    "argument at OSS": refused("InvalidArgument", by=OSS),
    "disabled": refused("UserDisable", by=OSS),
    "V1 switched off": refused("AccessDenied", by=OSS, ec="0002-00000080"),
    "video gone": refused("InvalidVideo.NotFound", by=VOD),
    "video damaged": refused("InvalidVideo.Damaged", by=VOD),
    "signature at VOD": refused("SignatureDoesNotMatch", by=VOD),
    "no rights at VOD": refused("Forbidden.RAM", by=VOD),
    "suspended": refused("OperationDenied.Suspended", by=VOD),
    "a wrong name": refused("InvalidFileName.Extension", by=VOD),
}


def said_by(call: Callable[[], object]) -> str:
    """The class and the sentences of the error."""
    try:
        call()
    except (VodupError, MalformedDocument, ValueError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("this must be refused")


# Kept beside this file, to be read as a whole: a name, a tab, the error's class and sentences.
_LINES = Path(__file__).with_name("sentences.tsv").read_text().splitlines()
SENTENCES = dict(line.split("\t") for line in _LINES)


@pytest.mark.parametrize("name", sorted({*SAID, *SENTENCES}))
def test_a_refusal_says_what_is_wrong_and_what_to_do(name: str) -> None:
    assert said_by(SAID[name]) == SENTENCES[name]
