"""Damage of every kind to a whole small repository: `check` finds it and names the files, and nothing wrong is ever shown.

The repository is so small that all of its bits can be flipped one after another; the suite takes a sample of them.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.repo import salvage
from support import repositories
from support.micro import Micro
from support.readable import flip
from support.torture import Rounds

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def micro() -> Iterator[Micro]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        yield Micro(Path(folder))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(salvage, "_TRIES", 2000)


def test_the_judge_sees(micro: Micro) -> None:
    """That a sound repository passes, and one whose check looks away does not."""
    micro.reset(True)
    micro.judge("sound", restored=True, found=False)
    with pytest.raises(AssertionError, match="not found"):
        micro.judge("sound")


def test_every_bit(micro: Micro, rounds: Rounds) -> None:
    bits = [(path, bit) for path in micro.objects for bit in range(8 * path.stat().st_size)]
    assert len(bits) > 150_000
    for path, bit in rounds.some(bits, 120):
        # Which bit of a byte it is must not decide what is looked at.
        micro.reset(keep_index=bool((bit ^ bit >> 3) & 1))
        flip(path, bit)
        micro.judge(f"{path.relative_to(micro.place)}, bit {bit}", restored=(bit ^ bit >> 3) % 8 == 0)


def test_every_length(micro: Micro, rounds: Rounds) -> None:
    """Cut to each length, and longer."""
    lengths = [(path, n) for path in micro.objects for n in range(path.stat().st_size)]
    longer = [
        (path, path.stat().st_size + n) for path in micro.objects for n in (1, 16, 32, 48, 1024, 4096, 65536)
    ]
    for turn, (path, length) in enumerate([*rounds.some(lengths, 60), *rounds.some(longer, 20)]):
        micro.reset(keep_index=bool(turn % 2))
        data = path.read_bytes()
        path.write_bytes(data[:length] + (bytes if turn % 3 else os.urandom)(max(length - len(data), 0)))
        micro.judge(f"{path.relative_to(micro.place)}, {length} of {len(data)} bytes", restored=turn % 8 == 0)


def test_each_object_deleted(micro: Micro, rounds: Rounds) -> None:
    for path, keep_index in rounds.some(list(itertools.product(micro.objects, (True, False))), 1000):
        micro.reset(keep_index)
        path.unlink()
        micro.judge(f"{path.relative_to(micro.place)} deleted", restored=True)


def test_each_object_in_the_place_of_each_other(micro: Micro, rounds: Rounds) -> None:
    """An old one under a new name, one volume for another, data for trees, an event for a key slot."""
    for turn, (a, b) in enumerate(rounds.some(list(itertools.permutations(micro.objects, 2)), 40)):
        micro.reset(keep_index=bool(turn % 2))
        swap = turn % 3 == 0
        one, two = a.read_bytes(), b.read_bytes()
        b.write_bytes(one)
        if swap:
            a.write_bytes(two)
        micro.judge(f"{a.relative_to(micro.place)} as {b.relative_to(micro.place)}", restored=turn % 4 == 0)


def test_each_object_once_more_under_a_name_of_its_own(micro: Micro, rounds: Rounds) -> None:
    """It is what was written, and not what its name says: told, and nothing is lost by it."""
    for path in rounds.some([p for p in micro.objects if p.name != "config"], 1000):
        for folder in ("keys", "events", "data/ff", "trees/ff"):
            micro.reset(keep_index=False)
            target = micro.place / folder / ("ff" * 32)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
            micro.judge(f"{path.relative_to(micro.place)} in {folder}", restored=True)
            with repositories.open_(micro.folder) as repository:
                assert len(repository.snapshots()) == 2


def test_objects_of_another_repository_with_the_same_password(
    micro: Micro, tmp_path: Path, rounds: Rounds
) -> None:
    """In the place of one's own, and beside them under their own names.  A key slot of theirs opens, and has other keys."""
    other = Micro(tmp_path)
    pairs = list(itertools.product(other.objects, micro.objects))
    for turn, (theirs, ours) in enumerate(rounds.some(pairs, 30)):
        micro.reset(keep_index=bool(turn % 2))
        ours.write_bytes(theirs.read_bytes())
        micro.judge(
            f"their {theirs.relative_to(other.place)} as {ours.relative_to(micro.place)}",
            restored=turn % 4 == 0,
        )
    for theirs in rounds.some([path for path in other.objects if path.name != "config"], 1000):
        micro.reset(keep_index=False)
        target = micro.place / theirs.relative_to(other.place)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(theirs.read_bytes())
        # A key slot more is nothing wrong: it opens nothing of this repository.
        micro.judge(
            f"their {target.relative_to(micro.place)} beside",
            restored=True,
            found=target.parent.name != "keys",
        )
        with repositories.open_(micro.folder) as repository:
            assert len(repository.snapshots()) == 2


def test_what_disks_do(micro: Micro, rounds: Rounds) -> None:
    """Sectors, zeros, several bits, several objects at once."""
    for seed in rounds.seeds(60):
        if harmed := micro.harm(seed):
            micro.judge(harmed, restored=seed % 4 == 0, several=True)
