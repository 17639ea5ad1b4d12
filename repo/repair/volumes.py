"""Damaged volumes: all that still opens in them is stored anew, then they are set aside, as they are.

In this order, for each: read it whole; note it as damaged, so that nothing new relies on it; store every blob that does not
read back from another volume; make that durable; move the volume to trash/.  Killed anywhere, what could be read can still
be read, and the next run goes on: what was stored anew is found and not stored again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from snapfs.repo.blobs import BlobReader
from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.scrub import Examiner
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.errors import Damaged, UsageError
from snapfs.repo.model import MiB, VolumeKind
from snapfs.repo.packing import BlobWriter
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.salvage import Salvage, SavedBlob
from snapfs.repo.volumes import object_name

_SHORTEST = 4


@dataclass
class MendedVolume:
    """One damaged volume."""

    path: str
    problems: list[str]
    saved: int = 0
    """Blobs in it that open, or can be had from other volumes."""
    lost: int | None = None
    """Blobs that can be had from nowhere; None if it is not known what was in it."""
    aside: str = ""
    """Where it lies now; empty if it stays, because the disk may give more of it one day, or it was a dry run."""


@dataclass
class VolumesMended:
    sound: list[str] = field(default_factory=list)
    """Volumes that were named or suspected, and are what was written."""
    volumes: list[MendedVolume] = field(default_factory=list)
    bytes_stored: int = 0
    """New volumes."""
    found: CheckResult = field(default_factory=CheckResult)
    """What no snapshot can be given back, afterwards (in a dry run: now)."""


def repair_volumes(
    repository: Repository, names: Iterable[str] = (), *, dry_run: bool = False, progress: Progress = SILENT
) -> VolumesMended:
    """Mend the volumes of these names (their first digits, or their paths); without names, those that were found damaged.

    Raises UsageError for a name that fits none or several, RepositoryError.
    """
    if dry_run:
        return _Mending(repository, dry_run, progress).run(list(names))
    # Alone: of two, each could set aside the copy that the other has just read a blob back from.
    with repository.storage.locks.alone(), repository.writing():
        return _Mending(repository, dry_run, progress).run(list(names))


class _Mending:
    def __init__(self, repository: Repository, dry_run: bool, progress: Progress) -> None:
        self._repository = repository
        self._dry_run = dry_run
        self._progress = progress
        self._result = VolumesMended()
        self._reader = BlobReader(
            repository.index, repository.volumes, repository.keys, lambda _: False, 16 * MiB
        )
        """Never looks again: what it is asked for is one place."""

    def run(self, names: list[str]) -> VolumesMended:
        repository, result = self._repository, self._result
        repository.synchronise()
        listing = repository.volumes.listing()
        wanted = {_named(name, listing) for name in names} if names else self._suspected(listing)
        self._progress.phase("repair volumes", len(wanted), sum(listing[name][1] for name in wanted))
        examiner = Examiner(repository.volumes, repository.keys, wanted)
        for name in sorted(wanted):
            if self._progress.interrupted:
                raise KeyboardInterrupt
            kind, size = listing[name]
            report = examiner.examine(name, kind, size)
            if report.problems:
                self._mend(name, kind, report.problems)
            else:
                result.sound.append(object_name(kind, name))
                if not self._dry_run:
                    repository.note_sound([name])
            self._progress.advance(1, size)
        if result.volumes:
            self._name_lost()
        return result

    def _suspected(self, listing: dict[bytes, tuple[VolumeKind, int]]) -> set[bytes]:
        repository = self._repository
        unusable = {volume.name for volume in repository.index.volumes() if not volume.usable}
        return listing.keys() & unusable.union(repository.client.remembered.damaged)

    def _mend(self, name: bytes, kind: VolumeKind, problems: list[str]) -> None:
        repository = self._repository
        path = object_name(kind, name)
        mended = MendedVolume(path, [text.removeprefix(f"{path}: ") for text in problems])
        if not self._dry_run:
            repository.note_damaged([name])
        salvage = Salvage(repository.volumes, kind, name)
        if self._dry_run:
            mended.saved = sum(1 for _ in salvage.blobs())
        else:
            with repository.writer() as writer:
                for blob in salvage.blobs():
                    mended.saved += 1
                    self._store(writer, blob)
                writer.flush()
                self._result.bytes_stored += writer.stored.volumes
        if salvage.listed is not None:
            mended.lost = salvage.listed - mended.saved
        # What a disk does not give back today, it may give back at another machine.
        if not self._dry_run and not (salvage.unreadable and mended.lost != 0):
            mended.aside = repository.storage.set_aside(path)
            repository.client.remember_damage(gone=[name])
        self._result.volumes.append(mended)

    def _store(self, writer: BlobWriter, blob: SavedBlob) -> None:
        """Store a blob unless another copy reads back: what the index says of it is not enough."""
        index = self._repository.index
        while (at := index.get(blob.id)) is not None:
            try:
                self._reader.read_at(blob.id, blob.kind, at)
                return
            except Damaged:
                self._repository.note_damaged([index.volume(at.volume).name])
        # Frames join blobs of one owner: of whom is not known here, but one frame was of one.
        writer.put(blob.kind, blob.data, owner=blob.location.frame)

    def _name_lost(self) -> None:
        walk = TreeCheck(self._repository, self._progress)
        snapshots = self._repository.snapshots()
        self._progress.phase("check snapshots", len(snapshots))
        for snapshot in snapshots:
            walk.check(snapshot)
            self._progress.advance(files=1)
        if walk.damaged:
            for snapshot in snapshots:
                walk.name(snapshot)
        self._result.found = walk.found


def _named(text: str, listing: Iterable[bytes]) -> bytes:
    digits = text.rpartition("/")[2].lower()
    fitting = [name for name in listing if name.hex().startswith(digits)] if len(digits) >= _SHORTEST else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"{text} fits {len(fitting)} volumes: give more digits")
    raise UsageError(
        f"no volume {text!r}: give the first digits of its name, {_SHORTEST} at least (`snapfs check --read-data` names those "
        "that are damaged)"
    )
