"""UploadAddress and UploadAuth as VOD issues them, with every variation seen in practice.

Source: "VOD: Upload URLs and credentials".
"""

from __future__ import annotations

import json

from .backend import Backend, iso_date
from .encoding import to_base64
from .storage import Credential, Video

Address = dict[str, str]


def grant(backend: Backend, video: Video) -> tuple[str, str]:
    """Issue new credentials for a video: (UploadAddress, UploadAuth), both base64."""
    address, scopes = _address(backend, video)
    credential = backend.issue_credential(video, scopes)
    pair = (
        _encoded(backend, address),
        _encoded(backend, _auth(backend, credential)),
    )
    return (pair[1], pair[0]) if backend.options.swapped_pair else pair


def _address(backend: Backend, video: Video) -> tuple[Address, tuple[str, ...]]:
    address = {
        "Endpoint": backend.options.address_endpoint or backend.oss_endpoint,
        "Bucket": video.bucket,
        "FileName": video.object_key,
    }
    scopes = _scopes(video)
    if video.generation > 1:
        address, scopes = _varied(backend, video, address, scopes)
    if video.object_prefix:
        address["ObjectPrefix"] = video.object_prefix
    return address, scopes


def _scopes(video: Video) -> tuple[str, ...]:
    prefix = (f"{video.bucket}/{video.object_prefix}",) if video.object_prefix else ()
    return (f"{video.bucket}/{video.object_key}", *prefix)


def _varied(
    backend: Backend, video: Video, address: Address, scopes: tuple[str, ...]
) -> tuple[Address, tuple[str, ...]]:
    """The address of a refresh, when the options say that it differs."""
    differs = backend.options.refresh_target
    if differs == "same":
        return address, scopes
    if differs == "endpoint":
        return address | {"Endpoint": backend.other_oss_endpoint}, scopes
    if differs == "bucket":
        address = address | {"Bucket": backend.other_bucket}
    else:
        stem, dot, extension = video.object_key.rpartition(".")
        address = address | {"FileName": f"{stem}-{video.generation}{dot}{extension}"}
    new = (f"{address['Bucket']}/{address['FileName']}",)
    reach = {"original": scopes, "refreshed": new, "both": (*scopes, *new)}
    return address, reach[backend.options.refresh_scope]


def _auth(backend: Backend, credential: Credential) -> dict[str, object]:
    options = backend.options
    auth: dict[str, object] = {
        "SecurityToken": credential.token,
        "AccessKeyId": credential.access_key_id,
        "AccessKeySecret": credential.secret,
    }
    if options.expire_utc_time:
        auth["ExpireUTCTime"] = iso_date(credential.expires_at + options.clock_offset_s)
    life = round(credential.expires_at - credential.issued_at)
    printed = life if options.expiration_s is None else options.expiration_s
    if options.expiration != "missing":
        auth["Expiration"] = str(printed) if options.expiration == "string" else printed
    return auth | {"Region": options.auth_region or options.region}


def _encoded(backend: Backend, value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if backend.options.newline == "json":
        text = text.replace(",", ",\r\n") + "\n"
    encoded = to_base64(text.encode())
    if backend.options.newline == "base64":
        encoded = "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76)) + "\n"
    return encoded
