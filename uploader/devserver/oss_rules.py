"""The rules of OSS that are not about access: part numbers, sizes, order, checksums.

Sources: "OSS API: UploadPart, ListParts, CompleteMultipartUpload, PutObject".
"""

from __future__ import annotations

from .answers import Refusal
from .backend import Backend
from .bodies import ReceivedBody
from .oss_call import OssCall
from .oss_keys import check_expiry
from .storage import Credential, Part, Upload

MAX_PART_NUMBER = 10_000
MAX_PART_SIZE = 5 * 1024**3  # "OSS API: UploadPart", also the limit of PutObject


def open_upload(backend: Backend, call: OssCall, *, ec: str = "0042-00000104") -> Upload:
    """The upload a request names; ``ec`` differs by operation.

    Raises: Refusal when it is not open for this key.
    """
    upload = backend.storage.upload(call.upload_id)
    if upload is None or (upload.bucket, upload.object_key) != (call.bucket, call.object_key):
        raise Refusal("NoSuchUpload", ec=ec, fields={"UploadId": call.upload_id})
    return upload


def valid_part_number(call: OssCall) -> int:
    """``partNumber``, from 1 to 10,000."""
    number = call.part_number
    if number is None or not 1 <= number <= MAX_PART_NUMBER:
        raise invalid_argument(
            "Part number must be an integer between 1 and 10000, inclusive.",
            "partNumber",
            call.parameter("partNumber"),
        )
    return number


def number_parameter(call: OssCall, name: str, default: int, low: int, high: int) -> int:
    """A number in the query, between ``low`` and ``high``."""
    text = call.parameter(name)
    if not text:
        return default
    if not (text.isdecimal() and text.isascii() and low <= int(text) <= high):
        raise invalid_argument(
            f"Argument {name} must be an integer between {low} and {high}.", name, text
        )
    return int(text)


def check_length(call: OssCall) -> None:
    """A body declares its length, of at most 5 GiB."""
    length = call.headers.get("content-length")
    if length is None and "transfer-encoding" not in call.headers:
        raise Refusal("MissingContentLength")
    if length is not None and int(length) > MAX_PART_SIZE:
        raise Refusal("EntityTooLarge", fields={"MaxSizeAllowed": str(MAX_PART_SIZE)})


def check_sequence(backend: Backend, upload: Upload, number: int) -> None:
    """Parts of a sequential upload come in order, each once."""
    if not upload.is_sequential:
        return
    stored = backend.storage.part(upload.upload_id, number)
    if stored is not None:
        fields = {"PartNumber": str(number), "PartEtag": stored.etag}
        raise Refusal("PartAlreadyExist", fields=fields)
    if number != len(backend.storage.parts(upload.upload_id)) + 1:
        raise Refusal("PartNotSequential")


def check_body(backend: Backend, call: OssCall, body: ReceivedBody, credential: Credential) -> None:
    """The body has the checksum the client declared, and its token (by option) is still valid."""
    if backend.options.check_expiry_at_end:
        check_expiry(backend, credential)
    claimed = call.headers.get("content-md5")
    if claimed is not None and claimed != body.content_md5:
        raise Refusal("InvalidDigest", fields={"Content-MD5": claimed})
    claimed_crc = call.headers.get("x-oss-hash-crc64ecma")
    if claimed_crc is not None and claimed_crc != str(body.crc64):
        raise Refusal(
            "InvalidCRC64",
            "The x-oss-hash-crc64ecma you specified does not match what we calculated.",
        )


def check_overwrite(backend: Backend, call: OssCall) -> None:
    """``x-oss-forbid-overwrite`` protects an object that exists; buckets with versions ignore it.

    Raises: Refusal also where the header is not allowed (by option), and for another value.
    """
    value = call.headers.get("x-oss-forbid-overwrite")
    answer = backend.options.forbid_overwrite
    if value is None or answer == "ignored":
        return
    if answer == "denied":
        raise Refusal("AccessDenied")
    if answer == "invalid" or value.lower() not in ("true", "false"):
        message = "The value of x-oss-forbid-overwrite is invalid."
        raise Refusal("InvalidArgument", message, ec="0017-00000279")
    if value.lower() == "true" and backend.storage.object(call.bucket, call.object_key) is not None:
        raise Refusal("FileAlreadyExists")


def check_part_sizes(backend: Backend, parts: tuple[Part, ...]) -> None:
    """All parts but the last have the smallest size; judged at Complete only."""
    if not parts:
        raise Refusal("MalformedXML")
    for part in parts[:-1]:
        if part.size < backend.options.min_part_size:
            raise Refusal(
                "EntityTooSmall",
                fields={
                    "ETag": part.etag,
                    "MinSizeAllowed": str(backend.options.min_part_size),
                    "ProposedSize": str(part.size),
                    "PartNumber": str(part.part_number),
                },
            )


def invalid_argument(message: str, name: str, value: str) -> Refusal:
    """The refusal of one query parameter."""
    fields = {"ArgumentName": name, "ArgumentValue": value}
    return Refusal("InvalidArgument", message, fields=fields)
