"""Playlists: what they refer to, and what stays when names change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.protocol.documents import MalformedDocument
from uploader.protocol.hls import file_path, flat_names, parse_playlist, rewritten

MEDIA = b"""#EXTM3U\r
#EXT-X-VERSION:7\r
#EXT-X-KEY:METHOD=AES-128,URI="keys/1.key",IV=0x1\r
#EXT-X-MAP:URI="init.mp4",BYTERANGE="720@0"\r
#EXT-X-CUSTOM:URI="not/ours"\r
#EXTINF:4.0,a title, with URI="inside"\r
seg 1.m4s?token=1\r
#EXT-X-BYTERANGE:100@0\r
#EXTINF:4.0,\r
  seg%202.m4s  \r
#EXT-X-ENDLIST"""

MASTER = b"""#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,NAME="a,URI=b",GROUP-ID="g",URI="audio/index.m3u8"
#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="c",INSTREAM-ID="CC1"
#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://key.example.com/1"
#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,URI="v0/iframes.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=1280000
v0/index.m3u8
"""


def uris(data: bytes) -> list[str]:
    return [reference.uri for reference in parse_playlist(data).references]


def test_media_playlist_refers_to_segments_keys_and_maps() -> None:
    assert uris(MEDIA) == ["keys/1.key", "init.mp4", "seg 1.m4s?token=1", "seg%202.m4s"]
    playlist = parse_playlist(MEDIA)
    assert not playlist.is_master
    assert not any(reference.is_playlist for reference in playlist.references)


def test_master_playlist_refers_to_playlists_and_leaves_key_servers_alone() -> None:
    playlist = parse_playlist(MASTER)
    assert playlist.is_master
    assert uris(MASTER) == ["audio/index.m3u8", "v0/iframes.m3u8", "v0/index.m3u8"]
    assert all(reference.is_playlist for reference in playlist.references)


def test_rewriting_changes_references_and_not_one_byte_more() -> None:
    text = rewritten(parse_playlist(MEDIA), lambda reference: f"<{reference.uri}>")
    expected = (
        MEDIA.replace(b'"keys/1.key"', b'"<keys/1.key>"')
        .replace(b'"init.mp4"', b'"<init.mp4>"')
        .replace(b"seg 1.m4s?token=1", b"<seg 1.m4s?token=1>")
        .replace(b"seg%202.m4s", b"<seg%202.m4s>")
    )
    assert text == expected


@pytest.mark.parametrize("data", [MEDIA, MASTER])
def test_rewriting_with_the_same_names_is_the_same_text(data: bytes) -> None:
    assert rewritten(parse_playlist(data), lambda reference: reference.uri) == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "first line"),
        (b"\xef\xbb\xbf#EXTM3U\na.ts\n#EXT-X-ENDLIST", "first line"),
        (b"#EXTM3U\n\xff\n#EXT-X-ENDLIST", "UTF-8"),
        (b"#EXTM3U\n#EXTINF:1,\na.ts\n", "ENDLIST"),
        (b'#EXTM3U\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI="a"\na.ts\n#EXT-X-ENDLIST', "live"),
        (b"#EXTM3U\n#EXT-X-ENDLIST", "no file"),
        (b'#EXTM3U\n#EXT-X-DEFINE:NAME="a",VALUE="b"\n{$a}.ts\n#EXT-X-ENDLIST', "variables"),
        (b"#EXTM3U\n#EXTINF:1,\nhttps://cdn.example.com/a.ts\n#EXT-X-ENDLIST", "line 3"),
        (b"#EXTM3U\n//cdn.example.com/a.ts\n#EXT-X-ENDLIST", "line 2"),
        (b"#EXTM3U\n/etc/passwd\n#EXT-X-ENDLIST", "line 2"),
        (b"#EXTM3U\nfile:a.ts\n#EXT-X-ENDLIST", "line 2"),
        (b"#EXTM3U\n?a.ts\n#EXT-X-ENDLIST", "names no file"),
        (b'#EXTM3U\n#EXT-X-MAP:URI="http://a/b"\na.ts\n#EXT-X-ENDLIST', "line 2"),
        (b"#EXTM3U\n" + b"#" * (16 * 1024 * 1024), "larger"),
    ],
)
def test_what_is_no_finished_local_playlist_is_refused_with_its_line(data: bytes, why: str) -> None:
    with pytest.raises(MalformedDocument, match=why):
        parse_playlist(data)


def test_a_relative_key_is_part_of_the_package_and_a_key_server_is_not() -> None:
    text = '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\na.ts\n#EXT-X-ENDLIST'
    assert uris(text.format("k.bin").encode()) == ["k.bin", "a.ts"]
    for elsewhere in ("https://keys.example.com/1", "skd://1", "data:text/plain;base64,AA=="):
        assert uris(text.format(elsewhere).encode()) == ["a.ts"]


def test_paths_are_decoded_and_lose_their_query() -> None:
    assert file_path("a%20b/c.ts?x=1#y") == "a b/c.ts"


def test_names_stay_where_they_are_unique() -> None:
    assert flat_names(["v0/a.ts", "v0/b.ts"]) == {"v0/a.ts": "a.ts", "v0/b.ts": "b.ts"}


def test_equal_names_of_different_folders_become_different() -> None:
    names = flat_names(["v0/1.ts", "v1/1.ts", "v0-1.ts", "sub/v1-1.ts"])
    assert len(set(names.values())) == 4
    assert names["v0/1.ts"] == "v0-1.ts"


def test_names_are_safe_in_keys_and_uris() -> None:
    names = flat_names(["../ü b.ts", ".hidden", "…", "x" * 500 + ".ts"])
    assert all(name.isascii() and name[0] != "." and len(name) <= 200 for name in names.values())
    assert names["../ü b.ts"] == "_b.ts"


@given(st.lists(st.text(min_size=1, max_size=30), unique=True, max_size=50))
def test_no_two_paths_ever_share_a_name(paths: list[str]) -> None:
    names = flat_names(paths)
    assert len(set(names.values())) == len(paths)
    assert flat_names(paths) == names
