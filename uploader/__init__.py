"""vodup: verified, resumable uploads to Alibaba Cloud ApsaraVideo VOD.

Everything public is here. Names are loaded when they are first used, so that
`import uploader` costs next to nothing. `import vodup` is the same package.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes longer to load than all of this
if TYPE_CHECKING:
    __version__: str

    from uploader.batch import Outcome as Outcome
    from uploader.batch import UploadItem as UploadItem
    from uploader.blocking import BlockingHandle as BlockingHandle
    from uploader.blocking import BlockingUploader as BlockingUploader
    from uploader.credentials import GrantProvider as GrantProvider
    from uploader.credentials import GrantSource as GrantSource
    from uploader.credentials import NewVideo as NewVideo
    from uploader.credentials import VodProvider as VodProvider
    from uploader.credentials.app_server import CallbackProvider as CallbackProvider
    from uploader.credentials.app_server import CommandProvider as CommandProvider
    from uploader.credentials.app_server import UrlProvider as UrlProvider
    from uploader.credentials.ims import ImsProvider as ImsProvider
    from uploader.errors import CallerNotAuthenticated as CallerNotAuthenticated
    from uploader.errors import ConfigurationError as ConfigurationError
    from uploader.errors import CredentialError as CredentialError
    from uploader.errors import CredentialsRejected as CredentialsRejected
    from uploader.errors import HookError as HookError
    from uploader.errors import IntegrityError as IntegrityError
    from uploader.errors import InvalidGrant as InvalidGrant
    from uploader.errors import LeaseLost as LeaseLost
    from uploader.errors import NotPlayable as NotPlayable
    from uploader.errors import OverwriteRefused as OverwriteRefused
    from uploader.errors import PermissionDenied as PermissionDenied
    from uploader.errors import PolicyError as PolicyError
    from uploader.errors import ProxyRefused as ProxyRefused
    from uploader.errors import ResourceUnavailable as ResourceUnavailable
    from uploader.errors import ServiceError as ServiceError
    from uploader.errors import SourceChanged as SourceChanged
    from uploader.errors import SourceError as SourceError
    from uploader.errors import SourceNotRepeatable as SourceNotRepeatable
    from uploader.errors import SourceUnreadable as SourceUnreadable
    from uploader.errors import StateError as StateError
    from uploader.errors import StateUnavailable as StateUnavailable
    from uploader.errors import TransferError as TransferError
    from uploader.errors import TransportError as TransportError
    from uploader.errors import UnsafePath as UnsafePath
    from uploader.errors import UnsupportedState as UnsupportedState
    from uploader.errors import UntrustedCertificate as UntrustedCertificate
    from uploader.errors import UntrustedEndpoint as UntrustedEndpoint
    from uploader.errors import UnverifiedCompletion as UnverifiedCompletion
    from uploader.errors import UploadLocked as UploadLocked
    from uploader.errors import UploadTargetChanged as UploadTargetChanged
    from uploader.errors import VideoError as VideoError
    from uploader.errors import VideoGone as VideoGone
    from uploader.errors import VodupError as VodupError
    from uploader.events import CredentialsRenewed as CredentialsRenewed
    from uploader.events import EarlierVideoFound as EarlierVideoFound
    from uploader.events import Event as Event
    from uploader.events import HookFailed as HookFailed
    from uploader.events import Listener as Listener
    from uploader.events import MediaAbandoned as MediaAbandoned
    from uploader.events import PartsAdopted as PartsAdopted
    from uploader.events import PartStored as PartStored
    from uploader.events import RequestRetried as RequestRetried
    from uploader.events import UploadCancelled as UploadCancelled
    from uploader.events import UploadFailed as UploadFailed
    from uploader.events import UploadFinished as UploadFinished
    from uploader.events import UploadProgress as UploadProgress
    from uploader.events import UploadRestarted as UploadRestarted
    from uploader.events import UploadResult as UploadResult
    from uploader.events import UploadStarted as UploadStarted
    from uploader.handles import UploadHandle as UploadHandle
    from uploader.hooks import EndedUpload as EndedUpload
    from uploader.hooks import Hooks as Hooks
    from uploader.hooks import PlannedVideo as PlannedVideo
    from uploader.hooks import command_hooks as command_hooks
    from uploader.hooks import installed_hooks as installed_hooks
    from uploader.library import PlayableVideo as PlayableVideo
    from uploader.library import VodLibrary as VodLibrary
    from uploader.notifications import Webhook as Webhook
    from uploader.options import UploadOptions as UploadOptions
    from uploader.pace import Bandwidth as Bandwidth
    from uploader.pace import parse_bandwidth as parse_bandwidth
    from uploader.protocol.decode import decode_answer as decode_answer
    from uploader.protocol.decode import decode_grant as decode_grant
    from uploader.protocol.decode import encode_answer as encode_answer
    from uploader.protocol.grants import StsCredentials as StsCredentials
    from uploader.protocol.grants import UploadGrant as UploadGrant
    from uploader.protocol.grants import UploadTarget as UploadTarget
    from uploader.protocol.media import MediaKind as MediaKind
    from uploader.protocol.media import PlayStream as PlayStream
    from uploader.protocol.media import StoredMedia as StoredMedia
    from uploader.protocol.media import VideoInfo as VideoInfo
    from uploader.protocol.oss import ObjectFacts as ObjectFacts
    from uploader.protocol.trust import TrustPolicy as TrustPolicy
    from uploader.protocol.vod import AccessKey as AccessKey
    from uploader.protocol.vod import VideoMeta as VideoMeta
    from uploader.session import RetryPolicy as RetryPolicy
    from uploader.sources import AnySource as AnySource
    from uploader.sources import BytesSource as BytesSource
    from uploader.sources import CommandReader as CommandReader
    from uploader.sources import FileObjectSource as FileObjectSource
    from uploader.sources import FileSource as FileSource
    from uploader.sources import HlsPackage as HlsPackage
    from uploader.sources import MemoryBuffer as MemoryBuffer
    from uploader.sources import PartStream as PartStream
    from uploader.sources import Source as Source
    from uploader.sources import StreamSource as StreamSource
    from uploader.sources import UrlPolicy as UrlPolicy
    from uploader.sources.followed import FollowedFile as FollowedFile
    from uploader.sources.followed import Until as Until
    from uploader.sources.fsspec import FsspecSource as FsspecSource
    from uploader.sources.spool import Spool as Spool
    from uploader.sources.urls import UrlSource as UrlSource
    from uploader.state import MemoryState as MemoryState
    from uploader.state import SqlState as SqlState
    from uploader.state import StateStore as StateStore
    from uploader.state import UploadRecord as UploadRecord
    from uploader.state import UploadStatus as UploadStatus
    from uploader.uploader import Uploader as Uploader
    from uploader.uploader import upload_sync as upload_sync
    from uploader.watch.after import AfterUpload as AfterUpload
    from uploader.watch.attaching import attach_companions as attach_companions
    from uploader.watch.endings import WatchOutcome as WatchOutcome
    from uploader.watch.options import WatchOptions as WatchOptions
    from uploader.watch.scan import Companions as Companions
    from uploader.watch.watcher import Watcher as Watcher

_HOMES = {
    "credentials": "GrantProvider GrantSource NewVideo VodProvider",
    "credentials.app_server": "CallbackProvider CommandProvider UrlProvider",
    "credentials.ims": "ImsProvider",
    "blocking": "BlockingHandle BlockingUploader",
    "uploader": "Uploader upload_sync",
    "handles": "UploadHandle",
    "errors": "CallerNotAuthenticated ConfigurationError CredentialError CredentialsRejected "
    "HookError IntegrityError InvalidGrant LeaseLost NotPlayable OverwriteRefused PermissionDenied "
    "PolicyError ProxyRefused ResourceUnavailable ServiceError SourceChanged SourceError "
    "SourceNotRepeatable SourceUnreadable StateError StateUnavailable TransferError "
    "TransportError UnsafePath UnsupportedState "
    "UntrustedCertificate UntrustedEndpoint UnverifiedCompletion UploadLocked UploadTargetChanged "
    "VideoError VideoGone VodupError",
    "events": "CredentialsRenewed EarlierVideoFound Event HookFailed Listener MediaAbandoned "
    "PartStored PartsAdopted RequestRetried UploadCancelled UploadFailed UploadFinished "
    "UploadProgress UploadRestarted UploadResult UploadStarted",
    "hooks": "EndedUpload Hooks PlannedVideo command_hooks installed_hooks",
    "batch": "Outcome UploadItem",
    "library": "PlayableVideo VodLibrary",
    "notifications": "Webhook",
    "options": "UploadOptions",
    "pace": "Bandwidth parse_bandwidth",
    "protocol.decode": "decode_answer decode_grant encode_answer",
    "protocol.grants": "StsCredentials UploadGrant UploadTarget",
    "protocol.media": "MediaKind PlayStream StoredMedia VideoInfo",
    "protocol.oss": "ObjectFacts",
    "protocol.trust": "TrustPolicy",
    "protocol.vod": "AccessKey VideoMeta",
    "session": "RetryPolicy",
    "sources": "AnySource BytesSource CommandReader FileObjectSource FileSource HlsPackage "
    "MemoryBuffer PartStream Source StreamSource UrlPolicy",
    "sources.followed": "FollowedFile Until",
    "sources.fsspec": "FsspecSource",
    "sources.spool": "Spool",
    "sources.urls": "UrlSource",
    "state": "MemoryState SqlState StateStore UploadRecord UploadStatus",
    "watch.after": "AfterUpload",
    "watch.attaching": "attach_companions",
    "watch.endings": "WatchOutcome",
    "watch.options": "WatchOptions",
    "watch.scan": "Companions",
    "watch.watcher": "Watcher",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name == "__version__":
        from importlib.metadata import version

        return version("vodup")
    if (home := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__]
