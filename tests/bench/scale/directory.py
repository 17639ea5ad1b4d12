"""One directory of very many files: backed up, listed, looked into, and one of its entries changed.

The files are empty and, where that is possible, in memory: making and removing them on a disk takes longer than all the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from argparse import Namespace
from pathlib import Path

from bench.measure import Cost
from bench.scale.place import Place, bytes_in, mib, say, seconds, table

STEPS = {
    "first": "first backup",
    "again": "again, nothing changed",
    "changed": "again, one entry changed",
    "mount": "mount of that directory",
    "open": "one file opened by name and read, nothing in memory yet",
    "ls": "`ls -U` of it",
    "find": "`find -printf` of it",
    "check": "check",
}


def measure(options: Namespace, work: Path) -> str:
    counts = [int(count) for count in options.entries.split(",")]
    found = [_steps(count, work / str(count)) for count in counts]
    head = ["step", *(text for count in counts for text in (f"{count:,} files, s", "MiB"))]
    rows = [
        [
            words,
            *(text for costs, _ in found for text in (seconds(costs[step].wall), mib(costs[step].memory))),
        ]
        for step, words in STEPS.items()
    ]
    rows.append(
        ["stored for the changed entry, KB", *(t for _, kb in found for t in (f"{kb / 1000:.0f}", ""))]
    )
    return table(head, rows)


def _steps(count: int, folder: Path) -> tuple[dict[str, Cost], int]:
    say(f"   {count:,} files")
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else folder
    with tempfile.TemporaryDirectory(prefix="snapfs-bench-", dir=fast) as above:
        source = Path(above, "source")
        source.mkdir()
        try:
            return _measured(count, Place(folder), source)
        finally:
            subprocess.run(["rm", "-r", source], check=True)  # several times faster than Python


def _measured(count: int, place: Place, source: Path) -> tuple[dict[str, Cost], int]:
    at = os.open(source, os.O_RDONLY)
    for n in range(count):
        os.mknod(b"%07d" % n, 0o644, dir_fd=at)
    os.close(at)
    found = {step: place.run("backup", "--quiet", source) for step in ("first", "again")}
    before, middle = bytes_in(place.tool.repository), source / f"{count // 2:07d}"
    middle.write_bytes(os.urandom(1000))
    found["changed"] = place.run("backup", "--quiet", source)
    stored = bytes_in(place.tool.repository) - before
    newest = json.loads(place.said("snapshots", "--json"))[-1]["summary"]
    if newest["files_unmodified"] != count - 1 or newest["files_changed"] != 1:
        raise SystemExit(f"not what was to be measured: {newest}")
    for step, command in (
        ("open", ["cat", middle.name]),
        ("ls", ["ls", "-U"]),
        ("find", ["find", ".", "-printf", "%p %s\n"]),
    ):
        with place.mounted("", f"latest:{source}") as (top, daemon):
            found["mount"] = daemon.since_start()
            used = daemon.use(command, top)
            found[step] = Cost(used.wall, used.cpu, daemon.since_start().memory)
            if step == "find" and subprocess.run(["cmp", middle, top / middle.name], check=False).returncode:
                raise SystemExit("the changed file is not as it was")
    found["check"] = place.run("check")
    return found, stored
