"""An entry of the mount under its inode number, and a directory while it is being listed.

Inode numbers are computed, not remembered, so that memory does not grow with what was looked at.  Every snapshot that was
entered has a small number; every entry in it has a rank in depth-first order (the root 0, an entry the rank of its directory
plus 1 plus the nodes before it, which the pages' sums tell).  The inode is number * 2**40 + rank.  Below 2**40 are the folders
above the snapshots; 1 is the root of the mount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from snapfs.repo.model import Node

ROOT = 1
RANK_BITS = 40


class Stale(Exception):
    """An inode that leads nowhere: the kernel was told of it by another mount, or its snapshot is forgotten."""


class Entry(NamedTuple):
    inode: int
    node: Node
    lasting: bool
    """Part of a snapshot: it will never change.  The folders above do."""

    @property
    def tree(self) -> int:
        """Number of the snapshot; 0 for the folders above."""
        return self.inode >> RANK_BITS


class Directory:
    """One that is being listed.  Goes on where the last listing ended without finding its place again."""

    def __init__(self, entry: Entry, entries: Callable[[int], Iterator[tuple[bytes, Entry]]]) -> None:
        self.entry = entry
        self._entries = entries
        self._running: Iterator[tuple[bytes, Entry]] = iter(())
        self._next: tuple[bytes, Entry] | None = None
        self._at = -1

    def peek(self, ordinal: int) -> tuple[bytes, Entry] | None:
        """(name, entry) at a position; None at the end.  Positions may be asked for in any order, ascending is quick."""
        if ordinal != self._at:
            try:
                if ordinal != self._at + 1 or self._at < 0:
                    self._running = self._entries(ordinal)
                self._next = next(self._running, None)
                self._at = ordinal
            except BaseException:
                self._at = -1
                raise
        return self._next
