"""Directories: written bottom-up, read lazily.  What a node counts for: itself and everything below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import Damaged, SnapshotNotFound
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.model import Below, Kind, Node
from snapfs.repo.page_writer import PageWriter, Put, Sums
from snapfs.repo.pages import Found, Leaf, PageReader, Run


def nodes_of(node: Node) -> int:
    return 1 + node.below.nodes if node.below is not None else 1


def bytes_of(node: Node) -> int:
    return node.below.size if node.below is not None else node.size or 0


def files_of(node: Node) -> int:
    return node.below.files if node.below is not None else int(node.is_file)


LEAF = Leaf(
    records.decode_nodes, lambda nodes: [node.name for node in nodes],
    lambda nodes: [nodes_of(node) for node in nodes], lambda nodes: [bytes_of(node) for node in nodes],
)  # fmt: skip


_HELD = 16
"""Directories of a descent that keep the page they are at."""


class DirectoryWriter:
    """Writes one directory; entries come in ascending order of their raw names."""

    def __init__(self, put: Put, page_key: bytes) -> None:
        self._pages = PageWriter(put, Kind.DIRECTORY, page_key)

    def add(self, node: Node, raw: bytes | msgspec.Raw | None = None) -> None:
        """`raw`: the node's encoding, where it is copied from an earlier snapshot."""
        if raw is None:
            raw = records.encode(node)
        below, name = node.below, node.name
        if below is None:
            sums = Sums(1, node.size or 0, 1, int(node.is_file))
        else:
            sums = Sums(1, below.size, 1 + below.nodes, below.files)
        self._pages.add(raw, name, sums, name)

    def clone(self) -> DirectoryWriter:
        other = DirectoryWriter.__new__(DirectoryWriter)
        other._pages = self._pages.clone()
        return other

    def finish(self) -> tuple[bytes | None, Below]:
        """(root page or None for an empty directory, what is below)."""
        branch = self._pages.finish()
        if branch is None:
            return None, Below()
        return branch.id, Below(branch.nodes, branch.files, branch.size)


class Trees:
    """Reads directories.  `node` is always a directory's Node."""

    def __init__(self, blobs: BlobReader) -> None:
        self._pages = PageReader(blobs, Kind.DIRECTORY, LEAF)

    def entries(self, node: Node, start: int = 0) -> Iterator[Found[Node]]:
        """The entries from the `start`-th on, in ascending order of raw names."""
        return iter(()) if node.root is None else self._pages.iterate(node.root, start)

    def runs(self, node: Node, start: int = 0) -> Iterator[Run[Node]]:
        """The same, as many at once as come in one piece."""
        return iter(()) if node.root is None else self._pages.runs(node.root, start)

    def children(self, node: Node, start: int = 0) -> Iterator[Node]:
        return (found.entry for found in self.entries(node, start))

    def lookup(self, node: Node, name: bytes) -> Found[Node] | None:
        return None if node.root is None else self._pages.by_name(node.root, name)

    def at_node(self, node: Node, number: int) -> Found[Node] | None:
        """The entry that is, or holds, the `number`-th node below (0: the first entry itself)."""
        return None if node.root is None else self._pages.by_node(node.root, number)

    def cached(self, node: Node) -> bool:
        return node.root is None or self._pages.cached(node.root)

    def resolve(self, root: Node, path: bytes) -> Node:
        """The node at a path below `root`.  Raises SnapshotNotFound if there is none."""
        node = root
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            found = self.lookup(node, name) if node.is_dir else None
            if found is None:
                raise SnapshotNotFound(
                    f"{path.decode('utf-8', 'backslashreplace')}: no such path in the snapshot"
                )
            node = found.entry
        return node

    def walk(self, node: Node, path: bytes = b"") -> Iterator[Walked]:
        """Everything below a directory in depth-first order, parents first; `path` is put before all names."""
        descent = Descent(self, node)
        while descent.depth:
            child = descent.next()
            if child is None:
                left = descent.leave()
                if descent.depth:
                    path = path[: -1 - len(left.name)]
                continue
            here = path + b"/" + child.name
            yield Walked(here, child)
            if child.is_dir:
                descent.enter(child)
                path = here


class Descent:
    """Directories within one another, and how far each is read.  However deep, only a few hold a page."""

    def __init__(self, trees: Trees, root: Node) -> None:
        self._trees = trees
        self._open: list[_Level] = []
        self.enter(root)

    @property
    def depth(self) -> int:
        """1: in the directory that it began with."""
        return len(self._open)

    def next(self) -> Node | None:
        """The next entry of the directory entered last; None at its end.  Raises Damaged, also where it is too deep."""
        level = self._open[-1]
        if level.entries is None:
            check_depth(len(self._open))
            level.entries = self._trees.children(level.node, level.taken)
        level.taken += 1
        return next(level.entries, None)

    def enter(self, node: Node) -> None:
        self._open.append(_Level(node))
        if len(self._open) > _HELD:
            self._open[-_HELD - 1].entries = None

    def leave(self) -> Node:
        """The directory that is left."""
        return self._open.pop().node


class _Level:
    __slots__ = ("entries", "node", "taken")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.entries: Iterator[Node] | None = None
        self.taken = 0


def check_depth(depth: int) -> None:
    """Raise Damaged for a directory in more than L.DEPTH_LIMIT others: what is done at every entry takes its path's length."""
    if depth > L.DEPTH_LIMIT:
        raise Damaged(f"more than {L.DEPTH_LIMIT:,} directories within one another", "tree")


class Walked(NamedTuple):
    path: bytes
    node: Node
