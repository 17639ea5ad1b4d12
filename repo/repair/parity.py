"""Keeping parity in a repository that had none, making anew what is missing or wrong of it, and doing without it again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from dataclasses import dataclass, field

from snapfs.repo.errors import StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.format.parity import Builder, Shape
from snapfs.repo.index import IndexBroken
from snapfs.repo.model import MiB, VolumeKind
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.volumes import object_name

_WINDOW = 8 * MiB


@dataclass
class ParityKept:
    """The parity of a repository; sizes in bytes."""

    kept: bool
    volumes: int = 0
    volume_bytes: int = 0
    with_parity: int = 0
    """Of these volumes."""
    parity_bytes: int = 0
    written: int = 0
    """Parities that were missing or wrong."""
    damaged: list[str] = field(default_factory=list)
    """Volumes that are not what their names say, so that no parity can be made of them; what they have stays."""


def look(repository: Repository) -> ParityKept:
    """Without reading a volume."""
    volumes = repository.volumes
    listing, there = volumes.listing(), volumes.parity.listing()
    found = ParityKept(volumes.parity.is_kept(), len(listing), sum(size for _, size in listing.values()))
    found.with_parity = sum(there.get(name) == Shape(size).length for name, (_, size) in listing.items())
    found.parity_bytes = sum(there.values())
    return found


def keep_parity(
    repository: Repository, *, read_data: bool = False, progress: Progress = SILENT
) -> ParityKept:
    """Keep parity from now on, and write that of every volume that has none; `read_data`: compare what there is with the volumes.

    A volume that is damaged is noted as such, and its parity stays as it is.  Killed anywhere, the next run goes on.  Raises
    RepositoryError; KeyboardInterrupt when progress.interrupted is set.
    """
    with repository.storage.locks.alone(), repository.writing():
        parity = repository.volumes.parity
        parity.keep()
        listing, there = repository.volumes.listing(), parity.listing()
        wanted = {
            name: found
            for name, found in sorted(listing.items())
            if read_data or there.get(name) != Shape(found[1]).length
        }
        progress.phase("parity", len(wanted), sum(size for _, size in wanted.values()))
        written, damaged = 0, []
        try:
            for name, (kind, size) in wanted.items():
                if progress.interrupted:
                    raise KeyboardInterrupt
                made = _made(repository, kind, name, size)
                if made is None:
                    damaged.append(name)
                elif parity.differs(name, made):
                    parity.write(name, made)
                    written += 1
                progress.advance(1, size)
        finally:
            repository.storage.sync_names()
        if damaged:
            # Else the next look at the index makes it anew, and it knows of them then.
            with contextlib.suppress(IndexBroken):
                repository.note_damaged(damaged)
    found = look(repository)
    found.written, found.damaged = written, [object_name(listing[name][0], name) for name in damaged]
    return found


def drop_parity(repository: Repository) -> ParityKept:
    """Keep none from now on, and remove what there is."""
    with repository.storage.locks.alone():
        repository.volumes.parity.remove_all()
    return look(repository)


def _made(repository: Repository, kind: VolumeKind, name: bytes, size: int) -> bytes | None:
    """The parity of a volume; None if that is damaged."""
    if not 0 < size <= L.VOLUME_SIZE_LIMIT:
        return None
    builder, digest, at = Builder(size), hashlib.sha256(), 0
    try:
        while at < size and (
            data := repository.storage.read(object_name(kind, name), at, min(_WINDOW, size - at))
        ):
            digest.update(data)
            builder.update(data)
            at += len(data)
    except StorageError as error:
        if error.errno != errno.EIO:
            raise
        return None
    return builder.parity(name) if digest.digest() == name else None
