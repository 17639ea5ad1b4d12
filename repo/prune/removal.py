"""Step P6 of docs/concurrency.md: volumes are unlinked, in moments in which no writer can come to rely on them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import BlobMissing, Damaged, StorageError, UnsupportedFormat
from snapfs.repo.marks import Marks
from snapfs.repo.model import BlobId, Kind, Location, MiB
from snapfs.repo.progress import Progress
from snapfs.repo.quiet import Quiet
from snapfs.repo.repository import Repository
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.storage.locks import Lease, Writer
from snapfs.repo.usage import NeededBlobs, Usage, VolumeUse, live_snapshots
from snapfs.repo.volumes import object_name

_BATCH = 4096
_SWEPT = 256
"""Parities that are removed at once."""
_HELD = 1.0
"""Seconds for which writers wait at the gate while a batch is unlinked, about."""


def settled(repository: Repository) -> State:
    """The events, if they leave no doubt about what is live.  Raises StorageError, UnsupportedFormat."""
    repository.events.refuse_old_keys()
    state = repository.events.load()
    if state.problems:
        raise StorageError(
            f"{state.problems[0]}: what it said is not known, so nothing was removed; `snapfs check` looks at all events"
        )
    if state.unknown or repository.config.prune_features:
        raise UnsupportedFormat(
            "this repository has events that this version does not know, so it cannot tell what is needed: nothing was removed, "
            "install a newer snapfs"
        )
    return state


class Removal:
    """Takes volumes away, one prune long."""

    def __init__(
        self, repository: Repository, lease: Lease, usage: Usage, seen: Collection[StoredSnapshot], patience: float,
        progress: Progress
    ) -> None:  # fmt: skip
        """`seen`: the snapshots whose blobs are marked in `usage`; `patience`: seconds to wait for writers."""
        self._repository = repository
        self._lease = lease
        self._seen = {snapshot.id for snapshot in seen}
        self._quiet = Quiet(repository, lease, patience, progress)
        self._progress = progress
        self.relied_on = {number for number, use in usage.volumes.items() if use.live_blobs}
        """Numbers of the volumes that hold what is live, once `victims` are gone."""
        self._gone: list[bytes] = []

    @property
    def in_the_way(self) -> list[Writer]:
        """Those because of whom nothing was removed the last time."""
        return self._quiet.in_the_way

    def is_free(self) -> bool:
        """Whether nobody would be in the way just now."""
        return self._quiet.is_free()

    def remove(self, victims: Collection[VolumeUse], *, later: bool = False) -> list[VolumeUse]:
        """Remove what no writer and no snapshot needs by now; returns what is gone.  Everything that is live must be durable in
        other volumes.  `later`: finish() is called for it."""
        todo = sorted(victims, key=lambda use: use.volume.name)
        gone: list[VolumeUse] = []
        self.relied_on -= {use.volume.number for use in todo}
        self._progress.phase("remove", len(todo), sum(use.volume.size for use in todo))
        sparing = _Sparing(self._repository, self._progress)
        try:
            while todo:
                self._look_again(
                    todo, sparing
                )  # the first time here, so that the gate is shut for moments only
                with self._quiet.shut() as free:
                    if not free:
                        break
                    self._look_again(todo, sparing)
                    todo = [use for use in todo if use.volume.number not in sparing.spared]
                    self._unlink(todo[:_BATCH], gone)
                done = {use.volume.number for use in gone}
                todo = [use for use in todo if use.volume.number not in done]
        finally:
            # Killed before: the index misses them, and marks them, at the next look.
            self._gone += [use.volume.name for use in gone]
            if not later:
                self.finish()
            self.relied_on |= {use.volume.number for use in victims if use.live_blobs} - {
                use.volume.number for use in gone
            }
        return gone

    def finish(self) -> None:
        """The index forgets what is gone, which takes a look at every blob there is."""
        self._repository.index.forget(self._gone)
        self._repository.client.remember_damage(gone=self._gone)
        self._gone = []

    def sweep_parity(self) -> None:
        """That of volumes which are not there: gone just now, set aside, or of a writer that died too early.  Not while somebody
        writes: his volumes get their names after their parity."""
        volumes = self._repository.volumes
        try:
            there = volumes.parity.listing()
            todo = sorted(there.keys() - volumes.listing().keys()) if there else []
            for at in range(0, len(todo), _SWEPT):
                with self._quiet.shut() as free:
                    if not free:
                        return
                    volumes.parity.remove(
                        [name for name in todo[at : at + _SWEPT] if not volumes.is_there(name)]
                    )
        except StorageError as error:
            with contextlib.suppress(StorageError):
                if volumes.parity.is_kept():
                    self._progress.notice(f"the parity of volumes that are gone was not removed: {error}")

    def _unlink(self, batch: list[VolumeUse], gone: list[VolumeUse]) -> None:
        storage, until = self._repository.storage, time.monotonic() + _HELD
        for at in range(0, len(batch), 16):
            some = batch[at : at + 16]
            storage.remove_all(object_name(use.volume.kind, use.volume.name) for use in some)
            gone += some
            self._progress.advance(len(some), sum(use.volume.size for use in some))
            if time.monotonic() > until or self._progress.interrupted:
                break

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def _look_again(self, todo: Collection[VolumeUse], sparing: _Sparing) -> None:
        """Spare what snapshots need that have become live; stop if anything relied on is gone."""
        repository = self._repository
        if (
            not self._lease.touch()
        ):  # no other lease: the way to that leads through the gate, which may be shut by this one
            raise StorageError(
                "another machine took this prune for dead, so it removes nothing more: run it again"
            )
        state = settled(repository)
        # Of a forget that the next power cut takes back the data must still be there.
        repository.storage.adopt(f"events/{head.name.hex()}" for head in state.heads)
        repository.synchronise()
        listing = repository.volumes.listing()
        there = {v.number for v in repository.index.volumes() if listing.get(v.name, (None, -1))[1] == v.size}
        if not self.relied_on <= there:
            raise StorageError(
                "volumes vanished from the repository while it was pruned, so nothing more was removed: run `snapfs check`, then "
                "this again"
            )
        sparing.there = there
        sparing.usable = there.intersection(v.number for v in repository.index.volumes() if v.reliable)
        sparing.victims = {use.volume.number for use in todo} - sparing.spared
        for snapshot in live_snapshots(state):
            if snapshot.id not in self._seen and snapshot.id not in sparing.seen:
                sparing.seen.add(snapshot.id)
                sparing.add(snapshot)


class _Sparing(NeededBlobs):
    """What snapshots need that were not live when the blobs were marked: of a blob that opens in no volume that stays, one that
    was to be removed stays."""

    def __init__(self, repository: Repository, progress: Progress) -> None:
        super().__init__(repository, progress)
        self._walked = Marks()
        self._as_they_are = BlobReader(
            self.index, repository.volumes.as_they_are(), repository.keys, lambda _: False, 16 * MiB
        )
        self.seen: set[bytes] = set()
        self.there: set[int] = set()
        self.usable: set[int] = set()
        self.victims: set[int] = set()
        self.spared: set[int] = set()

    def need(self, kind: Kind, blob: bytes, owner: int) -> bool:
        there = [at for at in self.index.copies(blob) if at.volume in self.there]
        # One in a volume that was found damaged is none, where there is another.
        copies = [at for at in there if at.volume in self.usable] or there
        if not copies:
            raise BlobMissing(blob)
        # Of those that go also one that is not relied on: it may be the one that opens.
        going = [at for at in there if at.volume in self.victims]
        staying = [at for at in copies if at.volume not in self.victims]
        if going and not any(self._opens(kind, blob, at) for at in staying):
            going.sort(key=lambda at: at.volume not in self.usable)
            kept = going[0]
            if len(going) > 1:
                kept = next((at for at in going if self._opens(kind, blob, at)), kept)
            self.spared.add(kept.volume)
            self.victims.discard(kept.volume)
        # No page is passed over because it was marked: what is below it may be marked in part only.
        return self._walked.add_blob(min(copies))

    def _opens(self, kind: Kind, blob: bytes, at: Location) -> bool:
        """A volume may be damaged without this machine knowing it; asked only where one of several copies goes.  One that only
        parity opens is no copy to go by."""
        try:
            self._as_they_are.read_at(BlobId(blob), kind, at)
        except Damaged:
            return False
        return True
