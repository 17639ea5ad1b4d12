"""Is everything there that the snapshots refer to, and is it what was written?

Three looks, each in bounded memory: the events; the volumes (directories, or with `read_data` every byte: scrub.py; which
ones: subset.py); the snapshots' trees (treecheck.py).  Nothing is repaired here but the index; damaged volumes are noted, so
that the next backup stores their blobs anew.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from snapfs.repo.check.beside import WalkBeside
from snapfs.repo.check.findings import Affected, CheckResult, Problem
from snapfs.repo.check.parities import ParityLook
from snapfs.repo.check.scrub import Examiner, VolumeReport
from snapfs.repo.check.scrubbers import Scrubbers
from snapfs.repo.check.subset import Listing, Subset
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.index import IndexBroken
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.slots import sound_slot
from snapfs.repo.state import refused_events
from snapfs.repo.storage.base import TRASH
from snapfs.repo.volumes import object_name

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository
    from snapfs.repo.state import StoredSnapshot

_AGAIN = 3
_NAMED = 3
"""Volumes that are gone, and that nothing needs, are named if they are not more."""
__all__ = ["Affected", "CheckResult", "Problem", "check"]


def check(
    repository: Repository, *, read_data: bool | Subset = False, progress: Progress = SILENT
) -> CheckResult:
    """Look at everything, `read_data`: at every byte, or at every byte of some volumes.  Damage is in the result; raises only
    where the place itself fails."""
    try:
        return _run(repository, read_data, progress)
    except IndexBroken as error:
        repository.synchronise(thorough=True)
        result = _run(repository, read_data, progress)
        result.notes.append(f"the index was broken ({error}) and was rebuilt from the volumes")
        return result


def _run(repository: Repository, read_data: bool | Subset, progress: Progress) -> CheckResult:
    """Again, if a prune has moved meanwhile what was looked for: that is no damage."""
    for _ in range(_AGAIN):
        look = _Check(repository, read_data, progress)
        result = look.run()
        if result.ok or not look.overtaken():
            break
    return result


class _Check:
    def __init__(self, repository: Repository, read_data: bool | Subset, progress: Progress) -> None:
        self._repository = repository
        self._read_data = read_data
        self._progress = progress
        self._result = CheckResult()
        self._there: Collection[bytes] = ()
        """Names of the volumes that are there."""
        self._closed = False
        """The keys were changed: what newer ones sealed is no damage."""
        self._parities: ParityLook
        self._gone: dict[bytes, tuple[str, str]] = {}
        """Volumes the index knew that are absent or of another size: name -> (path, why)."""

    def run(self) -> CheckResult:
        result, repository = self._result, self._repository
        state = repository.events.load()
        for text in state.problems:
            result.add("event", text, "events")
        if state.refused:
            result.notes.append(refused_events(state.refused))
        result.missing_events = len(state.missing)
        if state.accepted:
            result.notes.append(
                f"{len(state.accepted)} events are missing; that was accepted on this machine (--accept-rollback)"
            )
        result.notes += state.notices
        self._closed = state.closed is not None
        if repository.config_problem is not None and not self._closed:
            result.add("config", repository.config_problem.removeprefix("config: "), "config")
        self._keys()
        self._leftovers()
        walk = self._contents(state.snapshots)
        if walk.damaged:
            self._progress.phase("name damaged files", len(state.snapshots))
            for snapshot in state.snapshots:
                walk.name(snapshot)
                self._progress.advance(files=1)
        result.take(walk.found)
        self._absences(walk)
        self._parities.tell(result)
        if walk.unreadable:
            there = repository.volumes.listing().keys()
            repository.index.mark(walk.unreadable, False)
            repository.note_damaged(walk.unreadable.intersection(there))
        return result

    def _contents(self, snapshots: Sequence[StoredSnapshot]) -> TreeCheck:
        """Volumes and trees."""
        repository, listing = self._repository, self._list()
        read = self._chosen(listing)
        to_read = sum(listing[name][1] for name in read)
        self._progress.phase("check volumes", len(listing), to_read or None)
        self._parities = ParityLook(repository, self._progress)
        examiner = Examiner(
            repository.volumes, repository.keys, read, repository.index.fingerprint, self._parities.listing
        )
        walk = TreeCheck(repository, self._progress)
        with (
            Scrubbers(examiner, to_read) as scrubbers,
            WalkBeside(repository.index, walk, snapshots, at_once=scrubbers.apart) as beside,
        ):
            largest_first = sorted((-size, name, kind) for name, (kind, size) in listing.items())
            listed = ((name, kind, -size) for size, name, kind in largest_first)
            if self._volumes(listing, scrubbers.examine(listed), read, beside) and not self._gone:
                self._progress.phase("check snapshots", len(snapshots))
                for _ in beside.walked():
                    self._progress.advance(files=1)
                if not (walk.damaged and scrubbers.apart):  # else it was not ahead of anything
                    return walk
        walk = TreeCheck(self._repository, self._progress)
        self._progress.phase("check snapshots", len(snapshots))
        for snapshot in snapshots:
            walk.check(snapshot)
            self._progress.advance(files=1)
        return walk

    def overtaken(self) -> bool:
        """Whether volumes went since they were listed."""
        return not set(self._there) <= self._repository.volumes.listing().keys()

    def _keys(self) -> None:
        """Key slots, those of other passwords too: who needs one finds out too late."""
        repository, unannounced = self._repository, []
        old: list[str] = []
        for name, note in repository.slots.notes():
            try:
                sound_slot(repository.storage, name)
            except (Damaged, StorageError) as error:
                if isinstance(error, StorageError) and error.errno != errno.EIO:
                    raise
                self._result.add("key", f"a password or recovery key opens nothing: {error}", f"keys/{name}")
            if note is None:
                unannounced.append(name[:8])
            elif note.epoch < repository.keys.epoch:
                old.append(name[:8])
        if old:
            self._result.notes.append(
                f"the key slot {', '.join(old)} has old keys: it was put back after `snapfs key rotate`, or that was cut off; "
                "`snapfs key remove` takes it away"
            )
        if unannounced:
            self._result.notes.append(
                f"nobody said that he added the key slot {', '.join(unannounced)}: a command that was killed, or somebody who "
                "changed files here"
            )

    def _leftovers(self) -> None:
        sizes = [size for _, size in self._repository.storage.list("tmp")]
        if sizes:
            self._result.notes.append(
                f"{len(sizes)} unfinished files ({sum(sizes)} bytes) in tmp/: of a backup that runs, or that was "
                "cut off; the next one sweeps them up"
            )
        sizes = [size for _, size in self._repository.storage.list(TRASH)]
        if sizes:
            self._result.notes.append(
                f"{len(sizes)} damaged volumes ({sum(sizes)} bytes) in {TRASH}/: set aside by `repair volumes`, read by nobody"
            )

    def _list(self) -> Listing:
        """The volumes there are; what the index knew otherwise is remembered."""
        listing = self._repository.volumes.listing()
        self._there = listing.keys()
        for known in self._repository.index.volumes():
            kind, size = listing.get(known.name, (known.kind, -1))
            if size != known.size:
                why = "missing" if size < 0 else f"{size} bytes long, it was {known.size}"
                self._gone[known.name] = object_name(kind, known.name), why
        self._repository.synchronise()
        return listing

    def _volumes(
        self, listing: Listing, reports: Iterable[VolumeReport], read: set[bytes], beside: WalkBeside
    ) -> bool:
        """Whether they are what the index says, each of them."""
        repository, result = self._repository, self._result
        index = repository.index
        prints: dict[bytes, int] = {}
        sound: set[bytes] = set()
        damaged: set[bytes] = set()
        result.newer_keys = 0
        for report in reports:
            if report.newer and self._closed:
                result.newer_keys += 1
                continue
            self._count(report)
            if (
                report.fingerprint is not None
            ):  # a damaged one may be another's bytes, which the index must know
                prints[report.name] = report.fingerprint
            (damaged if report.problems else sound).add(report.name)
        if result.newer_keys:
            result.notes.append(
                f"{result.newer_keys} volumes are sealed with newer keys, and were not looked at"
            )
        known = beside.fingerprints()
        wrong = any(known.get(name) != value for name, value in prints.items())
        if wrong:
            beside.stop()
            repository.synchronise(thorough=True)
            result.notes.append("the index disagreed with the volumes and was corrected")
        if damaged:
            # Of one that a prune has removed meanwhile there is nothing to be remembered.
            repository.note_damaged(damaged.intersection(repository.volumes.listing()))
        unusable = {volume.name for volume in index.volumes() if not volume.usable and volume.name in sound}
        self._heal(unusable, read, listing)
        # Every id in them was compared: they are as good now as if a machine had written them that is trusted.
        if new := [v.name for v in index.volumes() if v.usable and not v.verified and v.name in sound & read]:
            index.mark(new, True)
        return not wrong and not damaged

    def _heal(self, unusable: set[bytes], read: set[bytes], listing: Listing) -> None:
        """Volumes found damaged earlier, whose directories are sound: those not read yet are read whole now.  It may have been a
        cable, and without its note a volume need not be stored once more by the next backup."""
        repository, result = self._repository, self._result
        sound, rest = unusable & read, sorted(unusable - read)
        examiner = Examiner(repository.volumes, repository.keys, rest)
        for name in rest:
            if self._progress.interrupted:
                raise KeyboardInterrupt
            if not examiner.examine(name, *listing[name]).problems:
                sound.add(name)
        if sound:
            repository.note_sound(sound)
            result.notes.append(f"{len(sound)} volumes found damaged earlier are sound now")
        if left := len(unusable - sound):
            result.notes.append(
                f"{left} volumes were found damaged earlier and still are: `check --read-data` says more, "
                "`repair volumes` saves what opens"
            )

    def _chosen(self, listing: Listing) -> set[bytes]:
        """Names of the volumes to be read whole."""
        if isinstance(self._read_data, Subset):
            return self._read_data.choose(listing, self._repository.system.entropy)
        return set(listing) if self._read_data else set()

    def _count(self, report: VolumeReport) -> None:
        if self._progress.interrupted:
            raise KeyboardInterrupt
        result = self._result
        self._parities.count(report, result)
        for text in report.problems:
            path = object_name(report.kind, report.name)
            result.add("volume", text.removeprefix(f"{path}: "), path)
        result.volumes += 1
        result.blobs += report.blobs
        result.bytes_plain += report.plain
        result.bytes_stored += report.size
        result.volumes_read += report.read
        result.bytes_read += report.size if report.read else 0
        self._progress.advance(files=1, bytes=report.size if report.read else 0)

    def _absences(self, walk: TreeCheck) -> None:
        """A volume that is gone is damage if anything is lost that may have been in it.  If not, the index forgets it."""
        known = {volume.name for volume in self._repository.index.volumes()}
        missed = []
        for name, (path, why) in self._gone.items():
            if name in walk.unreadable or (walk.homeless and name not in known):
                self._result.add("volume", why, path)
            elif self._repository.storage.size(f"{TRASH}/{path}") is None:
                missed.append((name, f"{path}: {why}"))
        if len(missed) > _NAMED:
            self._result.notes.append(
                f"{len(missed)} volumes that were known are gone: no snapshot needs anything that was only there (pruned from "
                "another machine?)"
            )
        else:
            for _, text in missed:
                self._result.notes.append(f"{text}; no snapshot needs anything that was only there")
        if self._result.ok:
            self._repository.index.forget(name for name, _ in missed if name not in self._there)
