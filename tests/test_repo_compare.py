"""diff: finds what a comparison of everything would find, and opens only what differs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.repo.errors import SnapfsError, SourceError
from snapfs.repo.model import KiB, Kind, MiB, Node, NodeType
from snapfs.repo.packing import BlobWriter
from snapfs.repo.progress import Progress
from snapfs.repo.query.compare import Change, DiffStats, Side, diff, diff_live
from snapfs.repo.repository import Repository
from snapfs.repo.trees import DirectoryWriter
from support import repositories as repos
from support.trees import ODD, File, Name, Symlink, Tree, make, noise

Plain = dict[bytes, "int | Plain"]
"""A directory as nested dictionaries; a number is a file whose content and mtime it stands for."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("compare")
    repos.create(folder)
    with repos.open_(folder) as opened:
        yield opened


def node(kind: NodeType, name: bytes, **fields: object) -> Node:
    return Node(name, kind, 0o755, 0, 0, None, None, 0, 0, **fields)  # type: ignore[arg-type]


def store(writer: BlobWriter, page_key: bytes, name: bytes, what: Plain) -> Node:
    directory = DirectoryWriter(writer.put, page_key)
    for key in sorted(what):
        inner = what[key]
        if isinstance(inner, dict):
            directory.add(store(writer, page_key, key, inner))
        else:
            data = b"%d" % inner
            directory.add(
                msgspec.structs.replace(node(NodeType.FILE, key, size=len(data), data=data), mtime=inner)
            )
    root, below = directory.finish()
    return node(NodeType.DIRECTORY, name, root=root, below=below)


def stored(repository: Repository, *trees: Plain) -> list[Node]:
    with repository.writer() as writer:
        roots = [store(writer, repository.keys.page, b"", tree) for tree in trees]
        writer.flush()
    return roots


def naive(old: Plain, new: Plain, path: bytes = b"") -> Iterator[tuple[bytes, str]]:
    for name in sorted(old.keys() | new.keys()):
        here, a, b = path + b"/" + name, old.get(name), new.get(name)
        if a is None or b is None:
            yield here, "+" if a is None else "-"
        elif isinstance(a, dict) != isinstance(b, dict):
            yield here, "T"
        elif not isinstance(a, dict) and a != b:
            yield here, "M"
        yield from naive(a if isinstance(a, dict) else {}, b if isinstance(b, dict) else {}, here)


def letters(changes: Iterator[Change]) -> dict[bytes, str]:
    return {change.path: change.kind for change in changes}


names = st.binary(min_size=1, max_size=3).filter(lambda n: n not in (b".", b"..") and not {0, 47} & set(n))
trees = st.recursive(
    st.dictionaries(names, st.integers(0, 3), max_size=6),
    lambda inner: st.dictionaries(names, st.integers(0, 3) | inner, max_size=6),
    max_leaves=30,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(old=trees, new=trees)
def test_small_trees_as_the_naive_way(repository: Repository, old: Plain, new: Plain) -> None:
    a, b = stored(repository, old, new)
    assert [(c.path, c.kind) for c in diff(repository, a, b)] == list(naive(old, new))
    assert list(diff(repository, a, a)) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(0, 1500),
    gone=st.sets(st.integers(0, 1500), max_size=8),
    fresh=st.sets(st.integers(0, 1_000_000), max_size=8),
    changed=st.sets(st.integers(0, 1500), max_size=8),
)
def test_large_directories_as_the_naive_way(
    repository: Repository, count: int, gone: set[int], fresh: set[int], changed: set[int]
) -> None:
    old: Plain = {b"%07d" % (700 * i): i for i in range(count)}
    new = {
        name: (-1 if i in changed else value) for i, (name, value) in enumerate(old.items()) if i not in gone
    }
    new |= {b"%07d" % n: 5 for n in fresh}
    a, b = stored(repository, old, new)
    assert [(c.path, c.kind) for c in diff(repository, a, b)] == list(naive(old, new))
    assert letters(diff(repository, b, a)) == dict(naive(new, old))


def test_one_change_among_many_opens_few_pages(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Plain = {b"file %06d" % i: i for i in range(20_000)}
    new = {**old, b"file 010000": -1, b"file 0100005": 3}
    a, b = stored(repository, {b"same": {b"x": 1}, b"large": old}, {b"same": {b"x": 1}, b"large": new})
    opened = []
    get = repository.blobs.get
    monkeypatch.setattr(repository.blobs, "get", lambda blob, kind: (opened.append(kind), get(blob, kind))[1])
    found = letters(diff(repository, a, b))
    assert found == {b"/large/file 010000": "M", b"/large/file 0100005": "+"}
    assert set(opened) == {Kind.DIRECTORY}
    assert len(opened) < 20, "of some 300 pages a side"


SOURCE: Tree = {
    b"dir/same": File(b"same"),
    b"dir/modified": File(noise(80_000, 1)),
    b"dir/removed": File(noise(70_000, 2)),
    b"gone/a": File(b"a"),
    b"gone/link": Symlink(target=b"a"),
    b"touched": File(b"touched"),
    b"moved": File(noise(75_000, 3)),
    b"type": File(b"a file"),
    b"pointer": Symlink(target=b"here"),
}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Node, Node]:
    """(folder, before, after): nodes of the source directory in two snapshots."""
    source = make(tmp_path / "source", SOURCE)
    repos.create(tmp_path, chunks=(128 * KiB, 256 * KiB, MiB))  # no key cuts these files into two
    before = repos.snapshot(tmp_path, source)
    (source / "dir/modified").write_bytes(noise(80_001, 4))
    (source / "dir/removed").unlink()
    shutil.rmtree(source / "gone")
    os.utime(source / "touched", ns=(1, 1))
    (source / "moved").rename(source / "moved here")
    (source / "type").unlink()
    make(source, {b"type/inside": File(b"x"), b"fresh/sub/f": File(noise(90_000, 5))})
    (source / "pointer").unlink()
    (source / "pointer").symlink_to("there")
    after = repos.snapshot(tmp_path, source)
    path = os.fsencode(source)
    with repos.open_(tmp_path) as repository:
        return tmp_path, *(repository.trees.resolve(s.record.root, path) for s in (before, after))


