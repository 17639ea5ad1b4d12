"""Real mounts for tests: served by a process of their own, taken away at the end.

with mounted(home) as top: ...                                      # the repository that support.repositories made in home
with mounted(home, part=b"/home/me") as top: ...                    # one directory of the newest snapshot
with mounted(home, user=NOBODY) as top: run_as(NOBODY, "ls", top)   # an ordinary user's, through fusermount3
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOBODY = 65534
TESTS = Path(__file__).parent.parent
_DEVICE = "/dev/fuse"


@contextlib.contextmanager
def mounted(
    home: Path, *, part: bytes | None = None, user: int | None = None, **options: Any
) -> Iterator[Path]:
    """Serve in a new folder below home until the end of the block; `options` as in MountOptions.  It has to end cleanly."""
    top = Path(tempfile.mkdtemp(prefix="mnt-", dir=home))
    server = start(home, top, part=part, user=user, **options)
    try:
        yield top
    finally:
        server.terminate()
        said = finish(server)
    assert not os.path.ismount(top), said


def start(home: Path, top: Path, *, part: bytes | None = None, user: int | None = None,
          program: str = "support.mounts", **options: Any) -> subprocess.Popen[str]:  # fmt: skip
    """The serving process, once the file system answers; its standard error is a pipe.  `program`: the module whose serve() it
    runs."""
    top.mkdir(exist_ok=True)
    if user is not None:
        os.chown(top, user, user)
    wanted = json.dumps([str(home), str(top), os.fsdecode(part) if part is not None else None, user, options])
    server = subprocess.Popen(
        [sys.executable, "-c", f"from {program} import serve; serve()", wanted], text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert server.stdout is not None
    if server.stdout.readline() != "ready\n":
        _, said = server.communicate(timeout=30)
        raise AssertionError(said)
    return server


def finish(server: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for its end; returns what it wrote to its standard error."""
    _, said = server.communicate(timeout=30)
    assert server.returncode == status, said
    return said


def serve() -> None:
    """The process that `start` starts."""
    import logging

    from snapfs.fs import operations  # noqa: F401
    from snapfs.fs.mount import MountOptions, mount
    from support import repositories

    home, top, part, user, options = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO)
    if user is not None:  # only now: the interpreter's own files may lie where an ordinary user cannot read
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    with repositories.open_(Path(home)) as repository:
        root = None
        if part is not None:
            root = repository.trees.resolve(repository.snapshots()[-1].record.root, os.fsencode(part))
        mount(repository, top, MountOptions(root=root, **options), lambda: print("ready", flush=True))


def run_as(user: int, *command: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, user=user, group=user, extra_groups=[], capture_output=True, check=False, cwd="/"
    )


@contextlib.contextmanager
def device_for_everyone() -> Iterator[None]:
    """Where /dev/fuse is closed to ordinary users, open it for a while."""
    mode = stat.S_IMODE(os.stat(_DEVICE).st_mode)
    if mode & 0o006 != 0o006:
        os.chmod(_DEVICE, 0o666)
    try:
        yield
    finally:
        os.chmod(_DEVICE, mode)
