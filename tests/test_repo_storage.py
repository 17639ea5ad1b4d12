"""The local folder keeps the contract of storage.base: whole or not at all, and no failure looks like an empty answer.

Faults are injected where the local folder calls the system: the `os` of its modules is replaced, nobody else's.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.repo.errors import RepositoryNotFound, StorageError
from snapfs.repo.storage import descriptors, local, local_object
from snapfs.repo.storage.local import FOLDERS, LocalStorage
from snapfs.repo.storage.local_object import LocalObject

NAME = "data/ab/" + "ab" * 32


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LocalStorage]:
    storage = LocalStorage(str(tmp_path))
    storage.make_folders()
    yield storage
    storage.close()


def replace_os(monkeypatch: pytest.MonkeyPatch, fake: SimpleNamespace) -> None:
    for module in (local, local_object, descriptors):
        monkeypatch.setattr(module, "os", fake)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """fail("fsync", errno.EIO, times=1): the next calls of os.fsync by the local folder fail.  times=0: none does any more."""
    fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    replace_os(monkeypatch, fake)

    def plan(
        function: str,
        number: int = errno.EIO,
        times: int = 10**6,
        when: Callable[..., bool] = lambda *_: True,
    ) -> None:
        left = [times]

        def failing(*args: Any, **kwargs: Any) -> Any:
            if left[0] and when(*args):
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return getattr(os, function)(*args, **kwargs)

        setattr(fake, function, failing)

    return plan


def tmp(storage: LocalStorage) -> list[str]:
    return os.listdir(storage.path("tmp"))


def is_folder(fd: int, *_: object) -> bool:
    return os.path.isdir(f"/proc/self/fd/{fd}")


def test_an_object_is_seen_whole_or_not_at_all(storage: LocalStorage) -> None:
    new = storage.create()
    new.write(b"one", b"", b"two")
    new.write(b"three")
    assert new.read(0, 100) == b"onetwothree"
    assert new.read(3, 3) == b"two"
    assert new.read(9, 9) == b"ee"
    assert new.read(50, 9) == b""
    new.sync()
    assert list(storage.list("data")) == []
    assert storage.size(NAME) is None
    new.publish(NAME)
    assert tmp(storage) == []
    assert list(storage.list("data")) == [(NAME, 11)]
    assert storage.size(NAME) == 11
    assert [storage.read(NAME), storage.read(NAME, 3, 3), storage.read(NAME, 6), storage.read(NAME, 9, 5)] == [
        b"onetwothree", b"two", b"three", b"ee"
    ]  # fmt: skip
    new.discard()
    assert storage.read(NAME) == b"onetwothree", "discard after publish does nothing"


def test_what_takes_the_place_of_the_config_is_read(storage: LocalStorage) -> None:
    """By one who has read the one before: it is kept open by no descriptor."""
    for data in (b"first", b"second"):
        storage.put("config", data)
        assert storage.read("config") == data
        other = LocalStorage(storage.path(""))
        other.put("config", data[::-1])
        assert storage.read("config") == data[::-1]
        other.close()


def test_two_at_once_make_the_folder_of_unfinished_objects_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(storage.path("tmp")).rmdir()
    both = threading.Barrier(2)
    make = LocalObject._make

    def late(self: LocalObject) -> int:
        try:
            return make(self)
        except FileNotFoundError:
            both.wait(10)
            raise

    monkeypatch.setattr(LocalObject, "_make", late)
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(storage.create) for _ in range(2)]:
                done.result().discard()
        Path(storage.path("tmp")).rmdir()


@pytest.mark.parametrize("how", ["remove", "let_go", "set_aside", "close"])
def test_what_was_read_and_is_gone_takes_no_more_room(storage: LocalStorage, how: str) -> None:
    """An open file is there until it is closed, under whatever name."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        storage.put(NAME, b"content")
        storage.read(NAME)
        assert len(os.listdir("/proc/self/fd")) == before + 1, "kept for the next read"
        if how == "let_go":
            storage.let_go([NAME, "data/ab/absent"])
        elif how == "close":
            storage.close()
        else:
            getattr(storage, how)(NAME)
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_discarded_is_gone(storage: LocalStorage) -> None:
    new = storage.create()
    new.write(b"x")
    new.discard()
    new.discard()
    assert tmp(storage) == []
    for use in (lambda: new.write(b"x"), new.sync, lambda: new.publish(NAME)):
        with pytest.raises(StorageError):
            use()


