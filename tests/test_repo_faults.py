"""A repository that was damaged, copied, or interfered with: the next command finds out by itself and answers correctly."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.errors import Damaged, RepositoryError, StorageError
from snapfs.repo.events import Events
from snapfs.repo.index import Index
from snapfs.repo.model import KiB, Snapshot
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject
from snapfs.repo.volume_writer import VolumeWriter
from support import repositories, same
from support.sources import Desk, Watch
from support.trees import File, Name, Symlink, make, noise

TREE = {
    b"big": File(noise(900_000, 1)),
    b"few/a": File(b"a" * 200),
    b"few/b": File(noise(20_000, 2), xattrs={"user.large": noise(2000, 3)}),
    b"few/same as b": File(noise(20_000, 2)),
    b"few/link": Symlink(target=b"a"),
    b"few/name": Name(of=b"few/a"),
    **{b"many/%03d" % n: File(noise(300, n)) for n in range(300)},
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # power cuts are the subject of test_repo_kill


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, TREE, volume_size=512 * KiB)


def indexes(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*/index/*/data.mdb"))


# ---- the index -------------------------------------------------------------------------------------------------------


def test_a_deleted_index_is_rebuilt(desk: Desk) -> None:
    first = desk.snapshot()
    shutil.rmtree(desk.folder / "cache")
    assert desk.differences(first) == []
    shutil.rmtree(desk.folder / "cache")
    result = desk.backup(force=True)
    assert result.totals.data_blobs == 0, "known again, so nothing is stored twice"
    shutil.rmtree(desk.folder / "cache")
    (desk.source / "few/a").write_bytes(b"changed")
    assert desk.differences(desk.snapshot()) == []


@pytest.mark.parametrize("damage", ["flip", "zero a page", "cut short", "noise"])
def test_a_damaged_index_never_answers_wrongly(desk: Desk, damage: str) -> None:
    first = desk.snapshot()
    (index,) = indexes(desk.folder)
    good, chance = index.read_bytes(), random.Random(damage)
    source = same.on_disk(desk.source)
    for turn in range(4):  # hundreds of turns, in another way: test_repo_index_damage
        for path in indexes(desk.folder):
            shutil.rmtree(path.parent)
        index.parent.mkdir()
        data, at = bytearray(good), chance.randrange(len(good))
        match damage:
            case "flip":
                data[at] ^= 1 << chance.randrange(8)
            case "zero a page":
                data[at & ~4095 : (at & ~4095) + 4096] = bytes(4096)
            case "cut short":
                del data[at & ~4095 :]
            case "noise":
                data[at : at + 64] = chance.randbytes(len(data[at : at + 64]))
        index.write_bytes(data)
        if turn % 2:
            assert same.differences(source, desk.read(first)) == [], f"turn {turn}, offset {at}"
        new = desk.snapshot(force=bool(turn % 4))
        assert same.differences(source, desk.read(new)) == [], f"turn {turn}, offset {at}"
    with desk.open() as repository:
        assert check(repository, read_data=True).ok


def test_two_repositories_never_share_an_index(tmp_path: Path) -> None:
    """One cache folder for all of them; the same source."""
    one, two = Desk(tmp_path / "1", TREE), Desk(tmp_path / "2", TREE)
    (two.folder / "cache").symlink_to(one.folder / "cache")
    (one.folder / "cache").mkdir()
    assert one.differences(one.snapshot()) == two.differences(two.snapshot()) == []
    assert len(indexes(one.folder)) == 2


def test_an_index_in_use_or_closed_cleanly_is_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side: looking for damage must not lead to rebuilding every time."""
    desk.snapshot()
    rebuilt: list[Index] = []
    real = Index.reset
    monkeypatch.setattr(Index, "reset", lambda index: (rebuilt.append(index), real(index)))
    for turn in range(3):
        make(desk.source, {b"turn": File(noise(30_000, turn))})
        assert desk.differences(desk.snapshot()) == []
    assert rebuilt == []


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_repository_is_another_place(desk: Desk, tmp_path: Path) -> None:
    """The cache is shared and both are used in turn; each is complete for itself."""
    desk.snapshot()
    copy = tmp_path / "copy"
    shutil.copytree(desk.folder / "repository", copy, copy_function=shutil.copy2)

    def at(place: Path) -> Repository:
        return Repository.open(
            str(place),
            repositories.PASSWORD,
            cache_dir=str(tmp_path / "cache"),
            state_dir=str(tmp_path / "state"),
        )

    made: dict[Path, list[tuple[StoredSnapshot, same.Tree]]] = {desk.folder / "repository": [], copy: []}
    for turn in range(3):
        for place in made:
            # Alternately something both get, which the second must not take for stored, and something of its own.
            make(
                desk.source,
                {
                    b"turn %d" % turn: File(noise(50_000, turn)),
                    b"own": File(noise(9000, len(str(place)) + turn)),
                },
            )
            with at(place) as repository:
                result = repositories.backup(
                    repository,
                    repositories.BackupOptions((os.fsencode(desk.source),), b"host", b"user"),
                    Watch(),
                )
            assert result.snapshot is not None
            made[place].append((result.snapshot, same.on_disk(desk.source)))
    for place, snapshots in made.items():
        with at(place) as repository:
            assert repository.events.load().problems == []
            assert len(repository.snapshots()) == 4
            for snapshot, tree in snapshots:
                node = repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source))
                assert same.differences(tree, same.in_snapshot(repository, node)) == []
            assert check(repository, read_data=True).ok


