"""Backups, prunes, mounts, forget, undelete and changes of the keys at once, killed and frozen, by seeds: no live snapshot
loses a byte, no reader of one sees an error, a backup that nothing happened to commits, and what is dead is gone after two more
prunes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import (
    OldKeys,
    RepositoryError,
    RepositoryLocked,
    SnapshotNotFound,
    StorageError,
    WrongPassword,
)
from snapfs.repo.model import KiB
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Plan, Scatter, Unused
from snapfs.repo.repository import Repository
from snapfs.repo.rotation import rotate
from snapfs.repo.system import System
from support import repositories, same
from support.scene import folder
from support.simulation import HOUR, Actor, Simulation, open_plainly
from support.sources import CHUNKS, Watch
from support.torture import Rounds
from support.trees import noise

pytestmark = pytest.mark.torture
POOL = [noise(25_000, n) for n in range(16)]
TIDY = Scatter(0.05, least=0)
NONE = PruneOptions(unused=Unused(bytes=0), scatter=TIDY)
ANY = PruneOptions(unused=Unused(), scatter=TIDY)
"""Rewrites only what is small or scattered."""
BACKUP_ONLY = {"only a": b"of a", "only b": b"of b"}
"""Passwords of clients that can only back up."""


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # power cuts are the subject of test_crash_states


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=folder()) as made:
        repositories.create(Path(made) / "new", volume_size=320 * KiB, chunks=CHUNKS)
        with repositories.open_(Path(made) / "new") as repository:
            grant(repository)
        yield Path(made)


def grant(repository: Repository) -> None:
    for password in BACKUP_ONLY.values():
        repository.add_backup_only_key(password, "host", cost=repositories.CHEAP)


class World:
    """What has to be there, and who changes it."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.chance = Random(seed)
        self.alive: dict[bytes, same.Tree] = {}
        self.forgotten: dict[bytes, same.Tree] = {}
        self.story: list[str] = []

    def write(self, source: Path) -> None:
        """Another set of contents out of a few, so that what was dead comes back."""
        source.mkdir(exist_ok=True)
        for name in range(6):
            if self.chance.random() < 0.6:
                data = b"".join(self.chance.sample(POOL, self.chance.choice((1, 1, 2, 5))))
                (source / f"{name}").write_bytes(data)
        folder = source / "small"
        folder.mkdir(exist_ok=True)
        for name in range(self.chance.randrange(4)):
            (folder / f"{name}").write_bytes(self.chance.choice(POOL)[:200])

    def backup(self, actor: Actor, client: str, source: Path) -> None:
        tree = same.on_disk(source)
        password = BACKUP_ONLY.get(client, repositories.PASSWORD)
        try:
            with actor.open(client, password, backing_up=True) as repository:
                options = BackupOptions((os.fsencode(source),), host=b"host", user=b"user")
                made = backup(repository, options, Watch()).snapshot
        except StorageError:
            # One that was frozen for more than a day, on a machine whose locks are not seen, may refuse.
            self.story.append(f"{actor.name} refused")
            if not actor.blind:
                raise
            return
        except (OldKeys, WrongPassword) as error:
            self.story.append(f"{actor.name} stopped: {type(error).__name__}")
            if not self.changes or (isinstance(error, WrongPassword) and client not in BACKUP_ONLY):
                raise
            return
        assert made is not None
        self.alive[made.id] = tree
        self.story.append(f"{actor.name} saved {made.short}")

    def forget(self, actor: Actor, client: str) -> None:
        if not self.alive:
            return
        chosen = self.chance.choice(sorted(self.alive))
        self.forgotten[chosen] = self.alive.pop(chosen)
        with actor.open(client) as repository, self.unless_keys_change(actor):
            repository.events.forget([chosen])
        self.story.append(f"{actor.name} forgot {chosen.hex()[:8]}")

    def revive(self, actor: Actor, client: str) -> None:
        if not self.forgotten:
            return
        chosen = self.chance.choice(sorted(self.forgotten))
        tree = self.forgotten.pop(chosen)
        with actor.open(client) as repository, self.unless_keys_change(actor):
            try:
                came = repositories.revive(repository, [chosen])
            except (SnapshotNotFound, RepositoryLocked):
                return
            finally:
                self.forgotten[chosen] = tree
            if came:
                self.alive[chosen] = self.forgotten.pop(chosen)
                self.story.append(f"{actor.name} brought {chosen.hex()[:8]} back")

    def prune(self, actor: Actor, client: str) -> None:
        def agreed(plan: Plan) -> bool:
            self.planned += bool(plan.scattered)
            return True

        with actor.open(client) as repository:
            try:
                result = prune(repository, self.chance.choice((NONE, ANY)), Watch(), agreed)
            except RepositoryLocked:
                return
            except RepositoryError as error:
                # A blind client's writer or prune may be at work beside this one; then it stops, and has removed nothing needed.
                self.story.append(f"{actor.name} stopped: {error}")
                if not (self.blind or (isinstance(error, OldKeys) and self.changes)):
                    raise
                return
        self.story.append(
            f"{actor.name} removed {result.volumes_removed}, wrote {result.volumes_written}, "
            f"{len(result.plan.scattered)} scattered"
        )
        self.removed += result.volumes_removed
        self.tidied += bool(result.plan.scattered and result.volumes_written)

    @contextmanager
    def unless_keys_change(self, actor: Actor) -> Iterator[None]:
        """One who opened it before refuses, or says that what he wrote may not count."""
        try:
            yield
        except OldKeys:
            self.story.append(f"{actor.name} stopped: OldKeys")
            if not self.changes:
                raise

    def change_keys(self, actor: Actor, client: str) -> None:
        """Who can only back up needs a new key then."""
        self.changes += 1  # tried: one that is killed may have ended the old keys
        with actor.open(client, newest=True) as repository:
            try:
                done = rotate(repository, repositories.PASSWORD, {})
            except (RepositoryLocked, OldKeys) as error:
                self.story.append(f"{actor.name} stopped: {type(error).__name__}")
                return
        self.story.append(f"{actor.name}: epoch {done.epoch}")
        self.changed += 1

    blind = False
    changes = 0
    changed = 0
    removed = 0
    planned = 0
    """Prunes that set out to put together what lies scattered."""
    tidied = 0
    """Those of them that came to an end."""
    read = 0

    def mount(self, actor: Actor, client: str) -> None:
        """Reads a snapshot slowly; fails only if that is forgotten meanwhile, or has been moved to volumes of newer keys."""
        changes = self.changes
        with actor.open(client) as repository:
            shown = [s for s in repository.snapshots() if s.id in self.alive]
            if not shown:
                return
            snapshot = self.chance.choice(shown)
            tree = self.alive[snapshot.id]
            try:
                found = read(repository, snapshot.record.root)
            except RepositoryError as error:
                if snapshot.id in self.alive and changes == self.changes:
                    raise AssertionError(f"{actor.name}: {snapshot.short}: {error}") from error
                return
            if snapshot.id in self.alive:
                assert found == contents(tree), f"{actor.name} read something else"
                self.read += 1


