"""Errors to exit codes."""

from __future__ import annotations

import inspect
import signal

import pytest

from uploader import errors
from uploader.cli import run
from uploader.errors import ServiceError, VodupError

CLASSES = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, VodupError)
]

DOCUMENTED = {
    errors.ConfigurationError: 2,
    errors.InvalidGrant: 3,
    errors.CallerNotAuthenticated: 3,
    errors.CredentialsRejected: 3,
    errors.PermissionDenied: 3,
    errors.VideoGone: 1,
    errors.OverwriteRefused: 7,
    errors.TransportError: 5,
    errors.IntegrityError: 1,
    errors.UnverifiedCompletion: 8,
    errors.SourceUnreadable: 4,
    errors.SourceChanged: 4,
    errors.StateUnavailable: 5,
    errors.UploadLocked: 6,
    errors.LeaseLost: 6,
    errors.UntrustedCertificate: 7,
    errors.UntrustedEndpoint: 7,
    errors.UnsafePath: 7,
}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_an_exit_code(kind: type[VodupError]) -> None:
    assert run.code_of(kind) in {*range(1, 9), run.NOT_PLAYABLE}


@pytest.mark.parametrize(("kind", "code"), DOCUMENTED.items())
def test_the_documented_codes(kind: type[VodupError], code: int) -> None:
    assert run.code_of(kind) == code


def test_an_unlisted_error_takes_the_code_of_its_base() -> None:
    class Special(errors.SourceChanged):
        """Somebody's own."""

    assert run.exit_code(Special("it changed")) == 4


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", 5),
        (500, "InternalError", 5),
        (400, "Throttling.User", 5),
        (400, "InvalidObjectName", 1),
        (403, "", 1),
    ],
)
def test_a_busy_service_is_temporary_and_a_refusal_is_not(
    status: int, code: str, expected: int
) -> None:
    error = ServiceError("no", operation="UploadPart", status=status, code=code)

    assert run.exit_code(error) == expected


@pytest.mark.parametrize(
    ("codes", "expected"), [([], 0), ([0, 0], 0), ([0, 4, 4], 4), ([4, 5], 1), ([3], 3)]
)
def test_several_files_share_a_code_only_if_they_agree(codes: list[int], expected: int) -> None:
    assert run.common_code(codes) == expected


def test_signals_have_the_exit_codes_of_shells() -> None:
    assert run.interrupted_code(signal.SIGINT) == 130
    assert run.interrupted_code(signal.SIGTERM) == 143
