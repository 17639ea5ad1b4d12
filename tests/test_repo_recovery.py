"""What is damaged or lost does not come back as sound, and what is left is enough to go on."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.errors import (
    Damaged,
    RepositoryError,
    RepositoryNotFound,
    StorageError,
    UnsupportedFormat,
    WrongPassword,
)
from snapfs.repo.format import labels as L
from snapfs.repo.model import BlobId, Kind, VolumeKind
from snapfs.repo.repository import Repository
from snapfs.repo.storage.local import LocalStorage
from support.repositories import CHEAP
from support.sources import Desk, Watch
from support.trees import File, noise


def test_a_volume_found_damaged_is_not_relied_on_after_a_read_met_the_damage(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"file": File(content=noise(9_000, 1))})
    before = desk.snapshot()
    (volume,) = desk.volumes("data").values()
    with open(volume, "r+b") as f:
        f.seek(L.HEADER_SIZE + L.FRAME_HEADER_SIZE + 100)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes((byte[0] ^ 1,)))
    with desk.open() as repository:
        assert not check(repository, read_data=True).ok
    with desk.open() as repository:
        node = repository.trees.resolve(before.record.root, os.fsencode(desk.source / "file"))
        assert node.blobs is not None
        blob = BlobId(node.blobs[0][0] or b"")
        with pytest.raises(Damaged):  # it looks again at everything, and must not think it sound
            repository.blobs.get(blob, Kind.CONTENT)
    assert desk.differences(desk.snapshot()) == []


HARMS = {"magic": 0, "version": 8, "features": 12, "suite": 16, "wrap": 17, "body": 150}
"""Each at the byte of the config where a bit flips."""


@pytest.mark.parametrize("harm", ["lost", *HARMS])
def test_without_its_config_a_repository_opens_with_the_copy_in_a_key_slot(tmp_path: Path, harm: str) -> None:
    desk = Desk(tmp_path, {b"file": File(content=b"x" * 1000)})
    desk.snapshot()
    config = tmp_path / "repository" / "config"
    if harm == "lost":
        config.unlink()
    else:
        data = bytearray(config.read_bytes())
        data[HARMS[harm]] ^= 2
        config.write_bytes(data)
    said = Watch()
    with desk.open(progress=said) as repository:
        assert len(repository.snapshots()) == 1
    assert any("copy in the key slot" in notice for notice in said.notices)


def test_a_config_that_is_newer_is_not_called_damaged(tmp_path: Path) -> None:
    """Its header says so, and it does not open as one of this format."""
    desk = Desk(tmp_path, {b"file": File(content=b"x" * 1000)})
    desk.snapshot()
    config = tmp_path / "repository" / "config"
    good = config.read_bytes()
    data = bytearray(good)
    data[8], data[150] = 2, data[150] ^ 1
    config.write_bytes(data)
    with pytest.raises(UnsupportedFormat, match="install a newer snapfs"):
        desk.open()
    config.write_bytes(good)  # the second reader goes on with the copy, whatever the file says


def test_an_interrupted_init_is_told_apart(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "repository" / "config").unlink()
    with pytest.raises(RepositoryNotFound, match=r"snapfs init. again"):
        desk.open()


def test_a_file_that_keeps_growing_does_not_hold_up_the_backup(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"log": File(content=noise(600_000, 2))})
    done = threading.Event()

    def grow() -> None:
        with open(desk.source / "log", "ab", buffering=0) as f:
            while not done.is_set():
                f.write(b"one more line\n" * 1000)

    thread = threading.Thread(target=grow)
    thread.start()
    watch = Watch()
    try:
        stored = desk.backup(progress=watch)
    finally:
        done.set()
        thread.join()
    assert stored.errors == 1
    assert "changed while it was read" in str(watch.errors[0])
    assert stored.snapshot is not None
    seen = desk.read(stored.snapshot)[b"/log"]
    assert seen.size is not None
    assert seen.size >= 600_000


def test_an_interruption_is_heeded_amid_a_large_file(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"a": File(content=b"first" * 100), b"b": File(content=noise(9_000_000, 3))})

    class Impatient(Watch):
        def advance(self, files: int = 0, bytes: int = 0) -> None:
            self.interrupted = self.interrupted or bytes > 1_000_000

    with pytest.raises(KeyboardInterrupt):
        desk.backup(progress=Impatient())
    with desk.open() as repository:
        state = repository.events.load()
        assert not state.snapshots
        (checkpoint,) = state.checkpoints
        node = repository.trees.resolve(checkpoint.record.root, os.fsencode(desk.source))
        assert [child.name for child in repository.trees.children(node)] == [b"a"]
    watch = Watch()
    desk.backup(progress=watch)
    assert watch.items[os.fsencode(desk.source / "a")] == "unchanged"


def test_a_missing_volume_is_damage_and_a_lost_list_of_snapshots_is_said(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"file": File(content=noise(9_000, 4))})
    snapshot = desk.snapshot()
    for volume in desk.volumes("trees").values():
        volume.unlink()
    with desk.open() as repository, pytest.raises(Damaged):
        list(repository.trees.children(snapshot.record.root))
    events, aside = tmp_path / "repository" / "events", tmp_path / "aside"
    events.rename(aside)
    with desk.open() as repository:
        assert any("no events at all" in problem for problem in repository.events.load().problems)
    aside.rename(events)


def test_a_disk_that_was_away_for_a_while_has_lost_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"file": File(content=noise(90_000, 1))})
    before = desk.snapshot()
    place, away = tmp_path / "repository", tmp_path / "away"
    with desk.open() as repository:
        node = repository.trees.resolve(before.record.root, os.fsencode(desk.source / "file"))
        place.rename(away)
        for _ in range(2):
            with pytest.raises(RepositoryError):
                repository.contents.read(node, 0, 10)
            with pytest.raises(RepositoryNotFound):
                repository.synchronise()
        away.rename(place)
        assert repository.contents.read(node, 0, 100_000) == noise(90_000, 1)
    assert desk.backup(force=True).totals.data_blobs == 0, "all of it is stored already"


def test_empty_folders_that_a_copy_left_behind_are_made_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"file": File(content=noise(9_000, 5))})
    for folder in ("tmp", "data", "trees", "locks"):
        (tmp_path / "repository" / folder).rmdir()
    assert desk.differences(desk.snapshot()) == []


@pytest.mark.parametrize(("folder", "sound"), [("data", 0.7), ("data", 0), ("trees", 0)])
def test_a_bad_sector_is_damage_that_the_rest_does_not_suffer_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, sound: float
) -> None:
    """`sound`: the part of the file before what the disk cannot read any more."""
    desk = Desk(tmp_path, {b"dir/%d" % n: File(content=noise(200_000, n)) for n in range(4)})
    desk.snapshot()
    files = [path for path in (tmp_path / "repository" / folder).rglob("*") if path.is_file()]
    size, bad = max((path.stat().st_size, path.name) for path in files)
    start = int(size * sound)
    (desk.source / "new").write_bytes(noise(90_000, 10))
    later = desk.snapshot()
    real = LocalStorage.read

    def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
        end = (self.size(name) or 0) if length is None else offset + length
        if name.endswith(bad) and end > start:
            raise StorageError(f"cannot read {name}: Input/output error", errno.EIO)
        return real(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "read", read)
    for _ in range(2):
        with desk.open() as repository:
            found = check(repository)
            assert not found.ok
            if folder == "data":
                lost = {one.path for one in found.affected if one.snapshot == later.short}
                assert (len(lost) < 4) == (sound > 0), lost
            node = repository.trees.resolve(later.record.root, os.fsencode(desk.source / "new"))
            assert len(repository.contents.read(node, 0, 100_000)) == 90_000
        shutil.rmtree(tmp_path / "cache")  # and once more without an index
    assert desk.differences(desk.snapshot()) == []


def test_a_repository_that_does_not_open_keeps_no_file_open(tmp_path: Path) -> None:
    """Else its disk could not be unmounted while the password is asked for again."""
    desk = Desk(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(WrongPassword):
            Repository.open(str(desk.folder / "repository"), b"wrong", state_dir=str(tmp_path / "state"))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_reads_that_failed_for_a_while_cost_no_more_than_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cable: the volume that was read then is not relied on until somebody has read it whole, which any check does."""
    desk = Desk(tmp_path, {b"file": File(content=noise(200_000, 1))})
    before = desk.snapshot()
    real = LocalStorage.read

    def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith("data/"):
            raise StorageError(f"cannot read {name}: Input/output error", errno.EIO)
        return real(self, name, offset, length)

    with monkeypatch.context() as patch, desk.open() as repository:
        node = repository.trees.resolve(before.record.root, os.fsencode(desk.source / "file"))
        patch.setattr(LocalStorage, "read", read)
        with pytest.raises(Damaged):
            repository.contents.read(node, 0, 10)
    with desk.open() as repository:
        assert [v.usable for v in repository.index.volumes() if v.kind is VolumeKind.DATA] == [False]
        result = check(repository)
        assert result.ok
        assert result.notes == ["1 volumes found damaged earlier are sound now"]
        assert repository.client.remembered.damaged == ()
    assert desk.backup(force=True).totals.data_blobs == 0, "all of it is stored already"


@pytest.mark.parametrize("unreadable", ["config", "the other slot"])
def test_a_bad_sector_under_config_or_key_slot_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    desk = Desk(tmp_path, {b"file": File(content=b"x" * 1000)})
    desk.snapshot()
    with desk.open() as repository:
        own = repository.slots.current
        other = repository.slots.add(b"another", cost=CHEAP)
    real, bad = LocalStorage.read, "config" if unreadable == "config" else f"keys/{other}"

    def read(self: LocalStorage, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name == bad:
            raise StorageError("repository: cannot read it: Input/output error", errno.EIO)
        return real(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "read", read)
    shutil.rmtree(tmp_path / "state", ignore_errors=True)  # what would tell which slot to try first
    with desk.open() as repository:
        assert len(repository.snapshots()) == 1
        assert repository.slots.current == own
    if unreadable != "config":
        with pytest.raises(WrongPassword, match=r"1 of 2 cannot be used, .*Input/output error"):
            Repository.open(
                str(tmp_path / "repository"), b"another", state_dir=str(tmp_path / "new"), no_cache=True
            )
