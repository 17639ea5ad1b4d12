"""Restoring into a folder: everything a node carries, what is in the way, what goes wrong, and what must never happen.

The trees are backed up from the file system where it can hold them; those it cannot hold (damaged, hostile) are written by hand.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import random
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from snapfs.repo.blobs import BlobReader
from snapfs.repo.content import Span
from snapfs.repo.errors import Damaged, SnapfsError, StorageError, TargetError, UsageError
from snapfs.repo.model import BlobId, Holes, KiB, Kind, Location, MiB, Node, NodeType, VolumeKind, Xattr
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.restore import Overwrite, RestoreOptions, RestoreResult, Selection, directories, restore
from snapfs.repo.restore import folders as folders_module
from snapfs.repo.restore import small as small_module
from snapfs.repo.restore._making import make_files
from snapfs.repo.restore.filling import data_between, spans_with_holes
from snapfs.repo.restore.walk import stripped
from snapfs.repo.trees import DirectoryWriter
from snapfs.repo.volumes import Volumes
from support import repositories
from support.trees import File, make, noise

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")
ACL = bytes.fromhex(
    "0200000001000600ffffffff020007000100000004000400ffffffff10000700ffffffff20000400ffffffff"
)
"""Mode rw-rwxr--, and rwx for user 1."""


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.notices: list[str] = []
        self.items: dict[bytes, str] = {}
        self.files = 0
        self.bytes = 0

    def advance(self, files: int = 0, bytes: int = 0) -> None:
        self.files += files
        self.bytes += bytes

    def item(self, path: bytes, action: str, size: int = 0) -> None:
        self.items[path] = action

    def error(self, error: SnapfsError) -> None:
        assert isinstance(error, TargetError)
        self.errors.append(str(error))

    def notice(self, text: str) -> None:
        self.notices.append(text)


class Case:
    """A repository, the folder `source` that is backed up into it, and the folder `target`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.target = folder / "target"
        self.source.mkdir()
        self.told = Told()
        repositories.create(folder)

    def node(self, repository: Repository) -> Node:
        newest = repository.snapshots()[-1]
        return repository.trees.resolve(newest.record.root, os.fsencode(self.source))

    def restore(self, backup: bool = True, **options: Any) -> RestoreResult:
        if backup:
            repositories.snapshot(self.folder, self.source)
        self.told = Told()
        with repositories.open_(self.folder) as repository:
            node = self.node(repository)
            return restore(repository, node, os.fsencode(self.target), RestoreOptions(**options), self.told)

    def restore_nodes(self, build: Callable[[Repository, Writer], Node], **options: Any) -> RestoreResult:
        """Restore a tree that no file system holds."""
        self.told = Told()
        with repositories.open_(self.folder) as repository:
            with repository.writer() as writer:
                root = build(repository, Writer(repository, writer.put))
                writer.flush()
            return restore(repository, root, os.fsencode(self.target), RestoreOptions(**options), self.told)

    def same(self) -> None:
        assert self.told.errors == []
        assert list(describe(self.target)) == list(describe(self.source))


class Writer:
    def __init__(self, repository: Repository, put: Callable[[Kind, bytes], BlobId]) -> None:
        self.put = put
        self._key = repository.keys.page

    def directory(self, name: bytes, *nodes: Node) -> Node:
        writer = DirectoryWriter(self.put, self._key)
        for node in sorted(nodes, key=lambda n: n.name):
            writer.add(node)
        root, below = writer.finish()
        return msgspec.structs.replace(
            plain(name, NodeType.DIRECTORY), size=None, root=root, below=below, mode=0o755
        )


def plain(name: bytes, kind: NodeType = NodeType.FILE, **fields: Any) -> Node:
    fields = {"size": 0 if kind is NodeType.FILE else None, **fields}
    return Node(name, int(kind), 0o644, os.geteuid(), os.getegid(), None, None, 10**9, 10**9, **fields)


def describe(top: Path) -> Iterator[tuple[Any, ...]]:
    """One tuple an entry, with everything a restore must give back; hard links by their first name."""
    first: dict[tuple[int, int], bytes] = {}
    todo = [b""]
    while todo:
        rel = todo.pop()
        path = os.fsencode(top) + rel
        st = os.lstat(path)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        attributes = [(n, os.getxattr(path, n, follow_symlinks=False)) for n in names]
        content: Any = None
        if stat.S_ISREG(st.st_mode):
            content = Path(os.fsdecode(path)).read_bytes() if os.access(path, os.R_OK) else "unreadable"
        elif stat.S_ISLNK(st.st_mode):
            content = os.readlink(path)
        elif stat.S_ISDIR(st.st_mode) and os.access(path, os.R_OK | os.X_OK):
            todo += sorted((rel + b"/" + name for name in os.listdir(path)), reverse=True)
        linked = None if stat.S_ISDIR(st.st_mode) else first.setdefault((st.st_dev, st.st_ino), rel)
        rdev = st.st_rdev if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode) else 0
        yield rel, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, rdev, attributes, linked, content


