"""Records: one encoding, what is refused, and what of a later version survives a copy.  Their bytes are pinned in vectors/."""

from __future__ import annotations

import os
import stat

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.repo.backup.parents import RawDirectory
from snapfs.repo.errors import Damaged, RepositoryError, UnsupportedFormat
from snapfs.repo.format import records
from snapfs.repo.format.records import Branch, Bundle, Config, Event, EventBody, Head
from snapfs.repo.model import FORMATS, TYPES, Below, Holes, Kind, Node, NodeType, Snapshot, Totals, Xattr
from snapfs.repo.trees import DirectoryWriter
from support.parts import KEYS, MemoryBlobs

INT64 = st.integers(-(2**63), 2**63 - 1)
COUNT = st.integers(0, 2**63 - 1)
NAMES = st.binary(min_size=1, max_size=255).map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"_")).filter(
    lambda b: b not in (b".", b"..")
)  # fmt: skip
IDS = st.binary(min_size=32, max_size=32)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(NodeType))
    fields: dict[str, object] = {}
    if kind == NodeType.FILE:
        shape = draw(st.sampled_from(["inline", "blobs", "pages"]))
        if shape == "inline":
            fields["data"] = draw(st.binary(max_size=64))
            fields["size"] = len(fields["data"])  # type: ignore[arg-type]
        elif shape == "blobs":
            extents = draw(
                st.lists(st.tuples(st.none() | IDS, st.integers(1, 2**22)), min_size=1, max_size=8)
            )
            fields |= {"blobs": tuple(extents), "size": sum(length for _, length in extents)}
        else:
            fields |= {"root": draw(IDS), "size": draw(COUNT)}
        fields["holes"] = draw(st.none() | st.builds(Holes, COUNT, st.just(((0, 1), (5, 2**40)))))
    elif kind == NodeType.DIRECTORY:
        fields |= {"root": draw(st.none() | IDS), "below": draw(st.builds(Below, COUNT, COUNT, COUNT))}
    elif kind == NodeType.SYMLINK:
        fields["data"] = draw(NAMES)
    elif kind in (NodeType.CHARACTER, NodeType.BLOCK):
        fields["device"] = draw(st.tuples(COUNT, COUNT))
    return Node(
        draw(NAMES), kind, draw(st.integers(0, 0o7777)), draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1)),
        draw(st.none() | NAMES), draw(st.none() | NAMES), draw(INT64), draw(INT64),
        xattrs=draw(st.none() | st.lists(st.builds(Xattr, NAMES, st.binary(max_size=20)), max_size=3).map(tuple)),
        link=draw(st.none() | st.tuples(COUNT, COUNT)), atime=draw(st.none() | INT64), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


@given(nodes())
def test_nodes_come_back(node: Node) -> None:
    raw = records.encode(node)
    assert records.decode_node(raw, "it") == node
    assert records.encode(records.decode_node(raw, "it")) == raw, "one encoding"


@given(st.integers(0, 2**64 - 1), st.binary(max_size=70_000))
def test_integers_and_bytes_are_as_short_as_can_be(number: int, data: bytes) -> None:
    """What other writers of the format have to do as well, or equal directories are not equal blobs."""
    raw = records.encode((number, data))
    sizes = (1 << 7, 1), (1 << 8, 2), (1 << 16, 3), (1 << 32, 5), (1 << 64, 9)
    head = next(size for limit, size in ((1 << 8, 2), (1 << 16, 3), (1 << 32, 5)) if len(data) < limit)
    assert len(raw) == 1 + next(size for limit, size in sizes if number < limit) + head + len(data)


@given(st.binary(max_size=300))
def test_any_name_is_good_or_refused(name: bytes) -> None:
    bad = not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255
    raw = records.encode(Node(name, NodeType.FIFO, 0, 0, 0, None, None, 0, 0))
    if bad:
        with pytest.raises(Damaged):
            records.decode_node(raw, "it")
    else:
        assert records.decode_node(raw, "it").name == name


@pytest.mark.parametrize(
    "name", [b"..\\", b"\xff\xfe", b"\n", b" ", b"-rf", b"\x1b[2J", b"...", "\u202e".encode(), b"x" * 255]
)
def test_ugly_names_are_names(name: bytes) -> None:
    records.check_name(name, "it")


@given(nodes(), st.data())
def test_flipped_and_cut_nodes_never_end_in_a_foreign_error(node: Node, data: st.DataObject) -> None:
    raw = bytearray(records.encode(node))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(raw), bytes(raw[:at])):
        try:
            found = records.decode_node(bad, "it")
        except Damaged:
            continue
        records.check_name(found.name, "it")


