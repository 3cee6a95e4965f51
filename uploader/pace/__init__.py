"""The budget of all uploads: connections, bytes per second, calls to VOD per second."""

from uploader.pace.bandwidth import Bandwidth, parse_bandwidth
from uploader.pace.pace import Pace
from uploader.pace.steering import MAX_CONCURRENCY, LinkProbe, LinkSample

__all__ = ["MAX_CONCURRENCY", "Bandwidth", "LinkProbe", "LinkSample", "Pace", "parse_bandwidth"]
