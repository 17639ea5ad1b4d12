"""What can still be had of a damaged volume: all that opens, and nothing wrong."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.repo import salvage as salvaging
from snapfs.repo.format import labels as L
from snapfs.repo.format import volume as layout
from snapfs.repo.model import BlobId, Kind, VolumeKind
from snapfs.repo.salvage import Salvage
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.volumes import Volumes, object_name
from support.parts import KEYS, REPOSITORY, seal_volume
from support.torture import Rounds
from support.trees import noise

FRAMES = [
    [(Kind.CONTENT, b"one " * 200), (Kind.CONTENT, b"two")],
    [(Kind.CONTENT, noise(3000, 1))],
    [(Kind.CONTENT, b"z" * 70), (Kind.CONTENT, noise(500, 2)), (Kind.CONTENT, b"")],
    [(Kind.CONTENT, noise(100, 3) * 20)],
    [(Kind.CONTENT, noise(1500, 4))],
]
GOOD = seal_volume(VolumeKind.DATA, FRAMES, level=3)
ALL = {KEYS.blob_id(kind, blob): blob for frame in FRAMES for kind, blob in frame}
BY_FRAME = [{KEYS.blob_id(kind, blob) for kind, blob in frame} for frame in FRAMES]


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    storage = LocalStorage(str(tmp_path))
    storage.make_folders()
    yield Volumes(storage, KEYS, REPOSITORY)
    storage.close()


def saved(volumes: Volumes, data: bytes, *, quick: bool = False) -> set[BlobId]:
    """Ids of what comes out of these bytes; all of it is right."""
    name = hashlib.sha256(data).digest()
    volumes.storage.put(object_name(VolumeKind.DATA, name), data)
    found = list(Salvage(volumes, VolumeKind.DATA, name, quick=quick).blobs())
    for one in found:
        assert one.data == ALL[one.id]
    return {one.id for one in found}


def places() -> list[layout.FrameEntry]:
    from snapfs.repo.format.envelope import Opener

    opener = Opener(KEYS.sealing(L.DATA_VOLUME), GOOD, "it", L.DATA_VOLUME, REPOSITORY)
    tail = layout.decode_tail(opener.tail(GOOD[-L.TAIL_SIZE :]), len(GOOD), "it")
    return list(layout.directory_frames(opener, tail, GOOD[tail.offset : -L.TAIL_SIZE]))


def broken(*offsets: int) -> bytes:
    data = bytearray(GOOD)
    for offset in offsets:
        data[offset] ^= 0x10
    return bytes(data)


def test_a_sound_volume(volumes: Volumes) -> None:
    for length in (len(GOOD), len(GOOD) - 1, len(GOOD) - 33, len(GOOD) - 300):
        assert saved(volumes, GOOD[:length]) == saved(volumes, GOOD[:length], quick=True) == ALL.keys()


@pytest.mark.parametrize("which", range(len(FRAMES)))
@pytest.mark.parametrize("directory", ["there", "lost"])
def test_a_damaged_frame_costs_itself_and_no_other(volumes: Volumes, which: int, directory: str) -> None:
    """Of a header even less: it says nothing that is not told elsewhere, the directory lost or not."""
    frame, tail = places()[which], [-5] if directory == "lost" else []
    others = ALL.keys() - BY_FRAME[which]
    assert saved(volumes, broken(frame.offset + L.FRAME_HEADER_SIZE + 3, *tail)) == others
    assert saved(volumes, broken(frame.offset + 3, *tail)) == ALL.keys()
    both = broken(frame.offset + 3, frame.offset + L.FRAME_HEADER_SIZE + 3, *tail)
    assert saved(volumes, both) == others


def test_an_ordinary_look_ends_at_a_lost_header(volumes: Volumes) -> None:
    """What the index is told of: an ordinary reader opens the header, too."""
    frame = places()[2]
    assert saved(volumes, broken(frame.offset, -1), quick=True) == BY_FRAME[0] | BY_FRAME[1]
    assert saved(volumes, broken(frame.offset + 40, -1), quick=True) == ALL.keys() - BY_FRAME[2]


def test_several_headers_in_a_row(volumes: Volumes) -> None:
    at = places()
    assert saved(volumes, broken(at[1].offset, at[2].offset, at[3].offset, -1)) == BY_FRAME[0] | BY_FRAME[4]


@pytest.mark.torture
def test_any_bit_of_the_volume_s_header(volumes: Volumes, rounds: Rounds) -> None:
    """All of it is known, follows from the salt, or pins the salt."""
    for bit in rounds.some(range(8 * L.HEADER_SIZE), 60):
        data = bytearray(GOOD)
        data[bit >> 3] ^= 1 << (bit & 7)
        assert saved(volumes, bytes(data)) == ALL.keys(), bit


def test_a_zeroed_beginning(volumes: Volumes) -> None:
    for size in (8, 24, 40):
        assert saved(volumes, bytes(size) + GOOD[size:]) == ALL.keys()
    assert saved(volumes, GOOD[:72] + bytes(32) + GOOD[104:]) == ALL.keys(), (
        "the commitment follows from the salt"
    )
    assert saved(volumes, bytes(104) + GOOD[104:]) == set(), "without its salt nothing opens"


def test_looking_for_headers_comes_to_an_end(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salvaging, "_TRIES", 1000)
    assert saved(volumes, GOOD[:200] + bytes(len(GOOD) - 200)) <= ALL.keys()


def test_chance_damage_saves_every_frame_that_is_whole(
    volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded sample; every frame whose bytes are as written has to come out while the header is whole."""
    monkeypatch.setattr(salvaging, "_TRIES", 100_000)
    for seed in range(60):
        chance = random.Random(seed)
        data = bytearray(GOOD)
        at = places()
        start = chance.randrange(L.HEADER_SIZE, len(data))
        end = min(len(data), start + chance.choice((1, 16, 512, 4096)))
        data[start:end] = chance.randbytes(end - start)
        want = set()
        for frame, ids in zip(at, BY_FRAME, strict=True):
            span = slice(frame.offset, frame.offset + L.FRAME_HEADER_SIZE + frame.sealed)
            if data[span] == GOOD[span]:
                want |= ids
        assert saved(volumes, bytes(data)) >= want, f"seed {seed}"
