"""A local OSS and ApsaraVideo VOD: for trying a pipeline without an account, and for tests.

It imports nothing else of this distribution and no SDK, so that a misreading of the protocol
cannot cancel itself out.
"""

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
