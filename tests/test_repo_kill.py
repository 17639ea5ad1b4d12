"""Killed, cut from power, or out of disk at every single call that changes something: nothing committed is ever lost.

A small workload (init; backup and forget on a repository that has snapshots) runs once for every system call it makes, and
dies at that call.  Afterwards, with no manual step: what had been committed reads back byte for byte, the next backup works
and reads back too, leftovers are swept, and `check` finds nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.errors import RepositoryError, RepositoryNotFound, SnapfsError
from snapfs.repo.model import KiB
from snapfs.repo.progress import Progress
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject
from support import faults, repositories, same
from support.faults import KILLED, KINDS, Calls, Cut, Delay, Die, Disk, Fail, each, since
from support.torture import Rounds
from support.trees import File, Name, Symlink, make, noise

CHUNKS = (16 * KiB, 64 * KiB, 256 * KiB)
VOLUME = 384 * KiB
Say = Callable[[str], None]


class Bench:
    """A repository with two snapshots of a source that has changed since, put back to that state as often as needed."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        self.source = make(source, {
            b"big": File(noise(500_000, 1)),
            b"kept": File(noise(100_000, 2)),
            b"small/a": File(b"a" * 100),
            b"small/b": File(b"b" * 100, xattrs={"user.large": noise(2000, 3)}),
            b"small/link": Symlink(target=b"a"),
            b"small/name": Name(of=b"small/a"),
        })  # fmt: skip
        repositories.create(folder, volume_size=VOLUME, chunks=CHUNKS)
        before = same.on_disk(self.source)
        self.oldest = self.snapshot().id
        self.committed = {self.oldest: before, self.snapshot().id: before}
        make(
            self.source,
            {b"big": File(noise(450_000, 1) + noise(200_000, 4)), b"new/c": File(noise(60_000, 5))},
        )
        (self.source / "small/a").unlink()
        self.now = same.on_disk(self.source)
        self._saved = folder / "saved"
        for part in ("repository", "cache", "state"):
            shutil.copytree(folder / part, self._saved / part)

    def snapshot(self) -> repositories.StoredSnapshot:
        return repositories.snapshot(self.folder, self.source)

    def reset(self) -> None:
        """Contents only: the folder itself stays, so that the repository is still at the same place."""
        for part in ("repository", "cache", "state"):
            for entry in os.scandir(self.folder / part):
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
            shutil.copytree(self._saved / part, self.folder / part, dirs_exist_ok=True)

    def work(self, say: Say) -> None:
        """What is interrupted: `say` is called when a step was reported as done."""
        say("backup " + self.snapshot().id.hex())
        with repositories.open_(self.folder) as repository:
            say("forgetting")
            repository.events.forget([self.oldest])
            say("forgot")

    def read(self, repository: repositories.Repository, snapshot: repositories.StoredSnapshot) -> same.Tree:
        return same.in_snapshot(
            repository, repository.trees.resolve(snapshot.record.root, os.fsencode(self.source))
        )

    def sound(self, said: list[str]) -> None:
        """Everything that must hold after `work` was interrupted, having said so much."""
        must = dict(self.committed)
        may = {self.oldest} if "forgetting" in said else set()
        if "forgot" in said:
            del must[self.oldest]
        must |= {bytes.fromhex(word.split()[1]): self.now for word in said if word.startswith("backup")}
        with repositories.open_(self.folder) as repository:
            assert repository.events.load().problems == []
            shown = {s.id: s for s in repository.snapshots()}
            assert must.keys() - may <= shown.keys(), "a committed snapshot is gone"
            for key, snapshot in shown.items():
                assert same.differences(must.get(key, self.now), self.read(repository, snapshot)) == []
        new = self.snapshot()
        with repositories.open_(self.folder) as repository:
            assert same.differences(self.now, self.read(repository, new)) == []
            assert os.listdir(self.folder / "repository/tmp") == [], "leftovers were not swept"
            result = check(repository, read_data=True)
            assert result.ok, result.problems


