"""Real processes at once, under SIGKILL and SIGSTOP: two backups, two prunes, a forget, a reader, and a mount that stays."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import RepositoryError, RepositoryLocked
from snapfs.repo.model import KiB
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Scatter, Unused
from snapfs.repo.repository import Repository
from support import repositories, same
from support.mounts import mounted
from support.simulation import open_plainly
from support.sources import CHUNKS, Watch
from support.torture import Rounds
from support.trees import noise

pytestmark = pytest.mark.torture
NONE = PruneOptions(unused=Unused(bytes=0), scatter=Scatter(0, least=0))
POOL = [noise(40_000, n) for n in range(20)]


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alive: dict[bytes, same.Tree] = {}
        repositories.create(folder, volume_size=320 * KiB, chunks=CHUNKS)
        self.anchor = self._backup("", self._source("anchor", Random(0)))
        self.alive[self.anchor] = same.on_disk(folder / "source anchor")

    def _source(self, name: str, chance: Random) -> Path:
        source = self.folder / f"source {name}"
        source.mkdir(exist_ok=True)
        for n in range(8):
            (source / f"{n}").write_bytes(b"".join(chance.sample(POOL, chance.choice((1, 2, 4)))))
        return source

    def _backup(self, client: str, source: Path) -> bytes:
        with open_plainly(self.folder, client) as repository:
            options = BackupOptions((os.fsencode(source),), host=b"host", user=b"user")
            made = backup(repository, options, Watch()).snapshot
        assert made is not None
        return made.id

    def _saving(self, client: str, source: Path) -> None:
        """Says what was saved, as the last thing it does."""
        (self.folder / f"{source.name}.saved").write_bytes(self._backup(client, source))

    def _prune(self, client: str) -> None:
        with open_plainly(self.folder, client) as repository:
            try:
                prune(repository, NONE, Watch())
            except RepositoryLocked:
                return

    def _forget(self, chosen: bytes) -> None:
        with open_plainly(self.folder, "f") as repository:
            repository.events.forget([chosen])

    def _read(self) -> None:
        with open_plainly(self.folder, "r") as repository:
            (shown,) = (s for s in repository.snapshots() if s.id == self.anchor)
            self._compare(repository, shown.record.root, self.anchor)

    def _compare(self, repository: Repository, root: object, key: bytes) -> None:
        found = same.in_snapshot(repository, root)  # type: ignore[arg-type]
        assert digests(found) == digests(self.alive[key])

    def round(self, chance: Random) -> tuple[int, int]:
        """(killed, stopped)"""
        sources = [self._source(name, chance) for name in ("a", "b")]
        trees = {source: same.on_disk(source) for source in sources}
        gone = [key for key in self.alive if key != self.anchor]
        forgotten = chance.choice(gone) if gone else None
        works: dict[str, Callable[[], None]] = {
            "backup a": lambda: self._saving("a", sources[0]),
            "backup b": lambda: self._saving("b", sources[1]),
            "prune": lambda: self._prune("a"),
            "another prune": lambda: self._prune("c"),
            "read": self._read,
        }
        if forgotten is not None:
            works["forget"] = lambda: self._forget(forgotten)
            self._was = self.alive.pop(forgotten)
        names = list(works)
        chance.shuffle(names)
        children = {}
        for name in names:
            children[name] = fork(works[name])
            time.sleep(chance.random() * 0.05)
        killed, stopped = set(), set()
        for _ in range(chance.randrange(4)):
            time.sleep(chance.random() * 0.15)
            name = chance.choice(names)
            if name not in killed:
                if chance.random() < 0.5:
                    killed.add(name)
                    os.kill(children[name], signal.SIGKILL)
                else:
                    stopped.add(name)
                    os.kill(children[name], signal.SIGSTOP)
        time.sleep(0.3)
        for name in stopped - killed:
            os.kill(children[name], signal.SIGCONT)
        for name, child in children.items():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0 or (name in killed and status == -signal.SIGKILL), f"{name}: {status}"
        for source in sources:
            said = source.with_name(f"{source.name}.saved")
            if said.exists():
                self.alive[said.read_bytes()] = trees[source]
                said.unlink()
        return len(killed), len(stopped)

    def sound(self) -> None:
        with open_plainly(self.folder, "stranger") as repository:
            shown = {s.id: s for s in repository.snapshots()}
            assert self.alive.keys() <= shown.keys(), "a committed snapshot is gone"
            for key in self.alive:
                self._compare(repository, shown[key].record.root, key)
            result = check(repository)
            assert result.ok, result.problems


def digests(tree: same.Tree) -> set[str | None]:
    return {seen.digest for seen in tree.values() if seen.digest}


def fork(work: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads of the test runner
        child = os.fork()
    if child == 0:
        status = 1
        faulthandler.disable()
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  this is the end of the process
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def test_processes_under_signals(tmp_path: Path, rounds: Rounds) -> None:
    home = Home(tmp_path)
    killed = stopped = 0
    with mounted(tmp_path) as top, open_plainly(tmp_path, "") as repository:
        (anchor,) = (s for s in repository.snapshots() if s.id == home.anchor)
        shown = top / "ids" / anchor.short / str(tmp_path / "source anchor")[1:]
        for seed in rounds.seeds(8):
            died, stood = home.round(Random(seed))
            killed, stopped = killed + died, stopped + stood
            assert digests(same.on_disk(shown)) == digests(home.alive[home.anchor])
            home.sound()
    assert killed
    assert stopped
    for _ in range(2):
        home._prune("a")
    with open_plainly(tmp_path, "a") as repository:
        plan = prune(repository, replace(NONE, dry_run=True), Watch()).plan
        assert (plan.remove, plan.rewrite) == ([], []), "what is dead is still there"
    assert [name for name in os.listdir(tmp_path / "repository/locks") if name.endswith(".lease")] == []


def test_two_prunes_and_two_backups_at_the_same_moment(tmp_path: Path, rounds: Rounds) -> None:
    """Both backups commit; of the prunes one works and the other is refused, or both work one after the other."""
    home = Home(tmp_path)
    for seed in rounds.seeds(3):
        chance = Random(seed)
        sources = [home._source(name, chance) for name in ("a", "b")]
        trees = [same.on_disk(source) for source in sources]
        children = [
            fork(lambda: home._saving("a", sources[0])),  # noqa: B023
            fork(lambda: home._saving("b", sources[1])),  # noqa: B023
            fork(lambda: home._prune("a")),
            fork(lambda: home._prune("c")),
        ]
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for source, tree in zip(sources, trees, strict=True):
            home.alive[source.with_name(f"{source.name}.saved").read_bytes()] = tree
        home.sound()


def test_a_frozen_backup_keeps_prune_from_removing_and_commits_when_it_wakes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with open_plainly(tmp_path, "a") as repository:
        repository.events.forget([home.anchor])  # all that the backup would rely on is dead
    source = home._source("anchor", Random(0))
    os.utime(source / "0")
    tree = same.on_disk(source)
    ready, go = os.pipe(), os.pipe()

    def work() -> None:
        class Waits(Watch):
            def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
                if name == "finish":
                    os.write(ready[1], b"!")
                    os.read(go[0], 1)

        with open_plainly(home.folder, "a") as repository:
            made = backup(
                repository, BackupOptions((os.fsencode(source),), host=b"host", user=b"user"), Waits()
            ).snapshot
            assert made is not None
            (home.folder / "saved").write_bytes(made.id)

    child = fork(work)
    os.read(ready[0], 1)
    os.kill(child, signal.SIGSTOP)
    with open_plainly(tmp_path, "c") as repository:
        result = prune(repository, NONE, Watch())
    assert [writer.process for writer in result.in_the_way] == [child]
    assert result.bytes_removed == 0
    os.kill(child, signal.SIGCONT)
    os.write(go[1], b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    home.alive = {(tmp_path / "saved").read_bytes(): tree}
    home._prune("c")
    home.sound()
    for fd in (*ready, *go):
        os.close(fd)


def test_a_prune_that_waits_lets_the_running_backup_end(tmp_path: Path) -> None:
    home = Home(tmp_path)
    other = home._backup("b", home._source("b", Random(1)))
    with open_plainly(tmp_path, "a") as repository:
        repository.events.forget([other])

    def slow() -> None:
        with open_plainly(home.folder, "b") as repository, repository.writing():
            time.sleep(1)

    child = fork(slow)
    while not any(name.endswith(".lease") for name in os.listdir(tmp_path / "repository/locks")):
        time.sleep(0.01)
    with open_plainly(tmp_path, "c") as repository:
        result = prune(repository, replace(NONE, patience=30), Watch())
    assert result.in_the_way == []
    assert result.bytes_removed > 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    home.sound()


def test_a_repository_error_is_none_of_the_prunes(tmp_path: Path) -> None:
    """Whatever a reader meets is said as an error of the repository, never as anything else: here, what is forgotten and gone."""
    home = Home(tmp_path)
    with open_plainly(tmp_path, "r") as reader:
        (shown,) = reader.snapshots()
        with open_plainly(tmp_path, "a") as repository:
            repository.events.forget([home.anchor])
        home._prune("a")
        with pytest.raises(RepositoryError):
            same.in_snapshot(reader, shown.record.root)
        assert reader.snapshots() == []
