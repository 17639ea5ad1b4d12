"""What a backup keeps, what it does not read again, and what it says of a source that does not hold still."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from snapfs.repo.backup import files, sources, ticks
from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.entries import EntryReader
from snapfs.repo.backup.files import Content, FileReader
from snapfs.repo.backup.nodes import make_node
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.backup.parents import Earlier
from snapfs.repo.backup.patterns import Excludes
from snapfs.repo.backup.ticks import Ticks
from snapfs.repo.errors import SnapshotNotFound, UsageError
from snapfs.repo.format import records
from snapfs.repo.model import KiB, Kind, MiB, NodeType
from snapfs.repo.query.compare import diff
from snapfs.repo.query.dump import dump_tar
from snapfs.repo.restore import RestoreOptions, restore
from snapfs.repo.state import StoredSnapshot
from support import same
from support.mounts import mounted
from support.sources import CHUNKS, Desk, Watch
from support.trees import ODD, ROOT, SPARSE, Dir, File, Name, Symlink, make, noise

opened: list[bytes] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(args[0], bytes):
        opened.append(args[0])


sys.addaudithook(_audit)


@contextmanager
def watching_opens() -> Iterator[list[bytes]]:
    """The names that the engine opens in a source (it names files of the source by bytes, its own by str)."""
    global opened
    opened = found = []
    try:
        yield found
    finally:
        opened = None


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nothing here is about power cuts


# ---- fidelity --------------------------------------------------------------------------------------------------------


def test_everything_odd_is_kept(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ODD)
    watch = Watch()
    result = desk.backup(progress=watch)
    assert watch.errors == []
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []
    assert desk.differences(desk.snapshot()) == [], "the second backup, which opens nothing"


def test_everything_odd_is_restored(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ODD)
    desk.snapshot()
    snapshot = desk.snapshot()
    watch = Watch()
    with desk.open() as repository:
        node = repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source))
        result = restore(repository, node, os.fsencode(tmp_path / "target"), RestoreOptions(), watch)
    assert (watch.errors, result.errors, result.warnings) == ([], 0, 0)
    assert same.differences(same.on_disk(desk.source), same.on_disk(tmp_path / "target")) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: f.chmod(0o600), "mode"),
        (lambda f: os.utime(f, ns=(0, f.stat().st_mtime_ns + 1)), "mtime"),
        (lambda f: os.setxattr(f, "user.x", b"2"), "xattrs"),
        (lambda f: f.write_bytes(b"other"), "digest"),
        (lambda f: (f.unlink(), f.symlink_to("x")), "type"),
        (lambda f: f.unlink(), "missing"),
        (lambda f: f.with_name("more").touch(), "not wanted"),
        (lambda f: f.with_name("more").hardlink_to(f), "group"),
        (lambda f: os.truncate(f.with_name("sparse"), 1 << 20), "size"),
        (lambda f: f.with_name("sparse").write_bytes(bytes(2 << 20)), "allocated"),
    ],
)  # fmt: skip
def test_the_comparison_notices(tmp_path: Path, change: Callable[[Path], object], word: str) -> None:
    tree = {
        b"": Dir(),
        b"f": File(b"value", mode=0o644, xattrs={"user.x": b"1"}),
        b"sparse": File(size=2 << 20),
    }
    want, got = make(tmp_path / "want", tree), make(tmp_path / "got", tree)
    assert same.differences(same.on_disk(want), same.on_disk(got)) == []
    change(got / "f")
    assert word in "\n".join(same.differences(same.on_disk(want), same.on_disk(got)))


def test_parents_of_the_source_are_stored_with_their_metadata(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    deep = make(tmp_path / "source/a/b", {b"f": File(b"x"), b"sub": Dir()})
    os.chmod(tmp_path / "source/a", 0o751)
    make(tmp_path / "source/a", {b"not asked for": File(b"x")})
    snapshot = desk.snapshot(deep)
    found, disk = desk.read(snapshot), same.on_disk(desk.source)
    assert same.differences({p: s for p, s in disk.items() if p != b"/a/not asked for"}, found) == []


def test_a_source_behind_a_symbolic_link(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(b"x")})
    (tmp_path / "way").symlink_to("source")
    make(tmp_path / "real", {b"inside/g": File(b"y")})
    (desk.source / "to").symlink_to(tmp_path / "real")
    snapshot = desk.snapshot(tmp_path / "way/to/inside", tmp_path / "way/f")
    with desk.open() as repository:
        resolve = repository.trees.resolve
        assert resolve(snapshot.record.root, os.fsencode(tmp_path / "way/to/inside/g")).data == b"y"
        assert resolve(snapshot.record.root, os.fsencode(tmp_path / "way/f")).data == b"x"
        assert resolve(snapshot.record.root, os.fsencode(tmp_path / "way")).is_dir, (
            "the way to a source is folders"
        )
    snapshot = desk.snapshot(desk.source / "to")
    with desk.open() as repository:
        node = repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source / "to"))
    assert node.type == NodeType.SYMLINK, "a source that is a link itself is stored as one"


def test_several_sources_nested_and_named_twice(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path, {b"a/f": File(b"1"), b"a/deep/g": File(b"2"), b"b/h": File(b"3"), b"c/i": File(b"4")}
    )
    watch = Watch()
    paths = (
        desk.source / "a",
        desk.source / "a/deep",
        desk.source / "b",
        desk.source / "b/../b",
        desk.source / "c/i",
    )
    snapshot = desk.snapshot(*paths, progress=watch)
    assert watch.errors == []
    assert snapshot.record.paths == tuple(
        os.fsencode(os.path.abspath(p)) for p in (paths[0], paths[1], paths[2], paths[4])
    )
    assert desk.differences(snapshot) == []
    assert snapshot.record.totals.files == 4


def test_relative_paths_are_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, {b"f": File(b"x")})
    monkeypatch.chdir(desk.source)
    snapshot = desk.snapshot(Path("."))
    assert snapshot.record.paths == (os.fsencode(desk.source),)
    assert desk.differences(snapshot) == []


def test_a_missing_source_is_an_error_and_the_rest_is_kept(tmp_path: Path) -> None:
    desk, watch = Desk(tmp_path, {b"a/f": File(b"x")}), Watch()
    result = desk.backup(desk.source / "a", desk.source / "missing", progress=watch)
    assert result.errors == len(watch.errors) == 1
    assert b"missing" in watch.errors[0].path  # type: ignore[attr-defined]
    assert result.snapshot is not None
    assert result.snapshot.record.errors == 1
    with pytest.raises(UsageError):
        desk.backup(desk.source / "missing")


@pytest.mark.skipif(not ROOT, reason="mounting a file system takes root")
def test_one_file_system(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(b"x"), b"mnt": Dir()})
    subprocess.run(["mount", "-t", "tmpfs", "none", desk.source / "mnt"], check=True)
    try:
        (desk.source / "mnt/inside").write_bytes(b"x")
        everything, stays = desk.snapshot(), desk.snapshot(one_file_system=True)
        named = desk.snapshot(desk.source, desk.source / "mnt", one_file_system=True)
    finally:
        subprocess.run(["umount", desk.source / "mnt"], check=True)
    assert b"/mnt/inside" in desk.read(everything)
    assert desk.read(stays).keys() == {b"", b"/f", b"/mnt"}
    assert named.record.paths[1:] == (os.fsencode(desk.source / "mnt"),)
    assert desk.read(named).keys() == {b"", b"/f", b"/mnt", b"/mnt/inside"}


def test_what_is_named_below_a_source_is_kept_whatever_the_rules_say(tmp_path: Path) -> None:
    desk, watch = Desk(tmp_path, {
        b"a.o": File(b"1"), b"b.o": File(b"2"), b"skip/deep/f": File(b"3"), b"skip/deep/g": File(b"4"), b"skip/other": File(b"5"),
        b"marked/.nobackup": File(b""), b"marked/in/x": File(b"6"), b"marked/y": File(b"7"), b"git/.gitignore": File(b"build\n"),
        b"git/build/sub/.gitignore": File(b"*.c\n"), b"git/build/sub/z.c": File(b"8"), b"git/build/sub/z": File(b"9"),
        b"link": Symlink(target=b"skip"),
    }), Watch()  # fmt: skip
    rules = Excludes.build(exclude=["*.o", "skip"], if_present=[".nobackup"], git_ignore=True)
    below = ("b.o", "skip/deep/f", "marked/in", "git/build/sub", "missing/x", "a.o/x", "link/other")
    result = desk.backup(desk.source, *(desk.source / name for name in below), excludes=rules, progress=watch)
    assert result.snapshot is not None
    assert desk.read(result.snapshot).keys() == {
        b"", b"/b.o", b"/skip", b"/skip/deep", b"/skip/deep/f", b"/marked", b"/marked/.nobackup", b"/marked/in", b"/marked/in/x",
        b"/git", b"/git/.gitignore", b"/git/build", b"/git/build/sub", b"/git/build/sub/.gitignore", b"/git/build/sub/z",
        b"/link",
    }  # fmt: skip
    said = {error.path for error in watch.errors}  # type: ignore[attr-defined]
    assert said == {os.fsencode(desk.source / name) for name in ("missing", "a.o", "link")}
    again = desk.backup(desk.source, *(desk.source / name for name in below[:4]), excludes=rules)
    assert again.errors == 0


def test_excludes_reach_the_walk(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {
        b"keep/a.txt": File(b"1"), b"keep/b.TMP": File(b"2"), b"skip/c": File(b"3"), b"cache/CACHEDIR.TAG": File(
            b"Signature: 8a477f597d28d172789f06886806bc55\n"), b"cache/d": File(b"4"), b"big": File(noise(5000)),
        b"git/.gitignore": File(b"*.o\n"), b"git/x.o": File(b"5"), b"git/x.c": File(b"6"), b"marked/.nobackup": File(b""),
        b"marked/e": File(b"7"),
    })  # fmt: skip
    watch = Watch()
    excludes = Excludes.build(
        exclude=["skip"],
        iexclude=["*.tmp"],
        if_present=[".nobackup"],
        caches=True,
        larger_than=4000,
        git_ignore=True,
    )
    snapshot = desk.snapshot(progress=watch, excludes=excludes)
    assert desk.read(snapshot).keys() == {
        b"", b"/keep", b"/keep/a.txt", b"/cache", b"/cache/CACHEDIR.TAG", b"/git", b"/git/.gitignore", b"/git/x.c",
        b"/marked", b"/marked/.nobackup",
    }  # fmt: skip
    assert snapshot.record.excludes == excludes.describe()
    assert watch.items[os.fsencode(desk.source / "skip")] == "excluded"
    assert snapshot.record.errors == 0


def test_repository_and_cache_inside_the_source_are_left_out(tmp_path: Path) -> None:
    desk, watch = Desk(tmp_path, {b"f": File(b"x")}), Watch()
    snapshot = desk.snapshot(tmp_path, progress=watch)
    assert len(watch.notices) == 2
    assert any("the repository" in n and str(tmp_path / "repository") in n for n in watch.notices)
    assert any("the cache" in n for n in watch.notices)
    found = desk.read(snapshot, tmp_path)
    assert not [
        path for path in found if path.startswith(b"/repository") or path.endswith((b".mdb", b"/index"))
    ]
    assert b"/source/f" in found


def test_snapfs_mounts_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, watch = Desk(tmp_path, {b"f": File(b"x"), b"d/g": File(b"y")}), Watch()
    device = (desk.source / "d").stat().st_dev
    monkeypatch.setattr(sources, "_snapfs_devices", lambda: frozenset({device}))
    with pytest.raises(UsageError):  # the whole way there is on that device, so nothing is left
        desk.backup(progress=watch)
    assert any("a snapfs mount" in notice for notice in watch.notices)


# ---- incremental -----------------------------------------------------------------------------------------------------


def test_unchanged_files_are_not_opened(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path, {b"a": File(noise(300_000)), b"b/c": File(b"x"), b"b/d": File(noise(100)), **SPARSE}
    )
    with watching_opens() as first:
        desk.snapshot()
    assert {b"a", b"c", b"d", b"hole last"} <= set(first), "the seam sees what is opened"
    (desk.source / "b/d").write_bytes(b"changed")
    with watching_opens() as second:
        result = desk.backup()
    assert set(second) & {b"a", b"c", b"d", *(path.rpartition(b"/")[2] for path in SPARSE)} == {b"d"}
    totals = result.totals
    assert (totals.files_new, totals.files_changed, totals.files_unmodified) == (0, 1, 2 + len(SPARSE))
    assert (totals.dirs_new, totals.data_blobs) == (0, 0), "7 bytes stand in the directory itself"
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


@pytest.mark.parametrize("offset", [0, 1, 1_000_000, 2_999_999])
def test_one_byte_changed_in_a_large_file(tmp_path: Path, offset: int) -> None:
    desk = Desk(tmp_path, {b"image": File(noise(3_000_000))})
    before = desk.backup().totals.data_blobs
    assert before > 20
    write_into(desk.source / "image", offset, bytes([noise(3_000_000)[offset] ^ 1]))
    result = desk.backup()
    assert 1 <= result.totals.data_blobs <= 2
    assert result.totals.bytes_added < 4 * CHUNKS[2]
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


def test_inserted_bytes_move_one_cut(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"image": File(noise(3_000_000))})
    desk.snapshot()
    data = noise(3_000_000)
    (desk.source / "image").write_bytes(data[:1_500_000] + b"inserted" + data[1_500_000:])
    assert 1 <= desk.backup().totals.data_blobs <= 4


def test_touched_file_is_read_but_not_stored(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(noise(300_000))})
    desk.snapshot()
    os.utime(desk.source / "f", ns=(5, 5))
    result = desk.backup()
    assert (result.totals.files_changed, result.totals.data_blobs) == (1, 0)
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


def test_same_size_and_mtime_but_another_ctime(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(b"a" * 1000)})
    desk.snapshot()
    make(desk.source, {b"f": File(b"b" * 1000)})
    assert desk.differences(desk.snapshot()) == []


def test_force_reads_everything_and_stores_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(noise(300_000)), b"g": File(noise(500))})
    desk.snapshot()
    with watching_opens() as names:
        result = desk.backup(force=True)
    assert {b"f", b"g"} <= set(names)
    assert result.parent is None
    assert result.totals.data_blobs == 0


def test_the_parent_is_the_newest_of_the_same_host_and_paths(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"a/f": File(b"x"), b"b/f": File(b"x")})
    a, b = desk.source / "a", desk.source / "b"

    def parent(result: Any) -> bytes | None:
        return result.parent.id if result.parent else None

    first = desk.snapshot(a)
    assert parent(desk.backup(b)) is None
    assert parent(desk.backup(a, host=b"other")) is None
    assert parent(desk.backup(a, b)) is None
    second = desk.backup(a)
    assert parent(second) == first.id
    assert parent(desk.backup(a)) == second.snapshot.id
    assert parent(desk.backup(b, a)) is not None, "the order of paths does not matter"
    chosen = desk.backup(a, parent=first)
    assert parent(chosen) == first.id
    assert chosen.snapshot.record.parent == first.id


def test_hard_links_are_read_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"a": File(noise(100_000)), b"b": Name(of=b"a"), b"d/c": Name(of=b"a")})
    result = desk.backup()
    assert result.totals.bytes_added < 200_000
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []
    (desk.source / "b").unlink()
    assert desk.differences(desk.snapshot()) == []
    (desk.source / "d/c").unlink()
    assert desk.differences(desk.snapshot()) == []


@pytest.mark.parametrize("more", [b"", b"B" * 9000])
def test_a_file_that_changes_after_one_of_its_names_was_read(tmp_path: Path, more: bytes) -> None:
    """What was read under the first name is not what is there under the second, whose times are those of the change."""
    desk = Desk(tmp_path, {b"a/x": File(b"A" * 5000), b"z/x": Name(of=b"a/x")})

    class Writer(Watch):
        def item(self, path: bytes, action: str, size: int = 0) -> None:
            if path.endswith(b"a/x"):
                (desk.source / "a/x").write_bytes(b"B" * 5000 + more)

    snapshot = desk.snapshot(progress=Writer())
    expected = {b"/a/x": b"A" * 5000, b"/z/x": b"B" * 5000 + more}
    with desk.open() as repository:
        top = repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source))
        found = {
            w.path: repository.contents.read(w.node, 0, 20_000)
            for w in repository.trees.walk(top)
            if w.node.is_file
        }
        assert found == expected
        restore(repository, top, os.fsencode(tmp_path / "restored"), RestoreOptions())
        archive = io.BytesIO()
        dump_tar(repository, top, b"", archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        members = {member.name: member for member in opened if not member.isdir()}
        assert {name: member.size for name, member in members.items()} == {
            "a/x": 5000,
            "z/x": 5000 + len(more),
        }
    assert (tmp_path / "restored/a/x").read_bytes() == expected[b"/a/x"]
    assert (tmp_path / "restored/z/x").read_bytes() == expected[b"/z/x"]
    with mounted(desk.folder, part=os.fsencode(desk.source)) as shown:
        for name in ("z/x", "a/x", "z/x", "a/x"):
            assert (shown / name).stat().st_size == len(expected[b"/" + name.encode()])
            assert (shown / name).read_bytes() == expected[b"/" + name.encode()]
    assert desk.differences(desk.snapshot(time=snapshot.record.time + 10**10)) == []


# ---- options ---------------------------------------------------------------------------------------------------------


def test_stdin(tmp_path: Path) -> None:
    desk, data = Desk(tmp_path), noise(1_000_000)
    snapshot = desk.snapshot(stdin=io.BytesIO(data), stdin_filename=b"dumps/all.sql")
    with desk.open() as repository:
        node = repository.trees.resolve(snapshot.record.root, b"/dumps/all.sql")
        assert repository.contents.read(node, 0, node.size or 0) == data
    assert snapshot.record.paths == (b"/dumps/all.sql",)
    empty = desk.snapshot(stdin=io.BytesIO(b""))
    with desk.open() as repository:
        assert repository.trees.resolve(empty.record.root, b"/stdin").size == 0
    with pytest.raises(UsageError), desk.open() as repository:
        backup(repository, BackupOptions((b"/x",), b"h", b"u", stdin=io.BytesIO()))


def test_a_changed_stream_is_never_skipped(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    first = desk.snapshot(stdin=io.BytesIO(b"one"))
    second = desk.backup(stdin=io.BytesIO(b"two"), skip_if_unchanged=True)
    assert not second.skipped
    assert second.snapshot is not None
    assert second.snapshot.id != first.id


@pytest.mark.parametrize("name", [b"", b"/", b"..", b"a/../b", b"a//b/", b".", b"nul\0", b"n" * 256])
def test_stdin_under_a_name_that_is_none(tmp_path: Path, name: bytes) -> None:
    """Either refused, or stored under a name that a directory can have."""
    desk = Desk(tmp_path)
    try:
        snapshot = desk.snapshot(stdin=io.BytesIO(b"x"), stdin_filename=name)
    except UsageError:
        return
    with desk.open() as repository:
        for _, node in repository.trees.walk(snapshot.record.root):
            assert node.name not in (b"", b".", b"..")
            assert len(node.name) < 256
            assert b"\0" not in node.name


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_dry_run_stores_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(noise(300_000)), b"g": File(b"x")})
    desk.snapshot()
    make(desk.source, {b"new": File(noise(400_000, 9))})
    before = everything_in(tmp_path / "repository")
    result = desk.backup(dry_run=True)
    assert everything_in(tmp_path / "repository") == before
    assert result.snapshot is None
    assert result.totals.files_new == 1
    real = desk.backup()
    assert (result.totals.data_blobs, result.totals.bytes_added) == (
        real.totals.data_blobs,
        real.totals.bytes_added,
    )


def test_skip_if_unchanged(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(noise(300_000))})
    desk.snapshot()
    (tmp_path / "beside").touch()  # the folders above a source do not count
    result = desk.backup(skip_if_unchanged=True)
    assert result.skipped
    assert result.snapshot is None
    # A parent that was named may be of another host, or of other paths: then there is no such snapshot yet.
    newest = desk.snapshot()
    assert not desk.backup(skip_if_unchanged=True, parent=newest, host=b"another").skipped
    (desk.source / "f").write_bytes(b"x")
    assert not desk.backup(skip_if_unchanged=True).skipped


def test_what_was_written_just_before_it_was_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a later write may have left no trace in its times: small files and large ones, and all names of one."""
    tree = {
        b"small": File(b"x" * 100),
        b"large": File(noise(300_000)),
        b"one": File(noise(200_000, 1)),
        b"other": Name(of=b"one"),
    }
    desk = Desk(tmp_path, tree)

    def marks(snapshot: StoredSnapshot) -> set[int]:
        with desk.open() as repository:
            return {
                repository.trees.resolve(
                    snapshot.record.root, os.fsencode(desk.source / os.fsdecode(name))
                ).changed
                for name in tree
            }

    with monkeypatch.context() as patch:
        patch.setattr(ticks, "tick_of", lambda major, minor: 10**15)
        first = desk.snapshot()
        assert marks(first) == {2}
        assert desk.snapshot().record.totals.files_unmodified == 0
    # Behind the interpreter's back, as far as times can tell: only a second reading sees it.
    second = desk.snapshot()
    assert (second.record.totals.files_unmodified, second.record.errors) == (0, 0)
    assert marks(second) == {0}
    assert desk.snapshot().record.totals.files_unmodified == 4
    with desk.open() as repository:
        compared = [
            c
            for c in diff(repository, first.record.root, second.record.root, metadata=True)
            if b"source/" in c.path
        ]
    assert compared == [], "that is nothing to tell people of"


