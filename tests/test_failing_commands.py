"""Storage that fails at the n-th call, once or for good, and a clock that jumps: every command ends truthfully.

Exit code 0 means that what was asked for is there, byte for byte; anything else is one line that says why, and changes nothing
that was committed.  Once the fault is gone the same command and the next backup work, with no manual step.
"""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from support import same
from support.interpose import CHANGES, CLOCK, FAIL, FOREVER, LOOKS, READS, SHORT, WRONG, Fault
from support.scene import VERBS, Scene
from support.torture import Rounds

pytestmark = pytest.mark.torture
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root")
TEN_YEARS = 10 * 366 * 86400
FAULTS = {
    "ENOSPC": Fault(FAIL, param=errno.ENOSPC),
    "EIO": Fault(FAIL, param=errno.EIO),
    "EDQUOT": Fault(FAIL, param=errno.EDQUOT),
    "ENOSPC for good": Fault(FAIL, last=FOREVER, param=errno.ENOSPC),
    "EIO for good": Fault(FAIL, last=FOREVER, param=errno.EIO),
    "short write": Fault(SHORT),
    "EIO while reading": Fault(FAIL, param=errno.EIO, what=READS),
    "EIO while reading, for good": Fault(FAIL, last=FOREVER, param=errno.EIO, what=READS),
    "short read": Fault(SHORT, what=READS),
    "wrong read": Fault(WRONG, what=READS),
    "EIO while looking": Fault(FAIL, param=errno.EIO, what=LOOKS),
    "EIO while looking, for good": Fault(FAIL, last=FOREVER, param=errno.EIO, what=LOOKS),
    "EACCES while looking": Fault(FAIL, param=errno.EACCES, what=LOOKS),
    "every write short": Fault(SHORT, last=FOREVER),
    "every read short": Fault(SHORT, last=FOREVER, what=READS),
    "clock ten years on": Fault(CLOCK, param=TEN_YEARS),
    "clock ten years back": Fault(CLOCK, param=-TEN_YEARS),
}


@pytest.mark.parametrize("verb", VERBS)
def test_fails_at_every_call(scene: Scene, rounds: Rounds, verb: str) -> None:
    calls = {what: scene.calls(verb, what) for what in (CHANGES, READS, LOOKS)}
    cases = [
        (name, number)
        for name, fault in FAULTS.items()
        for number in range(1, calls[fault.what] + 1 if not name.startswith("every") else 2)
    ]
    for name, number in rounds.some(cases, 4, verb):
        fault = replace(FAULTS[name], first=number)
        scene.reset(verb)
        done = scene.run(verb, fault)
        try:
            scene.told(done)
            # LMDB takes a short write for an error: once, it is tried again; always, there is no index.  That of its very first
            # bytes it takes for a full disk.
            if fault.action in (SHORT, CLOCK) and fault.what == CHANGES and fault.last is None:
                full = "index in" in done.err and "No space left on device: free some space" in done.err
                assert done.code == 0 or (fault.action == SHORT and done.code == 1 and full), done
            scene.sound(verb, done.code)
        except Exception as error:
            raise AssertionError(f"{verb}, {name} at call {number} ({done}): {error!r}") from error


@as_root
def test_a_full_disk_can_be_listed_mounted_and_said_what_to_do_with(tmp_path: Path) -> None:
    """Really full, to the last byte; what can be read is read, what cannot be written is said, and then it is freed."""
    home = tmp_path / "disk"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", home], check=True)
    scene = None
    try:
        scene = Scene(home, tmp_path / "outside" / "source")
        fill(home / "filler")
        for args in (("snapshots",), ("ls", "latest"), ("find", "*"), ("stats",), ("check", "--read-data")):
            assert scene.commands.run(*args).code == 0, args
        past = tmp_path / "past"
        past.mkdir()
        assert (mounted := scene.commands.run("mount", past)).code == 0, mounted
        try:
            shown = past / "ids" / scene.kept.hex()[:8] / str(scene.source)[1:]
            assert same.differences(scene.committed[scene.kept], same.on_disk(shown), blocks=False) == []
        finally:
            assert (done := scene.commands.run("umount", past)).code == 0, done
        target = tmp_path / "outside" / "target"
        restored = scene.commands.run("restore", f"latest:{scene.source}", "-t", target)
        assert restored.code == 0, restored
        assert same.differences(scene.committed[scene.kept], same.on_disk(target)) == []
        for verb in ("backup", "forget", "policy", "undelete", "tag", "key add", "key passwd"):
            done = scene.run(verb)
            assert done.code == 1, done
            assert "No space left on device: free some space" in done.err, done
            assert done.err.count("\n") == 1, done
            scene.whole(verb, done.code)
            assert not (home / "repository/tmp").exists() or not os.listdir(home / "repository/tmp")
        (home / "filler").unlink()
        scene.sound("forget", scene.run("forget").code)
    finally:
        if scene is not None:
            scene.close()
        subprocess.run(["umount", home], check=True)


def fill(path: Path) -> None:
    size = 1 << 20
    with open(path, "wb", buffering=0) as f:
        while size:
            try:
                f.write(bytes(size))
            except OSError:
                size //= 2
