"""Cut points: the compiled loop against its twin, streams against wholes, and a vector, for cuts must never move."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.backup.chunker import Chunker
from support import gear

KEY = bytes(range(32))
SIZES = [(0, 8, 8), (0, 8, 32), (4, 16, 64), (16, 16, 16), (7, 33, 100), (64, 256, 1024)]
VECTOR = [
    1166,
    2570,
    3447,
    4845,
    5960,
    7128,
    8531,
    9586,
    11028,
    12586,
    13660,
    14924,
    16639,
    17921,
    18774,
    19801,
    20000,
]

contents = st.one_of(
    st.binary(max_size=600),
    st.builds(lambda seed, n: random.Random(seed).randbytes(n), st.integers(0, 2**32), st.integers(0, 6000)),
    st.builds(lambda piece, n: piece * n, st.binary(min_size=1, max_size=9), st.integers(0, 400)),
)


@given(contents, st.sampled_from(SIZES), st.binary(min_size=32, max_size=32))
def test_compiled_equals_twin(data: bytes, sizes: tuple[int, int, int], key: bytes) -> None:
    assert Chunker(key, *sizes).cuts(data, final=True) == gear.cuts(data, key, *sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_lengths_at_every_edge(sizes: tuple[int, int, int]) -> None:
    chunker = Chunker(KEY, *sizes)
    for edge in {0, *sizes, 2 * sizes[2]}:
        for length in {max(0, edge + step) for step in (-1, 0, 1)}:
            data = random.Random(length).randbytes(length)
            found = chunker.cuts(data, final=True)
            assert found == gear.cuts(data, KEY, *sizes)
            assert found[-1:] == ([length] if length else [])


@given(contents, st.sampled_from(SIZES), st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_stream_equals_whole(data: bytes, sizes: tuple[int, int, int], steps: list[int]) -> None:
    chunker = Chunker(KEY, *sizes)
    found: list[int] = []
    base = at = 0
    while at < len(data):
        at = min(len(data), at + steps[len(found) % len(steps)])
        ends = chunker.cuts(memoryview(data)[base:at], final=False)
        found += [base + end for end in ends]
        base = found[-1] if found else 0
        assert at - base < chunker.maximum
    found += [base + end for end in chunker.cuts(data[base:], final=True)]
    assert found == chunker.cuts(data, final=True)


def test_lengths_keep_to_the_sizes() -> None:
    data = random.Random(1).randbytes(400_000)
    ends = Chunker(KEY, 256, 1024, 4096).cuts(data, final=True)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert all(256 < length <= 4096 for length in lengths[:-1])
    assert 900 < len(data) / len(lengths) < 1500


def test_an_inserted_byte_moves_few_cuts() -> None:
    data = random.Random(2).randbytes(200_000)
    chunker = Chunker(KEY, 256, 1024, 4096)
    before = set(chunker.cuts(data, final=True))
    after = {end - 1 for end in chunker.cuts(data[:1000] + b"!" + data[1000:], final=True)}
    assert len(before - after) < 8


def test_the_key_decides() -> None:
    data = random.Random(3).randbytes(50_000)
    one, other = (Chunker(bytes([n]) * 32, 64, 256, 1024).cuts(data, final=True) for n in (1, 2))
    assert len(set(one) & set(other)) < len(one) // 10


def test_vector() -> None:
    data = blake3(b"chunker vector 1").digest(20_000)
    assert Chunker(KEY, 256, 1024, 4096).cuts(data, final=True) == VECTOR


def test_bad_sizes_and_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="out of order"):
        Chunker(KEY, 64, 32, 128)
    with pytest.raises(ValueError):
        Chunker(b"short", 16, 32, 64)
