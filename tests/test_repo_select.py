"""Choosing snapshots: names, prefixes, filters, and what is said where none fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.errors import SnapshotNotFound, UsageError
from snapfs.repo.model import Node, NodeType, Snapshot, Totals
from snapfs.repo.select import Filter, Spec, choose, find, is_name, parse_spec, parse_tags
from snapfs.repo.state import StoredSnapshot

ROOT = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0)


def snapshot(
    digits: str, host: bytes = b"a", tags: tuple[bytes, ...] = (), paths: tuple[bytes, ...] = (b"/x",)
) -> StoredSnapshot:
    record = Snapshot(1, ROOT, 0, host, b"u", paths, (), Totals(), True, 0, 0, (), (), b"")
    return StoredSnapshot(bytes.fromhex(digits.ljust(64, "0")), record, tags, b"c")


FIRST = snapshot("abcd01", b"a", (b"x", b"y"))
SECOND = snapshot("abcd02", b"b", (b"x",), (b"/x", b"/y"))
THIRD = snapshot("ff", b"a")
ALL = [FIRST, SECOND, THIRD]


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        (b"latest", Filter(), THIRD),
        (b"latest~0", Filter(), THIRD),
        (b"latest~2", Filter(), FIRST),
        (b"latest", Filter(hosts=(b"b",)), SECOND),
        (b"latest~1", Filter(hosts=(b"a",)), FIRST),
        (b"f", Filter(), THIRD),
        (b"F", Filter(), THIRD),
        (b"abcd02", Filter(hosts=(b"a",)), SECOND),  # an id means its snapshot, as in restic
        (THIRD.id.hex().encode(), Filter(), THIRD),
    ],
)
def test_find(name: bytes, wanted: Filter, found: StoredSnapshot) -> None:
    assert find(ALL, name, wanted) is found


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        (b"abcd", Filter(), "fits 2 snapshots (abcd0100, abcd0200): give more digits"),
        (b"123", Filter(), "no snapshot 123"),
        (b"latest~3", Filter(), "there are 3 snapshots"),
        (b"latest", Filter(hosts=(b"c\x1b",)), "no snapshot of host c\\x1b yet"),
        (b"latest", Filter(tags=(frozenset((b"q",)),)), "no snapshot with tags q"),
    ],
)
def test_not_found(name: bytes, wanted: Filter, words: str) -> None:
    with pytest.raises(SnapshotNotFound) as caught:
        find(ALL, name, wanted)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [b"", b"last", b"latest~", b"latest~-1", b"abcdefg", b"../..", b"a" * 65])
def test_what_is_no_name(name: bytes) -> None:
    assert not is_name(name)
    with pytest.raises(UsageError):
        find(ALL, name)


def test_tags_comma_is_and_repetition_is_or() -> None:
    assert choose(ALL, Filter(tags=parse_tags([b"x,y"]))) == [FIRST]
    assert choose(ALL, Filter(tags=parse_tags([b"y", b"x"]))) == [FIRST, SECOND]
    assert choose(ALL, Filter(tags=parse_tags([b""]))) == [THIRD]


def test_all_paths_are_wanted() -> None:
    assert choose(ALL, Filter(paths=(b"/x", b"/y"))) == [SECOND]
    assert choose(ALL, Filter(paths=(b"/z",))) == []


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        (b"latest", Spec(None, b"latest", None)),
        (b"ab:", Spec(None, b"ab", b"")),
        (b"ab:/home/me", Spec(None, b"ab", b"/home/me")),
        (b"latest~1:/a::b", Spec(None, b"latest~1", b"/a::b")),
        (b"/mnt/a:b::latest:sub", Spec(b"/mnt/a:b", b"latest", b"sub")),
        (b"repo::ab", Spec(b"repo", b"ab", None)),
        (b"::ab", Spec(None, b"ab", None)),
    ],
)
def test_spec(text: bytes, spec: Spec) -> None:
    assert parse_spec(text) == spec


@given(st.binary(max_size=20))
def test_any_bytes_are_taken_apart(text: bytes) -> None:
    spec = parse_spec(text)
    assert spec.name in text
    with pytest.raises((UsageError, SnapshotNotFound)) as caught:
        find([], spec.name)
    assert str(caught.value).isprintable()
