"""An entry of the mount under its inode number, and a directory while it is being listed.

Inode numbers are computed, not remembered, so that memory does not grow with what was looked at.  Every snapshot that was
entered has a small number; every entry in it has a rank in depth-first order (the root 0, an entry the rank of its directory
plus 1 plus the nodes before it, which the pages' sums tell).  The inode is number * 2**40 + rank.  Below 2**40 are the folders
above the snapshots; 1 is the root of the mount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


Run = Sequence[tuple[bytes, Entry]]
"""Names and entries that stand one after the other in a directory."""


class Directory:
    """One that is being listed.  Goes on where the last listing ended without finding its place again."""

    def __init__(self, entry: Entry, runs: Callable[[int], Iterator[Run]]) -> None:
        """`runs(start)`: everything from the `start`-th entry on, in pieces none of which is empty."""
        self.entry = entry
        self._runs = runs
        self._running: Iterator[Run] = iter(())
        self._run: Run = ()
        self._first = -1
        """Position of the first of `_run`; negative: nothing is known."""

    def run(self, ordinal: int) -> Run:
        """The entries from a position on, as many as are at hand at once; empty at the end.  Positions may be asked for in
        any order, ascending is quick."""
        into = ordinal - self._first
        if self._first >= 0 and 0 <= into < len(self._run):
            return self._run[into:]
        try:
            if self._first < 0 or into != len(self._run):
                self._running = self._runs(ordinal)
            self._run = next(self._running, ())
            self._first = ordinal
        except BaseException:
            self._first = -1
            raise
        return self._run
