"""What a repository looks like as a file system: entries by inode and name, directories, contents.  No pyfuse3, no trio.

Inode numbers are computed, not remembered, so that memory does not grow with what was looked at.  Every snapshot that was
entered has a small number; every entry in it has a rank in depth-first order (the root 0, an entry the rank of its directory
plus 1 plus the nodes before it, which the pages' sums tell).  The inode is number * 2**40 + rank, and leads back to the entry by
bisection.  Below 2**40 are the folders above the snapshots; 1 is the root of the mount.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

from snapfs.fs.layout import Folder, arrange
from snapfs.fs.patience import PatientBlobs
from snapfs.repo.blobs import BlobReader
from snapfs.repo.content import Contents
from snapfs.repo.errors import Damaged
from snapfs.repo.events import StoredSnapshot
from snapfs.repo.model import BlobId, Kind, MiB, Node, NodeType
from snapfs.repo.pages import Found
from snapfs.repo.repository import Repository
from snapfs.repo.trees import Trees, nodes_of

ROOT = 1
RANK_BITS = 40
TREE_LIMIT = 1 << 21
"""Snapshots entered by one mount, at most: inode numbers stay below 2**61."""
_NODES = 16384
_RELOAD_SECONDS = 1.0
_STEPS = (4, 8, 16, 32, 64)
Path = tuple[bytes, ...]


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


class View:
    """Either the folders of all snapshots, or (`root`) one directory of one snapshot.  Use from any thread.

    Methods raise NotAtHand on the event loop's thread where another thread has to answer; Stale; RepositoryError.
    """

    def __init__(self, repository: Repository, root: Node | None = None,
                 select: Callable[[StoredSnapshot], bool] | None = None, keep_bytes: int = 32 * MiB) -> None:  # fmt: skip
        """`select`: which snapshots to show; `keep_bytes`: large blobs kept open for their next piece."""
        self._repository = repository
        self._select = select
        self._started = time.time_ns()
        self._lock = threading.Lock()
        self._reloading = threading.Lock()
        self.blobs = PatientBlobs(repository.blobs, keep_bytes)
        patient = cast(BlobReader, self.blobs)
        self._trees = Trees(patient)
        self._contents = Contents(patient)
        self._nodes: OrderedDict[int, Node] = OrderedDict()
        self._roots: list[Node] = []
        self._numbers: dict[tuple[Path, bytes], int] = {}
        self._paths: list[Path] = [()]
        """Of the folders and links above the snapshots; their inode is the position here plus ROOT."""
        self._path_inodes: dict[Path, int] = {(): ROOT}
        self._single = root is not None
        self._top = Folder()
        self._shown: Sequence[StoredSnapshot] | None = None
        self._reload_after = 0.0
        if root is not None:
            self._roots.append(root)

    # ---- entries -------------------------------------------------------------------------------------------------

    def entry(self, inode: int) -> Entry:
        """What an inode number stands for."""
        if inode == ROOT and self._single:
            return Entry(ROOT, self._roots[0], True)
        if inode >> RANK_BITS == 0:
            path = self._path_of(inode)
            return self._folder_entry(path, self._at(path))
        with self._lock:
            node = self._nodes.get(inode)
            if node is not None:
                self._nodes.move_to_end(inode)
        if node is None:
            node = self._find(inode)
            self._remember(inode, node)
        return Entry(inode, node, True)

    def is_lasting(self, inode: int) -> bool:
        """Whether it is part of a snapshot, so that nothing in it will ever change."""
        return self._single or inode >> RANK_BITS > 0

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """The entry of this name in a directory; None if there is none, or `parent` is no directory."""
        directory = self.entry(parent)
        if not directory.lasting:
            path = self._path_of(parent)
            here = self._at(path)
            child = here.entries.get(name) if isinstance(here, Folder) else None
            return None if child is None else self._folder_entry((*path, name), child)
        if not directory.node.is_dir:
            return None
        found = self._trees.lookup(directory.node, name)
        return None if found is None else self._child(directory, found)

    def directory(self, inode: int) -> Directory:
        """For listing.  Raises NotADirectoryError."""
        entry = self.entry(inode)
        if not entry.node.is_dir:
            raise NotADirectoryError
        if entry.lasting:
            return Directory(entry, lambda start: self._children(entry, start))
        path = self._path_of(inode)
        folder = self._at(path)
        assert isinstance(folder, Folder)
        names = list(folder.entries.items())
        return Directory(entry, lambda start: (
            (name, self._folder_entry((*path, name), child)) for name, child in names[start:]
        ))  # fmt: skip

    def _children(self, directory: Entry, start: int) -> Iterator[tuple[bytes, Entry]]:
        for found in self._trees.entries(directory.node, start):
            yield found.entry.name, self._child(directory, found)

    def _child(self, directory: Entry, found: Found[Node]) -> Entry:
        tree, rank = self._split(directory.inode)
        inode = tree << RANK_BITS | _child_rank(directory.node, rank, found)
        self._remember(inode, found.entry)
        return Entry(inode, found.entry, True)

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

    def _remember(self, inode: int, node: Node) -> None:
        with self._lock:
            self._nodes[inode] = node
            if len(self._nodes) > _NODES:
                self._nodes.popitem(last=False)

    # ---- the folders above the snapshots -------------------------------------------------------------------------

    def _path_of(self, inode: int) -> Path:
        if not ROOT <= inode < ROOT + len(self._paths):
            raise Stale
        return self._paths[inode - ROOT]

    def _at(self, path: Path) -> Folder | StoredSnapshot | bytes:
        self._reload()
        here: Folder | StoredSnapshot | bytes = self._top
        for name in path:
            child = here.entries.get(name) if isinstance(here, Folder) else None
            if child is None:
                raise Stale
            here = child
        return here

    def _folder_entry(self, path: Path, what: Folder | StoredSnapshot | bytes) -> Entry:
        if isinstance(what, StoredSnapshot):
            number = self._number(path[:-1], what)
            return Entry(number << RANK_BITS, self._roots[number - 1], True)
        with self._lock:
            inode = self._path_inodes.get(path)
            if inode is None:
                self._paths.append(path)
                inode = self._path_inodes[path] = ROOT + len(self._paths) - 1
        name = path[-1] if path else b""
        owner = os.getuid(), os.getgid(), None, None
        if isinstance(what, bytes):
            node = Node(name, NodeType.SYMLINK, 0o777, *owner, self._started, self._started, data=what)
        else:
            changed = what.time or self._started
            node = Node(name, NodeType.DIRECTORY, 0o555, *owner, changed, changed)
        return Entry(inode, node, False)

    def _number(self, folder: Path, snapshot: StoredSnapshot) -> int:
        """One number for each place a snapshot is shown at, so that no directory has two parents."""
        with self._lock:
            number = self._numbers.get((folder, snapshot.id))
            if number is None:
                if len(self._roots) >= TREE_LIMIT:
                    raise OverflowError("too many snapshots were entered: mount again")
                self._roots.append(snapshot.record.root)
                number = self._numbers[folder, snapshot.id] = len(self._roots)
        return number

    def _reload(self) -> None:
        """See which snapshots there are now, if the folder of events looks different, and once a second in any case."""
        events = self._repository.events
        if self._single or (time.monotonic() < self._reload_after and not events.may_have_changed()):
            return
        self.blobs.must_not_wait()
        with self._reloading:
            if time.monotonic() < self._reload_after and not events.may_have_changed():
                return
            shown = self._repository.snapshots()
            if shown is not self._shown:
                self._top = arrange([s for s in shown if self._select is None or self._select(s)])
                self._shown = shown
            self._reload_after = time.monotonic() + _RELOAD_SECONDS

    # ---- contents ------------------------------------------------------------------------------------------------

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """`size` bytes of a regular file from `offset`, fewer only at its end: never zeros for what cannot be read."""
        data = self._contents.read(node, offset, size)
        if len(data) != max(min(size, (node.size or 0) - offset), 0):
            raise Damaged("a file is not as long as it says", "content list")
        return data

    def load(self, node: Node, offset: int, size: int) -> None:
        """Have a part of a file at hand for a later read."""
        for span in self._contents.spans(node, offset, size):
            if span.id is not None and not self.blobs.at_hand(span.id, Kind.CONTENT):
                self.blobs.get(span.id, Kind.CONTENT)

    def load_after(self, inode: int) -> None:
        """Have the next small files at hand: those that come after one in a walk were joined in the same order."""
        for step in _STEPS:
            try:
                node = self.entry(inode + step).node
            except Stale:
                return
            first = node.blobs[0][0] if node.is_file and node.blobs else None
            if first is not None and not self.blobs.at_hand(BlobId(first), Kind.CONTENT):
                self.blobs.get(BlobId(first), Kind.CONTENT)
                return

    def xattr(self, node: Node, name: bytes) -> bytes | None:
        for attribute in node.xattrs or ():
            if attribute.name == name:
                if attribute.value is not None or attribute.blob is None:
                    return attribute.value or b""
                return next(value for found, value in self._contents.xattrs(node) if found == name)
        return None

    def totals(self) -> tuple[int, int]:
        """(bytes, nodes): of the one directory that is mounted, or as stored in the repository (nodes unknown: 0)."""
        if self._single:
            below = self._roots[0].below
            return (below.size, below.nodes) if below else (0, 0)
        self.blobs.must_not_wait()
        return sum(volume.size for volume in self._repository.index.volumes()), 0


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


def _child_rank(directory: Node, rank: int, found: Found[Node]) -> int:
    """The rank of an entry.  Raises Damaged unless it and all below it fit into what its directory says is below."""
    below = directory.below.nodes if directory.below is not None else 0
    if not 0 <= found.nodes_before <= below - nodes_of(found.entry) or rank + below >= 1 << RANK_BITS:
        raise Damaged("a directory's sums contradict one another", "directory")
    return rank + 1 + found.nodes_before
