"""Prune beside damage that the pruning machine knows nothing of: what some copy still gives before, one gives afterwards.

One machine backs up and forgets.  Volumes are damaged; it finds that by `check`, and its next backup stores anew what lay there.
It prunes, or another one does, or one that has just come; to the end or not.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from snapfs.repo.blobs import BlobReader
from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.model import BlobId, KiB, Kind
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Scatter, Unused
from snapfs.repo.repository import Repository
from snapfs.repo.storage.local_object import LocalObject
from snapfs.repo.usage import NeededBlobs
from support import repositories
from support.sources import Desk, Watch
from support.torture import Rounds
from support.trees import File, make, noise

pytestmark = pytest.mark.torture
UNUSED = (Unused(bytes=0), Unused(share=0.05), Unused())
SCATTER = (Scatter(None), Scatter(0.05, least=0), Scatter(0, least=0))
FAULTS = ("", "", "killed", "full")


class _Killed(BaseException):
    pass


class _Needed(NeededBlobs):
    def __init__(self, repository: Repository) -> None:
        super().__init__(repository, Watch())
        self.blobs: dict[bytes, Kind] = {}

    def need(self, kind: Kind, blob: bytes, owner: int) -> bool:
        new = blob not in self.blobs
        self.blobs[blob] = kind
        return new


class World(Desk):
    def __init__(self, folder: Path, chance: Random) -> None:
        files = {
            b"%02d" % n: File(noise(chance.randint(500, 40_000), chance.randrange(1 << 30)))
            for n in range(24)
        }
        super().__init__(folder, files, volume_size=512 * KiB)
        self.chance = chance
        self.did: Counter[str] = Counter()

    def machine(self, name: str) -> Repository:
        if name == "one":
            return self.open()
        return Repository.open(
            str(self.folder / "repository"), repositories.PASSWORD,
            cache_dir=str(self.folder / name / "cache"), state_dir=str(self.folder / name / "state"),
        )  # fmt: skip

    def readable(self) -> set[bytes]:
        """Blobs of the snapshots of which any copy opens, as one sees it who comes new to it."""
        with self.machine("judge") as repository:
            repository.synchronise()
            needed = _Needed(repository)
            for snapshot in repository.snapshots():
                needed.add(snapshot)
            reader = BlobReader(repository.index, repository.volumes, repository.keys, lambda _: False)
            found = set()
            for blob, kind in needed.blobs.items():
                for at in repository.index.copies(blob):
                    try:
                        reader.read_at(BlobId(blob), kind, at)
                    except (Damaged, StorageError):
                        continue
                    found.add(blob)
                    break
        shutil.rmtree(self.folder / "judge")
        return found

    def day(self) -> None:
        chance = self.chance
        for _ in range(chance.randint(0, 5)):
            content = noise(chance.randint(500, 40_000), chance.randrange(1 << 30))
            make(self.source, {b"%02d" % chance.randrange(24): File(content)})
        gone = self.source / f"{chance.randrange(24):02}"
        if chance.random() < 0.3:
            gone.unlink(missing_ok=True)
        volumes = sorted(self.volumes("data").values())
        if volumes and chance.random() < 0.35:
            path = chance.choice(volumes)
            data = bytearray(path.read_bytes())
            data[chance.randrange(200, len(data) - 200)] ^= 1
            path.write_bytes(data)
            with self.open() as repository:
                check(repository, read_data=True)
            self.did["damaged"] += 1
        self.snapshot(host=chance.choice((b"h1", b"h2")))
        with self.open() as repository:
            snapshots = repository.snapshots()
            if len(snapshots) > 2 and chance.random() < 0.4:
                repository.events.forget([chance.choice(snapshots).id])

    def prune(self, number: int) -> None:
        chance = self.chance
        options = PruneOptions(
            chance.choice(UNUSED), chance.choice((None, None, 300 * KiB)), chance.choice(SCATTER)
        )
        who = chance.choice(("one", "two", f"new {number}"))
        fault, left = chance.choice(FAULTS), chance.randint(0, 3)
        publish, write = LocalObject.publish, LocalObject.write

        def until_killed(new: LocalObject, name: str) -> None:
            nonlocal left
            if fault == "killed" and not left:
                raise _Killed
            left -= 1
            publish(new, name)

        def until_full(new: LocalObject, *parts: bytes) -> None:
            nonlocal left
            if fault == "full" and not left:
                left -= 1
                raise StorageError("repository: cannot write: No space left on device", errno.ENOSPC)
            write(new, *parts)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalObject, "publish", until_killed)
            patch.setattr(LocalObject, "write", until_full)
            try:
                with self.machine(who) as repository:
                    result = prune(repository, options, Watch())
            except _Killed:
                self.did["killed"] += 1
            else:
                self.did["removed"] += result.volumes_removed
                self.did["rewrote"] += bool(result.volumes_written)


def test_what_a_copy_gives_before_a_prune_one_gives_afterwards(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    did: Counter[str] = Counter()
    for seed in rounds.seeds(5):
        with tempfile.TemporaryDirectory(prefix="snapfs-test-") as folder:
            world = World(Path(folder), Random(seed))
            for number in range(8):
                world.day()
                if world.chance.random() < 0.5:
                    before = world.readable()
                    world.prune(number)
                    assert before <= world.readable(), f"day {number}"
            did += world.did
    assert all(did[what] for what in ("damaged", "removed", "rewrote")), did
