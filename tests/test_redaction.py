"""What others say is kept and shown without the secrets of this process."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.bulk.conftest import Quick
from tests.engine.harness import PART, Desk, created
from tests.sources.web import Site, serving
from uploader import (
    AccessKey,
    CallbackProvider,
    CommandProvider,
    GrantProvider,
    Hooks,
    InvalidGrant,
    StsCredentials,
    UrlProvider,
    VodupError,
    decode_answer,
    decode_grant,
    redaction,
)
from uploader.devserver import DevServer, ThreadedDevServer
from uploader.log import redact
from uploader.redaction import redacted, remember

SECRET = "Zx81+kQ/qlQ77aNbVdq0c2Lw9sT5aa"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with DevServer() as server:
        yield Desk(server, tmp_path)


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        SECRET[:20],
        quote(SECRET, safe=""),
        f"'{SECRET}'",
        f"AccessKeySecret={SECRET};",
    ],
)
def test_a_secret_of_this_process_is_removed_from_texts(echo: str) -> None:
    StsCredentials("STS.id", SECRET, "token of the caller")
    for text in (str(VodupError(f"It said {echo} today.")), redacted(f"It said {echo} today.")):
        assert "[redacted]" in text
        assert SECRET[:12] not in text
        assert quote(SECRET[:12], safe="") not in text
        assert "today" in text
    error = VodupError("No.", code=echo, request_id=echo, next_step=f"Tell {echo}.")
    assert SECRET[:12] not in repr(vars(error))
    assert SECRET[:12] not in str(redact(None, "", {"event": echo}))


@pytest.mark.parametrize(
    "text",
    [
        "STS.NUabcdefgh12345",
        "CAIS" + "aB3/" * 20,
        "CAIS" + "aB3%2F" * 20,
        "eyJTZWN1cml0eVRva2VuIjoi" + "Q0FJ" * 20,
        "AccessKeySecret: 'abcdefghijklmnopqrstuvwxyz'",
        '"AccessKeySecret":"abcdefghijklmnopqrstuvwxyz"',
        "SecurityToken=abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_what_looks_like_a_secret_is_removed_too(text: str) -> None:
    shown = redacted(f"a {text} b")
    assert text[-12:-1] not in shown
    assert shown.startswith("a ")
    assert shown.endswith(" b")


def test_ordinary_words_stay() -> None:
    remember("secret", None, "")
    sentence = "The secret UploadAuth: it is not base64. SecurityToken and AccessKeySecret are set."
    assert redacted(sentence) == sentence


def test_a_text_is_searched_once_however_many_secrets_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redaction, "_live", {})
    for number in range(1000):
        remember(f"{number:012}-is-a-secret")
    spelled: list[str] = []

    def spell(text: str, *, safe: str) -> str:
        spelled.append(text)
        return quote(text, safe=safe)

    monkeypatch.setattr(redaction, "quote", spell)
    assert redacted("nothing to hide") == "nothing to hide"
    assert not spelled
    assert redacted("it said 000000000007-is-a-secret.") == "it said [redacted]."
    assert set(spelled) == {"000000000007-is-a-secret"}


def test_a_beginning_that_repeats_is_removed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 100 KB that consists of nothing else took seconds."""
    monkeypatch.setattr(redaction, "_live", {})
    remember("9" * 12 + "-is-a-secret")
    removed: list[str] = []

    def spell(text: str, *, safe: str) -> str:
        removed.append(text)
        return quote(text, safe=safe)

    monkeypatch.setattr(redaction, "quote", spell)
    assert redacted("9" * 1000) == "[redacted]"
    assert len(removed) == 1


def test_only_so_many_secrets_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_live", {})
    for number in range(5000):
        remember(f"{number:012}-is-a-secret")
    assert len(redaction._live) == 4096
    AccessKey(id="id", secret="newest-of-all-secrets", security_token="its-security-token")
    assert redacted("newest-of-all-secrets its-security-token") == "[redacted] [redacted]"


async def test_an_answer_that_echoes_a_secret_is_quoted_without_it(desk: Desk) -> None:
    answer = await created(desk.server)
    secret = decode_grant(answer["UploadAddress"], answer["UploadAuth"]).credentials
    for echo in (secret.access_key_secret, secret.security_token, answer["UploadAuth"]):
        refusal = {"Code": "Forbidden.RAM", "RequestId": f"R1 {echo[:80]}"}
        with pytest.raises(InvalidGrant) as caught:
            decode_answer(refusal)
        assert "R1 [redacted]" in caught.value.message
        assert echo[:12] not in repr(vars(caught.value))


@pytest.mark.parametrize("kind", ["callback", "command", "url"])
async def test_an_app_server_that_echoes_a_secret(desk: Desk, kind: str, tmp_path: Path) -> None:
    bearer = "bearer-token-of-the-caller"
    key = AccessKey(id="id", secret="long-lived-secret-of-the-account")
    refusal = json.dumps({"Code": "Forbidden", "RequestId": f"{key.secret} {bearer} R1"})
    remember(bearer)

    async def renew(video_id: str) -> str:
        return refusal

    script = tmp_path / "grant.py"
    script.write_text(f"print({refusal!r})")
    async with serving(Site(refusal.encode())) as site:
        providers: dict[str, GrantProvider] = {
            "callback": CallbackProvider(renew),
            "command": CommandProvider([sys.executable, str(script)]),
            "url": UrlProvider(f"{site.url}?video={{video_id}}", bearer),
        }
        async with desk.uploader(providers[kind]) as up:
            with pytest.raises(VodupError) as caught:
                await up.upload(desk.file(PART), video_id="a" * 32)
            states = [status async for status in up.state.uploads()]
    shown = repr(vars(caught.value)) + repr(states) + repr(desk.events)
    assert "[redacted] [redacted] R1" in caught.value.message
    assert key.secret[:12] not in shown
    assert bearer[:12] not in shown


async def test_a_hook_that_fails_with_a_secret_in_its_error(desk: Desk) -> None:
    secret = desk.server.access_key_secret

    def spoil(_: object) -> None:
        raise ValueError(f"no access with {secret}")

    result = await desk.push(desk.file(PART), hooks=[Hooks(after_verify=spoil)])
    assert "no access with [redacted]" in result.hook_failures[0]
    assert secret[:12] not in repr(result) + repr(desk.events)


def test_a_presigned_url_is_read_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadedDevServer() as threaded:
        quick = Quick(threaded.server, tmp_path, monkeypatch=monkeypatch)
        query = "OSSAccessKeyId=LTAIabc&Expires=1&Signature=presigned-signature"
        url = f"http://127.0.0.1:9/a.mp4?{query}"
        line = {"path": url, "title": "T", "cover_url": f"https://h.example/a.png?{query}"}
        (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
        words = ("ingest", "m.jsonl", "--report", "r.jsonl", "--html", "r.html", "--json")
        ended = quick.run(*words, "--log-level", "debug", "--retry-for", "0")
        assert ended.code == 7
        assert '"path": "http://127.0.0.1:9/a.mp4"' in ended.out
        printed = ended.out + ended.err + (tmp_path / "r.html").read_text()
        assert "presigned-signature" not in printed
        assert "LTAIabc" not in printed
        assert url in (tmp_path / "r.jsonl").read_text(), "the ledger is a manifest"
