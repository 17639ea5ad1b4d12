"""What to restore, in order: a directory, what is in it, and its end, when its metadata is due.

Runs ahead of the writing, so a directory that cannot be read is a word on its last step, never an exception.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from snapfs.repo.errors import RepositoryError
from snapfs.repo.model import Node
from snapfs.repo.restore.selection import Selection
from snapfs.repo.trees import Descent, Trees


class Do(enum.IntEnum):
    ENTER = 1
    ENTRY = 2
    LEAVE = 3


class Step(NamedTuple):
    do: Do
    folder: bytes
    """Path of the directory it is in, in the snapshot, below what is restored: "" at the top, else "/a/b"."""
    node: Node
    depth: int
    """Components of its path; 0 is what is restored itself."""
    wanted: bool = True
    """ENTER: False for a directory that is made only if something below it is."""
    problem: RepositoryError | None = None
    """LEAVE: why the directory could not be read to its end."""

    @property
    def path(self) -> bytes:
        return self.folder + b"/" + self.node.name if self.depth else b""


def stripped(path: bytes, components: int) -> bytes:
    """A path of the walk ("/a/b/c") relative to the target, without its first components."""
    parts = path.split(b"/", components + 1)
    return parts[-1] if len(parts) == components + 2 else b""


def steps(trees: Trees, root: Node, selection: Selection) -> Iterator[Step]:
    """The steps for everything below `root`, its own LEAVE at the end; for another node than a directory, the one step."""
    if not root.is_dir:
        yield Step(Do.ENTRY, b"", root, 1)
        return
    folder, selective = b"", bool(selection)
    descent = Descent(trees, root)
    while descent.depth:
        problem, child = None, None
        try:
            child = descent.next()
        except RepositoryError as error:
            problem = error
        depth = descent.depth
        if child is None:
            node = descent.leave()
            if descent.depth:
                folder = folder[: -len(node.name) - 1]
            yield Step(Do.LEAVE, folder, node, depth - 1, problem=problem)
            continue
        wanted = True
        if selective:
            path = folder + b"/" + child.name
            if selection.excluded(path, child.is_dir):
                continue
            wanted = selection.included(path, child.is_dir)
            if not wanted and not (child.is_dir and selection.may_hold(path)):
                continue
        if child.is_dir:
            yield Step(Do.ENTER, folder, child, depth, wanted)
            folder += b"/" + child.name
            descent.enter(child)
        else:
            yield Step(Do.ENTRY, folder, child, depth)
