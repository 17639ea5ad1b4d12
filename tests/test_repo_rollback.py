"""A repository that was put back to an older state, or lost an event, is noticed; a copy elsewhere is a copy."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from pathlib import Path

import pytest

from snapfs.repo import client as client_module
from snapfs.repo.check.engine import check
from snapfs.repo.errors import RolledBack
from snapfs.repo.events import Events
from snapfs.repo.repository import Repository
from snapfs.repo.storage.local import LocalStorage
from support import repositories
from support.cli import Cli
from support.sources import Desk, Watch
from support.torture import Rounds
from support.trees import File


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class History(Desk):
    """Four snapshots, a tag and a forget; `states` holds the repository as it was after each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {b"file": File(b"x" * 100)})
        self.place = folder / "repository"
        self.states: list[Path] = []
        self._keep()
        for turn in range(4):
            (self.source / "file").write_bytes(b"%d" % turn * 200)
            self.snapshot()
            self._keep()
        with self.open() as repository:
            chosen = repository.snapshots()[1]
            repository.events.set_tags(chosen.id, [b"tag"])
        self._keep()
        with self.open() as repository:
            repository.events.forget([chosen.id])
        self._keep()

    def _keep(self) -> None:
        self.states.append(self.folder / f"state {len(self.states)}")
        shutil.copytree(self.place, self.states[-1])

    def put_back(self, state: Path, *, same_folder: bool = True) -> None:
        """`same_folder`: as rsync --delete does; otherwise a copy takes the place of the folder."""
        if same_folder:
            for entry in self.place.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        else:
            self.place.rename(self.folder / "moved away")
        shutil.copytree(state, self.place, dirs_exist_ok=True)

    def events(self) -> list[Path]:
        """From the oldest to the newest."""
        with self.open() as repository:
            repository.events.load()
            opened = repository.events._opened
        names = sorted(
            opened, key=lambda name: opened[name].sequence if not isinstance(opened[name], str) else 0
        )
        return [self.place / "events" / name.hex() for name in names]


def accepted(desk: Desk, *, accept: bool = False) -> bool:
    with desk.open() as repository:
        try:
            repository.refuse_rollback(accept)
        except RolledBack:
            return False
        return True


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


@pytest.mark.parametrize("same_folder", [True, False])
def test_every_earlier_state_is_a_rollback_until_it_is_accepted(tmp_path: Path, same_folder: bool) -> None:
    made = History(tmp_path)
    assert accepted(made)
    state, cache = tmp_path / "state", tmp_path / "cache"
    shutil.copytree(state, tmp_path / "state before")
    for number, earlier in enumerate(made.states[:-1]):
        shutil.rmtree(tmp_path / "moved away", ignore_errors=True)
        shutil.rmtree(state)
        shutil.copytree(tmp_path / "state before", state)
        made.put_back(earlier, same_folder=same_folder)
        for _ in range(2):
            assert not accepted(made), f"state {number}"
            with made.open() as repository:
                result = check(repository)
                assert result.only_rolled_back, result.problems
        assert accepted(made, accept=True)
        assert accepted(made), "what was accepted is remembered"
        with made.open() as repository:
            assert check(repository).ok
        made.put_back(made.states[-1])
        assert accepted(made), "the newest state is right as well"
        made.put_back(earlier)
        assert not accepted(made), "and once it was there, the older one is a rollback again"
        if number % 2:
            shutil.rmtree(cache)  # no proof is kept there


@pytest.mark.parametrize("which", range(7))
def test_any_event_that_is_deleted_is_missed(history: History, which: int) -> None:
    path = history.events()[which]
    kept = path.read_bytes()
    path.unlink()
    assert not accepted(history)
    path.write_bytes(kept)
    assert accepted(history), "it is back"
    path.unlink()
    assert accepted(history, accept=True)
    assert accepted(history)
    history.snapshot()
    assert accepted(history), "later events stand on what was accepted"
    path.write_bytes(kept)
    assert accepted(history)
    path.unlink()
    assert not accepted(history), "it was there again, so its loss is news"