def test_files_and_folders_are_for_their_owner(storage: LocalStorage) -> None:
    storage.put(NAME, b"x")
    for folder, folders, files in os.walk(storage.place):
        if folder != storage.place:
            assert os.stat(folder).st_mode & 0o777 == 0o700
        assert all(os.stat(os.path.join(folder, f)).st_mode & 0o777 == 0o600 for f in files)
        assert set(folders) <= {*FOLDERS, "ab"}


def test_put_and_remove(storage: LocalStorage) -> None:
    storage.put("config", b"c")
    storage.put("config", b"c")
    assert storage.read("config") == b"c"
    storage.remove("config")
    storage.remove("config")
    assert storage.size("config") is None
    assert not storage.unsynced


def test_an_absent_object_says_so(storage: LocalStorage) -> None:
    with pytest.raises(StorageError) as caught:
        storage.read(NAME)
    assert caught.value.errno == errno.ENOENT
    assert list(storage.list("catalog")) == [], "an absent folder has no objects"


def test_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in ("absent", "file", "file/below"):
        with pytest.raises(RepositoryNotFound) as caught:
            LocalStorage(str(tmp_path / place))
        assert caught.value.exit_code == 10


def test_a_copy_is_another_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("one")
    one, two, link = (LocalStorage(str(tmp_path / name)).identity for name in ("one", "two", "link"))
    assert one == link
    assert one != two


def test_the_stamp_of_a_folder_changes_with_its_names(storage: LocalStorage) -> None:
    assert storage.stamp("absent") is None
    assert storage.stamp("data") is None, "changed too short a time ago"
    os.utime(storage.path("data"), ns=(0, 0))
    stamp = storage.stamp("data")
    assert stamp is not None
    assert stamp == storage.stamp("data")
    storage.put(NAME, b"x")
    assert storage.stamp("data") != stamp


# ---- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOTDIR])
def test_a_list_that_fails_is_no_empty_list(
    storage: LocalStorage, fail: Callable[..., None], number: int
) -> None:
    storage.put(NAME, b"x")
    fail("scandir", number)
    with pytest.raises(StorageError) as caught:
        list(storage.list("data"))
    assert caught.value.errno == number


def test_a_list_that_fails_below_is_no_short_list(storage: LocalStorage, fail: Callable[..., None]) -> None:
    storage.put(NAME, b"x")
    storage.put("data/cd/" + "cd" * 32, b"x")
    fail("scandir", when=lambda path: str(path).endswith("/ab"))
    with pytest.raises(StorageError):
        list(storage.list("data"))


def test_a_file_in_the_place_of_a_folder(storage: LocalStorage) -> None:
    os.rmdir(storage.path("data"))
    Path(storage.path("data")).write_bytes(b"")
    with pytest.raises(StorageError):
        list(storage.list("data"))
    with pytest.raises(StorageError):
        storage.put(NAME, b"x")
    assert tmp(storage) == []


def test_a_place_that_is_gone_is_not_empty(storage: LocalStorage, tmp_path: Path) -> None:
    opened = LocalStorage(storage.place)
    for folder in ("data", "trees"):
        Path(storage.path(folder)).rmdir()
    assert list(opened.list("data")) == []
    for folder in ("keys", "events", "tmp", "locks"):
        Path(storage.path(folder)).rmdir()
    with pytest.raises(RepositoryNotFound, match="is the disk still there"):
        list(opened.list("data"))
    tmp_path.rename(f"{tmp_path}-away")
    with pytest.raises(RepositoryNotFound, match="is the disk still there"):
        list(opened.list("data"))