def mtimes(top: Path, ns: int) -> None:
    """One time for everything, so that a restore that forgets one is seen."""
    for folder, names, files in os.walk(top, topdown=False):
        for name in names + files:
            os.utime(os.path.join(folder, name), ns=(ns, ns), follow_symlinks=False)
    os.utime(top, ns=(ns, ns))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def pattern(size: int, seed: int = 1) -> bytes:
    return b"".join(i.to_bytes(4, "big") for i in range(seed, seed + size // 4 + 1))[:size]


# ---- everything comes back ---------------------------------------------------------------------------------------


def test_every_kind_of_entry(case: Case) -> None:
    s = case.source
    for size in (0, 1, 64, 65, 64 * KiB, 300 * KiB + 1, 5 * MiB + 3):
        (s / f"file{size}").write_bytes(pattern(size))
    (s / "empty").mkdir()
    (s / "a" / "b").mkdir(parents=True)
    (s / "a" / "b" / "c").write_text("deep")
    (s / os.fsdecode(b"\xff\xfe not utf-8 \n")).write_bytes(b"name")
    (s / ("n" * 255)).touch()
    (s / "link").symlink_to("a/b")
    (s / "dangling").symlink_to("/nowhere/at/all")
    os.mkfifo(s / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(s / "socket"))
    os.chmod(s / "a" / "b" / "c", 0o6751)
    os.chmod(s / "a", 0o1777)
    mtimes(s, -1_234_567_891)
    os.utime(s / "file1", ns=(0, 4_444_444_444_123_456_789))
    os.utime(s / "a", ns=(1, 1_700_000_000_000_000_001))
    result = case.restore(verify=True)
    case.same()
    assert (result.errors, result.warnings, result.damaged) == (0, 0, 0)
    assert (result.files, result.directories, result.others) == (10, 3, 4)
    assert result.verified == 10
    assert case.told.files == 2 * 10
    assert case.told.bytes == 2 * result.bytes


@needs_root
def test_owners_devices_and_attributes(case: Case) -> None:
    s = case.source
    (s / "owned").write_bytes(b"x")
    os.chown(s / "owned", 12345, 54321)
    os.chmod(s / "owned", 0o6755)
    (s / "sub").mkdir()
    os.chown(s / "sub", 1, 2)
    os.chmod(s / "sub", 0o2750)
    (s / "symlink").symlink_to("owned")
    os.chown(s / "symlink", 3, 4, follow_symlinks=False)
    os.setxattr(s / "symlink", "trusted.on.link", b"1", follow_symlinks=False)
    os.mknod(s / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(s / "block", stat.S_IFBLK | 0o600, os.makedev(7, 0x12345))
    os.setxattr(s / "block", "trusted.dev", b"d")
    os.setxattr(s / "owned", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(s / "owned", "user.large", pattern(3000))
    os.setxattr(s / "owned", "user.empty", b"")
    os.setxattr(s / "owned", "system.posix_acl_access", ACL)
    os.setxattr(s / "sub", "system.posix_acl_default", ACL)
    (s / "sub" / "inherits").write_bytes(b"acl")
    (s / "sub" / "does not").write_bytes(b"no acl")
    os.removexattr(s / "sub" / "does not", "system.posix_acl_access")
    (s / "sub" / "deeper").mkdir()
    case.restore()
    case.same()


@needs_root
@pytest.mark.parametrize("there", [True, False], ids=["target", "above it"])
def test_an_acl_of_the_target_is_not_inherited(case: Case, there: bool) -> None:
    (case.source / "sub").mkdir()
    (case.source / "sub" / "f").write_bytes(b"1")
    (case.source / "f").write_bytes(b"1")
    os.mkfifo(case.source / "fifo")
    above = case.folder / "above"
    above.mkdir()
    case.target = above if there else above / "target"
    os.setxattr(above, "system.posix_acl_default", ACL)
    case.restore(root_metadata=True)
    case.same()


def test_hard_links_across_directories(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders_module, "OPEN_LIMIT", 2)
    s = case.source
    (s / "a" / "b" / "c").mkdir(parents=True)
    (s / "a" / "b" / "c" / "first").write_bytes(pattern(100_000))
    (s / "z").mkdir()
    os.link(s / "a" / "b" / "c" / "first", s / "z" / "second")
    os.link(s / "a" / "b" / "c" / "first", s / "a" / "third")
    os.symlink("x", s / "soft")
    os.link(s / "soft", s / "z" / "soft2", follow_symlinks=False)
    (s / "twin").write_bytes(pattern(100_000))
    result = case.restore()
    case.same()
    assert result.hard_links == 3
    again = case.restore(overwrite=Overwrite.IF_CHANGED, backup=False)
    case.same()
    assert (again.files, again.others, again.unchanged, again.hard_links) == (0, 0, 3, 3)


def test_what_was_not_linked_before_is_not_afterwards(case: Case) -> None:
    (case.source / "a").write_bytes(b"one")
    (case.source / "b").write_bytes(b"one")
    (case.source / "c").write_bytes(b"two")
    os.link(case.source / "c", case.source / "d")
    mtimes(case.source, 10**9)
    case.target.mkdir()
    (case.target / "a").write_bytes(b"one")
    os.link(case.target / "a", case.target / "b")
    os.link(case.target / "a", case.target / "d")
    mtimes(case.target, 10**9)
    case.restore(overwrite=Overwrite.IF_CHANGED, root_metadata=True)
    case.same()


def test_holes_stay_holes(case: Case) -> None:
    with open(case.source / "sparse", "wb") as f:
        f.truncate(20 * MiB + 5)
        for at in (0, 128 * KiB, 9 * MiB, 9 * MiB + 8 * KiB):
            f.seek(at)
            f.write(pattern(4096))
    with open(case.source / "only a hole", "wb") as f:
        f.truncate(8 * MiB)
    (case.source / "dense zeros").write_bytes(bytes(MiB))
    case.restore()
    case.same()
    for name in ("sparse", "only a hole", "dense zeros"):
        assert (case.target / name).stat().st_blocks == (case.source / name).stat().st_blocks, name


def test_a_hole_map_that_lies_loses_nothing(case: Case) -> None:
    data = pattern(100_000)

    def build(repository: Repository, writer: Writer) -> Node:
        blob = writer.put(Kind.CONTENT, data)
        file = plain(b"f", size=len(data), blobs=((blob, len(data)),), holes=Holes(8192, ((4096, 8192),)))
        return writer.directory(b"", file)

    assert case.restore_nodes(build).errors == 0
    assert (case.target / "f").read_bytes() == data


def test_what_is_written_between_holes() -> None:
    data = b"ab" + bytes(4) + b"cd" + bytes(2)
    assert list(data_between(data, 100, [(102, 106), (108, 300)])) == [(0, 2), (6, 8)]
    assert list(data_between(data, 100, [(0, 103)])) == [(0, 10)], "not zeros: written whatever the map says"
    assert list(data_between(bytes(8), 0, [(0, 8)])) == []
    assert list(data_between(data, 100, [(104, 106), (102, 105)])) == [(0, 4), (6, 10)], (
        "out of order: written"
    )


def test_each_span_gets_its_holes() -> None:
    spans = [Span(None, 0, 10, at, 10) for at in (0, 10, 20, 30)]
    found = spans_with_holes(iter(spans), iter([(2, 3), (8, 14), (25, 1)]))
    assert [holes for _, holes in found] == [[(2, 5), (8, 22)], [(8, 22)], [(8, 22), (25, 26)], []]


def test_a_file_goes_into_the_folder_under_its_name(case: Case) -> None:
    (case.source / "f").write_bytes(b"content")
    repositories.snapshot(case.folder, case.source)
    with repositories.open_(case.folder) as repository:
        node = repository.trees.lookup(case.node(repository), b"f")
        assert node is not None
        result = restore(
            repository, node.entry, os.fsencode(case.target / "new"), RestoreOptions(verify=True)
        )
    assert (case.target / "new" / "f").read_bytes() == b"content"
    assert (result.files, result.verified) == (1, 1)


def test_metadata_of_the_target_only_if_it_is_new_or_asked_for(case: Case) -> None:
    os.chmod(case.source, 0o711)
    case.target.mkdir(mode=0o755)
    case.restore()
    assert stat.S_IMODE(case.target.stat().st_mode) == 0o755
    case.restore(root_metadata=True, backup=False)
    assert stat.S_IMODE(case.target.stat().st_mode) == 0o711


def test_a_very_deep_tree_needs_few_descriptors(case: Case) -> None:
    depth = 1500

    def build(repository: Repository, writer: Writer) -> Node:
        node = writer.directory(b"d", plain(b"bottom", data=b"!", size=1))
        for _ in range(depth):
            node = writer.directory(b"d", plain(b"x"), node)
        return msgspec.structs.replace(node, name=b"")

    most = 0

    class Counting(Told):
        def item(self, path: bytes, action: str, size: int = 0) -> None:
            nonlocal most
            most = max(most, len(os.listdir("/proc/self/fd")))

    with repositories.open_(case.folder) as repository:
        with repository.writer() as writer:
            root = build(repository, Writer(repository, writer.put))
            writer.flush()
        target = os.fsencode(case.target)
        told = Counting()
        before = len(os.listdir("/proc/self/fd"))
        result = restore(repository, root, target, RestoreOptions(), told)
        assert (result.errors, result.files, result.directories) == (0, depth + 1, depth)
        assert most < before + folders_module.OPEN_LIMIT + 20
        empty = replace(RestoreOptions(), delete=True)
        result = restore(repository, plain(b"", NodeType.DIRECTORY), target, empty, told)
        assert result.deleted == 2 * depth + 1
        assert os.listdir(target) == []
        assert len(os.listdir("/proc/self/fd")) <= before + 3


# ---- what is in the way ------------------------------------------------------------------------------------------


def test_a_link_in_the_target_is_replaced_and_never_written_through(case: Case) -> None:
    outside = case.folder / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"precious")
    (case.source / "dir").mkdir()
    (case.source / "dir" / "victim").write_bytes(b"restored")
    (case.source / "file").write_bytes(b"restored")
    case.target.mkdir()
    (case.target / "dir").symlink_to(outside)
    (case.target / "file").symlink_to(outside / "victim")
    case.restore(root_metadata=True)
    case.same()
    assert (outside / "victim").read_bytes() == b"precious"
    assert os.listdir(outside) == ["victim"]


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"", b"a\0b", b"/etc"])
def test_hostile_names_are_damage_and_nothing_is_written(case: Case, name: bytes) -> None:
    result = case.restore_nodes(lambda _, w: w.directory(b"", plain(name)))
    assert (result.errors, result.damaged) == (1, 1)
    assert os.listdir(case.target) == []


def test_a_directory_cannot_be_entered_through_a_link_of_the_same_snapshot(case: Case) -> None:
    """Two entries of one name: a link, then a directory."""

    def build(repository: Repository, writer: Writer) -> Node:
        link = plain(b"x", NodeType.SYMLINK, data=os.fsencode(case.folder))
        return writer.directory(b"", link, writer.directory(b"x", plain(b"y")))

    result = case.restore_nodes(build)
    assert result.damaged == 1
    assert not (case.folder / "y").exists()


def test_a_replaced_file_is_whole_or_untouched(case: Case) -> None:
    (case.source / "f").write_bytes(b"new")
    case.target.mkdir()
    (case.target / "f").write_bytes(b"old")
    (case.target / "other").hardlink_to(case.target / "f")
    case.restore(root_metadata=True)
    assert (case.target / "f").read_bytes() == b"new"
    assert (case.target / "other").read_bytes() == b"old", "the old inode was not written to"
    assert case.told.items[b"/f"] == "updated"


@pytest.mark.parametrize(
    ("overwrite", "same", "newer", "older"),
    [
        (Overwrite.ALWAYS, b"snapshot", b"snapshot", b"snapshot"),
        (Overwrite.IF_CHANGED, b"TARGET..", b"snapshot", b"snapshot"),
        (Overwrite.IF_NEWER, b"TARGET..", b"TARGET..", b"snapshot"),
        (Overwrite.NEVER, b"TARGET..", b"TARGET..", b"TARGET.."),
    ],
)
def test_overwrite(case: Case, overwrite: Overwrite, same: bytes, newer: bytes, older: bytes) -> None:
    case.target.mkdir()
    for name, shift in (("same", 0), ("newer", 1), ("older", -1)):
        (case.source / name).write_bytes(b"snapshot")
        (case.target / name).write_bytes(b"TARGET..")
        os.utime(case.source / name, ns=(5, 10**18))
        os.utime(case.target / name, ns=(5, 10**18 + shift))
        os.chmod(case.source / name, 0o640)
        os.chmod(case.target / name, 0o600)
    result = case.restore(overwrite=overwrite, verify=overwrite is not Overwrite.IF_CHANGED)
    found = [(case.target / name).read_bytes() for name in ("same", "newer", "older")]
    assert found == [same, newer, older]
    untouched = overwrite in (Overwrite.IF_NEWER, Overwrite.NEVER)
    assert stat.S_IMODE((case.target / "same").stat().st_mode) == (0o600 if untouched else 0o640)
    assert result.files == found.count(b"snapshot")
    assert result.skipped + result.unchanged == found.count(b"TARGET..")
    assert result.errors == (1 if untouched else 0), "same size and time, other content: verify says so"


def test_attributes_that_the_snapshot_does_not_have_go(case: Case) -> None:
    (case.source / "f").write_bytes(b"same")
    (case.source / "d").mkdir()
    case.target.mkdir()
    (case.target / "f").write_bytes(b"same")
    (case.target / "d").mkdir()
    mtimes(case.source, 10**9)
    mtimes(case.target, 10**9)
    os.setxattr(case.target / "f", "user.extra", b"1")
    os.setxattr(case.target / "d", "user.extra", b"1")
    result = case.restore(overwrite=Overwrite.IF_CHANGED, root_metadata=True)
    case.same()
    assert result.unchanged == 1


def test_a_folder_in_the_way_of_a_file(case: Case) -> None:
    (case.source / "f").write_bytes(b"file")
    (case.source / "g").write_bytes(b"file")
    (case.target / "f" / "full").mkdir(parents=True)
    (case.target / "g").mkdir()
    result = case.restore()
    assert result.errors == 1
    assert "move it away" in case.told.errors[0]
    assert (case.target / "g").read_bytes() == b"file"
    assert sorted(os.listdir(case.target)) == ["f", "g"], "no temporary file is left"
    assert case.restore(delete=True, backup=False).errors == 0
    assert (case.target / "f").read_bytes() == b"file"


def test_a_file_in_the_way_of_a_folder(case: Case) -> None:
    (case.source / "d").mkdir()
    (case.source / "d" / "f").write_bytes(b"file")
    case.target.mkdir()
    (case.target / "d").write_bytes(b"in the way")
    result = case.restore(overwrite=Overwrite.NEVER)
    assert (result.errors, result.files) == (1, 0)
    assert case.restore(backup=False).errors == 0
    assert (case.target / "d" / "f").read_bytes() == b"file"


def test_a_target_that_is_a_file(case: Case) -> None:
    case.target.write_bytes(b"")
    with pytest.raises(TargetError, match="not a folder"):
        case.restore()


# ---- a part of it ------------------------------------------------------------------------------------------------


def make_home(source: Path) -> None:
    for name in ("home/ann/doc.txt", "home/ann/pic.jpg", "home/bob/doc.txt", "etc/hosts"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "empty").mkdir()


def files_below(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.txt"], [], ["home", "home/ann", "home/ann/doc.txt", "home/bob", "home/bob/doc.txt"]),
        (["/home/ann"], [], ["home", "home/ann", "home/ann/doc.txt", "home/ann/pic.jpg"]),
        (["/home/*/doc.txt"], ["bob"], ["home", "home/ann", "home/ann/doc.txt"]),
        ([], ["home", "empty"], ["etc", "etc/hosts"]),
        (["/nothing"], [], []),
        (["EMPTY"], [], []),
        (["empty"], [], ["empty"]),
    ],
)
def test_patterns(case: Case, include: list[str], exclude: list[str], expected: list[str]) -> None:
    make_home(case.source)
    mtimes(case.source, 10**9)
    case.restore(selection=Selection.build(include=include, exclude=exclude))
    assert files_below(case.target) == expected
    assert all((case.target / name).lstat().st_mtime_ns == 10**9 for name in expected)


