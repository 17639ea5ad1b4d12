"""The power fails at any moment of any command: of all that may be left on the disk then, nothing loses a committed snapshot.

Each command runs once and is logged, call by call; the states are made from the log, so one run is good for thousands of them.
"""

from __future__ import annotations

import os
import re
from random import Random

import pytest

from snapfs.repo.errors import SnapfsError
from support import crash
from support.crash import Before, Disk, Op
from support.interpose import DIE, NO_FAULT, Fault
from support.scene import PARTS, VERBS, Scene
from support.torture import Rounds

pytestmark = pytest.mark.torture
CUT = [verb for verb in VERBS if verb != "restore"]  # which does not fsync, and says so
NOT_OURS = {"fsync of cache/snapfs/*/index/00000001/data.mdb"}
"""LMDB's own, of a file that can be built anew: what is wrong then is found, and costs a rebuild."""
KILLED = -9
_VOLUME = re.compile(r"/repository/(data|trees)/")


def record(scene: Scene, verb: str, fault: Fault = NO_FAULT) -> tuple[Before, list[Op]]:
    """What was there before, and all that a command did to it; with a fault, until it died.  It may make fewer calls than another
    time, names are random, and end before the fault."""
    scene.reset(verb)
    before, log = Before(scene.home), scene.source.parent / "log"
    done = scene.run(verb, fault, log)
    assert done.code == 0 or (fault.action and done.code == KILLED), done
    return before, crash.load(log)


def record_next(scene: Scene, verb: str) -> list[Op]:
    """What a command does with what is there."""
    log = scene.source.parent / "log"
    done = scene.run(verb, log=log)
    assert done.code == 0, done
    return crash.load(log)


@pytest.mark.parametrize("verb", CUT)
def test_what_a_power_cut_leaves_is_enough(scene: Scene, rounds: Rounds, verb: str) -> None:
    before, ops = record(scene, verb)
    for seed in rounds.seeds(2):
        chance = Random(seed)
        at = chance.choice((len(ops), chance.randrange(len(ops) + 1)))
        Disk(before, ops[:at]).cut(chance if chance.random() < 0.8 else None).make(keep=PARTS[:3])
        scene.sound(verb, 0 if at == len(ops) else KILLED)


