"""A mount while everything below and around it fails: an error or right bytes, never wrong ones, and the mount lives on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.fs import mountpoint as points
from support import mounts, repositories, trees
from support.fire import ERRORS, PLACES, Fire
from support.torture import Rounds
from support.trees import File, Name, Symlink, noise

pytestmark = pytest.mark.torture
libc = ctypes.CDLL(None, use_errno=True)
MEBI = 1 << 20
FILES: dict[bytes, bytes] = {
    b"empty": b"", b"small": noise(3_000, 1), b"one page": noise(4096, 2), b"some": noise(200_000, 3),
    b"large": noise(3_000_000, 4), b"zeros": bytes(500_000),
}  # fmt: skip
SPARSE = File(pieces={700_000: noise(5_000, 5), 5_000_000: noise(90_000, 6)}, size=6_000_000)
FOLDERS = 400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one snapshot: some files to read, and folders that no kernel has looked into yet."""
    home = tmp_path_factory.mktemp("fire")
    trees.make(home / "source", {
        **{name: File(content) for name, content in FILES.items()},
        b"sparse": SPARSE,
        **{b"new/%03d/file" % n: File(noise(300, n), xattrs={"user.a": noise(2000, n)}) for n in range(FOLDERS)},
        **{b"new/%03d/name" % n: Name(of=b"new/%03d/file" % n) for n in range(FOLDERS)},
        **{b"new/%03d/link" % n: Symlink(target=b"file") for n in range(FOLDERS)},
    })  # fmt: skip
    repositories.create(home)
    repositories.snapshot(home, home / "source")
    return home


@contextlib.contextmanager
def burning(home: Path, name: str, **options: Any) -> Iterator[tuple[Fire, Path]]:
    """A mount of the source that can be made to fail."""
    fire, top = Fire(home), home / name
    server = fire.start(top, part=os.fsencode(home / "source"), **options)
    try:
        yield fire, top
        assert server.poll() is None, "the mount died"
    finally:
        server.terminate()
        mounts.finish(server)


def read_new(path: Path) -> None:
    """Everything a tool does with a folder that was not seen before."""
    os.statvfs(path.parent)
    assert sorted(os.listdir(path)) == ["file", "link", "name"]
    assert os.readlink(path / "link") == "file"
    number = int(path.name)
    assert os.getxattr(path / "file", "user.a") == noise(2000, number)
    assert os.listxattr(path / "name") == ["user.a"]
    assert os.lstat(path / "name").st_nlink == 2
    assert (path / "file").read_bytes() == noise(300, number)


def test_any_exception_in_any_handler_is_an_errno(home: Path, rounds: Rounds) -> None:
    places = [
        place
        for place in PLACES
        if place not in ("LocalStorage.read", "Index.get", "Index.copies", "HeldLinks.forget")
    ]
    unused = iter(range(FOLDERS))
    top_number = 0
    with contextlib.ExitStack() as stack:
        fire, top = stack.enter_context(burning(home, "handlers"))
        for place, error in rounds.some([(p, e) for p in places for e in ERRORS], 24):
            number = next(unused, None)
            if number is None:  # the kernel has seen them all: begin with a mount that it has not
                stack.close()
                top_number += 1
                fire, top = stack.enter_context(burning(home, f"handlers{top_number}"))
                unused = iter(range(FOLDERS))
                number = next(unused)
            before = len(fire.log)
            path = top / "new" / f"{number:03}"
            with fire.at(place, error):
                with pytest.raises(OSError) as caught:
                    read_new(path)
                assert fire.hits, f"{place} was never asked: the test shows nothing"
            expected = (errno.EIO, errno.ENOTDIR) if error == "NotADirectoryError" else (errno.EIO,)
            assert caught.value.errno in expected, f"{place}, {error}: {caught.value}"
            assert "input/output error" in fire.log[before:] or error == "NotADirectoryError"
            read_new(path)


