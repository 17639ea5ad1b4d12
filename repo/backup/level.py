"""What the walk holds of one open directory, of the entries in it that come next, and of all that it has counted."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

from snapfs.repo.backup import _reading as reading
from snapfs.repo.backup.entries import Small
from snapfs.repo.backup.files import Status
from snapfs.repo.backup.parents import Earlier, EarlierDirectory, KeepingWriter
from snapfs.repo.backup.patterns import DirectoryRules
from snapfs.repo.backup.sources import Branching
from snapfs.repo.errors import Damaged
from snapfs.repo.format import records
from snapfs.repo.model import Node

LOOK = 256
"""Names looked at in one go, at most."""


def _actions() -> dict[str, int]:
    return dict.fromkeys(("new", "changed", "unchanged"), 0)


@dataclass
class Counts:
    """Entries by what was done with them."""

    reached: bool = False
    """At least one source could be read."""
    directories: int = 0
    files: dict[str, int] = field(default_factory=_actions)
    dirs: dict[str, int] = field(default_factory=_actions)


class Seen:
    """An entry that was looked at: next in its directory to be stored."""

    __slots__ = ("name", "path", "read", "same", "st", "was", "within")

    def __init__(self, name: bytes, path: bytes, st: Status, was: list[Earlier]) -> None:
        self.name = name
        self.path = path
        self.st = st
        self.was = was
        self.within = True
        """It is a source or lies in one; else only what was named below it counts."""
        self.same: Earlier | None = None
        """A regular file that an earlier snapshot tells all of."""
        self.read: Small | None = None
        """A small file that was read with its neighbours."""


class Level:
    """A directory that is being walked."""

    def __init__(self, fd: int, path: bytes, node: Node, names: list[bytes], below: Branching | None,
                 rules: DirectoryRules | None, device: int, writer: KeepingWriter,
                 earlier: EarlierDirectory) -> None:  # fmt: skip
        self.fd = fd
        self.path = path
        """Without a slash at the end: the top is b""."""
        self.node = node
        self._check = crc32(records.encode(node))
        self.names = names
        self.next = 0
        """Position of the first name that was not looked at."""
        self.looked: list[bytes] = []
        self.statuses: list[reading.Status | int] = []
        """Names that were looked at and are not among those seen yet, and what was said of them."""
        self.seen: deque[Seen] = deque()
        """Entries to be stored next."""
        self.below = below
        """What was named below here, or None.  Nothing else counts unless this is `within` a source."""
        self.rules = rules
        self.device = device
        self.writer = writer
        self.earlier = earlier
        self.was: list[Earlier] = []
        self.within = False
        """It is a source or lies in one: everything in it counts."""
        self.source = False
        """It is one of the folders that were named."""

    def verify(self) -> None:
        """Raise Damaged if the directory's node is not what it was on entering, hours ago perhaps."""
        if crc32(records.encode(self.node)) != self._check:
            raise Damaged("changed before it was stored: is the memory of this machine sound?", "a directory")
