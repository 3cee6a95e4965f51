"""Which credentials a request names, and until when they are good."""

from __future__ import annotations

from .answers import Refusal
from .backend import Backend
from .storage import Credential


def known_credential(backend: Backend, access_key_id: str, token: str) -> Credential:
    """The STS credentials of this key and token.

    Raises: Refusal for an unknown key, a token that is missing, and one of another key.
    """
    credential = backend.storage.credential(access_key_id)
    if credential is None or not token:
        raise unknown_key(access_key_id, "0002-00000902")
    if token != credential.token:
        raise _wrong_token(backend, token)
    return credential


def _wrong_token(backend: Backend, token: str) -> Refusal:
    if any(known.token == token for known in backend.storage.credentials()):
        return Refusal("AccessKeyIdAndSecurityTokenNotMatch")
    return Refusal("InvalidSecurityToken")


def unknown_key(access_key_id: str, ec: str) -> Refusal:
    """The refusal of a key that does not exist, or not any more."""
    return Refusal("InvalidAccessKeyId", ec=ec, fields={"OSSAccessKeyId": access_key_id})


def check_expiry(backend: Backend, credential: Credential) -> None:
    """Refuse credentials that have expired; the answer echoes the token, as OSS's does."""
    age = backend.seconds_since_expiry(credential)
    if age < 0:
        return
    if age < backend.options.expired_grace_s:
        raise Refusal("SecurityTokenExpired", fields={"SecurityToken": credential.token})
    raise unknown_key(credential.access_key_id, "0002-00000002")