CHANGES = {
    b"/dir/modified": "M", b"/dir/removed": "-", b"/fresh": "+", b"/fresh/sub": "+", b"/fresh/sub/f": "+", b"/gone": "-",
    b"/gone/a": "-", b"/gone/link": "-", b"/moved": "-", b"/moved here": "+", b"/pointer": "M", b"/type": "T",
    b"/type/inside": "+",
}  # fmt: skip


def test_two_snapshots(two: tuple[Path, Node, Node]) -> None:
    folder, before, after = two
    with repos.open_(folder) as repository:
        assert letters(diff(repository, before, after)) == CHANGES
        with_metadata = letters(diff(repository, before, after, metadata=True))
    assert with_metadata == {**CHANGES, b"/touched": "U", b"/type": "TU", b"/dir": "U"}


def test_statistics(two: tuple[Path, Node, Node]) -> None:
    folder, before, after = two
    stats = DiffStats()
    with repos.open_(folder) as repository:
        for _ in diff(repository, before, after, stats=stats):
            pass
    assert stats.changed_files == 2, "modified, and pointer"
    added, removed = stats.added, stats.removed
    assert (added.files, added.dirs, added.others) == (3, 2, 0)
    assert (removed.files, removed.dirs, removed.others) == (3, 1, 1)
    assert (added.data_blobs, removed.data_blobs) == (2, 2), "what only moved is neither"
    assert 170_001 <= added.bytes < 175_000
    assert 150_000 <= removed.bytes < 155_000
    assert DiffStats().added == Side()


def test_content_that_changed_by_itself(repository: Repository) -> None:
    with repository.writer() as writer:
        roots = []
        for data in (b"one", b"two"):
            directory = DirectoryWriter(writer.put, repository.keys.page)
            directory.add(node(NodeType.FILE, b"f", size=3, data=data))
            root, below = directory.finish()
            roots.append(node(NodeType.DIRECTORY, b"", root=root, below=below))
        writer.flush()
    assert letters(diff(repository, *roots)) == {b"/f": "M?"}


# ---- against live files ----------------------------------------------------------------------------------------------


class Errors(Progress):
    def __init__(self) -> None:
        self.seen: list[SnapfsError] = []

    def error(self, error: SnapfsError) -> None:
        self.seen.append(error)


def live(folder: Path, snapshot_node: Node, path: Path, metadata: bool = True) -> dict[bytes, str]:
    errors = Errors()
    with repos.open_(folder) as repository:
        found = letters(
            diff_live(repository, snapshot_node, os.fsencode(path), metadata=metadata, progress=errors)
        )
    assert errors.seen == []
    return found


def test_live_nothing_has_changed(tmp_path: Path) -> None:
    source = make(tmp_path / "source", ODD)
    repos.create(tmp_path)
    taken = repos.snapshot(tmp_path, source)
    with repos.open_(tmp_path) as repository:
        at = repository.trees.resolve(taken.record.root, os.fsencode(source))
    assert live(tmp_path, at, source) == {}


def test_live_a_copy_is_compared_by_content(tmp_path: Path) -> None:
    tree: Tree = {
        b"sparse": File(noise(100_000, 1), size=3_000_000),
        b"a": File(noise(900_000, 2)),
        b"b": File(b"small"),
        b"linked": Name(of=b"b"),
        b"large attribute": File(b"x", xattrs={"user.large": noise(3000)}),
        b"sub/dir/c": File(b"c" * 100),
    }
    source = make(tmp_path / "source", tree)
    repos.create(tmp_path)
    taken = repos.snapshot(tmp_path, source)
    copy = make(tmp_path / "copy", tree)
    os.utime(copy, ns=(0, source.stat().st_mtime_ns))
    with repos.open_(tmp_path) as repository:
        at = repository.trees.resolve(taken.record.root, os.fsencode(source))
    assert live(tmp_path, at, copy) == {b"/sub": "U", b"/sub/dir": "U"}, (
        "directories that were not given a time"
    )
    for name, offset in (("sparse", 2_999_999), ("a", 500_000), ("b", 0)):
        with open(copy / name, "r+b") as file:
            file.seek(offset)
            file.write(b"\x01")
        entry = tree[os.fsencode(name)]
        os.utime(copy / name, ns=(entry.mtime, entry.mtime))
    os.setxattr(copy / "large attribute", "user.large", noise(3000, 9))
    found = live(tmp_path, at, copy, metadata=True)
    assert found == {
        b"/a": "M", b"/b": "M", b"/linked": "M", b"/sparse": "M", b"/large attribute": "U", b"/sub": "U", b"/sub/dir": "U",
    }  # fmt: skip


def test_live_everything_that_can_happen(two: tuple[Path, Node, Node]) -> None:
    folder, before, _ = two
    assert live(folder, before, folder / "source", metadata=False) == CHANGES


def test_live_unreadable_and_absent(two: tuple[Path, Node, Node]) -> None:
    folder, before, _ = two
    with repos.open_(folder) as repository:
        for path in (folder / "nowhere", folder / "source/touched"):
            with pytest.raises(SourceError):
                list(diff_live(repository, before, os.fsencode(path)))
