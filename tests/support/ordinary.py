"""A shell of an ordinary user, with the real `snapfs` on its path.

Where the tests run as root, the user is NOBODY, in a mount namespace of its own: there, /dev/fuse is open to everybody, and the
interpreter and the project can be read although they may lie in root's home.  Nothing is changed for anybody else.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.mounts import NOBODY

_PROJECT = Path(__file__).parents[2]
_DEVICE = "/dev/fuse"
_HOLD = "/mnt"
"""Covered in that namespace, to keep hold of what is about to be covered as well."""


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, up to its first failure.  The folder is its user's, and HOME; it must be open above."""
    command = ["sh", "-euc", script]
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        become = [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--inh-caps=-all",
            *command,
        ]
        steps = [*_namespace(), f"cd {shlex.quote(str(folder))}", f"exec {shlex.join(become)}"]
        command = ["unshare", "--mount", "sh", "-euc", "\n".join(steps)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env={"PATH": path, "HOME": str(folder), "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip


def _namespace() -> Iterator[str]:
    """Commands of root's that let everybody read what snapfs needs."""
    yield f"mount -t tmpfs -o mode=755 none {_HOLD}"
    device = os.stat(_DEVICE)
    if stat.S_IMODE(device.st_mode) & 0o006 != 0o006:
        number = f"{os.major(device.st_rdev)} {os.minor(device.st_rdev)}"
        yield f"mknod -m 666 {_HOLD}/fuse c {number} && mount --bind {_HOLD}/fuse {_DEVICE}"
    needed = dict.fromkeys(map(str, (sys.base_prefix, Path(sys.base_prefix).resolve(), sys.prefix, _PROJECT)))
    closed = {place: folder for place in needed if (folder := _closed_above(Path(place))) is not None}
    held = {place: f"{_HOLD}/{number}" for number, place in enumerate(closed)}
    for place, at in held.items():
        yield f"mkdir {at} && mount --rbind {shlex.quote(place)} {at}"
    for folder in dict.fromkeys(closed.values()):
        yield f"mount -t tmpfs -o mode=755 none {shlex.quote(str(folder))}"
    for place, at in held.items():
        yield f"mkdir -p {shlex.quote(place)} && mount --rbind {at} {shlex.quote(place)}"


def _closed_above(place: Path) -> Path | None:
    """The outermost folder above a place that not everybody may pass through."""
    return next((above for above in reversed(place.parents) if not above.stat().st_mode & stat.S_IXOTH), None)