def contents(tree: same.Tree) -> set[str | None]:
    return {seen.digest for seen in tree.values() if seen.digest}


def read(repository: Repository, root: object) -> set[str | None]:
    return contents(same.in_snapshot(repository, root))  # type: ignore[arg-type]


def one(home: Path, seed: int, *, blind: bool, only: bool = False, changes: bool = False) -> World:
    """`only`: some machines can only back up; `changes`: the keys are changed in between."""
    place = home / f"{seed}"
    shutil.copytree(home / "new", place)
    world = World(place, seed)
    try:
        world.blind = blind
        with Simulation(place, world.chance, world.story.append) as simulation:
            for turn in range(world.chance.choice((2, 3))):
                if world.changed:
                    with open_plainly(place, "a") as repository:
                        grant(repository)
                for who in ("a", "b"):
                    source = place / f"source {who}"
                    world.write(source)
                # Those of another machine are clients of their own.
                far = {who: blind and world.chance.random() < 0.5 for who in ("a", "b", "prune")}
                for who in ("a", "b"):
                    client = f"only {who}" if only and world.chance.random() < 0.7 else who
                    simulation.start(
                        f"backup {client} {turn}",
                        lambda actor, client=client, who=who: world.backup(
                            actor, client, place / f"source {who}"
                        ),
                        blind=far[who],
                    )
                if changes and world.chance.random() < 0.7:
                    apart = blind and world.chance.random() < 0.5
                    simulation.start(
                        f"keys {turn}",
                        lambda actor, apart=apart: world.change_keys(actor, "e" if apart else "a"),
                        blind=apart,
                    )
                for at in range(world.chance.choice((1, 2))):
                    client = "c" if far["prune"] else "a"
                    simulation.start(
                        f"prune {turn}{at}", lambda actor, client=client: world.prune(actor, client), blind=far["prune"]
                    )  # fmt: skip
                simulation.start(f"forget {turn}", lambda actor: world.forget(actor, "b"))
                simulation.start(f"undelete {turn}", lambda actor: world.revive(actor, "a"))
                simulation.start(f"mount {turn}", lambda actor: world.mount(actor, "d"))
                simulation.start(f"mount too {turn}", lambda actor: world.mount(actor, "a"))
                simulation.run(kill=0.004, freeze=0.01)
                if world.chance.random() < 0.3:
                    simulation.time += 25 * HOUR
            afterwards(world, simulation.time)
        return world
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r}; {'; '.join(world.story)}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def afterwards(world: World, time: int) -> None:
    """Two more prunes, a day apart: everything that lives is whole, everything dead is gone."""
    for turn in (1, 2):
        system = System(uptime=lambda turn=turn: time + turn * 30 * HOUR, boot_id=b"this machine")
        with open_plainly(world.place, "a", system=system) as repository:
            # Killed between its event and the note that it was saved: then it is there, and whole.
            for snapshot in repository.snapshots():
                assert snapshot.id in world.alive or contents(
                    same.in_snapshot(repository, snapshot.record.root)
                )
            prune(repository, NONE, Watch())
    with open_plainly(world.place, "a", system=system) as repository:
        plan = prune(repository, replace(NONE, dry_run=True), Watch()).plan
        assert (plan.remove, plan.rewrite) == ([], []), "what is dead is still there"
    assert [n for n in os.listdir(world.place / "repository/locks") if n.endswith(".lease")] == []
    with open_plainly(world.place, "stranger") as repository:
        shown = {snapshot.id: snapshot for snapshot in repository.snapshots()}
        assert world.alive.keys() <= shown.keys(), "a committed snapshot is gone"
        for key, tree in world.alive.items():
            assert contents(same.in_snapshot(repository, shown[key].record.root)) == contents(tree)
        result = check(repository, read_data=True)
        assert result.ok, result.problems


