"""Bodies of frames: join, compress, and back; and what a hostile or damaged one may claim."""

from __future__ import annotations

import random
import threading
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.errors import Damaged
from snapfs.repo.format import frame
from snapfs.repo.format import labels as L
from snapfs.repo.model import MAX_BLOB, Kind

BLOBS = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300)), min_size=1, max_size=40)


@given(BLOBS)
def test_join_and_split(blobs: list[tuple[Kind, bytes]]) -> None:
    plain = frame.join([frame.word(kind, len(data)) for kind, data in blobs], [data for _, data in blobs])
    found = frame.split(plain, len(blobs), "it")
    assert [(kind, plain[at : at + length]) for kind, at, length in found] == blobs
    for count in (len(blobs) - 1, len(blobs) + 1):
        try:
            wrong = frame.split(plain, count, "it")
        except Damaged:
            continue
        assert wrong[-1][1] + wrong[-1][2] == len(plain), "whatever is accepted fills the frame exactly"


@given(st.binary(max_size=400), st.integers(-1, 1100))
def test_split_of_anything(plain: bytes, count: int) -> None:
    try:
        found = frame.split(plain, count, "it")
    except Damaged:
        return
    assert len(found) == count
    assert 4 * count + sum(length for _, _, length in found) == len(plain)


@given(st.binary(max_size=2000), st.integers(1, 200), st.sampled_from([0, 1, 3, 9]))
def test_compress_and_back(data: bytes, times: int, level: int) -> None:
    plain = data * times
    codec, body = frame.compress(plain, level)
    assert len(body) <= len(plain)
    assert (codec == L.STORED) == (body == plain)
    assert frame.decompress(codec, body, len(plain), "it") == plain
    for length in (len(plain) - 1, len(plain) + 1):
        with pytest.raises(Damaged):
            frame.decompress(codec, body, length, "it")


def test_noise_is_stored_and_text_is_not() -> None:
    noise = random.Random(1).randbytes(1 << 20)
    text = b"all work and no play " * 50_000
    assert frame.compress(noise, 3) == (L.STORED, noise)
    assert frame.compress(noise[:1000], 3) == (L.STORED, noise[:1000])
    assert frame.compress(text, 0) == (L.STORED, text)
    assert frame.compress(text, 3)[0] == L.ZSTD
    assert frame.compress(noise[: 1 << 19] + text, 3)[0] == L.ZSTD, "one sample that shrinks is enough"


def test_a_frame_of_the_largest_size() -> None:
    plain = frame.join([frame.word(Kind.CONTENT, MAX_BLOB)], [bytes(MAX_BLOB)])
    assert len(plain) <= L.FRAME_PLAIN_LIMIT
    codec, body = frame.compress(plain, 1)
    assert frame.decompress(codec, body, len(plain), "it") == plain
    assert frame.split(plain, 1, "it") == [(Kind.CONTENT, 4, MAX_BLOB)]
    longer = frame.join([frame.word(Kind.CONTENT, MAX_BLOB + 1)], [bytes(MAX_BLOB + 1)])
    with pytest.raises(Damaged):
        frame.split(longer, 1, "it")


@given(st.binary(max_size=100), st.integers(0, 5000), st.integers(0, 3))
def test_decompressing_anything(body: bytes, length: int, codec: int) -> None:
    try:
        assert len(frame.decompress(codec, body, length, "it")) == length
    except Damaged:
        pass


def test_a_frame_may_leave_its_size_unsaid() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    body = compressor.compress(b"abc" * 100) + compressor.flush()
    assert zstandard.frame_content_size(body) == -1
    assert frame.decompress(L.ZSTD, body, 300, "it") == b"abc" * 100
    for length in (0, 1, 299, 301):
        with pytest.raises(Damaged):
            frame.decompress(L.ZSTD, body, length, "it")


BLOCK = bytes.fromhex("02001000")  # 128 KiB of zeros in four bytes
BOMB = bytes.fromhex("28b52ffd0058") + BLOCK * 2047 + bytes.fromhex("03001000")


@pytest.mark.parametrize(
    "body",
    [
        bytes.fromhex("28b52ffde000000000000000100300 00"),
        bytes.fromhex("28b52ffda0ffffffff030000"),
        BOMB,
        zstandard.ZstdCompressor().compress(bytes(1 << 25)),
    ],
    ids=["2^60 bytes in 15", "4 GiB in 12", "256 MiB unsaid", "32 MiB said"],
)
def test_bombs_take_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            frame.decompress(L.ZSTD, body, 700, "it")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_bomb_is_one() -> None:
    """Else the test above tests nothing."""
    assert zstandard.ZstdDecompressor().decompress(BOMB, max_output_size=1 << 28) == bytes(1 << 28)


def test_a_window_too_large_is_refused() -> None:
    body = bytes.fromhex("28b52ffd00a8") + bytes.fromhex("03001000")  # window of 2 GiB
    with pytest.raises(Damaged):
        frame.decompress(L.ZSTD, body, 128 * 1024, "it")


def test_threads_do_not_share_zstd_objects() -> None:
    plains = [bytes((i,)) * 100_000 + random.Random(i).randbytes(3000) for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            codec, body = frame.compress(plains[i], 1)
            if frame.decompress(codec, body, len(plains[i]), "it") != plains[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
