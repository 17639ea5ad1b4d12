"""Volumes: directory and tail, padding, and what is left of one whose directory is lost."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.repo.errors import Damaged, RepositoryError, UsageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Opener, Sealer
from snapfs.repo.index import Index
from snapfs.repo.model import BlobId, KiB, Kind, MiB, VolumeKind
from snapfs.repo.packing import BlobWriter
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.system import System
from snapfs.repo.volumes import Volumes, object_name
from support.parts import KEYS, REPOSITORY, SALT, seal_volume

KEY = KEYS.sealing(L.DATA_VOLUME)
SOME = [
    [(Kind.CONTENT, b"one"), (Kind.CONTENT, b"two" * 100)],
    [(Kind.CONTENT, b"\0" * 9000)],
    [(Kind.CONTENT, b"four")],
]


def opener(data: bytes) -> Opener:
    return Opener(KEY, data[: L.HEADER_SIZE], "volume", L.DATA_VOLUME, REPOSITORY)


def directory(data: bytes) -> list[tuple[BlobId, int, layout.Location]]:
    reader = opener(data)
    tail = layout.decode_tail(reader.tail(data[-L.TAIL_SIZE :]), len(data), "volume")
    return list(layout.decode_directory(reader, tail, data[tail.offset : -L.TAIL_SIZE]))


@given(
    st.lists(st.lists(st.binary(max_size=50), min_size=1, max_size=20), max_size=12), st.sampled_from([0, 3])
)
def test_directory_says_what_was_sealed(frames: list[list[bytes]], level: int) -> None:
    data = seal_volume(VolumeKind.DATA, [[(Kind.CONTENT, b) for b in f] for f in frames], level=level)
    found = directory(data)
    assert [blob for blob, _, _ in found] == [KEYS.blob_id(Kind.CONTENT, b) for f in frames for b in f]
    assert [at.entry for _, _, at in found] == list(range(sum(map(len, frames))))
    assert [at.frame for _, _, at in found] == [n for n, f in enumerate(frames) for _ in f]
    assert [at.length for _, _, at in found] == [len(b) for f in frames for b in f]
    assert len(data) % (4 * KiB) == 0


def test_directories_of_many_blobs_have_parts() -> None:
    """Each part ends with a frame, and no part has more blobs than it may."""
    counts = [1024] * 70 + [1, 1023, 5]
    total = sum(counts)
    ids = [BlobId(hashlib.sha256(b"%d" % i).digest()) for i in range(total)]
    frames = [layout.FrameEntry(n, 200 * n + 104, 100, count) for n, count in enumerate(counts)]
    parts = layout.encode_directory(frames, [1 << 24 | i % 1000 for i in range(total)], ids)
    assert len(parts) == 3
    sealer = Sealer(KEY, L.DATA_VOLUME, REPOSITORY, SALT)
    sealed = b"".join(
        b"".join(sealer.frame(sealer.number(), L.FRAME_DIRECTORY, 0, 0, len(p), p)) for p in parts
    )
    assert len(sealed) + L.TAIL_SIZE <= layout.directory_size(len(frames), total)
    reader = Opener(KEY, sealer.header, "volume", L.DATA_VOLUME)
    found = list(layout.decode_directory(reader, layout.Tail(0, 3, 104), sealed))
    assert [blob for blob, _, _ in found] == ids
    assert [at.length for _, _, at in found] == [i % 1000 for i in range(total)]
    assert list(layout.directory_frames(reader, layout.Tail(0, 3, 104), sealed)) == frames
    with pytest.raises(Damaged):
        list(layout.decode_directory(reader, layout.Tail(0, 4, 104), sealed))
    with pytest.raises(Damaged):
        list(layout.decode_directory(reader, layout.Tail(1, 2, 104), sealed))


@given(st.lists(st.integers(1, L.JOINED_BLOBS), max_size=80))
def test_directory_size_is_an_upper_bound(counts: list[int]) -> None:
    total = sum(counts)
    frames = [layout.FrameEntry(65000 + n, 2**30 + n, L.FRAME_PLAIN_LIMIT, c) for n, c in enumerate(counts)]
    parts = layout.encode_directory(frames, [0] * total, [BlobId(bytes(32))] * total)
    need = sum(L.FRAME_HEADER_SIZE + len(p) + L.TAG_SIZE for p in parts) + L.TAIL_SIZE
    assert need <= layout.directory_size(len(frames), total)
    assert all(len(p) <= L.FRAME_PLAIN_LIMIT for p in parts)


def test_every_flip_in_directory_or_tail_is_noticed() -> None:
    data = bytearray(seal_volume(VolumeKind.DATA, SOME))
    good = directory(bytes(data))
    tail = layout.decode_tail(opener(data).tail(bytes(data[-L.TAIL_SIZE :])), len(data), "volume")
    for at in (*range(L.HEADER_SIZE), *range(tail.offset, len(data))):
        data[at] ^= 0x10
        with pytest.raises(RepositoryError):
            assert directory(bytes(data)) == good, f"byte {at}"
        data[at] ^= 0x10
    assert directory(bytes(data)) == good


@pytest.mark.parametrize("plain", [b"", bytes(16), bytes(15), layout.Tail(0, 1, 103).encode(), layout.Tail(0, 1, 968).encode(),
                                   layout.Tail(0, 0, 104).encode()])  # fmt: skip
def test_impossible_tails(plain: bytes) -> None:
    with pytest.raises(Damaged):
        layout.decode_tail(plain, 1000, "volume")


HOSTILE = {
    "negative count": {"frames": [(0, 104, 100, -1), (1, 204, 100, 2)]},
    "no count": {"frames": [(0, 104, 100, 0), (1, 204, 100, 1)]},
    "negative offset": {"frames": [(0, -1, 100, 1)]},
    "offset over the limit": {"frames": [(0, 1 << 40, 100, 1)]},
    "sealed over the limit": {"frames": [(0, 104, 1 << 25, 1)]},
    "number over the limit": {"frames": [(1 << 16, 104, 100, 1)]},
    "negative number": {"frames": [(-1, 104, 100, 1)]},
    "too few words": {"words": b""},
    "too few ids": {"ids": bytes(31)},
    "unknown kind": {"words": bytes((1, 0, 0, 77))},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_directories(name: str) -> None:
    """Sealed with the right key: values that no index can hold are damage, not an exception of somebody else."""
    part: dict[str, object] = {"frames": [(0, 104, 100, 1)], "words": bytes((1, 0, 0, 1)), "ids": bytes(32)}
    part |= HOSTILE[name]
    body = layout._encode([1, part["frames"], part["words"], part["ids"]])
    sealer = Sealer(KEY, L.DATA_VOLUME, REPOSITORY, SALT)
    data = b"".join(sealer.frame(sealer.number(), L.FRAME_DIRECTORY, 0, 0, len(body), body))
    with pytest.raises(Damaged):
        list(
            layout.decode_directory(
                Opener(KEY, sealer.header, "it", L.DATA_VOLUME), layout.Tail(0, 1, 104), data
            )
        )


# ---- padding ---------------------------------------------------------------------------------------------------------


@given(st.one_of(st.just(0), st.integers(48, 20 * MiB)))
def test_padding_fills_exactly(gap: int) -> None:
    lengths = layout.padding(gap)
    assert sum(length + 48 for length in lengths) == gap
    assert all(0 <= length <= L.FRAME_PLAIN_LIMIT for length in lengths)


@pytest.mark.parametrize(
    "around", [48, L.FRAME_PLAIN_LIMIT - 48, L.FRAME_PLAIN_LIMIT, 2 * L.FRAME_PLAIN_LIMIT - 96]
)
def test_padding_at_edges(around: int) -> None:
    for gap in range(max(around - 100, 48), around + 100):
        lengths = layout.padding(gap)
        assert sum(length + 48 for length in lengths) == gap
        assert all(0 <= length <= L.FRAME_PLAIN_LIMIT for length in lengths)


@given(st.integers(200, 64 * MiB - 48), st.just(64 * MiB))
def test_padme(used: int, volume_size: int) -> None:
    target = layout.padded(used, volume_size)
    assert used <= target <= volume_size
    assert target == used or target - used >= 48
    assert target % (4 * KiB) == 0
    # The paper's bound is 2^-(bits of the exponent); our floor of 4 KiB, and once more for a gap no frame fits in, on top.
    exponent = used.bit_length() - 1
    assert target - used <= used / 2 ** exponent.bit_length() + 8 * KiB
    if used > 4 * MiB:
        assert target <= used * 1.04


def test_padding_hides_sizes() -> None:
    """Of all the sizes up to 64 MiB fewer than 500 can be seen."""
    seen = {layout.padded(used, 64 * MiB) for used in range(200, 64 * MiB - 48, 4001)}
    assert len(seen) < 500


# ---- a lost directory --------------------------------------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    storage = LocalStorage(str(tmp_path))
    storage.make_folders()
    yield Volumes(storage, KEYS, REPOSITORY)
    storage.close()


def keep(volumes: Volumes, data: bytes) -> bytes:
    """Store what may be damaged under the name it has anyway."""
    name = hashlib.sha256(data).digest()
    volumes.storage.put(object_name(VolumeKind.DATA, name), data)
    return name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(0, 12287), st.integers(1, 255))
def test_no_flip_gives_wrong_bytes(volumes: Volumes, at: int, mask: int) -> None:
    data = bytearray(seal_volume(VolumeKind.DATA, SOME))
    right = {KEYS.blob_id(k, blob): blob for frame in SOME for k, blob in frame}
    data[at % len(data)] ^= mask
    name = keep(volumes, bytes(data))
    try:
        for blob, _, where in volumes.directory(VolumeKind.DATA, name, len(data)):
            plain = volumes.frame(VolumeKind.DATA, name, where)[1]
            assert plain[where.offset : where.offset + where.length] == right[blob]
    except RepositoryError:
        pass


def test_strange_names_are_passed_over(volumes: Volumes) -> None:
    name = keep(volumes, seal_volume(VolumeKind.DATA, SOME))
    for stranger in (
        "data/README",
        "data/ab/" + "zz" * 32,
        "data/ab/" + "ab" * 31,
        "data/ab/" + "cd" * 32,
        "data/" + "ab" * 32,
    ):
        volumes.storage.put(stranger, b"what is this")
    assert list(volumes.listing()) == [name]


# ---- what the writer makes -----------------------------------------------------------------------------------------------


def written(tmp_path: Path, volume_size: int, largest_blob: int, blobs: list[bytes]) -> list[int]:
    """Sizes of the volumes that a writer makes of these."""
    storage = LocalStorage(str(tmp_path))
    storage.make_folders()
    volumes = Volumes(storage, KEYS, REPOSITORY)
    index = Index(None, KEYS.index_tag)
    try:
        with BlobWriter(
            index,
            volumes,
            KEYS,
            REPOSITORY,
            System(),
            b"c",
            volume_size=volume_size,
            largest_blob=largest_blob,
        ) as writer:
            ids = [writer.put(Kind.CONTENT, blob) for blob in blobs]
            writer.flush()
        for blob, data in zip(ids, blobs, strict=True):
            at = index.get(blob)
            assert at is not None
            volume = index.volume(at.volume)
            assert volumes.frame(volume.kind, volume.name, at)[1][at.offset : at.offset + at.length] == data
        return sorted(size for _, size in volumes.listing().values())
    finally:
        index.close()
        storage.close()


def test_volumes_are_full_to_the_byte_but_the_last(tmp_path: Path) -> None:
    rng = random.Random(7)
    sizes = written(
        tmp_path, 400_001, 256 * KiB, [rng.randbytes(rng.randrange(1, 50_000)) for _ in range(100)]
    )
    assert len(sizes) > 6
    assert set(sizes[1:]) == {400_001}
    assert sizes[0] == 400_001 or sizes[0] % (4 * KiB) == 0


def test_one_largest_blob_fits_the_smallest_volume(tmp_path: Path) -> None:
    rng = random.Random(8)
    sizes = written(tmp_path, MiB + 64 * KiB, MiB, [rng.randbytes(MiB) for _ in range(3)])
    assert len(sizes) == 3
    assert max(sizes) == MiB + 64 * KiB


def test_joined_small_blobs_fit_the_smallest_volume(tmp_path: Path) -> None:
    """Small blobs are joined up to 256 KiB, also where no single blob is as large."""
    rng = random.Random(9)
    with pytest.raises(UsageError):
        written(tmp_path, 256 * KiB, 4 * KiB, [])
    sizes = written(tmp_path, 320 * KiB, 4 * KiB, [rng.randbytes(256) for _ in range(2100)])
    assert max(sizes) <= 320 * KiB
