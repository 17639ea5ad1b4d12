"""Parity: what it makes whole, that everybody reads through it, that nothing relies on it, and when it comes and goes."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.fs.view import View
from snapfs.repo import salvage
from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.format.parity import BLOCK, HEADER, Builder, Shape, encode_header
from snapfs.repo.index import Index, IndexBroken
from snapfs.repo.mending import Mending
from snapfs.repo.model import VolumeKind
from snapfs.repo.parity import MARKER, Parity, object_name
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Unused
from snapfs.repo.repair.parity import drop_parity, keep_parity, look
from snapfs.repo.repair.volumes import repair_volumes
from snapfs.repo.repository import Repository
from snapfs.repo.restore.engine import restore
from snapfs.repo.restore.options import RestoreOptions
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject
from snapfs.repo.volumes import Volumes
from support import parity as twin
from support import repositories, same
from support.micro import Micro
from support.readable import flip
from support.rotations import change_keys
from support.torture import Rounds
from support.trees import File, make, noise

pytestmark = pytest.mark.torture


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(salvage, "_TRIES", 2000)


# ---- how far it reaches ------------------------------------------------------------------------------------------


class Bench:
    """Any bytes as a volume, with its parity, on a disk some of whose sectors can be bad."""

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        self.volume = noise(size, seed)
        self.name = hashlib.sha256(self.volume).digest()
        self.shape = Shape(size)
        self.path = f"data/{self.name.hex()[:2]}/{self.name.hex()}"
        self.folder = folder
        self.storage = _BadSectors(str(folder))
        builder = Builder(size)
        builder.update(self.volume)
        self.parity = builder.parity(self.name)
        Parity(self.storage).write(self.name, self.parity)
        self.put(self.volume)

    def put(self, data: bytes) -> None:
        target = self.folder / self.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def whole(self) -> bool:
        """Through a reader that has seen nothing yet; what it gives is what the volume was."""
        parts: list[bytes] = []
        done = Mending(Parity(self.storage), lambda _: None).whole(self.name, self.path, parts.append)
        assert not done or b"".join(parts) == self.volume
        return done

    def column(self) -> int:
        return self.shape.rows * BLOCK


class _BadSectors(LocalStorage):
    """`bad`: {name of an object: offsets of its blocks that the disk does not give}."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.bad: dict[str, set[int]] = {}

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        end = offset + (length if length is not None else 1 << 40)
        if any(offset < at + BLOCK and at < end for at in self.bad.get(name, ())):
            raise StorageError("repository: cannot read it: Input/output error", errno.EIO)
        return super().read(name, offset, length)


@pytest.fixture
def folder() -> Iterator[Path]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as name:
        yield Path(name)


def _spoilt(data: bytes, chance: random.Random) -> bytes:
    """Other bytes: bits, zeros, noise."""
    match chance.choice(("bit", "zeros", "noise", "all")):
        case "bit":
            at = chance.randrange(len(data))
            return data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]
        case "zeros":
            return bytes(len(data))
        case "noise":
            at = chance.randrange(len(data))
            return data[:at] + chance.randbytes(len(data) - at)
    return bytes(byte ^ 255 for byte in data)


def _sizes(chance: random.Random) -> int:
    return chance.choice((1, 4095, 4096, 4097, 48 * BLOCK, 48 * BLOCK + 1, chance.randrange(1, 4 << 20)))


def test_one_block_of_each_row_may_be_lost(folder: Path, rounds: Rounds) -> None:
    """Changed, or not given back by the disk: here and there, in one piece, or cut off at the end."""
    for seed in rounds.seeds(150):
        chance = random.Random(seed)
        bench = Bench(folder, _sizes(chance), seed)
        shape, data, bad = bench.shape, bytearray(bench.volume), set[int]()
        way = chance.choice(("here and there", "one piece", "cut"))
        if way == "cut":
            del data[max(len(data) - bench.column() + (-len(data) % BLOCK), 0) :]
        first = chance.randrange(shape.blocks)
        for row in chance.sample(range(shape.rows), chance.randint(1, shape.rows)) if way != "cut" else ():
            number = chance.choice(range(row, shape.blocks, shape.rows))
            if way == "one piece":
                number = first + (row - first) % shape.rows
                if number >= shape.blocks:
                    continue
            if chance.random() < 0.3:
                bad.add(number * BLOCK)
            else:
                part = slice(number * BLOCK, min((number + 1) * BLOCK, len(bench.volume)))
                data[part] = _spoilt(bytes(data[part]), chance)
        bench.put(bytes(data))
        bench.storage.bad = {bench.path: bad}
        assert bench.whole(), f"seed {seed}: {way}"
        if not bad:
            assert twin.mended(bytes(data), bench.parity) == bench.volume
        shutil.rmtree(folder / "data")
        bench.storage.close()


