"""All errors, as a caller may want to catch them.

VodupError
├── ConfigurationError            an option, an argument or a manifest is wrong
├── CredentialError               identity and permissions
│   ├── InvalidGrant              UploadAddress/UploadAuth cannot be decoded
│   ├── CallerNotAuthenticated    no AccessKey, or VOD or an app server refuses us
│   ├── CredentialsRejected       OSS refuses credentials that VOD has just renewed
│   └── PermissionDenied          the credentials are good, their policy says no
├── VideoError                    VOD's record of the video
│   ├── VideoGone                 not found, or damaged
│   ├── OverwriteRefused          it is finished; overwriting was not requested
│   └── NotPlayable               stored and verified, but it does not play (yet)
├── TransferError                 the data did not arrive
│   ├── TransportError            no usable answer: refused, reset, stalled, timed out
│   ├── ServiceError              a service refused a request
│   └── UploadTargetChanged       VOD moved the upload to another bucket or key
├── IntegrityError                OSS stored other bytes than were sent
├── UnverifiedCompletion          OSS completed the object; nothing proves its content
├── SourceError                   the data to send
│   ├── SourceUnreadable          missing, no permission, not a regular file, empty
│   ├── SourceChanged             not the one the checkpoint describes
│   └── SourceNotRepeatable       a stream that is not buffered any more
├── StateError                    the checkpoints
│   ├── StateUnavailable          cannot be read or written (disk full, no permission)
│   ├── UnsupportedState          written by a newer vodup
│   ├── UploadLocked              another process is sending this upload
│   └── LeaseLost                 another process took this upload over
├── ResourceUnavailable           this machine lacks memory, descriptors, threads or space
├── HookError                     a hook failed before the video was created
└── PolicyError                   refused for security reasons; nothing was sent
    ├── UntrustedEndpoint         credentials would go to a host that is not OSS or VOD
    ├── UntrustedCertificate      the server's TLS certificate cannot be verified
    ├── ProxyRefused              the proxy does not accept us, or not this host
    └── UnsafePath                a path leads out of its folder

A class exists only where a caller would catch it separately; codes of the services stay
data (`ServiceError.code`). Every error says what failed, whether the same command can
resume later (`is_resumable`), and what to do next (`next_step`).
"""

from __future__ import annotations

from typing import ClassVar, Self

from uploader.redaction import redacted


class VodupError(Exception):
    """The base of every error this package raises.

    Attributes:
        video_id: the video it is about, once known.
        phase: what was being done, in the words of the main path ("create", "renew",
            "send", "complete", "verify", ...).
        next_step: one sentence for the user, starting with a verb.
        code: the service's code, for example "InvalidVideo.NotFound"; where no connection was
            made, the cause, for example "NameNotResolved" (`CONNECTION_CODES`); else "".
        request_id: for Alibaba Cloud's support; "" if there is none.
        is_resumable: whether the checkpoint is intact and the same command resumes.
        is_temporary: whether the same command may succeed later.
    """

    is_resumable: ClassVar[bool] = True
    is_temporary: bool = False
    default_next_step: ClassVar[str] = "Run the same command again."

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        video_id: str | None = None,
        phase: str | None = None,
        code: str = "",
        request_id: str = "",
    ) -> None:
        self.message = redacted(message)
        super().__init__(self.message)
        self.next_step = redacted(next_step) if next_step else self.default_next_step
        self.video_id = video_id
        self.phase = phase
        self.code = redacted(code)
        self.request_id = redacted(request_id)

    def located(self, *, video_id: str | None, phase: str | None) -> Self:
        """Fill in where it happened, as far as it is not known yet, and return self."""
        self.video_id = self.video_id or video_id
        self.phase = self.phase or phase
        return self

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own calls the class with its positional arguments alone, and a worker
        # process could not send home an error whose class requires more.
        return _bare, (type(self), self.message), self.__dict__


def _bare(kind: type[VodupError], message: str) -> VodupError:
    return kind.__new__(kind, message)


class ConfigurationError(VodupError):
    """An option or an argument is wrong; nothing was started."""

    is_resumable = False
    default_next_step = "Correct it, then run again."


