"""Errors to exit codes: one table.

0  done, verified
1  failed for good, or several files failed in different ways
2  usage: an option, an argument, a value
3  credentials or permission
4  the source is missing or has changed
5  temporary: run the same command again
6  another process holds the upload
7  refused by policy
8  finished, but unverified
9  done, verified, but a hook (--on-finished) failed
130, 143  interrupted by Ctrl-C, by SIGTERM; resumable
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Final

from uploader import errors
from uploader.errors import ServiceError, SourceError, VodupError

__all__ = [
    "DONE",
    "FAILED",
    "HOOK_FAILED",
    "TABLE",
    "TEMPORARY",
    "USAGE",
    "common_code",
    "exit_code",
    "interrupted_code",
]

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
CREDENTIALS: Final = 3
SOURCE: Final = 4
TEMPORARY: Final = 5
HELD: Final = 6
POLICY: Final = 7
UNVERIFIED: Final = 8
HOOK_FAILED: Final = 9

TABLE: Final[dict[type[VodupError], int]] = {
    errors.VodupError: FAILED,
    errors.ConfigurationError: USAGE,
    errors.CredentialError: CREDENTIALS,
    errors.InvalidGrant: CREDENTIALS,
    errors.CallerNotAuthenticated: CREDENTIALS,
    errors.CredentialsRejected: CREDENTIALS,
    errors.PermissionDenied: CREDENTIALS,
    errors.VideoError: FAILED,
    errors.VideoGone: FAILED,
    errors.OverwriteRefused: POLICY,
    errors.TransferError: TEMPORARY,
    errors.TransportError: TEMPORARY,
    # An answer that says no is final, unless it is one of those that pass (`exit_code`).
    errors.ServiceError: FAILED,
    # The same command would be refused again: somebody has to decide.
    errors.UploadTargetChanged: FAILED,
    errors.IntegrityError: FAILED,
    errors.UnverifiedCompletion: UNVERIFIED,
    errors.SourceError: SOURCE,
    errors.SourceUnreadable: SOURCE,
    errors.SourceChanged: SOURCE,
    errors.SourceNotRepeatable: SOURCE,
    # Two uploads under one key, or one VideoId under two keys.
    errors.StateError: USAGE,
    errors.StateUnavailable: TEMPORARY,
    errors.UnsupportedState: USAGE,
    errors.UploadLocked: HELD,
    errors.LeaseLost: HELD,
    errors.HookError: FAILED,
    errors.PolicyError: POLICY,
    errors.UntrustedEndpoint: POLICY,
    errors.UnsafePath: POLICY,
}


def exit_code(error: VodupError) -> int:
    """Return the exit code of an error."""
    from uploader.protocol.failures import is_temporary

    if isinstance(error, ServiceError) and is_temporary(error):
        return TEMPORARY
    if isinstance(error, SourceError) and error.is_temporary:
        return TEMPORARY
    kinds = (kind for kind in type(error).__mro__ if kind in TABLE)
    return TABLE[next(kinds)]


def common_code(codes: Iterable[int]) -> int:
    """Return the code of a run over several files: theirs if they agree in failing."""
    failures = {code for code in codes if code != DONE}
    return failures.pop() if len(failures) == 1 else FAILED if failures else DONE


def interrupted_code(number: signal.Signals) -> int:
    """Return the code of a run that a signal ended, as shells count them."""
    return 128 + number