def test_a_fifo_is_not_waited_for(storage: LocalStorage) -> None:
    os.mkfifo(storage.path("config"))
    with pytest.raises(StorageError, match="cannot read config"):
        storage.read("config")


def test_a_look_up_that_fails_is_no_absent_object(storage: LocalStorage, fail: Callable[..., None]) -> None:
    fail("stat")
    with pytest.raises(StorageError):
        storage.size(NAME)


def test_a_read_that_fails(storage: LocalStorage, fail: Callable[..., None]) -> None:
    storage.put(NAME, b"x")
    fail("pread", times=1)
    with pytest.raises(StorageError) as caught:
        storage.read(NAME)
    assert caught.value.errno == errno.EIO
    assert storage.read(NAME) == b"x"


@pytest.mark.parametrize("function", ["write", "fsync", "rename"])
def test_a_failure_condemns_the_object(
    storage: LocalStorage, fail: Callable[..., None], function: str
) -> None:
    """Once: the second try would succeed, and must not be made."""
    new = storage.create()
    fail(function, times=1)
    steps = {"write": lambda: new.write(b"x"), "fsync": new.sync, "rename": lambda: new.publish(NAME)}
    for step in steps:
        if step == function:
            break
        steps[step]()
    with pytest.raises(StorageError) as caught:
        steps[function]()
    assert caught.value.errno == errno.EIO
    for again in (new.sync, lambda: new.write(b"x"), lambda: new.publish(NAME)):
        with pytest.raises(StorageError, match="not used again"):
            again()
    new.discard()
    assert storage.size(NAME) is None
    assert tmp(storage) == []
    storage.put(NAME, b"x")
    assert storage.read(NAME) == b"x"


def test_put_leaves_nothing_behind_when_it_fails(storage: LocalStorage, fail: Callable[..., None]) -> None:
    fail("fsync", times=1)
    with pytest.raises(StorageError):
        storage.put(NAME, b"x")
    assert tmp(storage) == []
    assert storage.size(NAME) is None


def test_a_full_disk_is_said_with_advice(storage: LocalStorage, fail: Callable[..., None]) -> None:
    fail("write", errno.ENOSPC)
    with pytest.raises(StorageError, match="free some space") as caught:
        storage.put(NAME, b"x")
    assert caught.value.errno == errno.ENOSPC


