"""What a repository looks like as a file system: entries by inode and name, directories, contents.  No pyfuse3, no trio.

An inode number leads back to its entry by bisection along the sums in the pages; what the numbers mean is in entry.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from snapfs.fs.entry import RANK_BITS, ROOT, Directory, Entry, Run, Stale
from snapfs.fs.folders import Folders, Path
from snapfs.fs.patience import NotAtHand, PatientBlobs
from snapfs.repo.blobs import BlobReader
from snapfs.repo.content import Contents
from snapfs.repo.errors import Damaged, RepositoryError
from snapfs.repo.model import BlobId, Kind, MiB, Node
from snapfs.repo.pages import Found
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.trees import Trees, nodes_of

TREE_LIMIT = 1 << 21
"""Snapshots entered by one mount, at most: inode numbers stay below 2**61."""
_NODES = 16384
_STEPS = (1, 4, 8, 12, 16, 24, 32, 48, 64)


class View:
    """Either the folders of all snapshots, or (`root`) one directory of one snapshot.  Use from any thread.

    Methods raise NotAtHand on the event loop's thread where another thread has to answer; Stale; RepositoryError.
    """

    def __init__(self, repository: Repository, root: Node | None = None,
                 select: Callable[[StoredSnapshot], bool] | None = None, cache_bytes: int = 64 * MiB) -> None:  # fmt: skip
        """`select`: which snapshots to show; `cache_bytes`: opened frames and blobs kept for the next request."""
        self._repository = repository
        self._lock = threading.Lock()
        self.blobs = PatientBlobs(repository.blobs, cache_bytes)
        patient = cast(BlobReader, self.blobs)
        self._trees = Trees(patient)
        self._contents = Contents(patient)
        self._nodes: OrderedDict[int, Node] = OrderedDict()
        self._roots: list[Node] = []
        """Of the snapshots that were entered, in the order of their numbers, which begin with 1."""
        self._numbers: dict[tuple[Path, bytes], int] = {}
        self._single = root is not None
        self._folders = Folders(repository, select, self._enter, self.blobs.must_not_wait)
        if root is not None:
            self._roots.append(root)

    # ---- entries -------------------------------------------------------------------------------------------------

    def entry(self, inode: int) -> Entry:
        """What an inode number stands for."""
        if inode == ROOT and self._single:
            return Entry(ROOT, self._roots[0], True)
        if inode >> RANK_BITS == 0 and not self._single:
            return self._folders.entry(inode)
        with self._lock:
            node = self._nodes.get(inode)
            if node is not None:
                self._nodes.move_to_end(inode)
        if node is None:
            node = self._find(inode)
            self._remember((Entry(inode, node, True),))
        return Entry(inode, node, True)

    def is_lasting(self, inode: int) -> bool:
        """Whether it is part of a snapshot, so that nothing in it will ever change."""
        return self._single or inode >> RANK_BITS > 0

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """The entry of this name in a directory; None if there is none, or `parent` is no directory."""
        if not self.is_lasting(parent):
            return self._folders.lookup(parent, name)
        directory = self.entry(parent)
        if not directory.node.is_dir:
            return None
        found = self._trees.lookup(directory.node, name)
        return None if found is None else self._child(directory, found)

    def directory(self, inode: int) -> Directory:
        """For listing.  Raises NotADirectoryError."""
        if not self.is_lasting(inode):
            return self._folders.directory(inode)
        entry = self.entry(inode)
        if not entry.node.is_dir:
            raise NotADirectoryError
        return Directory(entry, lambda start: self._children(entry, start))

    def _children(self, directory: Entry, start: int) -> Iterator[Run]:
        tree, rank = self._split(directory.inode)
        base = tree << RANK_BITS
        for run in self._trees.runs(directory.node, start):
            first, nodes = run.first, run.page.nodes
            _check_ranks(directory.node, rank, run.nodes_before + nodes[-1])
            before = base + rank + 1 + run.nodes_before
            entries = [
                Entry(before + count, node, True)
                for count, node in zip(nodes[first:], run.entries[first:], strict=False)
            ]
            self._remember(entries)
            yield [(entry.node.name, entry) for entry in entries]

    def _child(self, directory: Entry, found: Found[Node]) -> Entry:
        tree, rank = self._split(directory.inode)
        entry = Entry(tree << RANK_BITS | _child_rank(directory.node, rank, found), found.entry, True)
        self._remember((entry,))
        return entry

    def _split(self, inode: int) -> tuple[int, int]:
        return (1, 0) if inode == ROOT else (inode >> RANK_BITS, inode & ((1 << RANK_BITS) - 1))

    def _find(self, inode: int) -> Node:
        tree, rank = self._split(inode)
        if not 0 < tree <= len(self._roots):
            raise Stale
        node, at = self._roots[tree - 1], 0
        while at != rank:
            found = self._trees.at_node(node, rank - at - 1) if node.is_dir else None
            if found is None:
                raise Stale
            node, at = found.entry, _child_rank(node, at, found)
        return node

    def _remember(self, entries: Iterable[Entry]) -> None:
        with self._lock:
            nodes = self._nodes
            for inode, node, _ in entries:
                nodes[inode] = node
            while len(nodes) > _NODES:
                nodes.popitem(last=False)

    def _enter(self, folder: Path, snapshot: StoredSnapshot) -> Entry:
        """The root of a snapshot.  One number for each folder it is shown in, so that no directory has two parents."""
        with self._lock:
            number = self._numbers.get((folder, snapshot.id))
            if number is None:
                if len(self._roots) >= TREE_LIMIT:
                    raise OverflowError("too many snapshots were entered: mount again")
                self._roots.append(snapshot.record.root)
                number = self._numbers[folder, snapshot.id] = len(self._roots)
        return Entry(number << RANK_BITS, self._roots[number - 1], True)

    # ---- contents ------------------------------------------------------------------------------------------------

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """`size` bytes of a regular file from `offset`, fewer only at its end: never zeros for what cannot be read."""
        data = self._contents.read(node, offset, size)
        if len(data) != max(min(size, (node.size or 0) - offset), 0):
            raise Damaged("a file is not as long as it says", "content list")
        return data

    def passed(self, node: Node, offset: int, size: int) -> None:
        """One who reads in sequence has read this part: blobs that end in it are the first that need not be kept."""
        with contextlib.suppress(NotAtHand, RepositoryError):
            for span in self._contents.spans(node, offset, size):
                if span.id is not None and span.skip + span.size == span.length:
                    self.blobs.first_to_go(span.id)

    def load(self, node: Node, offset: int, size: int) -> None:
        """Have a part of a file at hand for a later read."""
        for span in self._contents.spans(node, offset, size):
            if span.id is not None and not self.blobs.at_hand(span.id):
                self.blobs.get(span.id, Kind.CONTENT)

    def load_after(self, inode: int) -> int | None:
        """Have the next small files at hand: those that come after one in a walk were joined in the same order.

        Returns the inode from which on to look for the next, None after the last.
        """
        reached = None
        for step in _STEPS:
            try:
                node = self.entry(inode + step).node
            except Stale:
                break
            reached = inode + step
            first = node.blobs[0][0] if node.is_file and node.blobs else None
            if first is not None and not self.blobs.at_hand(BlobId(first)):
                self.blobs.get(BlobId(first), Kind.CONTENT)
                break
        return reached

    def xattr(self, node: Node, name: bytes) -> bytes | None:
        for attribute in node.xattrs or ():
            if attribute.name == name:
                return self._contents.value(attribute)
        return None

    def totals(self) -> tuple[int, int]:
        """(bytes, nodes): of the one directory that is mounted, or as stored in the repository (nodes unknown: 0)."""
        if self._single:
            below = self._roots[0].below
            return (below.size, below.nodes) if below else (0, 0)
        self.blobs.must_not_wait()
        return sum(volume.size for volume in self._repository.index.volumes()), 0


def _child_rank(directory: Node, rank: int, found: Found[Node]) -> int:
    """The rank of an entry."""
    _check_ranks(directory, rank, found.nodes_before + nodes_of(found.entry))
    return rank + 1 + found.nodes_before


def _check_ranks(directory: Node, rank: int, nodes: int) -> None:
    """Raise Damaged unless so many nodes fit into what their directory says is below it."""
    below = directory.below.nodes if directory.below is not None else 0
    if nodes > below or rank + below >= 1 << RANK_BITS:
        raise Damaged("a directory's sums contradict one another", "directory")
