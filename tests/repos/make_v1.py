"""Made tests/repos/v1, once: run again only for a new version of the format, into a new folder.

python tests/repos/make_v1.py       (as root: the tree has devices and owners)
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from snapfs.repo.backup.engine import backup  # noqa: E402
from snapfs.repo.backup.options import BackupOptions  # noqa: E402
from snapfs.repo.format.keyslot import Cost  # noqa: E402
from snapfs.repo.model import KiB  # noqa: E402
from snapfs.repo.repository import Repository  # noqa: E402
from support import same, trees  # noqa: E402
from support.trees import Dir, File, Name, Special, Symlink  # noqa: E402

PASSWORD = b"read me for ever"
TREE: dict[bytes, trees.Entry] = {
    b"plain": File(content=b"plain\n"),
    b"not-utf8-\xff\xfe": File(content=b"x" * 100, mode=0o4755),
    b"empty": File(mode=0),
    b"old": File(content=b"o", mtime=-86_400 * trees.SECOND),
    b"future": File(content=b"f", mtime=4_000_000_000 * trees.SECOND + 1),
    b"owner": File(content=b"w", owner=(12345, 54321)),
    b"xattrs": File(content=b"a", xattrs={"user.small": b"\0bin\xff", "user.large": trees.noise(3000)}),
    b"chunks": File(content=trees.noise(90 * KiB, 7)),
    b"sparse": File(content=b"begin", pieces={3 * 1024 * KiB: b"island"}, size=4096 * KiB),
    b"hard": File(content=b"one file"),
    b"deep/link": Name(of=b"hard"),
    b"link": Symlink(target=b"plain"),
    b"dangling": Symlink(target=b"/nowhere/\xff"),
    b"fifo": Special(kind=stat.S_IFIFO),
    b"socket": Special(kind=stat.S_IFSOCK),
    b"null": Special(kind=stat.S_IFCHR, device=(1, 3)),
    b"emptydir": Dir(mode=0o1777),
    **{b"many/%03d" % i: File(content=b"%d" % i * 30) for i in range(300)},
}


def plain(tree: same.Tree) -> dict[str, Any]:
    """As JSON can hold it: names and values of bytes in hexadecimal."""

    def flat(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.hex()
        return [flat(v) for v in value] if isinstance(value, tuple) else value

    return {path.hex(): {k: flat(v) for k, v in asdict(seen).items()} for path, seen in tree.items()}


def main() -> None:
    target = HERE / "v1"
    with tempfile.TemporaryDirectory() as temporary:
        folder, state = Path(temporary, "frozen"), os.path.join(temporary, "state")
        trees.make(folder, TREE)
        Repository.create(str(target), PASSWORD, cost=Cost(64, 1, 1), volume_size=512 * KiB,
                          chunks=(16 * KiB, 32 * KiB, 64 * KiB), label="frozen", host="host", user="user")  # fmt: skip
        expected = []
        with Repository.open(str(target), PASSWORD, cache_dir=state, state_dir=state) as repository:
            for number in range(3):
                (folder / "version").write_text(f"version {number}\n")
                options = BackupOptions(
                    (os.fsencode(folder),), host=b"host", user=b"user", tags=(b"t%d" % number,)
                )
                made = backup(repository, options).snapshot
                assert made is not None
                if number == 1:
                    repository.events.forget([made.id])
                    continue
                node = repository.trees.resolve(made.record.root, os.fsencode(folder))
                tree = plain(same.in_snapshot(repository, node))
                expected.append({"id": made.id.hex(), "path": str(folder), "tree": tree})
            repository.events.set_tags(made.id, [b"kept"])
        (HERE / "v1.json").write_text(json.dumps(expected, indent=1) + "\n")
        for name in ("tmp", "locks"):
            shutil.rmtree(target / name, ignore_errors=True)


if __name__ == "__main__":
    main()
