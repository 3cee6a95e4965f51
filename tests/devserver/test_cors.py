"""The CORS headers of preflights and of the answers to cross-origin requests."""

from __future__ import annotations

import pytest

from uploader.devserver import DevServer, DevServerOptions

from .clients import PART, Oss, Reply, send

ORIGIN = "https://films.example.com"


def preflight(oss: Oss, method: str = "PUT", origin: str = ORIGIN, headers: str = "") -> Reply:
    given = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers:
        given["Access-Control-Request-Headers"] = headers
    return send(oss.endpoint, "OPTIONS", f"/{oss.bucket}/{oss.key}", given, None)


def test_a_preflight_needs_no_signature(oss: Oss) -> None:
    reply = preflight(oss, headers="authorization,x-oss-date")
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "PUT" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == "authorization, x-oss-date"
    assert "ETag" in reply.headers["access-control-expose-headers"]
    assert reply.headers["access-control-max-age"] == "600"


def test_answers_can_be_read_by_the_page_errors_too(oss: Oss) -> None:
    for reply in (
        oss.call("PUT", body=PART, headers={"origin": ORIGIN}),
        oss.call("GET", {"acl": ""}, headers={"origin": ORIGIN}),
    ):
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "x-oss-request-id" in reply.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in oss.call("HEAD").headers


def test_a_bucket_without_rules_refuses_preflights_and_performs_requests(
    server: DevServer, oss: Oss
) -> None:
    server.set_options(cors="none")
    reply = preflight(oss)
    assert (reply.status, reply.code) == (403, "AccessForbidden")
    assert "access-control-allow-origin" not in reply.headers
    done = oss.call("PUT", body=PART, headers={"origin": ORIGIN})
    assert done.status == 200
    assert "access-control-allow-origin" not in done.headers


def test_the_first_rule_that_allows_all_of_a_request_counts(server: DevServer, oss: Oss) -> None:
    server.set_options(
        cors=[
            {"origins": ["https://other.example.com"]},
            {"origins": ["https://*.example.com"], "methods": ["PUT"], "headers": ["x-oss-*"]},
        ]
    )
    assert preflight(oss).headers["access-control-allow-origin"] == ORIGIN
    assert preflight(oss, headers="X-OSS-Date").status == 200
    assert preflight(oss, headers="x-oss-date,authorization").status == 403
    assert preflight(oss, method="POST").status == 403
    assert preflight(oss, origin="https://example.com").status == 403
    assert preflight(oss, origin="").status == 403


def test_an_unknown_field_of_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="cors"):
        DevServerOptions(cors=({"origin": ["*"]},))
