#!/usr/bin/env python3
"""Make damaged volumes of a snapfs repository whole from their parity, where they lie, without snapfs and without a password.

    python3 mend.py REPO            look at every volume and every parity; say what is damaged, and what can be made whole
    python3 mend.py REPO --write    and do it: write the whole volume to REPO/tmp, rename it over the damaged one

Written from docs/format.md alone (sections 1 and 13), it shares nothing with the program but that page.  A volume is sound if its
SHA-256 is its name; nothing else is ever written.  Of a parity only header and length are looked at, unless its volume is
damaged.  It needs Python 3.11 and nothing else, and some 6 MB of memory for each 256 MB of a volume.

Exit: 0 all is well, or was made so; 1 something is damaged and stays so, or could not be looked at; 2 usage; 10 no repository.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BLOCK, COLUMNS, HEADER = 4096, 48, 64
LONGEST = 1 << 30  # what a volume may have
CAN_BE, MADE = "can be made whole", "made whole"
BEYOND, WITHOUT = "damaged, and its parity does not reach", "damaged, and it has no parity"
SOUND, PARITY, FAILED = "sound", "with a damaged parity", "could not be looked at or written"

MASK = (1 << 64) - 1
P1, P2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
P3, P4 = 0x165667B19E3779F9, 0x85EBCA77C2B2AE63


def rotate(x: int, bits: int) -> int:
    return (x << bits | (x & MASK) >> 64 - bits) & MASK


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, of a multiple of 32 bytes: then its last steps have nothing to do."""
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    lanes = [P1 + P2 & MASK, P2, 0, -P1 & MASK]
    for n, lane in enumerate(lanes):
        for word in words[n::4]:
            lane = rotate(lane + word * P2, 31) * P1 & MASK
        lanes[n] = lane
    h = sum(map(rotate, lanes, (1, 7, 12, 18)))
    for lane in lanes:
        h = (h ^ rotate(lane * P2, 31) * P1) * P1 + P4 & MASK
    h = h + len(data) & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


def xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


@contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """A descriptor of the regular file there; None if there is nothing, or something else."""
    if not path.is_file() or path.is_symlink():
        yield None
        return
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield file if stat.S_ISREG(os.fstat(file).st_mode) else None
    finally:
        os.close(file)


