"""A local OSS and ApsaraVideo VOD: for trying a pipeline without an account, and for tests.

It imports nothing else of this distribution and no SDK, so that a misreading of the protocol
cannot cancel itself out. Names are loaded when they are first used: pytest imports this package
in every project that has vodup installed.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .answers import Refusal
    from .faults import Fault, FaultScript
    from .options import DevServerOptions
    from .server import DevServer, serve
    from .stats import RequestRecord, Stats
    from .threaded import ThreadedDevServer

__all__ = [
    "DevServer",
    "DevServerOptions",
    "Fault",
    "FaultScript",
    "Refusal",
    "RequestRecord",
    "Stats",
    "ThreadedDevServer",
    "serve",
]

_HOMES = {
    "answers": "Refusal",
    "faults": "Fault FaultScript",
    "options": "DevServerOptions",
    "server": "DevServer serve",
    "stats": "RequestRecord Stats",
    "threaded": "ThreadedDevServer",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names.split():
            value: object = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