def test_beyond_that_nothing_is_made_up(folder: Path, rounds: Rounds) -> None:
    """Two blocks of a row, the parity damaged too, or anything: told, and every block that is sound is given as it is."""
    for seed in rounds.seeds(100):
        chance = random.Random(seed)
        bench = Bench(folder, _sizes(chance), seed)
        shape, data, parity = bench.shape, bytearray(bench.volume), bytearray(bench.parity)
        spoilt = set[int]()
        for _ in range(chance.choice((2, 2, 5, 40))):
            number = chance.randrange(shape.blocks)
            part = slice(number * BLOCK, min((number + 1) * BLOCK, len(data)))
            data[part] = _spoilt(bytes(data[part]), chance)
            spoilt.add(number)
        spoilt = {
            n
            for n in spoilt
            if data[n * BLOCK : (n + 1) * BLOCK] != bench.volume[n * BLOCK : (n + 1) * BLOCK]
        }
        spoilt_parity = chance.random() < 0.5
        if spoilt_parity:
            at = chance.randrange(len(parity))
            parity[at] ^= 1 << chance.randrange(8)
        bench.put(bytes(data))
        (folder / object_name(bench.name)).write_bytes(parity)
        rows = [number % shape.rows for number in spoilt]
        mended = bench.whole()
        if not spoilt_parity and len(rows) == len(set(rows)):  # else the damage of several may cancel out
            assert mended, f"seed {seed}"
        mender = Parity(bench.storage).mender(bench.name, bench.path)
        if mender is not None and not spoilt_parity:
            for number in chance.sample(range(shape.blocks), min(shape.blocks, 20)):
                if number not in spoilt:
                    got = mender.read(number * BLOCK, BLOCK)
                    assert got == bench.volume[number * BLOCK : (number + 1) * BLOCK], (
                        f"seed {seed}, block {number}"
                    )
        shutil.rmtree(folder / "data")
        bench.storage.close()


def test_damage_of_the_parity_alone_takes_nothing_from_a_volume(folder: Path, rounds: Rounds) -> None:
    """Any bit, any bad sector, any length of it; and one damaged block of the volume is made whole where that does not matter."""
    bench = Bench(folder, 60 * BLOCK + 100, 1)
    target = folder / object_name(bench.name)
    for bit in rounds.some(range(8 * len(bench.parity)), 200):
        target.write_bytes(bench.parity)
        flip(target, bit)
        assert bench.whole(), f"bit {bit}"
    harmed = bytearray(bench.volume)
    harmed[7 * BLOCK : 8 * BLOCK] = bytes(BLOCK)
    bench.put(bytes(harmed))
    row = 7 % bench.shape.rows
    for bit in rounds.some(range(8 * len(bench.parity)), 200):
        target.write_bytes(bench.parity)
        flip(target, bit)
        needed = bench.shape.column + row * BLOCK <= bit // 8 < bench.shape.column + (row + 1) * BLOCK
        assert bench.whole() is not needed, f"bit {bit}"
    for length in rounds.some(range(len(bench.parity)), 40):
        target.write_bytes(bench.parity[:length])
        assert not bench.whole()
    target.write_bytes(bytes(HEADER) + bench.parity[HEADER:])
    bench.put(bench.volume[: -bench.column() + BLOCK - len(bench.volume) % BLOCK])
    assert not bench.whole(), (
        "without a header, only a volume of whole blocks tells its length, if it was cut"
    )
    target.write_bytes(bench.parity)
    assert bench.whole()
    bench.put(bytes(harmed))
    for at in range(0, len(bench.parity), BLOCK):
        bench.storage.bad = {object_name(bench.name): {at}}
        bench.whole()  # made whole or not: nothing is raised, and nothing wrong given
    bench.storage.bad = {}
    assert bench.whole()


def test_without_a_header_the_length_of_its_parity_tells_that_of_a_volume_that_was_cut(folder: Path) -> None:
    bench = Bench(folder, 60 * BLOCK, 1)
    (folder / object_name(bench.name)).write_bytes(bytes(HEADER) + bench.parity[HEADER:])
    bench.put(bench.volume[: -bench.column()])
    assert bench.whole()


# ---- a repository that keeps it ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def micro() -> Iterator[Micro]:
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as name:
        yield Micro(Path(name), parity=True)


def test_every_bit_of_volumes_and_parity(micro: Micro, rounds: Rounds) -> None:
    """Found by check; all is read by the mount and by restore; and `repair volumes`, or `parity on`, puts it right."""
    places = [
        path
        for path in micro.objects
        if path.relative_to(micro.place).parts[0] in ("data", "trees", "parity")
    ]
    assert len(places) == 8
    bits = [(path, bit) for path in places for bit in range(8 * path.stat().st_size)]
    # What a header says of itself makes the most difference, and is small.
    first = [(path, bit) for path in places for bit in (*range(80, 88), 136)]
    for turn, (path, bit) in enumerate([*first, *rounds.some(bits, 60)]):
        micro.reset(keep_index=bool((bit ^ bit >> 3) & 1))
        before = path.read_bytes()
        flip(path, bit)
        what = f"{path.relative_to(micro.place)}, bit {bit}"
        micro.judge(what, restored=turn % 8 == 0, nothing_lost=True)
        if turn % 4 == 0:
            with repositories.open_(micro.folder) as repository:
                repair_volumes(repository)
                keep_parity(repository, read_data=True)
                assert path.read_bytes() == before, what
                assert check(repository, read_data=True).ok, what


def test_what_disks_do_to_a_repository_with_parity(micro: Micro, rounds: Rounds) -> None:
    """As to one without it: what is lost is named, and nothing wrong is shown."""
    for seed in rounds.seeds(40):
        if harmed := micro.harm(seed):
            micro.judge(harmed, restored=seed % 4 == 0, several=True)


