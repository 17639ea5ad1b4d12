"""The one pipeline: walk the sources, reuse what is unchanged, read what is not, write directories bottom-up, commit.

Data before index before event: every blob of the snapshot is durable before the snapshot's event is published, and the
volumes relied on are listed once more just before, and just after.  A file that cannot be read is reported and the rest goes
on; a repository that cannot be written stops the run and leaves no snapshot.
"""

from __future__ import annotations

import contextlib
import os
import time

from snapfs import __version__
from snapfs.repo.backup.chunker import Chunker
from snapfs.repo.backup.estimate import Estimate
from snapfs.repo.backup.files import FileReader, Interruption
from snapfs.repo.backup.options import BackupOptions, BackupResult, Stream
from snapfs.repo.backup.parents import choose
from snapfs.repo.backup.piped import piped
from snapfs.repo.backup.sources import absolute, branching, stream_path
from snapfs.repo.backup.walk import Walker
from snapfs.repo.errors import BackupOnly, StorageError, UsageError
from snapfs.repo.index import IndexBroken
from snapfs.repo.model import Below, Node, Snapshot, Totals
from snapfs.repo.packing import BlobWriter, DryWriter
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot


def backup(repository: Repository, options: BackupOptions, progress: Progress = SILENT) -> BackupResult:
    """Make a snapshot.

    Raises UsageError, RepositoryError; KeyboardInterrupt after a checkpoint when progress.interrupted is set.
    """
    try:
        return _Run(repository, options, progress).run()
    except IndexBroken as error:
        repository.synchronise(thorough=True)
        if options.stdin is not None:
            raise StorageError(
                f"{error}; that was done, but standard input cannot be read again, and no snapshot was made: run this again"
            ) from error
        return _Run(repository, options, progress).run()