@pytest.mark.parametrize("later", ["snapshots", "backup", "repair index"])
def test_what_a_dead_writer_left_is_not_relied_on_before_it_is_durable(
    scene: Scene, rounds: Rounds, later: str
) -> None:
    """Killed, and then, during or after the next command, cut from power: what the dead one had named may be gone."""
    calls = scene.calls("backup")
    for seed in rounds.seeds(2):
        chance = Random(seed)
        # Most of what matters is done at the end, from the first name in the repository on.
        number = chance.randrange(calls // 4, calls + 1)
        before, ops = record(scene, "backup", Fault(DIE, number))
        ops += record_next(scene, later)
        at = chance.choice((len(ops), chance.randrange(len(ops) + 1)))
        Disk(before, ops[:at]).cut(chance if chance.random() < 0.5 else None).make(keep=PARTS[:3])
        scene.sound("backup", 0 if at == len(ops) and later == "backup" else KILLED, parity=False)


def noticed(scene: Scene, verb: str, before: Before, ops: list[Op]) -> bool:
    """Whether what the disk may look like after these operations is found wanting."""
    for turn in range(20):
        chance = Random(turn)
        at = len(ops) if turn < 6 else chance.randrange(len(ops) + 1)
        Disk(before, ops[:at]).cut(chance if turn else None).make(keep=PARTS[:3])
        try:
            scene.sound(verb, 0 if at == len(ops) else KILLED)
        except (AssertionError, SnapfsError, OSError):
            return True
    return False


def test_without_any_one_fsync_or_rename_these_tests_fail(scene: Scene, rounds: Rounds) -> None:
    """The proof that they see: each place of the program that makes something durable is left out in turn."""
    seen: dict[str, bool] = {}
    verbs = ("init", "first backup", "key passwd", "key remove") + (
        ("backup", "forget", "tag") if rounds.long else ()
    )
    for verb in verbs:
        before, ops = record(scene, verb)
        sites = [crash.site(op, ops, scene.home) for op in ops]
        for site in dict.fromkeys(sites):
            if site.startswith(("fsync", "rename")) and not seen.get(site):
                rest = [op for op, place in zip(ops, sites, strict=True) if place != site]
                seen[site] = noticed(scene, verb, before, rest)
                rounds.count()
    assert len(seen) > 20, seen
    assert {site for site, found in seen.items() if not found} - NOT_OURS == set()


@pytest.mark.parametrize(
    ("later", "part"), [("snapshots", "events"), ("backup", "data"), ("backup", "trees")]
)
def test_a_name_that_nobody_made_durable_is_made_so_before_it_is_relied_on(
    scene: Scene, rounds: Rounds, later: str, part: str
) -> None:
    """A backup died after a rename and before the fsync for it.  A command that lists must not remember a snapshot that the next
    power cut may take away: its absence would be told as tampering for ever.  A backup must not rely on such a volume.  Without
    the fsyncs they make for that, this fails."""
    calls = scene.calls("backup")
    complete = found = 0
    _, ops = record(scene, "backup")
    renamed = max(
        n for n, op in enumerate(ops) if op.kind == crash.RENAME and f"/{part}/".encode() in op.other
    )
    # Calls that did not succeed are counted, and are not in the log.
    # Two threads finish volumes, in another order each time: the window is looked for around, and more than once.
    around = range(max(1, renamed - 25), min(renamed + 50, calls + 1))
    for number in range(1, calls + 1) if rounds.long else (*range(renamed, renamed + 15), *around, *around):
        before, ops = record(scene, "backup", Fault(DIE, number))
        if not named_only(ops, part):
            continue
        more = record_next(scene, later)
        mine = next(
            (n for n, op in enumerate(more) if op.kind == crash.CREATE and "/tmp/" in op.name), len(more)
        )
        adopting = {n for n, op in enumerate(more[:mine]) if op.kind == crash.FSYNC and f"/{part}" in op.name}
        assert adopting
        complete += 1
        code = 0 if later == "backup" else KILLED
        Disk(before, ops + more).cut(None).make(keep=PARTS[:3])
        scene.whole("backup", code, parity=False)
        Disk(before, ops + [op for n, op in enumerate(more) if n not in adopting]).cut(None).make(
            keep=PARTS[:3]
        )
        try:
            scene.whole("backup", code, parity=False)
        except (AssertionError, SnapfsError):
            found += 1
        rounds.count(2)
        if found and not rounds.long:
            break
    assert complete
    assert found


def named_only(ops: list[Op], part: str) -> bool:
    """Whether the last thing that got a name in a part of the repository got nothing for it to be durable."""
    named = [n for n, op in enumerate(ops) if op.kind == crash.RENAME and f"/{part}/".encode() in op.other]
    if not named:
        return False
    folder = os.path.dirname(os.fsdecode(ops[named[-1]].other))
    return not any(op.kind == crash.FSYNC and op.name == folder for op in ops[named[-1] :])


def test_a_forget_that_a_power_cut_takes_back_has_its_data_still(scene: Scene, rounds: Rounds) -> None:
    """Killed after its event had its name, and before that was durable; then a prune removes what it forgot; then the power goes,
    and the event with it.  The prune has to make durable what it goes by.  Without that fsync, this fails."""
    scene.reset("prune")
    args = ("forget", "--yes", scene.later.hex())
    tried = found = 0
    for number in range(1, 40):
        scene.reset("prune")
        before, log = Before(scene.home), scene.source.parent / "log"
        done = scene.commands.run(
            *args, fault=Fault(DIE, number), log=log, SNAPFS_REPOSITORY=str(scene.place)
        )
        ops = crash.load(log)
        if done.code != KILLED:
            break
        if not named_only(ops, "events"):
            continue
        more = record_next(scene, "prune")
        first = next(n for n, op in enumerate(more) if op.kind == crash.UNLINK and _VOLUME.search(op.name))
        adopting = {n for n, op in enumerate(more) if op.kind == crash.FSYNC and "/events" in op.name}
        assert min(adopting) < first
        tried += 1
        for kept in (more, [op for n, op in enumerate(more) if n not in adopting]):
            Disk(before, ops + kept).cut(None).make(keep=PARTS[:3])
            try:
                with scene.open() as repository:
                    assert repository.events.load().problems == []
                    for snapshot in repository.snapshots():
                        scene.read(repository, snapshot)
            except (AssertionError, SnapfsError):
                assert kept is not more
                found += 1
        rounds.count(2)
        if found and not rounds.long:
            break
    assert tried
    assert found