DECODERS = [
    records.decode_page, records.decode_node, records.decode_branch, records.decode_extent, records.decode_hole,
    records.decode_snapshot, *(lambda data, where, t=t: records.decode(t, data, where) for t in (Event, Config, Bundle)),
]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.integers(-(2**63), 2**64 - 1)
        | st.binary(max_size=40)
        | st.none()
        | st.text(max_size=3)
        | st.booleans(),
        lambda inner: st.lists(inner, max_size=8),
        max_leaves=30,
    ).map(msgspec.msgpack.encode)
)
def test_anything_decodes_or_is_refused(data: bytes) -> None:
    for decoder in DECODERS:
        try:
            decoder(msgspec.Raw(data) if data else data, "it")  # type: ignore[arg-type,operator]
        except RepositoryError:
            continue


def longer(raw: bytes) -> bytes:
    """The same record with two fields more at its end."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(raw), b"later", [1, 2]])


ROOT = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0)
SNAPSHOT = Snapshot(1, ROOT, 5, b"h", b"u", (b"/",), (), Totals(), True, 0, 0, (), (), b"p")


@pytest.mark.parametrize(
    "record",
    [SNAPSHOT, Event(1, b"c", 1, (), 0, EventBody(records.EVENT_FORGET)), Bundle(1, 1, (), b"")],
    ids=lambda record: type(record).__name__,
)
def test_later_fields_are_passed_over_and_later_versions_refused(record: msgspec.Struct) -> None:
    assert records.decode(type(record), longer(records.encode(record)), "it") == record
    newer = msgspec.structs.replace(record, version=2)
    for raw in (records.encode(newer), longer(records.encode(newer)), msgspec.msgpack.encode([2])):
        with pytest.raises(UnsupportedFormat, match="newer"):
            records.decode(type(record), raw, "it")


@pytest.mark.parametrize(
    "branch",
    [Branch(None, 0, 0, bytes(32)), Branch(None, -1, 0, bytes(32)), Branch(None, 1, -1, bytes(32)), Branch(None, 1, 0, bytes(31)),
     Branch(None, 1, 0, bytes(32), -1), Branch(None, 1, 0, bytes(32), 0, -1)],
)  # fmt: skip
def test_branches_with_bad_sums(branch: Branch) -> None:
    with pytest.raises(Damaged):
        records.decode_branch(msgspec.Raw(records.encode(branch)), "it")


@pytest.mark.parametrize(
    "extent", [(None, 0), (bytes(32), 0), (bytes(32), -1), (bytes(31), 1), (bytes(32), (4 << 20) + 1)]
)
def test_bad_extents(extent: tuple[bytes | None, int]) -> None:
    with pytest.raises(Damaged):
        records.decode_extent(msgspec.Raw(records.encode(extent)), "it")


@pytest.mark.parametrize("hole", [(-1, 1), (0, 0), (0, -1)])
def test_bad_holes(hole: tuple[int, int]) -> None:
    with pytest.raises(Damaged):
        records.decode_hole(msgspec.Raw(records.encode(hole)), "it")


def test_copied_entries_keep_fields_of_later_versions() -> None:
    """An entry taken from the parent snapshot goes into the new one byte for byte."""
    store = MemoryBlobs()
    raw = longer(records.encode(Node(b"file", NodeType.FIFO, 0, 0, 0, None, None, 0, 0, atime=1, links=2)))
    first = DirectoryWriter(store.put, KEYS.page)
    first.add(records.decode_node(raw, "it"), raw)
    root, below = first.finish()
    taken = RawDirectory(store, msgspec.structs.replace(ROOT, root=root, below=below)).take(b"file")  # type: ignore[arg-type]
    assert taken is not None
    second = DirectoryWriter(store.put, KEYS.page)
    second.add(taken.node, taken.raw)
    assert second.finish() == (root, below)
    assert root is not None
    assert raw in store.blobs[Kind.DIRECTORY, root]


def test_heads_of_events_come_back() -> None:
    event = Event(
        1, b"c" * 16, 2**40, (Head(b"d" * 16, 1, bytes(32)),), -1, EventBody(records.EVENT_SNAPSHOT, b"x")
    )
    assert records.decode(Event, records.encode(event), "it") == event


def test_every_node_type_is_a_type_of_files_and_back() -> None:
    assert set(FORMATS) == set(NodeType)
    assert {kind: TYPES[bits] for kind, bits in FORMATS.items()} == {kind: kind for kind in NodeType}
    assert TYPES[stat.S_IFMT(os.stat("/").st_mode)] == NodeType.DIRECTORY
