"""The network that all uploads of an uploader share: connections, budgets and endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from uploader.batch import descriptor_share
from uploader.clock import Clock
from uploader.credentials import Network
from uploader.options import UploadOptions
from uploader.pace import MAX_CONCURRENCY, Pace
from uploader.protocol.trust import TrustPolicy
from uploader.protocol.wire import Transport
from uploader.transport import AiohttpTransport


async def open_network(
    stack: AsyncExitStack,
    *,
    options: UploadOptions,
    trust: TrustPolicy,
    transport: Transport | None,
    clock: Clock,
    shared_vod_budget: Callable[[], Awaitable[None]] | None,
) -> Network:
    """What all uploads share: connections and budgets; closed with `stack`."""
    wanted, most = options.concurrency, descriptor_share()
    pace = Pace(
        concurrency=wanted if wanted == "auto" else min(wanted, most),
        max_concurrency=min(MAX_CONCURRENCY, most),
        bandwidth=options.bandwidth_limit,
        vod_calls_per_s=options.vod_calls_per_s,
        shared_vod_budget=shared_vod_budget,
        clock=clock,
    )
    shared = pace, clock, options.retry, trust
    if transport is not None:
        return with_endpoints(Network(transport, *shared), options)
    own = await stack.enter_async_context(_transport_of(options, pace))
    await stack.enter_async_context(pace.steering(own))
    return with_endpoints(Network(own, *shared, congestion=own.congestion), options)


def _transport_of(options: UploadOptions, pace: Pace) -> AiohttpTransport:
    return AiohttpTransport(
        pace=pace,
        stall_timeout_s=options.stall_timeout_s,
        ca_file=options.ca_file,
        proxy=options.proxy,
    )


def with_endpoints(network: Network, options: UploadOptions) -> Network:
    """Return a network that sends to OSS as the options say.

    Raises:
        ConfigurationError, UntrustedEndpoint: `oss_endpoint` cannot be used.
    """
    network = replace(network, dialect=options.dialect)
    if options.oss_endpoint is None:
        return network
    from uploader.endpoints import OssEndpoints

    endpoints = OssEndpoints(
        options.oss_endpoint,
        dialect=options.dialect,
        transport=network.transport,
        trust=network.trust,
        metadata_url=options.metadata_url,
    )
    return replace(network, endpoints=endpoints)
