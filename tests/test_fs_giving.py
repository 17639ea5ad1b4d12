"""Small files that the kernel is given when they are opened: never while a read of them may be waiting for this very thread."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapfs.fs.entry import Entry
from snapfs.fs.giving import Giving
from snapfs.fs.patience import NotAtHand
from snapfs.repo.errors import Damaged
from snapfs.repo.model import KiB, Node, NodeType
from support import repositories
from support.mounts import mounted
from support.trees import File, make, noise


def entry(size: int) -> Entry:
    return Entry(7, Node(b"name", NodeType.FILE, 0o644, 0, 0, None, None, 0, 0, size=size), True)


class Kernel:
    """What it was given; `read` is the view's."""

    def __init__(self, read: Callable[..., bytes] = lambda node, offset, size: bytes(size)) -> None:
        self.has: list[tuple[int, int, int]] = []
        self.giving = Giving(SimpleNamespace(read=read), self.store)  # type: ignore[arg-type]

    def store(self, inode: int, offset: int, data: bytes) -> None:
        self.has.append((inode, offset, len(data)))


def test_a_small_file_is_given_whole_to_the_first_who_opens_it() -> None:
    kernel = Kernel()
    assert kernel.giving.opened(1, 70, entry(10))
    assert not kernel.giving.opened(2, 70, entry(10)), "the first may be reading it"
    kernel.giving.closed(1)
    assert not kernel.giving.opened(3, 70, entry(10)), "the second may be"
    kernel.giving.closed(2)
    kernel.giving.closed(3)
    assert kernel.giving.opened(4, 70, entry(64 * KiB)), "the kernel may have dropped it"
    assert kernel.giving.opened(5, 71, entry(10))
    assert not kernel.giving.opened(6, 72, entry(64 * KiB + 1))
    assert not kernel.giving.opened(7, 73, entry(0))
    assert kernel.has == [(70, 0, 10), (70, 0, 64 * KiB), (71, 0, 10)]


@pytest.mark.parametrize(
    "error", [NotAtHand(), Damaged("x", "volume"), OSError(errno.ENOENT, "forgotten"), KeyError("x")]
)
def test_what_cannot_be_given_is_asked_for(error: Exception) -> None:
    def fail(*args: object) -> bytes:
        raise error

    kernel = Kernel(fail)
    assert not kernel.giving.opened(1, 70, entry(10))
    kernel.giving.closed(1)
    assert not kernel.has
    kernel = Kernel()
    kernel.store = fail  # type: ignore[assignment,method-assign]
    assert not Giving(SimpleNamespace(read=lambda *_: b"x"), fail).opened(1, 70, entry(1))  # type: ignore[arg-type]


def test_many_readers_of_the_same_files_while_the_kernel_drops_them(tmp_path: Path) -> None:
    """One that gave what another reads would wait for itself, and nobody would ever be answered again."""
    contents = {f"{n:02}".encode(): noise(random.Random(n).choice((100, 5000, 60_000)), n) for n in range(30)}
    source = make(tmp_path / "source", {name: File(data) for name, data in contents.items()})
    repositories.create(tmp_path)
    repositories.snapshot(tmp_path, source)
    wrong: list[bytes] = []
    read = 0
    with mounted(tmp_path, part=os.fsencode(source)) as top:
        end = time.monotonic() + 2

        def reader(seed: int) -> None:
            nonlocal read
            chance = random.Random(seed)
            while time.monotonic() < end:
                name = chance.choice(sorted(contents))
                fd = os.open(os.fsencode(top) + b"/" + name, os.O_RDONLY)
                try:
                    if os.pread(fd, 100_000, 0) != contents[name]:
                        wrong.append(name)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    read += 1
                finally:
                    os.close(fd)

        readers = [threading.Thread(target=reader, args=(seed,), daemon=True) for seed in range(6)]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join(30)
            assert not thread.is_alive(), "nobody is answered any more"
    assert not wrong
    assert read > 100
