"""Bringing forgotten snapshots back.  Prune may be removing what they need: so it is done as a writer (docs/concurrency.md)."""

from __future__ import annotations

from collections.abc import Iterable

from snapfs.repo.errors import SnapshotNotFound, StorageError
from snapfs.repo.events import StoredSnapshot
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.storage.locks import Lease
from snapfs.repo.usage import missing_blobs


def revive(repository: Repository, ids: Iterable[bytes], progress: Progress = SILENT) -> list[StoredSnapshot]:
    """Make forgotten snapshots live again, all of them or none; returns them, those left out that were not forgotten.

    Raises SnapshotNotFound for one that never was, or of which prune has removed something.
    """
    with repository.writing() as lease:
        repository.synchronise()
        before = repository.usable_volumes()
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
            _publish(repository, lease, [snapshot.id for snapshot in chosen], before)
    return chosen


def _publish(repository: Repository, lease: Lease, ids: list[bytes], before: dict[bytes, int]) -> None:
    """W5 to W7: the event stands only if the volumes that were looked at were there all the time."""
    lease.renew()
    why = "volumes vanished from the repository meanwhile (a prune?): run this again"
    if repository.vanished(before):
        raise StorageError(f"nothing was brought back: {why}")
    repository.events.undelete(ids)
    lease.renew()
    if repository.vanished(before):
        repository.events.forget(ids)
        raise StorageError(f"what was brought back was forgotten again: {why}")
