"""The body of a frame: blobs side by side behind their length words, compressed with zstd where that helps.

A length word is kind << 24 | length, so that a volume whose directory is lost can be walked and every id recomputed.
zstd objects are kept one per thread: a shared one corrupts.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence

import zstandard

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.model import MAX_BLOB, Kind

LEVELS = {"fastest": 1, "auto": 3, "better": 9, "max": 19}
"""Words of --compression and their zstd levels; "off" stores."""

_SAMPLE = 8 * 1024
_GAIN = 0.97
_local = threading.local()
_KINDS = frozenset(int(k) for k in Kind)


def word(kind: int, length: int) -> int:
    return kind << 24 | length


def join(words: Sequence[int], blobs: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """Plaintext of a frame: its length words (u32, little endian), then its blobs."""
    return b"".join((struct.pack(f"<{len(words)}I", *words), *blobs))


def split(plain: bytes, count: int, where: str) -> list[tuple[int, int, int]]:
    """(kind, offset, length) of each blob in the plaintext of a frame.

    Raises Damaged if they do not fill it exactly.
    """
    if not 0 < count <= L.JOINED_BLOBS or 4 * count > len(plain):
        raise Damaged("a frame with a bad number of blobs", where)
    offset, found = 4 * count, []
    for entry in struct.unpack_from(f"<{count}I", plain):
        kind, length = entry >> 24, entry & 0xFFFFFF
        if kind not in _KINDS or length > MAX_BLOB:
            raise Damaged("a frame with a bad length word", where)
        found.append((kind, offset, length))
        offset += length
    if offset != len(plain):
        raise Damaged("a frame whose lengths do not add up", where)
    return found


def compress(plain: bytes, level: int, sample: bool = True) -> tuple[int, bytes]:
    """(codec, body).

    Level 0 stores; so does what would shrink by less than three per cent, judged first on samples (`sample`) when it is
    large.
    """
    if level == 0 or not plain:
        return L.STORED, plain
    if sample and len(plain) >= 16 * _SAMPLE and not _promising(plain):
        return L.STORED, plain
    body = _compressor(level).compress(plain)
    return (L.ZSTD, body) if len(body) < _GAIN * len(plain) else (L.STORED, plain)


def decompress(codec: int, body: bytes, length: int, where: str) -> bytes:
    """The plaintext, exactly `length` bytes.  Raises Damaged.

    The size a zstd frame declares is compared first: the library would otherwise allocate whatever it says.
    """
    if codec == L.STORED:
        plain = body
    elif codec == L.ZSTD:
        try:
            if zstandard.frame_content_size(body) not in (length, -1):
                raise Damaged("a frame of another size than its header says", where)
            plain = _decompressor().decompress(body, max_output_size=length)
        except zstandard.ZstdError as error:
            raise Damaged("a frame that does not decompress", where) from error
    else:
        raise Damaged(f"a frame with unknown codec {codec}", where)
    if len(plain) != length:
        raise Damaged("a frame of another size than its header says", where)
    return plain


def decompress_unsized(body: bytes, where: str) -> bytes:
    """The plaintext of a compressed frame whose header, and with it the length, is lost.  Raises Damaged."""
    try:
        length = zstandard.frame_content_size(body)
    except zstandard.ZstdError as error:
        raise Damaged("a frame that does not decompress", where) from error
    if not 0 <= length <= L.FRAME_PLAIN_LIMIT:
        raise Damaged("a frame that does not say its size", where)
    return decompress(L.ZSTD, body, length, where)


def _promising(plain: bytes) -> bool:
    """Whether any of four samples compresses.

    Sampling costs a hundredth of compressing and spares photos and archives all of it.
    """
    compressor, step = _compressor(1), (len(plain) - _SAMPLE) // 3
    samples = (plain[i : i + _SAMPLE] for i in range(0, len(plain) - _SAMPLE + 1, step))
    return any(len(compressor.compress(s)) < _GAIN * _SAMPLE for s in samples)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    found: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if found is None:
        found = _local.compressors = {}
    if level not in found:
        found[level] = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return found[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if found is None:
        found = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024)
    return found
