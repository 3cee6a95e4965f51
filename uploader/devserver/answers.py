"""HTTP answers and refusals, and the errors of OSS and VOD by code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileSlice:
    """``size`` bytes of a file from ``offset``; no path means zeros (discarded bodies)."""

    path: Path | None
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; ``slices`` are streamed in place of ``body``."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/xml"
    slices: tuple[FileSlice, ...] = ()
    code: str = ""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One documented error: HTTP status, message, and OSS's EC."""

    status: int
    message: str
    ec: str = ""


class Refusal(Exception):
    """The request is refused with a documented error of OSS or VOD.

    ``fields`` are further elements of the error document. Status, message and EC default to
    the row of the code in the service's table.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        status: int = 0,
        ec: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.status = status
        self.ec = ec
        self.fields = dict(fields or {})

    def row(self, table: Mapping[str, ErrorRow]) -> ErrorRow:
        """Status, message and EC of this refusal; what it does not set comes from ``table``."""
        known = table.get(self.code, ErrorRow(400, self.code))
        return ErrorRow(
            self.status or known.status, self.message or known.message, self.ec or known.ec
        )


# "OSS: Error codes" and "OSS: 0002 to 0042 EC pages".
OSS_ERRORS: Mapping[str, ErrorRow] = {
    "AccessDenied": ErrorRow(403, "Access denied by authorizer's policy.", "0003-00000001"),
    "AccessForbidden": ErrorRow(  # the spelling is OSS's
        403,
        "CORSResponse: This CORS request is not allowed. This is usually because the evalution of "
        "Origin, request method / Access-Control-Request-Method or Access-Control-Requet-Headers "
        "are not whitelisted by the resource's CORS spec.",
    ),
    "AccessKeyIdAndSecurityTokenNotMatch": ErrorRow(
        403, "The AccessKeyId and SecurityToken do not match.", "0002-00000004"
    ),
    "ActiveRequestLimitExceeded": ErrorRow(503, "Active request limit exceeded."),
    "CallbackFailed": ErrorRow(203, "Error status : 502.", "0007-00000203"),
    "EntityTooLarge": ErrorRow(
        400, "Your proposed upload exceeds the maximum allowed size.", "0042-00000107"
    ),
    "EntityTooSmall": ErrorRow(
        400, "Your proposed upload smaller than the minimum allowed size.", "0042-00000209"
    ),
    "FileAlreadyExists": ErrorRow(
        409, "The object you specified already exists and can not be overwritten.", "0026-00000002"
    ),
    "IncompleteBody": ErrorRow(
        400, "You did not provide the number of bytes specified by the Content-Length HTTP header."
    ),
    "InternalError": ErrorRow(
        500, "We encountered an internal error. Please try again.", "0017-00000001"
    ),
    "InvalidAccessKeyId": ErrorRow(
        403, "The OSS Access Key Id you provided does not exist in our records.", "0002-00000902"
    ),
    "InvalidArgument": ErrorRow(400, "Invalid Argument.", "0042-00000101"),
    "InvalidDigest": ErrorRow(400, "The Content-MD5 you specified was invalid.", "0042-00000106"),
    "InvalidPart": ErrorRow(
        400,
        "One or more of the specified parts could not be found or the specified entity tag "
        "might not have matched the part's entity tag.",
        "0042-00000207",
    ),
    "InvalidPartOrder": ErrorRow(
        400, "The list of parts was not in ascending order.", "0042-00000208"
    ),
    "InvalidEncryptionAlgorithmError": ErrorRow(
        400, "The Encryption request you specified is not valid. Supported value: AES256/KMS/SM4."
    ),
    "InvalidRange": ErrorRow(416, "The requested range cannot be satisfied"),
    "InvalidSecurityToken": ErrorRow(
        403, "The security token you provided is invalid.", "0002-00000006"
    ),
    "PublicEndpointForbidden": ErrorRow(
        400,
        "Not allowed using the OSS public endpoint, please use CNAME instead.",
        "0048-00000401",
    ),
    "MalformedXML": ErrorRow(
        400,
        "The XML you provided was not well-formed or did not validate against our published "
        "schema.",
        "0042-00000205",
    ),
    "MethodNotAllowed": ErrorRow(405, "The specified method is not allowed against this resource."),
    "MissingContentLength": ErrorRow(
        411, "You must provide the Content-Length HTTP header.", "0042-00000105"
    ),
    "NoSuchBucket": ErrorRow(404, "The specified bucket does not exist.", "0015-00000101"),
    "NoSuchKey": ErrorRow(404, "The specified key does not exist.", "0026-00000001"),
    "NoSuchUpload": ErrorRow(
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may "
        "have been aborted or completed.",
        "0042-00000104",
    ),
    "NotImplemented": ErrorRow(
        501, "A header you provided implies functionality that is not implemented."
    ),
    "PartAlreadyExist": ErrorRow(
        409,
        "For sequential multipart upload, you can't overwrite uploaded parts.",
        "0042-00000108",
    ),
    "PartNotSequential": ErrorRow(
        400, "For sequential multipart upload, you must upload parts in order.", "0042-00000109"
    ),
    "PreconditionFailed": ErrorRow(
        412, "At least one of the pre-conditions you specified did not hold."
    ),
    "RequestTimeTooSkewed": ErrorRow(
        403,
        "The difference between the request time and the current time is too large.",
        "0002-00000504",
    ),
    "RequestTimeout": ErrorRow(
        400,
        "Your socket connection to the server was not read from or written to within the "
        "timeout period.",
        "0017-00000005",
    ),
    "SecurityTokenExpired": ErrorRow(
        403, "The security token you provided has expired.", "0002-00000007"
    ),
    "ServiceUnavailable": ErrorRow(503, "Please reduce your request rate.", "0004-00000301"),
    "SignatureDoesNotMatch": ErrorRow(
        403,
        "The request signature we calculated does not match the signature you provided. Check "
        "your key and signing method.",
        "0002-00000040",
    ),
    "TotalQpsLimitExceeded": ErrorRow(503, "Total qps limit exceeded.", "0004-00000302"),
}

# "VOD API: error codes" of each operation, "Alibaba Cloud: common error codes".
VOD_ERRORS: Mapping[str, ErrorRow] = {
    "AddVideoFailed": ErrorRow(503, "Adding video failed."),
    "ErrorMatchSyntax": ErrorRow(400, "The parameter Match has an error syntax."),
    "Forbidden": ErrorRow(403, "User not authorized to operate on the specified resource."),
    "Forbidden.IllegalStatus": ErrorRow(403, "Status of the video is illegal."),
    "Forbidden.InitFailed": ErrorRow(403, "Initialization of your account has failed."),
    "Forbidden.RAM": ErrorRow(
        403,
        "User not authorized to operate on the specified resource, or this API doesn't "
        "support RAM.",
    ),
    "IllegalCharacters": ErrorRow(400, "The specified parameter contains illegal characters."),
    "IncompleteSignature": ErrorRow(
        400, "The request signature does not conform to Aliyun standards."
    ),
    "InternalError": ErrorRow(500, "The request processing has failed due to backend service."),
    "InvalidAccessKeyId.NotFound": ErrorRow(404, "Specified access key is not found."),
    "InvalidAction.NotFound": ErrorRow(
        404, "Specified api is not found, please check your url and method."
    ),
    "InvalidFileName.Extension": ErrorRow(400, "The specified FileName's extension is illegal."),
    "InvalidImage.NotFound": ErrorRow(404, "The image not exist."),
    "InvalidParameter": ErrorRow(400, "The specified parameter is not valid."),
    "InvalidParameter.UploadURLs": ErrorRow(400, "The specified UploadURLs is not valid."),
    "InvalidSecurityToken.Expired": ErrorRow(400, "Specified SecurityToken is expired."),
    "InvalidSecurityToken.MismatchWithAccessKey": ErrorRow(
        400, "Specified SecurityToken mismatch with the AccessKey."
    ),
    "InvalidStorage.NotFound": ErrorRow(404, "The StorageLocation does not exist."),
    "InvalidTemplateGroupId.NotFound": ErrorRow(404, "The TemplateGroupId does not exist."),
    "InvalidTimeStamp.Expired": ErrorRow(400, "Specified time stamp or date value is expired."),
    "InvalidTimeStamp.Format": ErrorRow(
        400, "Specified time stamp or date value is not well formatted."
    ),
    "InvalidVersion": ErrorRow(400, "Specified parameter Version is not valid."),
    "InvalidVideo.Damaged": ErrorRow(400, "The video has been Damaged."),
    "InvalidVideo.NoneStream": ErrorRow(
        404, "The video has no stream to play for the request parameter."
    ),
    "InvalidVideo.NotFound": ErrorRow(404, "The video not exist."),
    "LengthExceededMax": ErrorRow(
        400, "The specified parameter length has exceeded the maximum allowed length."
    ),
    "LimitExceeded.MediaIds": ErrorRow(400, "The MediaIds exceed maximum."),
    "MissingParameter": ErrorRow(400, "The input parameter is missing."),
    "MissingSecurityToken": ErrorRow(400, "SecurityToken is mandatory for this action."),
    "NoSuchResource": ErrorRow(404, "The specified resource does not exist."),
    "OperationDenied": ErrorRow(403, "Your account does not open VOD service."),
    "OperationDenied.Suspended": ErrorRow(403, "Your VOD service is suspended."),
    "ServiceUnAvailable": ErrorRow(
        503, "The request has failed due to a temporary failure of the server."
    ),
    "SignatureDoesNotMatch": ErrorRow(
        400, "Specified signature is not matched with our calculation."
    ),
    "SignatureNonceUsed": ErrorRow(400, "Specified signature nonce was used already."),
    "TagsExceededMax": ErrorRow(400, "The specified Tags count has exceeded the maximum."),
    "Throttling.Api": ErrorRow(400, "Request was denied due to api flow control."),
    "Throttling.User": ErrorRow(400, "Request was denied due to user flow control."),
    "VideoIdsExceededMax": ErrorRow(400, "The VideoIds exceed maximum."),
}
