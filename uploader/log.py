"""Logging through structlog, with secrets redacted. A library never configures logging.

If the application has configured structlog, our events go through it. If it has configured
only the standard library's logging, they go to the logger "vodup": the message is the event, the
file and the reason ("upload.failed: movie.mp4: It changed."), and all values are in `extra` (names
that `LogRecord` uses itself, such as "message", become "message_"). If it has
configured neither, nothing is printed: structlog's default would print to stdout, where a
program's output belongs.

structlog is loaded for the first event that is logged, because it loads rich where that is
installed: a third of the time that an upload needs to start. An application that has not
loaded structlog has not configured it either.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TextIO, cast

from uploader.redaction import REDACTED, redacted

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger
    from structlog.typing import EventDict, Processor

_NAME = "vodup"
logging.getLogger(_NAME).addHandler(logging.NullHandler())

_SECRET_KEY = re.compile(r"authorization|token|secret|signature|upload_?auth|password", re.I)
_AUTH_KEY = re.compile(r"(?<=auth_key=)[^&\s\"']+")
"""Signs the URLs that videos are played from. The command line prints it on request."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_RESERVED = (vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}) - {
    "exc_info",
    "stack_info",
}
"""Names of a `LogRecord`'s own attributes: `extra` with such a name raises KeyError."""


def redact(logger: object, method: str, event: EventDict) -> EventDict:
    """Replace what looks like a secret, by key and by value, and what no handler can write.

    This is the second line of defence; the first is that secrets have no repr and are never
    passed to a logger. Control characters and lost bytes come from file names and messages of
    servers.
    """
    return {key: _clean(key, value) for key, value in event.items()}


def _clean(key: str, value: object) -> object:
    if value is not None and _SECRET_KEY.search(key):
        return REDACTED
    if key == "exc_info":
        return value  # for the renderer of tracebacks
    if isinstance(value, str):
        shown = _AUTH_KEY.sub(REDACTED, redacted(value))
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", shown)
    if isinstance(value, Mapping):
        return {inner: _clean(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(key, item) for item in value]
    if isinstance(value, BaseException):
        return _clean(key, f"{type(value).__name__}: {value}")
    return value


def _rename_reserved(logger: object, method: str, event: EventDict) -> EventDict:
    """Append "_" to names that `LogRecord` uses itself."""
    return {f"{key}_" if key in _RESERVED else key: value for key, value in event.items()}


def _in_words(logger: object, method: str, event: EventDict) -> EventDict:
    """Append which file it is about and the reason to the event, which is the message."""
    source = event.get("source") or event.get("key")
    reason = event.get("message") or event.get("reason") or event.get("error")
    words = (event.get("event"), source, reason)
    return {**event, "event": ": ".join(str(word) for word in words if word)}


def get_logger(**context: object) -> BoundLogger:
    """Return a bound logger. Call it for each event: configuration may come later.

    It never raises: a log that cannot be written must not end an upload.
    """
    return cast("BoundLogger", _Unfailing(_bound_logger(**context)))


class _Unfailing:
    def __init__(self, logger: BoundLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Callable[..., None]:
        def log(*args: object, **kwargs: object) -> None:
            with suppress(Exception):
                getattr(self._logger, name)(*args, **kwargs)

        return log


def _bound_logger(**context: object) -> BoundLogger:
    import structlog

    while _pending:
        _pending.pop()()
    if structlog.is_configured():
        processors = [redact, *structlog.get_config()["processors"]]
        logger = structlog.wrap_logger(None, processors=processors)
        return cast("BoundLogger", logger.bind(**context))
    logger = structlog.wrap_logger(
        logging.getLogger(_NAME),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            redact,
            _in_words,
            _rename_reserved,
            structlog.stdlib.render_to_log_kwargs,
        ],
        context_class=dict,
        cache_logger_on_first_use=False,
    )
    return cast("BoundLogger", logger.bind(**context))


def is_enabled(level: int) -> bool:
    """Whether events of this level of `logging` are logged; True where that is not known."""
    if _pending:
        return bool(level >= _pending[-1].keywords["level"])
    # Another thread may be loading it right now: a module without its names is not configured.
    is_configured = getattr(sys.modules.get("structlog"), "is_configured", None)
    if is_configured is None or not is_configured():
        return logging.getLogger(_NAME).isEnabledFor(level)
    try:
        return bool(_bound_logger().is_enabled_for(level))
    except AttributeError:  # the wrapper, or the logger inside it, does not have the method
        return True


def configure(level: str, *, is_json: bool, stream: TextIO) -> None:
    """Send the log of the command line to `stream` (stderr), redacted.

    If structlog is not loaded yet, it is configured for the first event that is logged.
    """
    logging.lastResort = logging.NullHandler()  # or other packages print their tracebacks
    number = logging.getLevelNamesMapping()[level.upper()]
    _pending[:] = [partial(_configure, level=number, is_json=is_json, stream=stream)]
    if "structlog" in sys.modules:
        get_logger()


_pending: list[partial[None]] = []
"""The configuration of the command line, until structlog has it. Mutable."""


def _configure(*, level: int, is_json: bool, stream: TextIO) -> None:
    import structlog

    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if is_json
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