class _Run:
    """One backup from start to commit."""

    def __init__(self, repository: Repository, options: BackupOptions, progress: Progress) -> None:
        self.repository = repository
        self.options = options
        self.progress = progress
        self.started = time.monotonic_ns()
        self.time = repository.system.now() if options.time is None else options.time
        if options.stdin is not None:
            if options.paths:
                raise UsageError("--stdin reads standard input: name no paths with it")
            self.paths: tuple[bytes, ...] = (stream_path(options.stdin_filename),)
        else:
            self.paths = tuple(dict.fromkeys(absolute(p) for p in options.paths))
            if not self.paths:
                raise UsageError("nothing to back up: name at least one file or folder")
        self.excludes = options.excludes.describe()
        keys = repository.keys
        if not keys.can_read:
            if options.host != keys.host:
                own, other = os.fsdecode(keys.host), os.fsdecode(options.host)
                raise UsageError(
                    f"this key backs up the host {own!r} and no other: leave --host out, or make a key for {other!r}"
                )
            if options.parent is not None:
                raise BackupOnly(", and reads no snapshot, so it goes on from its own last one and no other")

    def run(self) -> BackupResult:
        if self.options.dry_run:
            return self._look()
        with self.repository.writing() as self.lease:
            return self._look()

    def _look(self) -> BackupResult:
        repository, options = self.repository, self.options
        repository.synchronise()
        repository.tell_what_is_forgotten()
        repository.snapshots()  # says what is wrong with the events
        earlier = (
            [options.parent]
            if options.parent is not None
            else choose(repository.earlier(self.paths), options.host, self.paths)
        )
        self.earlier = [s for s in earlier if not options.force]
        self.parent = self.earlier[-1] if self.earlier else None
        self.losses = repository.index.losses()
        self.trusting = len(self.earlier) == 1 and repository.index.is_whole(self.earlier[0].id)
        self.trusted = repository.usable_volumes() if self.trusting else {}
        """Any of them may hold what is passed by as unchanged, also if another process learns meanwhile that it is gone."""
        if options.dry_run:
            return self._run(DryWriter(repository.index, repository.keys))
        with repository.writer(compression=options.compression, volume_size=options.volume_size) as writer:
            return self._run(writer)

    def _run(self, writer: BlobWriter | DryWriter) -> BackupResult:
        repository, options, config = self.repository, self.options, self.repository.config
        chunker = Chunker(
            repository.keys.chunker, config.chunk_minimum, config.chunk_average, config.chunk_maximum
        )
        reader = FileReader(writer, chunker, repository.keys.page, self._advance)
        self.walker = Walker(
            repository,
            options,
            writer,
            reader,
            self.progress,
            lambda: self._checkpoint(writer),
            self.trusting,
        )
        self.progress.phase("backup")
        if options.stdin is not None:
            try:
                root = self._piped(self.paths[0], options.stdin, reader)
            except Interruption:
                raise KeyboardInterrupt from None
        else:
            with Estimate(self.progress, self.paths, self.parent):
                root = self.walker.tree(branching(self.paths), [s.record.root for s in self.earlier])
        if not self.walker.counts.reached:
            raise UsageError("nothing was backed up: none of the paths can be read")
        if options.dry_run:
            return BackupResult(None, self._totals(writer, root), self.walker.errors, self.parent)
        assert isinstance(writer, BlobWriter)
        if options.skip_if_unchanged and self._says_the_same(writer):
            return BackupResult(
                None, self._totals(writer, root), self.walker.errors, self.parent, skipped=True
            )
        self.progress.phase("finish")
        stored = self._commit(writer, root, complete=True)
        return BackupResult(stored, stored.record.totals, self.walker.errors, self.parent)

    def _says_the_same(self, writer: BlobWriter) -> bool:
        """Whether the parent already is what a new snapshot would be.  What it had lost and was read again stays stored."""
        if (
            self.parent is None
            or not self.parent.record.complete
            or (self.parent.record.host, {*self.parent.record.paths}) != (self.options.host, {*self.paths})
            or len(self.earlier) > 1
            or self.walker.changed
        ):
            return False
        if not self.trusting:
            writer.flush()
        return not self._gone(writer)

    def _piped(self, path: bytes, stream: Stream, reader: FileReader) -> Node:
        walker, time = self.walker, self.options.time or self.repository.system.now()
        root = piped(
            path, stream, reader, walker.entries.put, self.repository.keys.page, self.options.user, time
        )
        walker.counts.reached = walker.changed = True
        walker.counts.files["new"] += 1
        walker.counts.directories = path.count(b"/") - 1
        return root

    def _advance(self, size: int) -> None:
        self.progress.advance(0, size)
        if self.progress.interrupted:
            raise Interruption

    def _commit(self, writer: BlobWriter, root: Node, complete: bool) -> StoredSnapshot:
        writer.flush()
        self.lease.renew()  # before the volumes are looked at: what is there then, it protects
        if gone := self._gone(writer):
            raise StorageError(
                f"{gone} volumes vanished from the repository or were cut short during the backup, "
                "so no snapshot was made: find out who changes files there, then run this again"
            )
        walker, options = self.walker, self.options
        totals = self._totals(writer, root)
        stored = self.repository.events.publish_snapshot(
            Snapshot(
                1, root, self.time, options.host, options.user, self.paths, options.tags, totals, complete, walker.errors,
                walker.entries.with_xattrs, tuple(walker.entries.filesystems), self.excludes, f"snapfs {__version__}".encode(),
                self.parent.id if self.parent is not None else None, os.geteuid(), os.getegid(),
            )
        )  # fmt: skip
        # Once more: of one that went while the event was written, nobody would say a word until it is needed.
        was_alive = self.lease.renew()
        if gone := self._gone(writer):
            if not self.repository.keys.can_read:
                raise StorageError(
                    f"{gone} volumes vanished from the repository or were cut short while the snapshot {stored.short} was saved, "
                    "and this key cannot take it back: forget it with one that opens everything, and run this again"
                )
            self.repository.events.forget([stored.id])  # what lacks something is no snapshot
            if not was_alive:
                raise StorageError(
                    "this backup stood still for so long that another machine took it for dead, and pruned what it was about to "
                    "rely on: no snapshot was made, run this again"
                )
            raise StorageError(
                f"{gone} volumes vanished from the repository or were cut short while the snapshot was saved, so it was taken "
                "back: find out who changes files there (a prune on a machine whose locks are not seen?), then run this again"
            )
        # Where that cannot be noted (a full disk, say), the snapshot is safe all the same, and the next run looks at everything.
        with contextlib.suppress(IndexBroken):
            self.repository.index.note_whole(
                stored.id, self.losses, self.parent.id if self.trusting and self.parent else None
            )
        if self.repository.own_pages is not None:
            self.repository.own_pages.keep_snapshot(stored)
        return stored

    def _gone(self, writer: BlobWriter) -> int:
        """List the volumes: how many that the new snapshot relies on are not there in the size they had.  These are marked."""
        known = self.repository.index.volumes()
        relied_on = dict(self.trusted)
        relied_on |= {
            v.name: v.size for v in known if v.number in writer.relied_on or v.name in writer.published
        }
        forgotten = len(writer.relied_on.difference(volume.number for volume in known))
        forgotten += len(writer.published.difference(relied_on))
        return len(self.repository.vanished(relied_on)) + forgotten

    def _checkpoint(self, writer: BlobWriter | DryWriter) -> None:
        """Publish what has been walked so far as an incomplete snapshot: a later run need not read it again."""
        root = self.walker.so_far()
        if isinstance(writer, BlobWriter) and root is not None:
            self._commit(writer, root, complete=False)

    def _totals(self, writer: BlobWriter | DryWriter, root: Node) -> Totals:
        below, stored, counts = root.below or Below(), writer.stored, self.walker.counts
        return Totals(
            files=below.files, directories=counts.directories, others=below.nodes - below.files - counts.directories,
            size=below.size, files_new=counts.files["new"], files_changed=counts.files["changed"],
            files_unmodified=counts.files["unchanged"], dirs_new=counts.dirs["new"], dirs_changed=counts.dirs["changed"],
            dirs_unmodified=counts.dirs["unchanged"], data_blobs=stored.data_blobs, tree_blobs=stored.tree_blobs,
            bytes_added=stored.plain, bytes_stored=stored.volumes, duration=time.monotonic_ns() - self.started,
        )  # fmt: skip
