"""Damaged volumes: what its parity makes whole takes its own place; of the others, all that still opens is stored anew, then they
are set aside, as they are.

In this order, for each: read it whole; note it as damaged, so that nothing new relies on it.  Write what its parity makes of it
beside it; is the SHA-256 of that its name, it is what was written, and is renamed over the damaged one.  If not: store every
blob that does not read back from another volume; make that durable; move the volume to trash/.  Killed anywhere, what could be
read can still be read, and the next run goes on: what was stored anew is found and not stored again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from snapfs.repo.blobs import BlobReader
from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.scrub import Examiner
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.errors import Damaged, UsageError
from snapfs.repo.index import IndexBroken
from snapfs.repo.model import MiB, VolumeKind
from snapfs.repo.packing import BlobWriter
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.salvage import Salvage, SavedBlob
from snapfs.repo.storage.base import NewObject
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
    whole: bool = False
    """Its parity made it what it was (in a dry run: could); then nothing is saved or lost."""
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
        mending, names = _Mending(repository, dry_run, progress), list(names)
        try:
            return mending.run(names)
        except IndexBroken:
            repository.synchronise(thorough=True)
            return mending.run(names, again=True)


class _Mending:
    def __init__(self, repository: Repository, dry_run: bool, progress: Progress) -> None:
        self._repository = repository
        self._dry_run = dry_run
        self._progress = progress
        self._result = VolumesMended()
        self._reader = BlobReader(
            repository.index, repository.volumes.as_they_are(), repository.keys, lambda _: False, 16 * MiB
        )
        """Never looks again, nor at parity: what it is asked for is one place, and whether that is sound."""

    def run(self, names: list[str], *, again: bool = False) -> VolumesMended:
        """`again`: from where an earlier run was cut off."""
        repository, result = self._repository, self._result
        repository.synchronise()
        listing = repository.volumes.listing()
        named = bool(names)
        if again:
            result.volumes = [one for one in result.volumes if one.whole or one.aside]
            done = {one.path.rpartition("/")[2] for one in result.volumes if one.aside}
            names = [
                name for name in names if not any(one.startswith(name.rpartition("/")[2]) for one in done)
            ]
        wanted = {_named(name, listing) for name in names} if named else self._suspected(listing)
        self._progress.phase("repair volumes", len(wanted), sum(listing[name][1] for name in wanted))
        self._examiner = Examiner(repository.volumes, repository.keys, wanted)
        for name in sorted(wanted):
            if self._progress.interrupted:
                raise KeyboardInterrupt
            kind, size = listing[name]
            report = self._examiner.examine(name, kind, size)
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
        self._result.volumes.append(mended)
        if not self._dry_run:
            repository.note_damaged([name])
        mended.whole = repository.volumes.whole(kind, name) if self._dry_run else self._make_whole(name, kind)
        if mended.whole:
            return
        salvages = self._salvages(name, kind)
        if self._dry_run:
            mended.saved = sum(1 for _ in _each(salvages))
        else:
            with repository.writer() as writer:
                for blob in _each(salvages):
                    mended.saved += 1
                    self._store(writer, blob)
                writer.flush()
                self._result.bytes_stored += writer.stored.volumes
        listed = [salvage.listed for salvage in salvages if salvage.listed is not None]
        if listed:
            mended.lost = listed[0] - mended.saved
        # What a disk does not give back today, it may give back at another machine.
        unreadable = any(salvage.unreadable for salvage in salvages)
        if not self._dry_run and not (unreadable and mended.lost != 0):
            mended.aside = repository.storage.set_aside(path)
            repository.client.remember_damage(gone=[name])

    def _salvages(self, name: bytes, kind: VolumeKind) -> list[Salvage]:
        """What the disk has of it, and what its parity makes of that, if it has any."""
        volumes, image = self._repository.volumes, bytearray()
        volumes.whole(kind, name, image.extend)
        found = [Salvage(volumes, kind, name)]
        return [*found, Salvage(volumes, kind, name, image=image)] if image else found

    def _make_whole(self, name: bytes, kind: VolumeKind) -> bool:
        """With the help of its parity, if that reaches: at a second try, too, since a read may go wrong once."""
        for _ in range(2):
            if self._try_whole(name, kind):
                return True
            self._repository.volumes.renewed(kind, name)
        return False

    def _try_whole(self, name: bytes, kind: VolumeKind) -> bool:
        """What the whole volume takes the place of has nothing that it has not."""
        repository, path = self._repository, object_name(kind, name)
        new = repository.storage.create()
        try:
            if not repository.volumes.whole(kind, name, new.write):
                return False
            if _digest(new) != name:
                raise Damaged(
                    "does not read back as it was written: is the memory of this machine sound?", path
                )
            new.sync()
            new.publish(path)
        finally:
            new.discard()
        repository.storage.sync_names()
        repository.volumes.renewed(kind, name)
        size = repository.storage.size(path) or 0
        # What its name stands for is not yet what its directory says: it may be somebody's who can only back up.
        if self._examiner.examine(name, kind, size).problems:
            return False
        # The index may know it as what could be read of it.
        entries = repository.volumes.directory(kind, name, size)
        repository.index.add(name, kind, size, [(blob, at) for blob, _, at in entries])
        repository.note_sound([name])
        return True

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


def _digest(new: NewObject) -> bytes:
    """SHA-256 of what was written."""
    digest, at = hashlib.sha256(), 0
    while data := new.read(at, 8 * MiB):
        digest.update(data)
        at += len(data)
    return digest.digest()


def _each(salvages: Iterable[Salvage]) -> Iterator[SavedBlob]:
    """What each has that those before it have not."""
    before: set[bytes] = set()
    for salvage in salvages:
        found = set()
        for blob in salvage.blobs():
            found.add(blob.id)
            if blob.id not in before:
                yield blob
        before |= found


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
