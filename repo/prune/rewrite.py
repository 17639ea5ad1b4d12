"""What is live in volumes that are to go is written into new ones.

In the order in which the newest snapshot of each host and paths is walked, then, in frames of their own, what only older ones
need: so who reads a newest one finds one after the other what it reads one after the other, as in a repository that was just
made.  Where the disk has no room for that, one volume after the other, the emptiest first, each removed before the next is begun.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from snapfs.repo.errors import Damaged, VolumeMissing
from snapfs.repo.marks import Marks
from snapfs.repo.model import BlobId, Kind, Location
from snapfs.repo.packing import BlobWriter
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.usage import NeededBlobs, Usage, VolumeUse, by_importance


class Rewriter(NeededBlobs):
    """Copies the kept blobs of some volumes.  Use one for each BlobWriter."""

    def __init__(
        self, repository: Repository, usage: Usage, chosen: Iterable[VolumeUse], writer: BlobWriter, progress: Progress
    ) -> None:  # fmt: skip
        super().__init__(repository, progress, repository.cache_bytes)
        self._repository = repository
        self._kept = usage.kept
        self._chosen = {use.volume.number: use for use in chosen}
        self._writer = writer
        self._progress = progress
        self._walked, self._copied = Marks(), Marks()
        self._left = {number: use.live_blobs for number, use in self._chosen.items()}
        self.damaged: set[int] = set()
        """Numbers of volumes in which something did not open: they stay."""

    def complete(self) -> list[VolumeUse]:
        """The volumes of which everything was copied; the writer has to be flushed before anyone relies on that."""
        return [
            use
            for number, use in self._chosen.items()
            if not self._left[number] and number not in self.damaged
        ]

    def in_order_of(self, snapshots: list[StoredSnapshot]) -> None:
        """The newest ones first.  Raises StorageError, VolumeMissing."""
        newest, others = by_importance(snapshots)
        for snapshot in newest:
            self.add(snapshot)
            self._writer.end_frames()
        for snapshot in others:
            self.add(snapshot)

    def need(self, kind: Kind, blob: bytes, owner: int) -> bool:
        copies = self.index.copies(blob)
        if not copies:
            return False
        for at in copies:
            if at.volume in self._chosen and self._kept.has_blob(at) and self._copied.add_blob(at):
                self._copy(kind, BlobId(blob), at, owner)
        first = min(
            copies, key=lambda at: at.volume
        )  # the same one each time, also when a copy has been added
        return self._walked.add_blob(first)

    def one_by_one(self, use: VolumeUse) -> None:
        """All that is kept of one volume, in the order in which it lies there."""
        volume = use.volume
        directory = self._repository.volumes.directory(volume.kind, volume.name, volume.size)
        placed = (
            (BlobId(blob), Kind(kind), at._replace(volume=volume.number)) for blob, kind, at in directory
        )
        for frame, blobs in groupby(placed, key=lambda entry: entry[2].frame):
            for blob, kind, at in blobs:
                if self._kept.has_blob(at) and self._copied.add_blob(at):
                    # Whose it is is not known here, but one frame was of one owner.
                    self._copy(kind, blob, at, owner=frame)

    def _copy(self, kind: Kind, blob: BlobId, at: Location, owner: int) -> None:
        if self._progress.interrupted:
            raise KeyboardInterrupt
        try:
            data = self.reader.read_at(blob, kind, at)
        except VolumeMissing:
            raise
        except Damaged as error:
            volume = self._chosen[at.volume].volume
            if at.volume not in self.damaged:
                self.damaged.add(at.volume)
                self._progress.notice(
                    f"{error}: that volume stays, `snapfs repair volumes` saves what opens in it"
                )
                self._repository.note_damaged([volume.name])
            return
        self._writer.put(kind, data, owner)
        self._left[at.volume] -= 1
        self._progress.advance(bytes=at.length)