TICK_OF = ticks.tick_of
"""As it is, before conftest.py says otherwise."""


def test_ticks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    st = os.stat(tmp_path)
    clock = Ticks()
    monkeypatch.setattr(ticks, "tick_of", lambda major, minor: 20_000_000)
    assert clock.may_repeat(st, st.st_ctime_ns + 19_999_999)
    assert not clock.may_repeat(st, st.st_ctime_ns + 20_000_000)
    monkeypatch.setattr(ticks, "tick_of", lambda major, minor: 0)
    assert not Ticks().may_repeat(st, st.st_ctime_ns)


@pytest.mark.parametrize(
    ("kind", "release", "expected"),
    [
        ("ext4", "6.13.0", 0), ("ext4", "6.1.0-28-amd64", 20_000_000), ("tmpfs", "7.0-rc1", 0), ("ramfs", "6.18.4", 20_000_000),
        ("vfat", "6.18", 2_000_000_000), ("fuse.sshfs", "6.18", 20_000_000), ("", "6.18", 20_000_000),
    ],
)  # fmt: skip
def test_the_tick_of_a_file_system(
    kind: str, release: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:20 / /proc rw - proc proc rw\n"
        + (f"23 1 8:1 / / rw,x shared:1 - {kind} /dev/sda rw\n" if kind else "")
    )
    monkeypatch.setattr(ticks, "_MOUNTS", str(table))
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert TICK_OF(8, 1) == expected


