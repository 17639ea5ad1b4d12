"""The chunker in plain Python, written to be read: the reference that the compiled loop is held against."""

from __future__ import annotations

from blake3 import blake3


def table(key: bytes) -> list[int]:
    stream = blake3(b"snapfs/1/gear table", key=key).digest(256 * 8)
    return [int.from_bytes(stream[i * 8 : i * 8 + 8], "little") for i in range(256)]


def top_bits_zero(h: int, bits: int) -> bool:
    return h >> (64 - bits) == 0


def chunk_length(data: bytes, gear: list[int], minimum: int, average: int, maximum: int) -> int:
    """The length of the first chunk of `data`."""
    bits = average.bit_length() - 1
    h = 0
    for length in range(minimum + 1, min(len(data), maximum) + 1):
        h = (2 * h + gear[data[length - 1]]) % 2**64
        if top_bits_zero(h, bits + 2 if length <= average else bits - 2):
            return length
    return min(len(data), maximum)


def cuts(data: bytes, key: bytes, minimum: int, average: int, maximum: int) -> list[int]:
    """End offsets of all chunks of `data`, the last of which is len(data)."""
    gear = table(key)
    found: list[int] = []
    at = 0
    while at < len(data):
        at += chunk_length(data[at:], gear, minimum, average, maximum)
        found.append(at)
    return found
