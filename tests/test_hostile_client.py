"""Somebody who has the key, and a storage that lets nothing go: what was backed up before him can be restored, and every policy
keeps it, whatever he deletes, overwrites, forges and forgets."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import RepositoryError, RolledBack, StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.records import Event, EventBody
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.model import KiB, Node, NodeType, Snapshot, Totals
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Unused
from snapfs.repo.repository import Repository
from snapfs.repo.retention import UNLIMITED, Duration, Policy, decide
from snapfs.repo.select import NO_FILTER, find
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.system import System
from snapfs.repo.undelete import undelete
from support import guarded, repositories, same
from support.sources import CHUNKS, Watch
from support.torture import Rounds
from support.trees import File, make, noise

pytestmark = pytest.mark.torture
HOUR = 3600 * 10**9
DAY = 24 * HOUR
START = 20_000 * DAY
POLICIES = [
    Policy(5),
    Policy().smart(),
    Policy(counts={"hourly": 30, "daily": 10, "yearly": 2}),
    Policy(within=Duration(days=9), within_each={"weekly": Duration(months=3)}),
    Policy(2, {"daily": UNLIMITED, "monthly": 3}),
]


class World:
    """Honest machines, and one that is not, on one clock."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance, self.now = folder, Random(seed), START
        self.place = folder / "repository"
        repositories.create(folder, volume_size=320 * KiB, chunks=CHUNKS)
        self.real: dict[bytes, same.Tree] = {}
        for day in range(10):
            self.now += self.chance.choice((DAY // 2, DAY, 3 * DAY))
            self.back_up("ab"[day % 2])
            self.look("a")
        self.before = guarded.names(self.place)

    @contextlib.contextmanager
    def open(self, client: str) -> Iterator[Repository]:
        with Repository.open(
            str(self.place), repositories.PASSWORD, cache_dir=str(self.folder / client / "cache"),
            state_dir=str(self.folder / client / "state"), system=System(now=lambda: self.now),
        ) as repository:  # fmt: skip
            yield repository

    def look(self, client: str) -> State:
        with self.open(client) as repository:
            return repository.events.load()

    def back_up(self, client: str) -> StoredSnapshot:
        source = make(
            self.folder / f"source {client}",
            {
                b"%d" % n: File(noise(9000, self.chance.randrange(10**6)))
                for n in self.chance.sample(range(6), 3)
            },
        )
        with self.open(client) as repository:
            options = BackupOptions((os.fsencode(source),), host=client.encode(), user=b"user")
            made = backup(repository, options, Watch()).snapshot
        assert made is not None
        self.real[made.id] = same.on_disk(source)
        return made

    # ---- who has the key, and means no good ------------------------------------------------------------------------------

    def attack(self, fakes: int) -> None:
        self.now += HOUR
        with self.open("evil") as repository:
            self._destroy(repository)
            self._forge(repository, fakes)
            with contextlib.suppress(RepositoryError):
                repository.events.forget(sorted(self.real))
            with contextlib.suppress(RepositoryError):
                prune(repository, PruneOptions(unused=Unused(bytes=0)), Watch())

    def _destroy(self, repository: Repository) -> None:
        """Each object in each way; what the storage lets happen."""
        storage = repository.storage
        for name in sorted(self.before):
            ways = [
                lambda name: storage.remove(name),
                lambda name: storage.remove_all([name]),
                lambda name: storage.put(name, b"rubbish"),
                lambda name: storage.set_aside(name),
            ]
            self.chance.shuffle(ways)
            for way in ways:
                with contextlib.suppress(StorageError):
                    way(name)

    def _forge(self, repository: Repository, fakes: int) -> None:
        """Snapshots of nothing at any time but that of now, at any place among the events, and rubbish among them."""
        state = None
        with contextlib.suppress(RepositoryError):
            state = repository.events.load()
        known = [s for s in state.snapshots if s.id in self.real] if state else []
        heads = state.heads if state else ()
        folder = self.place / "events"
        for n in range(fakes):
            late, ahead = self.chance.randrange(400 * DAY), self.chance.randrange(3 * DAY, 400 * DAY)
            time = self.chance.choice((START - late, self.now - 2 * DAY - late, self.now + ahead))
            record = records.encode(self._fake(time, n))
            if known and self.chance.random() < 0.1:
                record = records.encode(self.chance.choice(known).record)
            event = Event(
                1, b"evil" * 4, n + 1, tuple(self.chance.sample(heads, self.chance.randrange(len(heads) + 1))),
                self.chance.choice((0, time, self.now)), EventBody(records.EVENT_SNAPSHOT, record),
            )  # fmt: skip
            keys = repository.keys
            sealer = Sealer(keys.sealing(L.EVENT), L.EVENT, repository.id, System().salt(), epoch=keys.epoch)
            data = seal_record(sealer, records.encode(event))
            (folder / hashlib.sha256(data).hexdigest()).write_bytes(data)

    def _fake(self, time: int, n: int) -> Snapshot:
        root = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0)
        host, path = self.chance.choice(((b"a", b"source a"), (b"b", b"source b")))
        paths = (os.fsencode(self.folder / os.fsdecode(path)),)
        return Snapshot(1, root, time, host, b"u", paths, (b"%d" % n,), Totals(), True, 0, 0, (), (), b"p")

    # ---- afterwards --------------------------------------------------------------------------------------------------------

    def restored(self, client: str) -> None:
        """Every byte of every real snapshot."""
        with self.open(client) as repository:
            shown = {s.id: s for s in repository.snapshots()}
            assert self.real.keys() <= shown.keys()
            for key, tree in self.real.items():
                node = repository.trees.resolve(shown[key].record.root, shown[key].record.paths[0])
                assert same.differences(tree, same.in_snapshot(repository, node)) == []

    def retained(self, client: str) -> None:
        """Each policy keeps of the real ones what it would keep if there were no others."""
        state = self.look(client)
        for host in (b"a", b"b"):
            everything = [s for s in state.snapshots if s.record.host == host]
            real = [s for s in everything if s.id in self.real]
            for policy in POLICIES:
                found, alone = (
                    {d.snapshot.id for d in decide(some, policy, state.times, self.now) if d.reasons}
                    for some in (everything, real)
                )
                assert alone <= found, policy


def world_in(folder: Path, seed: int, storage: type, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr("snapfs.repo.repository.LocalStorage", storage)
    folder.mkdir()
    return World(folder, seed)


def test_where_nothing_can_be_removed(
    tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in rounds.seeds(1):
        world = world_in(tmp_path / f"{seed}", seed, guarded.AppendOnly, monkeypatch)
        objects = {name: (world.place / name).read_bytes() for name in world.before}
        fakes = 1000 if rounds.long else 300
        world.attack(fakes)
        assert all((world.place / name).read_bytes() == data for name, data in objects.items())
        world.now += DAY
        with world.open("a") as repository:
            hidden = [s for s in repository.events.load().forgotten_snapshots if s.id in world.real]
            assert {s.id for s in hidden} == set(world.real), "or this shows nothing"
            assert undelete(repository, hidden).ok
            assert len(repository.snapshots()) > 0.9 * fakes
            result = check(repository, read_data=True)
            assert result.ok, result.problems
        world.restored("a")
        world.restored("stranger")
        world.retained("a")
        # Life goes on: what is made now is the latest, whatever the others state.
        for client in "ab":
            made = world.back_up(client)
            world.now += HOUR
            for who in ("a", "new"):
                assert find(world.look(who).snapshots, b"latest", NO_FILTER).id == made.id
        world.retained("a")
        world.restored("a")
        with world.open("a") as repository:
            repository.events.forget([s.id for s in repository.snapshots() if s.id not in world.real])
            with pytest.raises(StorageError, match="not permitted"):
                prune(repository, PruneOptions(unused=Unused(bytes=0)), Watch())
        world.restored("stranger")


def test_where_what_is_removed_is_kept(
    tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is deleted or overwritten; the owner of the storage goes back to before."""
    for seed in rounds.seeds(2):
        world = world_in(tmp_path / f"{seed}", seed, guarded.Versioned, monkeypatch)
        world.attack(50)
        world.now += DAY
        with pytest.raises(RepositoryError), world.open("a") as repository:
            repository.refuse_rollback()
        guarded.recover(world.place, world.before)
        world.restored("a")
        world.restored("stranger")
        world.retained("a")
        with world.open("a") as repository:
            repository.refuse_rollback()
            result = check(repository, read_data=True)
            assert result.ok, result.problems
        world.back_up("a")
        world.restored("a")


def test_one_who_saw_the_attack_is_told_that_it_was_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_in(tmp_path / "1", 1, guarded.Versioned, monkeypatch)
    world.now += HOUR
    with world.open("evil") as repository:
        repository.events.forget(sorted(world.real))
    assert world.look("a").snapshots == []
    guarded.recover(world.place, world.before)
    with world.open("a") as repository:
        with pytest.raises(RolledBack):
            repository.refuse_rollback()
        repository.refuse_rollback(accept=True)
    world.restored("a")
    world.retained("a")
