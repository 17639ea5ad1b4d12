"""Forgotten snapshots back into the list, as long as all that they need is there.

Prune may be removing that, so it is done as writers do (docs/concurrency.md): a lease, a look at everything, the event, another
look; what went in between is said, and they are forgotten again.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot


def undelete(
    repository: Repository,
    chosen: Sequence[StoredSnapshot],
    *,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> CheckResult:
    """Bring forgotten snapshots back: all of them, or, if anything that one needs is gone, none.

    `affected` of the result: the files that are gone; when it is `ok`, they are back.  Raises RepositoryError.
    """
    if dry_run or not chosen:
        return _look(repository, chosen, progress)[0]
    ids = [snapshot.id for snapshot in chosen]
    with repository.writing() as lease:
        found, there = _look(repository, chosen, progress)
        lease.renew()  # before the volumes are listed: what is there then, it protects
        if found.ok and not there <= repository.volumes.listing().keys():
            found, there = _look(repository, chosen, progress)
        if not found.ok:
            return found
        repository.events.undelete(ids)
        lease.renew()
        if not there <= repository.volumes.listing().keys():
            found, _ = _look(repository, chosen, progress)
            if not found.ok:
                repository.events.forget(ids)
        return found


def _look(
    repository: Repository, chosen: Sequence[StoredSnapshot], progress: Progress
) -> tuple[CheckResult, set[bytes]]:
    """What is missing, and the names of the volumes there were before."""
    there = set(repository.volumes.listing())
    repository.synchronise()
    walk = TreeCheck(repository, progress)
    progress.phase("check snapshots", len(chosen))
    for snapshot in chosen:
        walk.check(snapshot)
        progress.advance(files=1)
    if walk.damaged:
        progress.phase("name damaged files", len(chosen))
        for snapshot in chosen:
            walk.name(snapshot)
            progress.advance(files=1)
    return walk.found, there