def test_short_writes_and_reads_are_gone_on_with(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    fake.write = lambda fd, data: os.write(fd, data[:3])
    fake.pread = lambda fd, length, offset: os.pread(fd, min(length, 2), offset)
    replace_os(monkeypatch, fake)
    storage.put(NAME, b"0123456789")
    assert storage.read(NAME) == b"0123456789"
    assert storage.read(NAME, 1, 5) == b"12345"
    assert storage.read(NAME, 7, 50) == b"789"


def test_a_failed_fsync_of_a_folder_is_not_forgotten(
    storage: LocalStorage, fail: Callable[..., None]
) -> None:
    """The kernel reports a failure once; a second fsync would say all is well, and a snapshot would be committed on it."""
    new = storage.create()
    new.write(b"x")
    new.sync()
    new.publish(NAME)
    fail("fsync", times=1, when=is_folder)
    with pytest.raises(StorageError):
        storage.sync_names()
    with pytest.raises(StorageError):
        storage.sync_names()
    with pytest.raises(StorageError):
        storage.put("config", b"x")


def test_a_place_that_cannot_fsync_folders_says_so_once(tmp_path: Path, fail: Callable[..., None]) -> None:
    said: list[str] = []
    storage = LocalStorage(str(tmp_path), said.append)
    fail("fsync", errno.EINVAL, when=is_folder)
    storage.make_folders()
    storage.put(NAME, b"x")
    assert len(said) == 1
    assert "power cut" in said[0]
    storage.close()


def test_names_are_synced_before_put_returns(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fake = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(storage.place))
        os.fsync(fd)

    fake.fsync = fsync
    replace_os(monkeypatch, fake)
    storage.put(NAME, b"x")
    assert synced[0].startswith("/tmp/"), "the bytes, before they have their name"
    assert set(synced[1:]) == {"", "/data", "/data/ab"}, "the name, and those of folders that may be new"


# ---- leftovers ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from snapfs.repo.storage.local import LocalStorage
new = LocalStorage(sys.argv[1]).create()
new.write(b"unfinished")
print(new._name, flush=True)
sys.stdin.read()
"""


def test_sweep_takes_what_the_dead_left_and_nothing_of_the_living(storage: LocalStorage) -> None:
    mine = storage.create()
    mine.write(b"here")
    command = [sys.executable, "-c", WRITER, storage.place]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    names = []
    for writer in writers:
        assert writer.stdout is not None
        names.append(writer.stdout.readline().strip())
    dead, living = writers
    dead.kill()
    dead.communicate()
    Path(storage.path("tmp/stranger")).write_bytes(b"left by a copy of the folder")
    storage.sweep()
    assert set(tmp(storage)) == {os.path.basename(names[1]), os.path.basename(mine._name)}
    living.communicate("")
    storage.sweep()
    assert tmp(storage) == [os.path.basename(mine._name)]
    mine.sync()
    mine.publish(NAME)
    assert storage.read(NAME) == b"here"


def test_sweep_never_raises(storage: LocalStorage) -> None:
    os.mkdir(storage.path("tmp/folder"))
    os.symlink("/etc/passwd", storage.path("tmp/link"))
    storage.sweep()
    assert os.path.exists("/etc/passwd")
    os.rmdir(storage.path("tmp/folder"))
    os.unlink(storage.path("tmp/link"))
    os.rmdir(storage.path("tmp"))
    storage.sweep()
    storage.create().discard()  # an empty folder that a copy left behind is made again


def test_many_files_from_many_threads(storage: LocalStorage) -> None:
    """More objects than stay open, more threads than one."""
    names = [f"data/{i:02x}/{i:064x}" for i in range(descriptors._LIMIT + 30)]
    for i, name in enumerate(names):
        storage.put(name, b"%d" % i * 100)
    wrong: list[str] = []

    def work(seed: int) -> None:
        for i in range(len(names)):
            k = (i * (2 * seed + 1)) % len(names)
            if storage.read(names[k], 0, 10**4) != b"%d" % k * 100:
                wrong.append(names[k])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(storage._descriptors._kept) <= descriptors._LIMIT


def test_a_folder_above_that_may_not_be_read_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/srv/backups may be closed to those who each have a folder in it."""
    closed = tmp_path / "closed"
    (closed / "mine").mkdir(parents=True)
    real_open, real_access = os.open, os.access

    def refuse(path: Any, flags: int, *args: Any, **more: Any) -> int:
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_open(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(closed) and real_access(path, mode))
    storage = LocalStorage(str(closed / "mine"))
    storage.make_folders()
    storage.put("README.txt", b"x")
    storage.put(NAME, b"x")
    assert storage.read(NAME) == b"x"


def test_what_was_set_aside_is_not_replaced_when_the_disk_does_not_say_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.make_folders()
    name = f"data/ab/{'ab' * 32}"
    for data in (b"first", b"second"):
        storage.put(name, data)
        if data == b"first":
            storage.set_aside(name)
    real = os.lstat

    def lstat(path: Any, **more: Any) -> os.stat_result:
        if "/trash/" in os.fspath(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        with pytest.raises(StorageError, match="Input/output error"):
            storage.set_aside(name)
    assert (tmp_path / "trash" / name).read_bytes() == b"first"
    assert storage.read(name) == b"second"
    assert storage.set_aside(name) == f"trash/{name}.1"
    storage.close()
