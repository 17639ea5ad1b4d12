"""Forgotten snapshots back into the list, as long as all that they need is there.

Order as in a backup: a look at everything, the event, another look; what went in between is said, and they are forgotten again.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.events import StoredSnapshot
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository


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
    ids = [snapshot.id for snapshot in chosen]
    found, there = _look(repository, chosen, progress)
    if not found.ok or dry_run or not ids:
        return found
    repository.events.undelete(ids)
    if there <= repository.volumes.listing().keys():
        return found
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
