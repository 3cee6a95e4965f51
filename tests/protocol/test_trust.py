"""Credentials go to OSS and VOD over TLS, or nowhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from uploader.errors import ConfigurationError, UntrustedEndpoint
from uploader.protocol.grants import UploadTarget
from uploader.protocol.trust import TrustPolicy, oss_host, oss_region, target_of_url

_BUCKET = "outin-92fc3d2b8f5011e8a4a500163e1c35d5"
_KEY = "sv/23867cb3-1739af2345b/23867cb3-1739af2345b.mp4"
_STRICT = TrustPolicy()
_LOCAL = TrustPolicy(allow_loopback=True)


def _target(
    endpoint: str = "https://oss-cn-shanghai.aliyuncs.com",
    bucket: str = _BUCKET,
    key: str = _KEY,
    prefix: str | None = None,
) -> UploadTarget:
    return UploadTarget(endpoint, bucket, key, prefix)


# --- hosts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "origin", "region"),
    [
        ("https://oss-cn-shanghai.aliyuncs.com", None, "cn-shanghai"),
        ("oss-cn-beijing.aliyuncs.com", "https://oss-cn-beijing.aliyuncs.com", "cn-beijing"),
        (
            "https://oss-cn-shanghai-internal.aliyuncs.com:443/",
            "https://oss-cn-shanghai-internal.aliyuncs.com",
            "cn-shanghai",
        ),
        ("HTTPS://OSS-US-West-1.Aliyuncs.COM", "https://oss-us-west-1.aliyuncs.com", "us-west-1"),
        ("https://vpc100-oss-cn-beijing.aliyuncs.com", None, "cn-beijing"),
        ("https://oss-ap-southeast-1.aliyuncs.com", None, "ap-southeast-1"),
        ("https://oss-eu-central-1-internal.aliyuncs.com", None, "eu-central-1"),
        ("https://cn-hangzhou.oss.aliyuncs.com", None, "cn-hangzhou"),
        (
            "https://oss-cn-shanghai-finance-1-pub.aliyuncs.com",
            None,
            "cn-shanghai-finance-1",
        ),
        (
            "https://oss-cn-shanghai-finance-1-internal.aliyuncs.com",
            None,
            "cn-shanghai-finance-1",
        ),
        ("https://oss-accelerate.aliyuncs.com", None, None),
        ("https://oss-accelerate-overseas.aliyuncs.com", None, None),
        ("https://oss.aliyuncs.com", None, None),
    ],
)
def test_hosts_of_oss_are_trusted(endpoint: str, origin: str | None, region: str | None) -> None:
    checked = _STRICT.check_endpoint("OSS", endpoint)
    assert checked == (origin or endpoint)
    assert oss_region(checked) == region


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://vod.aliyuncs.com",
        "https://vod.cn-shanghai.aliyuncs.com",
        "https://vod.ap-southeast-1.aliyuncs.com",
        "https://vod-vpc.cn-shanghai.aliyuncs.com",
    ],
)
def test_hosts_of_vod_are_trusted(endpoint: str) -> None:
    assert _STRICT.check_endpoint("VOD", endpoint) == endpoint
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_endpoint("OSS", endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://ice.aliyuncs.com",
        "https://ice.cn-shanghai.aliyuncs.com",
        "https://ice-vpc.cn-beijing.aliyuncs.com",
    ],
)
def test_hosts_of_ims_are_trusted(endpoint: str) -> None:
    assert _STRICT.check_endpoint("IMS", endpoint) == endpoint
    for other in ("https://ice-vpc.aliyuncs.com", "https://ice-cn-beijing.aliyuncs.com"):
        with pytest.raises(UntrustedEndpoint):
            _STRICT.check_endpoint("IMS", other)


@pytest.mark.parametrize("region", ["cn-shanghai", "us-west-1", "cn-shanghai-finance-1"])
def test_the_hosts_of_a_region_are_trusted_and_name_it(region: str) -> None:
    for kind in ("public", "internal", "dualstack"):
        origin = _STRICT.check_endpoint("OSS", oss_host(region, kind))
        assert oss_region(origin) == region
    assert oss_host("cn-shanghai-finance-1", "public") == (
        "oss-cn-shanghai-finance-1-pub.aliyuncs.com"
    )
    assert oss_region(_STRICT.check_endpoint("OSS", oss_host(region, "accelerate"))) is None


HOSTILE_ENDPOINTS = [
    "",
    " ",
    "https://",
    "https:///",
    "https://evil.com",
    "https://aliyuncs.com",
    "https://evil.aliyuncs.com",
    "https://evil-oss-cn-shanghai.aliyuncs.com",
    "https://xoss-cn-shanghai.aliyuncs.com",
    "https://bucket.oss-cn-shanghai.aliyuncs.com",
    "https://oss-cn-shanghai.aliyuncs.com.evil.com",
    "https://oss-cn-shanghai.aliyuncs.comevil.com",
    "https://oss-cn-shanghai.aliyuncs.com@evil.com",
    "https://evil.com@oss-cn-shanghai.aliyuncs.com",
    "https://user:secret@oss-cn-shanghai.aliyuncs.com",
    "https://evil.com#oss-cn-shanghai.aliyuncs.com",
    "https://evil.com?oss-cn-shanghai.aliyuncs.com",
    "https://evil.com/oss-cn-shanghai.aliyuncs.com",
    "https://evil.com\\@oss-cn-shanghai.aliyuncs.com",
    "https://evil.com\\.oss-cn-shanghai.aliyuncs.com",
    "https://oss-cn-shanghai.aliyuncs.com/path",
    "https://oss-cn-shanghai.aliyuncs.com//",
    "https://oss-cn-shanghai.aliyuncs.com?a=b",
    "https://oss-cn-shanghai.aliyuncs.com#a",
    "https://oss-cn-shanghai.aliyuncs.com.",
    "https://oss-cn-shanghai.aliyuncs.com:80",
    "https://oss-cn-shanghai.aliyuncs.com:8443",
    "https://oss-cn-shanghai.aliyuncs.com:0443",
    "https://oss-cn-shanghai.aliyuncs.com:",
    "https://oss-cn-shanghai.aliyuncs.com:443:443",
    "https://oss-cn-shanghai.aliyuncs.com:99999",
    "https://oss-cn-shanghai.aliyuncs.com\n",
    "https://oss-cn-shanghai.aliyuncs.com\x00.evil.com",
    "https://oss-cn-shanghai.aliyuncs.com\r\nHost: evil.com",
    " https://oss-cn-shanghai.aliyuncs.com",
    "https://oss-cn-shanghai。aliyuncs。com",
    "https://ⓐliyuncs.com",
    "https://oss-cn-shanghai.ⓐliyuncs.com",
    "https://oss-\u212aorea.aliyuncs.com",  # the Kelvin sign, "k" in lower case
    "https://oss-cn-shаnghai.aliyuncs.com",  # a Cyrillic letter
    "https://oss-٣.aliyuncs.com",
    "https://oss-cn_shanghai.aliyuncs.com",
    "https://oss-cn-shanghai-.aliyuncs.com",
    "https://oss--.aliyuncs.com",
    "https://oss%2dcn-shanghai.aliyuncs.com",
    "https://oss-cn-shanghaiXaliyuncs.com",
    "https://" + "oss-" + "a" * 60 + ".aliyuncs.com",
    "https://oss-" + "a" * 400 + ".aliyuncs.com",
    "http://oss-cn-shanghai.aliyuncs.com",
    "ftp://oss-cn-shanghai.aliyuncs.com",
    "https:oss-cn-shanghai.aliyuncs.com",
    "//oss-cn-shanghai.aliyuncs.com",
    "https://https://oss-cn-shanghai.aliyuncs.com",
    "javascript:alert(1)",
    "https://100.100.100.200",
    "http://169.254.169.254",
    "https://1684301000",
    "https://0x64646464",
    "https://0144.0144.0144.0310",
    "https://[::ffff:100.100.100.200]",
    "https://[fe80::1%25eth0]",
    "https://127.0.0.1",
    "https://[::1]",
    "https://localhost",
    "http://127.0.0.1:8080",
]


@pytest.mark.parametrize("endpoint", HOSTILE_ENDPOINTS)
def test_everything_else_is_refused(endpoint: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_endpoint("OSS", endpoint)
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_endpoint("VOD", endpoint)
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_target(_target(endpoint=endpoint))


def test_a_refusal_does_not_repeat_a_password() -> None:
    with pytest.raises(UntrustedEndpoint) as caught:
        _STRICT.check_endpoint("OSS", "https://user:secret-4711@oss-cn-shanghai.aliyuncs.com")
    assert "4711" not in str(caught.value)


@settings(max_examples=500)
@given(
    st.text(max_size=40)
    | st.from_regex(r"(https?://)?[a-z0-9@:/.\\#?%\[\]-]{0,20}(\.aliyuncs\.com)?[:/.@]?.{0,6}")
)
def test_endpoint_fuzz_ends_in_a_refusal_or_a_host_every_parser_agrees_on(endpoint: str) -> None:
    try:
        checked = _STRICT.check_endpoint("OSS", endpoint)
    except UntrustedEndpoint:
        return
    assert re.fullmatch(r"https://[a-z0-9.-]*oss[a-z0-9-]*\.aliyuncs\.com", checked)
    assert str(URL(checked).origin()) == checked


# --- what code may allow --------------------------------------------------------------


def test_further_hosts_are_allowed_by_exact_name_over_tls() -> None:
    policy = TrustPolicy(allowed_hosts=frozenset({"Media.Example.com"}))
    assert policy.check_endpoint("OSS", "https://media.example.com") == "https://media.example.com"
    assert policy.check_endpoint("VOD", "MEDIA.example.com") == "https://media.example.com"
    assert oss_region("https://media.example.com") is None
    for endpoint in (
        "http://media.example.com",
        "https://media.example.com:8443",
        "https://a.media.example.com",
        "https://media.example.com.evil.com",
        "https://xmedia.example.com",
    ):
        with pytest.raises(UntrustedEndpoint):
            policy.check_endpoint("OSS", endpoint)


@pytest.mark.parametrize(
    "host",
    ["", "*", "*.example.com", "10.0.0.5", "2130706433", "0x7f.1", "a.0x7f", "[::1]", "a:443",
     "https://a.com", "a.com/", "a.com.", ".a.com", "ä.com", "a b"],
)  # fmt: skip
def test_only_plain_host_names_can_be_allowed(host: str) -> None:
    with pytest.raises(ConfigurationError):
        TrustPolicy(allowed_hosts=frozenset({host}))


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("127.0.0.1", "https://127.0.0.1"),
    ],
)
def test_loopback_literals_can_be_allowed_with_any_port(endpoint: str, origin: str) -> None:
    assert _LOCAL.check_endpoint("OSS", endpoint) == origin
    assert _LOCAL.check_endpoint("VOD", endpoint) == origin
    assert oss_region(origin) is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost:8080",
        "http://127.0.0.2:8080",
        "http://127.1:8080",
        "http://2130706433:8080",
        "http://0x7f000001:8080",
        "http://0177.0.0.1",
        "http://[::ffff:127.0.0.1]:8080",
        "http://[0:0:0:0:0:0:0:1]:8080",
        "http://0.0.0.0:8080",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:8080/path",
        "http://user@127.0.0.1:8080",
        "http://127.0.0.1.evil.com:8080",
        "http://oss-cn-shanghai.aliyuncs.com",
        "http://192.168.1.1:8080",
    ],
)
def test_allowing_loopback_allows_nothing_more(endpoint: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        _LOCAL.check_endpoint("OSS", endpoint)


# --- buckets and keys -----------------------------------------------------------------


def test_a_good_target_comes_back_with_its_origin() -> None:
    checked = _STRICT.check_target(_target(endpoint="OSS-cn-shanghai.aliyuncs.com:443"))
    assert checked == _target()


@pytest.mark.parametrize(
    "bucket",
    [
        "",
        "ab",
        "a" * 64,
        "-ab",
        "ab-",
        "Abc",
        "a_b",
        "a.b",
        "abc\n",
        "a b",
        "ábc",
        "evil.com/x?",
        "evil.com#",
        "a@b",
        "a:b",
        "a/b",
        "a%2fb",
        "abc\x00",
    ],
)
def test_a_bucket_cannot_move_the_host(bucket: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_target(_target(bucket=bucket))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a.mp4",
        "\\a.mp4",
        ".",
        "..",
        "../a.mp4",
        "a/../b.mp4",
        "a/..",
        "a/./b.mp4",
        "a\\..\\b.mp4",
        "a\x00.mp4",
        "a\n.mp4",
        "a\r\nHost: evil.com",
        "a\x7f.mp4",
        "a\x85.mp4",
        "a\ud800.mp4",
        "a" * 1024,
        "视" * 342,
    ],
)
def test_keys_that_could_mean_something_else_are_refused(key: str) -> None:
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_target(_target(key=key))
    with pytest.raises(UntrustedEndpoint):
        _STRICT.check_target(_target(prefix=key))


@pytest.mark.parametrize(
    "key",
    ["a", "a b+c&d=e?f#g%h/中文 é~!*'().mp4", "x//y", "%2F%41", "...", "a..b/.c", "🎬.mp4",
     "a" * 1023, "视" * 341, "prefix/"],
)  # fmt: skip
def test_odd_but_valid_keys_are_kept_as_they_are(key: str) -> None:
    assert _STRICT.check_target(_target(key=key, prefix=key)).object_key == key


def test_only_the_expected_bucket_receives_bytes() -> None:
    policy = TrustPolicy(expected_bucket=_BUCKET)
    assert policy.check_target(_target()) == _target()
    with pytest.raises(UntrustedEndpoint, match="expected"):
        policy.check_target(_target(bucket="somebody-elses"))


# --- to the last character ---------------------------------------------------------------


def _host(*labels: int) -> str:
    return ".".join("a" * length for length in labels)


@pytest.mark.parametrize(
    ("host", "is_name"),
    [
        (_host(63, 3), True),
        (_host(64, 3), False),
        (_host(3, 64, 3), False),
        (_host(63, 63, 63, 61), True),  # 253 characters
        (_host(63, 63, 63, 62), False),
        (_host(63, 63, 63, 63), False),
    ],
)
def test_a_host_name_is_no_longer_than_dns_allows(host: str, is_name: bool) -> None:
    if is_name:
        assert TrustPolicy(allowed_hosts=frozenset({host})).allowed_hosts == {host}
    else:
        with pytest.raises(ConfigurationError):
            TrustPolicy(allowed_hosts=frozenset({host}))


@pytest.mark.parametrize(("port", "is_port"), [(65_534, True), (65_535, True), (65_536, False)])
def test_a_loopback_port_is_one_there_can_be(port: int, is_port: bool) -> None:
    endpoint, policy = f"http://127.0.0.1:{port}", TrustPolicy(allow_loopback=True)
    if is_port:
        assert policy.check_endpoint("OSS", endpoint) == endpoint
    else:
        with pytest.raises(UntrustedEndpoint):
            policy.check_endpoint("OSS", endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://oss-cn-shanghai.aliyuncs.com",
        "oss-cn-shanghai.aliyuncs.com",
        "oss-cn-shanghai.aliyuncs.com:443",
        "https://oss-cn-shanghai.aliyuncs.com:443",
    ],
)
def test_a_region_is_read_with_and_without_scheme_and_port(endpoint: str) -> None:
    assert oss_region(endpoint) == "cn-shanghai"


@pytest.mark.parametrize("first", ["X", "a", ".a", "-", "é"])
def test_a_key_may_begin_with_anything_but_a_slash(first: str) -> None:
    target = UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-1", f"{first}.mp4")
    assert TrustPolicy().check_target(target) == target


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (
            "http://outin-1.oss-cn-shanghai.aliyuncs.com/sv/a%20b.mp4?Expires=1",
            UploadTarget("https://oss-cn-shanghai.aliyuncs.com", "outin-1", "sv/a b.mp4"),
        ),
        (
            "http://127.0.0.1:8080/outin-1/sv/a.mp4?Signature=x",
            UploadTarget("http://127.0.0.1:8080", "outin-1", "sv/a.mp4"),
        ),
        ("http://[::1]/outin-1/a", UploadTarget("http://[::1]", "outin-1", "a")),
        ("", None),
        ("a.mp4", None),
        ("http://[", None),
    ],
)
def test_a_signed_url_names_its_object(url: str, target: UploadTarget | None) -> None:
    assert target_of_url(url) == target