class Kept:
    """A repository with parity and a few volumes of 1.3 MB, and what is in it."""

    def __init__(self, folder: Path, *, parity: bool = True) -> None:
        self.folder = folder
        self.source = make(folder / "source", {
            **{b"large/%d" % i: File(noise(700_000, i)) for i in range(6)},
            **{b"small/%d" % i: File(noise(500 + i, 100 + i)) for i in range(60)},
        })  # fmt: skip
        repositories.create(folder, volume_size=1_310_720, chunks=(65536, 131072, 262144), parity=parity)
        self.first = repositories.snapshot(folder, self.source)
        self.truth = same.on_disk(self.source)

    def open(self) -> Repository:
        return repositories.open_(self.folder)

    def volumes(self) -> list[Path]:
        return sorted(
            path
            for name in ("data", "trees")
            for path in (self.folder / "repository" / name).rglob("*")
            if path.is_file()
        )

    def parity_of(self, volume: Path) -> Path:
        return self.folder / "repository" / object_name(bytes.fromhex(volume.name))

    def harm_all(self, seed: int) -> None:
        """One piece of each volume, as long as a column."""
        chance = random.Random(seed)
        for path in self.volumes():
            data = bytearray(path.read_bytes())
            rows = Shape(len(data)).rows
            first = chance.randrange(Shape(len(data)).blocks)
            piece = slice(first * BLOCK, min((first + rows) * BLOCK, len(data)))
            data[piece] = _spoilt(bytes(data[piece]), chance)
            path.write_bytes(data)


def test_all_is_read_from_volumes_of_which_each_is_damaged(tmp_path: Path, rounds: Rounds) -> None:
    """By restore and by what the mount shows; no backup relies on them; then they are made what they were."""
    kept = Kept(tmp_path)
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "repository", saved)
    originals = {path: path.read_bytes() for path in kept.volumes()}
    assert len(originals) >= 5
    for seed in rounds.seeds(4):
        shutil.rmtree(tmp_path / "repository")
        shutil.copytree(saved, tmp_path / "repository")
        for part in ("cache", "state"):
            shutil.rmtree(tmp_path / part, ignore_errors=True)
        kept.harm_all(seed)
        harmed = [path for path, data in originals.items() if path.read_bytes() != data]
        with kept.open() as repository:
            target = tmp_path / "target"
            restore(repository, kept.first.record.root, os.fsencode(target), RestoreOptions())
            assert same.differences(kept.truth, same.on_disk(target / str(kept.source)[1:])) == []
            shutil.rmtree(target)
            view = View(repository, kept.first.record.root)
            entry = view.entry(1)
            for part in (*str(kept.source)[1:].split("/"), "large", "3"):
                found = view.lookup(entry.inode, os.fsencode(part))
                assert found is not None
                entry = found
            assert view.read(entry.node, 0, 1 << 20) == noise(700_000, 3)
            result = check(repository, read_data=True)
            assert not result.ok
            assert result.affected == []
            assert any(
                f"{len(harmed)} of {len(harmed)} damaged volumes can be made whole" in note
                for note in result.notes
            )
            dry = repair_volumes(repository, dry_run=True)
            assert [one.whole for one in dry.volumes] == [True] * len(harmed)
            assert not any(path.read_bytes() == originals[path] for path in harmed), "it was a dry run"
            mended = repair_volumes(repository)
            assert [one.whole for one in mended.volumes] == [True] * len(harmed), f"seed {seed}"
            assert mended.bytes_stored == 0
            assert not (tmp_path / "repository/trash").exists()
            assert {path: path.read_bytes() for path in kept.volumes()} == originals
            assert check(repository, read_data=True).ok
            repository.synchronise(thorough=True)
            assert all(volume.usable for volume in repository.index.volumes())
            again = backup(
                repository, BackupOptions((os.fsencode(kept.source),), host=b"host", user=b"user", force=True)
            )
            assert again.totals.data_blobs == 0, "what was made whole is relied on again"


def test_a_volume_that_parity_had_to_help_with_is_not_relied_on(tmp_path: Path) -> None:
    """The next backup stores anew what is in it, although it is read all the same; and everybody is told once."""
    kept = Kept(tmp_path)
    harmed = max(kept.volumes(), key=lambda path: path.stat().st_size)
    flip(harmed, 8 * 200_000)
    with kept.open() as repository:
        root = kept.first.record.root
        for path, data in {f"{kept.source}/large/{i}": noise(700_000, i) for i in range(6)}.items():
            assert (
                repository.contents.read(repository.trees.resolve(root, os.fsencode(path)), 0, 1 << 20)
                == data
            )
        assert repository.client.remembered.damaged == (bytes.fromhex(harmed.name),)
    with kept.open() as repository:
        done = backup(repository, BackupOptions((os.fsencode(kept.source),), host=b"host", user=b"user"))
        assert done.totals.bytes_stored > 1_000_000
        assert [v.usable for v in repository.index.volumes() if v.name.hex() == harmed.name] == [False]