def test_processes_of_one_machine(home: Path, rounds: Rounds) -> None:
    removed = reads = planned = tidied = 0
    for seed in rounds.seeds(120):
        world = one(home, seed, blind=False)
        removed += world.removed
        reads += world.read
        planned += world.planned
        tidied += world.tidied
    assert removed > 10, "nothing was removed while others were at work: the test shows nothing"
    assert reads > 10
    assert planned > tidied > 0, "what is scattered was never put together, or always to the end"


def test_machines_that_do_not_see_each_others_locks(home: Path, rounds: Rounds) -> None:
    removed = 0
    for seed in rounds.seeds(80):
        removed += one(home, seed, blind=True).removed
    assert removed


def test_some_that_can_only_back_up(home: Path, rounds: Rounds) -> None:
    removed = reads = 0
    for seed in rounds.seeds(40):
        world = one(home, seed, blind=seed % 2 == 0, only=True)
        removed += world.removed
        reads += world.read
    assert removed
    assert reads


def test_the_keys_are_changed_meanwhile(home: Path, rounds: Rounds) -> None:
    changed = removed = reads = 0
    for seed in rounds.seeds(40):
        world = one(home, seed, blind=seed % 2 == 0, only=True, changes=True)
        changed += world.changed
        removed += world.removed
        reads += world.read
    assert changed
    assert removed
    assert reads
