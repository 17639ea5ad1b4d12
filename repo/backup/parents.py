"""Earlier snapshots beside the one being made: a file whose size, mtime and ctime are theirs is not opened."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import RepositoryError
from snapfs.repo.events import State, StoredSnapshot
from snapfs.repo.model import Node
from snapfs.repo.trees import RawDirectory


class Earlier(NamedTuple):
    """An entry as an earlier snapshot has it, with its encoding there."""

    node: Node
    raw: msgspec.Raw | None


def choose(state: State, host: bytes, paths: Sequence[bytes]) -> list[StoredSnapshot]:
    """The newest snapshot of this host and these paths; before it, a newer checkpoint that an interrupted
    run left."""

    def fits(s: StoredSnapshot) -> bool:
        return s.record.host == host and set(s.record.paths) == set(paths)

    complete = [s for s in state.snapshots if fits(s)][-1:]
    since = complete[0].record.time if complete else None
    checkpoints = [s for s in state.checkpoints if fits(s) and (since is None or s.record.time > since)]
    return checkpoints[-1:] + complete


class EarlierDirectory:
    """One directory in all earlier snapshots at once; the first that has a name answers for it.

    What of them cannot be read is taken as absent: the files are then simply read again.
    """

    def __init__(self, blobs: BlobReader, nodes: Sequence[Node]) -> None:
        self.nodes = [node for node in nodes if node.is_dir]
        self._open: list[RawDirectory] = []
        for node in self.nodes:
            with contextlib.suppress(RepositoryError):
                self._open.append(RawDirectory(blobs, node))

    def take(self, name: bytes) -> list[Earlier]:
        """Every earlier entry of this name; names are asked for in ascending order."""
        found = []
        for directory in list(self._open):
            try:
                entry = directory.take(name)
            except RepositoryError:
                self._open.remove(directory)
                continue
            if entry is not None:
                found.append(Earlier(*entry))
        return found