def test_without_program_and_key(tmp_path: Path) -> None:
    """docs/mend.py, by whoever has the folder: says what it could do, does it, and is content then."""
    kept = Kept(tmp_path)
    place, originals = tmp_path / "repository", {path: path.read_bytes() for path in kept.volumes()}
    assert mend(place) == (0, [])
    kept.harm_all(1)
    hopeless, cut, *_ = kept.volumes()
    cut.write_bytes(originals[cut][: -Shape(len(originals[cut])).rows * BLOCK])
    hopeless.write_bytes(bytes(len(originals[hopeless])))
    harmed = {path: path.read_bytes() for path in kept.volumes() if path.read_bytes() != originals[path]}
    said = [
        f"{path.relative_to(place)}: "
        + ("damaged, and its parity does not reach" if path == hopeless else "{}")
        for path in harmed
    ]
    assert mend(place) == (1, [line.format("can be made whole") for line in said])
    assert {path: path.read_bytes() for path in harmed} == harmed
    assert mend(place, "--write") == (1, [line.format("made whole") for line in said])
    assert {path: path.read_bytes() for path in originals} == originals | {hopeless: harmed[hopeless]}
    assert os.listdir(place / "tmp") == []
    kept.parity_of(hopeless).unlink()
    assert mend(place) == (1, [f"{hopeless.relative_to(place)}: damaged, and it has no parity"])
    assert mend(tmp_path / "state")[0] == 10


