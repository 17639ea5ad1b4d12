"""The view without a kernel: folders of snapshots, computed inodes, listing from any place, what damage does."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from snapfs.fs.entry import ROOT, Entry, Stale
from snapfs.fs.layout import Folder, arrange, file_name, time_name
from snapfs.fs.links import HeldLinks
from snapfs.fs.patience import NotAtHand
from snapfs.fs.view import View
from snapfs.repo.errors import Damaged
from snapfs.repo.model import Below, KiB, Location, MiB, Node, Xattr
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.volumes import Volumes
from support import repositories, trees
from support.trees import Dir, File, Name, Symlink

DAY = 86_400_000_000_000
LARGE, LONG = trees.noise(3_000_000), trees.noise(3000)
SOURCE: trees.Tree = {
    b"docs/readme": File(b"hello\n", xattrs={"user.note": b"kept", "user.empty": b""}),
    b"docs/deep/inline": File(b"x" * 64),
    b"docs/deep/joined": File(b"y" * 65),
    b"docs/deep/same as readme": Name(of=b"docs/readme"),
    b"empty folder": Dir(),
    b"large": File(LARGE, xattrs={"user.long": LONG}),
    b"link": Symlink(target=b"docs/readme"),
    **{b"many/%04d" % i: File(b"%d\n" % i * (i % 50)) for i in range(700)},
    b"third name": Name(of=b"docs/readme"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository that holds one snapshot of `home/source`."""
    home = tmp_path_factory.mktemp("view")
    trees.make(home / "source", SOURCE)
    repositories.create(home)
    repositories.snapshot(home, home / "source", tags=(b"a/b",), time=17 * DAY)
    return home


@pytest.fixture
def repository(home: Path) -> Iterator[Repository]:
    with repositories.open_(home) as repository:
        yield repository


def source_of(repository: Repository, home: Path) -> Node:
    return repository.trees.resolve(repository.snapshots()[0].record.root, os.fsencode(home / "source"))


def listing(view: View, inode: int, start: int = 0) -> dict[bytes, Entry]:
    directory, found = view.directory(inode), {}
    while run := directory.run(start):
        for name, entry in run:
            assert name not in found
            found[name] = entry
        start += len(run)
    return found


def walk(view: View, inode: int) -> Iterator[Entry]:
    for entry in listing(view, inode).values():
        yield entry
        if entry.node.is_dir:
            yield from walk(view, entry.inode)


def at(view: View, *path: bytes) -> Entry:
    entry = view.entry(ROOT)
    for name in path:
        child = view.lookup(entry.inode, name)
        assert child is not None, name
        entry = child
    return entry


# ---- the folders above the snapshots ---------------------------------------------------------------------------------


def fake(number: int, time: int, host: bytes = b"host", tags: tuple[bytes, ...] = ()) -> StoredSnapshot:
    record = type("Record", (), {"time": time, "host": host})()
    return StoredSnapshot(bytes([number]) * 32, record, tags, b"client")


def test_layout_is_that_of_restic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Zurich")
    __import__("time").tzset()
    try:
        times = [1431113910 * 10**9, 1431113910 * 10**9 + 5, 1447000000 * 10**9]
        top = arrange(
            [fake(1, times[0]), fake(2, times[1], b"o/t", (b"x/y", b"x_y")), fake(3, times[2], tags=(b"..",))]
        )
        names = {name: folder for name, folder in top.entries.items() if isinstance(folder, Folder)}
        assert list(names) == [b"ids", b"snapshots", b"hosts", b"tags"]
        assert list(names[b"ids"].entries) == [b"01" * 4, b"02" * 4, b"03" * 4]
        first, last = b"2015-05-08T21:38:30+02:00", b"2015-11-08T17:26:40+01:00"
        assert list(names[b"snapshots"].entries) == [first, first + b"-1", last, b"latest"]
        assert names[b"snapshots"].entries[b"latest"] == last
        assert list(names[b"hosts"].entries) == [b"host", b"o_t"]
        assert list(names[b"tags"].entries) == [b"__", b"x_y"]
        tagged = names[b"tags"].entries[b"x_y"]
        assert isinstance(tagged, Folder)
        assert list(tagged.entries) == [first, b"latest"]
    finally:
        monkeypatch.undo()
        __import__("time").tzset()


def test_names_that_cannot_be_names() -> None:
    assert [file_name(text) for text in (b"", b".", b"..", b"a/b\0c", b"x" * 300)] == [
        b"_", b"_", b"__", b"a_b_c", b"x" * 255,
    ]  # fmt: skip
    assert time_name(10**30).startswith(b"@")


def test_empty_repository_has_empty_folders(tmp_path: Path) -> None:
    repositories.create(tmp_path)
    with repositories.open_(tmp_path) as repository:
        view = View(repository)
        assert list(listing(view, ROOT)) == [b"ids", b"snapshots", b"hosts", b"tags"]
        assert listing(view, at(view, b"snapshots").inode) == {}


