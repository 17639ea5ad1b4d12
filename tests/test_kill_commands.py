"""Killed at every libc call that changes something, in every command: nothing committed is lost, the next run needs no help."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.interpose import CUT, DIE, Fault
from support.scene import VERBS, Scene
from support.torture import Rounds

pytestmark = pytest.mark.torture
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a file system can be shut down by root only")
KILLED = -9
VERBS_CUT = [verb for verb in VERBS if verb != "restore"]  # which does not fsync, and says so


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_call(scene: Scene, rounds: Rounds, verb: str) -> None:
    calls = scene.calls(verb)
    assert calls > 1, "is the seam still there?"
    for number in rounds.some(range(1, calls + 1), 3):
        scene.reset(verb)
        done = scene.run(verb, Fault(DIE, number))
        try:
            scene.sound(verb, done.code)
        except Exception as error:
            raise AssertionError(f"{verb}, killed at call {number} of {calls} ({done}): {error!r}") from error


def test_killed_from_outside_at_any_moment(scene: Scene, rounds: Rounds) -> None:
    """A kill -9 that knows nothing of calls: amid a system call, a lock, a page fault."""
    died = 0
    for seed in rounds.seeds(30):
        chance = random.Random(seed)
        verb = chance.choice([verb for verb in VERBS if verb != "init"])
        scene.reset(verb)
        code = scene.run(verb, kill_after=chance.random() * 0.06).code
        died += code == KILLED
        scene.sound(verb, code)
    assert died, "nobody was killed: the test shows nothing"


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A scene on a file system of its own, in a file."""
    folder = tmp_path_factory.mktemp("ext4")
    image, home = folder / "image", folder / "home"
    home.mkdir()
    with open(image, "wb") as f:
        f.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, home], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no loop device: {mounted.stderr.strip()}")
    try:
        made = Scene(home, folder / "source")
        yield made
        made.close()
    finally:
        subprocess.run(["umount", home], check=True)


@as_root
def test_real_power_cuts(ext4: Scene, rounds: Rounds) -> None:
    """The file system is shut down at a call, without its log being written, and mounted again: what was not fsynced is gone."""
    scene = ext4
    calls = {verb: scene.calls(verb) for verb in VERBS_CUT}
    image = scene.home.parent / "image"
    for seed in rounds.seeds(6):
        chance = random.Random(seed)
        verb = chance.choice(VERBS_CUT)
        scene.reset(verb)
        os.sync()
        number = chance.randrange(1, calls[verb] + 2)  # one more: after the end
        if number <= calls[verb]:
            code = scene.run(verb, Fault(CUT, number, power=scene.home)).code
        else:
            code = scene.run(verb, Fault(power=scene.home)).code
            shut_down(scene.home)
        subprocess.run(["umount", scene.home], check=True)
        subprocess.run(["mount", "-o", "loop", image, scene.home], check=True)
        scene.sound(verb, code)


def shut_down(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 2))  # EXT4_IOC_SHUTDOWN, without writing the log
    finally:
        os.close(fd)