def mend(place: Path, *more: str) -> tuple[int, list[str]]:
    """Its exit code, and what it says of volumes."""
    tool = Path(__file__).parent.parent / "docs" / "mend.py"
    done = subprocess.run([sys.executable, tool, place, *more], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()[:-1]


@pytest.mark.parametrize("known", ["by an index from before", "by an index built anew", "by none"])
def test_volumes_that_were_cut(tmp_path: Path, known: str) -> None:
    """By a column each, directory and all: read, named by check, made whole, relied on again."""
    kept = Kept(tmp_path)
    originals = {path: path.read_bytes() for path in kept.volumes()}
    for path, data in originals.items():
        os.truncate(path, max(len(data) - Shape(len(data)).rows * BLOCK, 0))
    if known != "by an index from before":
        shutil.rmtree(tmp_path / "cache")
    with kept.open() as repository:
        if known == "by an index built anew":
            repository.synchronise(thorough=True)
        node = repository.trees.resolve(kept.first.record.root, os.fsencode(kept.source))
        assert same.differences(kept.truth, same.in_snapshot(repository, node)) == []
        result = check(repository, read_data=True)
        assert {problem.where for problem in result.problems} == {
            str(path.relative_to(tmp_path / "repository")) for path in originals
        }
        assert result.affected == []
        assert all(one.whole for one in repair_volumes(repository).volumes)
        assert {path: path.read_bytes() for path in originals} == originals
        assert {
            volume.name.hex(): volume.size for volume in repository.index.volumes() if volume.reliable
        } == {path.name: len(data) for path, data in originals.items()}
        assert not repository.synchronise()
        assert check(repository, read_data=True).ok


def test_a_volume_that_was_cut_and_is_put_right_from_outside(tmp_path: Path) -> None:
    """By docs/mend.py, or copied back, after an index was made of what was left: after a check it is as good as ever."""
    kept = Kept(tmp_path)
    cut = kept.volumes()[0]
    os.truncate(cut, cut.stat().st_size - Shape(cut.stat().st_size).rows * BLOCK)
    shutil.rmtree(tmp_path / "cache")
    with kept.open() as repository:
        assert [v.usable for v in repository.index.volumes() if v.name.hex() == cut.name] == [False]
    assert mend(tmp_path / "repository", "--write")[0] == 0
    with kept.open() as repository:
        assert "1 volumes found damaged earlier are sound now" in check(repository, read_data=True).notes
    with kept.open() as repository:
        assert check(repository, read_data=True).notes == []
        assert all(volume.usable for volume in repository.index.volumes())
        again = backup(
            repository, BackupOptions((os.fsencode(kept.source),), host=b"host", user=b"user", force=True)
        )
        assert again.totals.data_blobs == 0


@pytest.mark.parametrize("newer", ["is sound", "rots, too"])
def test_what_is_noted_as_damaged_stays_where_old_keys_are_to_go(tmp_path: Path, newer: str) -> None:
    """Damaged in its tail, or in a frame, and stored anew since: a prune comes to its end, and does not take what may be all
    there is."""
    kept = Kept(tmp_path)
    old = kept.volumes()
    change_keys(tmp_path)
    flip(old[0], 8 * (old[0].stat().st_size - 20))
    flip(old[1], 8 * 2000)
    with kept.open() as repository:
        assert check(repository, read_data=True).affected == []
    repositories.snapshot(tmp_path, kept.source, force=True)
    for path in set(kept.volumes()) - set(old):
        if newer == "rots, too":
            rot(path)
    with kept.open() as repository:
        result = prune(repository, PruneOptions(old_keys=True))
        assert result.plan.damaged >= 2
        assert all(path.exists() for path in old[:2])
        repair_volumes(repository)
        assert check(repository, read_data=True).affected == []


def test_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept(tmp_path)
    for path in kept.volumes():
        flip(path, 8 * 50)  # in the salt
    shutil.rmtree(tmp_path / "cache")
    with kept.open() as repository:
        assert len(repository.snapshots()) == 1
        restore(repository, kept.first.record.root, os.fsencode(tmp_path / "target"), RestoreOptions())
    said = [record.getMessage() for record in caplog.records if "parity" in record.getMessage()]
    assert len(said) == len(kept.volumes()) == len(set(said))
    assert "run `snapfs repair volumes`" in said[0]


def test_beyond_its_reach_the_rest_is_saved_as_ever(tmp_path: Path) -> None:
    """What parity gives beside what the disk has: of a volume where two blocks of a row are lost, and some of others."""
    kept = Kept(tmp_path)
    harmed = max(kept.volumes(), key=lambda path: path.stat().st_size)
    data = bytearray(harmed.read_bytes())
    rows = Shape(len(data)).rows
    gone = (1, 1 + 25 * rows)
    with kept.open() as repository:
        entries = repository.volumes.directory(VolumeKind.DATA, bytes.fromhex(harmed.name), len(data))
        frames = [(at.frame_offset, at.frame_offset + 32 + at.sealed) for _, _, at in entries]
    expected = sum(any(begin < (n + 1) * BLOCK and n * BLOCK < end for n in gone) for begin, end in frames)
    for number in (*gone, 2 + 8 * rows, 4 + 12 * rows):
        data[number * BLOCK : (number + 1) * BLOCK] = bytes(BLOCK)
    harmed.write_bytes(data)
    with kept.open() as repository:
        result = check(repository, read_data=True)
        assert not any("made whole" in note for note in result.notes)
        lost = {affected.path for affected in result.affected}
        (mended,) = repair_volumes(repository).volumes
        assert not mended.whole
        assert mended.aside.startswith("trash/")
        assert mended.lost == expected, "the pieces in two blocks of one row; the others came from parity"
        assert 0 < len(lost) <= expected


# ---- what only parity opens is no copy ---------------------------------------------------------------------------


def twice(folder: Path) -> tuple[Kept, set[bytes], set[bytes]]:
    """Everything in two volumes: names of those of the first backup, and of the second."""
    kept = Kept(folder)
    with kept.open() as repository:
        first = {volume.name for volume in repository.index.volumes()}
        repository.note_damaged(first)
        backup(repository, BackupOptions((os.fsencode(kept.source),), host=b"host", user=b"user", force=True))
        repository.note_sound(first)
        return kept, first, {volume.name for volume in repository.index.volumes()} - first


def rot(path: Path) -> None:
    """A bit here and there, within the reach of its parity."""
    data = bytearray(path.read_bytes())
    rows = Shape(len(data)).rows
    for row in range(min(rows, 6)):
        data[(row + rows * (3 * row % 20)) * BLOCK % len(data)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("which", [0, 1])
def test_prune_keeps_the_copy_that_is_sound(tmp_path: Path, which: int) -> None:
    """Not the one that only its parity opens: the next damage, or the loss of that, would be the end of both."""
    kept, *sets = twice(tmp_path)
    for path in kept.volumes():
        # Of trees there need not be two: a folder above the source may have changed meanwhile.
        if bytes.fromhex(path.name) in sets[which] and "data" in path.parts:
            rot(path)
    with kept.open() as repository:
        prune(repository, PruneOptions(unused=Unused(share=0.0)))
    shutil.rmtree(tmp_path / "repository/parity")
    with kept.open() as repository:
        assert check(repository, read_data=True).affected == []


def test_repair_takes_it_for_none_either(tmp_path: Path) -> None:
    """What still opens in a damaged volume is stored anew, though another has it that its parity helps with."""
    kept, first, second = twice(tmp_path)
    hopeless = []
    for path in kept.volumes():
        if bytes.fromhex(path.name) in second and "data" in path.parts:
            rot(path)
        elif path.stat().st_size > 200_000 and bytes.fromhex(path.name) in first:
            flip(path, 8 * path.stat().st_size - 9)  # its tail: all its blobs open
            kept.parity_of(path).unlink()
            hopeless.append(path.name)
    with kept.open() as repository:
        assert all(one.aside for one in repair_volumes(repository, hopeless).volumes)
    shutil.rmtree(tmp_path / "repository/parity")
    with kept.open() as repository:
        assert check(repository, read_data=True).affected == []


# ---- who reads it, and when --------------------------------------------------------------------------------------


def test_a_check_looks_at_the_disk_and_not_through_parity(tmp_path: Path) -> None:
    """Also one that reads no more than headers and directories; and what an index takes from there is not relied on."""
    kept = Kept(tmp_path)
    header, directory, *_ = kept.volumes()
    flip(header, 8 * 50)
    flip(directory, 8 * (directory.stat().st_size - 200))
    shutil.rmtree(tmp_path / "cache")
    with kept.open() as repository:
        unusable = {v.name.hex() for v in repository.index.volumes() if not v.usable}
        assert unusable == {header.name, directory.name}
        entries = list(
            repository.volumes.directory(
                VolumeKind.DATA, bytes.fromhex(directory.name), directory.stat().st_size
            )
        )
        assert len(entries) > 3
        result = check(repository)
        assert {problem.where.rpartition("/")[2] for problem in result.problems} == unusable


def test_one_wrong_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read again before parity is asked, and nobody is told."""
    kept = Kept(tmp_path)
    reading, wrong = LocalStorage.read, set[str]()

    def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = reading(self, name, offset, length)
        if name.startswith("data/") and name not in wrong and len(data) > 10_000:
            wrong.add(name)
            return bytes(100) + data[100:]
        return data

    monkeypatch.setattr(LocalStorage, "read", read)
    with kept.open() as repository:
        node = repository.trees.resolve(kept.first.record.root, os.fsencode(kept.source))
        assert same.differences(kept.truth, same.in_snapshot(repository, node)) == []
        assert repository.client.remembered.damaged == ()
    assert wrong
    assert not [record for record in caplog.records if "parity" in record.getMessage()]


@pytest.mark.parametrize("then", ["parity stays", "parity goes"])
def test_a_reader_that_is_open_sees_what_another_has_repaired(tmp_path: Path, then: str) -> None:
    """A mount has files open; they are those from before."""
    kept = Kept(tmp_path)
    mount = repositories.open_(tmp_path, cache_bytes=1 << 16)
    node = mount.trees.resolve(kept.first.record.root, os.fsencode(kept.source))
    assert same.differences(kept.truth, same.in_snapshot(mount, node)) == []
    for path in kept.volumes():
        with open(path, "r+b") as f:
            f.seek(3000)
            f.write(bytes(100))
    with kept.open() as repository:
        check(repository, read_data=True)
        assert all(one.whole for one in repair_volumes(repository).volumes)
        if then == "parity goes":
            drop_parity(repository)
        assert repository.client.remembered.damaged == ()
    mount.blobs.frames.clear()
    with mount:
        assert same.differences(kept.truth, same.in_snapshot(mount, node)) == []
    with kept.open() as repository:
        assert repository.client.remembered.damaged == ()


def test_what_is_made_whole_is_never_missing_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that commits meanwhile relies on other volumes than this one; all of them are known all the time."""
    kept = Kept(tmp_path)
    rot(kept.volumes()[0])
    marking, seen = Index.mark, list[int]()

    def mark(self: Index, names: Iterable[bytes], usable: bool) -> None:
        seen.append(len(list(self.volumes())))
        marking(self, names, usable)

    monkeypatch.setattr(Index, "mark", mark)
    monkeypatch.setattr(Index, "forget", lambda *_: pytest.fail("forgotten"))
    with kept.open() as repository:
        assert repair_volumes(repository, [kept.volumes()[0].name]).volumes[0].whole
    assert set(seen) == {len(kept.volumes())}


@pytest.mark.parametrize("hopeless", [False, True])
def test_an_index_that_breaks_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hopeless: bool
) -> None:
    """Before anything was done, between the volumes, and after one was set aside; nobody has to ask for that."""
    for number in range(1, 5):
        folder = tmp_path / str(number)
        kept = Kept(folder)
        harmed = kept.volumes()[:2]
        for path in harmed:
            rot(path)
        if hopeless:
            kept.parity_of(harmed[0]).unlink()
        marking, calls = Index.mark, list[int]()

        def mark(
            self: Index,
            names: Iterable[bytes],
            usable: bool,
            number: int = number,
            marking: Callable[..., None] = marking,
            calls: list[int] = calls,
        ) -> None:
            calls.append(1)
            if len(calls) == number:
                raise IndexBroken("it was time")
            marking(self, names, usable)

        with monkeypatch.context() as patch, kept.open() as repository:
            patch.setattr(Index, "mark", mark)
            result = repair_volumes(repository, [path.name for path in harmed])
            fate = {Path(one.path).name: (one.whole, bool(one.aside)) for one in result.volumes}
            if not hopeless:
                assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in harmed)
            else:
                assert (folder / "repository/trash/data" / harmed[0].name[:2] / harmed[0].name).exists()
                assert fate[harmed[0].name] == (False, True)
            assert check(repository, read_data=True).affected == [] or hopeless