def test_all_events_deleted(history: History) -> None:
    for path in history.events():
        path.unlink()
    assert not accepted(history)
    shutil.rmtree(history.folder / "state")
    assert not accepted(history), "a stranger sees that, too"
    assert accepted(history, accept=True)
    assert accepted(history)
    history.put_back(history.states[-1])  # the second reader has no word for a folder without events


@pytest.mark.parametrize("harm", ["lost", "empty", "flip", "cut", "noise"])
def test_without_its_state_file_this_is_a_new_client_and_that_is_said(history: History, harm: str) -> None:
    (path,) = (history.folder / "state").glob("*/client")
    before = path.read_bytes()
    if harm == "lost":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": before[:-1],
                "noise": os.urandom(99),
                "flip": _flipped(before, len(before) - 9),
            }[harm]
        )
    history.put_back(history.states[2])
    watch = Watch()
    with history.open(progress=watch) as repository:
        repository.refuse_rollback()
        new = repository.client.id
    (notice,) = watch.notices
    assert ("first time" if harm == "lost" else "new client") in notice
    assert new not in before
    watch = Watch()
    with history.open(progress=watch) as repository:
        repository.refuse_rollback()
        assert repository.client.id == new
    assert watch.notices == [], "said once"
    history.put_back(history.states[1])
    assert not accepted(history), "and from then on a rollback is noticed again"


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_a_state_file_that_reads_wrong_once_is_no_damaged_one(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong bit on the way from the disk: what is taken for damaged is written over, and lost for good."""
    with history.open() as repository:
        own = repository.client.id
    wrong = 1

    class Wrong(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:  # type: ignore[override]
            nonlocal wrong
            data, wrong = super().read(size), wrong - 1
            return data if wrong < 0 else _flipped(data, len(data) - 9)

    monkeypatch.setattr(client_module, "open", Wrong, raising=False)
    with history.open() as repository:
        assert wrong < 0, "or this shows nothing"
        assert (repository.client.was_damaged, repository.client.id) == (False, own)


@pytest.mark.torture
def test_every_flip_in_the_state_file_makes_a_new_client_and_never_a_false_alarm(
    history: History, rounds: Rounds
) -> None:
    """Nor does it make another client's id, which would fork that client's chain."""
    (path,) = (history.folder / "state").glob("*/client")
    before = path.read_bytes()
    with history.open() as repository:
        own = repository.client.id
    for at in rounds.some(range(len(before)), 40):
        path.write_bytes(_flipped(before, at))
        with history.open() as repository:
            repository.refuse_rollback()
            assert repository.client.was_damaged
            assert repository.client.id != own


def test_a_state_file_of_the_first_versions_is_read(history: History) -> None:
    (path,) = (history.folder / "state").glob("*/client")
    path.write_bytes(path.read_bytes()[47:])
    history.put_back(history.states[1])
    assert not accepted(history)


def test_a_copy_at_another_place_is_a_copy(history: History, tmp_path: Path) -> None:
    """An old one, even; and from its first use on it has a memory of its own."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(history.states[2], copy)

    def open_(watch: Watch) -> Repository:
        return Repository.open(
            str(copy), repositories.PASSWORD, cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "state"),
            progress=watch,
        )  # fmt: skip

    watch = Watch()
    with open_(watch) as repository:
        repository.refuse_rollback()
        assert len(repository.snapshots()) == 2
    assert "first time" in watch.notices[0]
    next(iter(sorted((copy / "events").iterdir(), key=lambda path: -path.stat().st_mtime_ns))).unlink()
    with open_(Watch()) as repository, pytest.raises(RolledBack):
        repository.refuse_rollback()
    assert accepted(history), "the original is what it was"


def test_a_folder_that_takes_the_place_of_another_and_has_all_that_was_seen(history: History) -> None:
    history.put_back(history.states[-1], same_folder=False)
    watch = Watch()
    with history.open(progress=watch) as repository:
        repository.refuse_rollback()
    assert watch.notices == []


