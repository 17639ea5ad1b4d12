"""The parity of a volume: the compiled loop against plain Python, what it makes whole, and what its header refuses."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.errors import Damaged
from snapfs.repo.format._parity import checksums, fold
from snapfs.repo.format.parity import BLOCK, HEADER, Builder, Shape, decode_header, encode_header, shape_of
from support import parity as twin
from support.trees import noise

PUBLISHED = (
    (b"", 0xEF46DB3751D8E999),
    (b"a", 0xD24EC4F1A98C6E5B),
    (b"abc", 0x44BC2CF5AD770999),
    (bytes(range(32)), 0xCBF59C5116FF32B4),
    (bytes(64), 0x257B09A147B82A19),
    (bytes(range(256)) * 16, 0x0F6E64BE186AF6A4),
)
"""XXH64 as xxHash's own library gives it (0.8.3)."""


@pytest.mark.parametrize(("data", "expected"), PUBLISHED, ids=lambda value: "")
def test_the_checksum_is_xxh64(data: bytes, expected: int) -> None:
    assert twin.xxh64(data) == expected
    if data and len(data) % 32 == 0:
        assert checksums(data, len(data)) == expected.to_bytes(8, "little")


@given(
    st.integers(1, 300_000), st.lists(st.integers(1, 50_000), min_size=1, max_size=20), st.integers(0, 2**32)
)
def test_made_from_pieces_of_any_length(size: int, pieces: list[int], seed: int) -> None:
    volume = noise(size, seed)
    name, builder, at, turn = hashlib.sha256(volume).digest(), Builder(size), 0, 0
    while at < size:
        builder.update(memoryview(volume)[at : at + pieces[turn % len(pieces)]])
        at += pieces[turn % len(pieces)]
        turn += 1
    made = builder.parity(name)
    assert made == twin.parity(volume, name)
    assert len(made) == Shape(size).length


@given(st.integers(1, 2_000_000), st.data())
def test_plain_python_makes_a_volume_whole(size: int, data: st.DataObject) -> None:
    """A piece as long as a column, wherever it begins at a block."""
    volume = noise(size, size)
    shape = Shape(size)
    name = hashlib.sha256(volume).digest()
    builder = Builder(size)
    builder.update(volume)
    made = builder.parity(name)
    first = data.draw(st.integers(0, shape.blocks - 1))
    at, length = first * BLOCK, min(shape.rows * BLOCK, size - first * BLOCK)
    harmed = volume[:at] + bytes(255 - byte for byte in volume[at : at + length]) + volume[at + length :]
    assert twin.mended(harmed, made) == volume


def test_how_much_room_it_takes() -> None:
    """2.3% of a full volume; a block and a few bytes of the smallest."""
    assert Shape(64 << 20).length == 1_531_968
    assert Shape(4096).length == 64 + 8 + 4096
    assert Shape(48 * 4096 + 1).rows == 2


def test_its_length_tells_that_of_the_volume() -> None:
    for blocks in (*range(1, 200), 16384, 16385, 1 << 18):
        shape = Shape(blocks * BLOCK)
        assert shape_of(shape.length) == shape
        assert shape_of(Shape(blocks * BLOCK - 1).length) == shape


def test_a_volume_of_another_length_is_none() -> None:
    for given_bytes in (99, 101):
        builder = Builder(100)
        builder.update(bytes(given_bytes))
        with pytest.raises(ValueError, match=f"{given_bytes} bytes of 100"):
            builder.parity(bytes(32))


def test_any_other_bit_in_the_header_is_told() -> None:
    name = bytes(range(32))
    head = encode_header(123_456_789, name)
    assert len(head) == HEADER
    assert decode_header(head + b"more", name, "it").size == 123_456_789
    for bit in range(8 * HEADER):
        wrong = bytearray(head)
        wrong[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(Damaged):
            decode_header(bytes(wrong), name, "it")
    for length in range(HEADER):
        with pytest.raises(Damaged):
            decode_header(head[:length], name, "it")
    with pytest.raises(Damaged):
        decode_header(head, bytes(32), "it")
    for size in (0, (1 << 30) + 1):
        with pytest.raises(Damaged):
            decode_header(encode_header(size, name), name, "it")


def test_the_compiled_loops_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="5000 bytes in blocks of 4096"):
        checksums(bytes(5000), 4096)
    with pytest.raises(ValueError, match="blocks of 33"):
        checksums(bytes(33), 33)
    for at in (-1, 8):
        with pytest.raises(ValueError, match="of 8 bytes"):
            fold(bytearray(8), at, b"x")
    target = bytearray(3)
    fold(target, 2, b"\x01\x02\x04\x08\x10")
    assert target == b"\x12\x04\x09"
