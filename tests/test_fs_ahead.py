"""Reading ahead without a kernel: who reads small files one after the other waits once, who reads a large one hardly ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import trio

from snapfs.fs.ahead import OpenFile, ReadAhead
from snapfs.fs.entry import ROOT, Entry
from snapfs.fs.patience import NotAtHand
from snapfs.fs.view import View
from snapfs.repo.model import KiB
from support import repositories, trees
from support.trees import File

SMALL = {b"%03d" % i: File(trees.noise(20_000, i)) for i in range(200)}
LARGE = trees.noise(3_000_000)
STEP = 64 * KiB


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    home = tmp_path_factory.mktemp("ahead")
    trees.make(home / "source", {b"large": File(LARGE), **{b"small/" + name: SMALL[name] for name in SMALL}})
    repositories.create(home)
    stored = repositories.snapshot(home, home / "source")
    with repositories.open_(home) as repository:
        root = repository.trees.resolve(stored.record.root, os.fsencode(home / "source"))
        view = View(repository, root)
        view.blobs.loop_thread = threading.get_ident()
        yield view


async def at(view: View, *names: bytes) -> Entry:
    entry: Entry | None = await trio.to_thread.run_sync(view.entry, ROOT)
    for name in names:
        assert entry is not None
        entry = await trio.to_thread.run_sync(view.lookup, entry.inode, name)
    assert entry is not None
    return entry


async def reads(view: View, ahead: ReadAhead, file: OpenFile, offset: int, size: int) -> tuple[bytes, bool]:
    """(content, whether it had to be waited for), as the mount reads; what is read ahead has the time it needs."""
    node, waited = file.entry.node, False
    try:
        data = view.read(node, offset, size)
    except NotAtHand:
        data, waited = await trio.to_thread.run_sync(view.read, node, offset, size), True
    ahead.was_read(file, offset, offset + len(data), waited=waited)
    while ahead._nursery.child_tasks:
        await trio.sleep(0.001)
    return data, waited


def test_small_files_in_order_are_waited_for_once(view: View) -> None:
    async def read_all() -> int:
        waits = 0
        async with trio.open_nursery() as nursery:
            ahead = ReadAhead(view, nursery)
            for name, file in SMALL.items():
                opened = OpenFile(await at(view, b"small", name))
                data, waited = await reads(view, ahead, opened, 0, 128 * KiB)
                assert data == file.content
                waits += waited
        return waits

    frames = view._repository.blobs.frames
    frames.clear()
    assert trio.run(read_all) == 1
    assert len(frames._frames) > 10, "they were not all in one frame"


def test_a_large_file_in_order_is_waited_for_at_its_beginning_only(view: View) -> None:
    async def read_all() -> list[int]:
        waits = []
        async with trio.open_nursery() as nursery:
            ahead, opened = ReadAhead(view, nursery), OpenFile(await at(view, b"large"))
            for offset in range(0, len(LARGE), STEP):
                data, waited = await reads(view, ahead, opened, offset, STEP)
                assert data == LARGE[offset : offset + STEP]
                waits += [offset] if waited else []
        return waits

    view._repository.blobs.frames.clear()
    view.blobs._kept.clear()
    view.blobs._size = 0
    assert all(offset <= 1_100_000 for offset in trio.run(read_all))


def test_reading_ahead_fails_in_silence(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inode: int) -> int | None:
        raise OSError("the disk is gone")

    async def read() -> bytes:
        async with trio.open_nursery() as nursery:
            ahead, opened = ReadAhead(view, nursery), OpenFile(await at(view, b"small", b"000"))
            return (await reads(view, ahead, opened, 0, 128 * KiB))[0]

    view._repository.blobs.frames.clear()
    monkeypatch.setattr(view, "load_after", broken)
    assert trio.run(read) == SMALL[b"000"].content
