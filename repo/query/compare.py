"""What differs between two trees, or between a tree and the live files.

Both sides are read in the order of raw names, page by page; directories and single pages that are equal on both sides are
never opened, so a comparison costs what has changed.  Letters are restic's: + - added and removed, M content, T type, U metadata
only, ? content that changed although size, mtime and ctime did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from snapfs.repo.content import Contents
from snapfs.repo.index import Index
from snapfs.repo.marks import Marks
from snapfs.repo.model import Kind, Node
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.query.live import Live
from snapfs.repo.query.sidebyside import Front, Plain, Stored, directory_pages, side_by_side

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository


class Change(NamedTuple):
    path: bytes
    """From the two roots on: "/sub/name"."""
    kind: str
    """One of + - M M? T U, and TU."""
    old: Node | None
    new: Node | None


@dataclass
class Side:
    """What one side has and the other lacks; bytes are plaintext of blobs."""

    files: int = 0
    dirs: int = 0
    others: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    bytes: int = 0

    def count(self, node: Node) -> None:
        if node.is_file:
            self.files += 1
        elif node.is_dir:
            self.dirs += 1
        else:
            self.others += 1


@dataclass
class DiffStats:
    """Filled in while diff() runs.  Blobs that also lie in directories equal on both sides, which are not read, count too."""

    changed_files: int = 0
    added: Side = field(default_factory=Side)
    removed: Side = field(default_factory=Side)

    def count(self, change: Change) -> None:
        if change.old is None and change.new is not None:
            self.added.count(change.new)
        elif change.new is None and change.old is not None:
            self.removed.count(change.old)
        elif "M" in change.kind:
            self.changed_files += 1


def diff(
    repository: Repository, a: Node, b: Node, *, metadata: bool = False, stats: DiffStats | None = None
) -> Iterator[Change]:
    """Every difference from `a` to `b` (two directories), in the order of paths.  Raises Damaged where a page cannot be read.

    `metadata`: also entries of which only owner, mode, times or attributes differ.
    """
    if stats is not None:
        repository.synchronise()  # blobs that the index does not know yet would be left out of the sums
    blobs = None if stats is None else _BlobSides(repository.index, repository.contents, stats)
    pages = directory_pages(repository.blobs)

    def paired(_: bytes, old: Node | None, new: Node | None) -> tuple[Front, Front]:
        if blobs is None:
            return Stored(pages, old), Stored(pages, new)
        return Stored(pages, old, blobs.before), Stored(pages, new, blobs.after)

    for path, old, new in side_by_side(a, b, paired):
        if blobs is not None and old is not new:
            blobs.entry(old, new)
        if change := _compare(path, old, new, metadata):
            if stats is not None:
                stats.count(change)
            yield change


def diff_live(repository: Repository, a: Node, path: bytes, *, metadata: bool = False, stats: DiffStats | None = None,
              progress: Progress = SILENT) -> Iterator[Change]:  # fmt: skip
    """Every difference from the stored directory `a` to the live one at `path`.  Files of equal size, mtime and ctime count as
    equal; the content of others of equal size is compared.  ctime alone is no difference: no restore can bring it back.

    What cannot be read goes to progress.error.  Raises SourceError if `path` is no directory.
    """
    live = Live(path, progress)
    pages = directory_pages(repository.blobs)
    contents = repository.contents

    def paired(below: bytes, old: Node | None, new: Node | None) -> tuple[Front, Front]:
        return Stored(pages, old), Plain(live.children(below) if new is not None else iter(()))

    for at, old, new in side_by_side(a, live.root(), paired):
        if old is None or new is None or old.type != new.type:
            change = _compare(at, old, new, False)
        else:
            kind = ""
            if old.is_file:
                same_times = (old.mtime, old.ctime) == (new.mtime, new.ctime)
                if old.size != new.size or (not same_times and not live.same_content(at, contents, old)):
                    kind = "M"
            elif (old.data, old.device) != (new.data, new.device):
                kind = "M"
            if not kind and metadata and _restorable(old, contents) != _restorable(new, contents):
                kind = "U"
            change = Change(at, kind, old, new) if kind else None
        if change:
            if stats is not None:
                stats.count(change)
            yield change


def _compare(path: bytes, old: Node | None, new: Node | None, metadata: bool) -> Change | None:
    if old is None or new is None:
        return Change(path, "+" if old is None else "-", old, new)
    kind = ""
    if old.type != new.type:
        kind = "T"
    elif _content(old) != _content(new):
        kind = "M"
        if old.is_file and (old.size, old.mtime, old.ctime) == (new.size, new.mtime, new.ctime):
            kind = "M?"
    if kind in ("", "T") and metadata and _metadata(old) != _metadata(new):
        kind += "U"
    return Change(path, kind, old, new) if kind else None


def _content(node: Node) -> object:
    return None if node.is_dir else (node.size, node.data, node.blobs, node.root, node.device)


def _blobs_of(node: Node) -> object:
    return _content(node), node.xattrs, node.holes


def _metadata(node: Node) -> object:
    return (
        node.mode, node.uid, node.gid, node.user, node.group, node.mtime, node.ctime, node.atime, node.xattrs, node.link,
        node.changed == 1,
    )  # fmt: skip


def _restorable(node: Node, contents: Contents) -> object:
    return (
        node.mode, node.uid, node.gid, node.user, node.group, node.mtime, dict(contents.xattrs(node)), node.link is None,
    )  # fmt: skip


# ---- blobs of either side --------------------------------------------------------------------------------------------


class _BlobSides:
    """Counts each blob once a side, and takes out those that turn up on both."""

    def __init__(self, index: Index, contents: Contents, stats: DiffStats) -> None:
        self._index = index
        self._contents = contents
        self._stats = stats
        self._before, self._after = Marks(), Marks()

    def before(self, kind: Kind, blob: bytes) -> None:
        self._see(kind, blob, self._before, self._after, self._stats.removed, self._stats.added)

    def after(self, kind: Kind, blob: bytes) -> None:
        self._see(kind, blob, self._after, self._before, self._stats.added, self._stats.removed)

    def entry(self, old: Node | None, new: Node | None) -> None:
        if old is not None and new is not None and _blobs_of(old) == _blobs_of(new):
            return
        for node, see in ((old, self.before), (new, self.after)):
            if node is not None:
                for kind, blob in self._contents.blobs(node):
                    see(kind, blob)

    def _see(self, kind: Kind, blob: bytes, here: Marks, there: Marks, mine: Side, other: Side) -> None:
        copies = self._index.copies(blob)
        if not copies or not here.add_blob(copies[0]):
            return
        side, sign = (other, -1) if there.has_blob(copies[0]) else (mine, 1)
        side.bytes += sign * copies[0].length
        if kind is Kind.CONTENT:
            side.data_blobs += sign
        else:
            side.tree_blobs += sign
