"""HLS packages: many objects, one video, one record; the playlist last."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from uploader import (
    ConfigurationError,
    CredentialsRenewed,
    HlsPackage,
    PartsAdopted,
    PartStored,
    SourceChanged,
    SourceUnreadable,
    UnsafePath,
    UploadFinished,
    UploadProgress,
    UploadResult,
    UploadStarted,
    VodupError,
    decode_answer,
)
from uploader.devserver import Fault
from uploader.state import Phase, open_state

from .harness import PART, Desk, called, content, until

SEGMENTS = 12


def hls(folder: Path, *, segments: int = SEGMENTS, size: int = 20_000, name: str = "index") -> Path:
    """A master playlist, two renditions with segments of the same names, a key and a map."""
    for number, rendition in enumerate(("low", "high")):
        (folder / rendition).mkdir(parents=True, exist_ok=True)
        (folder / rendition / "init.mp4").write_bytes(content(700, seed=number))
        lines = ['#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="../key.bin"\n']
        lines.append('#EXT-X-MAP:URI="init.mp4"\n')
        for segment in range(segments):
            data = content(size + segment, seed=100 * number + segment)
            (folder / rendition / f"seg{segment}.m4s").write_bytes(data)
            lines.append(f"#EXTINF:4.0,\nseg{segment}.m4s\n")
        lines.append("#EXT-X-ENDLIST\n")
        (folder / rendition / "index.m3u8").write_text("".join(lines))
    (folder / "key.bin").write_bytes(content(16, seed=999))
    streams = "".join(
        f"#EXT-X-STREAM-INF:BANDWIDTH={n}\n{r}/index.m3u8\n" for n, r in ((1, "low"), (2, "high"))
    )
    main = folder / f"{name}.m3u8"
    main.write_text(f"#EXTM3U\n{streams}")
    return main


OBJECTS = 2 * (SEGMENTS + 1) + 1 + 2 + 1  # segments and maps, the key, two playlists, the main one


def stored(desk: Desk) -> dict[str, bytes]:
    """Every object of the server, by its key."""
    (video_id,) = desk.server.videos
    return desk.server.objects(video_id)


def played(objects: dict[str, bytes], key: str) -> list[bytes]:
    """What a player gets: every file the playlist at `key` leads to, in order."""
    folder = key.rpartition("/")[0]
    text = objects[key].decode()
    uris = re.findall(r'URI="([^"]+)"|^([^#\s].*)$', text, flags=re.M)
    found: list[bytes] = []
    for quoted, plain in uris:
        target = f"{folder}/{quoted or plain}"
        found += played(objects, target) if target.endswith(".m3u8") else [objects[target]]
    return found


def expected(main: Path) -> list[bytes]:
    """The same from the folder."""
    found = []
    for rendition in ("low", "high"):
        folder = main.parent / rendition
        found.append((main.parent / "key.bin").read_bytes())
        found.append((folder / "init.mp4").read_bytes())
        segments = len(list(folder.glob("*.m4s")))
        found += [(folder / f"seg{n}.m4s").read_bytes() for n in range(segments)]
    return found


def assert_plays(desk: Desk, result: UploadResult, main: Path) -> None:
    assert played(stored(desk), result.object_key) == expected(main)
    assert desk.server.open_upload_count == 0


async def test_a_package_becomes_one_video_that_plays(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    result = await desk.push(main)
    assert_plays(desk, result, main)
    assert result.part_count == OBJECTS == desk.count("PutObject")
    assert len(desk.server.videos) == 1
    assert result.verified_by == "crc64"
    started = desk.events_of(UploadStarted)[0]
    assert (started.part_count, started.size) == (OBJECTS, result.size)


async def test_the_playlist_is_stored_when_all_the_rest_is_there(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    result = await desk.push(main)
    keys = [record.subject for record in desk.requests("PutObject")]
    assert keys.index(result.object_key) == len(keys) - 1


async def test_segments_of_the_same_name_stay_apart(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    await desk.push(main)
    objects = stored(desk)
    assert len(objects) == OBJECTS
    assert {key.rpartition("/")[0] for key in objects} == {next(iter(objects)).rpartition("/")[0]}


async def test_a_broken_run_resumes_at_the_member(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    desk.order(Fault(action="error", operation="PutObject", every=10, status=400, code="Odd"))
    error = await desk.fail(main, concurrency=1)
    assert error.is_resumable
    desk.assert_faults_struck()
    desk.order()
    before = desk.count("PutObject")
    result = await desk.push(main)
    assert result.resumed_part_count == before - 1 > 0
    assert desk.count("PutObject") == OBJECTS + 1
    assert desk.server.stats.creates == 1
    assert_plays(desk, result, main)


async def test_credentials_are_renewed_in_the_middle(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    desk.order(Fault(action="expire_credentials", operation="PutObject", every=9, count=2))
    result = await desk.push(main)
    desk.assert_faults_struck()
    assert result.renewal_count == len(desk.events_of(CredentialsRenewed)) == 2
    assert len(desk.server.videos) == 1
    assert_plays(desk, result, main)


async def test_a_finished_package_is_not_sent_again(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    first = await desk.push(main)
    before = desk.count("PutObject")
    again = await desk.push(main)
    assert again.is_earlier_result
    assert again.crc64 == first.crc64
    assert desk.count("PutObject") == before


async def test_a_segment_that_changed_after_success_is_noticed(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    await desk.push(main)
    segment = main.parent / "low" / "seg3.m4s"
    segment.write_bytes(content(segment.stat().st_size, seed=77))
    assert isinstance(await desk.fail(main), SourceChanged)


async def test_a_touched_package_is_proved_by_reading_it(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    await desk.push(main)
    for path in main.parent.rglob("*"):
        os.utime(path)
    assert (await desk.push(main)).is_earlier_result


async def test_a_segment_that_changes_meanwhile_completes_nothing(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    segment = main.parent / "low" / "seg3.m4s"

    def rewrite(event: object) -> None:
        if isinstance(event, UploadStarted):
            segment.write_bytes(content(segment.stat().st_size, seed=77))

    error = await desk.fail(main, on_event=rewrite)
    assert isinstance(error, SourceChanged)
    assert next(iter(desk.server.videos.values())).status == "Uploading"


@pytest.mark.parametrize("is_edited", [False, True])
async def test_segments_with_a_new_change_time_are_compared(desk: Desk, is_edited: bool) -> None:
    """An edit can set the modification time back; the bytes of all members decide."""
    main = hls(desk.folder / "package")
    sent = main.parent / "low" / "seg3.m4s"

    def touch(event: object) -> None:
        if isinstance(event, PartStored) and event.part_number == len(stored(desk)) == 20:
            status = sent.stat()
            if is_edited:
                sent.write_bytes(content(status.st_size, seed=77))
            os.utime(sent, ns=(status.st_atime_ns, status.st_mtime_ns))

    if is_edited:
        assert isinstance(await desk.fail(main, on_event=touch, concurrency=1), SourceChanged)
        assert next(iter(desk.server.videos.values())).status == "Uploading"
    else:
        assert_plays(desk, await desk.push(main, on_event=touch, concurrency=1), main)
    assert sent.stat().st_ctime_ns > main.stat().st_ctime_ns


async def test_a_lost_answer_to_the_playlist_is_settled_by_what_is_there(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    drop = Fault(action="drop_answer", operation="PutObject", every=OBJECTS, count=1)
    desk.order(drop)
    result = await desk.push(main, concurrency=1)
    desk.assert_faults_struck()
    assert_plays(desk, result, main)
    assert desk.server.stats.creates == 1


async def test_a_member_damaged_on_the_way_is_sent_again(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    desk.order(Fault(action="flip_bit", operation="PutObject", every=5, count=1))
    result = await desk.push(main)
    desk.assert_faults_struck()
    assert result.retry_count == 1
    assert_plays(desk, result, main)


# --- members larger than a part -----------------------------------------------------------


def with_large(folder: Path) -> Path:
    main = hls(folder)
    (folder / "low" / "seg3.m4s").write_bytes(content(6 * PART + 5, seed=3))
    return main


async def test_a_large_member_goes_in_parts_and_leaves_no_record(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    result = await desk.push(main)
    assert desk.count("UploadPart") >= 6
    assert desk.count("CompleteMultipartUpload") == 1
    assert_plays(desk, result, main)
    assert (await desk.record()).phase is Phase.DONE  # and it is the only one


async def test_the_parts_of_a_large_member_are_reported_like_those_of_a_file(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    result = await desk.push(main)

    stored = desk.events_of(PartStored)
    parts = [event for event in stored if event.member_number is not None]
    whole = {event.part_number for event in stored if event.member_number is None}
    (large,) = {event.member_number for event in parts}
    sizes = {event.part_number: event.size for event in parts}
    assert len(sizes) == len(parts) == desk.count("UploadPart")
    assert sorted(sizes) == list(range(1, len(sizes) + 1))
    assert sum(sizes.values()) == 6 * PART + 5
    assert whole == set(range(1, OBJECTS + 1)) - {large}
    assert sum(event.size for event in stored) == result.size == result.sent_bytes
    assert {(event.key, event.video_id) for event in stored} == {(result.key, result.video_id)}
    assert isinstance(desk.events[-1], UploadFinished)


async def test_parts_of_a_large_member_whose_answers_were_lost_are_reported_as_adopted(
    desk: Desk,
) -> None:
    main = with_large(desk.folder / "package")
    desk.order(
        Fault(action="drop_answer", operation="UploadPart", part=2, attempt=1),
        Fault(
            action="error",
            operation="UploadPart",
            part=2,
            attempt=(2, 99),
            count=None,
            status=400,
            code="Odd",
        ),
    )
    await desk.fail(main, concurrency=1)
    desk.assert_faults_struck()
    desk.order()
    desk.events.clear()
    result = await desk.push(main, concurrency=1)

    assert [event.part_count for event in desk.events_of(PartsAdopted)] == [1]
    assert {event.key for event in desk.events_of(PartsAdopted)} == {result.key}
    parts = [event.part_number for event in desk.events_of(PartStored) if event.member_number]
    assert sorted(parts) == [3, 4, 5, 6, 7]
    assert_plays(desk, result, main)


async def test_a_large_member_resumes_at_its_part(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    desk.order(
        Fault(action="error", operation="UploadPart", part=4, status=400, code="Odd", count=None)
    )
    await desk.fail(main, concurrency=1)
    sent = desk.count("UploadPart")
    desk.order()
    result = await desk.push(main, concurrency=1)
    assert desk.count("InitiateMultipartUpload") == 1
    parts = len({r.part_number for r in desk.requests("UploadPart")})
    assert desk.count("UploadPart") - sent <= parts - 3
    assert_plays(desk, result, main)


async def test_a_large_member_that_changed_between_runs_is_sent_anew(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    desk.order(
        Fault(action="error", operation="UploadPart", part=4, status=400, code="Odd", count=None)
    )
    await desk.fail(main, concurrency=1)
    desk.order()
    large = main.parent / "low" / "seg3.m4s"
    status = large.stat()
    large.write_bytes(content(6 * PART + 5, seed=77))
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = await desk.push(main, concurrency=1)
    assert played(stored(desk), result.object_key) == expected(main)
    async with open_state(desk.state_path) as store:
        assert len(await store.orphans()) == 1, "what was sent before is removed later"


async def test_the_progress_of_a_package_counts_the_parts_of_a_large_member(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    desk.server.set_options(bandwidth=0.6e6)
    result = await desk.push(main)
    progress = desk.events_of(UploadProgress)
    assert {event.key for event in progress} == {result.key}
    assert {event.size for event in progress} == {result.size}
    done = [event.done_bytes for event in progress]
    assert done == sorted(done)


async def test_what_nobody_may_look_at_of_a_large_member_is_sent_again(desk: Desk) -> None:
    """VOD does not know it, and replacing it harms nothing."""
    main = with_large(desk.folder / "package")
    desk.server.set_options(denied_operations=["HeadObject"])
    desk.order(Fault(action="drop_answer", operation="CompleteMultipartUpload", attempt=1))
    result = await desk.push(main)
    desk.assert_faults_struck()
    assert desk.count("InitiateMultipartUpload") == 2
    assert_plays(desk, result, main)


async def test_a_package_that_was_finished_before_a_kill_is_proved(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    desk.order(Fault(action="no_answer", operation="PutObject", every=OBJECTS))
    async with desk.uploader(concurrency=1) as up:
        task = asyncio.create_task(up.upload(main))
        await until(lambda: desk.server.stats.puts == OBJECTS)
        task.cancel()
        await asyncio.wait([task])
    desk.order()
    sent = desk.count("PutObject")
    result = await desk.push(main)
    assert desk.count("PutObject") == sent
    assert_plays(desk, result, main)


async def test_a_lost_complete_of_a_large_member_is_settled(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    desk.order(Fault(action="drop_answer", operation="CompleteMultipartUpload"))
    result = await desk.push(main)
    desk.assert_faults_struck()
    assert_plays(desk, result, main)


async def test_abort_records_the_parts_of_large_members_as_an_orphan(desk: Desk) -> None:
    main = with_large(desk.folder / "package")
    desk.order(
        Fault(action="error", operation="UploadPart", part=4, status=400, code="Odd", count=None)
    )
    await desk.fail(main, concurrency=1)
    desk.order()
    async with open_state(desk.state_path) as store:
        keys = [status.record.key async for status in store.uploads()]
    (key,) = [key for key in keys if "/" not in key]
    async with desk.uploader() as up:
        await up.abort(key)
        assert len(await up.state.orphans()) == 1
    assert (await desk.record()).phase is Phase.ABORTED


# --- what is refused ------------------------------------------------------------------------


async def test_a_grant_for_another_kind_of_file_is_refused_before_anything_is_sent(
    desk: Desk,
) -> None:
    main = hls(desk.folder / "package")
    answer = await called(desk.server, "CreateUploadVideo", Title="t", FileName="movie.mp4")
    error = await desk.fail(main, grant=decode_answer(answer))
    assert isinstance(error, ConfigurationError)
    assert "ObjectPrefix" in error.message
    assert desk.count("PutObject") == 0


async def test_a_member_with_the_name_of_the_playlist_is_refused(desk: Desk) -> None:
    """It would replace the playlist, or be replaced by it."""
    main = hls(desk.folder / "package")
    grant = decode_answer(
        await called(desk.server, "CreateUploadVideo", Title="t", FileName=main.name)
    )
    name = grant.target.object_key.rpartition("/")[2]
    (main.parent / "low" / "index.m3u8").rename(main.parent / name)
    main.write_text(main.read_text().replace("low/index.m3u8", name))
    text = (main.parent / name).read_text()
    (main.parent / name).write_text(
        text.replace("../key.bin", "key.bin").replace("init", "low/init").replace("seg", "low/seg")
    )
    error = await desk.fail(main, grant=grant)
    assert isinstance(error, ConfigurationError)
    assert "has the name VOD gives to the playlist" in error.message
    assert desk.server.stats.completes == 0


async def test_missing_segments_are_named_before_a_video_is_made(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    (main.parent / "high" / "seg7.m4s").unlink()
    error = await desk.fail(main)
    assert isinstance(error, SourceUnreadable)
    assert "seg7.m4s" in error.message
    assert "line" in error.message
    assert desk.server.stats.creates == 0


@pytest.mark.parametrize("uri", ["../secret.ts", "link.ts", "%2e%2e/secret.ts"])
async def test_nothing_outside_of_the_folder_is_sent(desk: Desk, uri: str) -> None:
    (desk.folder / "secret.ts").write_bytes(b"secret")
    folder = desk.folder / "package"
    folder.mkdir()
    (folder / "link.ts").symlink_to(desk.folder / "secret.ts")
    main = folder / "index.m3u8"
    main.write_text(f"#EXTM3U\n#EXTINF:1,\n{uri}\n#EXT-X-ENDLIST\n")
    assert isinstance(await desk.fail(main), UnsafePath)
    assert desk.server.stats.creates == 0


async def test_a_link_to_a_playlist_is_followed_only_where_that_is_allowed(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    link = desk.folder / "link.m3u8"
    link.symlink_to(main)
    await desk.push(HlsPackage(link))
    error = await desk.fail(HlsPackage(link, follow_symlinks=False), key="another")
    assert isinstance(error, SourceUnreadable)
    assert "link" in error.message


async def test_a_package_stays_below_its_root_while_it_is_read(desk: Desk) -> None:
    main = hls(desk.folder / "root" / "package")
    root = str(desk.folder / "root")
    outside = hls(desk.folder / "outside")
    for path in (f"{root}/../outside/{outside.name}", str(outside)):
        assert isinstance(await desk.fail(HlsPackage(path, root=root)), UnsafePath)
    async with HlsPackage(main, root=root) as package:
        main.parent.rename(desk.folder / "away")
        main.parent.symlink_to(desk.folder / "away")
        with pytest.raises(UnsafePath):
            async with package.opened(1):
                pass
    assert isinstance(await desk.fail(HlsPackage(main, root=root)), UnsafePath)
    assert desk.server.stats.creates == 0


async def test_an_unfinished_playlist_is_refused(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    low = main.parent / "low" / "index.m3u8"
    low.write_text(low.read_text().replace("#EXT-X-ENDLIST", ""))
    error = await desk.fail(main)
    assert isinstance(error, SourceUnreadable)
    assert "ENDLIST" in error.message


async def test_verify_reads_every_file_again(desk: Desk) -> None:
    main = hls(desk.folder / "package")
    await desk.push(main)
    async with desk.uploader() as up:
        await up.verify(main)
        segment = main.parent / "low" / "seg3.m4s"
        segment.write_bytes(content(segment.stat().st_size, seed=77))
        with pytest.raises(VodupError, match="seg3"):
            await up.verify(main)


async def test_files_are_opened_one_by_one(desk: Desk) -> None:
    main = hls(desk.folder / "package", segments=60, size=10)
    before = len(os.listdir("/proc/self/fd"))
    async with HlsPackage(main) as opened:
        assert len(opened.members) > 120
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    await asyncio.sleep(0)


async def test_a_package_whose_files_have_other_names_is_another_package(desk: Desk) -> None:
    """Their bytes are the same, but the playlist would refer to objects that were never sent."""
    main = hls(desk.folder / "film")
    desk.server.set_options(denied_operations=("PutObject",))
    await desk.fail(main, concurrency=1)
    desk.server.set_options(denied_operations=())
    for folder in (main.parent / "low", main.parent / "high"):
        (folder / "seg1.m4s").rename(folder / "sig1.m4s")
        text = (folder / "index.m3u8").read_text()
        (folder / "index.m3u8").write_text(text.replace("seg1.m4s", "sig1.m4s"))

    error = await desk.fail(main)

    assert isinstance(error, SourceChanged)
    assert "does not refer to the files" in error.message