def require_type(name: str, value: object, *kinds: type, instead: str = "") -> None:
    """Refuse an argument of a wrong type at the call; None is always allowed.

    Raises:
        ConfigurationError: `value` is of none of `kinds`. `instead` is its next step.
    """
    is_wrong_bool = isinstance(value, bool) and bool not in kinds  # which is an int to Python
    if value is None or (isinstance(value, kinds) and not is_wrong_bool):
        return
    names = " or ".join(kind.__name__ for kind in kinds)
    raise ConfigurationError(
        f"{name} must be {names}, and not {type(value).__name__}.", next_step=instead
    )


class CredentialError(VodupError):
    """The identity or a permission of the caller was not accepted."""


class InvalidGrant(CredentialError):
    """UploadAddress, UploadAuth or a whole answer cannot be decoded."""

    default_next_step = "Pass the answer of CreateUploadVideo or RefreshUploadVideo unchanged."


class CallerNotAuthenticated(CredentialError):
    """There is no AccessKey, or VOD refuses it; or an app server refuses the caller (401)."""

    default_next_step = (
        "Set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, then run again."
    )


class CredentialsRejected(CredentialError):
    """OSS refuses upload credentials although VOD has just issued them."""

    default_next_step = "Ask the issuer for working credentials, then run the same command again."


class PermissionDenied(CredentialError):
    """The credentials are valid, but their policy does not allow this."""

    default_next_step = "Ask for the missing permission, then run the same command again."


class VideoError(VodupError):
    """VOD's record of the video does not allow this upload."""


class VideoGone(VideoError):
    """VOD does not know the video, or no longer, or reports it as damaged."""

    default_next_step = (
        "Check the VideoId and the region. To remove this upload, run `vodup abort`. "
        "No other video was created in its place."
    )


class OverwriteRefused(VideoError):
    """The video is finished; sending again would overwrite it."""

    is_resumable = False
    default_next_step = "Pass --overwrite (overwrite=True) to replace its content."


class NotPlayable(VideoError):
    """The video does not play: VOD has failed to make it so, or not finished (`is_temporary`)."""

    default_next_step = (
        "Check the file and the transcoding template group in the VOD console, then upload it "
        "again or have it transcoded again there."
    )


class TransferError(VodupError):
    """The data could not be transferred."""


class TransportError(TransferError):
    """A request got no usable answer.

    Attributes:
        is_sent: whether the service may have seen and applied the request; False only
            when certainly not (no connection was made).
        is_timeout: whether the peer did not answer in time: it, or the path to it, may be
            overloaded.
    """

    is_temporary = True
    default_next_step = "Check the network, then run the same command again to resume."

    def __init__(
        self,
        message: str,
        *,
        is_sent: bool,
        is_timeout: bool = False,
        next_step: str | None = None,
        code: str = "",
    ) -> None:
        super().__init__(message, next_step=next_step, code=code)
        self.is_sent, self.is_timeout = is_sent, is_timeout


class ServiceError(TransferError):
    """A service refused a request.

    Only the named fields of an answer are kept, cleaned of control characters: OSS
    echoes the SecurityToken in the body of `SecurityTokenExpired`.

    Attributes:
        operation: the API's name of the call, for example "UploadPart".
        status: HTTP status. VOD sends throttling as 400: decide by `code`.
        code: for example "SecurityTokenExpired"; "" when the answer was not the service's.
        ec: OSS's detailed error code, for example "0002-00000007"; "" if absent.
        server_epoch_s: the service's clock according to the answer, in seconds since 1970.
        retry_after_s: how long the service asks to wait, in seconds.
        is_repeat: whether an earlier attempt of the same call may have been carried out.
        oss_region: the bucket's region as OSS's answer names it.
    """

    is_repeat: bool = False

    default_next_step = (
        "Look up the code in the documentation of the service and fix the cause, then run the same "
        "command again. Support needs the request ID."
    )

    def __init__(
        self,
        message: str,
        *,
        operation: str,
        status: int,
        code: str,
        request_id: str = "",
        ec: str = "",
        server_epoch_s: float | None = None,
        retry_after_s: float | None = None,
        oss_region: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step, code=code, request_id=request_id)
        self.operation = operation
        self.status = status
        self.ec = ec
        self.server_epoch_s = server_epoch_s
        self.retry_after_s = retry_after_s
        self.oss_region = oss_region