def test_two_clients(history: History, tmp_path: Path) -> None:
    """Each remembers what it has seen: one sees that the other's events are gone only if it ever saw them."""
    others = tmp_path / "state of another"

    def as_other(name: str) -> None:
        os.rename(tmp_path / "state", tmp_path / "mine")
        if others.exists():
            os.rename(others, tmp_path / "state")
        assert accepted(history), name
        history.snapshot()
        os.rename(tmp_path / "state", others)
        os.rename(tmp_path / "mine", tmp_path / "state")

    as_other("before it saw anything")
    own = set(history.events())
    assert accepted(history)
    as_other("again")
    newest = set(history.place.glob("events/*")) - own
    for path in newest:
        path.unlink()
    assert accepted(history), "it never saw that one"
    os.rename(tmp_path / "state", tmp_path / "mine")
    os.rename(others, tmp_path / "state")
    assert not accepted(history), "who wrote it did"


def test_two_processes_of_one_client_lose_nothing_that_either_saw(history: History) -> None:
    """One that read the state file before another wrote to it must not write an older memory over it."""
    with history.open() as slow:
        before = {path.name for path in history.place.glob("events/*")}
        history.snapshot()
        slow.client.remember(slot="another")
    for name in {path.name for path in history.place.glob("events/*")} - before:
        (history.place / "events" / name).unlink()
    assert not accepted(history)


def test_an_event_that_a_growing_list_passed_over_is_no_missing_one(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may publish while the folder is read: it may show an event and not the one before."""
    real, turns = LocalStorage.list, itertools.count()
    hidden = history.events()[3].name

    def listing(self: LocalStorage, folder: str):  # type: ignore[no-untyped-def]
        first = folder == "events" and next(turns) == 0
        return ((name, size) for name, size in real(self, folder) if not (first and name.endswith(hidden)))

    monkeypatch.setattr(LocalStorage, "list", listing)
    with history.open() as repository:
        assert repository.events.load().missing == {}


def test_what_was_published_meanwhile_is_no_reason_to_forget_what_is_missing(history: History) -> None:
    """Accepting is for what is missing now, not for what goes later."""
    first, *_, last = history.events()
    first.unlink()
    assert accepted(history, accept=True)
    last.unlink()
    assert not accepted(history)


def test_every_command_says_it_with_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    (cli.source / "a").write_text("one")
    first = cli.snapshot()
    before = set((cli.repo / "events").iterdir())
    cli.snapshot("--tag", "second")
    for path in set((cli.repo / "events").iterdir()) - before:
        path.unlink()
    (tmp_path / "past").mkdir()
    commands: list[list[str]] = [
        ["snapshots"], ["backup", str(cli.source)], ["ls", "latest"], ["find", "a"], ["stats"], ["check"],
        ["diff", first, "latest"], ["restore", "latest", "-t", str(tmp_path / "back")], ["dump", "latest", "/"],
        ["mount", str(tmp_path / "past")], ["tag", "--add", "x", "latest"], ["forget", "--yes", "latest"],
        ["key", "list"], ["key", "add", "--new-password-file", "x"], ["repair", "index"],
    ]  # fmt: skip
    (tmp_path / "x").write_text("another")
    for args in commands:
        done = cli(*args)
        assert done.code == 25, (args, done)
        if args != ["check"]:
            assert done.err.count("\n") == 1, done
            assert "--accept-rollback" in done.err
            assert "older state" in done.err
    done = cli("--json", "ls", "latest")
    assert '"code": 25' in done.err
    cli("snapshots", "--accept-rollback").ok()
    for args in (["snapshots"], ["backup", str(cli.source)], ["check"]):
        done = cli(*args).ok()
        assert "missing" not in done.err


def test_a_rollback_below_a_live_process_is_said(history: History) -> None:
    """A mount looks at the events again and again."""
    watch = Watch()
    with history.open(progress=watch) as repository:
        assert len(repository.snapshots()) == 3
        history.put_back(history.states[2])
        assert isinstance(repository.events, Events)
        assert len(repository.snapshots()) == 2
        assert any("older state" in notice for notice in watch.notices)