def test_a_copy_put_in_the_place_of_the_original(desk: Desk, tmp_path: Path) -> None:
    """An older copy moved back: volumes that the index knew are gone, and must be stored anew."""
    desk.snapshot()
    repository = desk.folder / "repository"
    shutil.copytree(repository, tmp_path / "old")
    make(desk.source, {b"new": File(noise(300_000, 77))})
    desk.snapshot()
    for entry in list(repository.iterdir()):  # the folder itself stays, so it is the same place
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(tmp_path / "old", repository, dirs_exist_ok=True)
    with desk.open() as opened:
        assert any("missing" in problem for problem in opened.events.load().problems), (
            "going back in time is said"
        )
    new = desk.snapshot()
    assert desk.differences(new) == []


# ---- volumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "trees"])
@pytest.mark.parametrize("harm", ["delete", "cut short", "empty"])
def test_what_a_lost_volume_held_is_stored_anew(desk: Desk, kind: str, harm: str) -> None:
    desk.snapshot()
    for path in list(desk.volumes(kind).values()):
        path.chmod(0o600)
        if harm == "delete":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2 if harm == "cut short" else 0)
        new = desk.snapshot()
        assert desk.differences(new) == []


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 4096)], ids=["gone", "cut short"]
)
def test_a_volume_that_vanishes_before_the_commit(desk: Desk, harm: Callable[[Path], object]) -> None:
    desk.snapshot()
    make(desk.source, {b"zz": File(noise(100_000, 5))})
    gone: list[Path] = []

    class Thief(Watch):
        def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
            if name == "finish":
                gone.append(max(desk.volumes("data").values(), key=lambda path: path.stat().st_size))
                harm(gone[0])

    watch = Thief()
    with pytest.raises(RepositoryError, match="vanished"):
        desk.backup(progress=watch)
    assert gone
    assert watch.errors == []
    with desk.open() as repository:
        assert len(repository.snapshots()) == 1
    assert desk.differences(desk.snapshot()) == []


@pytest.mark.parametrize("kind", ["data", "trees"])
@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 4096)], ids=["gone", "cut short"]
)
def test_a_volume_that_vanishes_at_the_commit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: str, harm: Callable[[Path], object]
) -> None:
    """Between the listing before the event and the event itself: the snapshot is taken back, and the run does not end well."""
    desk.snapshot()
    make(desk.source, {b"zz": File(noise(100_000, 5))})
    publish = Events.publish_snapshot

    def stealing(events: Events, record: Snapshot) -> StoredSnapshot:
        harm(max(desk.volumes(kind).values(), key=lambda path: path.stat().st_size))
        return publish(events, record)

    monkeypatch.setattr(Events, "publish_snapshot", stealing)
    with pytest.raises(StorageError, match=r"1 volumes vanished .* taken back"):
        desk.backup()
    monkeypatch.setattr(Events, "publish_snapshot", publish)
    again = desk.snapshot()
    assert desk.differences(again) == []
    with desk.open() as repository:
        assert len(repository.snapshots()) == 2
        (stolen,) = repository.events.load().forgotten_snapshots
        assert [s.id for s in repositories.revive(repository, [stolen.id])] == [stolen.id]
    assert desk.differences(stolen) == [], "what was missing is there again"