def test_what_does_not_read_back_takes_the_place_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a volume that was made whole, nor a parity."""
    kept = Kept(tmp_path)
    harmed = kept.volumes()[0]
    rot(harmed)
    before, parity = harmed.read_bytes(), kept.parity_of(harmed).read_bytes()
    writing = LocalObject.write

    def write(self: LocalObject, *parts: bytes) -> None:
        writing(self, *(bytes(part[:-1]) + bytes((part[-1] ^ 1,)) for part in parts))

    with kept.open() as repository:
        monkeypatch.setattr(LocalObject, "write", write)
        with pytest.raises(Damaged, match="does not read back"):
            repair_volumes(repository, [harmed.name])
        assert harmed.read_bytes() == before
        with pytest.raises(Damaged, match="does not read back"):
            repository.volumes.parity.write(bytes.fromhex(harmed.name), parity)
        assert kept.parity_of(harmed).read_bytes() == parity
        assert os.listdir(tmp_path / "repository/tmp") == []
        monkeypatch.setattr(LocalObject, "write", writing)
        assert repair_volumes(repository, [harmed.name]).volumes[0].whole


@pytest.mark.parametrize("what", ["a file", "not to be listed", "very deep"])
def test_a_folder_of_parity_that_is_none_stops_no_reader(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    kept = Kept(tmp_path, parity=what == "not to be listed")
    place = tmp_path / "repository/parity"
    if what == "a file":
        place.write_bytes(b"somebody's")
    elif what == "very deep":
        # pytest's own way to remove it does not get to its end.
        request.addfinalizer(lambda: subprocess.run(["rm", "-rf", place], check=True))
        for depth in (800, 1500):
            os.makedirs(place / "/".join("d" * depth))
    else:
        scanning = os.scandir

        def scandir(path: Any) -> Any:
            if str(path).startswith(str(place)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return scanning(path)

        monkeypatch.setattr(os, "scandir", scandir)
    shutil.rmtree(tmp_path / "cache")
    with kept.open() as repository:
        restore(repository, kept.first.record.root, os.fsencode(tmp_path / "target"), RestoreOptions())
        result = check(repository, read_data=True)
        assert [problem.where for problem in result.problems] == (
            ["parity"] if what == "not to be listed" else []
        )
        make(kept.source, {b"later": File(noise(100_000, 9))})
        backup(repository, BackupOptions((os.fsencode(kept.source),), host=b"host", user=b"user"))
        repository.events.forget([kept.first.id])
        prune(repository, PruneOptions(unused=Unused(share=0.0)))


def test_sizes_that_are_none(tmp_path: Path) -> None:
    """A parity that says of a small volume that it was large; a volume that is larger than any: no memory is taken for them."""
    kept = Kept(tmp_path)
    one, two = kept.volumes()[:2]
    flip(one, 8 * 3000)
    claimed = Shape(1 << 30)
    with open(kept.parity_of(one), "wb") as f:
        f.write(encode_header(claimed.size, bytes.fromhex(one.name)))
        f.truncate(claimed.length)
    os.truncate(two, 200 << 30)
    os.truncate(kept.parity_of(two), Shape(200 << 30).length)
    begun = time.process_time()
    with kept.open() as repository:
        assert (
            repository.volumes.parity.mender(
                bytes.fromhex(one.name), str(one.relative_to(tmp_path / "repository"))
            )
            is None
        )
        assert not repair_volumes(repository, [one.name]).volumes[0].whole
        assert two.name in {Path(path).name for path in keep_parity(repository, read_data=True).damaged}
    assert time.process_time() - begun < 20


# ---- when it comes and goes --------------------------------------------------------------------------------------


def test_switched_on_later_and_off_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, parity=False)
    with kept.open() as repository:
        assert not look(repository).kept
        assert not (tmp_path / "repository/parity").exists()
        assert not any("parity" in note for note in check(repository, read_data=True).notes)
        made = keep_parity(repository)
        assert (made.kept, made.written, made.with_parity, made.volumes) == (True, *[len(kept.volumes())] * 3)
        assert made.parity_bytes == sum(Shape(path.stat().st_size).length for path in kept.volumes())
        for path in kept.volumes():
            assert kept.parity_of(path).read_bytes() == twin.parity(
                path.read_bytes(), bytes.fromhex(path.name)
            )
        assert keep_parity(repository).written == 0
        assert keep_parity(repository, read_data=True).written == 0
        assert check(repository, read_data=True).ok
    make(kept.source, {b"later": File(noise(400_000, 77))})
    repositories.snapshot(tmp_path, kept.source)
    with kept.open() as repository:
        now = look(repository)
        assert now.with_parity == now.volumes > made.volumes, "backups write it now"
        assert (tmp_path / "repository" / MARKER).stat().st_mode & 0o777 == 0o600
        gone = drop_parity(repository)
        assert (gone.kept, gone.with_parity, gone.parity_bytes) == (False, 0, 0)
        assert [path for path in (tmp_path / "repository/parity").rglob("*") if path.is_file()] == []
        assert check(repository, read_data=True).ok
    make(kept.source, {b"later still": File(noise(400_000, 78))})
    repositories.snapshot(tmp_path, kept.source)
    with kept.open() as repository:
        assert look(repository).parity_bytes == 0


def test_missing_or_wrong_it_is_named_and_made_anew(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    one, two, three, *_ = map(kept.parity_of, kept.volumes())
    before = {path: path.read_bytes() for path in (one, two, three)}
    one.unlink()
    two.write_bytes(before[two][:-1])
    flip(three, 8 * (len(before[three]) - 1))
    with kept.open() as repository:
        quick = check(repository)
        assert [problem.where for problem in quick.problems] == [
            str(two.relative_to(tmp_path / "repository"))
        ]
        assert (
            f"1 of {len(kept.volumes())} volumes have no parity: `snapfs parity on` writes it" in quick.notes
        )
        full = check(repository, read_data=True)
        assert {(problem.kind, problem.where) for problem in full.problems} == {
            ("parity", str(path.relative_to(tmp_path / "repository"))) for path in (two, three)
        }
        assert full.affected == []
        assert keep_parity(repository).written == 2
        assert keep_parity(repository, read_data=True).written == 1
        assert {path: path.read_bytes() for path in before} == before
        assert check(repository, read_data=True).ok


def test_of_a_damaged_volume_none_is_made_and_what_it_has_stays(tmp_path: Path) -> None:
    """Else what could make it whole would be lost."""
    kept = Kept(tmp_path)
    one, two = kept.volumes()[:2]
    parity = kept.parity_of(one).read_bytes()
    kept.parity_of(two).unlink()
    originals = one.read_bytes(), two.read_bytes()
    for path in (one, two):
        flip(path, 8 * 3000)
    with kept.open() as repository:
        found = keep_parity(repository, read_data=True)
        assert sorted(found.damaged) == sorted(
            str(path.relative_to(tmp_path / "repository")) for path in (one, two)
        )
        assert found.written == 0
        assert kept.parity_of(one).read_bytes() == parity
        assert not kept.parity_of(two).exists()
        whole = {Path(one.path).name: one.whole for one in repair_volumes(repository).volumes}
        assert whole == {one.name: True, two.name: False}
    assert one.read_bytes() == originals[0]


def test_prune_takes_it_away_with_the_volumes(tmp_path: Path) -> None:
    """And what has no volume: of a writer that died between the two, or of a volume that was set aside.  Not while one writes."""
    kept = Kept(tmp_path)
    for i in range(6):
        (kept.source / f"large/{i}").unlink()
    repositories.snapshot(tmp_path, kept.source)
    dead = Builder(5000)
    dead.update(noise(5000, 1))
    with kept.open() as repository:
        Parity(repository.storage).write(bytes(32), dead.parity(bytes(32)))
        repository.events.forget([kept.first.id])
        with repositories.open_(tmp_path) as other, other.writing():
            prune(repository, PruneOptions(unused=Unused(share=0.0)))
            assert bytes(32) in repository.volumes.parity.listing()
        prune(repository, PruneOptions(unused=Unused(share=0.0)))
        volumes = repository.volumes.listing()
        assert volumes.keys() == repository.volumes.parity.listing().keys()
        assert len(volumes) < 6
        assert check(repository, read_data=True).ok


@pytest.mark.parametrize("what", ["a fifo", "a folder", "a link to nowhere", "not to be read"])
def test_what_else_may_lie_there(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the parity of a damaged volume, and of a sound one: told as wrong parity, waited for by nobody."""
    kept = Kept(tmp_path)
    first, second = kept.volumes()[:2]
    flip(first, 8 * 3000)
    for path in map(kept.parity_of, (first, second)):
        if what == "not to be read":
            continue
        path.unlink()
        if what == "a fifo":
            os.mkfifo(path)
        elif what == "a folder":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
    if what == "not to be read":  # by root neither
        reading = LocalStorage.read

        def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
            if name.startswith("parity/") and name.endswith((first.name, second.name)):
                raise StorageError("repository: cannot read it: Permission denied", errno.EACCES)
            return reading(self, name, offset, length)

        monkeypatch.setattr(LocalStorage, "read", read)
    with kept.open() as repository:
        node = repository.trees.resolve(kept.first.record.root, os.fsencode(kept.source))
        with pytest.raises(Damaged):
            same.in_snapshot(repository, node)
        result = check(repository, read_data=True)
        assert any(problem.where.endswith(first.name) for problem in result.problems)
        told = [problem.where for problem in result.problems if problem.kind == "parity"]
        missing = [note for note in result.notes if "have no parity" in note]
        assert told == [object_name(bytes.fromhex(second.name))] or missing
        assert not repair_volumes(repository).volumes[0].whole


