"""Damaged snapshots: a new one beside each, without the files that cannot be read.

The original stays as it is, and in the list unless it is to be forgotten.  Order of writes as in a backup: pages, index, a
look at all that the new snapshot needs, its event; only then the event that forgets the original.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import msgspec

from snapfs.repo.blobs import BlobReader
from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.errors import StorageError
from snapfs.repo.format import records
from snapfs.repo.model import Below, MiB, Node, Snapshot
from snapfs.repo.packing import BlobWriter, DryWriter, Putter
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repair.trees import TreeMender
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.storage.locks import Lease

TAG = b"repaired"


@dataclass
class MendedSnapshot:
    original: StoredSnapshot
    new: StoredSnapshot | None
    """None: nothing of it can be read (or it was a dry run)."""
    was_there: bool = False
    """An earlier repair had made the new one."""
    hopeless: bool = False
    forgotten: bool = False


@dataclass
class SnapshotsMended:
    whole: int = 0
    """Snapshots of which nothing is lost."""
    snapshots: list[MendedSnapshot] = field(default_factory=list)
    left_out: CheckResult = field(default_factory=CheckResult)
    """`affected`: what the new snapshots do not have: content (the file), listing (entries of a directory), attributes,
    holes (the file takes more room)."""


def repair_snapshots(
    repository: Repository,
    chosen: Iterable[StoredSnapshot],
    *,
    forget: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> SnapshotsMended:
    """Make a snapshot of what is left beside each that lost something; `forget`: take the originals out of the list.

    Raises RepositoryError; a place that fails is no damage, and nothing is left out because of it.
    """
    with nullcontext() if dry_run else repository.writing() as lease:
        repository.synchronise()
        return _Mending(repository, lease, progress).run(list(chosen), forget)


class _Mending:
    def __init__(self, repository: Repository, lease: Lease | None, progress: Progress) -> None:
        """`lease`: None for a dry run."""
        self._repository = repository
        self._lease = lease
        self._progress = progress
        self._result = SnapshotsMended()
        self._walked = TreeCheck(repository, progress)

    def run(self, chosen: list[StoredSnapshot], forget: bool) -> SnapshotsMended:
        repository, progress, result = self._repository, self._progress, self._result
        progress.phase("check snapshots", len(chosen))
        damaged = []
        for snapshot in chosen:
            before = self._walked.hits
            self._walked.check(snapshot)
            if self._walked.hits > before:
                damaged.append(snapshot)
            progress.advance(files=1)
        result.whole = len(chosen) - len(damaged)
        if not damaged:
            return result
        progress.phase("repair snapshots", len(damaged))
        if self._lease is None:
            for snapshot in damaged:
                self._mend(snapshot, DryWriter(repository.index, repository.keys))
            return result
        with repository.writer() as writer:
            for snapshot in damaged:
                mended = self._mend(snapshot, writer)
                if forget and mended.new is not None:
                    repository.events.forget([snapshot.id])
                    mended.forgotten = True
        return result

    def _mend(self, snapshot: StoredSnapshot, writer: Putter) -> MendedSnapshot:
        repository = self._repository
        reader = BlobReader(repository.index, repository.volumes, repository.keys, lambda _: False, 16 * MiB)
        mender = TreeMender(
            repository.index, reader, self._walked, writer.put, repository.keys.page,
            lambda path, what: self._result.left_out.name(snapshot.short, path, what),
        )  # fmt: skip
        root = mender.mend(snapshot.record.root)
        mended = MendedSnapshot(snapshot, None, hopeless=root is None)
        self._result.snapshots.append(mended)
        if root is not None and isinstance(writer, BlobWriter):
            writer.flush()
            self._publish(mended, root)
        self._progress.advance(files=1)
        return mended

    def _publish(self, mended: MendedSnapshot, root: Node) -> None:
        repository = self._repository
        record = self._record(mended.original, root)
        state = repository.events.load()
        while (id_ := repository.keys.snapshot_id(records.encode(record))) in state.forgotten:
            record = msgspec.structs.replace(record, time=record.time + 1)
        new = StoredSnapshot(id_, record, record.tags, repository.client.id)
        assert self._lease is not None
        self._lease.renew()
        repository.synchronise()
        before = repository.usable_volumes()
        look = TreeCheck(repository, self._progress)
        look.check(new)
        why = "volumes vanished from the repository while a snapshot was mended, so none was made: run this again"
        if not look.found.ok:
            raise StorageError(why)
        mended.was_there = any(s.id == id_ for s in state.snapshots)
        if mended.was_there:
            mended.new = new
            return
        made = repository.events.publish_snapshot(record)
        self._lease.renew()
        if repository.vanished(before):
            repository.events.forget([made.id])
            raise StorageError(why)
        mended.new = made

    @staticmethod
    def _record(original: StoredSnapshot, root: Node) -> Snapshot:
        record, below = original.record, root.below or Below()
        return msgspec.structs.replace(
            record,
            root=root,
            time=record.time + 1,  # just behind the original, so that `latest` is the one that can be read
            tags=tuple(sorted({*original.tags, TAG})),
            totals=msgspec.structs.replace(record.totals, files=below.files, size=below.size),
            parent=original.id,
        )