def test_faults_below_a_live_mount_heal(home: Path, rounds: Rounds) -> None:
    """Volumes that are flipped, cut, or missing for a while, and reads that fail: EIO or right bytes; then all is well again."""
    volumes = [
        path
        for kind in ("data", "trees")
        for path in (home / "repository" / kind).rglob("*")
        if path.is_file()
    ]
    with burning(home, "below", cache_bytes=1) as (fire, top):
        for seed in rounds.seeds(16):
            chance = random.Random(seed)
            volume, harm = (
                chance.choice(volumes),
                chance.choice(("flip", "cut", "missing", "zeros", "EIO", "lost index")),
            )
            good = volume.read_bytes()
            at = chance.randrange(len(good))
            with contextlib.ExitStack() as undo:
                match harm:
                    case "flip":
                        undo.callback(patch, volume, at, good[at : at + 1])
                        patch(volume, at, bytes((good[at] ^ 1 << chance.randrange(8),)))
                    case "zeros":
                        undo.callback(patch, volume, at, good[at : at + 5000])
                        patch(volume, at, bytes(len(good[at : at + 5000])))
                    case "cut":
                        undo.callback(patch, volume, 0, good)
                        os.truncate(volume, at)
                    case "missing":
                        aside = volume.with_name("aside")
                        undo.callback(aside.rename, volume)
                        volume.rename(aside)
                    case "EIO":
                        undo.enter_context(fire.at("LocalStorage.read", "EIO"))
                    case "lost index":
                        undo.enter_context(fire.at(chance.choice(("Index.get", "Index.copies")), "EIO"))
                for _ in range(6):
                    right_or_error(top, chance)
            # What was being read ahead when the fault went may still fail for one who waits for it.
            for _ in range(50):
                if right_or_error(top, chance):
                    break
                time.sleep(0.1)
            for _ in range(6):
                assert right_or_error(top, chance), f"{harm} of {volume.name[:8]} did not heal"


