"""Many snapshots of one tree, one file changed before each, beside few: listing and entering them, with an index and without."""

from __future__ import annotations

import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

from bench.measure import Cost
from bench.scale.place import Place, interleaved, ratio, say, seconds, snapshot, table
from snapfs.repo.format import keyslot

_FOLDERS, _FILES = 10, 20
_HOUR = 3600 * 10**9
_BEGIN = 1_600_000_000 * 10**9
STEPS = {
    "snapshots": "`snapfs snapshots`",
    "mount": "mount, until `snapshots/` answers",
    "ls": "then `ls snapshots/`",
    "latest": "then `ls -lR snapshots/latest/`",
    "backup": "another backup, one file changed",
    "fresh snapshots": "`snapfs snapshots`, no index on this machine yet",
    "fresh mount": "mount and `ls -lR snapshots/latest/`, no index yet",
}


def measure(options: Namespace, work: Path) -> str:
    few, many = _make(options.few_snapshots, work / "few"), _make(options.snapshots, work / "many")
    found = interleaved(options.rounds, lambda: _steps(few), lambda: _steps(many))
    rows = [
        [
            words,
            *(seconds(one[step].wall) for one in found),
            ratio(found[1][step].wall, found[0][step].wall),
            *(seconds(one[step].cpu) for one in found),
        ]
        for step, words in STEPS.items()
    ]
    few_, many_ = f"{options.few_snapshots:,} snapshots", f"{options.snapshots:,}"
    return table(["step", f"{few_}, s", f"{many_}, s", "ratio", f"{few_}: cpu, s", f"{many_}: cpu, s"], rows)


def _make(count: int, folder: Path) -> Place:
    say(f"   making {count:,} snapshots")
    place, source = Place(folder, cost=keyslot.Cost()), folder / "source"
    for n in range(_FOLDERS * _FILES):
        path = source / f"{n % _FOLDERS}" / f"{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % n * 100)
    with place.open() as repository:
        for n in range(count):
            _change(source, n)
            snapshot(repository, source, _BEGIN + n * _HOUR)
    return place


def _change(source: Path, n: int) -> None:
    at = n % (_FOLDERS * _FILES)
    (source / f"{at % _FOLDERS}" / f"{at}").write_bytes(b"%d changed in %d\n" % (at, n) * 100)


_changes = iter(range(10**6, 10**9))


def _steps(place: Place) -> dict[str, Cost]:
    found = {"snapshots": place.run("snapshots")}
    count = len(place.said("snapshots", "--json").split('"short_id"')) - 1
    with place.mounted() as (top, daemon):
        found["mount"] = daemon.since_start()
        found["ls"] = daemon.use(["ls", str(top / "snapshots")])
        found["latest"] = daemon.use(["ls", "-lR", f"{top}/snapshots/latest/"])
        _must_show(top, count, place.folder / "source")
    _change(place.folder / "source", next(_changes))
    found["backup"] = place.run("backup", "--quiet", place.folder / "source")
    shutil.rmtree(place.caches)
    found["fresh snapshots"] = place.run("snapshots")
    shutil.rmtree(place.caches, ignore_errors=True)
    with place.mounted() as (top, daemon):
        subprocess.run(["ls", "-lR", f"{top}/snapshots/latest/"], check=True, stdout=subprocess.DEVNULL)
        found["fresh mount"] = daemon.since_start()
    return found


def _must_show(top: Path, count: int, source: Path) -> None:
    shown = len(list((top / "snapshots").iterdir())) - 1
    if shown != count:
        raise SystemExit(f"{shown} of {count} snapshots are shown")
    seen = top / "snapshots/latest" / source.relative_to("/")
    if subprocess.run(["diff", "-r", source, seen], check=False).returncode:
        raise SystemExit("the newest snapshot differs from its source")