def test_case_does_not_matter_for_iinclude(case: Case) -> None:
    make_home(case.source)
    case.restore(selection=Selection.build(iinclude=["/HOME/Ann/*.TXT"]))
    assert files_below(case.target) == ["home", "home/ann", "home/ann/doc.txt"]


def test_directories_that_cannot_hold_anything_wanted_are_not_read() -> None:
    wanted = Selection.build(include=["/home/a*/doc", "/srv/**/x"])
    assert [wanted.may_hold(p) for p in (b"/home", b"/home/ann", b"/home/bob", b"/srv/a/b", b"/etc")] == [
        True, True, False, True, False,
    ]  # fmt: skip


def test_a_bad_pattern_is_named() -> None:
    with pytest.raises(UsageError, match="--include: bad pattern"):
        Selection.build(include=["[a"])


def test_leading_components_are_left_out(case: Case) -> None:
    make_home(case.source)
    (case.source / "home" / "link1").write_bytes(b"linked")
    os.link(case.source / "home" / "link1", case.source / "home" / "ann" / "link2")
    result = case.restore(strip_components=1, verify=True)
    expected = ["ann", "ann/doc.txt", "ann/link2", "ann/pic.jpg", "bob", "bob/doc.txt", "hosts", "link1"]
    assert files_below(case.target) == expected
    assert (case.target / "link1").samefile(case.target / "ann" / "link2")
    assert (result.errors, result.directories) == (0, 2)