def test_times_that_no_record_holds(tmp_path: Path) -> None:
    """Of 1601, as other systems write it for none, and of 2600: the nearest is kept, and the backup goes on."""

    def status(ns: int) -> Any:
        plain = dict.fromkeys(("st_uid", "st_gid", "st_rdev"), 0)
        return SimpleNamespace(
            st_mode=0o100644, st_nlink=1, st_mtime_ns=ns, st_ctime_ns=ns, st_atime_ns=ns, **plain
        )

    year = 365 * 86400 * 10**9
    for ns, kept in ((-369 * year, -(2**63)), (630 * year, 2**64 - 1), (-5, -5), (2**63, 2**63)):
        made = make_node(b"f", status(ns), with_atime=True, size=0)
        assert (made.mtime, made.ctime, made.atime) == (kept, kept, kept)
        assert records.decode_node(msgspec.Raw(records.encode(made)), "it") == made


def test_an_unchanged_file_is_of_whom_it_is_seen_to_be(tmp_path: Path) -> None:
    """From another user namespace, say, or a disk that was mounted otherwise: that changes no time of a file."""
    desk = Desk(tmp_path, {b"f": File(b"x")})
    snapshot = desk.snapshot()
    with desk.open() as repository:
        node = repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source / "f"))
    entries = object.__new__(EntryReader)
    entries._with_atime, entries.with_xattrs = False, 0
    there = os.stat(desk.source / "f")
    status: Any = SimpleNamespace(st_nlink=1, st_uid=12345, st_gid=54321, st_mode=0o100600, st_atime_ns=0)
    taken = entries.reuse(b"f", status, Earlier(node, b"raw", 0))
    assert (taken.node.uid, taken.node.gid, taken.node.mode, taken.raw) == (12345, 54321, 0o600, None)
    assert entries.reuse(b"f", there, Earlier(node, b"raw", 0)).raw == b"raw"