def test_a_volume_that_got_its_name_meanwhile_keeps_its_parity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what there is and the moment in which nobody writes."""
    kept = Kept(tmp_path)
    parities, volumes, stale = Parity.listing, Volumes.listing, list[bool]()

    def parity_listing(self: Parity) -> dict[bytes, int]:
        stale.append(True)
        return parities(self)

    def listing(self: Volumes) -> dict[bytes, tuple[VolumeKind, int]]:
        return {} if stale and stale.pop() else volumes(self)

    monkeypatch.setattr(Parity, "listing", parity_listing)
    monkeypatch.setattr(Volumes, "listing", listing)
    with kept.open() as repository:
        prune(repository, PruneOptions(unused=Unused(share=0.0)))
    assert not stale
    assert all(kept.parity_of(path).exists() for path in kept.volumes())


def test_what_an_init_left_that_was_to_keep_it(tmp_path: Path) -> None:
    """Killed before its config; the next one is asked for none."""
    marker = tmp_path / "repository" / MARKER
    marker.parent.mkdir(parents=True)
    marker.write_text("")
    repositories.create(tmp_path)
    assert not marker.exists()


def test_only_what_lies_where_it_belongs_counts(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    one = kept.parity_of(kept.volumes()[0])
    (elsewhere := tmp_path / "repository/parity/zz").mkdir()
    one.rename(elsewhere / one.name)
    with kept.open() as repository:
        now = look(repository)
        assert now.with_parity == now.volumes - 1


def test_what_is_wrong_with_it_is_not_taken_for_what_is_wrong_with_a_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parity that may not be read, say: what is told is the damage."""
    kept = Kept(tmp_path)
    harmed = max(kept.volumes(), key=lambda path: path.stat().st_size)
    flip(harmed, 8 * 200_000)
    reading = LocalStorage.read

    def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith("parity/"):
            raise StorageError("repository: cannot read it: Permission denied", errno.EACCES)
        return reading(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "read", read)
    with kept.open() as repository:
        told = []
        for i in range(6):
            node = repository.trees.resolve(kept.first.record.root, os.fsencode(f"{kept.source}/large/{i}"))
            try:
                assert repository.contents.read(node, 0, 1 << 20) == noise(700_000, i)
            except Damaged as error:
                told.append(str(error))
        assert told
        assert all(harmed.name in text for text in told)
