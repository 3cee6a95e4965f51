"""The content of a row, what is made of it, and where its path may lead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from uploader import UnsafePath
from uploader.bulk.rows import RawRow, Root, Row, RowRules, require_title_template
from uploader.errors import ConfigurationError, SourceError, VodupError
from uploader.protocol.vod import VideoMeta
from uploader.upload.request import default_key


def row(folder: Path, /, **fields: Any) -> Row:
    rules = RowRules(root=Root.at(folder), scope="vod.cn-shanghai", title_template="{stem}")
    identified = rules.identify(RawRow(7, fields), "m.csv")
    return identified if identified.error else rules.describe(identified)


def test_a_row_becomes_the_parameters_of_create_upload_video(tmp_path: Path) -> None:
    made = row(
        tmp_path,
        path="a/Movie.mp4",
        key="k",
        description="D",
        tags="a, b,,c",
        cate_id="12",
        user_data={"Extend": "x"},
        reference_id="abc-def",
        enable_first_frame_cover=True,
        generate_thumbnail=" False",
    )
    assert made.error is None
    assert made.path == str(tmp_path / "a/Movie.mp4")
    assert made.meta == VideoMeta(
        title="Movie",
        description="D",
        tags=("a", "b", "c"),
        cate_id=12,
        user_data='{"Extend": "x"}',
        reference_id="abc-def",
        enable_first_frame_cover=True,
        generate_thumbnail=False,
    )


@pytest.mark.parametrize(("given", "expected"), [("-7 ", -7), (100, 100), ("", None)])
def test_a_row_has_a_priority(tmp_path: Path, given: object, expected: int | None) -> None:
    assert row(tmp_path, path="a.mp4", priority=given).priority == expected


@pytest.mark.parametrize("given", ["101", -101, "high", 1.5, True])
def test_a_priority_is_a_whole_number_within_bounds(tmp_path: Path, given: object) -> None:
    error = row(tmp_path, path="a.mp4", priority=given).error
    assert "priority must be a whole number from -100 to 100" in str(error)


def test_a_row_is_identified_by_its_key_its_video_or_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mp4")
    assert row(tmp_path, path="a.mp4").key == default_key("vod.cn-shanghai", path)
    assert row(tmp_path, path=path).key == row(tmp_path, source="./a.mp4").key
    assert row(tmp_path, path="a.mp4", key="mine").key == "mine"
    by_video = row(tmp_path, path="a.dat2", video_id="v1")
    assert (by_video.key, by_video.upload_key) == ("video-v1", None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "names no path"),
        ({"path": ""}, "names no path"),
        ({"path": 7}, "path must be text"),
        ({"path": "a.mp4", "source": "b.mp4"}, "different files"),
        ({"path": "a.mp4", "title": ["x"]}, "title must be text, not a list"),
        ({"path": "a.mp4", "title": "x" * 129}, "Title has 129 characters"),
        ({"path": "a.mp4", "title": "party \U0001f389"}, "characters VOD refuses"),
        ({"path": "a.mp4", "description": "x" * 1025}, "Description has 1,025"),
        ({"path": "a.mp4", "tags": ",".join("abcdefghijklmnopq")}, "17 tags"),
        ({"path": "a.mp4", "tags": "x" * 33}, "tag has 33 characters"),
        ({"path": "a.mp4", "tags": [1]}, "tags must be"),
        ({"path": "a.mp4", "cate_id": "seven"}, "whole number"),
        ({"path": "a.mp4", "cate_id": True}, "whole number"),
        ({"path": "a.mp4", "cate_id": "-1"}, "whole number"),
        ({"path": "a.mp4", "user_data": "[1]"}, "JSON object"),
        ({"path": "a.mp4", "generate_thumbnail": "yes"}, "true or false"),
        ({"path": "a.mp4", "reference_id": "x y"}, "Reference_id must be"),
        ({"path": "a\0.mp4"}, "NUL"),
        ({"path": "a.mp4", "key": "k" * 201}, "key has 201"),
        ({"path": "a.mp4", "title": "\udce9"}, "not UTF-8"),
        ({"path": "a.txt"}, "does not accept files like"),
        ({"path": "mp4"}, "does not accept files like"),
        ({"path": "a.mp4", "file_name": "a.exe"}, "does not accept files like"),
    ],
)
def test_a_bad_row_has_an_error_that_names_the_problem(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    refused = row(tmp_path, **fields)
    assert isinstance(refused.error, ConfigurationError)
    assert message in refused.error.message


def test_a_video_that_exists_needs_no_known_extension(tmp_path: Path) -> None:
    assert row(tmp_path, path="a.bin", video_id="v").error is None
    assert row(tmp_path, path="a.bin", file_name="a.mp4").error is None


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A root with a neighbour, and links in all directions."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    outside = tmp_path / "root-neighbour"
    outside.mkdir()
    for path in (root / "in.mp4", root / "sub/deep.mp4", outside / "out.mp4"):
        path.write_bytes(b"x")
    (root / "empty.mp4").touch()
    (root / "link-in.mp4").symlink_to("sub/deep.mp4")
    (root / "link-out.mp4").symlink_to(outside / "out.mp4")
    (root / "link-dir").symlink_to(outside)
    (root / "dangling.mp4").symlink_to("nowhere")
    os.mkfifo(root / "pipe.mp4")
    return root


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("in.mp4", None),
        ("./in.mp4", None),
        ("sub//deep.mp4", None),
        ("{root}/in.mp4", None),
        ("link-in.mp4", None),
        ("../root-neighbour/out.mp4", UnsafePath),
        ("{root}-neighbour/out.mp4", UnsafePath),
        ("sub/../in.mp4", UnsafePath),
        ("link-dir/../in.mp4", UnsafePath),
        ("/etc/passwd", UnsafePath),
        ("//etc/passwd", UnsafePath),
        ("link-out.mp4", UnsafePath),
        ("link-dir/out.mp4", UnsafePath),
        ("..", UnsafePath),
        (".", UnsafePath),
        ("dangling.mp4", SourceError),
        ("missing.mp4", SourceError),
        ("empty.mp4", SourceError),
        ("pipe.mp4", SourceError),
        ("sub", SourceError),
        ("in.mp4/x", SourceError),
    ],
)
def test_paths_stay_below_the_root(yard: Path, path: str, error: type[VodupError] | None) -> None:
    root = Root.at(yard)

    def look() -> str:
        return root.resolved(root.absolute(path.format(root=yard)))[0]

    if error is None:
        assert look().startswith(f"{yard}{os.sep}")
    else:
        with pytest.raises(error):
            look()


def test_links_may_leave_the_root_with_follow_symlinks(yard: Path) -> None:
    root = Root.at(yard, follow_symlinks=True)
    outside = f"{yard}-neighbour/out.mp4"
    assert root.resolved(root.absolute("link-out.mp4"))[0] == outside
    assert root.resolved(root.absolute("link-dir/out.mp4"))[0] == outside
    with pytest.raises(UnsafePath):
        root.absolute("../root-neighbour/out.mp4")


def test_the_root_itself_may_be_a_link(yard: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(yard)
    root = Root.at(tmp_path / "alias")
    assert root.resolved(root.absolute("in.mp4"))[0] == str(yard / "in.mp4")


def test_a_folder_that_is_reached_through_a_link_has_the_same_uploads(
    yard: Path, tmp_path: Path
) -> None:
    (tmp_path / "alias").symlink_to(yard)
    plain, alias = row(yard, path="sub/deep.mp4"), row(tmp_path / "alias", path="sub/deep.mp4")
    assert plain.key == alias.key == default_key("vod.cn-shanghai", f"{yard}/sub/deep.mp4")
    assert row(yard, path="link-in.mp4").key != plain.key, "a link is a video of its own"


@pytest.mark.parametrize("template", ["{stem", "{path}", "{stem.__class__}", "{0}", "{stem:>99}"])
def test_a_title_template_with_unknown_fields_is_refused(template: str) -> None:
    with pytest.raises(ConfigurationError, match="title-template"):
        require_title_template(template)


def test_a_title_made_from_a_file_name_is_valid_for_vod(tmp_path: Path) -> None:
    rules = RowRules(root=Root.at(tmp_path), title_template="{folder}: {stem} ({row}) {name}")
    made = rules.describe(rules.identify(RawRow(3, {"path": f"f/{'x' * 90}\U0001f389.mp4"}), "m"))
    assert made.meta is not None
    assert made.meta.title is not None
    assert made.meta.title.startswith("f: xxx")
    assert len(made.meta.title) == 128
    assert "\U0001f389" not in made.meta.title


def test_a_url_is_identified_without_its_signature(tmp_path: Path) -> None:
    url = "https://films.example/a/Movie.mp4?part=1"
    made = row(tmp_path, path=f"{url}&OSSAccessKeyId=k&Signature=s3cret&Expires=1")
    assert made.error is None
    assert made.key == row(tmp_path, path=f"{url}&OSSAccessKeyId=k&Signature=other&Expires=2").key
    assert made.key != row(tmp_path, path="https://films.example/a/Movie.mp4?part=2").key
    assert made.meta is not None
    assert made.meta.title == "Movie"
    assert made.source_name == "https://films.example/a/Movie.mp4"


@pytest.mark.parametrize(
    "path", ["ftp://films.example/a.mp4", "https://user:pw@films.example/a.mp4", "https:///a.mp4"]
)
def test_a_url_of_another_kind_is_refused(tmp_path: Path, path: str) -> None:
    refused = row(tmp_path, path=path)
    assert isinstance(refused.error, ConfigurationError)
    assert "pw" not in str(refused.error)