def test_time_tags_host_and_user(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(b"x")})
    for time in (-5, 0, 7, 2**62):
        snapshot = desk.snapshot(time=time, tags=(b"a", b"b"), host=b"h\xff", user=b"me")
        assert (snapshot.record.time, snapshot.tags, snapshot.record.host) == (time, (b"a", b"b"), b"h\xff")
    with desk.open() as repository:
        assert [s.record.time for s in repository.snapshots()] == [-5, 0, 7, 2**62]


def test_atime_only_when_asked_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f": File(b"x")})
    os.utime(desk.source / "f", ns=(111_222_333_444, 5))

    def atime(snapshot: StoredSnapshot) -> int | None:
        with desk.open() as repository:
            return repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source / "f")).atime

    assert atime(desk.snapshot()) is None
    assert atime(desk.snapshot(with_atime=True)) == 111_222_333_444
    assert atime(desk.snapshot(force=True, with_atime=True)) == 111_222_333_444, "reading did not change it"
    assert atime(desk.snapshot()) is None


@pytest.mark.parametrize("compression", ["off", "fastest", "auto", "better", "max"])
def test_compression(tmp_path: Path, compression: str) -> None:
    desk = Desk(tmp_path, {b"text": File(b"the same words again\n" * 20_000), b"noise": File(noise(300_000))})
    result = desk.backup(compression=compression)
    size = sum(path.stat().st_size for path in desk.volumes("data").values())
    assert (size > 700_000) == (compression == "off")
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


