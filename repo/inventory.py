"""The index against the volumes there are: those it lacks are entered, those that are gone or cut are marked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator

from snapfs.repo.errors import Damaged, OldKeys, StorageError, UnsupportedFormat
from snapfs.repo.index import FoundVolume, Index, IndexBroken
from snapfs.repo.model import BlobId, Location, VolumeKind
from snapfs.repo.progress import Progress
from snapfs.repo.salvage import Salvage
from snapfs.repo.volumes import Volumes, is_absent, object_name

log = logging.getLogger(__name__)

Trusts = Callable[[VolumeKind, bytes], bool]


def synchronise(
    index: Index,
    volumes: Volumes,
    progress: Progress,
    thorough: bool,
    damaged: Collection[bytes] = (),
    trusts: Trusts = lambda kind, name: True,
    *,
    can_read: bool = True,
) -> bool:
    """Make the index say what the volumes are; True if anything changed.

    `thorough`: read every volume's directory again, also of those the index knows.  `damaged`: names of volumes that were
    found damaged, which the index may have forgotten with everything else.  `trusts`: whether what a volume lists may be relied
    on; what is not trusted is read from if need be.  A broken index is begun anew.  Not `can_read`: volumes are marked where they
    are gone, and none is entered.
    """
    try:
        return _compare(index, volumes, progress, thorough, damaged, trusts, can_read)
    except IndexBroken as error:
        log.warning("the local index is damaged (%s): rebuilding it", error.reason)
        index.reset()
        return _compare(index, volumes, progress, True, damaged, trusts, can_read)


def _compare(
    index: Index, volumes: Volumes, progress: Progress, thorough: bool, damaged: Collection[bytes], trusts: Trusts,
    can_read: bool,
) -> bool:  # fmt: skip
    listing = volumes.listing()
    known = {v.name: v for v in index.volumes()}
    lost = [
        name
        for name, volume in known.items()
        if volume.usable and (name not in listing or listing[name][1] != volume.size or name in damaged)
    ]
    if lost:
        volumes.storage.let_go(object_name(known[name].kind, name) for name in lost)
        index.mark(lost, False)
    wanted = [
        name
        for name in listing
        # One that is longer than it was known to be had been cut then, and was brought back.
        if can_read and (thorough or name not in known or known[name].size < listing[name][1])
    ]
    if wanted:
        progress.phase("index", len(wanted), sum(listing[name][1] for name in wanted))
        volumes.storage.adopt(object_name(listing[name][0], name) for name in wanted)
        unusable = {name for name, volume in known.items() if not volume.usable} | {*lost, *damaged}
        listed = [(name, *listing[name]) for name in wanted]
        if thorough:
            # Something is not as it should be, so nothing of the old one may stay: in a damaged tree, what is put is not found.
            index.replace(_read(volumes, listed, unusable, progress, trusts))
        else:
            index.add_all(_read(volumes, listed, unusable, progress, trusts))
    return bool(lost or wanted)


def _read(
    volumes: Volumes,
    listed: Iterable[tuple[bytes, VolumeKind, int]],
    unusable: set[bytes],
    progress: Progress,
    trusts: Trusts,
) -> Iterator[FoundVolume]:
    """What the directories of volumes say.  Those that check found damaged stay `unusable` until check finds them sound.

    Of one whose directory does not read, or not just now, the index may know more than can be saved, so that stays beside it.
    """
    for name, kind, size in listed:
        progress.advance(1, size)
        whole = True
        try:
            entries = list(volumes.directory(kind, name, size))
            usable = not (name in unusable or volumes.was_mended(name)) and trusts(kind, name)
            verified = not volumes.is_backup_only(kind, name)
        except OldKeys:  # of no use to these keys, and no damage
            continue
        except UnsupportedFormat as error:  # says its header, which anybody can write who can write there
            progress.notice(f"volume {name.hex()[:8]} cannot be read: {error}")
            entries, usable, whole, verified = [], False, False, False
        except Damaged as error:
            progress.notice(
                f"volume {name.hex()[:8]} is damaged ({error}): what can be saved of it is used for reading only"
            )
            entries, usable, whole, verified = _salvage(volumes, kind, name), False, False, False
        except StorageError as error:
            if is_absent(error):
                continue
            raise
        yield FoundVolume(name, kind, size, [(blob, at) for blob, _, at in entries], usable, whole, verified)


def _salvage(volumes: Volumes, kind: VolumeKind, name: bytes) -> list[tuple[BlobId, int, Location]]:
    """What an ordinary reader can open, so not where the header with the key is lost."""
    with contextlib.suppress(Damaged):
        volumes.opener(kind, name)
        found = Salvage(volumes, kind, name, quick=True)
        return [(saved.id, int(saved.kind), saved.location) for saved in found.blobs()]
    return []
