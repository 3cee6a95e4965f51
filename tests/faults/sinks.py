"""Everywhere something of an upload may come to be read: what is scanned for secrets."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import uploader
from uploader import VodupError

OURS = str(Path(uploader.__file__).parent)
OTHERS = "devserver"

Sink = tuple[str, str]
"""The name of a place, and what stands there."""


def of_error(error: VodupError) -> Iterator[Sink]:
    """Whatever an application, a test runner or an error reporter makes of an error."""
    yield "error: str", str(error)
    yield "error: repr", repr(error)
    yield "error: vars", repr(vars(error))
    yield "error: args", repr(error.args)
    yield "error: message", error.message
    yield "error: next step", error.next_step
    yield "error: traceback", "".join(traceback.format_exception(error))
    yield "error: pickle", pickle.dumps(error).decode("latin-1")
    yield "error: copy", repr(vars(copy.copy(error)))
    yield "error: deep copy", repr(vars(copy.deepcopy(error)))
    for link in chain_of(error):
        yield "error: chain", f"{link!r} {vars(link)!r}"
        yield "error: locals", "\n".join(locals_of(link.__traceback__))


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and all it came from, also what `from None` hides."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            todo += link.exceptions


def locals_of(trace: TracebackType | None) -> Iterator[str]:
    """The variables of every frame of ours, and of those we called; not of the test's own."""
    while trace is not None:
        yield from frame_texts(trace.tb_frame)
        trace = trace.tb_next


def frame_texts(frame: FrameType) -> Iterator[str]:
    name = frame.f_code.co_filename
    if not name.startswith(OURS) or OTHERS in name:
        return
    for variable, value in frame.f_locals.items():
        yield f"{variable}={value!r}"


def of_value(kind: str, value: Any) -> Iterator[Sink]:  # noqa: ANN401 - any public object
    """What becomes of a public object that is shown, stored or handed to another process."""
    yield f"{kind}: str", str(value)
    yield f"{kind}: repr", repr(value)
    yield f"{kind}: format", f"{value}"
    yield f"{kind}: copy", repr(copy.copy(value))
    try:
        yield f"{kind}: pickle", pickle.dumps(value).decode("latin-1")
    except (TypeError, AttributeError, pickle.PicklingError):
        yield f"{kind}: pickle", ""  # refused, which is as good
    if is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
        yield f"{kind}: fields", repr(shown)


def of_event(event: Any) -> Iterator[Sink]:  # noqa: ANN401
    """An event as a listener sees it, and as a line of JSON."""
    yield from of_value("event", event)
    yield "event: json", json.dumps(asdict(event), default=repr)


def of_process() -> Iterator[Sink]:
    """What every user of the machine may read of this process, and what its children inherit."""
    yield "process: argv", Path("/proc/self/cmdline").read_text(errors="replace")
    yield "process: environ", Path("/proc/self/environ").read_text(errors="replace")
    yield "process: name", Path("/proc/self/comm").read_text(errors="replace")
