"""Mountpoints: whether one can be used, what is mounted there, who keeps it busy, and taking a mount away."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence

from snapfs.fs.mounts import Mount, all_mounts, obstacles
from snapfs.repo.errors import MountError

SUBTYPE = "snapfs"
_TYPE = f"fuse.{SUBTYPE}"
_NAMED = 5


def check(mountpoint: str, repository: str) -> None:
    """Raise MountError unless a file system can be mounted there.  `repository`: the folder it lies in."""
    if not os.path.exists("/dev/fuse"):
        raise MountError(
            "there is no /dev/fuse: load its kernel module (modprobe fuse); a container needs --device /dev/fuse"
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError(
            "fusermount3 is not installed, and only root can mount without it (Debian: apt install fuse3)"
        )
    if mounted_type(mountpoint) == _TYPE:
        raise MountError(
            f"{mountpoint}: a snapfs mount is there already: `snapfs umount {mountpoint}` takes it away"
        )
    try:
        with os.scandir(mountpoint):
            pass
    except NotADirectoryError:
        raise MountError(f"{mountpoint} is not a folder: mount on an existing, best empty one") from None
    except FileNotFoundError:
        raise MountError(f"{mountpoint} does not exist: make the folder first (mkdir {mountpoint})") from None
    except OSError as error:
        hint = (
            f": a dead mount may be there, try `snapfs umount {mountpoint}`"
            if error.errno == errno.ENOTCONN
            else ""
        )
        raise MountError(f"{mountpoint}: {error.strerror}{hint}") from error
    here, there = os.path.realpath(mountpoint), os.path.realpath(repository)
    if os.path.commonpath((here, there)) in (here, there):
        raise MountError(f"{mountpoint} and the repository {repository} lie in one another: mount elsewhere")


def check_sources(mountpoint: str, sources: Iterable[bytes]) -> None:
    """Raise MountError if a mount there would hide what is backed up: the next backup would find the mount in its place, and
    leave it out.  An empty folder in a source hides nothing."""
    here = os.fsencode(os.path.realpath(mountpoint))
    for source in sources:
        name = source.decode("utf-8", "backslashreplace")
        if source == here or source.startswith(here.rstrip(b"/") + b"/"):
            raise MountError(
                f"{mountpoint}: mounting there would hide {name}, which is backed up from here: mount elsewhere"
            )
        if here.startswith(source.rstrip(b"/") + b"/") and os.listdir(here):
            raise MountError(
                f"{mountpoint}: mounting there would hide what is in it from the next backup of {name}: "
                "take an empty folder"
            )


def mounted_type(mountpoint: str) -> str | None:
    """The type of the file system mounted exactly there ("fuse.snapfs"); None if none is."""
    there = _mounted(mountpoint, all_mounts())
    return there[-1].kind if there else None


def _mounted(mountpoint: str, mounts: Sequence[Mount]) -> list[Mount]:
    """What is mounted exactly there, the uppermost last."""
    path = _resolved(mountpoint)
    return [mount for mount in mounts if mount.path == path]


def _resolved(mountpoint: str) -> str:
    # Only the parent is resolved: the mountpoint itself may be a dead mount, which answers nothing.
    parent, name = os.path.split(os.path.abspath(mountpoint))
    return os.path.join(os.path.realpath(parent), name)


def unmount(mountpoint: str) -> None:
    """Take a snapfs mount away.  Raises MountError, which names the mounts and processes that stand in the way."""
    mounts = all_mounts()
    there = _mounted(mountpoint, mounts)
    if not there and os.path.islink(mountpoint):
        mountpoint = os.path.realpath(mountpoint)
        there = _mounted(mountpoint, mounts)
    ours = next((mount for mount in reversed(there) if mount.kind == _TYPE), None)
    if ours is None:
        raise MountError(f"{mountpoint}: no snapfs mount is there")
    if ours != there[-1]:
        raise _in_the_way(mountpoint, obstacles(ours, mounts) or there[-1:])
    helper = shutil.which("fusermount3")
    if os.geteuid() == 0:
        command = ["umount", "--", mountpoint]
    elif helper is not None:
        command = [helper, "-u", "--", mountpoint]
    else:
        raise MountError(
            "fusermount3 is not installed, and only root can unmount without it (Debian: apt install fuse3)"
        )
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise MountError(f"cannot run {command[0]} to unmount {mountpoint}: {error.strerror}") from error
    if done.returncode == 0:
        return
    others = obstacles(ours, mounts)
    if others:
        raise _in_the_way(mountpoint, others)
    users = [f"{name} ({pid})" for pid, name in holders(mountpoint)]
    if users:
        raise MountError(f"{mountpoint} is in use by {_some(users)}: end them, then unmount again")
    reason = done.stderr.strip().split("\n")[0] or "no reason given"
    raise MountError(f"cannot unmount {mountpoint}: {reason}")


def _in_the_way(mountpoint: str, others: Sequence[Mount]) -> MountError:
    named = _some([f"{other.path} ({other.kind})" for other in others])
    return MountError(
        f"{mountpoint}: {named} is mounted in it or over it: unmount that first, then this again"
    )


def _some(things: Sequence[str]) -> str:
    more = f" and {len(things) - _NAMED} more" if len(things) > _NAMED else ""
    return ", ".join(things[:_NAMED]) + more


def holders(mountpoint: str) -> Iterator[tuple[int, str]]:
    """(process id, name) of each process with its working directory or an open file below; only those this user may look into."""
    path = _resolved(mountpoint)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and any(
            used == path or used.startswith(path + "/") for used in _used(f"/proc/{entry}")
        ):
            name = "?"
            with contextlib.suppress(OSError), open(f"/proc/{entry}/comm") as f:
                name = f.read().strip()
            yield int(entry), name


def _used(process: str) -> Iterator[str]:
    # Links are read, never followed: a look at the mount itself could wait for ever.
    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{process}/{link}")
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"{process}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"{process}/fd/{fd}")
    with contextlib.suppress(OSError), open(f"{process}/maps", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6:
                yield fields[5]
