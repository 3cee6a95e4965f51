"""Many files: manifests in, a ledger out."""

from uploader.bulk.ledger import Ledger
from uploader.bulk.rows import Row, RowRules
from uploader.bulk.runner import Batch, BatchOptions
from uploader.bulk.streams import files_from, folder_stream, manifest_stream
from uploader.many import Outcome, UploadItem

__all__ = [
    "Batch",
    "BatchOptions",
    "Ledger",
    "Outcome",
    "Row",
    "RowRules",
    "UploadItem",
    "files_from",
    "folder_stream",
    "manifest_stream",
]