def test_one_snapshot_is_shown_at_every_place_with_inodes_of_its_own(repository: Repository) -> None:
    view = View(repository)
    short = repository.snapshots()[0].short.encode()
    name = time_name(17 * DAY)
    places = [(b"ids", short), (b"snapshots", name), (b"hosts", b"host", name), (b"tags", b"a_b", name)]
    entries = [at(view, *path) for path in places]
    assert len({entry.inode for entry in entries}) == len(places)
    assert all(entry.node == repository.snapshots()[0].record.root for entry in entries)
    assert at(view, b"tags", b"a_b", b"latest").node.data == name
    assert view.lookup(ROOT, b"nothing") is None
    assert [at(view, *path) for path in places] == entries


def test_snapshots_appear_and_disappear_while_mounted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    repositories.create(tmp_path)
    first = repositories.snapshot(tmp_path, tmp_path / "source")
    with repositories.open_(tmp_path) as repository:
        view = View(repository)
        before = listing(view, at(view, b"ids").inode)
        (tmp_path / "source/new").touch()
        second = repositories.snapshot(tmp_path, tmp_path / "source")
        view._folders._reload_after = view._folders._look_after = 0
        after = listing(view, at(view, b"ids").inode)
        assert list(after) == [first.short.encode(), second.short.encode()]
        assert after[first.short.encode()] == before[first.short.encode()]
        repository.events.forget([first.id])
        view._folders._reload_after = view._folders._look_after = 0
        assert list(listing(view, at(view, b"ids").inode)) == [second.short.encode()]


def test_only_selected_snapshots_are_shown(repository: Repository) -> None:
    view = View(repository, select=lambda snapshot: snapshot.record.host == b"another")
    assert listing(view, at(view, b"hosts").inode) == {}


# ---- inodes ----------------------------------------------------------------------------------------------------------


def test_every_inode_is_unique_and_leads_back_to_its_entry(repository: Repository) -> None:
    view = View(repository)
    entries = list(walk(view, at(view, b"ids").inode))
    assert len({entry.inode for entry in entries}) == len(entries) > 700
    view._nodes.clear()
    for entry in random.Random(1).sample(entries, len(entries)):
        assert view.entry(entry.inode) == entry


def test_a_directory_can_be_the_root_of_the_mount(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home))
    assert view.entry(ROOT).node.is_dir
    entries = list(walk(view, ROOT))
    assert {os.fsencode(path.name) for path in (home / "source").rglob("*")} == {
        entry.node.name for entry in entries
    }
    assert ROOT not in {entry.inode for entry in entries}
    view._nodes.clear()
    assert all(view.entry(entry.inode) == entry for entry in entries)


def test_an_inode_nobody_was_told_of_is_stale(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home))
    last = max(entry.inode for entry in walk(view, ROOT))
    for inode in (0, 2, last + 1, 2 << 40, 1 << 62, 2**64 - 1):
        with pytest.raises(Stale):
            view.entry(inode)


def test_sums_that_contradict_one_another_are_damage(repository: Repository, home: Path) -> None:
    root = source_of(repository, home)
    assert root.below is not None
    view = View(repository, msgspec.structs.replace(root, below=Below(root.below.nodes - 1)))
    with pytest.raises(Damaged):
        list(walk(view, ROOT))
    view = View(repository, msgspec.structs.replace(root, below=None))
    with pytest.raises(Damaged):
        view.lookup(ROOT, b"large")


def test_listing_goes_on_from_any_position(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home))
    inode = at(view, b"many").inode
    names = list(listing(view, inode))
    assert names == [b"%04d" % i for i in range(700)]
    directory = view.directory(inode)
    for ordinal in (699, 0, 1, 2, 350, 351, 5, 700, 9999, 700, 699):
        run = directory.run(ordinal)
        assert [name for name, _ in run] == names[ordinal : ordinal + len(run)]
        assert bool(run) == (ordinal < 700)
    with pytest.raises(NotADirectoryError):
        view.directory(at(view, b"large").inode)
    assert view.lookup(at(view, b"large").inode, b"x") is None


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_the_loop_never_waits(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home))
    view.blobs.loop_thread = threading.get_ident()

    def elsewhere(question: object, *args: object) -> None:
        thread = threading.Thread(target=question, args=args)  # type: ignore[arg-type]
        thread.start()
        thread.join()

    for question in (lambda: view.lookup(ROOT, b"large"), lambda: view.directory(ROOT).run(3)):
        view._trees._pages._pages.clear()
        repository.blobs.frames.clear()
        with pytest.raises(NotAtHand):
            question()
        elsewhere(question)
        assert question() is not None
    large = at(view, b"large").node
    with pytest.raises(NotAtHand):
        view.read(large, 2_000_000, 10)
    elsewhere(view.load, large, 2_000_000, 10)
    assert view.read(large, 2_000_000, 10) == LARGE[2_000_000:2_000_010]


