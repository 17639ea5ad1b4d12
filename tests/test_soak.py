"""A repository against a dict: backup, forget, undelete, prune, key change, check, the mount's view, lost indexes, in any
order."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from snapfs.fs.entry import ROOT
from snapfs.fs.view import View
from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import SnapshotNotFound, WrongPassword
from snapfs.repo.model import KiB
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Scatter, Unused
from snapfs.repo.repository import Repository
from support import repositories, same
from support.scene import folder
from support.sources import CHUNKS, Watch
from support.torture import Rounds
from support.trees import noise

pytestmark = pytest.mark.torture
POOL = [b"", b"small" * 10, *(noise(size, size) for size in (300, 5_000, 30_000, 70_000, 150_000))]
CLIENTS = ("one", "two")
SCATTER = (Scatter(None), Scatter(0, least=0), Scatter(0.3, least=0))
LIMITS = (Unused(bytes=0), Unused(share=0.05), Unused(share=0.5), Unused())
tried = 0
"""Sequences so far."""


class Soak(RuleBasedStateMachine):
    template: Path

    def __init__(self) -> None:
        super().__init__()
        global tried
        tried += 1
        self.home = Path(tempfile.mkdtemp(prefix="snapfs-test-", dir=folder()))
        shutil.copytree(self.template / "repository", self.home / "repository")
        self.source = self.home / "source"
        self.source.mkdir()
        self.alive: dict[bytes, same.Tree] = {}
        self.forgotten: dict[bytes, same.Tree] = {}
        """Those that no prune has had its turn with."""
        self.pruned: set[bytes] = set()
        self.password = repositories.PASSWORD
        self.clock = 0

    def teardown(self) -> None:
        try:
            for _ in range(2):
                with self.open("one") as repository:
                    prune(repository, PruneOptions(unused=Unused(bytes=0)), Watch())
            self.whole("one")
            self.whole("new")
        finally:
            shutil.rmtree(self.home, ignore_errors=True)

    def open(self, client: str) -> Repository:
        return Repository.open(
            str(self.home / "repository"), self.password,
            cache_dir=str(self.home / client / "cache"), state_dir=str(self.home / client / "state"),
        )  # fmt: skip

    def whole(self, client: str) -> None:
        with self.open(client) as repository:
            shown = {s.id: s for s in repository.snapshots()}
            assert shown.keys() == self.alive.keys()
            for key, tree in self.alive.items():
                node = repository.trees.resolve(shown[key].record.root, os.fsencode(self.source))
                assert same.differences(tree, same.in_snapshot(repository, node)) == []
            result = check(repository, read_data=True)
            assert result.ok, result.problems

    # ---- what can happen -----------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from("abcdefgh"),
        content=st.integers(0, len(POOL) - 1),
        more=st.integers(0, len(POOL) - 1),
    )
    def write(self, name: str, content: int, more: int) -> None:
        (self.source / name).write_bytes(POOL[content] + POOL[more])

    @rule(name=st.sampled_from("abcdefgh"))
    def delete(self, name: str) -> None:
        (self.source / name).unlink(missing_ok=True)

    @rule(client=st.sampled_from(CLIENTS), force=st.booleans())
    def backup(self, client: str, force: bool) -> None:
        self.clock += 1
        with self.open(client) as repository:
            options = BackupOptions(
                (os.fsencode(self.source),), host=b"host", user=b"user", force=force, time=self.clock * 10**9
            )
            made = backup(repository, options, Watch()).snapshot
        assert made is not None
        self.alive[made.id] = same.on_disk(self.source)

    @precondition(lambda self: self.alive)
    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def forget(self, client: str, data: Any) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.alive)))
        with self.open(client) as repository:
            repository.events.forget([chosen])
        self.forgotten[chosen] = self.alive.pop(chosen)

    @precondition(lambda self: self.forgotten)
    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def undelete(self, client: str, data: Any) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.forgotten)))
        with self.open(client) as repository:
            assert [s.id for s in repositories.revive(repository, [chosen])] == [chosen]
        self.alive[chosen] = self.forgotten.pop(chosen)

    @precondition(lambda self: self.pruned)
    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def undelete_what_was_pruned(self, client: str, data: Any) -> None:
        """It is refused, or whole: others may need all that it needs."""
        chosen = data.draw(st.sampled_from(sorted(self.pruned)))
        with self.open(client) as repository:
            try:
                (back,) = repositories.revive(repository, [chosen])
            except SnapshotNotFound:
                return
            node = repository.trees.resolve(back.record.root, os.fsencode(self.source))
            self.alive[chosen] = same.in_snapshot(repository, node)
        self.pruned.discard(chosen)

    @rule(
        client=st.sampled_from(CLIENTS),
        limit=st.sampled_from(LIMITS),
        most=st.sampled_from((None, 400 * KiB)),
        scatter=st.sampled_from(SCATTER),
    )
    def prune(self, client: str, limit: Unused, most: int | None, scatter: Scatter) -> None:
        with self.open(client) as repository:
            said = prune(repository, PruneOptions(limit, most, scatter, dry_run=True), Watch()).plan
            before = self.size()
            result = prune(repository, PruneOptions(limit, most, scatter), Watch())
            assert result.plan == said
            assert result.freed == before - self.size()
            assert result.in_the_way == []
        self.pruned |= self.forgotten.keys()
        self.forgotten.clear()

    def size(self) -> int:
        repository = self.home / "repository"
        return sum(
            path.stat().st_size for kind in ("data", "trees") for path in (repository / kind).glob("??/*")
        )

    @rule(client=st.sampled_from(CLIENTS), word=st.binary(min_size=1, max_size=4))
    def change_password(self, client: str, word: bytes) -> None:
        with self.open(client) as repository:
            repository.slots.replace(word, cost=repositories.CHEAP)
        old, self.password = self.password, word
        if old != word:
            with pytest.raises(WrongPassword):
                Repository.open(
                    str(self.home / "repository"), old, cache_dir="/none", state_dir=str(self.home / "none")
                )

    @rule(client=st.sampled_from(CLIENTS))
    def lose_the_index(self, client: str) -> None:
        shutil.rmtree(self.home / client / "cache", ignore_errors=True)

    @rule(client=st.sampled_from(CLIENTS))
    def check(self, client: str) -> None:
        self.whole(client)

    @precondition(lambda self: self.alive)
    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def mount(self, client: str, data: Any) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.alive)))
        with self.open(client) as repository:
            view, inode = View(repository), ROOT
            for name in (
                b"ids",
                chosen.hex()[:8].encode(),
                *os.fsencode(self.source).strip(b"/").split(b"/"),
            ):
                entry = view.lookup(inode, name)
                assert entry is not None, name
                inode = entry.inode
            tree = self.alive[chosen]
            for path, seen in tree.items():
                if path:
                    entry = view.lookup(inode, path[1:])
                    assert entry is not None
                    assert entry.node.size == seen.size
                    content = view.read(entry.node, 0, seen.size or 0)
                    assert hashlib.sha256(content).hexdigest() == seen.digest


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # power cuts are the subject of test_crash_states


def test_soak(tmp_path: Path, rounds: Rounds) -> None:
    repositories.create(tmp_path, volume_size=320 * KiB, chunks=CHUNKS)
    Soak.template = tmp_path
    chosen = settings(
        max_examples=20 if rounds.long else 12, stateful_step_count=20, deadline=None, derandomize=not rounds.long, database=None,
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.normal,
    )  # fmt: skip
    for _ in rounds.seeds(1):
        before = tried
        run_state_machine_as_test(Soak, settings=chosen)
        rounds.count(tried - before - 1)
