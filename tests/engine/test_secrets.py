"""No secret leaves memory: not in the checkpoint, an event, a log line or an exception."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from uploader import AccessKey, UploadResult, VodProvider, VodupError, decode_grant
from uploader.devserver import DevServer, DevServerOptions, Fault
from uploader.log import redact

from .harness import PART, Desk, created


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything any logger of the process says at DEBUG."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Everything())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


class _Everything(logging.Formatter):
    """Message and every attribute, as a careless application might print them."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{super().format(record)} {vars(record)!r}"


@pytest.fixture
def structured() -> Iterator[io.StringIO]:
    """structlog as an application configures it, at DEBUG."""
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    yield stream
    structlog.reset_defaults()


TROUBLE = {
    "fine": (),
    "expired": (Fault(action="expire_credentials", operation="UploadPart", part=4, attempt=1),),
    "rejected": (
        Fault(action="error", operation="UploadPart", status=403, code="SecurityTokenExpired",
              count=None),
    ),
    "denied": (
        Fault(action="error", operation="UploadPart", status=403, code="AccessDenied", count=None),
    ),
    "mismatch": (
        Fault(action="error", operation="UploadPart", status=403, code="SignatureDoesNotMatch",
              count=None),
    ),
    "broken": (Fault(action="reset", operation="UploadPart", count=None),),
    "portal": (Fault(action="html", operation="RefreshUploadVideo", status=200, count=None),
               Fault(action="expire_credentials", operation="UploadPart", part=3)),
    "malformed": (Fault(action="malformed", operation="CreateUploadVideo", count=None),
                  Fault(action="malformed", operation="RefreshUploadVideo", count=None)),
    "unverified": (Fault(action="wrong_crc", operation="UploadPart", count=None),),
    "redirected": (Fault(action="redirect", operation="UploadPart", status=307,
                         location="http://127.0.0.1:1/", count=None),),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_no_secret_is_found_anywhere(
    desk: Desk, trouble: str, logged: io.StringIO, structured: io.StringIO
) -> None:
    desk.order(*TROUBLE[trouble])
    movie = desk.file(9 * PART)
    outcome: UploadResult | VodupError
    try:
        outcome = await desk.push(movie)
    except VodupError as error:
        outcome = error

    shown = [repr(outcome), *(repr(event) for event in desk.events), *traced(outcome)]
    texts = "\n".join([*shown, logged.getvalue(), structured.getvalue()]).encode()
    stored = b"".join(path.read_bytes() for path in state_files(desk))

    assert isinstance(outcome, VodupError) == (trouble not in ("fine", "expired"))
    assert b"upload." in structured.getvalue().encode(), "something was logged"
    assert len(stored) > 4096
    for secret in desk.server.secrets():
        assert secret.encode() not in texts
        assert secret.encode() not in stored
        assert secret[:24].encode() not in texts


async def test_a_standard_logger_at_debug_shows_none_either(
    desk: Desk, logged: io.StringIO
) -> None:
    desk.order(Fault(action="expire_credentials", operation="UploadPart", part=4))
    for signature in ("v1", "v4"):
        movie = desk.file(6 * PART, f"{signature}.mp4", seed=len(signature))
        await desk.push(movie, signature=signature)

    output = logged.getvalue()
    assert "upload.finished" in output
    assert [secret for secret in desk.server.secrets() if secret[:24] in output] == []


def traced(outcome: object) -> list[str]:
    """The traceback with the variables of every frame, as error reporters send it."""
    if not isinstance(outcome, VodupError):
        return []
    whole = traceback.TracebackException.from_exception(outcome, capture_locals=True)
    return [str(outcome), repr(vars(outcome)), *whole.format(), repr(outcome.__context__)]


def state_files(desk: Desk) -> list[Path]:
    return [path for path in (desk.folder / "state").rglob("*") if path.is_file()]


async def test_grants_and_providers_have_no_secret_in_their_repr(desk: Desk) -> None:
    answer = await created(desk.server)
    grant = decode_grant(answer["UploadAddress"], answer["UploadAuth"])

    shown = repr(grant) + repr(grant.credentials) + repr(desk.provider()) + repr(desk.uploader())

    assert [secret for secret in desk.server.secrets() if secret in shown] == []
    assert answer["UploadAuth"] not in shown


async def test_the_callers_own_token_stays_secret(tmp_path: Path, logged: io.StringIO) -> None:
    async with DevServer(DevServerOptions(caller_security_token=True)) as server:
        desk = Desk(server, tmp_path)
        env = server.env
        key = AccessKey(
            id=env["ALIBABA_CLOUD_ACCESS_KEY_ID"],
            secret=env["ALIBABA_CLOUD_ACCESS_KEY_SECRET"],
            security_token=env["ALIBABA_CLOUD_SECURITY_TOKEN"],
        )
        movie = desk.file(3 * PART)
        provider = VodProvider(key, endpoint=server.vod_endpoint)

        await desk.assert_stored(await desk.push(movie, provider=provider), movie)

        output = logged.getvalue() + repr(desk.events)
        assert [secret for secret in server.secrets() if secret[:24] in output] == []


def test_what_is_searched_for_would_be_found(logged: io.StringIO) -> None:
    """The net has no hole: a token that is logged does show up in it."""
    logging.getLogger("careless").debug("token %s", "CAIS" + "x" * 40)

    assert "CAIS" + "x" * 40 in logged.getvalue()
    assert redact(None, "", {"a": "CAIS" + "x" * 40}) == {"a": "[redacted]"}
