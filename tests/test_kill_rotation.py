"""A change of keys killed, cut from power or failing at every call that changes something: it opens, nothing is lost, and run
again it is done."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from test_repo_kill import in_child
from test_repo_rotation import back_up

from snapfs.repo.check.engine import check
from snapfs.repo.errors import OldKeys, StorageError, WrongPassword
from support import repositories as repos
from support import same
from support.faults import DISK_ERRORS, KINDS, Calls, Cut, Die, Disk, Fail, each, since
from support.repositories import CHEAP, PASSWORD
from support.rotations import change_keys, opened
from support.torture import Rounds

pytestmark = pytest.mark.torture
OTHER, NEW = b"another", b"a new one"
PARTS = ("repository", "state", "cache")


class Change:
    """A repository with a snapshot and two passwords, put back to that state as often as needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "source").mkdir()
        (folder / "source/file").write_bytes(b"content" * 99)
        repos.create(folder)
        with repos.open_(folder) as repository:
            repository.slots.add(OTHER, cost=CHEAP)
        self.ids = [back_up(folder), back_up(folder)]
        with repos.open_(folder) as repository:
            repository.events.forget([self.ids.pop(0)])
        for part in PARTS:
            shutil.copytree(folder / part, folder / "saved" / part)

    def reset(self) -> None:
        for part in ("statenew", "cachenew"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        for part in PARTS:
            for entry in os.scandir(self.folder / part):
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
            shutil.copytree(self.folder / "saved" / part, self.folder / part, dirs_exist_ok=True)

    def work(self, say: object = None) -> None:
        change_keys(self.folder, PASSWORD, OTHER, new_password=NEW)

    def opening(self) -> list[bytes]:
        found = []
        for password in (NEW, OTHER, PASSWORD):
            with contextlib.suppress(WrongPassword), opened(self.folder, password):
                found.append(password)
        return found

    def sound(self, *, done: bool) -> None:
        passwords = self.opening()
        assert passwords == [NEW, OTHER] if done else OTHER in passwords, passwords
        assert NEW in passwords or PASSWORD in passwords
        for password in passwords:
            for machine in ("", "new"):
                with opened(self.folder, password, machine) as repository:
                    repository.refuse_rollback()
                    assert repository.events.load().problems == []
                    assert [s.id for s in repository.snapshots()] == self.ids
        # Backups work, or say what is to be done; what they say is saved stays.
        made = []
        for password in passwords:
            with contextlib.suppress(OldKeys):
                made.append(back_up(self.folder, password))
        for password in passwords:  # one of them finishes it
            kept = [word for word in passwords if word not in (password, PASSWORD)]
            with contextlib.suppress(OldKeys, WrongPassword):
                change_keys(self.folder, password, *kept, new_password=NEW)
                break
        else:
            raise AssertionError("nobody could finish it")
        with opened(self.folder, NEW) as repository:
            assert [s.id for s in repository.snapshots()] == [*self.ids, *made]
            assert repository.events.load().late == 0
            for snapshot in repository.snapshots():
                node = repository.trees.resolve(snapshot.record.root, os.fsencode(self.folder / "source"))
                assert (
                    same.differences(same.on_disk(self.folder / "source"), same.in_snapshot(repository, node))
                    == []
                )
            result = check(repository, read_data=True)
            assert result.ok, result.problems
            assert result.notes == []
        assert PASSWORD not in self.opening()
        back_up(self.folder, NEW)


@pytest.fixture(scope="module")
def change(tmp_path_factory: pytest.TempPathFactory) -> Change:
    return Change(tmp_path_factory.mktemp("change"))


def calls(change: Change) -> int:
    change.reset()
    counting = Calls(change.folder)
    with counting.installed():
        change.work()
    return len(counting.seen)


def test_killed_at_every_call(change: Change, rounds: Rounds) -> None:
    total = calls(change)
    assert total > 40, "is the seam still there?"
    for number in rounds.some(range(1, total + 1), 5):
        change.reset()
        status, _ = in_child(change.work, Calls(change.folder, each(KINDS, number), Die()))
        try:
            change.sound(done=status == 0)
        except Exception as error:
            raise AssertionError(f"killed at call {number} of {total}: {error!r}") from error


def test_cut_from_power_at_every_call(change: Change, rounds: Rounds) -> None:
    total = calls(change)
    for number in rounds.some(range(1, total + 1), 3):
        change.reset()
        disk = Disk(change.folder / "repository")
        seed = Random(number).randrange(3)
        status, _ = in_child(
            change.work, Calls(change.folder / "repository", each(KINDS, number), Cut(disk, seed), disk)
        )
        try:
            change.sound(done=status == 0)
        except Exception as error:
            raise AssertionError(f"cut at call {number} of {total}, seed {seed}: {error!r}") from error


@pytest.mark.parametrize("name", ["ENOSPC", "EIO"])
def test_failing_at_every_call(change: Change, rounds: Rounds, name: str) -> None:
    total = calls(change)
    for number in rounds.some(range(1, total + 1), 2):
        for when in (each, since):
            change.reset()
            failing = Calls(change.folder / "repository", when(KINDS, number), Fail(DISK_ERRORS[name]))
            done = True
            with failing.installed():
                try:
                    change.work()
                except StorageError:
                    done = False
            try:
                change.sound(done=done)
            except Exception as error:
                raise AssertionError(
                    f"{name} at call {number} of {total}, {when.__name__}: {error!r}"
                ) from error
