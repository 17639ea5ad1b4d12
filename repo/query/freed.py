"""What removing snapshots would free: an estimate, in bounded memory.

A blob that nothing else needs counts with its share of the frame it lies in.  What a prune frees is less, where it leaves frames
as they are, or more, where it joins them better.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from snapfs.repo.errors import Damaged, RepositoryError
from snapfs.repo.format import labels as L
from snapfs.repo.model import Location, Node
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.query.stats import EveryBlob

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository
    from snapfs.repo.state import StoredSnapshot

_DIRECTORIES = 8
"""Volumes whose frames are remembered: blobs of one snapshot lie together."""


def freed(
    repository: Repository,
    keep: Iterable[StoredSnapshot],
    remove: Iterable[StoredSnapshot],
    *,
    progress: Progress = SILENT,
) -> list[int]:
    """Bytes in the repository for each of `remove`, in the same order; their sum is what removing them all would free.

    What several of them share and no other needs counts for the first of them.  What is damaged counts as nothing.
    Raises StorageError if the repository cannot be read.
    """
    repository.synchronise()
    keep, remove = list(keep), list(remove)
    walk = _Freed(repository)
    progress.phase("estimate", len(keep) + len(remove))
    found = []
    with contextlib.closing(walk.table):
        for snapshot in (*keep, *remove):
            before = walk.bytes
            walk.run(snapshot.record.root)
            found.append(round(walk.bytes - before))
            progress.advance(files=1)
    return found[len(keep) :]


class _Freed(EveryBlob):
    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self.bytes = 0.0
        self._plain: OrderedDict[int, dict[int, int]] = OrderedDict()
        """Volume -> frame -> plaintext of its blobs, in bytes."""

    def fresh(self, at: Location) -> None:
        sealed, plain = L.FRAME_HEADER_SIZE + at.sealed, self._frames(at.volume).get(at.frame)
        self.bytes += sealed * at.length / plain if plain else min(sealed, at.length)

    def node(self, path: bytes, node: Node) -> None:
        with contextlib.suppress(Damaged):
            super().node(path, node)

    def count(self, blob: bytes) -> bool:
        try:
            return super().count(blob)
        except Damaged:
            return False

    def failed(self, page: bytes, path: bytes, error: RepositoryError) -> None:
        if not isinstance(error, Damaged):
            raise error

    def _frames(self, number: int) -> dict[int, int]:
        frames = self._plain.get(number)
        if frames is None:
            frames = self._plain[number] = {}
            volume = self.repository.index.volume(number)
            with contextlib.suppress(Damaged):
                for _, _, at in self.repository.volumes.directory(volume.kind, volume.name, volume.size):
                    frames[at.frame] = frames.get(at.frame, 0) + at.length
            if len(self._plain) > _DIRECTORIES:
                self._plain.popitem(last=False)
        self._plain.move_to_end(number)
        return frames
