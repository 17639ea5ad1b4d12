"""What the live snapshots need of each volume, and how scattered the newest ones lie in it: a few bits a blob, and sums.

`stats` says it, and `prune` acts by it, so both agree.  Of a blob that lies in several volumes one copy counts: one in a volume
to rely on rather than another, else that in the volume with the larger live part, times the part that the newest snapshots need
of what they open there.  So what a prune wrote wins over what it was about to remove, also if it was killed in between.
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
from snapfs.repo.marks import FrameSizes, Marks
from snapfs.repo.model import Below, Kind, Location, MiB, Node
from snapfs.repo.pagewalk import PageWalk
from snapfs.repo.progress import Progress

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository
    from snapfs.repo.state import State, StoredSnapshot

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
    must_go: bool = False
    """It is to be rewritten, whatever is in it."""
    framed: int = 0
    """Bytes of the file that are its frames; what follows are shares of these, each blob counting with its share of its frame."""
    needed: int = 0
    newest: int = 0
    """Of `needed`, what the newest snapshots need."""
    opened: int = 0
    """The frames that who reads these opens, `newest` among it."""

    @property
    def unused(self) -> int:
        """Bytes of the file that nothing needs; within a frame by share, since what is dead there is compressed with the rest."""
        return self.volume.size - self.used

    @property
    def used(self) -> int:
        return self.volume.size * self.needed // self.framed if self.framed else self.volume.size


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
    """All whose blobs are needed, ascending by when they count as made: those that are listed, and the checkpoint from which an
    interrupted backup of each host and paths would go on."""
    newest: dict[tuple[bytes, frozenset[bytes]], StoredSnapshot] = {}
    for snapshot in sorted(
        [*state.snapshots, *state.checkpoints], key=lambda s: (state.made[s.id], s.record.complete)
    ):
        newest[snapshot.record.host, frozenset(snapshot.record.paths)] = snapshot
    resumed = [snapshot for snapshot in newest.values() if not snapshot.record.complete]
    return sorted([*state.snapshots, *resumed], key=lambda s: (state.made[s.id], s.id))


def by_importance(snapshots: list[StoredSnapshot]) -> tuple[list[StoredSnapshot], list[StoredSnapshot]]:
    """(the newest complete one of each host and paths, all others), each the last of `snapshots` first; checkpoints come last:
    what lies below a page that is in one, too, may not all be there."""
    seen: set[tuple[bytes, frozenset[bytes]]] = set()
    newest, others = [], []
    for snapshot in reversed(snapshots):
        key = (snapshot.record.host, frozenset(snapshot.record.paths))
        if snapshot.record.complete and key not in seen:
            seen.add(key)
            newest.append(snapshot)
        else:
            others.append(snapshot)
    others.sort(key=lambda snapshot: not snapshot.record.complete)
    return newest, others


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
    """Marks every copy of every live blob; and of those that the newest snapshots need, which come first, the frames."""

    def __init__(self, repository: Repository, progress: Progress, there: set[int]) -> None:
        super().__init__(repository, progress)
        self._there = there
        self.marks, self.newest, self.frames = Marks(), Marks(), Marks()
        self.is_newest = False

    def need(self, kind: Kind, blob: bytes, owner: int) -> bool:
        new = found = False
        for at in self.index.copies(blob):
            if at.volume in self._there:
                found = True
                if self.marks.add_blob(at):
                    new = True
                    if self.is_newest:
                        self.newest.add_blob(at)
                        self.frames.add(at.volume, at.frame)
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
    newest, others = by_importance(snapshots)
    for marking.is_newest, some in ((True, newest), (False, others)):
        for snapshot in some:
            marking.add(snapshot)
            progress.advance(files=1)
    return _settle(repository, there, marking, progress)


def _settle(
    repository: Repository, there: dict[int, VolumeUse], marking: _Marking, progress: Progress
) -> Usage:
    """Sums; and of the marked places of each blob all but one are taken out."""
    progress.phase("count", 2 * repository.index.count())
    marks, newest, frames = marking.marks, marking.newest, marking.frames
    sizes = FrameSizes()
    together = {number: _Together() for number in there}
    several = False
    for copies in _blobs(repository, progress):
        marked = 0
        for at in copies:
            use = there.get(at.volume)
            if use is None:
                continue
            use.blobs += 1
            use.plain += at.length
            sizes.add(at)
            if frames.has(at.volume, at.frame):
                together[at.volume].opened += at.length
            if marks.has_blob(at):
                marked += 1
                use.live_blobs += 1
                use.live += at.length
                if newest.has_blob(at):
                    together[at.volume].newest += at.length
        several = several or marked > 1
    if several:
        frames = _choose(repository, there, together, marking, progress)
    for copies in _blobs(repository, progress):
        for at in copies:
            use = there.get(at.volume)
            if use is None:
                continue
            share = sizes.share(at)
            use.framed += share
            if frames.has(at.volume, at.frame):
                use.opened += share
            if marks.has_blob(at):
                use.needed += share
                if newest.has_blob(at):
                    use.newest += share
    return Usage(there, marks)


@dataclass
class _Together:
    """Of one volume, in bytes of plaintext: what the newest snapshots need, and what is in the frames they open."""

    newest: int = 0
    opened: int = 0


def _choose(
    repository: Repository,
    there: dict[int, VolumeUse],
    together: dict[int, _Together],
    marking: _Marking,
    progress: Progress,
) -> Marks:
    """Of each blob one copy counts; returns the frames that the newest snapshots open then."""
    progress.phase("compare copies", 2 * repository.index.count())
    marks, newest, frames = marking.marks, marking.newest, Marks()
    best = {}
    for number, use in there.items():
        near = together[number]
        # What is live, and does not lie scattered among what the newest do not need.
        density = use.live / max(use.plain, 1) * (near.newest / near.opened if near.opened else 1)
        best[number] = (use.volume.usable, use.volume.verified, density, use.volume.size, use.volume.name)
    for copies in _blobs(repository, progress):
        places = sorted(
            (at for at in copies if marks.has_blob(at) and at.volume in there),
            key=lambda at: best[at.volume],
        )
        for at in places[:-1]:
            marks.discard(at.volume, at.entry)
            there[at.volume].live_blobs -= 1
            there[at.volume].live -= at.length
            there[at.volume].copies += 1
        if places and newest.has_blob(places[-1]):
            frames.add(places[-1].volume, places[-1].frame)
    return frames


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
