"""What the live snapshots need of each volume: one bit a blob, and sums.

`stats` says it, and `prune` acts by it, so both agree.  Of a blob that lies in several volumes one copy counts: one in a volume
to rely on rather than another, else that with the larger live part.  So what a prune wrote wins over what it was about to remove,
also if it was killed in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from snapfs.repo.blobs import BlobReader
from snapfs.repo.content import Contents, names_blobs
from snapfs.repo.errors import BlobMissing, Damaged
from snapfs.repo.index import IndexedVolume
from snapfs.repo.marks import Marks
from snapfs.repo.model import Below, Kind, Location, MiB, Node
from snapfs.repo.pagewalk import PageWalk
from snapfs.repo.progress import Progress

if TYPE_CHECKING:
    from snapfs.repo.events import State, StoredSnapshot
    from snapfs.repo.repository import Repository

_REPORTED = 1 << 16


@dataclass
class VolumeUse:
    """One volume; lengths in bytes of plaintext."""

    volume: IndexedVolume
    blobs: int = 0
    live_blobs: int = 0
    plain: int = 0
    live: int = 0
    copies: int = 0
    """Blobs of it that are live, and count as dead since another volume has them, too."""

    @property
    def unused(self) -> int:
        """Bytes of the file that nothing needs: by share, since what is dead in a frame is compressed with the rest."""
        return self.volume.size - self.used

    @property
    def used(self) -> int:
        return self.volume.size * self.live // self.plain if self.plain else self.volume.size


@dataclass
class Usage:
    volumes: dict[int, VolumeUse]
    """By number in the index: those that are there."""
    kept: Marks
    """The places of live blobs, one of each."""

    @property
    def size(self) -> int:
        return sum(use.volume.size for use in self.volumes.values())

    @property
    def unused(self) -> int:
        return sum(use.unused for use in self.volumes.values())


def live_snapshots(state: State) -> list[StoredSnapshot]:
    """All whose blobs are needed, ascending by time: those that are listed, and the checkpoint from which an interrupted backup
    of each host and paths would go on."""
    newest: dict[tuple[bytes, frozenset[bytes]], StoredSnapshot] = {}
    for snapshot in sorted(
        [*state.snapshots, *state.checkpoints], key=lambda s: (s.record.time, s.record.complete)
    ):
        newest[snapshot.record.host, frozenset(snapshot.record.paths)] = snapshot
    resumed = [snapshot for snapshot in newest.values() if not snapshot.record.complete]
    return sorted([*state.snapshots, *resumed], key=lambda s: (s.record.time, s.id))


class NeededBlobs(PageWalk):
    """Walks snapshots and calls need() for each of their blobs; what lies below a page is walked once, as long as need() says
    that the page is known.  Reads pages by an index that was just compared, and never looks again."""

    def __init__(self, repository: Repository, progress: Progress, cache_bytes: int = 16 * MiB) -> None:
        self.index = repository.index
        self.reader = BlobReader(
            repository.index, repository.volumes, repository.keys, lambda _: False, cache_bytes
        )
        super().__init__(self.reader)
        self._contents = Contents(self.reader)
        self._progress = progress

    def need(self, kind: Kind, blob: bytes, owner: int) -> bool:
        """True if it was not needed before.  Raises BlobMissing."""
        raise NotImplementedError

    def add(self, snapshot: StoredSnapshot) -> None:
        """Everything a snapshot needs.  Raises Damaged, BlobMissing; of a checkpoint, what cannot be found is left out: it saves
        the next backup work, and nothing else."""
        try:
            self._node(snapshot.record.root)
            for _, node in self.walk(snapshot.record.root):
                self._node(node)
        except Damaged:
            if snapshot.record.complete:
                raise

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        if self._progress.interrupted:
            raise KeyboardInterrupt
        return self.need(Kind.DIRECTORY, page, 0)

    def _node(self, node: Node) -> None:
        if not names_blobs(node):
            return
        for kind, blob in self._contents.blobs(node):
            new = self.need(kind, blob, node.uid if kind is Kind.CONTENT else 0)
            if not new and kind is Kind.LIST and blob == node.root:
                return


class _Marking(NeededBlobs):
    """Marks every copy of every live blob."""

    def __init__(self, repository: Repository, progress: Progress, there: set[int]) -> None:
        super().__init__(repository, progress)
        self._there = there
        self.marks = Marks()

    def need(self, kind: Kind, blob: bytes, owner: int) -> bool:
        new = found = False
        for at in self.index.copies(blob):
            if at.volume in self._there:
                found = True
                new = self.marks.add_blob(at) or new
        if not found:
            raise BlobMissing(blob)
        return new


def usage(repository: Repository, snapshots: list[StoredSnapshot], progress: Progress) -> Usage:
    """What these snapshots need.  The index has to be up to date.  Raises Damaged, BlobMissing, StorageError."""
    index = repository.index
    listing = repository.volumes.listing()
    there = {
        volume.number: VolumeUse(volume)
        for volume in index.volumes()
        if listing.get(volume.name, (None, -1))[1] == volume.size
    }
    marking = _Marking(repository, progress, set(there))
    progress.phase("mark", len(snapshots))
    # Of a checkpoint, what lies below a marked page may be unmarked: so they come when all that must be whole is done.
    for snapshot in sorted(snapshots, key=lambda snapshot: not snapshot.record.complete):
        marking.add(snapshot)
        progress.advance(files=1)
    return _settle(repository, there, marking.marks, progress)


def _settle(repository: Repository, there: dict[int, VolumeUse], marks: Marks, progress: Progress) -> Usage:
    """Sums; and of the marked places of each blob all but one are taken out."""
    progress.phase("count", repository.index.count())
    several = False
    for copies in _blobs(repository, progress):
        marked = 0
        for at in copies:
            use = there.get(at.volume)
            if use is None:
                continue
            use.blobs += 1
            use.plain += at.length
            if marks.has_blob(at):
                marked += 1
                use.live_blobs += 1
                use.live += at.length
        several = several or marked > 1
    if several:
        progress.phase("compare copies", repository.index.count())
        best = {
            number: (
                use.volume.usable,
                use.volume.verified,
                use.live / max(use.plain, 1),
                use.volume.size,
                use.volume.name,
            )
            for number, use in there.items()
        }
        for copies in _blobs(repository, progress):
            marked_places = [at for at in copies if marks.has_blob(at) and at.volume in there]
            for at in sorted(marked_places, key=lambda at: best[at.volume])[:-1]:
                marks.discard(at.volume, at.entry)
                there[at.volume].live_blobs -= 1
                there[at.volume].live -= at.length
                there[at.volume].copies += 1
    return Usage(there, marks)


def _blobs(repository: Repository, progress: Progress) -> Iterator[list[Location]]:
    """The places of each blob in the index."""
    seen = 0
    for _, group in groupby(repository.index.entries(), key=lambda entry: entry[0]):
        copies = [at for _, at in group]
        seen += len(copies)
        if seen >= _REPORTED:
            progress.advance(files=seen)
            seen = 0
            if progress.interrupted:
                raise KeyboardInterrupt
        yield copies
    progress.advance(files=seen)