def test_folders_that_become_one_in_a_new_target(case: Case) -> None:
    """Left out is what told them apart: nothing may be taken for new because the target is."""
    make(
        case.source,
        {b"x/d/f1": File(b"1"), b"y/d/f2": File(b"2"), b"x/same": File(b"a"), b"y/same": File(b"b")},
    )
    result = case.restore(strip_components=1)
    assert (result.errors, case.told.errors) == (0, [])
    assert files_below(case.target) == ["d", "d/f1", "d/f2", "same"]


def test_what_a_file_system_cannot_reserve_is_read_as_zeros(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros that had their place on the disk: the C library reads where it cannot reserve, and may not."""
    with open(case.source / "image", "wb") as f:
        f.truncate(30 << 20)
        os.posix_fallocate(f.fileno(), 8 << 20, 12 << 20)

    def refuse(fd: int, start: int, length: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert case.restore().errors == 0
    assert (case.target / "image").read_bytes() == bytes(30 << 20)

    def full(fd: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    shutil.rmtree(case.target)
    with pytest.raises(TargetError, match="No space left"):
        case.restore()


def test_attributes_that_the_repository_has_lost_are_damage(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there, and that is not all of it: exit code 20.  A repository that is gone ends the restore."""
    make(case.source, {b"f": File(b"content", xattrs={"user.large": noise(2000, 1)})})
    reading, error = BlobReader.get, Damaged("frame 3 is damaged", "trees/ab/cd")

    def get(self: BlobReader, blob: BlobId, kind: Kind) -> bytes:
        if kind is Kind.XATTR:
            raise error
        return reading(self, blob, kind)

    monkeypatch.setattr(BlobReader, "get", get)
    result = case.restore()
    assert (result.errors, result.damaged, result.warnings) == (1, 1, 0)
    assert "extended attributes lost, as the repository is damaged" in case.told.errors[0]
    assert (case.target / "f").read_bytes() == b"content"
    shutil.rmtree(case.target)
    error = StorageError("repository: cannot read it: No such device", errno.ENODEV)  # type: ignore[assignment]
    with pytest.raises(StorageError, match="No such device"):
        case.restore()


def test_what_could_not_be_deleted_is_an_error(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    make(case.source, {b"f": File(b"x")})
    case.restore()
    (case.target / "extra").touch()
    monkeypatch.setattr(
        directories, "remove", Mock(side_effect=PermissionError(1, "Operation not permitted"))
    )
    result = case.restore(delete=True, backup=False)
    assert (result.errors, result.deleted) == (1, 0)
    assert "not deleted: Operation not permitted" in case.told.errors[0]


def test_stripped() -> None:
    assert [stripped(b"/a/b/c", n) for n in range(4)] == [b"a/b/c", b"b/c", b"c", b""]
    assert stripped(b"", 0) == b""


def test_delete(case: Case) -> None:
    make_home(case.source)
    case.restore()
    (case.target / "home" / "extra" / "deep").mkdir(parents=True)
    (case.target / "home" / "extra" / "deep" / "f").touch()
    (case.target / "home" / "extra" / "link").symlink_to(case.source)
    (case.target / "other.jpg").touch()
    only = Selection.build(exclude=["*.jpg"])
    assert case.restore(delete=True, dry_run=True, backup=False).deleted == 2
    assert case.restore(delete=True, selection=only, backup=False).deleted == 4
    assert (case.target / "other.jpg").exists()
    assert (case.source / "etc" / "hosts").exists(), "the link went, not what it points to"
    assert case.restore(delete=True, root_metadata=True, backup=False).deleted == 1
    case.same()


def test_delete_spares_the_repository_and_what_was_not_restored_whole(case: Case) -> None:
    (case.source / "d").mkdir()
    (case.source / "d" / "f").write_bytes(pattern(5000))
    repositories.snapshot(case.folder, case.source)
    inside = case.folder / "d" / "keep"
    inside.parent.mkdir()
    inside.touch()
    damage_data(case.folder)
    case.target = case.folder
    result = case.restore(delete=True, backup=False, selection=Selection.build(exclude=["/cache", "/state"]))
    assert result.damaged == 1
    assert inside.exists()
    assert (case.folder / "repository" / "config").exists()
    assert any("repository lies in the target" in text for text in case.told.notices)
    assert not case.source.exists()


@pytest.mark.parametrize("inside", [".", "data", "new/folder"])
def test_the_repository_is_no_target(case: Case, inside: str) -> None:
    (case.source / "f").touch()
    case.target = case.folder / "link"
    case.target.symlink_to(case.folder / "repository")
    case.target /= inside
    with pytest.raises(UsageError, match="repository itself"):
        case.restore(delete=True)
    assert (case.folder / "repository" / "config").exists()
    assert not (case.folder / "repository" / "new").exists()


def test_contradictions(tmp_path: Path) -> None:
    for options in (
        RestoreOptions(delete=True, strip_components=1),
        RestoreOptions(strip_components=-1),
        RestoreOptions(delete=True),
    ):
        with pytest.raises(UsageError):
            options.check(b"/")
    RestoreOptions(delete=True).check(b"/tmp")


def test_a_dry_run_writes_nothing(case: Case) -> None:
    make_home(case.source)
    result = case.restore(dry_run=True)
    assert not case.target.exists()
    assert (result.files, case.told.items[b"/etc/hosts"]) == (4, "restored")
    (case.target / "etc").mkdir(parents=True)
    (case.target / "etc" / "hosts").write_text("old")
    before = list(describe(case.target))
    result = case.restore(dry_run=True, overwrite=Overwrite.NEVER, backup=False)
    assert list(describe(case.target)) == before
    assert (result.files, result.skipped) == (3, 1)


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def damage_data(folder: Path) -> None:
    """Flip a byte in the middle of every data volume."""
    for path in (folder / "repository" / "data").glob("*/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def test_a_damaged_blob_costs_its_file_and_no_other(case: Case) -> None:
    (case.source / "good").write_bytes(b"inline")
    (case.source / "large").write_bytes(os.urandom(6 * MiB))
    (case.source / "bad").mkdir()
    repositories.snapshot(case.folder, case.source)
    damage_data(case.folder)
    case.target.mkdir()
    (case.target / "large").write_bytes(b"older version")
    result = case.restore(verify=True, backup=False)
    assert (result.errors, result.damaged, result.files) == (2, 1, 1), (
        "lost, and then found to be an older version"
    )
    assert (case.target / "large").read_bytes() == b"older version"
    assert sorted(os.listdir(case.target)) == ["bad", "good", "large"]
    (message,) = (text for text in case.told.errors if ": blob " in text)
    assert message.startswith(str(case.target / "large"))


def test_a_missing_volume_costs_the_files_in_it(case: Case) -> None:
    (case.source / "a").write_bytes(pattern(10_000))
    (case.source / "b").write_bytes(b"inline")
    repositories.snapshot(case.folder, case.source)
    for path in (case.folder / "repository" / "data").glob("*/*"):
        path.unlink()
    result = case.restore(backup=False)
    assert (result.errors, result.damaged) == (1, 1)
    assert os.listdir(case.target) == ["b"]


def test_a_damaged_directory_costs_what_is_in_it(case: Case) -> None:
    def build(repository: Repository, writer: Writer) -> Node:
        lost = msgspec.structs.replace(writer.directory(b"lost"), root=b"\1" * 32)
        return writer.directory(b"", lost, plain(b"a", data=b"1", size=1), plain(b"z"))

    result = case.restore_nodes(build)
    assert (result.damaged, result.files) == (1, 2)
    assert str(case.target / "lost") in case.told.errors[0]
    assert sorted(os.listdir(case.target)) == ["a", "lost", "z"]


def test_impossible_numbers_are_told(case: Case) -> None:
    def build(repository: Repository, writer: Writer) -> Node:
        huge = 1 << 62
        far = msgspec.structs.replace(plain(b"far"), mtime=1 << 63, uid=huge)
        attribute = plain(b"xattr", xattrs=(Xattr(b"user.a\0b", b"1"), Xattr(b"nonsense", b"2")))
        large = plain(b"large", size=huge, blobs=((None, huge),))
        return writer.directory(b"", far, attribute, large, plain(b"ok"))

    result = case.restore_nodes(build)
    assert (result.errors, result.files) == (1, 3)
    assert result.warnings >= 3
    assert sorted(os.listdir(case.target)) == ["far", "ok", "xattr"]


def test_a_full_disk_ends_it_with_one_line(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (case.source / f"f{number}").write_bytes(pattern(5 * MiB, number))
    repositories.snapshot(case.folder, case.source)
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > 3 * MiB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TargetError, match="No space left on device: free some space") as caught:
        case.restore(backup=False)
    assert caught.value.path == os.fsencode(case.target / "f0")
    assert os.listdir(case.target) == [], "no part of a file is left"


def test_an_interrupted_restore_leaves_no_part_of_a_file(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    (case.source / "f").write_bytes(pattern(300_000))

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        case.restore()
    assert os.listdir(case.target) == []


def test_an_interrupted_restore_leaves_what_it_completed_as_it_was(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcde":
        (case.source / name).mkdir(mode=0o750)
        (case.source / name / "f").write_bytes(b"content")
        os.utime(case.source / name, ns=(5, 5))
    (case.source / "z").write_bytes(pattern(300_000))
    real = small_module.make_files

    def slow(*args: Any) -> list[int]:
        time.sleep(0.05)
        return real(*args)

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(small_module, "make_files", slow)
    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        case.restore()
    for name in "abcde":
        found, wanted = os.stat(case.target / name), os.stat(case.source / name)
        assert (found.st_mode, found.st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns)
        assert (case.target / name / "f").read_bytes() == b"content"


@pytest.mark.parametrize("failing", ["all", "some", "none"])
def test_small_files_that_fail_in_a_batch_are_made_one_by_one(
    case: Case, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    for number in range(200):
        (case.source / f"d{number % 3}").mkdir(exist_ok=True)
        (case.source / f"d{number % 3}/f{number}").write_bytes(pattern(number, number))
    os.utime(case.source / "d1", ns=(5, 5))
    os.chmod(case.source / "d2", 0o555)
    real = small_module.make_files

    def make(fd: int, files: list[Any]) -> list[int]:
        bad = [failing == "all" or (failing == "some" and number % 3 == 1) for number in range(len(files))]
        real(fd, [f for f, no in zip(files, bad, strict=True) if not no])
        return [errno.EIO if no else 0 for no in bad]

    monkeypatch.setattr(small_module, "make_files", make)
    result = case.restore()
    assert (result.files, result.errors, result.warnings) == (200, 0, 0)
    assert case.told.files == 200
    assert case.told.bytes == result.bytes == sum(range(200))
    case.same()


def test_a_full_disk_amid_small_files_ends_it_with_one_line(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (case.source / f"f{number:03}").write_bytes(pattern(1000, number))
    repositories.snapshot(case.folder, case.source)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(small_module, "make_files", lambda fd, files: [errno.ENOSPC] * len(files))
    monkeypatch.setattr(os, "pwrite", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TargetError, match="No space left on device: free some space"):
        case.restore(backup=False)
    assert os.listdir(case.target) == []
    assert len(os.listdir("/proc/self/fd")) <= before


def test_making_many_files(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("elsewhere")
    fd = os.open(tmp_path, os.O_RDONLY)
    who = os.geteuid(), os.getegid()
    made = make_files(fd, [
        (b"a", b"content", 0o4751, *who, -1, -86_400_000_000_001),
        (b"there", b"theirs", 0o644, *who, 0, 0),
        (b"link", b"theirs", 0o644, *who, 0, 0),
        (b"x" * 300, b"", 0o644, *who, 0, 0),
        (b"empty", b"", 0, *who, 0, 12_000_000_000_000_000_001),
    ])  # fmt: skip
    os.close(fd)
    assert made == [0, errno.EEXIST, errno.EEXIST, errno.ENAMETOOLONG, 0]
    found = os.stat(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"content"
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_atime_ns) == (
        0o4751,
        -86_400_000_000_001,
        -1,
    )
    assert (tmp_path / "there").read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere").exists()
    assert os.stat(tmp_path / "empty").st_mtime_ns == 12_000_000_000_000_000_001


def test_numbers_that_no_system_holds_make_no_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for odd in ({"uid": 2**40}, {"uid": -1}, {"mtime": 2**100}):
        file = {"uid": 0, "mtime": 0} | odd
        with pytest.raises(OverflowError):
            make_files(fd, [(b"a", b"", 0o644, file["uid"], 0, 0, file["mtime"])])
    os.close(fd)
    assert os.listdir(tmp_path) == []


@needs_root
def test_an_owner_that_cannot_be_given_leaves_nothing(tmp_path: Path) -> None:
    """As an ordinary user: in a process of its own, since a user cannot be had back."""
    os.chmod(tmp_path, 0o777)
    fd = os.open(tmp_path, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        failed = True
        try:
            os.setgid(65534)
            os.setuid(65534)
            made = make_files(fd, [(b"a", b"x", 0o644, 0, 0, 0, 0), (b"b", b"x", 0o644, 65534, 65534, 0, 0)])
            failed = made != [errno.EPERM, 0]
        finally:
            os._exit(failed)
    os.close(fd)
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(tmp_path) == ["b"]


def test_verify_finds_what_the_disk_changed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    (case.source / "bad").write_bytes(pattern(350_000))
    (case.source / "good").write_bytes(pattern(360_000))
    real = os.pwrite

    def lying(fd: int, data: bytes, offset: int) -> int:
        bad = os.readlink(f"/proc/self/fd/{fd}").endswith("bad")
        return real(fd, bytes(len(data)) if bad else data, offset)

    monkeypatch.setattr(os, "pwrite", lying)
    result = case.restore(verify=True)
    assert (result.errors, result.verified) == (1, 1)
    assert "not what the snapshot says" in case.told.errors[0]


@needs_root
def test_untrusted(case: Case) -> None:
    (case.source / "setuid").write_bytes(b"x")
    os.setxattr(case.source / "setuid", "trusted.t", b"1")
    os.setxattr(case.source / "setuid", "user.u", b"1")
    os.chmod(case.source / "setuid", 0o6755)
    (case.source / "sticky").mkdir()
    os.chmod(case.source / "sticky", 0o3777)
    os.mknod(case.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    result = case.restore(untrusted=True)
    assert sorted(os.listdir(case.target)) == ["setuid", "sticky"]
    assert stat.S_IMODE((case.target / "setuid").stat().st_mode) == 0o755
    assert stat.S_IMODE((case.target / "sticky").stat().st_mode) == 0o1777
    assert os.listxattr(case.target / "setuid") == ["user.u"]
    assert (result.errors, result.warnings, result.skipped) == (0, 0, 1)


@needs_root
def test_ownership_by_name(case: Case) -> None:
    def build(repository: Repository, writer: Writer) -> Node:
        known = msgspec.structs.replace(plain(b"known"), uid=4321, gid=4321, user=b"daemon", group=b"daemon")
        unknown = msgspec.structs.replace(
            plain(b"unknown"), uid=4321, gid=4322, user=b"no such user", group=None
        )
        return writer.directory(b"", known, unknown)

    assert case.restore_nodes(build, ownership_by_name=True).warnings == 0
    known, unknown = (case.target / "known").stat(), (case.target / "unknown").stat()
    assert (known.st_uid, known.st_gid) == (pwd.getpwnam("daemon").pw_uid, grp.getgrnam("daemon").gr_gid)
    assert (unknown.st_uid, unknown.st_gid) == (4321, 4322)


@needs_root
def test_as_an_ordinary_user(case: Case) -> None:
    """In a child that gives up root: what it may not do is no error, and read-only folders are no obstacle, twice."""
    s = case.source
    (s / "closed" / "below").mkdir(parents=True)
    (s / "closed" / "below" / "f").write_bytes(pattern(1000))
    (s / "setuid").write_bytes(b"x")
    os.chmod(s / "setuid", 0o6755)
    os.mknod(s / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(s / "setuid", "trusted.t", b"1")
    os.setxattr(s / "setuid", "user.u", b"1")
    os.chmod(s / "setuid", 0o6555)
    os.chmod(s / "closed" / "below", 0o000)
    os.chmod(s / "closed", 0o555)
    mtimes(s, 10**9)
    repositories.snapshot(case.folder, s)
    for folder, _, files in os.walk(case.folder):
        os.chown(folder, 1000, 1000)
        for name in files:
            os.chown(os.path.join(folder, name), 1000, 1000, follow_symlinks=False)
    case.target.mkdir()
    os.chown(case.target, 1000, 1000)
    for above in case.folder.parents:
        if above.stat().st_uid == 0 and not above.stat().st_mode & 0o001:
            os.chmod(above, above.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            for _ in range(2):
                result = case.restore(backup=False, verify=True)
                assert (result.errors, result.damaged) == (1, 0), case.told.errors  # the device
                assert result.warnings == 1, case.told.errors  # trusted.t
            status = 0
        except BaseException as error:  # noqa: BLE001  # told by the parent
            os.write(2, repr(error).encode())
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    found = (case.target / "setuid").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (1000, 0o555), "setuid would be for the wrong user"
    assert stat.S_IMODE((case.target / "closed" / "below").stat().st_mode) == 0
    assert (case.target / "closed" / "below" / "f").stat().st_mtime_ns == 10**9


def test_scattered_frames_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after many snapshots: each frame holds files from all over the tree, and all of them together fit into memory."""
    source, count = tmp_path / "source", 440
    source.mkdir()
    rng = random.Random(1)
    for n in range(count):
        (source / f"{n:03d}").write_bytes(rng.randbytes(64_000))
    repositories.create(tmp_path)
    repositories.snapshot(tmp_path, source)
    later = tmp_path / "later"
    later.mkdir()
    for n in range(count):
        (source / f"{n:03d}").rename(later / f"{n % 4 * (count // 4) + n // 4:03d}")
    stored = repositories.snapshot(tmp_path, later)
    assert stored.record.totals.data_blobs == 0, "all of it is known"
    opened: list[tuple[int, int]] = []
    real = Volumes.frame

    def frame(volumes: Volumes, kind: VolumeKind, name: bytes, at: Location) -> Any:
        if kind is VolumeKind.DATA:
            opened.append((at.volume, at.frame))
        return real(volumes, kind, name, at)

    monkeypatch.setattr(Volumes, "frame", frame)
    with repositories.open_(tmp_path) as repository:
        node = repository.trees.resolve(stored.record.root, os.fsencode(later))
        result = restore(repository, node, os.fsencode(tmp_path / "target"), RestoreOptions())
    assert result.errors == 0
    for path in later.iterdir():
        assert (tmp_path / "target" / path.name).read_bytes() == path.read_bytes()
    assert len(set(opened)) >= count // 5
    assert len(opened) == len(set(opened))
