"""A bit that flips in memory between two stages of the pipeline: caught before the commit, or without effect.

The stages are the functions that hand data on; a flip in what one of them returns is a flip between it and the next.  A flip
in what was read from the source, before it is hashed or encoded, cannot be told from another content: what was read is restored.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from snapfs.repo.backup.walk import Walker
from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, RepositoryError, WrongPassword
from snapfs.repo.events import Events
from snapfs.repo.format import frame as framing
from snapfs.repo.format import records, sealed
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.index import Index
from snapfs.repo.model import KiB, Kind, Node, VolumeKind
from snapfs.repo.packing import BlobWriter
from snapfs.repo.page_writer import PageWriter
from snapfs.repo.repository import Repository
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject
from snapfs.repo.volume_writer import JoinedFrame, VolumeWriter
from snapfs.repo.volumes import OBJECTS, Volumes
from support import repositories
from support.parts import KEYS, REPOSITORY, SALT
from support.sources import Desk
from support.torture import Rounds
from support.trees import File, make, noise

pytestmark = pytest.mark.torture


def flipped(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    at = chance.randrange(len(changed))
    changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


class Flip:
    """Flips one bit in what the `nth` call at a seam hands on; the calls come from several threads."""

    def __init__(self, nth: int, seed: int) -> None:
        self._nth = nth
        self.chance = random.Random(seed)
        self._lock = threading.Lock()
        self.calls = 0

    def now(self) -> bool:
        with self._lock:
            self.calls += 1
            return self.calls == self._nth


def after_hashing(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """In a blob whose id is known already, on its way into a frame."""
    real = framing.join

    def join(words: list[int], blobs: list[bytes]) -> bytes:
        if flip.now():
            at = flip.chance.randrange(len(blobs))
            blobs = [flipped(b, flip.chance) if n == at else b for n, b in enumerate(blobs)]
        return real(words, blobs)

    patch.setattr(framing, "join", join)


def in_a_length(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    real = framing.join

    def join(words: list[int], blobs: list[bytes]) -> bytes:
        if flip.now():
            at = flip.chance.randrange(len(words))
            words = [w ^ 1 << flip.chance.randrange(32) if n == at else w for n, w in enumerate(words)]
        return real(words, blobs)

    patch.setattr(framing, "join", join)


def in_an_id(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """After it was given to the tree, on its way into the directory of the volume."""
    real = VolumeWriter.append

    def append(self: VolumeWriter, frame: Any, *args: Any) -> None:
        if flip.now():
            frame.ids[0] = flipped(frame.ids[0], flip.chance)
        real(self, frame, *args)

    patch.setattr(VolumeWriter, "append", append)


def after_joining(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    real = framing.compress

    def compress(plain: bytes, *args: Any, **more: Any) -> Any:
        return real(flipped(plain, flip.chance) if flip.now() else plain, *args, **more)

    patch.setattr(framing, "compress", compress)


def after_compressing(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    real = framing.compress

    def compress(*args: Any, **more: Any) -> tuple[int, bytes]:
        codec, body = real(*args, **more)
        return codec, flipped(body, flip.chance) if flip.now() else body

    patch.setattr(framing, "compress", compress)


def after_sealing(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    real = Sealer.frame

    def frame(self: Sealer, *args: Any) -> tuple[bytes, bytes]:
        head, body = real(self, *args)
        if not flip.now():
            return head, body
        return (
            (flipped(head, flip.chance), body)
            if flip.chance.random() < 0.3
            else (head, flipped(body, flip.chance))
        )

    patch.setattr(Sealer, "frame", frame)


def after_writing(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """Between the buffer and the disk: of volumes and of the event."""
    real = LocalObject.write

    def write(self: LocalObject, *parts: bytes) -> None:
        data = b"".join(parts)
        real(self, flipped(data, flip.chance) if flip.now() else data)

    patch.setattr(LocalObject, "write", write)


def in_what_is_read_back(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """On its way from the disk, once: what is on the disk is right, and must not get the name of something else."""
    real = LocalObject.read

    def read(self: LocalObject, *args: Any) -> bytes:
        data = real(self, *args)
        return flipped(data, flip.chance) if flip.now() else data

    patch.setattr(LocalObject, "read", read)


def in_a_directory(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """The directory of a volume, before it is sealed."""
    real = layout.encode_directory

    def encode(*args: Any) -> list[bytes]:
        parts = real(*args)
        return [flipped(part, flip.chance) for part in parts] if flip.now() else parts

    patch.setattr(layout, "encode_directory", encode)


def in_an_entry(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """Of a directory: the encoding of a node (its name, its mode), while it waits for the page to be full."""
    real = PageWriter._end

    def end(self: PageWriter, depth: int) -> None:
        raws = self._levels[depth].raws
        if self._kind is Kind.DIRECTORY and flip.now():
            at = flip.chance.randrange(len(raws))
            raws[at] = msgspec.Raw(flipped(bytes(raws[at]), flip.chance))
        real(self, depth)

    patch.setattr(PageWriter, "_end", end)


def in_a_page(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """Before it is hashed."""
    real = records.encode_page

    def encode(*args: Any) -> bytes:
        page = real(*args)
        return flipped(page, flip.chance) if flip.now() else page

    patch.setattr(records, "encode_page", encode)


def in_a_folder(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """Mode, owner or time of a directory, while what is in it is walked."""
    real = Walker._leave

    def leave(self: Walker) -> Node:
        level = self._stack[-1]
        if flip.now():
            field = flip.chance.choice(("mode", "uid", "gid", "mtime", "ctime"))
            value = getattr(level.node, field) ^ 1 << flip.chance.randrange(9)
            level.node = msgspec.structs.replace(level.node, **{field: value})
        return real(self)

    patch.setattr(Walker, "_leave", leave)


def in_a_record(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """The event, before it is sealed."""
    from snapfs.repo import events

    def seal(sealer: Sealer, record: bytes) -> bytes:
        return sealed.seal_record(sealer, flipped(record, flip.chance) if flip.now() else record)

    patch.setattr(events, "seal_record", seal)


def in_the_sealed_event(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """Before it is hashed, so that its name fits."""
    from snapfs.repo import events

    def seal(sealer: Sealer, record: bytes) -> bytes:
        data = sealed.seal_record(sealer, record)
        return flipped(data, flip.chance) if flip.now() else data

    patch.setattr(events, "seal_record", seal)


def in_the_index(flip: Flip, patch: pytest.MonkeyPatch) -> None:
    """A location, before it is entered: costs looking again, no more."""
    real = Index.add

    def add(self: Index, name: bytes, kind: Any, size: int, entries: Any, *args: Any) -> int:
        entries = list(entries)
        if flip.now():
            at = flip.chance.randrange(len(entries))
            blob, place = entries[at]
            field = flip.chance.choice(("frame", "frame_offset", "sealed", "offset", "length", "blob"))
            if field == "blob":
                entries[at] = flipped(blob, flip.chance), place
            else:
                entries[at] = (
                    blob,
                    place._replace(**{field: getattr(place, field) ^ 1 << flip.chance.randrange(8)}),
                )
        return real(self, name, kind, size, entries, *args)

    patch.setattr(Index, "add", add)


SEAMS = [
    after_hashing, in_a_length, in_an_id, after_joining, after_compressing, after_sealing, after_writing, in_what_is_read_back,
    in_a_directory, in_an_entry, in_a_page, in_a_folder, in_a_record, in_the_sealed_event, in_the_index,
]  # fmt: skip


CALLS: dict[Any, int] = {in_a_record: 1, in_the_sealed_event: 1, in_what_is_read_back: 6}
"""How many there are to choose from, at least, where it is not three."""


def new_desk(folder: Path) -> Desk:
    folder.mkdir()
    made = Desk(folder, {
        b"text": File(b"one line and another\n" * 900),
        b"noise": File(noise(70_000, 1)),
        b"few/a": File(noise(300, 2), xattrs={"user.large": noise(1500, 3)}),
    }, volume_size=512 * KiB)  # fmt: skip
    made.snapshot()
    return made


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        yield new_desk(Path(folder) / "first")


def renewed(desk: Desk, turn: int) -> Desk:
    """Every so often a new one: each case adds a snapshot, and reads all that there are."""
    if not turn or turn % 15:
        return desk
    if desk.folder.name != "first":
        shutil.rmtree(desk.folder)
    return new_desk(Path(tempfile.mkdtemp(dir=desk.folder.parent)) / "desk")


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.__name__)
def test_a_flip_between_two_stages(
    desk: Desk,
    seam: Callable[[Flip, pytest.MonkeyPatch], None],
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    caught = 0
    for turn, seed in enumerate(rounds.seeds(6)):
        desk = renewed(desk, turn)
        make(desk.source, {b"text": File(b"line %d\n" % seed * 2000), b"new": File(noise(40_000, seed))})
        with desk.open() as repository:
            before = {s.id for s in repository.snapshots()}
        flip = Flip(1 + seed % CALLS.get(seam, 3), seed)
        with monkeypatch.context() as patch:
            seam(flip, patch)
            try:
                new = desk.snapshot()
            except RepositoryError:
                caught += 1
                new = None
        assert flip.calls, "the seam is not there any more"
        with desk.open() as repository:
            shown = {s.id for s in repository.snapshots()}
            assert repository.events.load().problems == []
        if new is None:
            assert shown == before, "no snapshot was promised, and none is there"
            new = desk.snapshot()
        assert desk.differences(new) == []
        with desk.open() as repository:
            assert check(repository, read_data=True).ok
    if seam not in (in_the_index, in_a_record):
        assert caught, "nothing was caught: is the flip there?"


def test_any_bit_of_a_directory(tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a volume, before it is sealed: who finds blobs by it must find what was written, at the place where it says."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    storage = LocalStorage(str(tmp_path))
    storage.make_folders()
    volumes = Volumes(storage, KEYS, REPOSITORY)
    real = layout.encode_directory

    def write(bit: int | None) -> VolumeWriter:
        def encode(*args: Any) -> list[bytes]:
            (part,) = real(*args)
            sizes.append(len(part))
            if bit is None:
                return [part]
            changed = bytearray(part)
            changed[bit >> 3] ^= 1 << (bit & 7)
            return [bytes(changed)]

        kind = OBJECTS[VolumeKind.DATA]
        volume = VolumeWriter(
            VolumeKind.DATA, storage.create(), Sealer(KEYS.sealing(kind), kind, REPOSITORY, SALT)
        )
        for frame in ([b"one", b"two" * 100], [b"three" * 1000], [b"four", b"", b"five"]):
            words = [framing.word(Kind.CONTENT, len(blob)) for blob in frame]
            plain = framing.join(words, frame)
            codec, body = framing.compress(plain, 3)
            ids = [KEYS.blob_id(Kind.CONTENT, blob) for blob in frame]
            volume.append(JoinedFrame(words, ids, frame, len(plain)), codec, len(plain), body)
        with monkeypatch.context() as patch:
            patch.setattr(layout, "encode_directory", encode)
            volume.finish(64 * KiB, False)
        return volume

    sizes: list[int] = []
    write(None).publish(volumes, KEYS)
    for bit in rounds.some(range(8 * sizes[0]), 300):
        with pytest.raises(Damaged):
            write(bit).publish(volumes, KEYS)
    assert len(volumes.listing()) == 1


def test_what_was_read_is_what_is_restored(
    desk: Desk, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After reading, before hashing: another content, consistent in itself."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for turn, seed in enumerate(rounds.seeds(3)):
        desk = renewed(desk, turn)
        good = noise(50_000, seed + 1000)
        make(desk.source, {b"new": File(good)})
        chance, bad = random.Random(seed), []
        real = BlobWriter.put

        def put(self: BlobWriter, kind: Any, data: Any, owner: int = 0) -> Any:
            if bytes(data) in good and len(data) > 1000 and not bad:  # noqa: B023
                bad.append((bytes(data), flipped(bytes(data), chance)))  # noqa: B023
                data = bad[0][1]  # noqa: B023
            return real(self, kind, data, owner)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(BlobWriter, "put", put)
            new = desk.snapshot(force=True)
        seen = desk.read(new)[b"/new"].digest
        assert seen == hashlib.sha256(good.replace(*bad[0])).hexdigest()
        with desk.open() as repository:
            assert check(repository, read_data=True).ok


@pytest.mark.parametrize("where", ["slot", "config"])
def test_a_flip_while_a_repository_is_made(
    tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Else nobody would know before it is needed that the password opens nothing."""
    from snapfs.repo import creation, slots

    for seed in rounds.seeds(4):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        with monkeypatch.context() as patch:
            if where == "slot":
                real_slot = slots.seal_slot
                patch.setattr(slots, "seal_slot", lambda *a, r=real_slot, c=chance: flipped(r(*a), c))
            else:
                real_seal = creation.seal_record
                patch.setattr(creation, "seal_record", lambda *a, r=real_seal, c=chance: flipped(r(*a), c))
            with pytest.raises(RepositoryError):
                repositories.create(folder)
        repositories.create(folder)
        with repositories.open_(folder) as opened:
            assert opened.config_problem is None


def test_a_flip_while_a_password_is_changed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one stays until the new one is known to open."""
    from snapfs.repo import slots

    real, chance = slots.seal_slot, random.Random(1)
    with desk.open() as repository:
        with monkeypatch.context() as patch:
            patch.setattr(slots, "seal_slot", lambda *args: flipped(real(*args), chance))
            with pytest.raises(Damaged):
                repository.slots.replace(b"new", cost=repositories.CHEAP)
        repository.events.load()
    with desk.open() as repository:
        assert isinstance(repository.events, Events)
    with pytest.raises(WrongPassword):
        Repository.open(
            str(desk.folder / "repository"), b"new", no_cache=True, state_dir=str(desk.folder / "new")
        )
