"""Paged sequences against plain lists: directories, content lists, hole maps."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.repo.backup.parents import RawDirectory
from snapfs.repo.content import Contents, ContentWriter, write_holes
from snapfs.repo.errors import Damaged, SnapshotNotFound
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.records import Branch
from snapfs.repo.model import Below, Extent, Holes, Kind, Node, NodeType
from snapfs.repo.pages import Found
from snapfs.repo.trees import DirectoryWriter, Trees, bytes_of, files_of, nodes_of
from support.parts import KEYS, MemoryBlobs

NAMES = st.binary(min_size=1, max_size=12).map(lambda b: b.translate(bytes.maketrans(b"/\0.", b"___")))


def file(name: bytes, size: int = 0) -> Node:
    content = {"root": KEYS.blob_id(Kind.CONTENT, b"%d" % size)} if size else {}
    return Node(name, NodeType.FILE, 0o644, 0, 0, b"user", b"group", 10**18, 10**18, size, **content)


def folder(name: bytes, below: Below | None = None, root: bytes | None = None) -> Node:
    below = below or Below()
    return Node(name, NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0, root=root, below=below)


def write(store: MemoryBlobs, nodes: Iterable[Node]) -> Node:
    writer = DirectoryWriter(store.put, KEYS.page)
    for node in sorted(nodes, key=lambda node: node.name):
        writer.add(node)
    root, below = writer.finish()
    return folder(b"", below, root)


def many(count: int) -> list[Node]:
    """Files of odd sizes, and directories that say of themselves that something is below them."""
    rng = random.Random(count)
    return [
        folder(b"%07d" % i, Below(rng.randrange(50), rng.randrange(9), rng.randrange(10**6))) if i % 7 == 0
        else file(b"%07d" % i, rng.randrange(10**5))
        for i in range(count)
    ]  # fmt: skip


def naive(nodes: Sequence[Node]) -> list[Found[Node]]:
    before_nodes = accumulate(map(nodes_of, nodes), initial=0)
    before_bytes = accumulate(map(bytes_of, nodes), initial=0)
    return [
        Found(i, n, b, node)
        for i, (n, b, node) in enumerate(zip(before_nodes, before_bytes, nodes, strict=False))
    ]


def test_an_empty_directory_has_no_page() -> None:
    store = MemoryBlobs()
    empty = write(store, [])
    assert (empty.root, empty.below) == (None, Below())
    trees = Trees(store)  # type: ignore[arg-type]
    assert list(trees.entries(empty)) == []
    assert trees.lookup(empty, b"a") is None
    assert trees.at_node(empty, 0) is None
    assert not store.blobs


@pytest.mark.parametrize("count", [1, 2, 300, 6000])
def test_look_ups_equal_a_linear_search(count: int) -> None:
    store = MemoryBlobs()
    nodes = many(count)
    directory = write(store, nodes)
    assert directory.below == Below(
        sum(map(nodes_of, nodes)), sum(map(files_of, nodes)), sum(map(bytes_of, nodes))
    )
    trees = Trees(store)  # type: ignore[arg-type]
    expected = naive(nodes)
    assert list(trees.entries(directory)) == expected
    rng = random.Random(3)
    for found in rng.sample(expected, min(count, 200)):
        assert trees.lookup(directory, found.entry.name) == found
        assert trees.lookup(directory, found.entry.name + b"\x01") is None
        assert trees.at_node(directory, found.nodes_before) == found
        assert trees.at_node(directory, found.nodes_before + nodes_of(found.entry) - 1) == found
        if bytes_of(found.entry):
            by_byte = trees._pages.by_byte(
                directory.root or b"", found.bytes_before + bytes_of(found.entry) - 1
            )
            assert by_byte == found
        assert next(trees.entries(directory, found.ordinal)) == found
    for outside in (-1, directory.below.nodes, directory.below.nodes + 5):
        assert trees.at_node(directory, outside) is None
    for name in (b"", b"!", b"~"):
        assert trees.lookup(directory, name) is None
    assert list(trees.entries(directory, count // 2)) == expected[count // 2 :]
    assert list(trees.entries(directory, count)) == []
    assert list(trees.entries(directory, count + 10)) == []


def test_pages_keep_their_sizes_and_levels() -> None:
    store = MemoryBlobs()
    directory = write(store, many(6000))
    levels = [records.decode_page(data, "it") for data in store.blobs.values()]
    assert {page.level for page in levels} == {0, 1} | {max(page.level for page in levels)}
    assert all(len(data) <= L.PAGE_MAXIMUM + 400 for data in store.blobs.values())
    short = [p for p, data in zip(levels, store.blobs.values(), strict=True) if len(data) < L.PAGE_MINIMUM]
    assert len(short) <= 1 + max(page.level for page in levels), "only the last page of a level is short"
    assert directory.root is not None


@settings(max_examples=40, deadline=None)
@given(
    st.sets(NAMES, max_size=200),
    st.sets(NAMES, max_size=20),
    st.randoms(use_true_random=False),
    st.integers(0, 1000),
)
def test_equal_sequences_are_equal_blobs(
    names: set[bytes], gone: set[bytes], rng: random.Random, size: int
) -> None:
    """However they came about: written at once, or edited out of another one's raw entries."""
    wanted = [file(name, size) for name in names - gone]
    rng.shuffle(wanted)
    store = MemoryBlobs()
    scratch = write(store, wanted)
    edited = edit(store, write(store, [file(name, size) for name in names | gone]), dict.fromkeys(gone))
    assert edited == scratch
    assert {
        name: node for f in Trees(store).entries(scratch) for name, node in [(f.entry.name, f.entry)]
    } == {  # type: ignore[arg-type]
        node.name: node for node in wanted
    }


