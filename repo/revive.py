"""Bringing forgotten snapshots back.  Prune may be removing what they need: so it is done as a writer (docs/concurrency.md)."""

from __future__ import annotations

from collections.abc import Iterable

from snapfs.repo.errors import SnapshotNotFound
from snapfs.repo.events import StoredSnapshot
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.usage import missing_blobs


def revive(repository: Repository, ids: Iterable[bytes], progress: Progress = SILENT) -> list[StoredSnapshot]:
    """Make forgotten snapshots live again, all of them or none; returns them, those left out that were not forgotten.

    Raises SnapshotNotFound for one that never was, or of which prune has removed something.
    """
    with repository.writing():
        repository.synchronise()
        state = repository.events.load()
        forgotten = {snapshot.id: snapshot for snapshot in state.forgotten_snapshots}
        known = {snapshot.id for snapshot in state.snapshots}
        chosen = []
        for id_ in dict.fromkeys(ids):
            if id_ in forgotten:
                chosen.append(forgotten[id_])
            elif id_ not in known:
                raise SnapshotNotFound(f"no snapshot {id_.hex()[:8]} was ever here")
        progress.phase("check snapshots", len(chosen))
        for snapshot in chosen:
            if missing_blobs(repository, snapshot, progress):
                raise SnapshotNotFound(
                    f"snapshot {snapshot.short} cannot come back: prune has removed what only it needed"
                )
            progress.advance(files=1)
        if chosen:
            repository.events.undelete([snapshot.id for snapshot in chosen])
    return chosen
