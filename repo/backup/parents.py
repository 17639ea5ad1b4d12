"""Earlier snapshots beside the one being made: a file whose size, mtime and ctime are theirs is not opened."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from snapfs.repo.backup._earlier import EarlierPage
from snapfs.repo.backup._reading import Status
from snapfs.repo.backup.nodes import group_name, user_name
from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import Damaged, RepositoryError
from snapfs.repo.format import records
from snapfs.repo.model import Below, BlobId, Kind, Node
from snapfs.repo.page_writer import Put
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.trees import DirectoryWriter


class Earlier(NamedTuple):
    """An entry as an earlier snapshot has it, with its encoding and its position there."""

    node: Node
    raw: bytes
    ordinal: int


def choose(state: State, host: bytes, paths: Sequence[bytes]) -> list[StoredSnapshot]:
    """The newest snapshot of this host and these paths; before it, a newer checkpoint that an interrupted
    run left."""

    def fits(s: StoredSnapshot) -> bool:
        # Of a machine that can only back up, anybody may have made it who took that machine: what it says is unchanged is not.
        return not s.backup_only and s.record.host == host and set(s.record.paths) == set(paths)

    complete = [s for s in state.snapshots if fits(s)][-1:]
    since = state.made[complete[0].id] if complete else None
    checkpoints = [s for s in state.checkpoints if fits(s) and (since is None or state.made[s.id] > since)]
    return checkpoints[-1:] + complete


class RawDirectory:
    """One directory of an earlier snapshot beside the one being scanned: entries in order, each with its own encoding."""

    def __init__(self, blobs: BlobReader, node: Node) -> None:
        self._blobs = blobs
        self._pages = self._leaves(node.root, None) if node.root is not None else iter(())
        self._page = next(self._pages, None)
        self.ordinal = 0
        """Of the next entry."""

    @property
    def ended(self) -> bool:
        """Every entry was passed by."""
        return self._page is None

    def entries(self) -> Iterator[Earlier]:
        """All from the next one on."""
        while self._page is not None:
            yield self._take(self._page)

    def take(self, name: bytes) -> Earlier | None:
        """The entry of this name.  Names are asked for in ascending order."""
        while self._page is not None:
            here = self._page.name()
            if here == name:
                return self._take(self._page)
            if here > name:
                return None
            self._page.take()
            self._passed(1)
        return None

    def pass_unchanged(self, names: list[bytes], statuses: list[Status | int]) -> tuple[int, int, int]:
        """Pass by as many of the next entries as are, in this order, files that are unchanged and have one name: (how many, their
        bytes, how many of them have extended attributes)."""
        count = size = with_xattrs = 0
        while self._page is not None and count < len(names):
            found = self._page.unchanged(names[count:], statuses[count:], user_name, group_name)
            count, size, with_xattrs = count + found[0], size + found[1], with_xattrs + found[2]
            whole = not self._page.left
            self._passed(found[0])
            if not whole:
                break
        return count, size, with_xattrs

    def _take(self, page: EarlierPage) -> Earlier:
        raw, ordinal = page.take(), self.ordinal
        self._passed(1)
        return Earlier(records.decode_node(raw, "directory"), raw, ordinal)

    def _passed(self, count: int) -> None:
        self.ordinal += count
        if self._page is not None and not self._page.left:
            self._page = next(self._pages, None)

    def _leaves(self, page_id: bytes, expected: int | None) -> Iterator[EarlierPage]:
        where = page_id.hex()[:16]
        data = self._blobs.get(BlobId(page_id), Kind.DIRECTORY)
        page = EarlierPage(data, where)
        if expected is not None and page.level != expected:
            raise Damaged("a page on the wrong level", where)
        if page.level or not page.left or page.version != records.VERSION:
            for raw in records.decode_page(data, where).entries:
                yield from self._leaves(records.decode_branch(raw, where).id, page.level - 1)
        else:
            yield page


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

    @property
    def only(self) -> RawDirectory | None:
        """The one earlier directory there is, if it is one and could be read so far."""
        return self._open[0] if len(self._open) == len(self.nodes) == 1 else None

    def take(self, name: bytes) -> list[Earlier]:
        """Every earlier entry of this name; names are asked for in ascending order."""
        found: list[Earlier] = []
        for directory in list(self._open):
            try:
                entry = directory.take(name)
            except RepositoryError:
                self._open.remove(directory)
                continue
            if entry is not None:
                found.append(entry)
        return found


class KeepingWriter:
    """Writes one directory; nothing at all as long as its entries are those of an earlier one, in the same order.

    `earlier` None: nothing may be kept, since some blob of the earlier one may be lost.
    """

    def __init__(
        self, put: Put, page_key: bytes, blobs: BlobReader, earlier: EarlierDirectory | None
    ) -> None:
        self._put = put
        self._page_key = page_key
        self._blobs = blobs
        self._raw = earlier.only if earlier is not None else None
        self._earlier = earlier.nodes[0] if earlier is not None and self._raw is not None else None
        self._kept = 0
        self._writer: DirectoryWriter | None = None

    def keep(self, ordinal: int, count: int = 1) -> bool:
        """The next entries are `count` of the earlier directory from `ordinal` on, as they are there; False: add() them."""
        if self._writer is not None or self._earlier is None or ordinal != self._kept:
            return False
        self._kept += count
        return True

    def add(self, node: Node, raw: bytes | None = None) -> None:
        self._real().add(node, raw)

    def clone(self) -> DirectoryWriter:
        return self._real().clone()

    def finish(self) -> tuple[bytes | None, Below]:
        earlier, raw = self._earlier, self._raw
        if (
            self._writer is None
            and earlier is not None
            and raw is not None
            and raw.ended
            and raw.ordinal == self._kept
        ):
            return earlier.root, earlier.below or Below()
        return self._real().finish()

    def _real(self) -> DirectoryWriter:
        """From here on it is another directory: what was kept so far is written out."""
        if self._writer is None:
            writer = DirectoryWriter(self._put, self._page_key)
            if self._kept and self._earlier is not None:
                for entry in itertools.islice(RawDirectory(self._blobs, self._earlier).entries(), self._kept):
                    writer.add(entry.node, entry.raw)
            self._writer = writer
        return self._writer
