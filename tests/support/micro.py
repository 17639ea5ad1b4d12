"""A repository so small that all of its bits can be damaged one after another, and what must hold of it then."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from snapfs.fs.entry import Entry
from snapfs.fs.view import View
from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, SnapfsError, SnapshotNotFound, UnsupportedFormat, WrongPassword
from snapfs.repo.model import Node
from snapfs.repo.repository import Repository
from snapfs.repo.restore.engine import restore
from snapfs.repo.restore.options import RestoreOptions
from support import repositories, same
from support.readable import harm
from support.trees import File, Symlink, make, noise

OBJECTS = ("config", "keys", "events", "data", "trees", "parity")
_PARTS = ("repository", "cache", "state")


class Micro:
    """Two snapshots of three small files in 30 KiB; damage is done to the repository, and undone by reset()."""

    def __init__(self, folder: Path, *, parity: bool = False) -> None:
        self.folder = folder
        self.place = folder / "repository"
        self.source = make(folder / "source", {
            b"a": File(noise(100, 1)),
            b"sub/b": File(noise(300, 2), xattrs={"user.large": noise(1100, 3)}),
            b"sub/link": Symlink(target=b"b"),
        })  # fmt: skip
        repositories.create(folder, parity=parity)
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
        self.objects = [path for path in found if path.is_file() and path.name != "README.txt"]
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

    def harm(self, seed: int) -> str:
        """Damage some of its objects as disks do; says what was done, or nothing if that changed nothing (zeros over zeros)."""
        chance = random.Random(seed)
        self.reset(keep_index=chance.random() < 0.5)
        harmed = [
            (path, harm(path, chance)) for path in chance.sample(self.objects, chance.choice((1, 1, 2, 4)))
        ]
        changed = any(path.read_bytes() != self._bytes[path] for path, _ in harmed)
        return str(harmed) if changed else ""

    def judge(
        self,
        what: str,
        *,
        restored: bool = False,
        found: bool = True,
        nothing_lost: bool = False,
        several: bool = False,
    ) -> None:
        """Everything that must hold of a damaged repository; `found`: that check says so; `nothing_lost`: that all of it is
        read all the same; `several`: more than one bit, or object."""
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
                    assert not (nothing_lost and lost), f"{what}: {lost} cannot be read"
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
        # Of a config whose header states another format, and that is damaged besides, nobody can tell that it is not one.
        newer = (
            several
            and "config" in what
            and isinstance(refusal, UnsupportedFormat)
            and str(refusal).startswith("config: ")
        )
        assert refusal is None or no_slot or newer or isinstance(refusal, Damaged), f"{what}: {refusal!r}"

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
