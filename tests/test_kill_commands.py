"""Killed at every libc call that changes something, in every command: nothing committed is lost, the next run needs no help."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import same
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
    for number in rounds.some(range(1, calls + 1), 2, verb):
        scene.reset(verb)
        done = scene.run(verb, Fault(DIE, number))
        try:
            scene.sound(verb, done.code)
        except Exception as error:
            raise AssertionError(f"{verb}, killed at call {number} of {calls} ({done}): {error!r}") from error


def test_killed_from_outside_at_any_moment(scene: Scene, rounds: Rounds) -> None:
    """A kill -9 that knows nothing of calls: amid a system call, a lock, a page fault."""
    died = 0
    for seed in rounds.seeds(15):
        chance = random.Random(seed)
        verb = chance.choice([verb for verb in VERBS if verb != "init"])
        scene.reset(verb)
        code = scene.run(verb, kill_after=chance.random() * 0.06).code
        died += code == KILLED
        scene.sound(verb, code)
    assert died, "nobody was killed: the test shows nothing"


MAKE = {
    "ext4": (48, ["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed"]),
    "xfs": (320, ["mkfs.xfs", "-q", "-f"]),
    "btrfs": (160, ["mkfs.btrfs", "-q", "-f"]),
}
"""MiB, and how to make one; a file that is as large takes no room until it is written."""


class FileSystem:
    """One in a file, and a scene on it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._image, self.home = folder / "image", folder / "home"
        self.home.mkdir()
        size, command = MAKE[kind]
        if shutil.which(command[0]) is None:
            pytest.skip(f"no {command[0]} here")
        with open(self._image, "wb") as f:
            f.truncate(size << 20)
        subprocess.run([*command, self._image], check=True)
        if self._mount(check=False):
            pytest.skip(f"no loop device, or a kernel without {kind}")
        try:
            self.scene = Scene(self.home, folder / "source")
        except BaseException:
            self.unmount()
            raise

    def _mount(self, check: bool = True) -> int:
        return subprocess.run(["mount", "-o", "loop", self._image, self.home], check=check).returncode

    def unmount(self) -> None:
        subprocess.run(["umount", self.home], check=True)

    def mount_again(self) -> None:
        self.unmount()
        self._mount()


@pytest.fixture(scope="module")
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileSystem]:
    made = FileSystem(request.param, tmp_path_factory.mktemp(request.param))
    try:
        yield made
    finally:
        made.scene.close()
        made.unmount()


@as_root
@pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)
def test_real_power_cuts(disk: FileSystem, rounds: Rounds) -> None:
    """The file system is shut down at a call, without its log being written, and mounted again: what was not fsynced is gone."""
    scene = disk.scene
    calls = {verb: scene.calls(verb) for verb in VERBS_CUT}
    for seed in rounds.seeds(4):
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
        disk.mount_again()
        try:
            scene.sound(verb, code)
        except Exception as error:
            raise AssertionError(
                f"{verb}, cut at call {number} of {calls[verb]} (code {code}): {error!r}"
            ) from error


@as_root
@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_other_file_systems_are_file_systems(disk: FileSystem, tmp_path: Path) -> None:
    """Every command does there what it does elsewhere, and a mount of what lies there shows the source."""
    scene = disk.scene
    for verb in VERBS:
        scene.reset(verb)
        done = scene.run(verb, Fault(power=scene.home))  # with real fsyncs
        assert done.code == 0, done
        assert "fsync" not in done.err, done
        scene.sound(verb, done.code)
    disk.mount_again()
    past = tmp_path / "past"
    past.mkdir()
    scene.reset("backup")
    done = scene.run("backup")
    assert done.code == 0, done
    done = scene.commands.run("mount", past)
    assert done.code == 0, done
    try:
        shown = past / "snapshots" / "latest" / str(scene.source)[1:]
        assert same.differences(scene.now, same.on_disk(shown), blocks=False) == []
    finally:
        done = scene.commands.run("umount", past)
        assert done.code == 0, done


def shut_down(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY)
    try:
        fcntl.ioctl(
            fd, 0x8004587D, struct.pack("I", 2)
        )  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, without writing the log
    finally:
        os.close(fd)
