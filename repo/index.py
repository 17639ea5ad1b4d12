"""Where each blob lies.

A cache of what the volume directories say, local to this machine; never the only copy of anything.  What it keeps as bytes is
in index_rows; equal blobs in two volumes are two values of one key.  An environment that breaks (IndexBroken), or a folder that
is not to be trusted (index_folder), means begin anew and rebuild.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence

from snapfs.repo.index_build import BATCH, build
from snapfs.repo.index_environment import Environment, IndexBroken, Volumes, Writing, broken
from snapfs.repo.index_folder import IndexFolder
from snapfs.repo.index_rows import KEY, Entry, FoundVolume, IndexedVolume, Rows
from snapfs.repo.model import Location, VolumeKind

__all__ = ["Entry", "FoundVolume", "Index", "IndexBroken", "IndexedVolume"]

_BATCH_VOLUMES = 1 << 10
_UNUSABLE = 2


class Index:
    """The newest environment in its folder.  Use from any thread of one process; writers of several processes take turns."""

    def __init__(self, folder: str | None, tag_key: bytes) -> None:
        """`folder` None, or one that cannot be written: a temporary index, gone with close()."""
        self._rows = Rows(tag_key)
        self._folder = IndexFolder(folder)
        self.folder = self._folder.path
        self._opened: list[Environment] = []
        """Every environment since the beginning; the last one is in use."""
        self._noting = threading.RLock()
        """Held while what is known of the volumes changes, in memory and in the environment."""
        self._volumes: dict[int, IndexedVolume] = {}
        self._numbers: dict[bytes, int] = {}
        self._given: dict[bytes, int] = {}
        """Every number a volume ever had here: what relies on a number outlives the environment."""
        self._highest = 0
        self._usable: set[int] = set()
        """Numbers of those to rely on."""
        self._as_of = -1
        """The transaction whose volumes these are: they are read again only if there was another, since a repository of many
        large files has a hundred thousand."""
        try:
            if not self._folder.is_trusted(self._walk):
                raise IndexBroken("not as it was left")
            self._open()
        except IndexBroken:
            self.reset()

    # ---- reading -------------------------------------------------------------------------------------------------

    def copies(self, blob: bytes) -> list[Location]:
        """Every known place of a blob: those in volumes to rely on first, those in damaged ones last.  Raises IndexBroken."""
        key = blob[:KEY]
        found = [at for v in self._here.values(key) if (at := self._rows.location(key, v)) is not None]
        if len(found) > 1:
            found.sort(key=self._rank)
        return found

    def get(self, blob: bytes) -> Location | None:
        """A place of the blob in a usable volume.  Raises IndexBroken."""
        key = blob[:KEY]
        value = self._here.first(key)
        if value is None:
            return None
        location = self._rows.location(key, value)
        if location is not None and location.volume in self._usable:
            return location
        return next((at for at in self.copies(blob) if self._rank(at) < _UNUSABLE), None)

    def holder(self, blob: bytes) -> int | None:
        """The number of a reliable volume that has the blob: what deduplication asks, once for every blob there is."""
        key = blob[:KEY]
        value = self._here.first(key)
        if value is None:
            return None
        number = self._rows.holder(key, value)
        if number in self._usable:
            return number
        location = self.get(blob)
        return None if location is None or self._rank(location) else location.volume

    def holds(self, blobs: list[bytes]) -> bool:
        """Whether each of these has a holder().  A False may be wrong: where the first of several copies is not usable."""
        found = self._here.firsts([blob[:KEY] for blob in blobs])
        holder, usable = self._rows.holder, self._usable
        return len(found) == len(blobs) and all(holder(key, value) in usable for key, value in found)

    def holder_but(self, blob: bytes, volumes: Collection[int]) -> int | None:
        """The same, of none of these volumes."""
        numbers = (at.volume for at in self.copies(blob))
        return next((n for n in numbers if n not in volumes and self._is_reliable(n)), None)

    def volume(self, number: int) -> IndexedVolume:
        """Raises IndexBroken for a number that no volume has."""
        if number not in self._volumes:
            self._load_volumes()
        try:
            return self._volumes[number]
        except KeyError:
            raise IndexBroken(f"no volume {number}") from None

    def volumes(self) -> list[IndexedVolume]:
        self._load_volumes()
        return list(self._volumes.values())

    def entries(self) -> Iterator[tuple[bytes, Location]]:
        """(first 16 bytes of the id, location) of all blobs, in the order of ids."""
        for key, value in self._here.blobs():
            location = self._rows.location(key, value)
            if location is not None:
                yield key, location

    def fingerprint(self, volume: bytes, entries: Iterable[Entry]) -> int:
        """A number for "these blobs lie in the volume of this name", which adds up; equal within this process only."""
        return sum(map(hash, self._rows.blobs(self._numbers.get(volume, 0), entries)))

    def fingerprints(self) -> dict[bytes, int]:
        """Of each volume by its name: fingerprint() of what is entered as lying in it."""
        names = {volume.number: volume.name for volume in self.volumes()}
        sums = dict.fromkeys(names, 0)
        for key, value in self._here.blobs():
            number = self._rows.number_in(value)
            if number in sums:  # not one that a backup has just added
                sums[number] += hash(key + value)
        return {names[number]: value for number, value in sums.items()}

    def losses(self) -> int:
        """How often volumes became unusable: while this stays, what was known to be there still is."""
        return self._here.losses()

    def is_whole(self, snapshot: bytes) -> bool:
        """Whether every blob of a snapshot is known to be in a usable volume (see note_whole)."""
        return self._here.is_whole(snapshot)

    def count(self) -> int:
        return self._here.count()

    # ---- writing -------------------------------------------------------------------------------------------------

    def add(
        self, name: bytes, kind: VolumeKind, size: int, entries: Iterable[Entry], usable: bool = True
    ) -> int:
        """Record a durable volume and its blobs in one transaction; returns its number.  A volume known by
        that name is replaced."""
        with self._noting:
            self._enter([FoundVolume(name, kind, size, list(entries), usable)])
            return self._numbers[name]

    def replace(self, found: Iterable[FoundVolume]) -> None:
        """Have these volumes and no others: nothing of what was there before is built upon, but of a volume that is not `whole`
        what was known of it stays.  If `found` raises, all stays."""
        with self._noting:
            self._build(found)

    def add_all(self, found: Iterable[FoundVolume]) -> None:
        """Record many durable volumes in few transactions; where there are none yet, all at once (see replace).

        If `found` raises, the last of them are not recorded, or, where there were none, none is.
        """
        with self._noting:
            if not self.volumes():
                self._build(found)
                return
        batch: list[FoundVolume] = []
        blobs = 0
        for one in found:
            batch.append(one)
            blobs += len(one.entries)
            if blobs >= BATCH or len(batch) >= _BATCH_VOLUMES:
                self._enter(batch)
                batch, blobs = [], 0
        self._enter(batch)

    def note_whole(self, snapshot: bytes, losses: int, instead_of: bytes | None = None) -> None:
        """Remember that every blob of a snapshot was found in a usable volume since losses() said this; forget it of another."""
        self._here.note_whole(snapshot, losses, instead_of)

    def mark(self, names: Iterable[bytes], usable: bool) -> None:
        """Say of volumes whether they are what they should be: whoever says that they are has read them whole, and compared every
        id."""
        wanted = set(names)
        with self._noting:
            with self._here.writing() as writing:
                self._catch_up(writing)
                numbers = [number for name, number in self._numbers.items() if name in wanted]
                marked = [
                    volume._replace(usable=usable, verified=usable or volume.verified)
                    for volume in map(self._volumes.__getitem__, numbers)
                ]
                writing.put_volumes(marked)
            self._note(marked, writing)

    def forget(self, names: Iterable[bytes]) -> None:
        """Know nothing of these volumes any more: they were removed.  Counted as losses; their numbers are not given again."""
        wanted = set(names)
        with self._noting:
            self._load_volumes()
            numbers = {number for name, number in self._numbers.items() if name in wanted}
            if numbers:
                self._here.forget(numbers)
                self._load_volumes()

    def reset(self) -> None:
        """Throw everything away and begin empty, in a folder of the next number.

        The old environment is left open: another thread may be reading in it, and LMDB does not survive a close under a reader.
        """
        with self._noting:
            with broken(self.folder):
                old = self._folder.renew()
            self._open()
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        for environment in self._opened:
            environment.close()
        self._opened.clear()
        self._folder.leave()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Have the newest environment in use."""
        here = Environment(self._folder.newest(), self._rows)
        self._opened.append(here)
        with self._noting:
            self._here = here
            self._as_of = -1
            self._load_volumes()

    def _walk(self) -> None:
        """Touch every page that holds a blob.  Raises IndexBroken for more of them than there is room for: pages in a circle."""
        self._open()
        most = self._here.most_blobs()
        for number, _ in enumerate(self._here.blobs()):
            if number > most:
                raise IndexBroken("its pages form a circle")

    def _enter(self, found: Sequence[FoundVolume]) -> None:
        """Volumes and their blobs, in one transaction."""
        if not found:
            return
        with self._noting:
            volumes = []
            rows: list[bytes] = []
            with self._here.writing() as writing:
                self._catch_up(writing)
                for one in found:
                    number = self._number(one.name)
                    rows.extend(self._rows.blobs(number, one.entries))
                    volumes.append(
                        IndexedVolume(number, one.name, one.kind, one.size, one.usable, one.verified)
                    )
                rows.sort()
                writing.put_blobs(rows)
                writing.put_volumes(volumes)
            self._note(volumes, writing)

    def _build(self, found: Iterable[FoundVolume]) -> None:
        """Put an index of these volumes in the place of this one."""
        numbered = ((self._number(one.name), one) for one in found)
        old = build(self._folder, self._rows, numbered, self._here)
        self._open()
        shutil.rmtree(old, ignore_errors=True)  # still open, as in reset()

    # ---- what is known of the volumes ----------------------------------------------------------------------------

    def _load_volumes(self) -> None:
        """Other processes enter some, too."""
        with self._noting:
            self._know(self._here.volumes(self._as_of))

    def _catch_up(self, writing: Writing) -> None:
        self._know(writing.volumes(self._as_of))

    def _know(self, found: Volumes | None) -> None:
        if found is None:
            return
        as_of, volumes, highest = found
        self._numbers = {volume.name: volume.number for volume in volumes}
        self._given |= self._numbers
        self._usable = {volume.number for volume in volumes if volume.reliable}
        self._volumes = {volume.number: volume for volume in volumes}
        self._highest = max(self._highest, highest, max(self._volumes, default=0))
        self._as_of = as_of

    def _note(self, volumes: list[IndexedVolume], writing: Writing) -> None:
        """These were put in a transaction that is durable now.  Look-ups in other threads go on meanwhile."""
        for volume in volumes:
            self._volumes[volume.number] = volume
            self._numbers[volume.name] = volume.number
            (self._usable.add if volume.reliable else self._usable.discard)(volume.number)
        if volumes:
            self._as_of = writing.number

    def _number(self, name: bytes) -> int:
        """The number of a volume, a new one where it has none."""
        number = self._numbers.get(name)
        if number is None:
            number = self._given.get(name)
            if number is None or number in self._volumes:
                number = self._highest = self._highest + 1
            self._given[name] = number
        return number

    def _is_reliable(self, number: int) -> bool:
        return number in self._usable or self.volume(number).reliable

    def _rank(self, at: Location) -> int:
        """0: in a volume to rely on; 1: in one that nobody verified; 2: in one that is not usable."""
        if at.volume in self._usable:
            return 0
        volume = self.volume(at.volume)
        return 0 if volume.reliable else 1 if volume.usable else _UNUSABLE
