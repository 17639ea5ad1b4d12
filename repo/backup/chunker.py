"""Where a large file is cut into blobs: by its content, so that an inserted byte moves one cut and not all that follow.

FastCDC with a Gear hash.  After `minimum` bytes the hash takes in one byte a step, h = 2h + table[byte] (mod 2^64), and a
chunk ends behind the first byte where the top bits of h are all zero: log2(average) + 2 bits up to `average`, log2(average)
- 2 bits beyond, which draws the lengths together ("normalised chunking", level 2), and at `maximum` in any case.  The top
bits, because they depend on the last 64 bytes where the low ones depend on a few.

The table comes from a key of the repository: whoever sees only the lengths of blobs must not be able to tell a known
file by them.  Knows nothing of files, holes or ids.
"""

from __future__ import annotations

import struct
from array import array

from blake3 import blake3

from snapfs.repo.backup._gear import cut

_TABLE_LABEL = b"snapfs/1/gear table"


class Chunker:
    """The cut points of one repository: `table_key` is its 32-byte chunker key, sizes are bytes (config).

    Holds no state between calls; one object serves all threads.
    """

    def __init__(self, table_key: bytes, minimum: int, average: int, maximum: int) -> None:
        if not (0 <= minimum <= average <= maximum and 8 <= average < 1 << 48):
            raise ValueError(f"chunk sizes out of order: {minimum}, {average}, {maximum}")
        self.minimum = minimum
        self.average = average
        self.maximum = maximum
        self._table = array("Q", struct.unpack("<256Q", blake3(_TABLE_LABEL, key=table_key).digest(2048)))
        bits = average.bit_length() - 1
        self._mask_small = _top(bits + 2)
        self._mask_large = _top(bits - 2)

    def cuts(self, data: bytes | bytearray | memoryview, final: bool) -> list[int]:
        """End offsets of the complete chunks in `data`, which begins at a cut.

        Unless `final`, bytes behind the last offset may still belong to a chunk that grows: hand them in again, in
        front of what follows.  A buffer of at least `maximum` bytes always yields a cut.  However a stream is
        handed in, its cuts are the same.
        """
        end = len(data)
        at = 0
        found: list[int] = []
        while at < end:
            stop = cut(
                data,
                at,
                end,
                self._table,
                self.minimum,
                self.average,
                self.maximum,
                self._mask_small,
                self._mask_large,
            )
            if stop == end and not final and end - at < self.maximum:
                break  # perhaps a cut, perhaps only the end of the buffer: the next call will know
            found.append(stop)
            at = stop
        return found


def _top(bits: int) -> int:
    return ((1 << bits) - 1) << (64 - bits)
