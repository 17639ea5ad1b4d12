"""A damaged index costs a rebuild at most: never a wrong restore, never a snapshot whose blobs are missing.

LMDB has no checksums.  What it does with a bad page ends in a wrong answer, an exception, or a signal that ends the process; the
last counts as kill -9, and the next start has to manage by itself.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.format import labels as L
from snapfs.repo.index import Index, IndexBroken
from support import repositories, same
from support.children import in_child
from support.repositories import open_
from support.torture import Rounds
from support.trees import File, make, noise

_PARTS = ("repository", "cache", "state")


class Shelf:
    """A repository with some snapshots, so that the index has a history in its free pages, and a source that has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = make(folder / "source", {b"%d" % n: File(noise(100 + n, n)) for n in range(25)})
        repositories.create(folder, volume_size=384 * 1024, chunks=(16384, 65536, 262144))
        self.before = same.on_disk(self.source)
        self.first = repositories.snapshot(folder, self.source)
        for turn in range(3):
            make(self.source, {b"more %d" % turn: File(noise(20_000, turn + 100))})
            repositories.snapshot(folder, self.source)
        with open_(folder) as repository:
            volume = repository.index.volumes()[0]
            repository.index.mark([volume.name], False)
            repository.index.mark([volume.name], True)
        (self.source / "0").write_bytes(noise(300, 7))
        self.now = same.on_disk(self.source)
        self._saved = folder / "saved"
        for part in _PARTS:
            shutil.copytree(folder / part, self._saved / part)
        (self.environment,) = (folder / "cache").glob("*/index/*/data.mdb")

    def reset(self) -> None:
        for part in _PARTS:
            for entry in os.scandir(self.folder / part):
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
            shutil.copytree(self._saved / part, self.folder / part, dirs_exist_ok=True)

    def damage(self, chance: random.Random, *, died: bool) -> str:
        """As a disk does it, without a trace in times; `died`: and the process that had it open was killed."""
        path = self.environment
        data = bytearray(path.read_bytes())
        what = chance.choice(
            ("bit", "bit", "bit", "meta", "bytes", "page", "older page", "cut", "cut to a page")
        )
        at = chance.randrange(len(data))
        match what:
            case "bit":
                data[at] ^= 1 << chance.randrange(8)
            case "meta":
                at %= 8192
                data[at] ^= 1 << chance.randrange(8)
            case "bytes":
                data[at : at + 8] = chance.randbytes(len(data[at : at + 8]))
            case "page":
                at &= ~4095
                data[at : at + 4096] = chance.choice((bytes(4096), chance.randbytes(4096)))
            case "older page":
                at &= ~4095
                other = chance.randrange(len(data)) & ~4095
                data[at : at + 4096] = data[other : other + 4096]
            case "cut":
                del data[at:]
            case "cut to a page":
                at &= ~4095
                del data[at:]
        path.write_bytes(data)
        folder = path.parent.parent
        st = path.stat()
        (folder / "stamp").write_text(f"{int(path.parent.name)} {st.st_size} {st.st_mtime_ns}")
        if died:
            (folder / "open" / "1-dead").touch()
        return f"{what} at {at}"

    def lose_a_directory(self, chance: random.Random) -> None:
        """Of a volume, which from then on nothing but the index, and a walk along its frames, tells what is in it."""
        path = chance.choice(sorted((self.folder / "repository").glob("*/??/*")))
        data = bytearray(path.read_bytes())
        data[-chance.randrange(1, L.TAIL_SIZE)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)

    def use(self, force: bool, harmed: bool = False) -> None:
        """Read, back up, read that; then look at everything with an index of its own."""
        with open_(self.folder) as repository:
            root = repository.trees.resolve(self.first.record.root, os.fsencode(self.source))
            assert same.differences(self.before, same.in_snapshot(repository, root)) == []
        new = repositories.snapshot(self.folder, self.source, force=force)
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            repository = repositories.Repository.open(
                str(self.folder / "repository"), repositories.PASSWORD, cache_dir=cache, state_dir=cache
            )
            with repository:
                result = check(repository)
                assert result.ok or (harmed and not result.affected), result.problems
                assert len(repository.snapshots()) == 5
                root = repository.trees.resolve(new.record.root, os.fsencode(self.source))
                assert same.differences(self.now, same.in_snapshot(repository, root)) == []


@pytest.fixture(scope="module")
def shelf() -> Iterator[Shelf]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        yield Shelf(Path(folder))


@pytest.mark.torture
def test_no_damage_to_the_index_does_harm(
    shelf: Shelf, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for seed in rounds.seeds(80):
        chance = random.Random(seed)
        shelf.reset()
        what = shelf.damage(chance, died=chance.random() < 0.25)
        force, harmed = chance.random() < 0.5, chance.random() < 0.25
        if harmed:
            shelf.lose_a_directory(chance)
            what += ", and a volume's tail"
        use = partial(shelf.use, force, harmed)
        status = in_child(use)
        if status < 0:  # a signal: as kill -9
            status = in_child(use)
            assert status == 0, f"{what}: the next start ended with {status}"
        assert status == 0, what


def test_a_process_that_died_in_the_index_leaves_a_rebuild_behind(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the page that killed it is not among those that a look at all blobs touches."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    shelf.reset()
    real = Index.get

    def fatal(index: Index, blob: bytes) -> None:
        os.kill(os.getpid(), 7)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "get", fatal)
        assert in_child(lambda: shelf.use(True)) == -7
    assert Index.get is real
    assert in_child(lambda: shelf.use(True)) == 0


def test_the_judge_sees(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tags of its entries, a flipped index would be believed."""
    shelf.reset()
    shelf.use(True)
    monkeypatch.setattr(Index, "holder", lambda index, blob: index.volumes()[0].number)
    shelf.reset()
    with pytest.raises((AssertionError, IndexBroken)):
        shelf.use(True)