def edit(store: MemoryBlobs, old: Node, changes: dict[bytes, Node | None]) -> Node:
    """Write a directory anew as a backup does: raw entries of the old one, with some replaced, added or left out."""
    trees = Trees(store)  # type: ignore[arg-type]
    raw = RawDirectory(store, old)  # type: ignore[arg-type]
    names = sorted({f.entry.name for f in trees.entries(old)} | changes.keys())
    writer = DirectoryWriter(store.put, KEYS.page)
    for name in names:
        taken = raw.take(name)
        if name in changes:
            node = changes[name]
            if node is not None:
                writer.add(node)
        else:
            assert taken is not None
            writer.add(taken.node, taken.raw)
    root, below = writer.finish()
    return folder(b"", below, root)


@pytest.mark.parametrize("at", [0, 1, 2999, 3001, 5999])
@pytest.mark.parametrize("how", ["change", "remove", "insert"])
def test_one_changed_entry_rewrites_few_pages(at: int, how: str) -> None:
    store = MemoryBlobs()
    nodes = many(6000)
    old = write(store, nodes)
    before = set(store.blobs)
    name = nodes[at].name
    changes: dict[bytes, Node | None] = {
        "change": {name: file(name, 77)}, "remove": {name: None}, "insert": {name + b"!": file(name + b"!", 5)}
    }[how]  # fmt: skip
    new = edit(store, old, changes)
    added = [store.blobs[key] for key in set(store.blobs) - before]
    assert new.root != old.root
    assert 2 <= len(added) <= 3 * (1 + max(records.decode_page(data, "it").level for data in added))
    assert sum(map(len, added)) < 100 * 1024
    wanted = {node.name: node for node in nodes} | changes
    assert [f.entry for f in Trees(store).entries(new)] == [wanted[n] for n in sorted(wanted) if wanted[n]]  # type: ignore[arg-type]


def test_a_clone_can_be_finished_early() -> None:
    store = MemoryBlobs()
    nodes = many(1500)
    writer = DirectoryWriter(store.put, KEYS.page)
    early = None
    for i, node in enumerate(nodes):
        if i == 700:
            early = writer.clone().finish()
        writer.add(node)
    all_, part = write(MemoryBlobs(), nodes), write(MemoryBlobs(), nodes[:700])
    assert writer.finish() == (all_.root, all_.below)
    assert early == (part.root, part.below)


def test_looking_up_reads_one_page_a_level() -> None:
    store = MemoryBlobs()
    directory = write(store, many(6000))
    for name in (b"0000000", b"0003003", b"0005999"):
        store.reads = 0
        assert Trees(store).lookup(directory, name) is not None  # type: ignore[arg-type]
        assert store.reads <= 4


def test_paths_resolve() -> None:
    store = MemoryBlobs()
    inner = write(store, [file(b"f\xff"), folder(b"empty")])
    root = write(store, [msgspec.structs.replace(inner, name=b"dir"), file(b"plain")])
    trees = Trees(store)  # type: ignore[arg-type]
    assert trees.resolve(root, b"/") == root
    assert trees.resolve(root, b"dir//./f\xff").name == b"f\xff"
    for missing in (b"dir/g", b"plain/f", b"dir/empty/x", b"dir/.."):
        with pytest.raises(SnapshotNotFound):
            trees.resolve(root, missing)
    walked = [(found.path, found.node.name) for found in trees.walk(root, b"/top")]
    assert [path for path, _ in walked] == [b"/top/dir", b"/top/dir/empty", b"/top/dir/f\xff", b"/top/plain"]


