"""Where a backup begins: the paths as a tree of names, and the places in them that are left out by themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from snapfs.repo.backup._reading import Status
from snapfs.repo.errors import UsageError
from snapfs.repo.format import labels as L
from snapfs.repo.repository import Repository


@dataclass
class Branching:
    """A directory on the way to the sources.  `whole`: it is one itself; else only the names below count.  Names below one that
    is whole were named beside it: no rule leaves them out."""

    whole: bool = False
    names: dict[bytes, Branching] = field(default_factory=dict)


def absolute(path: bytes) -> bytes:
    """Absolute and without `.`, `..` and double slashes; symbolic links are left as they are."""
    return b"/" + os.path.abspath(path).lstrip(b"/")


def stream_path(name: bytes) -> bytes:
    """Where the content of a pipe is stored.  Raises UsageError for what no file can be called."""
    path = absolute(b"/" + name)
    if path == b"/" or b"\0" in path or max(map(len, path.split(b"/"))) > L.NAME_LIMIT:
        raise UsageError("--stdin-filename: no file can have that name; give one like `dumps/all.sql`")
    return path


def branching(paths: Sequence[bytes]) -> Branching:
    """The tree of absolute paths."""
    top = Branching()
    for path in paths:
        here = top
        for name in filter(None, path.split(b"/")):
            here = here.names.setdefault(name, Branching())
        here.whole = True
    return top


class Protected:
    """What is never backed up: the repository, its cache, and snapfs mounts."""

    def __init__(self, repository: Repository) -> None:
        self._places: dict[tuple[int, int], str] = {}
        for path, what in (
            (repository.storage.place, "the repository itself"),
            (repository.cache_folder, "the cache of this repository"),
        ):
            if path is not None:
                try:
                    st = os.stat(path)
                except OSError:
                    continue
                self._places[st.st_dev, st.st_ino] = what
        self._mounts = _snapfs_devices()

    def reason(self, st: os.stat_result | Status) -> str | None:
        """Why a directory is left out, or None."""
        if st.st_dev in self._mounts:
            return "a snapfs mount"
        return self._places.get((st.st_dev, st.st_ino))


def _snapfs_devices() -> frozenset[int]:
    """Device numbers of the snapfs mounts on this machine."""
    found = set()
    try:
        with open("/proc/self/mountinfo", "rb") as f:
            for line in f:
                before, _, after = line.partition(b" - ")
                if after.split(b" ", 1)[0] == b"fuse.snapfs":
                    major, minor = before.split(b" ")[2].split(b":")
                    found.add(os.makedev(int(major), int(minor)))
    except (OSError, ValueError, IndexError):
        pass
    return frozenset(found)
