"""vodup: verified, resumable uploads to Alibaba Cloud ApsaraVideo VOD.

Everything public is here. Names are loaded when they are first used, so that
`import uploader` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uploader.batch import Outcome, UploadItem
    from uploader.blocking import BlockingHandle, BlockingUploader
    from uploader.credentials import (
        CallbackProvider,
        CommandProvider,
        GrantProvider,
        GrantSource,
        ImsProvider,
        NewVideo,
        UrlProvider,
        VodProvider,
    )
    from uploader.errors import (
        CallerNotAuthenticated,
        ConfigurationError,
        CredentialError,
        CredentialsRejected,
        HookError,
        IntegrityError,
        InvalidGrant,
        LeaseLost,
        OverwriteRefused,
        PermissionDenied,
        PolicyError,
        ServiceError,
        SourceChanged,
        SourceError,
        SourceNotRepeatable,
        SourceUnreadable,
        StateError,
        StateUnavailable,
        TransferError,
        TransportError,
        UnsafePath,
        UnsupportedState,
        UntrustedEndpoint,
        UnverifiedCompletion,
        UploadLocked,
        UploadTargetChanged,
        VideoError,
        VideoGone,
        VodupError,
    )
    from uploader.events import (
        CredentialsRenewed,
        Event,
        HookFailed,
        PartsAdopted,
        PartStored,
        RequestRetried,
        UploadCancelled,
        UploadFailed,
        UploadFinished,
        UploadProgress,
        UploadRestarted,
        UploadResult,
        UploadStarted,
    )
    from uploader.handles import UploadHandle
    from uploader.hooks import EndedUpload, Hooks, PlannedVideo, command_hooks, installed_hooks
    from uploader.options import UploadOptions
    from uploader.pace import Bandwidth, parse_bandwidth
    from uploader.protocol.decode import decode_answer, decode_grant, encode_answer
    from uploader.protocol.grants import StsCredentials, UploadGrant, UploadTarget
    from uploader.protocol.trust import TrustPolicy
    from uploader.protocol.vod import AccessKey, VideoMeta
    from uploader.session import RetryPolicy
    from uploader.sources import (
        BytesSource,
        CommandReader,
        FileObjectSource,
        FileSource,
        FollowedFile,
        HlsPackage,
        MemoryBuffer,
        PartStream,
        Source,
        Spool,
        StreamSource,
        Until,
        UrlPolicy,
    )
    from uploader.sources.fsspec import FsspecSource
    from uploader.sources.urls import UrlSource
    from uploader.state import MemoryState, SqlState, StateStore, UploadRecord, UploadStatus
    from uploader.uploader import Uploader, upload_sync

__all__ = [
    "AccessKey",
    "Bandwidth",
    "BlockingHandle",
    "BlockingUploader",
    "BytesSource",
    "CallbackProvider",
    "CallerNotAuthenticated",
    "CommandProvider",
    "CommandReader",
    "ConfigurationError",
    "CredentialError",
    "CredentialsRejected",
    "CredentialsRenewed",
    "EndedUpload",
    "Event",
    "FileObjectSource",
    "FileSource",
    "FollowedFile",
    "FsspecSource",
    "GrantProvider",
    "GrantSource",
    "HlsPackage",
    "HookError",
    "HookFailed",
    "Hooks",
    "ImsProvider",
    "IntegrityError",
    "InvalidGrant",
    "LeaseLost",
    "MemoryBuffer",
    "MemoryState",
    "NewVideo",
    "Outcome",
    "OverwriteRefused",
    "PartStored",
    "PartStream",
    "PartsAdopted",
    "PermissionDenied",
    "PlannedVideo",
    "PolicyError",
    "RequestRetried",
    "RetryPolicy",
    "ServiceError",
    "Source",
    "SourceChanged",
    "SourceError",
    "SourceNotRepeatable",
    "SourceUnreadable",
    "Spool",
    "SqlState",
    "StateError",
    "StateStore",
    "StateUnavailable",
    "StreamSource",
    "StsCredentials",
    "TransferError",
    "TransportError",
    "TrustPolicy",
    "UnsafePath",
    "UnsupportedState",
    "Until",
    "UntrustedEndpoint",
    "UnverifiedCompletion",
    "UploadCancelled",
    "UploadFailed",
    "UploadFinished",
    "UploadGrant",
    "UploadHandle",
    "UploadItem",
    "UploadLocked",
    "UploadOptions",
    "UploadProgress",
    "UploadRecord",
    "UploadRestarted",
    "UploadResult",
    "UploadStarted",
    "UploadStatus",
    "UploadTarget",
    "UploadTargetChanged",
    "Uploader",
    "UrlPolicy",
    "UrlProvider",
    "UrlSource",
    "VideoError",
    "VideoGone",
    "VideoMeta",
    "VodProvider",
    "VodupError",
    "command_hooks",
    "decode_answer",
    "decode_grant",
    "encode_answer",
    "installed_hooks",
    "parse_bandwidth",
    "upload_sync",
]

_HOMES = {
    "credentials": "CallbackProvider CommandProvider GrantProvider GrantSource ImsProvider "
    "NewVideo UrlProvider VodProvider",
    "blocking": "BlockingHandle BlockingUploader",
    "uploader": "Uploader upload_sync",
    "handles": "UploadHandle",
    "errors": "CallerNotAuthenticated ConfigurationError CredentialError CredentialsRejected "
    "HookError IntegrityError InvalidGrant LeaseLost OverwriteRefused PermissionDenied PolicyError "
    "ServiceError SourceChanged SourceError SourceNotRepeatable SourceUnreadable StateError "
    "StateUnavailable TransferError TransportError UnsafePath UnsupportedState UntrustedEndpoint "
    "UnverifiedCompletion UploadLocked UploadTargetChanged VideoError VideoGone VodupError",
    "events": "CredentialsRenewed Event HookFailed PartStored PartsAdopted RequestRetried "
    "UploadCancelled UploadFailed UploadFinished UploadProgress UploadRestarted UploadResult "
    "UploadStarted",
    "hooks": "EndedUpload Hooks PlannedVideo command_hooks installed_hooks",
    "batch": "Outcome UploadItem",
    "options": "UploadOptions",
    "pace": "Bandwidth parse_bandwidth",
    "protocol.decode": "decode_answer decode_grant encode_answer",
    "protocol.grants": "StsCredentials UploadGrant UploadTarget",
    "protocol.trust": "TrustPolicy",
    "protocol.vod": "AccessKey VideoMeta",
    "session": "RetryPolicy",
    "sources": "BytesSource CommandReader FileObjectSource FileSource FollowedFile HlsPackage "
    "MemoryBuffer PartStream Source Spool StreamSource Until UrlPolicy",
    "sources.fsspec": "FsspecSource",
    "sources.urls": "UrlSource",
    "state": "MemoryState SqlState StateStore UploadRecord UploadStatus",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if (home := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__]
