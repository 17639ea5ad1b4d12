"""Few and many readers at once on one mount: throughput, and the memory of the process that serves them."""

from __future__ import annotations

import os
import random
import subprocess
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.measure import Cost
from bench.scale.place import Place, interleaved, mib, ratio, say, seconds, table

_SMALL = 8000
_SMALL_SIZE = 8 * 1024


def measure(options: Namespace, work: Path) -> str:
    place, source = Place(work / "readers"), work / "source"
    say(f"   {options.readers} large files of {options.large} MB, {_SMALL:,} small ones")
    _make(source, options.readers, options.large)
    place.run("backup", "--quiet", source)
    with place.mounted("", f"latest:{source}") as (top, _):
        if subprocess.run(["diff", "-r", source, top], check=False).returncode:
            raise SystemExit("the mount differs from the source")
    rows = []
    for kind in ("large", "small"):
        size = sum(path.stat().st_size for path in (source / kind).rglob("*") if path.is_file())
        runs = [partial(_steps, place, source / kind, n, options.readers) for n in (4, options.readers)]
        few, many = (costs["read"] for costs in interleaved(options.rounds, *runs))
        speeds = [size / cost.wall / 1e6 for cost in (few, many)]
        row = [f"{kind} files", *(f"{speed:.0f}" for speed in speeds), ratio(speeds[1], speeds[0])]
        row += [seconds(few.cpu), seconds(many.cpu), mib(few.memory), mib(many.memory)]
        rows.append(row)
    names = ["4 readers", f"{options.readers} readers"]
    head = ["what is read", *(f"{n}, MB/s" for n in names), "ratio", *(f"{n}: cpu, s" for n in names)]
    return table([*head, *(f"{n}: MiB" for n in names)], rows)


def _steps(place: Place, folder: Path, readers: int, parts: int) -> dict[str, Cost]:
    return {"read": _read(place, folder, readers, parts)}


def _make(source: Path, parts: int, large: int) -> None:
    """As many folders of each kind as there are readers, at most."""
    rng = random.Random(1)
    for n in range(parts):
        path = source / "large" / f"{n}" / "file"
        path.parent.mkdir(parents=True)
        with path.open("wb") as f:
            for _ in range(large):
                f.write(rng.randbytes(1_000_000))
    for n in range(_SMALL):
        path = source / "small" / f"{n * parts // _SMALL}" / f"{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(_SMALL_SIZE // 2) * 2)


def _read(place: Place, folder: Path, readers: int, parts: int) -> Cost:
    """All of it once, by so many readers that have equal shares, on a mount nobody has read from."""
    with place.mounted("", f"latest:{folder}") as (top, daemon):
        shares = [[top / f"{n}" for n in range(parts) if n % readers == r] for r in range(readers)]
        begun = daemon.since_start()
        with ThreadPoolExecutor(readers) as pool:
            list(pool.map(_read_all, shares))
        ended = daemon.since_start()
    return Cost(ended.wall - begun.wall, ended.cpu - begun.cpu, ended.memory)


def _read_all(folders: list[Path]) -> None:
    """In threads: many processes would compete with the mount for processors that are few."""
    piece = bytearray(128 * 1024)
    for folder in folders:
        for entry in os.scandir(folder):
            fd = os.open(entry.path, os.O_RDONLY)
            while os.readv(fd, [piece]):
                pass
            os.close(fd)
