"""Remove what no snapshot needs, rewrite what few need (docs/concurrency.md, P1 to P6).

Killed at any step, nothing that is live is lost, and the next prune finishes what was begun: there is no state but the volumes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from snapfs.repo.errors import BlobMissing, Damaged, StorageError, UnsupportedFormat
from snapfs.repo.index import IndexBroken
from snapfs.repo.packing import BlobWriter
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.prune.copies import damaged_copies
from snapfs.repo.prune.plan import Plan, Scatter, Unused, plan
from snapfs.repo.prune.removal import Removal, settled
from snapfs.repo.prune.rewrite import Rewriter
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.storage.locks import Lease, Writer
from snapfs.repo.usage import Usage, VolumeUse, live_snapshots, usage

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class PruneOptions:
    unused: Unused = field(default_factory=lambda: Unused(share=0.05))
    """So much may stay that nothing needs."""
    most: int | None = None
    """Bytes of volumes that are rewritten, at most."""
    scatter: Scatter = field(default_factory=Scatter)
    """How much more than they need the newest snapshots may open."""
    patience: float = 0
    """Seconds to wait for backups that run."""
    volume_size: int | None = None
    """Of new volumes, in bytes; None: that of the repository."""
    dry_run: bool = False
    old_keys: bool = False
    """Rewrite all that is sealed with keys that were changed."""


@dataclass
class PruneResult:
    """What was done; sizes in bytes."""

    plan: Plan = field(default_factory=Plan)
    snapshots: int = 0
    done: bool = False
    """Not a dry run, and agreed to."""
    volumes_removed: int = 0
    bytes_removed: int = 0
    volumes_written: int = 0
    bytes_written: int = 0
    bytes_left: int = 0
    """Of volumes that were to be removed, and stay until the next prune because of a writer."""
    in_the_way: list[Writer] = field(default_factory=list)
    unused: int = 0
    """Bytes that nothing needs, afterwards."""

    @property
    def freed(self) -> int:
        return self.bytes_removed - self.bytes_written


def prune(
    repository: Repository,
    options: PruneOptions = PruneOptions(),
    progress: Progress = SILENT,
    agreed: Callable[[Plan], bool] = lambda _: True,
) -> PruneResult:
    """`agreed` is told what will be done before anything is, and may say no.

    Raises RepositoryLocked if another one is at work, UnsupportedFormat, Damaged where something live cannot be found (then
    nothing is removed), StorageError; KeyboardInterrupt when progress.interrupted is set.
    """
    with repository.storage.locks.alone():
        if options.dry_run:
            return _Prune(repository, None, options, progress).run(agreed)
        # A lease: a prune on a machine that does not see this one's locks must not remove, too.
        with repository.writing() as lease:
            try:
                return _Prune(repository, lease, options, progress).run(agreed)
            except IndexBroken:
                repository.synchronise(thorough=True)
                return _Prune(repository, lease, options, progress).run(agreed)


class _Prune:
    def __init__(
        self, repository: Repository, lease: Lease | None, options: PruneOptions, progress: Progress
    ) -> None:
        self._repository = repository
        self._lease = lease
        self._options = options
        self._progress = progress
        self._result = PruneResult()
        self._sparing = False
        """Some copy turned out to be damaged: then what is not relied on stays, whatever it is."""
        self._written: set[bytes] = set()
        """Names of new volumes."""

    def run(self, agreed: Callable[[Plan], bool]) -> PruneResult:
        repository, options, result = self._repository, self._options, self._result
        state = settled(repository)
        repository.synchronise()
        self._live = live_snapshots(state)
        result.snapshots = len(state.snapshots)
        self._usage = self._measure(self._live)
        self._plan()
        if self._lease is None or not agreed(result.plan):
            return result
        # Those that are rewritten go in the end, too, with the copies in them that count as dead.
        while damaged := damaged_copies(
            repository, self._usage, (*result.plan.remove, *result.plan.rewrite), self._progress
        ):
            self._progress.notice(
                f"{len(damaged)} volumes turned out to be damaged: nothing is removed of which they were to keep the other copy, "
                "and `snapfs check --read-data` says more"
            )
            repository.note_damaged(damaged)
            self._sparing = True
            self._usage = self._measure(self._live)
            self._plan()
        result.done = True
        self._removal = Removal(
            repository, self._lease, self._usage, self._live, options.patience, self._progress
        )
        try:
            self._take_away()
        finally:
            self._removal.finish()
        return result

    def _plan(self) -> None:
        options, repository, result = self._options, self._repository, self._result
        if options.old_keys:
            for use in self._usage.volumes.values():
                use.must_go = self._has_old_keys(use)
        result.plan = plan(
            self._usage.volumes.values(), options.unused, options.most,
            options.volume_size or repository.config.volume_size, options.scatter, repository.storage.free(),
        )  # fmt: skip
        result.unused = result.plan.unused

    def _has_old_keys(self, use: VolumeUse) -> bool:
        """Of one that is not relied on only if that is because it was written after the keys were changed, and if the index knows
        all that is in it: what is noted as damaged may be all there is of something."""
        repository, volume = self._repository, use.volume
        volumes = repository.volumes.as_they_are()
        try:
            old = volumes.opener(volume.kind, volume.name).epoch < repository.keys.epoch
            if not old or volume.usable:
                return old
            if self._sparing or volume.name in repository.client.remembered.damaged:
                return False
            listed = sum(1 for _ in volumes.directory(volume.kind, volume.name, volume.size))
            return listed == use.blobs and not repository.trusts(volume.kind, volume.name)
        except (Damaged, UnsupportedFormat):
            return False

    def _take_away(self) -> None:
        options, result = self._options, self._result
        # Asked for in any case: from now on those count as dead, one day, who cannot be told from the dead.
        free = self._removal.is_free() or options.patience > 0
        self._remove(result.plan.remove)
        if result.plan.rewrite:
            if free and not result.in_the_way:
                self._rewrite(result.plan.rewrite)
            else:
                result.bytes_left += result.plan.read
        result.in_the_way = self._removal.in_the_way if result.bytes_left else []
        self._removal.sweep_parity()

    def _measure(self, live: list[StoredSnapshot]) -> Usage:
        """What is needed.  An index that misses something is built anew, once, before that is believed."""
        try:
            return usage(self._repository, live, self._progress)
        except (BlobMissing, IndexBroken):
            self._repository.synchronise(thorough=True)
            return usage(self._repository, live, self._progress)

    def _remove(self, victims: list[VolumeUse], *, later: bool = False) -> None:
        if not victims:
            return
        result = self._result
        gone = self._removal.remove(victims, later=later)
        result.in_the_way = self._removal.in_the_way
        result.volumes_removed += len(gone)
        result.bytes_removed += sum(use.volume.size for use in gone)
        result.unused -= sum(use.unused for use in gone)
        if result.in_the_way:
            result.bytes_left += sum(use.volume.size for use in victims) - sum(
                use.volume.size for use in gone
            )

    # ---- rewriting -----------------------------------------------------------------------------------------------

    def _rewrite(self, chosen: list[VolumeUse]) -> None:
        self._progress.phase("rewrite", None, sum(use.live for use in chosen))
        try:
            complete = self._copy(chosen, lambda rewriter: rewriter.in_order_of(self._live))
        except StorageError as error:
            if error.errno not in _FULL:
                raise
            if scattered := self._result.plan.scattered:
                self._take_back()
                apart = {use.volume.number for use in scattered}
                chosen = [use for use in chosen if use.volume.number not in apart]
            if chosen and not self._result.in_the_way:
                self._one_by_one(chosen)
        else:
            self._remove(complete)

    def _take_back(self) -> None:
        """What was written goes again: all of it is in the volumes that were to be rewritten, which stay.  One after the other
        they would be no less scattered than before."""
        self._progress.notice(
            "there is not room enough to put together what lies scattered: that stays as it is"
        )
        self._result.plan.scatter_left = self._result.plan.scatter
        written = [v for v in self._repository.index.volumes() if v.name in self._written]
        self._remove([VolumeUse(volume) for volume in written])

    def _one_by_one(self, chosen: list[VolumeUse]) -> None:
        """With as little room as the emptiest volume needs."""
        self._progress.notice("there is not room enough to rewrite all at once: one volume after the other")
        for use in chosen:
            self._progress.phase("rewrite", None, use.live)

            def copy(rewriter: Rewriter, use: VolumeUse = use) -> None:
                rewriter.one_by_one(use)

            self._remove(self._copy([use], copy), later=True)
            if self._result.in_the_way:
                return

    def _copy(self, chosen: list[VolumeUse], copy: Callable[[Rewriter], None]) -> list[VolumeUse]:
        """Write what is live in volumes into new ones; returns those of which all is durable elsewhere now."""
        repository = self._repository
        # Of what is kept in a volume that goes, another copy may lie in one that stays: nobody has read that one.
        avoid = self._usage.volumes.keys()
        writer = repository.writer(volume_size=self._options.volume_size, avoid=avoid)
        rewriter = Rewriter(repository, self._usage, chosen, writer, self._progress)
        try:
            with writer:
                copy(rewriter)
                writer.flush()
        finally:
            self._note(writer)  # what a failed one has published stays, and is used
        return rewriter.complete()

    def _note(self, writer: BlobWriter) -> None:
        self._written |= writer.published
        self._result.bytes_written += writer.stored.volumes
        self._result.volumes_written += len(writer.published)
        numbers = {v.number for v in self._repository.index.volumes() if v.name in writer.published}
        self._removal.relied_on |= numbers | writer.relied_on
