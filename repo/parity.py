"""The parity of a repository's volumes: whether it is kept, its objects, and reading a damaged volume with the help of its own.

Parity is kept where its folder has the object MARKER: all who write volumes then write their parity, too.  It is made of what
a volume's name stands for, so one that is lost or damaged can be made anew; and what it gives back is compared with that name,
or opened with a key, by whoever asks.
"""

from __future__ import annotations

import errno

from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import parity as layout
from snapfs.repo.format._parity import checksums, fold
from snapfs.repo.format.parity import BLOCK, CHECKSUM, HEADER, Shape
from snapfs.repo.storage.base import Storage, hash_in

FOLDER = "parity"
MARKER = f"{FOLDER}/README.txt"
_UNKNOWN = bytes(CHECKSUM)
MISSING = "missing"
WRONG = "it is not that of the volume it belongs to"
README = """\
Parity of the volumes in data/ and trees/: what snapfs can mend a few damaged places in each of them with.

While this file is here, every backup writes the parity of its volumes, too.  The folder may be deleted: nothing but the parity
is lost.  `snapfs parity on` makes it again, `snapfs parity off` deletes it.
"""


def object_name(volume: bytes) -> str:
    """Where the parity of the volume of this name (32 bytes) lies."""
    text = volume.hex()
    return f"{FOLDER}/{text[:2]}/{text}"


class Parity:
    """The parity of the volumes in one storage.  For any thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def is_kept(self) -> bool:
        """Raises StorageError."""
        try:
            return self._storage.size(MARKER) is not None
        except StorageError as error:
            if error.errno != errno.ENOTDIR:  # some file of that name: none of ours
                raise
            return False

    def keep(self) -> None:
        """From now on."""
        if not self.is_kept():
            self._storage.put(MARKER, README.encode())

    def listing(self) -> dict[bytes, int]:
        """{name of a volume: size of its parity} of all there is, whether there is such a volume or not."""
        found = {}
        for path, size in self._storage.list(FOLDER):
            name = hash_in(path)
            if name is not None and path == object_name(name):
                found[name] = size
        return found

    def write(self, volume: bytes, data: bytes) -> None:
        """Durable but for its name, which takes Storage.sync_names(), as that of a volume."""
        self._storage.write(object_name(volume), data)
        self._storage.let_go(
            (object_name(volume),)
        )  # of one that was damaged, and that this took the place of

    def differs(self, volume: bytes, data: bytes) -> str:
        """What is wrong with the parity of a volume, which ought to be `data`; nothing if it is so."""
        try:
            # One byte more: longer is wrong, too.
            found = self._storage.read(object_name(volume), 0, len(data) + 1)
        except StorageError as error:
            return MISSING if error.errno == errno.ENOENT else str(error)
        return "" if found == data else WRONG

    def remove(self, volumes: list[bytes]) -> None:
        self._storage.remove_all(map(object_name, volumes))

    def remove_all(self) -> None:
        """The marker goes first: nobody who begins now writes more."""
        self._storage.remove(MARKER)
        self.remove(list(self.listing()))

    def mender(self, volume: bytes, path: str) -> Mender | None:
        """A reader of the damaged volume at `path`; None if it has no parity, or none that says what it is."""
        name = object_name(volume)
        size = self._storage.size(name)
        if size is None:
            return None
        head, own = _read(self._storage, name, 0, HEADER), self._storage.size(path) or 0
        try:
            shapes = [layout.decode_header(head or b"", volume, name)]
        except Damaged:
            # All that is in a header follows from the volume, and its length, but for the last block, from that of the parity.
            shapes = [Shape(own), layout.shape_of(size)]
        for shape in shapes:
            # Of a volume that lacks more than a column nothing can be made, whatever its parity claims that it was.
            if 0 < shape.size <= min(L.VOLUME_SIZE_LIMIT, own + BLOCK * shape.rows) and shape.length == size:
                return Mender(self._storage, path, name, shape)
        return None


class Mender:
    """Reads a volume block by block; one that is not what its checksum says is computed from the others of its row."""

    def __init__(self, storage: Storage, path: str, name: str, shape: Shape) -> None:
        self._storage = storage
        self._path = path
        self._name = name
        self._shape = shape
        self._sums = self._checksums()

    @property
    def size(self) -> int:
        """Of the volume, as it was."""
        return self._shape.size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the volume, fewer only at its end: as they were, as far as its parity reaches.  Raises Damaged where the disk
        gives neither a block nor what it can be computed from."""
        end = min(offset + length, self._shape.size)
        if offset >= end:
            return b""
        first = offset // BLOCK
        blocks = self._blocks(first, -(-end // BLOCK))
        found = [
            block if block is not None and self._fits(n, block) else self._computed(n, block)
            for n, block in enumerate(blocks, first)
        ]
        return b"".join(found)[offset - first * BLOCK : end - first * BLOCK]

    def _checksums(self) -> bytes:
        """Of all blocks, as they are stored.  Of those that the disk does not give, nothing is known: zeros."""
        parts = []
        for at in range(HEADER, self._shape.column, BLOCK):
            length = min(BLOCK, self._shape.column - at)
            parts.append((_read(self._storage, self._name, at, length) or b"").ljust(length, b"\0"))
        return b"".join(parts)

    def _fits(self, number: int, block: bytes) -> bool:
        """Whether there is nothing to be said against a block."""
        return self._sum(number) in (_UNKNOWN, checksums(block, BLOCK))

    def _sum(self, number: int) -> bytes:
        return self._sums[CHECKSUM * number : CHECKSUM * (number + 1)]

    def _blocks(self, first: int, end: int) -> list[bytes | None]:
        """As the disk has them, filled up with zeros; None for what it does not give."""
        data = _read(self._storage, self._path, first * BLOCK, (end - first) * BLOCK)
        if data is None and end - first > 1:
            return [self._blocks(number, number + 1)[0] for number in range(first, end)]
        if data is None:
            return [None]
        data = data.ljust((end - first) * BLOCK, b"\0")
        return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]

    def _computed(self, number: int, damaged: bytes | None) -> bytes:
        """A block from all others of its row, if that is right: by its checksum, or because all others are, by theirs.  If not,
        there is only what the disk has."""
        row, sure = number % self._shape.rows, True
        parity = _read(self._storage, self._name, self._shape.column + row * BLOCK, BLOCK)
        made = bytearray(parity) if parity is not None and len(parity) == BLOCK else None
        for other in range(row, self._shape.blocks, self._shape.rows):
            if other == number or made is None:
                continue
            (block,) = self._blocks(other, other + 1)
            if block is None:
                made = None
            else:
                sure = sure and self._fits(other, block)
                fold(made, 0, block)
        if made is not None and (sure or checksums(made, BLOCK) == self._sum(number)):
            return bytes(made)
        if damaged is None:
            raise Damaged(
                "the disk cannot read it, and its parity does not reach: Input/output error", self._path
            )
        return damaged


def _read(storage: Storage, name: str, offset: int, length: int) -> bytes | None:
    """None for what is not given back."""
    try:
        return storage.read(name, offset, length)
    except StorageError:
        return None
