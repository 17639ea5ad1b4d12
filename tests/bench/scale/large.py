"""Random reads of 4 KiB in large files on the mount: what they cost at the beginning, in the middle and at the end.

The dense files are never on the disk but in the repository: they are made up, and come through a pipe.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.scale.place import Place, mib, say, seconds, table

_READS, _PIECE = 100, 4096
_ISLANDS, _ISLAND = 1000, 64 * 1024
_BLOCK = 1_000_000


class Case(NamedTuple):
    words: str
    part: str
    """What to mount."""
    name: str
    size: int
    """Bytes."""
    offsets: Callable[[random.Random, int, int], int]
    """An offset between two."""
    content: Callable[[int], bytes]
    """What stands there."""


def measure(options: Namespace, work: Path) -> str:
    place = Place(work / "large")
    cases = [_dense(place, int(gigabytes * 10**9)) for gigabytes in map(float, options.dense.split(","))]
    cases.append(_sparse(place, work / "sparse", int(options.sparse * 2**40)))
    head = [
        "file",
        "backup, s",
        "MiB",
        "where",
        "4 KiB, median ms",
        "slowest tenth, ms",
        "KiB read a read",
        "mount: MiB",
    ]
    return table(head, [row for case, first in cases for row in _rows(place, case, first)])


def _rows(place: Place, case: Case, first: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    third = case.size // 3
    for i, where in enumerate(("first third", "middle", "last third")):
        rng = random.Random(i)
        with place.mounted("", case.part) as (top, daemon), ExitStack() as undo:
            fd = os.open(top / case.name, os.O_RDONLY)
            undo.callback(os.close, fd)
            if os.fstat(fd).st_size != case.size:
                raise SystemExit(f"{case.words} is {os.fstat(fd).st_size} bytes long on the mount")
            os.pread(
                fd, _PIECE, case.offsets(rng, i * third, (i + 1) * third)
            )  # the first page of its content list
            before, times = daemon.bytes_read(), []
            for _ in range(_READS):
                offset = case.offsets(rng, i * third, (i + 1) * third - _PIECE)
                begun = time.perf_counter()
                data = os.pread(fd, _PIECE, offset)
                times.append(1000 * (time.perf_counter() - begun))
                if data != case.content(offset):
                    raise SystemExit(f"{case.words}: not what was backed up at {offset}")
            each = (daemon.bytes_read() - before) / _READS
            row = [
                f"{statistics.median(times):.1f}",
                f"{statistics.quantiles(times, n=10)[-1]:.1f}",
                f"{each / 1024:.0f}",
            ]
            rows.append(
                [*(first if not rows else [""] * len(first)), where, *row, mib(daemon.since_start().memory)]
            )
    return rows


def _dense(place: Place, size: int) -> tuple[Case, list[str]]:
    """Of random bytes: nothing in it is found twice, nor shrinks."""
    words = f"{size / 1e9:g} GB, dense"
    say(f"   {words}")
    name = f"dense-{size}"
    cost = place.fed(lambda write: [write(_block(n)[: size - n * _BLOCK]) for n in range(-(-size // _BLOCK))],
                     "backup", "--quiet", "--stdin", "--stdin-filename", name)  # fmt: skip

    def content(offset: int) -> bytes:
        n, at = divmod(offset, _BLOCK)
        return (_block(n) + _block(n + 1))[at : at + _PIECE]

    case = Case(words, "latest:/", name, size, lambda rng, low, high: rng.randrange(low, high), content)
    case = case._replace(part=f"{place.newest()}:/")
    return case, [words, seconds(cost.wall), mib(cost.memory)]


def _block(n: int) -> bytes:
    return random.Random(n).randbytes(_BLOCK)


def _sparse(place: Place, folder: Path, size: int) -> tuple[Case, list[str]]:
    words = f"{size / 2**40:g} TiB, sparse, {_ISLANDS:,} islands"
    say(f"   {words}")
    folder.mkdir()
    islands = [size // _ISLANDS * n for n in range(_ISLANDS)]
    with (folder / "sparse").open("wb") as f:
        for at in islands:
            f.seek(at)
            f.write(random.Random(at).randbytes(_ISLAND))
        f.truncate(size)
    cost = place.run("backup", "--quiet", folder)

    def offset(rng: random.Random, low: int, high: int) -> int:
        island = islands[rng.randrange(low * _ISLANDS // size + 1, high * _ISLANDS // size)]
        return island + rng.randrange(_ISLAND - _PIECE)

    def content(offset: int) -> bytes:
        island = islands[offset // (size // _ISLANDS)]
        return random.Random(island).randbytes(_ISLAND)[offset - island :][:_PIECE]

    case = Case(words, f"{place.newest()}:{folder}", "sparse", size, offset, content)
    return case, [words, seconds(cost.wall), mib(cost.memory)]
