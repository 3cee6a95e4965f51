"""Many files: manifests in, a ledger out."""

from uploader.batch import Outcome, UploadItem
from uploader.bulk.ledger import Ledger
from uploader.bulk.manifests import files_from, folder_stream, manifest_stream
from uploader.bulk.rows import Row, RowRules
from uploader.bulk.runner import Batch, BatchOptions

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
