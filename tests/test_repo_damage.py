"""Damage of every kind to a whole small repository: `check` finds it and names the files, and nothing wrong is ever shown.

The repository is so small that all of its bits can be flipped one after another; the suite takes a sample of them.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fs.entry import Entry
from snapfs.fs.view import View
from snapfs.repo import salvage
from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, SnapfsError, SnapshotNotFound, WrongPassword
from snapfs.repo.model import Node
from snapfs.repo.repository import Repository
from snapfs.repo.restore.engine import restore
from snapfs.repo.restore.options import RestoreOptions
from support import repositories, same
from support.readable import flip, harm
from support.torture import Rounds
from support.trees import File, Symlink, make, noise

pytestmark = pytest.mark.torture
OBJECTS = ("config", "keys", "events", "data", "trees")
_PARTS = ("repository", "cache", "state")


class Micro:
    """Two snapshots of three small files in 30 KiB; damage is done to the repository, and undone by reset()."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "repository"
        self.source = make(folder / "source", {
            b"a": File(noise(100, 1)),
            b"sub/b": File(noise(300, 2), xattrs={"user.large": noise(1100, 3)}),
            b"sub/link": Symlink(target=b"b"),
        })  # fmt: skip
        repositories.create(folder)
        self.truth: dict[bytes, same.Tree] = {}
        self._snapshot()
        make(self.source, {b"c": File(noise(200, 4))})
        self._snapshot()
        self._saved = folder / "saved"
        for part in _PARTS:
            shutil.copytree(folder / part, self._saved / part)
        found = [
            path for name in OBJECTS for path in sorted([self.place / name, *(self.place / name).rglob("*")])
        ]
        self.objects = [path for path in found if path.is_file()]
        self._bytes = {path: path.read_bytes() for path in self.objects}
        self._contents = {path: path.read_bytes() for path in self.source.rglob("*") if path.is_file()}

    def _snapshot(self) -> None:
        stored = repositories.snapshot(self.folder, self.source)
        self.truth[stored.id] = same.on_disk(self.source)

    def reset(self, keep_index: bool) -> None:
        """All as it was; without the index a new machine would begin like that."""
        left = set(self.objects)
        for folder, _, names in os.walk(self.place):
            for path in (Path(folder, name) for name in names):
                if path in left and path.read_bytes() == self._bytes[path]:
                    left.discard(path)
                elif path not in left and path.name != "README.txt":
                    path.unlink()
        for path in left:
            path.write_bytes(self._bytes[path])
        for part in ("cache", "state"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
            if keep_index or part == "state":
                shutil.copytree(self._saved / part, self.folder / part)

    def judge(self, what: str, *, restored: bool = False, found: bool = True) -> None:
        """Everything that must hold of a damaged repository; `found`: that check says so."""
        refusal = None
        try:
            with repositories.open_(self.folder) as repository:
                said = repository.config_problem is not None
                result = check(repository, read_data=True)
                assert not found or said or not result.ok, f"{what}: not found"
                named: dict[str, list[bytes]] = {}
                for affected in result.affected:
                    named.setdefault(affected.snapshot, []).append(affected.path)
                for snapshot in repository.snapshots():
                    lost = self._lost(repository, snapshot.record.root, self.truth[snapshot.id], what)
                    for path in lost:
                        assert any(
                            path == one or path.startswith(one.rstrip(b"/") + b"/")
                            for one in named.get(snapshot.short, ())
                        ), f"{what}: {path!r} cannot be read, and check does not name it"
                    false = {
                        one for one in named.get(snapshot.short, ()) if one in self._paths(snapshot.id)
                    } - lost
                    assert not false, f"{what}: named, and all of it can be read: {false}"
                    if restored:
                        self._restore(repository, snapshot.record.root, self.truth[snapshot.id], lost, what)
        except SnapfsError as error:
            refusal = error
        # It may not open at all any more, without its only key slot say: that is said to be damage.
        no_slot = isinstance(refusal, WrongPassword) and "1 of 1 cannot be used, whatever" in str(refusal)
        assert refusal is None or no_slot or isinstance(refusal, Damaged), f"{what}: {refusal!r}"

    def _paths(self, snapshot: bytes) -> set[bytes]:
        return {
            os.fsencode(self.source) + name
            for name, seen in self.truth[snapshot].items()
            if seen.type == "file"
        }

    def _lost(self, repository: Repository, root: Node, truth: same.Tree, what: str) -> set[bytes]:
        """What the mount does not give; what it gives is right."""
        view, lost = View(repository, root), set()
        top = os.fsencode(self.source)
        seen_before: dict[bytes, Entry | Damaged] = {b"": view.entry(1)}
        for name, seen in truth.items():
            path = top + name
            try:
                node = self._look(view, path, seen_before, what).node
                assert (node.mode, node.uid, node.mtime, node.size) == (
                    seen.mode,
                    seen.uid,
                    seen.mtime,
                    seen.size,
                ), what
                if node.is_file:
                    data = view.read(node, 0, 1 << 20)
                    assert data == self._contents[self.source / os.fsdecode(name[1:])], f"{what}: {path!r}"
                for key, value in seen.xattrs:
                    assert view.xattr(node, key) == value, f"{what}: {path!r}"
            except Damaged:
                lost.add(path)
        return lost

    def _look(self, view: View, path: bytes, before: dict[bytes, Entry | Damaged], what: str) -> Entry:
        """The entry of a path; the folders above it are looked up once."""
        found = before.get(path)
        if found is None:
            above, _, name = path.rpartition(b"/")
            try:
                found = view.lookup(self._look(view, above, before, what).inode, name)
            except Damaged as error:
                found = error
            assert found is not None, f"{what}: {path!r} is not there, and no error"
            before[path] = found
        if isinstance(found, Damaged):
            raise found
        return found

    def _restore(
        self, repository: Repository, root: Node, truth: same.Tree, lost: set[bytes], what: str
    ) -> None:
        target = self.folder / "target"
        shutil.rmtree(target, ignore_errors=True)
        try:
            restore(repository, root, os.fsencode(target), RestoreOptions())
        except (Damaged, SnapshotNotFound):
            assert lost, f"{what}: restore gave up, and all can be read"
        top = target / str(self.source)[1:]
        got = same.on_disk(top) if top.exists() else {}
        for name, seen in truth.items():
            if os.fsencode(self.source) + name not in lost:
                assert name in got, f"{what}: {name!r} was not restored"
            if name in got and seen.type == "file":
                assert got[name].digest == seen.digest or not got[name].size, f"{what}: {name!r} is wrong"


@pytest.fixture(scope="module")
def micro() -> Iterator[Micro]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        yield Micro(Path(folder))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(salvage, "_TRIES", 2000)


def test_the_judge_sees(micro: Micro) -> None:
    """That a sound repository passes, and one whose check looks away does not."""
    micro.reset(True)
    micro.judge("sound", restored=True, found=False)
    with pytest.raises(AssertionError, match="not found"):
        micro.judge("sound")


def test_every_bit(micro: Micro, rounds: Rounds) -> None:
    bits = [(path, bit) for path in micro.objects for bit in range(8 * path.stat().st_size)]
    assert len(bits) > 150_000
    for path, bit in rounds.some(bits, 120):
        # Which bit of a byte it is must not decide what is looked at.
        micro.reset(keep_index=bool((bit ^ bit >> 3) & 1))
        flip(path, bit)
        micro.judge(f"{path.relative_to(micro.place)}, bit {bit}", restored=(bit ^ bit >> 3) % 8 == 0)


def test_every_length(micro: Micro, rounds: Rounds) -> None:
    """Cut to each length, and longer."""
    lengths = [(path, n) for path in micro.objects for n in range(path.stat().st_size)]
    longer = [
        (path, path.stat().st_size + n) for path in micro.objects for n in (1, 16, 32, 48, 1024, 4096, 65536)
    ]
    for turn, (path, length) in enumerate([*rounds.some(lengths, 60), *rounds.some(longer, 20)]):
        micro.reset(keep_index=bool(turn % 2))
        data = path.read_bytes()
        path.write_bytes(data[:length] + (bytes if turn % 3 else os.urandom)(max(length - len(data), 0)))
        micro.judge(f"{path.relative_to(micro.place)}, {length} of {len(data)} bytes", restored=turn % 8 == 0)


def test_each_object_deleted(micro: Micro, rounds: Rounds) -> None:
    for path, keep_index in rounds.some(list(itertools.product(micro.objects, (True, False))), 1000):
        micro.reset(keep_index)
        path.unlink()
        micro.judge(f"{path.relative_to(micro.place)} deleted", restored=True)


def test_each_object_in_the_place_of_each_other(micro: Micro, rounds: Rounds) -> None:
    """An old one under a new name, one volume for another, data for trees, an event for a key slot."""
    for turn, (a, b) in enumerate(rounds.some(list(itertools.permutations(micro.objects, 2)), 40)):
        micro.reset(keep_index=bool(turn % 2))
        swap = turn % 3 == 0
        one, two = a.read_bytes(), b.read_bytes()
        b.write_bytes(one)
        if swap:
            a.write_bytes(two)
        micro.judge(f"{a.relative_to(micro.place)} as {b.relative_to(micro.place)}", restored=turn % 4 == 0)


def test_each_object_once_more_under_a_name_of_its_own(micro: Micro, rounds: Rounds) -> None:
    """It is what was written, and not what its name says: told, and nothing is lost by it."""
    for path in rounds.some([p for p in micro.objects if p.name != "config"], 1000):
        for folder in ("keys", "events", "data/ff", "trees/ff"):
            micro.reset(keep_index=False)
            target = micro.place / folder / ("ff" * 32)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
            micro.judge(f"{path.relative_to(micro.place)} in {folder}", restored=True)
            with repositories.open_(micro.folder) as repository:
                assert len(repository.snapshots()) == 2


def test_objects_of_another_repository_with_the_same_password(
    micro: Micro, tmp_path: Path, rounds: Rounds
) -> None:
    """In the place of one's own, and beside them under their own names.  A key slot of theirs opens, and has other keys."""
    other = Micro(tmp_path)
    pairs = list(itertools.product(other.objects, micro.objects))
    for turn, (theirs, ours) in enumerate(rounds.some(pairs, 30)):
        micro.reset(keep_index=bool(turn % 2))
        ours.write_bytes(theirs.read_bytes())
        micro.judge(
            f"their {theirs.relative_to(other.place)} as {ours.relative_to(micro.place)}",
            restored=turn % 4 == 0,
        )
    for theirs in rounds.some([path for path in other.objects if path.name != "config"], 1000):
        micro.reset(keep_index=False)
        target = micro.place / theirs.relative_to(other.place)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(theirs.read_bytes())
        # A key slot more is nothing wrong: it opens nothing of this repository.
        micro.judge(
            f"their {target.relative_to(micro.place)} beside",
            restored=True,
            found=target.parent.name != "keys",
        )
        with repositories.open_(micro.folder) as repository:
            assert len(repository.snapshots()) == 2


def test_what_disks_do(micro: Micro, rounds: Rounds) -> None:
    """Sectors, zeros, several bits, several objects at once."""
    for seed in rounds.seeds(60):
        chance = random.Random(seed)
        micro.reset(keep_index=chance.random() < 0.5)
        harmed = [
            (path, harm(path, chance)) for path in chance.sample(micro.objects, chance.choice((1, 1, 2, 4)))
        ]
        if all(
            path.read_bytes() == (micro._saved / path.relative_to(micro.folder)).read_bytes()
            for path, _ in harmed
        ):
            continue  # zeros over zeros
        micro.judge(str(harmed), restored=seed % 4 == 0)