# ---- pages that no writer made ---------------------------------------------------------------------------------------


def page(store: MemoryBlobs, level: int, *entries: object) -> bytes:
    return store.put(
        Kind.DIRECTORY, records.encode_page(level, [msgspec.Raw(records.encode(e)) for e in entries])
    )


def leaf(store: MemoryBlobs, *names: bytes) -> tuple[bytes, int]:
    return page(store, 0, *(file(name) for name in names)), len(names)


def reads_everything(store: MemoryBlobs, root: bytes) -> None:
    """Each of the ways in, one of which has to notice."""
    trees = Trees(store)  # type: ignore[arg-type]
    top = folder(b"", root=root)
    list(trees.entries(top))


def test_names_out_of_order_or_twice() -> None:
    store = MemoryBlobs()
    for names in ((b"b", b"a"), (b"a", b"a")):
        with pytest.raises(Damaged, match="order or twice"):
            reads_everything(store, leaf(store, *names)[0])
    one, two = leaf(store, b"b")[0], leaf(store, b"a")[0]
    root = page(store, 1, Branch(b"b", 1, 0, one, 1, 1), Branch(b"a", 1, 0, two, 1, 1))
    with pytest.raises(Damaged, match="order or twice"):
        reads_everything(store, root)


def test_pages_on_the_wrong_level() -> None:
    store = MemoryBlobs()
    leaves = leaf(store, b"a")[0]
    for level in (2, 3, 16):
        root = page(store, level, Branch(b"a", 1, 0, leaves, 1, 1))
        with pytest.raises(Damaged, match="wrong level"):
            reads_everything(store, root)
        with pytest.raises(Damaged, match="wrong level"):
            Trees(store).lookup(folder(b"", root=root), b"a")  # type: ignore[arg-type]
        with pytest.raises(Damaged, match="wrong level"):
            list(RawDirectory(store, folder(b"", root=root)).entries())  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [-1, 17, 1000])
def test_pages_on_no_level(level: int) -> None:
    store = MemoryBlobs()
    root = page(store, level, Branch(b"a", 1, 0, leaf(store, b"a")[0], 1, 1))
    with pytest.raises(Damaged):
        reads_everything(store, root)


@pytest.mark.parametrize("sums", [(2, 3, 1), (1, 5, 1), (1, 3, 2), (2**60, 2**60, 2**60)])
@pytest.mark.parametrize("how", ["iterate", "name", "node", "byte"])
def test_sums_that_are_not_those_of_the_page_below(sums: tuple[int, int, int], how: str) -> None:
    """Else an entry is found at a place it is not at, or a read ends early without a word."""
    store = MemoryBlobs()
    entries, size, nodes = sums
    leaves = page(store, 0, file(b"a", 3))
    other = page(store, 0, file(b"b", 10))
    root = page(store, 1, Branch(b"a", entries, size, leaves, nodes, 1), Branch(b"b", 1, 10, other, 1, 1))
    reader = Trees(store)._pages  # type: ignore[arg-type]
    look = {
        "iterate": lambda: list(reader.iterate(root)),
        "name": lambda: reader.by_name(root, b"a"),
        "node": lambda: reader.by_node(root, 0),
        "byte": lambda: reader.by_byte(root, 0),
    }[how]
    with pytest.raises(Damaged, match="add up"):
        look()


def test_a_page_that_is_a_directory_of_another_kind() -> None:
    store = MemoryBlobs()
    root = page(store, 0, (bytes(32), 5))
    with pytest.raises(Damaged):
        reads_everything(store, root)


# ---- content -----------------------------------------------------------------------------------------------------------


class File:
    """A file as a list of pieces (None: a hole), and as the bytes they stand for."""

    def __init__(self, pieces: Sequence[bytes | int]) -> None:
        self.store = MemoryBlobs()
        self.data = b"".join(bytes(p) if isinstance(p, int) else p for p in pieces)
        writer = ContentWriter(self.store.put, KEYS.page)
        for piece in pieces:
            if isinstance(piece, int):
                writer.add(None, piece)
            else:
                writer.add(self.store.put(Kind.CONTENT, piece), len(piece))
        blobs, root = writer.finish()
        assert writer.size == len(self.data)
        self.node = Node(
            b"f", NodeType.FILE, 0, 0, 0, None, None, 0, 0, len(self.data), blobs=blobs, root=root
        )
        records.check_node(self.node, "it")
        self.contents = Contents(self.store)  # type: ignore[arg-type]


PIECES = st.lists(st.binary(min_size=1, max_size=20) | st.integers(1, 30), max_size=30)