def test_an_unreadable_list_is_no_empty_list(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed must not look like one without volumes or snapshots."""
    first = desk.snapshot()
    real = os.scandir
    for folder in ("events", "data", "trees"):

        def refuse(path: Any = ".", folder: str = folder) -> Any:
            if str(path).endswith(f"repository/{folder}"):
                raise OSError(5, "Input/output error")
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refuse)
            with pytest.raises(StorageError, match="Input/output error"):
                desk.backup()
    with desk.open() as repository:
        assert [s.id for s in repository.snapshots()] == [first.id]
    assert desk.differences(first) == []


# ---- what is checked while writing -----------------------------------------------------------------------------------


@pytest.fixture
def flipping(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, one byte of each volume goes wrong between the memory and the disk."""
    real = LocalObject.write

    def write(self: LocalObject, *parts: bytes) -> None:
        data = bytearray(b"".join(parts))
        if len(data) > 5000:
            data[4000] ^= 4
        real(self, bytes(data))

    return lambda: monkeypatch.setattr(LocalObject, "write", write)


def test_bytes_that_do_not_read_back_are_never_published(
    desk: Desk, flipping: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    flipping()
    with pytest.raises(Damaged):
        desk.backup()
    monkeypatch.undo()
    assert not desk.volumes("data")
    with desk.open() as repository:
        assert repository.snapshots() == []
    assert desk.differences(desk.snapshot()) == []


def test_without_reading_back_the_damage_would_be_found_here(
    desk: Desk, flipping: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opposite of the test above: it is the reading back that finds it, and these tests would notice its absence."""
    real, good = VolumeWriter._verify, LocalObject.read
    written: dict[int, bytearray] = {}
    one_at_a_time = threading.Lock()  # two that replace `read` at once could leave a replacement behind

    def verify(self: VolumeWriter, *args: Any) -> Any:
        with one_at_a_time, monkeypatch.context() as patch:
            patch.setattr(
                LocalObject,
                "read",
                lambda new, offset, length: bytes(written[id(new)][offset : offset + length]),
            )
            return real(self, *args)

    flipping()
    broken = LocalObject.write

    def write(self: LocalObject, *parts: bytes) -> None:
        written.setdefault(id(self), bytearray()).extend(b"".join(parts))
        broken(self, *parts)

    monkeypatch.setattr(LocalObject, "write", write)
    monkeypatch.setattr(VolumeWriter, "_verify", verify)
    snapshot = desk.snapshot()
    monkeypatch.undo()
    assert LocalObject.read is good
    with pytest.raises(Damaged):
        desk.differences(snapshot)


def test_every_durable_name_is_preceded_by_an_fsync(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data before index before event, each durable before the next."""
    told: list[tuple[str, str]] = []
    real_sync, real_publish, real_names = LocalObject.sync, LocalObject.publish, LocalStorage.sync_names

    def sync(self: LocalObject) -> None:
        told.append(("sync", self._name))
        real_sync(self)

    def publish(self: LocalObject, name: str) -> None:
        assert ("sync", self._name) in told, f"{name} was published before its bytes were durable"
        told.append(("publish", name))
        real_publish(self, name)

    def names(self: LocalStorage) -> None:
        real_names(self)
        told.append(("names", ""))

    for name, function in (("sync", sync), ("publish", publish)):
        monkeypatch.setattr(LocalObject, name, function)
    monkeypatch.setattr(LocalStorage, "sync_names", names)
    desk.snapshot()
    published = [name.partition("/")[0] for what, name in told if what == "publish"]
    assert published[-1] == "events"
    assert "data" in published
    assert "trees" in published
    last_volume = max(
        i for i, (what, name) in enumerate(told) if what == "publish" and not name.startswith("events")
    )
    event = next(i for i, (what, name) in enumerate(told) if what == "publish" and name.startswith("events"))
    assert any(what == "names" for what, _ in told[last_volume:event]), (
        "the event may be durable before the volumes"
    )
    assert told[-1] == ("names", "")