def read(file: int, length: int, offset: int) -> bytes:
    """What the disk gives back: less at the end of the file, nothing where it cannot read."""
    try:
        return os.pread(file, length, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def sha256(pieces: Iterable[bytes], out: BinaryIO | None = None) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        if out is not None:
            out.write(piece)
    return digest.hexdigest()


def layout(length: int) -> tuple[int, int, int]:
    """Of a volume of that length: its blocks, its rows, and where the first row is in its parity."""
    blocks = -(-length // BLOCK)
    return blocks, -(-blocks // COLUMNS), HEADER + 8 * blocks


def lengths(parity: int, name: str, own: int) -> tuple[bool, list[int]]:
    """Whether header and length of the parity are right, and what the length of the volume may be: what the header says,
    or if that is damaged, its own or one that has a parity as long as this one."""
    size, header = os.fstat(parity).st_size, read(parity, HEADER, 0)
    said = int.from_bytes(header[16:24], "little")
    fixed = struct.pack("<8sHHIQ32s", b"parity\r\n", 1, COLUMNS, BLOCK, said, bytes.fromhex(name))
    if header == fixed + xxh64(fixed + bytes(8)).to_bytes(8, "little") and 0 < said <= LONGEST:
        _, rows, start = layout(said)
        return size == start + BLOCK * rows, [said]
    rows = -(-(size - HEADER) // (8 * COLUMNS + BLOCK))
    guesses = {own, (size - HEADER - BLOCK * rows) // 8 * BLOCK}
    return False, [guess for guess in guesses if 0 < guess <= LONGEST]


def mended(volume: int, parity: int, length: int) -> Iterator[bytes]:
    """The blocks of a volume of that length, put right as far as its parity reaches: up to one of each row."""
    blocks, rows, start = layout(length)
    lost, right = bytearray(blocks), bytearray(blocks)  # 1: not given back; 1: its right bytes are in `sums`

    def block(i: int) -> bytes:
        """Zeros for what is missing. What was not given back once is lost, whatever the disk says later."""
        piece = b"" if lost[i] else read(volume, min(BLOCK, length - BLOCK * i), BLOCK * i)
        lost[i] = not piece
        return piece.ljust(BLOCK, b"\0")

    def fits(i: int, piece: bytes) -> bool:
        return xxh64(piece).to_bytes(8, "little") == read(parity, 8, HEADER + 8 * i)

    sums = [read(parity, BLOCK, start + BLOCK * row) for row in range(rows)]
    for i in range(blocks):
        row = i % rows
        sums[row] = xor(sums[row], block(i)) if len(sums[row]) == BLOCK else b""
    for row, difference in enumerate(sums):
        if any(difference):  # else the row is as it was, or its parity is lost
            wrong = [i for i in range(row, blocks, rows) if not fits(i, block(i))]
            # if checksums are damaged, too: the one that fits when it is changed, or else the one not given back
            sure = [i for i in wrong if fits(i, xor(block(i), difference))] or [i for i in wrong if lost[i]]
            if len(chosen := sure or wrong) == 1:
                sums[row], right[chosen[0]] = xor(block(chosen[0]), difference), 1
    for i in range(blocks):
        yield (sums[i % rows] if right[i] else block(i))[: length - BLOCK * i]


def replace(path: Path, pieces: Iterable[bytes], old: os.stat_result, tmp: Path) -> None:
    """Puts the whole volume in the place of the damaged one; owner and mode stay."""
    tmp.mkdir(mode=0o700, exist_ok=True)
    file, unfinished = tempfile.mkstemp(dir=tmp)
    fcntl.flock(file, fcntl.LOCK_EX)  # what is not locked there is swept away by the next backup
    try:
        with open(file, "wb") as out:
            if sha256(pieces, out) != path.name:
                raise OSError(errno.EIO, "the disk gave back something else this time")
            out.flush()
            if os.geteuid() == 0:
                os.fchown(file, old.st_uid, old.st_gid)
            os.fchmod(file, stat.S_IMODE(old.st_mode))
            os.fsync(file)
        os.rename(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # some file systems have none for folders
        os.fsync(folder)
    os.close(folder)


def tend(path: Path, parity_path: Path, tmp: Path | None) -> tuple[str, bool]:
    """Says what a volume is, and whether its parity looks right; makes it whole if there is a folder for that."""
    with opened(path) as volume, opened(parity_path) as parity:
        old = path.lstat()
        okay, guesses = lengths(parity, path.name, old.st_size) if parity is not None else (True, [])
        offsets = range(0, old.st_size if old.st_size <= LONGEST else 0, BLOCK << 8)
        if volume is not None and sha256(read(volume, BLOCK << 8, at) for at in offsets) == path.name:
            return SOUND, okay
        for length in guesses:
            if volume is None or parity is None or sha256(mended(volume, parity, length)) != path.name:
                continue
            if tmp is not None:
                replace(path, mended(volume, parity, length), old, tmp)
            return CAN_BE if tmp is None else MADE, okay
        return WITHOUT if parity is None else BEYOND, okay


def below(folder: Path) -> list[Path]:
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder but a link")
    wanted = folder.name + "[0-9a-f]{62}" if len(folder.name) == 2 else "[0-9a-f]{2}"
    return sorted(path for path in folder.iterdir() if re.fullmatch(wanted, path.name))


def main(arguments: list[str]) -> int:
    places = [argument for argument in arguments if argument != "--write"]
    if len(places) != 1 or places[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    repository, counts = Path(places[0]), Counter[str]()
    queue = [repository / "data", repository / "trees"]
    if not (repository / "config").is_file() and not all(folder.is_dir() for folder in queue):
        print("mend.py: there is no repository", file=sys.stderr)
        return 10
    for path in queue:  # it grows: folders, their folders, volumes
        try:
            if len(path.name) < 64:
                queue += below(path)
                continue
            parity = repository / "parity" / path.parent.name / path.name
            said, okay = tend(path, parity, repository / "tmp" if "--write" in arguments else None)
        except OSError as error:
            counts[FAILED] += 1
            print(f"{path.relative_to(repository)}: {error.strerror}", file=sys.stderr)
            continue
        counts[said] += 1
        if said != SOUND:
            print(f"{path.relative_to(repository)}: {said}")
        if not okay:
            counts[PARITY] += 1
            print(f"{parity.relative_to(repository)}: damaged")
    print("; ".join(f"{count} {what}" for what, count in counts.items()) or "no volumes")
    return 0 if counts.total() == counts[SOUND] + counts[MADE] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
