"""`make bench-scale`: does cost grow with the change, or with the repository?  Writes the tables under "Memory and scale" in
docs/benchmarks.md, and the plot beside it.  Parts and sizes can be chosen: `--small` is a first look."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from bench.scale import aged, directory, index, large, readers, snapshots
from bench.scale.place import say

PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "benchmarks.md"
PARTS = {
    "snapshots": snapshots.measure,
    "directory": directory.measure,
    "index": index.measure,
    "readers": readers.measure,
    "large": large.measure,
    "aged": aged.measure,
}
SMALL = {
    "rounds": 1,
    "snapshots": 100,
    "entries": "1000,20000",
    "blobs": "2000,20000,200000",
    "large": 2,
    "dense": "0.02,0.2",
    "sparse": 0.01,
    "versions": 20,
    "subfolders": "fs",
}
PLOT = PAGE.with_name("scale.svg")


def main() -> None:
    options = arguments()
    options.plot = None if options.print else PLOT
    for name in options.parts.split(","):
        work = options.folder.resolve() / "scale" / name
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        say(f"{name}")
        begun = time.monotonic()
        try:
            text = PARTS[name](options, work)
        finally:
            if not options.keep:
                shutil.rmtree(work, ignore_errors=True)
        text = f"Measured {datetime.now(UTC):%Y-%m-%d}; {report.machine()}.\n\n{text}"
        if options.print:
            print(text)
        else:
            report.put_into(PAGE, f"scale {name}", text)
        say(f"   {time.monotonic() - begun:.0f} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=Path("/var/tmp/snapfs-bench"), help="50 GB free; default %(default)s")
    add("--parts", default=",".join(PARTS), help="default %(default)s")
    add("--rounds", type=int, default=3)
    add("--print", action="store_true", help="print the tables instead of writing them into the page")
    add("--keep", action="store_true", help="keep what is made for another run")
    add("--blobs", default="100000,1000000,10000000", help="sizes of the indexes; default %(default)s")
    add("--entries", default="10000,1000000", help="files in the directories; default %(default)s")
    add("--readers", type=int, default=64)
    add("--large", type=int, default=16, help="MB of each of the large files they read; default %(default)s")
    add("--dense", default="1,20", help="GB of the dense files; default %(default)s")
    add("--sparse", type=float, default=1, help="TiB of the sparse file; default %(default)s")
    add("--versions", type=int, default=200, help="snapshots of the aged repository; default %(default)s")
    add(
        "--changed",
        type=float,
        default=0.3,
        help="per cent of its files changed in each; default %(default)s",
    )
    add(
        "--subfolders",
        default="Documentation,fs,include,net",
        help="of the Linux source; default %(default)s",
    )
    add("--few-snapshots", type=int, default=10)
    add("--snapshots", type=int, default=1000)
    add("--small", action="store_true", help="small sizes and one round: a first look, in minutes")
    if parser.parse_known_args()[0].small:
        parser.set_defaults(**SMALL)
    return parser.parse_args()


if __name__ == "__main__":
    os.umask(0o077)
    main()