def test_large_blobs_are_kept_within_their_limit(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home), cache_bytes=2_000_000)
    node = at(view, b"large").node
    frames = repository.blobs.frames
    for _ in range(2):
        content = b"".join(view.read(node, offset, 100_000) for offset in range(0, 3_000_000, 100_000))
        assert content == LARGE
        for i in range(700):
            view.read(at(view, b"many", b"%04d" % i).node, 0, 100)
        assert 0 < sum(map(len, view.blobs._kept.values())) == view.blobs._size
        assert 0 < sum(map(len, frames._frames.values())) == frames.size
        assert view.blobs._size + frames.size <= 2_000_000


def test_many_readers_in_sequence_open_each_frame_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take turns, and the cache holds what they have in hand: a blob each, not two copies of it, nor those behind them."""
    files = {b"%02d" % n: random.Random(n).randbytes(1_500_000) for n in range(8)}
    trees.make(tmp_path / "source", {name: File(content) for name, content in files.items()})
    repositories.create(tmp_path, chunks=(256 * KiB, 512 * KiB, MiB))
    repositories.snapshot(tmp_path, tmp_path / "source")
    with repositories.open_(tmp_path) as repository:
        view = View(repository, source_of(repository, tmp_path), cache_bytes=9 * MiB)
        nodes = [(at(view, name).node, content) for name, content in files.items()]
        opened: list[Location] = []
        real = Volumes.frame
        monkeypatch.setattr(
            Volumes, "frame", lambda v, kind, name, where: opened.append(where) or real(v, kind, name, where)
        )
        for offset in range(0, 1_500_000, 100_000):
            for node, content in nodes:
                assert view.read(node, offset, 100_000) == content[offset : offset + 100_000]
                view.passed(node, offset, 100_000)
        data = [(where.volume, where.frame) for where in opened]
        assert len(data) >= 8 * 2
        assert len(data) == len(set(data))


# ---- contents --------------------------------------------------------------------------------------------------------


def test_contents_and_attributes(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home))
    readme = at(view, b"docs", b"readme").node
    assert view.read(readme, 0, 100) == b"hello\n"
    assert view.read(readme, 4, 1) == b"o"
    assert view.read(readme, 6, 5) == view.read(readme, 600, 5) == b""
    assert view.xattr(readme, b"user.note") == b"kept"
    assert view.xattr(readme, b"user.empty") == b""
    assert view.xattr(readme, b"user.none") is None
    assert view.xattr(at(view, b"large").node, b"user.long") == LONG


def test_an_attribute_is_read_without_those_before_it(repository: Repository, home: Path) -> None:
    """Many large ones would take a time that is the square of their number; and one that is damaged would cost the rest."""
    view = View(repository, source_of(repository, home))
    node = at(view, b"large").node
    lost = Xattr(b"user.before", None, bytes(32))
    node = msgspec.structs.replace(node, xattrs=(lost, *(node.xattrs or ())))
    assert view.xattr(node, b"user.long") == LONG
    with pytest.raises(Damaged):
        view.xattr(node, b"user.before")


def test_a_file_shorter_than_it_says_is_damage(repository: Repository, home: Path) -> None:
    view = View(repository, source_of(repository, home))
    node = msgspec.structs.replace(at(view, b"large").node, size=3_000_001)
    with pytest.raises(Damaged):
        view.read(node, 2_999_990, 100)


# ---- files with several names ----------------------------------------------------------------------------------------


def test_names_of_one_file_are_one_inode_while_the_kernel_holds_it(
    repository: Repository, home: Path
) -> None:
    view, links = View(repository, source_of(repository, home)), HeldLinks()
    names = [
        at(view, b"docs", b"readme"),
        at(view, b"third name"),
        at(view, b"docs", b"deep", b"same as readme"),
    ]
    assert {entry.node.links for entry in names} == {3}
    (shown,) = {links.shown(entry) for entry in names}
    for entry in names:
        links.hold(shown, entry)
    assert view.entry(links.inode(shown)) == names[0]
    links.forget([(shown, 2), (names[0].inode, 1)])
    assert view.entry(links.inode(shown)).node.link == names[0].node.link
    links.forget([(shown, 1)])
    assert len(links) == 0
    links.hold(shown, names[2])  # an answer that was under way
    assert links.inode(shown) == names[2].inode
    plain = at(view, b"large")
    assert links.shown(plain) == plain.inode


def test_two_groups_with_one_hash_stay_two_files(repository: Repository, home: Path) -> None:
    view, links = View(repository, source_of(repository, home)), HeldLinks()
    readme = at(view, b"third name")
    shown = links.shown(readme)
    links.hold(shown, readme._replace(node=msgspec.structs.replace(readme.node, link=(9, 9))))
    assert links.shown(readme) == readme.inode
