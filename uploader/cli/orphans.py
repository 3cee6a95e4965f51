"""Multipart uploads that no record continues: their parts cost money until they are aborted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from uploader import StateStore, UploadTarget
from uploader.cli import run, settings
from uploader.cli.flag_groups import ConnectionFlags
from uploader.cli.printing import err, out, paragraph
from uploader.clock import SystemClock
from uploader.credentials import GrantSource, LiveGrant, Network
from uploader.errors import ConfigurationError, OverwriteRefused, ServiceError, VodupError
from uploader.network import with_endpoints
from uploader.pace import Pace
from uploader.protocol import oss
from uploader.protocol.failures import OSS, is_vanished
from uploader.session import RetryPolicy
from uploader.state import Orphan
from uploader.transport import AiohttpTransport

_PATIENCE_S: Final = 30.0


@asynccontextmanager
async def open_network(flags: ConnectionFlags) -> AsyncIterator[Network]:
    """Open connections for a few small requests: little patience, no bandwidth limit."""
    pace, clock = Pace(concurrency=1), SystemClock()
    retry = RetryPolicy(patience_s=_PATIENCE_S, first_contact_patience_s=_PATIENCE_S / 3)
    options = settings.network_options(flags)
    async with AiohttpTransport(
        pace=pace, ca_file=options.ca_file, proxy=options.proxy
    ) as transport:
        network = Network(transport, pace, clock, retry, settings.make_trust(flags))
        yield with_endpoints(network, options)


async def abort_orphans(
    state: StateStore, orphans: Sequence[Orphan], flags: ConnectionFlags
) -> int:
    """Abort each at OSS and forget it; what cannot be aborted stays listed."""
    codes = []
    provider = settings.require_provider(flags)
    async with open_network(flags) as network:
        grants = provider.connect(network)
        for orphan in orphans:
            try:
                await _abort(orphan, grants, network)
            except VodupError as error:
                err(*paragraph(error, about=f"upload {orphan.upload_id}"))
                codes.append(run.exit_code(error))
            else:
                await state.forget_orphan(orphan.upload_id)
                out(f"Aborted the multipart upload {orphan.upload_id} of video {orphan.video_id}.")
    return run.common_code(codes)


async def _abort(orphan: Orphan, grants: GrantSource, network: Network) -> None:
    video_id = orphan.video_id
    if video_id is None:
        raise ConfigurationError(
            "Its VideoId is not known, so that there are no credentials to abort it with.",
            next_step=f"Remove it in the OSS console: bucket {orphan.bucket}.",
        )
    await _require_unfinished(video_id, grants)
    target = network.trust.check_target(
        UploadTarget(orphan.endpoint, orphan.bucket, orphan.object_key)
    )
    dialect = await network.dialect_for(target)
    live = LiveGrant(target, lambda: grants.renew(video_id), clock=network.clock, dialect=dialect)
    session = network.session(live, OSS, network.pace.slot)
    try:
        await session.call(oss.abort_multipart_upload(target, orphan.upload_id))
    except ServiceError as error:
        if not is_vanished(error):
            raise


async def _require_unfinished(video_id: str, grants: GrantSource) -> None:
    """New credentials for a finished video would open an overwrite."""
    facts = await grants.facts(video_id)
    if facts is not None and facts.is_finished:
        raise OverwriteRefused(
            f"Video {video_id} is finished (status {facts.status}); credentials to abort with "
            "would allow overwriting it.",
            next_step="Leave the parts to the bucket's lifecycle rule, or remove them in the "
            "OSS console.",
        )
