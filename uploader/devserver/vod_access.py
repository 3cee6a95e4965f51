"""The gateway of the VOD API: key, token, timestamp, nonce, signature, policy, flow control.

Sources: "Alibaba Cloud: RPC signature mechanism", "V3 request body and signature",
"Alibaba Cloud: common error codes", "VOD: API QPS limits".
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

from .answers import Refusal
from .backend import Backend
from .encoding import Pairs
from .signatures import (
    ACS_V3,
    SignedRequest,
    acs_signature,
    acs_string_to_sign,
    parse_acs_authorization,
    rpc_signature,
    rpc_string_to_sign,
)

API_VERSION = "2017-03-21"
IMS_VERSION = "2020-11-09"
IMS_OPERATIONS = frozenset({"CreateUploadMedia", "RefreshUploadMedia", "GetMediaInfo"})
MAX_SKEW_S = 900  # common error codes: a time stamp is good for 15 minutes
_REQUIRED_SIGNED_HEADERS = ("host", "x-acs-action", "x-acs-version", "x-acs-date")


@dataclass(frozen=True, slots=True)
class VodCall:
    """One RPC call; ``parameters`` are query and form together, ``body`` the raw form."""

    signed: SignedRequest
    parameters: Pairs
    body: bytes

    def parameter(self, name: str) -> str:
        """A parameter, or an empty string."""
        return next((value for key, value in self.parameters if key == name), "")

    @property
    def is_v3(self) -> bool:
        """Whether it is signed with ACS3-HMAC-SHA256 in headers."""
        return self.signed.headers.get("authorization", "").startswith(ACS_V3)

    @property
    def operation(self) -> str:
        """The requested action."""
        return self.signed.headers.get("x-acs-action") or self.parameter("Action")

    @property
    def version(self) -> str:
        """The requested API version."""
        return self.signed.headers.get("x-acs-version") or self.parameter("Version")


class Gateway:
    """Checks access of calls. Mutable: nonces that were used, recent calls."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._nonces: dict[str, float] = {}  # in the order of their use
        self._recent: dict[str, deque[float]] = {}

    def admit(self, call: VodCall) -> None:
        """Check access of a call.

        Raises: Refusal as the gateway words it.
        """
        if not call.operation:
            raise Refusal("MissingParameter", "Action is mandatory for this action.")
        if call.version != (IMS_VERSION if call.operation in IMS_OPERATIONS else API_VERSION):
            raise Refusal("InvalidVersion")
        if ("acs3" if call.is_v3 else "v2") not in self._backend.options.api_signatures:
            raise Refusal("IncompleteSignature")
        if call.is_v3:
            self._admit_v3(call)
        else:
            self._admit_v1(call)
        options, allowed = self._backend.options, self._backend.options.allowed_vod_operations
        is_allowed = allowed is None or call.operation in allowed
        if call.operation in options.denied_vod_operations or not is_allowed:
            raise Refusal("Forbidden.RAM")
        self._check_rate(call.operation)

    def _admit_v1(self, call: VodCall) -> None:
        for name in ("AccessKeyId", "Signature", "SignatureMethod", "SignatureVersion"):
            _require(call, name)
        for name in ("Timestamp", "SignatureNonce"):
            _require(call, name)
        if call.parameter("SignatureMethod") != "HMAC-SHA1":
            raise Refusal("IncompleteSignature")
        if call.parameter("SignatureVersion") != "1.0":
            raise Refusal("IncompleteSignature")
        self._check_key(call.parameter("AccessKeyId"), call.parameter("SecurityToken"))
        self._check_time(call.parameter("Timestamp"))
        text = rpc_string_to_sign(call.signed.method, call.parameters)
        expected = rpc_signature(self._backend.access_key_secret, text)
        _compare(expected, call.parameter("Signature"), text)
        self._use_nonce(call.parameter("SignatureNonce"))

    def _admit_v3(self, call: VodCall) -> None:
        headers = call.signed.headers
        try:
            authorization = parse_acs_authorization(headers["authorization"])
        except ValueError:
            raise Refusal("IncompleteSignature") from None
        if not set(_REQUIRED_SIGNED_HEADERS) <= set(authorization.signed_headers):
            raise Refusal("IncompleteSignature")
        self._check_key(authorization.access_key_id, headers.get("x-acs-security-token", ""))
        self._check_time(headers.get("x-acs-date", ""))
        if headers.get("x-acs-content-sha256") != hashlib.sha256(call.body).hexdigest():
            raise Refusal("SignatureDoesNotMatch", "The body does not match its hash.")
        text = acs_string_to_sign(call.signed, authorization.signed_headers)
        expected = acs_signature(self._backend.access_key_secret, text)
        _compare(expected, authorization.signature, text)
        self._use_nonce(headers.get("x-acs-signature-nonce", ""))

    def _check_key(self, access_key_id: str, token: str) -> None:
        if access_key_id != self._backend.access_key_id:
            raise Refusal("InvalidAccessKeyId.NotFound")
        wanted = self._backend.security_token if self._backend.options.caller_security_token else ""
        if wanted and not token:
            raise Refusal("MissingSecurityToken")
        if token != wanted:
            raise Refusal("InvalidSecurityToken.MismatchWithAccessKey")

    def _check_time(self, text: str) -> None:
        try:
            signed_at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise Refusal("InvalidTimeStamp.Format") from None
        if self._backend.skew_s(signed_at.timestamp()) > MAX_SKEW_S:
            raise Refusal("InvalidTimeStamp.Expired")

    def _use_nonce(self, nonce: str) -> None:
        """A nonce is valid once; it is dropped when its timestamp would be too old anyway."""
        if not nonce:
            raise Refusal("MissingParameter", "SignatureNonce is mandatory for this action.")
        now = time.monotonic()
        self._forget_nonces(now - 2 * MAX_SKEW_S)
        if nonce in self._nonces:
            raise Refusal("SignatureNonceUsed")
        self._nonces[nonce] = now

    def _forget_nonces(self, before: float) -> None:
        while self._nonces:
            oldest = next(iter(self._nonces))
            if self._nonces[oldest] >= before:
                return
            del self._nonces[oldest]

    def _check_rate(self, operation: str) -> None:
        limit = self._backend.options.vod_qps
        if limit is None:
            return
        now = time.monotonic()
        recent = self._recent.setdefault(operation, deque())
        while recent and now - recent[0] >= 1:
            recent.popleft()
        if len(recent) >= limit:
            raise Refusal("Throttling.User")
        recent.append(now)


def _require(call: VodCall, name: str) -> None:
    if not call.parameter(name):
        raise Refusal("MissingParameter", f"{name} is mandatory for this action.")


def _compare(expected: str, given: str, text: str) -> None:
    if not hmac.compare_digest(expected.encode(), given.encode()):
        message = "Specified signature is not matched with our calculation."
        raise Refusal("SignatureDoesNotMatch", f"{message} server string to sign is:{text}")