def patch(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def right_or_error(top: Path, chance: random.Random) -> bool:
    """Read somewhere; whether that went well.  The kernel's own copy of the file is thrown away first."""
    name = chance.choice(sorted(FILES))
    want = FILES[name]
    at, size = chance.randrange(len(want) + 1), chance.choice((1, 5000, 200_000, 4 * MEBI))
    try:
        with open(os.fsencode(top) + b"/" + name, "rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            got = os.pread(f.fileno(), size, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    # A read that meets an error further on ends before it.
    assert got == want[at : at + len(got)], name
    return len(got) == len(want[at : at + size]) or not at + len(got) < len(want)


def test_killed_under_load_and_mounted_again(home: Path, rounds: Rounds) -> None:
    for seed in rounds.seeds(2):
        chance = random.Random(seed)
        top = home / "killed"
        server = mounts.start(home, top, part=os.fsencode(home / "source"))
        stop, wrong = threading.Event(), []

        def load(
            seed: int, top: Path = top, stop: threading.Event = stop, wrong: list[object] = wrong
        ) -> None:
            mine = random.Random(seed)
            while not stop.is_set():
                try:
                    right_or_error(top, mine)
                    os.listdir(top / "new" / f"{mine.randrange(FOLDERS):03}")
                except OSError as error:
                    if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
                        wrong.append(error)
                except AssertionError as error:
                    wrong.append(error)

        readers = [threading.Thread(target=load, args=(seed * 10 + n,)) for n in range(4)]
        for reader in readers:
            reader.start()
        time.sleep(chance.random() * 0.3)
        killed = time.monotonic()
        server.kill()
        try:
            while True:
                try:
                    os.listdir(top)
                except OSError as error:
                    if error.errno == errno.ENOTCONN:
                        break
                assert time.monotonic() - killed < 1
            mounts.finish(server, -signal.SIGKILL)
            stop.set()
            for reader in readers:
                reader.join(10)
                assert not reader.is_alive()
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.listdir(top)
        finally:
            stop.set()
            points.unmount(str(top))
        assert wrong == []
    with mounts.mounted(home, part=os.fsencode(home / "source")) as top:
        assert (top / "some").read_bytes() == FILES[b"some"]


@pytest.fixture(scope="module")
def top(home: Path) -> Iterator[Path]:
    with mounts.mounted(home, part=os.fsencode(home / "source")) as top:
        yield top


def test_more_than_thirty_calls_that_write_are_refused(top: Path, home: Path, rounds: Rounds) -> None:
    file, folder, new, other = top / "some", top / "new/000", top / "new/000/x", top / "small"
    fd, here = os.open(file, os.O_RDONLY), os.open(folder, os.O_RDONLY)
    outside = home / "outside"
    outside.write_bytes(b"x")

    def call(function: str, *args: Any) -> None:
        if getattr(libc, function)(*[os.fsencode(a) if isinstance(a, Path) else a for a in args]) < 0:
            raise OSError(ctypes.get_errno(), function)

    access = trees.acl((1, 6, 0xFFFFFFFF), (4, 4, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF))

    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(new))

    attempts: list[Callable[[], object]] = [
        lambda: os.open(file, os.O_WRONLY), lambda: os.open(file, os.O_RDWR), lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        lambda: os.open(file, os.O_WRONLY | os.O_TRUNC), lambda: os.open(new, os.O_WRONLY | os.O_CREAT),
        lambda: os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), lambda: os.open("x", os.O_WRONLY | os.O_CREAT, dir_fd=here),
        lambda: call("creat", new, 0o600), lambda: os.truncate(file, 0), lambda: os.truncate(file, 9 * MEBI),
        lambda: os.unlink(file), lambda: os.unlink("file", dir_fd=here), lambda: os.rmdir(folder), lambda: os.mkdir(new),
        lambda: os.mkdir("x", dir_fd=here), lambda: os.rename(file, new), lambda: os.rename(file, other),
        lambda: call("renameat2", -100, file, -100, new, 1), lambda: call("renameat2", -100, file, -100, other, 2),
        lambda: os.link(file, new), lambda: os.link(file, "x", dst_dir_fd=here), lambda: os.symlink("a", new),
        lambda: os.mkfifo(new), lambda: os.mknod(new, stat.S_IFREG | 0o600), lambda: os.mknod(new, stat.S_IFSOCK | 0o600), bind,
        lambda: os.chmod(file, 0o777), lambda: os.fchmod(fd, 0o777), lambda: os.chmod("file", 0o777, dir_fd=here),
        lambda: os.chown(file, 1, 1), lambda: os.lchown(folder / "link", 1, 1), lambda: os.fchown(fd, 1, 1),
        lambda: os.utime(file), lambda: os.utime(fd), lambda: os.utime(folder / "link", ns=(1, 1), follow_symlinks=False),
        lambda: os.setxattr(file, "user.x", b"1"), lambda: os.setxattr(fd, "user.x", b"1"),
        lambda: os.setxattr(file, "system.posix_acl_access", access),
        lambda: os.removexattr(file, "user.x"), lambda: os.removexattr(fd, "user.x"), lambda: os.removexattr(folder, "user.x"),
    ]  # fmt: skip
    assert len(attempts) > 30
    for number, attempt in enumerate(attempts):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS, f"attempt {number}: {caught.value}"
    elsewhere: list[Callable[[], object]] = [
        lambda: os.write(fd, b"x"), lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0),
        lambda: os.posix_fallocate(fd, 0, 9), lambda: os.rename(outside, new),
        lambda: os.rename(file, outside), lambda: os.link(outside, new),
        lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE),
    ]  # fmt: skip
    for attempt in elsewhere:  # refused before the file system is asked
        with pytest.raises(OSError):
            attempt()
    rounds.count(len(attempts) + len(elsewhere))
    os.close(fd)
    os.close(here)
    assert file.read_bytes() == FILES[b"some"]
    assert not new.exists()


