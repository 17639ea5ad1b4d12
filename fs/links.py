"""Files with several names: one inode for all of them, remembered only while the kernel holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from snapfs.fs.entry import Entry

_BIT = 1 << 62


@dataclass
class _Held:
    inode: int
    """Of the name that was seen first; any would do."""
    file: bytes
    """Node.one_file of it."""
    count: int = 0


class HeldLinks:
    """The inode shown for a file with several names is a hash of its group.  Belongs to the thread of the event loop."""

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._held: dict[int, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def shown(self, entry: Entry) -> int:
        """The inode to tell the kernel."""
        file = entry.node.one_file
        if file is None:
            return entry.inode
        name = b"%d " % entry.tree + file
        shown = _BIT | int.from_bytes(blake2b(name, key=self._key, digest_size=8).digest(), "big") >> 3
        held = self._held.get(shown)
        # Two groups with one hash must not become one file: the later one is shown as files with one name each.
        return shown if held is None or held.file == file else entry.inode

    def hold(self, shown: int, entry: Entry) -> None:
        """The kernel was told of `shown` once more."""
        if shown & _BIT:
            file = entry.node.one_file
            assert file is not None
            self._held.setdefault(shown, _Held(entry.inode, file)).count += 1

    def forget(self, inodes: Iterable[tuple[int, int]]) -> None:
        """The kernel dropped so many of its references to each inode."""
        for shown, count in inodes:
            held = self._held.get(shown)
            if held is not None:
                held.count -= count
                if held.count <= 0:
                    del self._held[shown]

    def inode(self, shown: int) -> int:
        """The computed inode behind a shown one."""
        held = self._held.get(shown)
        return shown if held is None else held.inode