@settings(deadline=None, max_examples=40)
@given(PIECES, st.sampled_from([1, 1, 1, 5, 15]), st.data())
def test_reads_equal_a_slice(pieces: list[bytes | int], times: int, data: st.DataObject) -> None:
    file = File(pieces * times)
    assert (file.node.root is not None) == (len(pieces) * times > L.INLINE_EXTENTS)
    assert file.contents.read(file.node, 0, len(file.data) + 5) == file.data
    for _ in range(5):
        offset = data.draw(st.integers(0, len(file.data) + 3))
        size = data.draw(st.integers(0, len(file.data) + 3))
        expected = file.data[offset : offset + size]
        assert file.contents.read(file.node, offset, size) == expected
        assert file.contents.read_cached(file.node, offset, size) in (expected, None)
        spans = list(file.contents.spans(file.node, offset, size))
        assert sum(span.size for span in spans) == len(expected)
        assert [span.offset for span in spans] == [
            offset + n for n in accumulate((s.size for s in spans[:-1]), initial=0)
        ][: len(spans)]
        assert all(s.skip >= 0 and s.skip + s.size <= s.length and s.size > 0 for s in spans)


def test_one_blob_of_a_long_list_rewrites_few_pages() -> None:
    rng = random.Random(1)
    extents = [
        Extent(KEYS.blob_id(Kind.CONTENT, b"%d" % i), rng.randrange(1, 1 << 20)) for i in range(20_000)
    ]
    store = MemoryBlobs()

    def put(extents: list[Extent]) -> bytes | None:
        writer = ContentWriter(store.put, KEYS.page)
        for extent in extents:
            writer.add(*extent)
        return writer.finish()[1]

    one = put(extents)
    before = len(store.blobs)
    two = put([*extents[:9999], Extent(KEYS.blob_id(Kind.CONTENT, b"new"), 5), *extents[10_000:]])
    assert one != two
    assert len(store.blobs) - before <= 9
    assert put(extents) == one


def test_a_list_shorter_or_longer_than_the_file_says() -> None:
    file = File([b"x" * 10] * 20)
    longer = msgspec.structs.replace(file.node, size=300)
    for offset, size in ((0, 300), (150, 100), (200, 1), (250, 10), (299, 1)):
        with pytest.raises(Damaged):
            file.contents.read(longer, offset, size)
    assert file.contents.read(longer, 300, 10) == b""
    shorter = msgspec.structs.replace(file.node, size=15)
    assert file.contents.read(shorter, 0, 100) == b"x" * 15
    with pytest.raises(Damaged):
        list(file.contents.blobs(shorter))


def test_a_blob_of_another_length_than_the_list_says() -> None:
    file = File([b"abc"])
    assert file.node.blobs is not None
    bad = msgspec.structs.replace(file.node, size=4, blobs=((file.node.blobs[0][0], 4),))
    with pytest.raises(Damaged):
        file.contents.read(bad, 0, 4)


def test_inline_content_and_none() -> None:
    contents = Contents(MemoryBlobs())  # type: ignore[arg-type]
    node = Node(b"f", NodeType.FILE, 0, 0, 0, None, None, 0, 0, 5, b"hello")
    assert [contents.read(node, i, 3) for i in (0, 3, 5, 9)] == [b"hel", b"lo", b"", b""]
    assert File([]).contents.read(File([]).node, 0, 10) == b""


@pytest.mark.parametrize("count", [0, 1, 8, 9, 3000])
def test_hole_maps(count: int) -> None:
    store = MemoryBlobs()
    holes = [(i * 10_000, 4096 + i) for i in range(count)]
    found = write_holes(store.put, KEYS.page, iter(holes))
    node = Node(b"f", NodeType.FILE, 0, 0, 0, None, None, 0, 0, 10**9, root=bytes(32), holes=found)
    assert list(Contents(store).holes(node)) == holes  # type: ignore[arg-type]
    if found is None:
        assert count == 0
    else:
        assert found.total == sum(length for _, length in holes)
        assert (found.root is None) == (count <= L.INLINE_HOLES)
    if count <= L.INLINE_HOLES:
        assert not store.blobs or count == 0 or found == Holes(found.total if found else 0, tuple(holes))


def test_all_blobs_of_a_file() -> None:
    file = File([bytes((i % 256,)) * (1 + i) for i in range(400)] + [5000])
    found = list(file.contents.blobs(file.node))
    assert {blob for kind, blob in found if kind is Kind.CONTENT} == {
        b for k, b in file.store.blobs if k is Kind.CONTENT
    }
    assert {blob for kind, blob in found if kind is Kind.LIST} == {
        b for k, b in file.store.blobs if k is Kind.LIST
    }
    assert found[0] == (Kind.LIST, file.node.root)
