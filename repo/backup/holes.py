"""What of a file takes no room on the disk, and what does but was never written.

lseek tells where zeros can be read without reading (SEEK_HOLE).  On ext4, xfs and btrfs that includes space that was
preallocated and never written; FIEMAP (Linux, Documentation/filesystems/fiemap.rst) tells the two apart, so that a disk image
comes back with the room it had.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

_FS_IOC_FIEMAP = 0xC020660B
_MAP = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_BATCH = 128
_LAST, _UNWRITTEN = 0x1, 0x800


def readable_as_zeros(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each range that SEEK_HOLE calls a hole, ascending; none where the file system cannot tell."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_HOLE)
            if start >= size:
                return
            try:
                at = min(os.lseek(fd, start, os.SEEK_DATA), size)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                at = size
        except OSError:
            return
        if at > start:  # else it was written to between the two calls
            yield start, at - start


def unallocated(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each range without room on the disk, ascending."""
    reserved = _unwritten(fd)
    start, end = next(reserved, (size, size))
    for offset, length in readable_as_zeros(fd, size):
        at, stop = offset, offset + length
        while end <= at and start < size:
            start, end = next(reserved, (size, size))
        while start < stop:
            if start > at:
                yield at, start - at
            at = max(at, end)
            if end > stop:
                break
            start, end = next(reserved, (size, size))
        if at < stop:
            yield at, stop - at


def _unwritten(fd: int) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of preallocated space, ascending; none where FIEMAP is not known."""
    at = 0
    while True:
        request = bytearray(_MAP.pack(at, (1 << 64) - 1 - at, 0, 0, _BATCH, 0) + bytes(_EXTENT.size * _BATCH))
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        except OSError:
            return
        count = _MAP.unpack_from(request)[3]
        for i in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(request, _MAP.size + i * _EXTENT.size)
            if flags & _UNWRITTEN:
                yield logical, logical + length
            if flags & _LAST:
                return
            at = logical + length
        if count < _BATCH:
            return
