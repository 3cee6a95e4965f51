"""A library is silent until somebody listens, and secrets stay out of the log."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from uploader.errors import ServiceError
from uploader.events import (
    CredentialsRenewed,
    Event,
    HookFailed,
    PartsAdopted,
    PartStored,
    UploadCancelled,
    UploadProgress,
    UploadRestarted,
)
from uploader.log import configure, get_logger, is_enabled, redact
from uploader.upload.progress import Progress

TOKEN = "CAIS" + "tOkEnCaNaRy4711+/=" * 5
WHOSE: dict[str, Any] = {"key": "movie.mp4", "video_id": "v-1"}
KEY_ID = "STS.NTzCanary4711abcdefgh"


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    """Leave structlog as each test found it: not configured."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def cleaned(**event: object) -> dict[str, object]:
    return dict(redact(None, "info", event))


def refusal() -> ServiceError:
    return ServiceError("It was refused.", operation="UploadPart", status=403, code="AccessDenied")


# --- nobody configured ---------------------------------------------------------------


def test_nobody_configured_nothing_is_printed() -> None:
    code = (
        "from uploader.errors import VodupError\n"
        "from uploader.log import get_logger\n"
        "from uploader.upload.progress import Progress\n"
        "get_logger(video_id='v').error('upload.failed', code='X')\n"
        "try:\n"
        "    with Progress('k', 'v', []).reporting_failure():\n"
        "        raise VodupError('It failed.')\n"
        "except VodupError:\n"
        "    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- the standard library ------------------------------------------------------------


def test_standard_logging_gets_the_values_as_extra(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    get_logger(video_id="c6a2").info("part.acked", part_number=17)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("vodup", "INFO", "part.acked")
    assert (vars(record)["video_id"], vars(record)["part_number"]) == ("c6a2", 17)


def test_standard_logging_decides_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    get_logger().info("part.acked")
    assert not caplog.records


@pytest.mark.parametrize("name", ["message", "name", "args", "module", "asctime", "process"])
def test_fields_named_like_those_of_a_log_record_are_kept(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    get_logger(**{name: "kept"}).warning("upload.failed")
    (record,) = caplog.records
    assert vars(record)[f"{name}_"] == "kept"
    assert record.getMessage() == "upload.failed" + (": kept" if name == "message" else "")


def test_a_failed_upload_reaches_standard_logging(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("k", "c6a2", [], source="movie.mp4")
    with pytest.raises(ServiceError), progress.reporting_failure():
        raise refusal()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "upload.failed: movie.mp4: It was refused."
    assert vars(record)["source"] == "movie.mp4"
    assert vars(record)["code"] == "AccessDenied"
    assert vars(record)["message_"] == "It was refused."


def test_standard_logging_gets_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    get_logger(security_token=TOKEN).warning("it.happened", reason=f"token {TOKEN} is bad")
    (record,) = caplog.records
    assert "tOkEnCaNaRy" not in repr(vars(record))


# --- structlog -----------------------------------------------------------------------


def test_an_app_with_structlog_gets_events() -> None:
    logged: list[dict[str, object]] = []

    def listen(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        logged.append(dict(event, method=method))
        raise structlog.DropEvent

    structlog.configure(processors=[listen])
    get_logger(video_id="c6a2").warning("request.retried", signature="abc")
    (event,) = logged
    assert event["event"] == "request.retried"
    assert (event["video_id"], event["method"]) == ("c6a2", "warning")
    assert event["signature"] == "[redacted]"


def test_configuration_may_come_after_the_first_logger() -> None:
    get_logger().info("too.early")
    stream = io.StringIO()
    configure("info", is_json=True, stream=stream)
    get_logger(video_id="c6a2").info("in.time")
    event = json.loads(stream.getvalue())
    assert (event["event"], event["video_id"], event["level"]) == ("in.time", "c6a2", "info")


def test_the_command_line_writes_redacted_lines_for_people() -> None:
    stream = io.StringIO()
    configure("warning", is_json=False, stream=stream)
    get_logger(authorization="OSS4 abc").info("below.the_level")
    get_logger(authorization="OSS4 abc").warning("it.happened", name="a\x1b[2Jb\nc")
    text = stream.getvalue()
    assert "below.the_level" not in text
    assert "it.happened" in text
    assert "OSS4" not in text
    assert text.count("\n") == 1
    assert "\x1b" not in text


def test_structlog_is_loaded_for_the_first_event() -> None:
    code = (
        "import logging, sys\n"
        "from uploader.log import configure, get_logger, is_enabled\n"
        "configure('warning', is_json=True, stream=sys.stderr)\n"
        "assert not is_enabled(logging.INFO) and is_enabled(logging.WARNING)\n"
        "assert not {'structlog', 'rich'} & set(sys.modules)\n"
        "get_logger(token='t').info('below.the_level')\n"
        "get_logger(token='t').warning('it.happened')\n"
        "assert not is_enabled(logging.INFO) and is_enabled(logging.WARNING)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    event = json.loads(done.stderr)
    assert (event["event"], event["token"], done.returncode) == ("it.happened", "[redacted]", 0)


# --- redaction -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    "Authorization security_token SecurityToken access_key_secret Signature UploadAuth "
    "upload_auth bearer_token password".split(),
)
def test_values_are_hidden_by_key(key: str) -> None:
    assert cleaned(**{key: "plain"}) == {key: "[redacted]"}
    assert cleaned(outer={key: {"inner": 1}}) == {"outer": {key: "[redacted]"}}


def test_the_key_of_a_signed_playback_url_is_a_secret() -> None:
    shown = cleaned(reason="https://cdn/a.m3u8?auth_key=1796094927-0-0-5eb6&x=1")
    assert shown == {"reason": "https://cdn/a.m3u8?auth_key=[redacted]&x=1"}


def test_none_is_not_hidden() -> None:
    assert cleaned(bearer_token=None) == {"bearer_token": None}


@pytest.mark.parametrize("secret", [TOKEN, KEY_ID, TOKEN.replace("+", "%2B").replace("/", "%2F")])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: f"refused: {text}!",
        lambda text: {"inner": {"deep": text}},
        lambda text: [text, (text,)],
        lambda text: ValueError(text),
    ],
    ids=["text", "mapping", "sequence", "exception"],
)
def test_values_are_hidden_wherever_they_are(secret: str, wrap: object) -> None:
    assert callable(wrap)
    shown = repr(cleaned(reason=wrap(secret)))
    assert "anary" not in shown.lower()
    assert "[redacted]" in shown


def test_other_values_stay_as_they_are() -> None:
    event = {"part_number": 17, "pause_s": 0.5, "video_id": "c6a2", "is_new": True, "sizes": [1, 2]}
    assert cleaned(**event) == event


@pytest.mark.parametrize("char", ["\n", "\r", "\x00", "\x1b", "\x9b", "\u2028", "\u202e", "\udcff"])
def test_what_no_handler_can_write_is_replaced(char: str) -> None:
    assert cleaned(name=f"a{char}b") == {"name": "a\N{REPLACEMENT CHARACTER}b"}
    assert cleaned(names=[f"a{char}b"]) == {"names": ["a\N{REPLACEMENT CHARACTER}b"]}


@pytest.mark.parametrize(("level", "is_info_enabled"), [("info", True), ("critical", False)])
def test_whether_an_event_is_logged_is_known_before_it_is_made(
    level: str, is_info_enabled: bool
) -> None:
    configure(level, is_json=True, stream=io.StringIO())
    assert is_enabled(logging.INFO) is is_info_enabled
    assert is_enabled(logging.CRITICAL)


def test_without_structlog_the_standard_logger_decides(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vodup"):
        assert not is_enabled(logging.INFO)
        assert is_enabled(logging.WARNING)


def test_a_logger_without_levels_gets_every_event() -> None:
    structlog.configure(wrapper_class=structlog.stdlib.BoundLogger)
    assert is_enabled(logging.DEBUG)


def test_a_structlog_that_another_thread_is_loading_is_not_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "structlog", types.ModuleType("structlog"))
    assert not is_enabled(logging.DEBUG)


# --- events ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (PartStored(**WHOSE, part_number=3, size=1000, seconds=0.1), "debug"),
        (PartsAdopted(**WHOSE, part_count=2), "info"),
        (UploadCancelled(**WHOSE), "info"),
        (CredentialsRenewed(**WHOSE, renewal_count=1, seconds=0.1), "info"),
        (UploadRestarted(**WHOSE, reason="gone", lost_bytes=5), "warning"),
        (HookFailed(**WHOSE, message="The hook said no."), "warning"),
    ],
)
def test_an_event_is_logged_under_its_type(event: Event, level: str) -> None:
    stream = io.StringIO()
    configure("debug", is_json=True, stream=stream)
    Progress("movie.mp4", "v-1", []).send(event)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == (event.type, level)
    assert (line["key"], line["video_id"]) == ("movie.mp4", "v-1")


def test_progress_is_not_logged() -> None:
    stream = io.StringIO()
    configure("debug", is_json=True, stream=stream)
    event = UploadProgress(
        **WHOSE, done_bytes=1, size=2, acked_part_count=0, part_count=1, renewal_count=0,
        retry_count=0,
    )  # fmt: skip
    Progress("movie.mp4", "v-1", []).send(event)
    assert not stream.getvalue()


def test_a_log_that_cannot_be_written_raises_nothing() -> None:
    with open("/dev/full", "w") as full:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(full))
        get_logger(key="k").warning("it.happened")
        with pytest.raises(ServiceError), Progress("k", "v-1", []).reporting_failure():
            raise refusal()
        with contextlib.suppress(OSError):
            full.close()