# ---- a source that does not hold still -------------------------------------------------------------------------------


@contextmanager
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Small files are opened one at a time, in Python, so that a test can step in."""
    with monkeypatch.context() as patch:
        patch.setattr(EntryReader, "read_small", lambda self, fd, names, statuses: [None] * len(names))
        yield patch


@contextmanager
def changing(
    monkeypatch: pytest.MonkeyPatch, path: Path, change: Callable[[Path], object], times: int
) -> Iterator[list[int]]:
    """While one file is read, it changes: the first `times` times that it is."""
    real, reads = FileReader.file, [0]
    inode = path.stat().st_ino

    def file(self: FileReader, fd: int, st: os.stat_result) -> Content:
        content = real(self, fd, st)
        if st.st_ino == inode:
            reads[0] += 1
            if reads[0] <= times:
                change(path)
        return content

    with one_by_one(monkeypatch) as patch:
        patch.setattr(FileReader, "file", file)
        yield reads


def write_into(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda path: write_into(path, path.stat().st_size, b"more"),
    "shrinks": lambda path: os.truncate(path, path.stat().st_size // 2),
    "is written to": lambda path: write_into(path, 7, b"other"),
}


@pytest.mark.parametrize("size", [1000, 500_000])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], size: int
) -> None:
    desk, watch = Desk(tmp_path, {b"f": File(noise(size)), b"g": File(b"x")}), Watch()
    with changing(monkeypatch, desk.source / "f", change, 1) as reads:
        result = desk.backup(progress=watch)
    assert reads == [2]
    assert (result.errors, watch.errors) == (0, [])
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_keeps_changing_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    desk, watch = Desk(tmp_path, {b"f": File(noise(500_000)), b"g": File(b"x")}), Watch()
    with changing(monkeypatch, desk.source / "f", change, 9) as reads:
        result = desk.backup(progress=watch)
    assert reads == [2]
    assert result.errors == len(watch.errors) == 1
    assert watch.errors[0].exit_code == 3
    assert result.snapshot is not None
    assert result.snapshot.record.errors == 1
    with desk.open() as repository:
        node = repository.trees.resolve(result.snapshot.record.root, os.fsencode(desk.source / "f"))
        assert node.changed == 1
        assert len(repository.contents.read(node, 0, node.size or 0)) == node.size
    with watching_opens() as names:
        again = desk.snapshot()
    assert b"f" in names, "a flagged file is read again although nothing about it changed since"
    assert desk.differences(again) == []


def test_a_file_written_to_all_the_time_by_a_thread(tmp_path: Path) -> None:
    """Whatever was caught, it reads back with the length it says."""
    desk, stop = Desk(tmp_path, {b"f": File(noise(200_000))}), threading.Event()

    def write() -> None:
        with open(desk.source / "f", "r+b", buffering=0) as f:
            for n in range(10**9):
                if stop.is_set():
                    return
                f.truncate(n * 7919 % 400_000)
                f.seek(n * 104_729 % 300_000)
                f.write(bytes([n % 256]) * 1000)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        taken = [desk.snapshot(force=True) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    for snapshot in taken:
        found = desk.read(snapshot)[b"/f"]
        assert found.size is not None
    assert desk.differences(desk.snapshot()) == []


def test_a_hole_that_is_filled_while_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, {b"f": File(noise(8192), size=600_000), b"g": File(b"x" * 100)})
    real, calls = os.lseek, count()

    def seek(fd: int, at: int, how: int) -> int:
        if how == os.SEEK_DATA and next(calls) % 2 == 0:  # in both readings of the file, but not all of it
            write_into(desk.source / "f", at, b"data")
        return real(fd, at, how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", seek)
        result = desk.backup()
    assert result.snapshot is not None
    assert desk.read(result.snapshot)[b"/f"].size == 600_000


def test_a_sparse_file_that_shrinks_after_its_holes_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = File(pieces={k * 100_000: noise(10_000, k) for k in range(10)}, size=1_500_000)
    desk = Desk(tmp_path, {b"f": tree, b"g": File(b"x" * 100)})
    real = files.readable_as_zeros

    def holes(fd: int, size: int) -> Iterator[tuple[int, int]]:
        yield from real(fd, size)
        os.truncate(desk.source / "f", size // 2)

    with monkeypatch.context() as patch:
        patch.setattr(files, "readable_as_zeros", holes)
        result = desk.backup()
    assert result.snapshot is not None
    assert result.errors == 1
    with desk.open() as repository:
        node = repository.trees.resolve(result.snapshot.record.root, os.fsencode(desk.source / "f"))
        assert all(offset + length <= (node.size or 0) for offset, length in repository.contents.holes(node))


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, *names: bytes) -> Iterator[None]:
    real = os.open

    def refuse(path: Any, *args: Any, **more: Any) -> int:
        if path in names:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    with one_by_one(monkeypatch) as patch:
        patch.setattr(os, "open", refuse)
        yield


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(
        tmp_path, {b"a": File(b"1"), b"bad file": File(b"2"), b"bad dir/x": File(b"3"), b"z/y": File(b"4")}
    )
    watch = Watch()
    with refusing(monkeypatch, b"bad file", b"bad dir"):
        result = desk.backup(progress=watch)
    assert result.errors == 2
    assert {error.path for error in watch.errors} == {  # type: ignore[attr-defined]
        os.fsencode(desk.source / "bad file"), os.fsencode(desk.source / "bad dir"),
    }  # fmt: skip
    assert all("Permission denied" in str(error) for error in watch.errors)
    assert result.snapshot is not None
    assert result.snapshot.record.errors == 2
    assert {b"/a", b"/z", b"/z/y"} <= desk.read(result.snapshot).keys()
    assert desk.differences(desk.snapshot()) == []


def test_what_vanishes_meanwhile_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path,
        {
            b"a": File(b"1"),
            b"b": File(noise(300_000)),  # not read together with the one before
            b"c": Symlink(target=b"x"),
            b"d/e": File(b"3"),
            b"z": File(b"4"),
        },
    )

    class Remover(Watch):
        def item(self, path: bytes, action: str, size: int = 0) -> None:
            if path.endswith(b"/a"):
                (desk.source / "b").unlink()
                (desk.source / "c").unlink()
                (desk.source / "d/e").unlink()
                (desk.source / "d").rmdir()

    watch = Remover()
    result = desk.backup(progress=watch)
    assert result.errors == len(watch.errors) == 3
    assert result.snapshot is not None
    assert desk.read(result.snapshot).keys() == {b"", b"/a", b"/z"}


def test_a_file_replaced_by_something_else_after_it_was_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifo in its place must not block, a link in its place must not be followed."""
    desk = Desk(tmp_path, {b"fifo": File(b"1" * 100), b"link": File(b"2" * 100), b"z": File(b"3")})
    real, watch = os.open, Watch()

    def swap(path: Any, *args: Any, **more: Any) -> int:
        if path == b"fifo":
            (desk.source / "fifo").unlink()
            os.mkfifo(desk.source / "fifo")
        elif path == b"link":
            (desk.source / "link").unlink()
            (desk.source / "link").symlink_to("/etc/hostname")
        return real(path, *args, **more)

    with one_by_one(monkeypatch) as patch:
        patch.setattr(os, "open", swap)
        result = desk.backup(progress=watch)
    assert result.errors == len(watch.errors) == 2
    assert result.snapshot is not None
    assert b"/z" in desk.read(result.snapshot)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class Interrupter(Watch):
    """Ctrl-C after so many entries."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def item(self, path: bytes, action: str, size: int = 0) -> None:
        super().item(path, action, size)
        self._left -= 1
        self.interrupted = self._left <= 0


def test_an_interrupted_backup_costs_only_what_was_not_published(tmp_path: Path) -> None:
    names = [b"d%d/f%d" % (d, f) for d in range(5) for f in range(10)]
    desk = Desk(tmp_path, {name: File(noise(5000, n)) for n, name in enumerate(names)})
    with pytest.raises(KeyboardInterrupt):
        desk.backup(progress=Interrupter(24))
    with desk.open() as repository:
        assert repository.snapshots() == []
        (checkpoint,) = repository.events.load().checkpoints
        assert not checkpoint.record.complete
    with watching_opens() as opens:
        with pytest.raises(KeyboardInterrupt):
            desk.backup(progress=Interrupter(40))
        assert len([name for name in opens if name.startswith(b"f")]) < 30
    with watching_opens() as opens:
        result = desk.backup()
    read = [name for name in opens if name.startswith(b"f")]
    assert 5 <= len(read) <= 20, "only the rest is read"
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []
    assert result.totals.data_blobs <= len(read)
    with desk.open() as repository:
        assert [s.id for s in repository.snapshots()] == [result.snapshot.id]
    with watching_opens() as opens:
        desk.snapshot()
    assert not [name for name in opens if name.startswith(b"f")]


def test_checkpoints_in_passing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"d%d/f" % n: File(noise(3000, n)) for n in range(4)})
    snapshot = desk.snapshot(checkpoint_seconds=0)
    assert desk.differences(snapshot) == []
    with desk.open() as repository:
        assert len(repository.events.load().checkpoints) > 2
        assert [s.id for s in repository.snapshots()] == [snapshot.id]


# ---- how it lies in the repository -----------------------------------------------------------------------------------


def test_volumes_have_their_sizes_and_names(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path, {b"f": File(noise(3_000_000)), **{b"s/%d" % n: File(noise(3000, n)) for n in range(200)}}
    )
    size = 512 * KiB
    desk.snapshot(volume_size=size)
    volumes = {**desk.volumes("data"), **desk.volumes("trees")}
    sizes = [path.stat().st_size for path in volumes.values()]
    assert sizes.count(size) >= 5
    assert max(sizes) == size
    assert all(one % 4096 == 0 for one in sizes), "the last one is padded"
    for name, path in volumes.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.name == name[:2]
    for folder in ("", "data", "trees", "keys", "events"):
        assert (tmp_path / "repository" / folder).stat().st_mode & 0o777 == 0o700


def test_files_of_different_owners_never_share_a_frame(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    owner_of = {}
    with desk.open() as repository:
        with repository.writer() as writer:
            for n in range(600):
                owner = n % 6
                owner_of[writer.put(Kind.CONTENT, noise(1000, n), owner)] = owner
            writer.flush()
        frames: dict[tuple[int, int], set[int]] = {}
        for blob, owner in owner_of.items():
            at = repository.index.get(blob)
            assert at is not None
            frames.setdefault((at.volume, at.frame), set()).add(owner)
    assert all(len(owners) == 1 for owners in frames.values())
    assert len(frames) < 600 / 4, "those of one owner do share"


@pytest.mark.skipif(not ROOT, reason="giving files away takes root")
def test_files_of_two_users_lie_in_different_frames(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"f%02d" % n: File(noise(500, n), owner=(1000 + n % 2, 0)) for n in range(40)})
    snapshot = desk.snapshot()
    with desk.open() as repository:
        frames: dict[tuple[int, int], set[int]] = {}
        for _, node in repository.trees.walk(
            repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source))
        ):
            at = repository.index.get((node.blobs or ())[0][0] or b"")
            assert at is not None
            frames.setdefault((at.volume, at.frame), set()).add(node.uid)
    assert sorted(map(tuple, frames.values())) == [(1000,), (1001,)]


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    data = noise(1_000_000)
    desk = Desk(tmp_path, {b"a": File(data), b"b": File(data), b"d/c": File(data)})
    assert desk.backup().totals.bytes_added < 1_100_000
    make(desk.source, {b"moved/a": File(data)})
    assert desk.backup().totals.data_blobs == 0


def test_a_sparse_and_a_dense_copy_of_an_image_share_their_blobs(tmp_path: Path) -> None:
    """Holes shorter than the largest blob; a longer one begins a new segment, which costs its first cut."""
    pieces = {at: noise(60_000, at) for at in range(0, 4 * MiB, 128 * KiB)}
    desk = Desk(tmp_path, {b"sparse": File(pieces=pieces, size=4 * MiB)})
    desk.snapshot()
    dense = bytearray(4 * MiB)
    for at, piece in pieces.items():
        dense[at : at + len(piece)] = piece
    make(desk.source, {b"dense": File(bytes(dense))})
    result = desk.backup()
    assert result.totals.data_blobs == 0
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


def test_nothing_is_backed_up_without_a_path(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with desk.open() as repository, pytest.raises(UsageError):
        backup(repository, BackupOptions((), b"h", b"u"))
    with pytest.raises(SnapshotNotFound):
        desk.read(desk.snapshot(), tmp_path / "elsewhere")


def test_a_missing_source_inside_another_is_said(tmp_path: Path) -> None:
    desk, watch = Desk(tmp_path, {b"a/x": File(b"1")}), Watch()
    inside = os.fsencode(desk.source / "a" / "nope")
    with desk.open() as repository:
        options = BackupOptions((os.fsencode(desk.source), inside), b"h", b"u")
        result = backup(repository, options, watch)
    assert result.errors == 1
    assert watch.errors[0].path == inside  # type: ignore[attr-defined]
    assert result.snapshot is not None
    assert b"/a/x" in desk.read(result.snapshot)