def in_child(work: Callable[[Say], None], calls: Calls) -> tuple[int, list[str]]:
    """Run in a process of its own; its exit status and what it said."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads of the test runner
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ours)
            with calls.installed():
                work(lambda word: os.write(theirs, word.encode() + b"\n") and None)
            status = 0
        except BaseException:  # noqa: BLE001  this is the end of the process
            calls.stand_still()
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    os.close(theirs)
    with open(ours) as pipe:
        said = pipe.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


Turns = Iterable[int]


def one_in(rounds: Rounds, step: int) -> Turns:
    """Every call in the long form; in the suite one in so many: the same calls are looked at in other tests, in other ways."""
    for number in count(1, 1 if rounds.long else step):
        yield number
        rounds.count()


def until_over(run: Callable[[int], int], at_least: int, turns: Turns | None = None) -> None:
    """Call `run` with 1, 2, 3... until it answers 0: there was no such call any more."""
    for number in turns or count(1):
        try:
            status = run(number)
        except AssertionError as error:
            raise AssertionError(f"at call {number}: {error}") from error
        if status == 0:
            assert number > at_least, f"only {number} calls were seen: is the seam still there?"
            return
        assert status == KILLED


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        yield Bench(Path(folder), tmp_path_factory.mktemp("kill") / "source")


def killed(bench: Bench, number: int, what: faults.Fault, disk: Disk | None) -> int:
    bench.reset()
    status, said = in_child(bench.work, Calls(bench.folder, each(KINDS, number), what, disk))
    bench.sound(said)
    return status


def kill_everywhere(
    bench: Bench, fault: Callable[[int], tuple[faults.Fault, Disk | None]], turns: Turns | None = None
) -> None:
    until_over(lambda number: killed(bench, number, *fault(number)), 40, turns)


def test_killed_at_every_call(bench: Bench) -> None:
    kill_everywhere(bench, lambda number: (Die(), None))


def cut_by(seed: Callable[[int], int], bench: Bench) -> Callable[[int], tuple[faults.Fault, Disk | None]]:
    def fault(number: int) -> tuple[faults.Fault, Disk | None]:
        disk = Disk(bench.folder / "repository")
        return Cut(disk, seed(number)), disk

    return fault


@pytest.mark.torture
@pytest.mark.parametrize(
    ("seed", "step"), [(lambda n: 0, 1), (lambda n: n, 3)], ids=["all is lost", "some is lost"]
)
def test_power_cut_at_every_call(bench: Bench, rounds: Rounds, seed: Callable[[int], int], step: int) -> None:
    kill_everywhere(bench, cut_by(seed, bench), one_in(rounds, step))


@pytest.mark.parametrize(
    ("owner", "method"),
    [(LocalObject, "sync"), (LocalStorage, "sync_names")],
    ids=["fsync of the file", "fsync of the folder"],
)
def test_the_power_cut_notices_a_missing_fsync(
    bench: Bench, owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, lambda self: None)
    bench.reset()
    with Calls(bench.folder).installed() as calls:
        bench.work(lambda word: None)
    fault = cut_by(lambda n: 0, bench)
    backwards = range(len(calls.seen) + 1, 0, -1)  # most is at stake at the end
    with pytest.raises((AssertionError, SnapfsError)):
        until_over(lambda number: killed(bench, number, *fault(number)) or KILLED, 0, backwards)


@pytest.mark.torture
def test_killed_at_every_call_and_then_cut_from_power(bench: Bench, tmp_path: Path, rounds: Rounds) -> None:
    """What a dead process had named but not made durable, the next one must not simply rely on."""
    page = tmp_path / "page"

    def run(number: int) -> int:
        bench.reset()
        disk = Disk(bench.folder / "repository")
        status, said = in_child(bench.work, Calls(bench.folder, each(KINDS, number), Die(disk, page), disk))
        if status == KILLED:

            def next_run(say: Say) -> None:
                say("backup " + bench.snapshot().id.hex())
                disk.cut(0)

            disk.load(page)
            done, said_next = in_child(next_run, Calls(bench.folder, disk=disk))
            assert done == 0
            said += said_next
        bench.sound(said)
        return status

    until_over(run, 40, one_in(rounds, 3))


def test_killed_again_and_again(bench: Bench) -> None:
    """Never put back in order in between: what one death leaves behind is what the next run starts from."""
    bench.reset()
    chance = Random(20)
    said: list[str] = []
    for _ in range(25):
        number = chance.randrange(1, 60)
        (bench.source / "small/b").write_bytes(noise(5000, number))
        in_child(
            lambda say: say("backup " + bench.snapshot().id.hex()),
            Calls(bench.folder, each(KINDS, number), Die()),
        )
    make(bench.source, {b"small/b": File(b"b" * 100)})
    bench.now = same.on_disk(bench.source)
    with repositories.open_(bench.folder) as repository:
        assert len(repository.snapshots()) > 2, "no run survived: the test shows nothing"
        for snapshot in repository.snapshots():
            if snapshot.id in bench.committed:
                assert same.differences(bench.committed[snapshot.id], bench.read(repository, snapshot)) == []
            else:
                bench.read(repository, snapshot)
    new = bench.snapshot()
    with repositories.open_(bench.folder) as repository:
        assert same.differences(bench.now, bench.read(repository, new)) == []
        assert os.listdir(bench.folder / "repository/tmp") == []
        assert check(repository, read_data=True).ok
    assert said == []


def test_init_killed_at_every_call(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {b"a": File(noise(10_000))})

    def run(number: int) -> int:
        folder = tmp_path / str(number)
        folder.mkdir()

        def init(say: Say) -> None:
            repositories.create(folder)
            say("made")

        status, said = in_child(init, Calls(folder, each(KINDS, number), Die()))
        try:
            repositories.open_(folder).close()
        except RepositoryNotFound:
            assert not said
            repositories.create(folder)
        new = repositories.snapshot(folder, source)
        with repositories.open_(folder) as repository:
            found = same.in_snapshot(
                repository, repository.trees.resolve(new.record.root, os.fsencode(source))
            )
            assert same.differences(same.on_disk(source), found) == []
            assert os.listdir(folder / "repository/tmp") == []
            assert check(repository, read_data=True).ok
            assert len(repository.slots.notes()) == 1
        shutil.rmtree(folder)
        return status

    until_over(run, at_least=15)


class Errors(Progress):
    """Remembers source errors: a failing repository must never look like one."""

    def __init__(self) -> None:
        self.found: list[SnapfsError] = []

    def error(self, error: SnapfsError) -> None:
        self.found.append(error)


def failing(
    bench: Bench, when: Callable[[int, str], bool], number: int
) -> tuple[Calls, RepositoryError | None]:
    """A backup with failing calls: what was hit, and the one error that came of it."""
    bench.reset()
    calls, watch, error = Calls(bench.folder / "repository", when, Fail(number)), Errors(), None
    with calls.installed():
        try:
            with repositories.open_(bench.folder) as repository:
                before = len(repository.snapshots())
                repositories.backup(
                    repository,
                    repositories.BackupOptions((os.fsencode(bench.source),), b"host", b"user"),
                    watch,
                )
        except RepositoryError as e:
            error = e
    assert watch.found == [], "an error of the repository was taken for one of the source"
    if error is not None:
        assert error.exit_code == 1
        assert os.strerror(number) in str(error)
        assert "\n" not in str(error)
    with repositories.open_(bench.folder) as repository:
        made = len(repository.snapshots()) - before
    assert made <= 1
    assert made or error
    return calls, error


@pytest.mark.torture
def test_disk_error_at_every_call(bench: Bench, rounds: Rounds) -> None:
    """In the suite one error after the other, in the long form each at each."""
    errors = list(faults.DISK_ERRORS.values())
    for first in range(len(errors) if rounds.long else 1):
        disk_errors(bench, errors[first:] + errors[:first], one_in(rounds, 1))


def disk_errors(bench: Bench, errors: list[int], turns: Turns) -> None:
    kinds = ("create", "write", "fsync", "rename", "mkdir")

    def run(call: int) -> int:
        number = errors[call % len(errors)]
        calls, error = failing(bench, each(kinds, call), number)
        if calls.hits and calls.hits != ["fsync"]:  # a volume whose fsync failed is written again, elsewhere
            assert error is not None
        bench.sound([])
        return KILLED if calls.hits else 0

    until_over(run, 25, turns)


@pytest.mark.parametrize("kind", ["create", "write", "fsync", "rename", "mkdir"])
def test_disk_that_stays_broken(bench: Bench, kind: str) -> None:
    """From the second call on, all of a kind fail: one error, no snapshot, and the next run is fine."""
    calls, error = failing(bench, since((kind,), 2), faults.DISK_ERRORS["ENOSPC"])
    assert (
        calls.hits or kind == "mkdir"
    )  # volumes have random names: it is just possible that all their folders are there
    assert (error is not None) == bool(calls.hits)
    bench.sound([])


def test_failed_fsync_is_retried_once_on_another_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, str]] = []
    real = LocalObject.sync

    def sync(self: LocalObject) -> None:
        fd = self._fd
        synced.append((os.fstat(fd).st_ino, os.readlink(f"/proc/self/fd/{fd}")))
        real(self)

    monkeypatch.setattr(LocalObject, "sync", sync)
    calls, error = failing(bench, each(("fsync",), 1), faults.DISK_ERRORS["EIO"])
    assert calls.hits == ["fsync"]
    assert error is None
    assert len(set(synced)) == len(synced), "the same file was fsynced again after its fsync had failed"
    bench.sound([])


def test_slow_calls_change_nothing(bench: Bench) -> None:
    bench.reset()
    chance = Random(7)
    calls = Calls(bench.folder, lambda n, kind: chance.random() < 0.2, Delay(0.01))
    with calls.installed():
        bench.snapshot()
    assert len(calls.hits) > 5
    bench.sound([])


@pytest.fixture(autouse=True)
def _as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no real power is cut here
    yield
    make(bench.source, {b"small/b": File(b"b" * 100, xattrs={"user.large": noise(2000, 3)})})
    bench.now = same.on_disk(bench.source)
