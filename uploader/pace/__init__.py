"""How many connections, how many bytes a second: one budget for every upload of an `Uploader`."""

from uploader.pace.bandwidth import Bandwidth, parse_bandwidth
from uploader.pace.pace import Pace
from uploader.pace.steering import MAX_CONCURRENCY, LinkProbe, LinkSample

__all__ = ["MAX_CONCURRENCY", "Bandwidth", "LinkProbe", "LinkSample", "Pace", "parse_bandwidth"]
