"""The newest of many snapshots, between each of which some files changed, beside a repository of that one snapshot: what
was joined once lies scattered by then, and reading it opens more frames."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

from bench import corpora
from bench.measure import Cost
from bench.scale.place import Place, bytes_in, interleaved, mib, ratio, say, seconds, snapshot, table

_DAY = 24 * 3600 * 10**9
_BEGIN = 1_600_000_000 * 10**9
STEPS = {"tar": "`tar -cf - . \\| cat` on the mount", "restore": "restore", "check": "check"}


def measure(options: Namespace, work: Path) -> str:
    source, rng = work / "source", random.Random(0)
    files = _copy(options, source)
    aged, fresh = Place(work / "aged"), Place(work / "fresh")
    changed = round(len(files) * options.changed / 100)
    say(f"   {options.versions} snapshots of {len(files):,} files, {changed} of them changed in each")
    with aged.open() as repository:
        for n in range(options.versions):
            for path in rng.sample(files, changed) if n else ():
                _edit(path, n, rng)
            snapshot(repository, source, _BEGIN + n * _DAY)
    fresh.run("backup", "--quiet", source)
    found = interleaved(options.rounds, *(partial(_steps, place, source) for place in (fresh, aged)))
    rows = []
    for step, words in STEPS.items():
        new, old = (costs[step] for costs in found)
        row = [words, seconds(new.wall), seconds(old.wall), ratio(old.wall, new.wall)]
        rows.append([*row, seconds(new.cpu), seconds(old.cpu), mib(new.memory), mib(old.memory)])
    sizes = [bytes_in(place.tool.repository) / 1e6 for place in (fresh, aged)]
    rows.append(["repository, MB", *(f"{size:.0f}" for size in sizes), ratio(sizes[1], sizes[0]), *[""] * 4])
    names = ["fresh", f"{options.versions} snapshots"]
    head = ["step", *(f"{name}, s" for name in names), "ratio", *(f"{name}: cpu, s" for name in names)]
    return table([*head, *(f"{name}: MiB" for name in names)], rows)


def _copy(options: Namespace, source: Path) -> list[Path]:
    """The folders to be measured on; returns the regular files in them."""
    corpora.make(options.folder.resolve(), ("tree",))
    source.mkdir()
    for name in options.subfolders.split(","):
        shutil.copytree(options.folder.resolve() / "tree" / name, source / name, symlinks=True)
    return sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())


def _edit(path: Path, n: int, rng: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), b"a line of version %d\n" % n)
    path.write_bytes(b"".join(lines))


def _steps(place: Place, source: Path) -> dict[str, Cost]:
    found = {}
    with place.mounted("", f"latest:{source}") as (top, daemon):
        used = daemon.use(["sh", "-c", "tar -cf - . | cat >/dev/null"], top)
        found["tar"] = Cost(used.wall, used.cpu, daemon.since_start().memory)
    # Where that is possible in memory: making files on a disk takes longer than reading them here.
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else place.folder
    with tempfile.TemporaryDirectory(prefix="snapfs-bench-", dir=fast) as target:
        found["restore"] = place.run("restore", "--quiet", f"latest:{source}", "--target", target)
        if subprocess.run(["diff", "-r", "--no-dereference", source, target], check=False).returncode:
            raise SystemExit("what was restored differs from the source")
    found["check"] = place.run("check")
    return found
