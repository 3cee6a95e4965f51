"""A batch whose uploads lose an outcome, or stop it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from uploader import Outcome, Uploader, UploadItem
from uploader.bulk.ledger import KnownRow, Ledger
from uploader.bulk.manifests import files_from, folder_stream
from uploader.bulk.rows import Root, Row, RowRules
from uploader.bulk.runner import Batch, BatchOptions, CheckedRow, read_rows
from uploader.errors import (
    CallerNotAuthenticated,
    ConfigurationError,
    ServiceError,
    TransportError,
    UnsafePath,
    VodupError,
)
from uploader.sources import UrlPolicy, as_source


class FakeUploader:
    """Ends every item with an error, or loses it when there is none."""

    def __init__(self, *errors: VodupError | None) -> None:
        self._errors = list(errors)
        self.upload_count = 0

    async def upload_many(
        self, items: AsyncIterator[UploadItem] | Iterable[UploadItem], **_: Any
    ) -> AsyncIterator[Outcome]:
        async for item in items if isinstance(items, AsyncIterator) else _each(items):
            self.upload_count += 1
            if (error := self._errors.pop(0)) is not None:
                yield Outcome(item=item, error=error)


async def _each(items: Iterable[UploadItem]) -> AsyncIterator[UploadItem]:
    for item in items:
        yield item


async def run(folder: Path, uploader: FakeUploader, ledger: Ledger, **options: Any) -> Batch:
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"x")
    (folder / "list.txt").write_text("a.mp4\nb.mp4\n")
    batch = Batch(cast("Uploader", uploader), ledger, BatchOptions(**options))
    rules = RowRules(root=Root.at(folder))
    await batch.run([(files_from(str(folder / "list.txt")), rules)])
    return batch


async def test_a_batch_with_a_row_that_has_no_record_is_never_called_done(tmp_path: Path) -> None:
    with Ledger() as ledger, pytest.raises(VodupError, match="2 rows were read and 1 have ended"):
        await run(tmp_path, FakeUploader(VodupError("No."), None), ledger)


async def test_a_temporary_failure_is_tried_again_and_recorded_once(tmp_path: Path) -> None:
    errors = [TransportError("No.", is_sent=True) for _ in range(4)]
    uploader = FakeUploader(*errors)
    with Ledger() as ledger:
        batch = await run(tmp_path, uploader, ledger, retries=1)
        records = list(ledger.records())
    assert uploader.upload_count == 4
    assert [record["attempts"] for record in records] == [2, 2]
    assert batch.progress.figures()["failed"] == 2


async def test_an_error_that_every_row_would_meet_stops_the_batch(tmp_path: Path) -> None:
    with Ledger() as ledger:
        with pytest.raises(CallerNotAuthenticated):
            await run(tmp_path, FakeUploader(CallerNotAuthenticated("No.")), ledger)
        assert list(ledger.records()) == []


@pytest.mark.parametrize(("files", "sent_count"), [(1, 1), (32, 2)])
async def test_a_service_that_never_answers_ends_the_batch_with_the_first_rows(
    tmp_path: Path, files: int, sent_count: int
) -> None:
    silent = TransportError("VOD does not answer.", is_sent=True, is_timeout=True)
    uploader = FakeUploader(silent, TransportError("Cannot connect.", is_sent=False))
    with Ledger() as ledger:
        with pytest.raises(TransportError):
            await run(tmp_path, uploader, ledger, retries=3, files=files)
        assert list(ledger.records()) == []
    assert uploader.upload_count == sent_count


async def test_rows_are_tried_again_where_anything_was_answered(tmp_path: Path) -> None:
    silent = TransportError("Cannot connect.", is_sent=False)
    refused = ServiceError("No.", operation="CreateUploadVideo", status=400, code="X")
    uploader = FakeUploader(refused, silent, silent)
    with Ledger() as ledger:
        batch = await run(tmp_path, uploader, ledger, retries=1, files=1)
    assert uploader.upload_count == 3
    assert batch.progress.failed_count == 2


async def test_a_folder_swapped_for_a_link_after_its_row_was_checked_is_not_followed(
    tmp_path: Path,
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, content in ((root / "sub", b"x"), (outside, b"secret")):
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(content)
    with Ledger() as ledger:
        rules = RowRules(root=Root.at(root))
        (checked,) = read_rows([(folder_stream(str(root)), rules)], ledger)
    (root / "sub").rename(tmp_path / "away")
    (root / "sub").symlink_to(outside)
    source = checked.item(UrlPolicy(), overwrite=False).source
    with pytest.raises(UnsafePath):
        async with as_source(source):
            pass


def test_a_queued_row_is_not_read_by_fsspec(tmp_path: Path) -> None:
    checked = CheckedRow(Row("m", 1, path=f"file://{tmp_path}/a.mp4"), KnownRow())
    with pytest.raises(ConfigurationError, match="not an http"):
        checked.item(UrlPolicy(), overwrite=False)
