"""Of what lies in two volumes one copy goes: only after the other was read.

A volume may be damaged without this machine knowing it; what a backup elsewhere has stored anew because of that looks like a copy
too many from here.
"""

from __future__ import annotations

from collections.abc import Iterable

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import Damaged
from snapfs.repo.model import BlobId, Kind, MiB
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.usage import Usage, VolumeUse


def damaged_copies(
    repository: Repository, usage: Usage, victims: Iterable[VolumeUse], progress: Progress
) -> set[bytes]:
    """Names of volumes that were to keep a live blob which one of the victims has too, and in which it does not open.

    Of a victim whose own directory does not open nothing can be said: it is named, too, so that it stays.  Raises StorageError.
    """
    index = repository.index
    volumes = repository.volumes.as_they_are()  # one that only its parity opens may be the next to be lost
    reader = BlobReader(index, volumes, repository.keys, lambda _: False, 16 * MiB)
    asked = [use for use in victims if use.copies]
    progress.phase("compare copies", len(asked))
    found: set[int] = set()
    for use in asked:
        volume = use.volume
        try:
            for blob, kind, _ in volumes.directory(volume.kind, volume.name, volume.size):
                if progress.interrupted:
                    raise KeyboardInterrupt
                for at in index.copies(blob):
                    if at.volume in found or at.volume == volume.number or not usage.kept.has_blob(at):
                        continue
                    try:
                        reader.read_at(BlobId(blob), Kind(kind), at)
                    except Damaged:
                        found.add(at.volume)
        except Damaged:
            found.add(volume.number)
        progress.advance(files=1)
    return {index.volume(number).name for number in found}
