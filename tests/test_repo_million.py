"""A directory of a quarter of a million entries is backed up, listed and looked into, and memory does not grow with it; in the
long form, of a million.

What may grow: the sorted names of that one directory while it is backed up, about 90 bytes each.  Measured are anonymous pages,
in a process of its own: the index's pages are the page cache's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import mounts, repositories

pytestmark = pytest.mark.torture
MIB = 1 << 20
LIMITS = {250_000: 110 * MIB, 1_000_000: 250 * MIB}
"""Entries -> less than what it takes to hold their nodes (some 500 bytes each) besides the rest, of which 64 MiB are the cache of
opened frames, and 20 the program."""

PRELUDE = """
import json, os, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import repositories
folder, source = Path(sys.argv[2]), Path(sys.argv[3])

def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
try:
    found = work()
finally:
    done.set()
    watcher.join()
print(json.dumps({"peak": max(peak, anonymous()), **found}))
"""

BACKUP = """
def work():
    totals = repositories.snapshot(folder, source).record.totals
    return {"files": totals.files, "unmodified": totals.files_unmodified}
"""

LIST = """
def work():
    with repositories.open_(folder) as repository:
        root = repository.trees.resolve(repository.snapshots()[-1].record.root, os.fsencode(source))
        names = in_order = 0
        last = b""
        for node in repository.trees.children(root):
            in_order += last < node.name
            last = node.name
            names += 1
        some = [repository.trees.lookup(root, b"%07d" % n) for n in (0, 1, 99_999, 249_999)]
        started = time.monotonic()
        window = [found.entry.name.decode() for found, _ in zip(repository.trees.entries(root, 170_000), range(3))]
        return {
            "names": names, "in order": in_order, "ordinals": [found.ordinal for found in some], "window": window,
            "missing": repository.trees.lookup(root, b"0249999x") is None, "seconds": time.monotonic() - started,
        }
"""


def in_process(work: str, folder: Path, source: Path) -> dict[str, object]:
    arguments = [sys.executable, "-c", work + PRELUDE, str(Path(__file__).parent), str(folder), str(source)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def stored(folder: Path) -> int:
    """Bytes of all files of the repository."""
    return sum(path.stat().st_size for path in (folder / "repository").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def entries(request: pytest.FixtureRequest) -> int:
    return max(LIMITS) if request.config.getoption("--torture") is not None else min(LIMITS)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, entries: int) -> Iterator[Path]:
    """A folder of empty files, in memory where that is possible: making them on a disk takes longer than all the rest."""
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("million")
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as folder:
        source = Path(folder, "source")
        source.mkdir()
        at = os.open(source, os.O_RDONLY)
        try:
            for n in range(entries):
                os.mknod(b"%07d" % n, dir_fd=at)
        finally:
            os.close(at)
        yield source
        subprocess.run(["rm", "-r", source], check=True)  # several times faster than Python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    repositories.create(folder)
    return folder


def test_backed_up_in_bounded_memory(many: Path, folder: Path, entries: int) -> None:
    found = in_process(BACKUP, folder, many)
    assert found["files"] == entries
    assert found["peak"] < LIMITS[entries], f"{found['peak']} bytes"  # type: ignore[operator]


def test_backed_up_again_in_bounded_memory(many: Path, folder: Path, entries: int) -> None:
    (many / "0200000").write_bytes(b"changed")
    before = stored(folder)
    found = in_process(BACKUP, folder, many)
    assert (found["files"], found["unmodified"]) == (entries, entries - 1)
    assert stored(folder) - before < 64_000, "one changed entry rewrites one page a level"
    assert found["peak"] < LIMITS[entries], f"{found['peak']} bytes"  # type: ignore[operator]


def test_listed_in_bounded_memory(many: Path, folder: Path, entries: int) -> None:
    found = in_process(LIST, folder, many)
    assert found["names"] == found["in order"] == entries
    assert found["ordinals"] == [0, 1, 99_999, 249_999]
    assert found["window"] == ["0170000", "0170001", "0170002"]
    assert found["missing"] is True
    assert found["seconds"] < 1, "the n-th entry is found by bisection"  # type: ignore[operator]
    assert found["peak"] < LIMITS[entries], f"{found['peak']} bytes"  # type: ignore[operator]


def test_mounted_and_listed_in_bounded_memory(many: Path, folder: Path, entries: int) -> None:
    server = mounts.start(folder, folder / "mnt", part=os.fsencode(many))
    try:
        with os.scandir(folder / "mnt") as found:
            assert sum(1 for _ in found) == entries
        assert (folder / "mnt" / "0200000").read_bytes() == b"changed"
        assert not (folder / "mnt" / "0249999x").exists()
        with open(f"/proc/{server.pid}/status") as f:
            anonymous = next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))
    finally:
        server.terminate()
        mounts.finish(server)
    assert anonymous < LIMITS[entries], f"{anonymous} bytes"