class UploadTargetChanged(TransferError):
    """VOD's renewed address names another bucket or key, and OSS refuses the first one."""

    default_next_step = (
        "Pass --on-target-change restart to send everything again to the new address "
        "under the same VideoId."
    )


class IntegrityError(VodupError):
    """OSS stored other bytes than were sent; this is never a success."""

    default_next_step = (
        "Run the same command again. If it fails again, run `vodup verify` and report the request "
        "ID."
    )


class UnverifiedCompletion(VodupError):
    """OSS completed the object, but neither CRC-64 nor ETag proves its bytes."""

    default_next_step = (
        "Push it again with --overwrite (overwrite=True in code): that compares the object once "
        "more, and sends everything again unless the object is proved to be the same."
    )


class SourceError(VodupError):
    """The data to send is not available as expected."""


class SourceUnreadable(SourceError):
    """The source is missing, empty, not a regular file, or may not be read."""

    default_next_step = "Check the path and its permissions, then run again."


class SourceChanged(SourceError):
    """The source is not the one the checkpoint describes."""

    default_next_step = (
        "Restore the original and run the same command, or remove the upload with "
        "`vodup abort` and start over."
    )


class SourceNotRepeatable(SourceError):
    """Data of a stream would have to be sent again, but is not buffered any more.

    Nothing was completed. The upload can only be resumed with a producer that starts again at
    its first byte; parts that OSS has are then compared, not sent again.
    """

    is_resumable = False
    default_next_step = (
        "Run the producer again from its start, with the same --key. Parts that OSS has are "
        "compared, not sent again."
    )


class StateError(VodupError):
    """The checkpoint store does not allow the upload to continue."""


class StateUnavailable(StateError):
    """The checkpoint cannot be read or written."""

    is_temporary = True
    default_next_step = (
        "Check the free space and the permissions of the state path, then run again."
    )


class UnsupportedState(StateError):
    """The checkpoint store was written by a newer version; it was left untouched."""

    default_next_step = "Use the vodup version that wrote it, or another --state."


class UploadLocked(StateError):
    """Another process is sending this upload."""

    default_next_step = "Wait for it to finish, or stop it; no progress is lost."


class LeaseLost(StateError):
    """This process did not renew its lease in time, and another one took the upload over."""

    default_next_step = "Let the other process finish; `vodup status` shows it."


class ResourceUnavailable(VodupError):
    """This machine lacks memory, descriptors, threads or space, or refuses an operation."""

    is_temporary = True
    default_next_step = "Check this machine and its limits, then run the same command again."


class HookError(VodupError):
    """A hook, code of the caller, failed."""

    default_next_step = "Fix the hook, then run the same command again."


class PolicyError(VodupError):
    """Refused for security reasons; nothing was sent."""


class UntrustedEndpoint(PolicyError):
    """Credentials would have been sent to a host that is not known to be OSS or VOD."""

    default_next_step = (
        "Check who issued this address. A host of your own must be allowed explicitly "
        "(--allow-host, or allowed_hosts= in code)."
    )


class UntrustedCertificate(PolicyError):
    """The server's TLS certificate cannot be verified; waiting does not change that."""

    default_next_step = (
        "Check this machine's CA certificates; behind a proxy that inspects TLS, pass its CA "
        "certificate with --ca-file (VODUP_CA_FILE, ca_file= in code; SSL_CERT_FILE is not read). "
        "Then run the same command again. Verification cannot be switched off."
    )


class ProxyRefused(PolicyError):
    """The proxy refuses to connect: it does not accept us (407), or not this host (403)."""

    default_next_step = (
        "Ask whoever runs the proxy to allow this host, or pass another --proxy (proxy= in code). "
        "Then run the same command again to resume."
    )


class UnsafePath(PolicyError):
    """A path leads out of the folder that it must stay in."""

    default_next_step = "Move the file below the root, or choose another --root."


def without_frames(error: VodupError) -> VodupError:
    """The error without the way it came: to be raised outside the block that caught it.

    What reads an answer or a grant has its text, and with it credentials, in local variables,
    and error reporters send the variables of every frame.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
