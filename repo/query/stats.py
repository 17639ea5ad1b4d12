"""How much the snapshots hold, counted in restic's four ways, in bounded memory.

restore-size       every file of every snapshot at its full size, the names of one hard link once a snapshot
files-by-contents  regular files of equal content once
blobs-per-file     the distinct blobs of each path, over files of distinct content
raw-data           every blob once, and the frames it lies in
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapfs.repo.content import names_blobs
from snapfs.repo.errors import BlobMissing
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.marks import FirstComers, Marks
from snapfs.repo.model import Below, Kind, Location, Node
from snapfs.repo.pagewalk import PageWalk
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.usage import live_snapshots, usage

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository
    from snapfs.repo.state import StoredSnapshot


class Mode(enum.Enum):
    RESTORE_SIZE = "restore-size"
    FILES_BY_CONTENTS = "files-by-contents"
    BLOBS_PER_FILE = "blobs-per-file"
    RAW_DATA = "raw-data"


@dataclass
class Stats:
    snapshots: int = 0
    files: int = 0
    """restore-size: entries of every type; files-by-contents: regular files; blobs-per-file: paths with content; raw-data: 0."""
    blobs: int = 0
    """blobs-per-file: (path, blob) pairs; raw-data: blobs; otherwise 0."""
    size: int = 0
    """Bytes: logical ones of files, plaintext of blobs, or (raw-data) sealed frames as they are stored."""
    plain: int = 0
    """raw-data: plaintext bytes of the blobs."""
    stored: int = 0
    """raw-data: all volumes as they are stored, in bytes."""
    unused: int = 0
    """raw-data: bytes of these that no snapshot needs, whichever are counted: what `prune` goes by."""


def stats(
    repository: Repository, snapshots: Iterable[StoredSnapshot], mode: Mode, *, progress: Progress = SILENT
) -> Stats:
    """Raises Damaged, BlobMissing where something that has to be counted cannot be read."""
    repository.synchronise()  # the snapshots may be of another machine, whose volumes this index does not know yet
    walk = _WALKS[mode](repository)
    progress.phase("count")
    with closing(walk.table):
        for snapshot in snapshots:
            walk.stats.snapshots += 1
            walk.run(snapshot.record.root)
            progress.advance(files=1)
    if mode is Mode.RAW_DATA:
        needed = usage(repository, live_snapshots(repository.events.load()), progress)
        walk.stats.stored, walk.stats.unused = needed.size, needed.unused
    return walk.stats


class _Walk(PageWalk):
    def __init__(self, repository: Repository) -> None:
        super().__init__(repository.blobs)
        self.repository = repository
        self.stats = Stats()
        self.table = FirstComers()
        self.walked = Marks()

    def run(self, root: Node) -> None:
        for path, node in self.walk(root):
            self.node(path, node)

    def node(self, path: bytes, node: Node) -> None:
        raise NotImplementedError

    def place(self, blob: bytes) -> Location:
        """One place for each blob, always the same."""
        copies = self.repository.index.copies(blob)
        if not copies:
            raise BlobMissing(blob, "index")
        return copies[0]


class _RestoreSize(_Walk):
    """A page without hard links below it is walked once; met again, its sums say all."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._linked = Marks()

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        at = self.place(page)
        if self.walked.add_blob(at):
            return True
        if self._linked.has_blob(at):
            self.hit()
            return True
        self.stats.files += below.nodes
        self.stats.size += below.size
        return False

    def leave(self, page: bytes, path: bytes, hit: bool) -> None:
        if hit:
            self._linked.add_blob(self.place(page))

    def node(self, path: bytes, node: Node) -> None:
        self.stats.files += 1
        if node.is_file and (file := node.one_file) is not None:
            self.hit()
            if self.table.first(b"%d " % self.stats.snapshots + file) is not None:
                return
        self.stats.size += node.size or 0


class _ByContents(_Walk):
    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._files = Marks()

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        return self.walked.add_blob(self.place(page))

    def node(self, path: bytes, node: Node) -> None:
        if node.is_file and self.is_new(node):
            self.stats.files += 1
            self.stats.size += node.size or 0

    def is_new(self, node: Node) -> bool:
        """Whether this is the first file of this content: a bit where one id stands for all of it, else a digest in the table."""
        only = node.root
        if only is None and node.blobs is not None and len(node.blobs) == 1:
            only = node.blobs[0][0]
        if only is not None:
            return self._files.add_blob(self.place(only))
        return self.table.first(_digest(records.encode((node.blobs, node.data)))) is None


class _BlobsPerFile(_ByContents):
    def node(self, path: bytes, node: Node) -> None:
        if not node.is_file or not self.is_new(node):
            return
        for kind, blob in self.repository.contents.blobs(node):
            if kind is not Kind.CONTENT:
                continue
            if self.table.first(b"p" + _digest(path)) is None:
                self.stats.files += 1
            if self.table.first(b"b" + _digest(path + b"\0" + blob)) is None:
                self.stats.blobs += 1
                self.stats.size += self.place(blob).length


class EveryBlob(_Walk):
    """Every blob once: fresh() is called for each when it is first met."""

    def fresh(self, at: Location) -> None:
        raise NotImplementedError

    def run(self, root: Node) -> None:
        self.node(b"", root)
        super().run(root)

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        return self.count(page)

    def node(self, path: bytes, node: Node) -> None:
        if not names_blobs(node):
            return
        for kind, blob in self.repository.contents.blobs(node):
            if not self.count(blob) and kind is Kind.LIST and blob == node.root:
                return

    def count(self, blob: bytes) -> bool:
        """Whether it was not met before."""
        at = self.place(blob)
        if not self.walked.add_blob(at):
            return False
        self.fresh(at)
        return True


class _RawData(EveryBlob):
    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self._frames = Marks()

    def fresh(self, at: Location) -> None:
        self.stats.blobs += 1
        self.stats.plain += at.length
        if self._frames.add(at.volume, at.frame):
            self.stats.size += L.FRAME_HEADER_SIZE + at.sealed


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


_WALKS: dict[Mode, type[_Walk]] = {
    Mode.RESTORE_SIZE: _RestoreSize,
    Mode.FILES_BY_CONTENTS: _ByContents,
    Mode.BLOBS_PER_FILE: _BlobsPerFile,
    Mode.RAW_DATA: _RawData,
}
