"""repair volumes, repair snapshots: what still opens is saved, what is lost is named, nothing becomes worse, at no step."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from snapfs.repo import salvage
from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, SnapfsError, StorageError, UsageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.index import IndexBroken
from snapfs.repo.model import Below, BlobId, KiB, Kind, Node, NodeType, Snapshot, Totals
from snapfs.repo.repair.snapshots import SnapshotsMended, repair_snapshots
from snapfs.repo.repair.volumes import VolumesMended, repair_volumes
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.storage.local import LocalStorage
from support.children import in_child
from support.faults import KILLED, KINDS, Calls, Cut, Die, Disk, Fail, each
from support.readable import Readable, contents_of, flip, harm, readable
from support.sources import Desk
from support.torture import Rounds
from support.trees import File, Name, make, noise

TREE = {
    b"attributes": File(b"x" * 100, xattrs={"user.large": noise(3000, 4), "user.small": b"1"}),
    b"big": File(noise(1_200_000, 1)),
    b"deep/a": File(b"a" * 200),
    b"deep/b": File(noise(30_000, 2)),
    b"deep/name": Name(of=b"deep/b"),
    **{b"many/%03d" % n: File(noise(300, n)) for n in range(90)},
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(
        salvage, "_TRIES", 20_000
    )  # looking for lost headers is the subject of test_repo_salvage


@contextlib.contextmanager
def small_frames() -> Iterator[None]:
    """So that damage to one page, or one file, does not hit all of a small repository; and small pages, whatever its keys."""
    with (
        mock.patch.object(L, "JOINED_TREE", 1),
        mock.patch.object(L, "JOINED_DATA", 8 * KiB),
        mock.patch.object(L, "PAGE_MAXIMUM", 4 * KiB),
    ):
        yield


class Saved:
    """A desk as it was at one moment."""

    _PARTS = ("repository", "cache", "state")
    _count = itertools.count()

    def __init__(self, desk: Desk) -> None:
        self._folder = desk.folder
        self._saved = desk.folder / f"saved {next(self._count)}"
        for part in self._PARTS:
            shutil.copytree(self._folder / part, self._saved / part)

    def put_back(self) -> None:
        """Contents only: the folder itself stays, so that the repository is still at the same place."""
        for part in self._PARTS:
            for entry in os.scandir(self._folder / part):
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
            shutil.copytree(self._saved / part, self._folder / part, dirs_exist_ok=True)


class Damage(Desk):
    """Two snapshots in several volumes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, TREE, volume_size=512 * KiB)
        self.place = folder / "repository"
        with small_frames():
            self.first = self.snapshot()
            make(self.source, {b"new": File(noise(40_000, 9))})
            self.second = self.snapshot()
        self.truth = contents_of(self.source)
        self.path = os.fsencode(self.source)
        self._saved = Saved(self)

    def reset(self) -> None:
        self._saved.put_back()

    def all_volumes(self) -> list[Path]:
        return sorted([*self.volumes("data").values(), *self.volumes("trees").values()])

    def trash(self) -> dict[str, Path]:
        return {path.name: path for path in (self.place / "trash").rglob("*") if path.is_file()}

    def readable(self) -> Readable:
        with self.open() as repository:
            return readable(repository, self.truth)

    def checked(self, read_data: bool = True) -> set[bytes]:
        """Paths that `check` names, below the source."""
        with self.open() as repository:
            return {a.path.removeprefix(self.path) for a in check(repository, read_data=read_data).affected}

    def hit(self, path: bytes, position: int = 0, kind: Kind = Kind.CONTENT) -> Path:
        """Flip a bit in the frame of a blob of this file; returns the volume."""
        with self.open() as repository:
            node = repository.trees.resolve(self.second.record.root, self.path + path)
            blobs = [blob for k, blob in repository.contents.blobs(node) if k is kind]
            return self.hit_blob(repository, blobs[position])

    def hit_page(self, path: bytes, child: int | None = None) -> Path:
        """Flip a bit in the root page of a directory, or in the n-th page below it."""
        with self.open() as repository:
            page = repository.trees.resolve(self.second.record.root, self.path + path).root
            assert page is not None
            if child is not None:
                entries = records.decode_page(
                    repository.blobs.get(BlobId(page), Kind.DIRECTORY), "it"
                ).entries
                page = records.decode_branch(entries[child], "it").id
            return self.hit_blob(repository, page)

    def hit_blob(self, repository: Repository, blob: bytes) -> Path:
        (at,) = repository.index.copies(blob)
        volume = repository.index.volume(at.volume)
        text = volume.name.hex()
        path = self.place / ("data" if volume.kind == 1 else "trees") / text[:2] / text
        flip(path, 8 * (at.frame_offset + 32 + at.sealed // 2))
        return path

    def mend_volumes(self, *names: str, **options: bool) -> VolumesMended:
        with self.open() as repository:
            return repair_volumes(repository, names, **options)

    def mend_snapshots(self, **options: bool) -> SnapshotsMended:
        with self.open() as repository:
            return repair_snapshots(repository, repository.snapshots(), **options)


@pytest.fixture
def damage(tmp_path: Path) -> Damage:
    return Damage(tmp_path)


@pytest.fixture(scope="module")
def shared() -> Iterator[Damage]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        yield Damage(Path(folder))


# ---- volumes -----------------------------------------------------------------------------------------------------------


def test_what_still_opens_is_saved_and_the_rest_is_named(damage: Damage) -> None:
    volume = damage.hit(b"/big", 3)
    assert damage.checked() == {b"/big"}
    before, bytes_before = damage.readable(), volume.read_bytes()
    result = damage.mend_volumes()
    (mended,) = result.volumes
    assert mended.lost
    assert mended.path == f"data/{volume.name[:2]}/{volume.name}"
    assert mended.saved > 1
    assert {(a.snapshot, a.path) for a in result.found.affected} == {
        (s.short, damage.path + b"/big") for s in (damage.first, damage.second)
    }
    assert not volume.exists()
    assert (damage.place / mended.aside).read_bytes() == bytes_before
    assert damage.readable() == before
    assert damage.checked() == {b"/big"}
    assert damage.mend_volumes().volumes == [], "nothing is left to do"
    shutil.rmtree(damage.folder / "cache")
    assert damage.readable() == before, "the index is not what knows it"
    new = damage.snapshot()
    assert damage.differences(new) == []
    assert damage.checked() == set(), "stored anew, and the older snapshots are whole again"
    with damage.open() as repository:
        result2 = check(repository)
        assert result2.ok
        assert "1 damaged volumes" in result2.notes[0]


@pytest.mark.torture
def test_damage_that_hits_no_blob_costs_nothing(shared: Damage, rounds: Rounds) -> None:
    """Directory, tail, padding, the volume's header, a frame's header: all blobs are saved."""
    shared.reset()
    before = shared.readable()
    places = (5, 18, 60, 90, 104 + 7, -1, -40)
    for volume, byte in rounds.some(list(itertools.product(shared.all_volumes(), places)), 10):
        shared.reset()
        flip(volume, 8 * (byte % volume.stat().st_size))
        result = shared.mend_volumes(volume.name)
        assert result.volumes[0].lost in (0, None)
        assert result.found.affected == [], (volume, byte)
        assert shared.readable() == before
        assert shared.checked() == set()
        assert volume.name in shared.trash()


def test_nothing_to_repair(damage: Damage) -> None:
    volume = damage.hit(b"/big")
    assert damage.mend_volumes().volumes == [], "nobody has looked yet"
    flip(volume, 0)
    flip(volume, 0)
    sound = next(path for path in damage.all_volumes() if path != volume)
    result = damage.mend_volumes(
        sound.name[:12], f"{sound.parent.parent.name}/{sound.parent.name}/{sound.name}"
    )
    assert (len(result.sound), result.volumes) == (1, [])
    assert not (damage.place / "trash").exists()


@pytest.mark.parametrize("name", ["", "abc", "zz", "0" * 64, "data/ab/", "../../etc/passwd", "é"])
def test_names_that_cannot_be_meant(shared: Damage, name: str) -> None:
    shared.reset()
    with pytest.raises(UsageError, match="no volume"):
        shared.mend_volumes(name)


def test_a_dry_run_changes_nothing(damage: Damage) -> None:
    damage.hit(b"/big", 3)
    damage.hit_page(b"/many", 1)
    damage.checked()
    before = {path: path.read_bytes() for path in damage.place.rglob("*") if path.is_file()}
    result = damage.mend_volumes(dry_run=True)
    assert len(result.volumes) == 2
    assert {a.what for a in result.found.affected} == {"content", "listing"}
    damage.mend_snapshots(dry_run=True)
    assert {path: path.read_bytes() for path in damage.place.rglob("*") if path.is_file()} == before


def test_a_copy_that_is_itself_damaged_is_not_relied_on(damage: Damage) -> None:
    """The index says that another volume has the blob; that one is damaged, too, and nobody knows yet."""
    first = damage.hit(b"/big", 3)
    damage.checked()
    damage.snapshot(force=True)  # stores the lost blob, and the others of that volume, anew
    with damage.open() as repository:
        node = repository.trees.resolve(damage.second.record.root, damage.path + b"/big")
        blobs = [blob for k, blob in repository.contents.blobs(node) if k is Kind.CONTENT]
        twice = [blob for blob in blobs if len(repository.index.copies(blob)) > 1]
        good = next(b for b in twice if b != blobs[3])  # sound in the first volume
        at = repository.index.get(good)
        assert at is not None
        volume = repository.index.volume(at.volume).name.hex()
        path = damage.place / "data" / volume[:2] / volume
        assert path != first
        flip(path, 8 * (at.frame_offset + 32 + at.sealed // 2))
        before = readable(repository, damage.truth)
    assert damage.readable() == before
    damage.mend_volumes(first.name)
    assert damage.readable() == before


def test_what_the_disk_cannot_read_is_left_where_it_is(
    damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a cable; and if all is had from elsewhere, it can go."""
    volume = damage.volumes("data")[damage.hit(b"/big").name]
    flip(volume, 0)
    flip(volume, 0)
    damage.reset()
    real, bad = LocalStorage.read, volume.stat().st_size // 2

    def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
        end = (self.size(name) or 0) if length is None else offset + length
        if name.endswith(volume.name) and offset <= bad < end:
            raise StorageError("cannot read it: Input/output error", errno.EIO)
        return real(self, name, offset, length)

    before = damage.readable()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", read)
        meanwhile = damage.readable()
        assert meanwhile < before
        (mended,) = damage.mend_volumes(volume.name).volumes
        assert mended.aside == ""
        assert mended.lost
        assert damage.readable() == meanwhile
    assert damage.readable() == before, "the cable was it"
    assert volume.exists()


@pytest.mark.torture
def test_no_chance_damage_makes_repair_do_harm(shared: Damage, rounds: Rounds) -> None:
    """What could be read before can be read after, and nothing wrong is ever read."""
    for seed in rounds.seeds(5):
        _repair_is_monotone(shared, seed)


def _repair_is_monotone(damage: Damage, seed: int) -> None:
    chance = random.Random(seed)
    damage.reset()
    harmed = chance.sample(damage.all_volumes(), chance.choice((1, 1, 2, 3)))
    what = [harm(path, chance) for path in harmed]
    if chance.random() < 0.3:
        shutil.rmtree(damage.folder / "cache")
    kept = {path.name: path.read_bytes() for path in harmed}
    before = damage.readable()
    with damage.open() as repository:
        check(repository, read_data=True)
    damage.mend_volumes()
    after = damage.readable()
    assert after >= before, what
    assert {n: p.read_bytes() for n, p in damage.trash().items()} == {
        n: data for n, data in kept.items() if n in damage.trash()
    }
    with damage.open() as repository:
        affected = [(a.snapshot, a.path) for a in check(repository).affected]
    for snapshot in (damage.first, damage.second):
        named = [path for short, path in affected if short == snapshot.short]
        for path in damage.truth:
            if snapshot is damage.second or not path.endswith(b"/new"):
                assert ((snapshot.id, path) in after) or is_named(path, named), what
    result = damage.mend_snapshots()
    last = damage.readable()
    assert last >= after, what
    with damage.open() as repository:
        new = {m.new.id for m in result.snapshots if m.new is not None}
        assert not new & {s.id for s in (damage.first, damage.second)}
        for mended in result.snapshots:
            if mended.new is not None:
                originals = {path for key, path in after if key == mended.original.id}
                assert {path for key, path in last if key == mended.new.id} >= originals, (
                    f"seed {seed}: {what}"
                )
        affected = {a.snapshot for a in check(repository).affected}
        assert not affected & {key.hex()[:8] for key in new}


@pytest.mark.torture
@pytest.mark.parametrize("fault", ["die", "cut", "ENOSPC", "EIO"])
def test_stopped_at_every_call_of_repair(shared: Damage, rounds: Rounds, fault: str) -> None:
    """As good as before at each, the original is kept, and the next run does the rest."""
    shared.reset()
    volumes = {shared.hit(b"/big", 3), shared.hit_page(b"/many", 1)}
    kept = {path.name: path.read_bytes() for path in volumes}
    assert shared.checked()
    before = shared.readable()
    saved = Saved(shared)

    def repair() -> None:
        shared.mend_volumes()
        shared.mend_snapshots(forget=True)

    with Calls(shared.folder).installed() as calls:
        repair()
    assert len(calls.seen) > 30, "is the seam still there?"
    for number in rounds.some(range(1, len(calls.seen) + 1), 4):
        saved.put_back()
        _stopped(shared, fault, number, repair)
        if (
            fault != "cut"
        ):  # in the model, a power cut takes a name that was not durable away from both places
            there = {path.name: path for path in shared.all_volumes()} | shared.trash()
            assert {name: there[name].read_bytes() for name in kept} == kept, f"call {number}"
        _as_good_as(shared, before, f"call {number}")
        repair()
        _as_good_as(shared, before, f"call {number}, and again")
        assert shared.checked() == set(), f"call {number}"


def _stopped(damage: Damage, fault: str, number: int, repair: Callable[[], None]) -> None:
    disk = Disk(damage.folder / "repository")
    what = {"die": Die(), "cut": Cut(disk, number), "ENOSPC": Fail(errno.ENOSPC), "EIO": Fail(errno.EIO)}[
        fault
    ]
    calls = Calls(damage.folder, each(KINDS, number), what, disk)

    def work() -> None:
        with calls.installed():
            repair()

    if fault in ("die", "cut"):
        assert in_child(work) in (0, KILLED)  # two worker threads: a call more or less
    else:
        with contextlib.suppress(StorageError, IndexBroken):
            work()


def _as_good_as(damage: Damage, before: Readable, when: str) -> None:
    """Of each original, it or the one made of it can be read as far as the original could."""
    now = damage.readable()
    with damage.open() as repository:
        shown = repository.snapshots()
    for original in (damage.first.id, damage.second.id):
        had = {path for at, path in before if at == original}
        best = [s.id for s in shown if original in (s.id, s.record.parent)]
        assert any({path for at, path in now if at == other} >= had for other in best), when


# ---- what was found damaged is stored anew -------------------------------------------------------------------------------


@pytest.mark.parametrize("forgets", ["nothing", "the index", "a flag of the index"])
@pytest.mark.parametrize("finds", ["check", "reading"])
def test_a_blob_found_damaged_is_stored_anew(damage: Damage, finds: str, forgets: str) -> None:
    volume = damage.hit(b"/big", 3)
    if finds == "check":
        damage.checked()
    else:
        damage.readable()
    if forgets == "the index":
        shutil.rmtree(damage.folder / "cache")
    elif forgets == "a flag of the index":
        with damage.open() as repository:
            repository.index.mark([bytes.fromhex(volume.name)], True)
    make(damage.source, {b"again": File(noise(1_200_000, 1))})
    for options in ({}, {"force": True}):
        new = damage.snapshot(**options)
        assert damage.differences(new) == []
    assert damage.checked() == set()


def test_an_error_that_is_none_of_the_disk_s_marks_nothing(
    damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is away, no permission, no memory."""
    for error in (StorageError("no", errno.EACCES), StorageError("gone", errno.ENOENT), MemoryError()):

        def read(self: LocalStorage, name: str, *args: object, error: Exception = error) -> bytes:
            raise error

        with damage.open() as repository, monkeypatch.context() as patch:
            node = repository.trees.resolve(damage.second.record.root, damage.path + b"/big")
            patch.setattr(LocalStorage, "read", read)
            with pytest.raises((SnapfsError, MemoryError)):
                repository.contents.read(node, 0, 10)
            assert repository.client.remembered.damaged == ()


# ---- snapshots -----------------------------------------------------------------------------------------------------------


def is_named(path: bytes, named: Iterable[bytes]) -> bool:
    """Whether a path, or a directory above it, is among these."""
    return any(path == one or path.startswith(one.rstrip(b"/") + b"/") for one in named)


def left_out(result: SnapshotsMended, damage: Damage) -> set[tuple[bytes, str]]:
    return {(a.path.removeprefix(damage.path), a.what) for a in result.left_out.affected}


@pytest.mark.parametrize(
    ("hit", "what", "gone"),
    [
        (lambda d: d.hit(b"/big", 3), {(b"/big", "content")}, {b"/big"}),
        (lambda d: d.hit(b"/big", kind=Kind.LIST), None, None),
        (lambda d: d.hit(b"/deep/b"), None, None),
        (lambda d: d.hit_page(b"/many", 1), None, None),
        (lambda d: d.hit_page(b"/many"), None, None),
        (lambda d: d.hit(b"/attributes", kind=Kind.XATTR), None, None),
        (lambda d: d.hit_page(b""), None, None),
    ],
    ids=["content", "content list", "hard link", "a page", "the root page", "attribute", "the source's page"],
)
def test_a_snapshot_without_what_is_lost(
    damage: Damage,
    hit: Callable[[Damage], Path],
    what: set[tuple[bytes, str]] | None,
    gone: set[bytes] | None,
) -> None:
    hit(damage)
    damage.checked()
    before = damage.readable()
    result = damage.mend_snapshots()
    assert result.snapshots
    assert result.whole + len(result.snapshots) == 2
    if what is not None:
        assert left_out(result, damage) == what
    after = damage.readable()
    assert after >= before
    named = {a.path for a in result.left_out.affected}
    with damage.open() as repository:
        assert {s.id for s in (damage.first, damage.second)} <= {s.id for s in repository.snapshots()}
        assert repository.snapshots()[-1].record.parent == damage.second.id, "right behind the original"
        found = check(repository)
        for mended in result.snapshots:
            new = mended.new
            assert new is not None
            assert b"repaired" in new.tags
            assert not [a for a in found.affected if a.snapshot == new.short], "all of the new one can be had"
            had = {path for key, path in before if key == mended.original.id}
            has = {path for key, path in after if key == new.id}
            assert has >= had, "nothing that could be read was left out"
            if gone is not None:
                assert {p.removeprefix(damage.path) for p in damage.truth.keys() - has} - {b"/new"} == gone
            for path in damage.truth.keys() - has:
                assert any(path == one or path.startswith(one + b"/") for one in named) or path.endswith(
                    b"/new"
                )
    again = damage.mend_snapshots(forget=True)
    assert {m.new.id for m in again.snapshots if m.new} == {m.new.id for m in result.snapshots if m.new}
    assert all(m.was_there and m.forgotten for m in again.snapshots)
    with damage.open() as repository:
        assert len(repository.snapshots()) == 2
        assert check(repository).affected == []
    assert damage.mend_snapshots().snapshots == [], "nothing is left to do"


def test_an_attribute_is_no_reason_to_lose_a_file(damage: Damage) -> None:
    damage.hit(b"/attributes", kind=Kind.XATTR)
    damage.checked()
    result = damage.mend_snapshots()
    assert left_out(result, damage) >= {(b"/attributes", "attributes")}
    new = result.snapshots[-1].new
    assert new is not None
    with damage.open() as repository:
        node = repository.trees.resolve(new.record.root, damage.path + b"/attributes")
        assert dict(repository.contents.xattrs(node)) == {b"user.small": b"1"}
        assert repository.contents.read(node, 0, 1000) == b"x" * 100


def test_a_hole_map_is_no_reason_to_lose_a_file(tmp_path: Path) -> None:
    step = 128 * KiB
    pieces = {n * step: noise(5000, n) for n in range(40)}
    desk = Desk(tmp_path, {b"sparse": File(pieces=pieces, size=41 * step)})
    with small_frames():
        first = desk.snapshot()
    path = os.fsencode(desk.source / "sparse")
    with desk.open() as repository:
        node = repository.trees.resolve(first.record.root, path)
        assert node.holes is not None
        assert node.holes.root is not None
        (at,) = repository.index.copies(node.holes.root)
        name = repository.index.volume(at.volume).name.hex()
    flip(tmp_path / "repository" / "trees" / name[:2] / name, 8 * (at.frame_offset + 40))
    with desk.open() as repository:
        assert check(repository, read_data=True).affected_count
        result = repair_snapshots(repository, repository.snapshots())
        new = result.snapshots[0].new
        assert new is not None
        node = repository.trees.resolve(new.record.root, path)
        assert node.holes is None
        assert repository.contents.read(node, 0, 41 * step) == (desk.source / "sparse").read_bytes()


def test_nothing_of_it_can_be_read(damage: Damage) -> None:
    for volume in damage.volumes("trees").values():
        volume.unlink()
    result = damage.mend_snapshots(forget=True)
    assert all(m.hopeless and m.new is None and not m.forgotten for m in result.snapshots)
    with damage.open() as repository:
        assert len(repository.snapshots()) == 2, "who brings the volumes back has them again"


def test_a_place_that_fails_is_no_damage(damage: Damage, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = damage.hit(b"/big", 3)
    damage.checked()
    real = LocalStorage.read

    def read(self: LocalStorage, name: str, *args: int) -> bytes:
        if name.endswith(volume.name):
            raise StorageError("cannot read it: Permission denied", errno.EACCES)
        return real(self, name, *args)

    monkeypatch.setattr(LocalStorage, "read", read)
    with damage.open() as repository, pytest.raises(StorageError, match="Permission denied"):
        repair_snapshots(repository, repository.snapshots())
    monkeypatch.undo()
    with damage.open() as repository:
        assert len(repository.snapshots()) == 2


def node(name: bytes, **fields: object) -> Node:
    return Node(name, NodeType.FILE, 0o644, 0, 0, None, None, 0, 0, **{"size": 1, "data": b"x", **fields})  # type: ignore[arg-type]


def test_fields_of_later_versions_are_kept(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with desk.open() as repository:
        with repository.writer() as writer:
            lost = node(b"lost", data=None, blobs=((bytes(32), 1),))
            kept = records.encode([*msgspec.msgpack.decode(records.encode(node(b"kept"))), b"later", 7])
            entries = [msgspec.Raw(kept), msgspec.Raw(records.encode(lost))]
            inner = writer.put(Kind.DIRECTORY, records.encode_page(0, entries))
            folder = Node(
                b"dir", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0, root=inner, below=Below(2, 2, 2)
            )
            raw = records.encode([*msgspec.msgpack.decode(records.encode(folder)), b"later"])
            outer = writer.put(Kind.DIRECTORY, records.encode_page(0, [msgspec.Raw(raw)]))
            writer.flush()
        root = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0, root=outer, below=Below(3, 2, 2))
        repository.events.publish_snapshot(
            Snapshot(1, root, 1, b"h", b"u", (b"/",), (), Totals(), True, 0, 0, (), (), b"test")
        )
        result = repair_snapshots(repository, repository.snapshots(), forget=True)
        new: StoredSnapshot | None = result.snapshots[0].new
        assert new is not None
        assert new.record.root.root is not None
        page = records.decode_page(repository.blobs.get(BlobId(new.record.root.root), Kind.DIRECTORY), "it")
        (values,) = [msgspec.msgpack.decode(entry) for entry in page.entries]
        assert values[-1] == b"later"
        assert values[17] == [1, 1, 1]
        page = records.decode_page(repository.blobs.get(BlobId(values[12]), Kind.DIRECTORY), "it")
        assert [bytes(entry) for entry in page.entries] == [kept]
        assert check(repository).ok


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    deep = b"/".join([b"d"] * 500)
    desk = Desk(tmp_path)
    top = os.open(desk.source, os.O_RDONLY)
    for _ in range(500):
        os.mkdir(b"d", dir_fd=top)
        below = os.open(b"d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    for name, data in ((b"kept", noise(400, 1)), (b"lost", noise(300_000, 2))):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=top)
        os.write(fd, data)
        os.close(fd)
    os.close(top)
    with small_frames():
        first = desk.snapshot()
    with desk.open() as repository:
        found = repository.trees.resolve(first.record.root, os.fsencode(desk.source) + b"/" + deep + b"/lost")
        assert found.blobs is not None
        (at,) = repository.index.copies(found.blobs[0][0] or b"")
        name = repository.index.volume(at.volume).name.hex()
    flip(tmp_path / "repository" / "data" / name[:2] / name, 8 * (at.frame_offset + 50))
    with desk.open() as repository:
        check(repository, read_data=True)
        (mended,) = repair_snapshots(repository, repository.snapshots()).snapshots
        assert mended.new is not None
        kept = repository.trees.resolve(mended.new.record.root, os.fsencode(desk.source) + b"/" + deep)
        assert [child.name for child in repository.trees.children(kept)] == [b"kept"]
        with pytest.raises(Damaged):
            repository.contents.read(found, 0, 10)
