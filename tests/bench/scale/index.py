"""Indexes of very different sizes: what the same small backup, a mount, a check and a rebuild cost beside each.

The blobs are made up, 16 random bytes each, but lie in real volumes, sealed and read back as always: only the index is not
told of them, since it is rebuilt from the volumes afterwards.
"""

from __future__ import annotations

import random
import shutil
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from bench.measure import Cost
from bench.scale import plot
from bench.scale.place import Place, bytes_in, interleaved, mib, ratio, say, seconds, table
from snapfs.repo.index import Entry, Index
from snapfs.repo.model import KiB, Kind, MiB, VolumeKind
from snapfs.repo.packing import BlobWriter

_BLOB = 16
_CHUNKS = (64 * KiB, 256 * KiB, MiB)
_VOLUME_SIZE = 5 * MiB // 4
"""Of so small blobs, 20,000 fill it: as many as files of the Linux source fill a volume of the usual size."""
_FILES, _CHANGED = 1000, 50
STEPS = {
    "backup": "small backup",
    "mount": "mount, until `snapshots/` answers",
    "ls": "the first `ls -R` there",
    "check": "check",
    "rebuild": "rebuild of the index",
}


def measure(options: Namespace, work: Path) -> str:
    counts = [int(count) for count in options.blobs.split(",")]
    places = [_make(count, work / str(count)) for count in counts]
    once = [_rebuild(place) for place in places]
    sizes = [bytes_in(place.caches) for place in places]
    used = interleaved(options.rounds, *(lambda place=place: _steps(place) for place in places))
    found = [{**steps, **costs} for steps, costs in zip(used, once, strict=True)]
    head = ["step", *(f"{count:,} blobs, s" for count in counts), "ratio", *("MiB" for _ in counts), "ratio"]
    rows = []
    for step, words in STEPS.items():
        walls, memory = [one[step].wall for one in found], [one[step].memory for one in found]
        rows.append([words, *map(seconds, walls), ratio(walls[-1], walls[0])])
        rows[-1] += [*map(mib, memory), ratio(memory[-1], memory[0])]
    speeds = (f"{count / costs['rebuild'].wall * 60:,.0f}" for count, costs in zip(counts, once, strict=True))
    bytes_each = (f"{size / count:.0f}" for count, size in zip(counts, sizes, strict=True))
    blank = ["" for _ in counts]
    rows.append(["blobs rebuilt a minute", *speeds, "", *blank, ""])
    rows.append(["bytes of index a blob", *bytes_each, "", *blank, ""])
    if options.plot is not None:
        options.plot.write_text(
            plot.draw(
                "blobs in the index",
                counts,
                {words: [one[step].wall for one in found] for step, words in STEPS.items()},
                {words: [one[step].memory / MiB for one in found] for step, words in STEPS.items()},
            )
        )
    return table(head, rows)


class _NoIndex:
    """Knows nothing, and notes nothing."""

    def holder(self, blob: bytes) -> int | None:
        return None

    def add(
        self, name: bytes, kind: VolumeKind, size: int, entries: Iterable[Entry], usable: bool = True
    ) -> int:
        return 0


def _make(count: int, folder: Path) -> Place:
    done = folder / "complete"
    if done.exists():
        return Place(folder)
    shutil.rmtree(folder, ignore_errors=True)
    say(f"   making {count:,} blobs")
    place = Place(folder, chunks=_CHUNKS, volume_size=_VOLUME_SIZE)
    rng = random.Random(count)
    with place.open() as repository, BlobWriter(
        cast(Index, _NoIndex()), repository.volumes, repository.keys, repository.id, repository.system, repository.client.id,
        volume_size=_VOLUME_SIZE, largest_blob=_CHUNKS[2], compression="off",
    ) as writer:  # fmt: skip
        for begin in range(0, count, KiB):
            here = min(KiB, count - begin)
            data = rng.randbytes(here * _BLOB)
            for at in range(0, len(data), _BLOB):
                writer.put(Kind.CONTENT, data[at : at + _BLOB])
        writer.flush()
    _source(place, range(_FILES), 0)
    done.touch()
    return place


def _rebuild(place: Place) -> dict[str, Cost]:
    """With one snapshot in it, so that there is something to look into."""
    shutil.rmtree(place.caches, ignore_errors=True)
    place.run("backup", "--quiet", place.folder / "source")
    return {"rebuild": place.run("repair", "index"), "check": place.run("check")}


_rounds = iter(range(1, 10**9))


def _steps(place: Place) -> dict[str, Cost]:
    _source(place, random.Random(0).sample(range(_FILES), _CHANGED), next(_rounds))
    found = {"backup": place.run("backup", "--quiet", place.folder / "source")}
    with place.mounted() as (top, daemon):
        found["mount"] = daemon.since_start()
        used = daemon.use(["ls", "-R", f"{top}/snapshots/latest/"])
        found["ls"] = Cost(used.wall, used.cpu, daemon.since_start().memory)
    return found


def _source(place: Place, which: Iterable[int], version: int) -> None:
    for n in which:
        path = place.folder / "source" / f"{n % 20}" / f"{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(n << 32 | version).randbytes(1500) * 2)
