"""With AliyunVODUploadAuth, Alibaba Cloud's own policy for uploads, and nothing else."""

from __future__ import annotations

import pytest

from uploader import PermissionDenied
from uploader.devserver import Fault

from .harness import PART, Desk

# RAM doc "AliyunVODUploadAuth".
POLICY = ["CreateUploadVideo", "RefreshUploadVideo", "CreateUploadImage"]


@pytest.fixture
def desk(desk: Desk) -> Desk:
    desk.server.set_options(allowed_vod_operations=POLICY)
    return desk


def assert_names_the_action(error: object, action: str = "vod:GetMezzanineInfo") -> None:
    assert isinstance(error, PermissionDenied)
    assert f"Allow the action {action} in a RAM policy" in error.next_step


async def test_an_upload_works_and_renews(desk: Desk) -> None:
    desk.order(Fault(action="expire_credentials", operation="UploadPart", part=4))
    movie = desk.file(7 * PART)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.renewal_count == 1


async def test_an_interrupted_upload_is_resumed(desk: Desk) -> None:
    movie = desk.file(7 * PART)
    await desk.interrupted(movie, after=3)

    result = await desk.push(movie)

    await desk.assert_stored(result, movie)
    assert result.resumed_part_count == 3


async def test_a_video_whose_create_answer_was_lost_is_found(desk: Desk) -> None:
    desk.order(Fault(action="drop_answer", operation="CreateUploadVideo"))
    movie = desk.file(7 * PART)

    await desk.assert_stored(await desk.push(movie), movie)

    assert len(desk.server.videos) == 1


async def test_a_given_video_needs_the_query_or_overwrite(desk: Desk) -> None:
    video_id = (await desk.push(desk.file(PART), state="memory")).video_id
    other = desk.file(PART, "other.mp4", seed=1)

    error = await desk.fail(other, video_id=video_id, key="k")

    assert_names_the_action(error)
    assert "--overwrite" in error.next_step
    await desk.assert_stored(
        await desk.push(other, video_id=video_id, key="k", overwrite=True), other
    )


async def test_comparing_a_finished_upload_needs_the_query(desk: Desk) -> None:
    movie = desk.file(PART)
    await desk.push(movie)
    async with desk.uploader() as up:
        with pytest.raises(PermissionDenied) as caught:
            await up.verify(movie)
    assert_names_the_action(caught.value)


async def test_a_policy_without_the_operations_of_an_upload_is_explained(desk: Desk) -> None:
    desk.server.set_options(allowed_vod_operations=[])
    assert_names_the_action(await desk.fail(desk.file(PART)), "vod:CreateUploadVideo")


async def test_the_error_of_an_account_without_vod_says_to_activate_it(desk: Desk) -> None:
    desk.server.set_options(allowed_vod_operations=None)
    desk.order(
        Fault(action="error", operation="CreateUploadVideo", status=403, code="OperationDenied")
    )
    error = await desk.fail(desk.file(PART))
    assert isinstance(error, PermissionDenied)
    assert error.next_step.startswith("VOD is not activated for this account")