class Pair:
    """A file in the mount and its original, open, and what can be asked of both."""

    def __init__(self, top: Path, name: bytes, original: Path) -> None:
        self.want = (original / os.fsdecode(name)).read_bytes()
        self.fd = os.open(os.fsencode(top) + b"/" + name, os.O_RDONLY)
        self.map = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ) if self.want else None
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        for fd in (self.fd, self.reader, self.writer):
            os.close(fd)

    def step(self, chance: random.Random) -> None:
        size = chance.choice((1, 511, 4096, 4097, 65_536, 300_000))
        at = chance.randrange(len(self.want) + 2)
        part = self.want[at : at + size]
        match chance.randrange(9):
            case 0 | 1:
                assert os.pread(self.fd, size, at) == part
            case 2 if self.map is not None:
                assert self.map[at : at + size] == part
            case 3:
                size = min(size, 60_000)
                sent = os.sendfile(self.writer, self.fd, at, size)
                assert (os.read(self.reader, size) if sent else b"") == self.want[at : at + size]
            case 4:
                sent = os.splice(self.fd, self.writer, 4096, offset_src=at)
                assert (os.read(self.reader, 4096) if sent else b"") == self.want[at : at + sent]
            case 5:
                one, two = bytearray(100), bytearray(size)
                got = os.preadv(self.fd, [one, two], at)
                assert bytes(one + two)[:got] == self.want[at : at + 100 + size]
            case 6:
                self._data(at)
            case 7:
                os.posix_fadvise(self.fd, at, size, chance.choice((os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED,
                                                                   os.POSIX_FADV_RANDOM, os.POSIX_FADV_SEQUENTIAL)))  # fmt: skip
            case 8:
                assert os.lseek(self.fd, at, os.SEEK_SET) == at
                assert os.read(self.fd, size) == part

    def _data(self, at: int) -> None:
        """A hole may be shown as zeros, data never as a hole."""
        if at >= len(self.want):
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.lseek(self.fd, at, os.SEEK_DATA)
            return
        hole = os.lseek(self.fd, at, os.SEEK_HOLE)
        assert at <= hole <= len(self.want)
        try:
            data = os.lseek(self.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = len(self.want)
        assert not any(self.want[at:data])


def test_random_reading_of_every_kind(top: Path, home: Path, rounds: Rounds) -> None:
    pairs = [Pair(top, name, home / "source") for name in (*FILES, b"sparse")]
    try:
        for seed in rounds.seeds(5):
            chance = random.Random(seed)
            for _ in range(1000):
                chance.choice(pairs).step(chance)
            rounds.count(999)
    finally:
        for pair in pairs:
            pair.close()


def test_mixed_readers_leave_nothing_behind(home: Path, rounds: Rounds) -> None:
    """Memory that is not given back, and open files, after the caches are full: both would end a mount that stays for months."""
    with burning(home, "leaks", cache_bytes=2 * MEBI) as (_, top):
        (server,) = (p for p in Path("/proc").glob("[0-9]*") if serves(p, top))

        def read(seeds: range) -> None:
            for seed in seeds:
                chance = random.Random(seed)
                right_or_error(top, chance)
                folder = top / "new" / f"{chance.randrange(FOLDERS):03}"
                for name in os.listdir(folder):
                    os.lstat(folder / name)
                    os.listxattr(folder / name, follow_symlinks=False)
                (folder / "file").read_bytes()

        def busy(first: int, each: int) -> None:
            threads = [
                threading.Thread(target=read, args=(range(first + n * each, first + (n + 1) * each),))
                for n in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        each = 250 if rounds.long else 20
        for turn in range(20 if rounds.long else 1):  # until the heap has found its size
            busy(turn * 1000, each)
        before = anonymous(server), len(os.listdir(server / "fd"))
        for seed in rounds.seeds(2):
            busy(seed * 100_000, each)
            rounds.count(4 * each - 1)
        after = anonymous(server), len(os.listdir(server / "fd"))
        assert after[1] <= before[1] + 2, (before, after)
        assert after[0] <= before[0] + 16 * MEBI, (before, after)


def serves(process: Path, top: Path) -> bool:
    try:
        return (
            os.fsencode(top) in (process / "cmdline").read_bytes()
            and b"support.fire" in (process / "cmdline").read_bytes()
        )
    except OSError:
        return False


def anonymous(process: Path) -> int:
    """Bytes of its memory that no file stands for."""
    text = (process / "status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024
