"""Multipart uploads that nobody continues: their parts cost money until they are aborted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from uploader import StateStore, UploadTarget
from uploader.cli import exits
from uploader.cli.opening import ca_file, make_provider, make_trust
from uploader.cli.options import Access
from uploader.cli.text import err, out, paragraph
from uploader.clock import SystemClock
from uploader.credentials import GrantSource, LiveGrant, Network
from uploader.errors import ConfigurationError, OverwriteRefused, ServiceError, VodupError
from uploader.pace import Pace
from uploader.protocol import oss
from uploader.protocol.failures import OSS, is_vanished
from uploader.protocol.signing import OssDialect
from uploader.session import RetryPolicy, Session
from uploader.state import Orphan
from uploader.transport import AiohttpTransport

__all__ = ["abort_orphans", "open_network"]

_PATIENCE_S = 30.0


@asynccontextmanager
async def open_network(access: Access) -> AsyncIterator[Network]:
    """Open connections for a few small requests: little patience, no bandwidth limit."""
    pace, clock = Pace(concurrency=1), SystemClock()
    retry = RetryPolicy(patience_s=_PATIENCE_S, first_contact_patience_s=_PATIENCE_S / 3)
    async with AiohttpTransport(pace=pace, ca_file=ca_file()) as transport:
        yield Network(transport, pace, clock, retry, make_trust(access))


async def abort_orphans(state: StateStore, orphans: Sequence[Orphan], access: Access) -> int:
    """Abort each at OSS and forget it; what cannot be aborted stays listed."""
    codes = []
    provider = make_provider(access, is_optional=False)
    if provider is None:
        raise ConfigurationError("Nobody was named who hands out grants.")
    async with open_network(access) as network:
        grants = provider.connect(network)
        for orphan in orphans:
            try:
                await _abort(orphan, grants, network)
            except VodupError as error:
                err(paragraph(error, about=f"upload {orphan.upload_id}"))
                codes.append(exits.exit_code(error))
            else:
                await state.forget_orphan(orphan.upload_id)
                out(f"aborted upload {orphan.upload_id} of video {orphan.video_id}")
    return exits.common_code(codes)


async def _abort(orphan: Orphan, grants: GrantSource, network: Network) -> None:
    video_id = orphan.video_id
    if video_id is None:
        raise ConfigurationError(
            "The VideoId it belonged to is not known, so nobody can give credentials for it.",
            next_step=f"Remove it in the console of OSS: bucket {orphan.bucket}.",
        )
    await _require_waiting(video_id, grants)
    target = UploadTarget(orphan.endpoint, orphan.bucket, orphan.object_key)
    session = _session(network.trust.check_target(target), video_id, grants, network)
    try:
        await session.call(oss.abort_multipart_upload(target, orphan.upload_id))
    except ServiceError as error:
        if not is_vanished(error):
            raise


async def _require_waiting(video_id: str, grants: GrantSource) -> None:
    """New credentials for a finished video would open an overwrite."""
    facts = await grants.facts(video_id)
    if facts is not None and not facts.is_waiting:
        raise OverwriteRefused(
            f"Video {video_id} is finished (status {facts.status}); asking for credentials to "
            "abort with would open it for overwriting.",
            next_step="Leave it to the bucket's lifecycle rule, or remove it in the console.",
        )


def _session(target: UploadTarget, video_id: str, grants: GrantSource, network: Network) -> Session:
    live = LiveGrant(
        target,
        lambda: grants.renew(video_id),
        clock=network.clock,
        dialect=OssDialect(None, "v4", False),
    )
    return Session(
        network.transport,
        live,
        clock=network.clock,
        service=OSS,
        slot=network.pace.slot,
        retry=network.retry,
    )
