"""The data that is measured on: made once in a folder, and the same on every Debian machine but for the random bytes.

tree    the Linux source, from Debian's package linux-source: 80,000 small files, 1.3 GB
image   a 3 GiB ext4 image of the running Python (a third of it allocated) and 500 MB of random bytes
edited  the same, later: inside the image one folder is gone, one is new, 300 files have a line more

`tree` needs apt-get; elsewhere put any folder of that name there.  The image needs mkfs.ext4 and debugfs (e2fsprogs).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

_MEDIA = 500 * 1000 * 1000
_IMAGE = 3 << 30


def make(folder: Path, names: Collection[str] = ("tree", "image", "edited")) -> None:
    """Whatever of these is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in (("tree", _tree), ("image", _image), ("edited", _edited)):
        if name in names and not (folder / name).exists():
            print(f"making {folder / name}", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                build(folder, Path(work))
                os.rename(Path(work) / name, folder / name)


def _run(*command: str | Path, **more: object) -> str:
    done = subprocess.run(
        [os.fspath(part) for part in command], capture_output=True, text=True, check=False, **more
    )  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return str(done.stdout)


def _tree(folder: Path, work: Path) -> None:
    if not shutil.which("apt-get"):
        raise SystemExit(
            f"there is no apt-get to fetch the Linux source with: put some large source tree into {folder}/tree"
        )
    depends = _run("apt-cache", "depends", "linux-source")
    package = next(line.split()[-1] for line in depends.splitlines() if "Depends:" in line)
    _run("apt-get", "-q", "download", package, cwd=work)
    _run("dpkg", "-x", next(work.glob("*.deb")), work / "deb")
    (work / "tree").mkdir()
    archive = next((work / "deb/usr/src").glob("linux-source-*.tar.xz"))
    _run("tar", "-xf", archive, "-C", work / "tree", "--strip-components=1")


def _image(folder: Path, work: Path) -> None:
    (work / "image").mkdir()
    with open(work / "image/vm.img", "wb") as f:
        f.truncate(_IMAGE)
    _run("mkfs.ext4", "-q", "-d", sys.base_prefix, work / "image/vm.img")
    rng = random.Random(1)
    with open(work / "image/media.bin", "wb") as f:
        for _ in range(_MEDIA // 1_000_000):
            f.write(rng.randbytes(1_000_000))


def _edited(folder: Path, work: Path) -> None:
    shutil.copytree(folder / "image", work / "edited", copy_function=_sparse_copy)
    image, library = work / "edited/vm.img", Path(os.__file__).parent
    inside = "/" + os.path.relpath(library, sys.base_prefix)
    commands = [f"mkdir {inside}/added"]
    for n, source in enumerate(sorted(library.glob("*.py"))[:300]):
        (work / str(n)).write_bytes(source.read_bytes() + b"# edited\n")
        commands += [f"rm {inside}/{source.name}", f"write {work / str(n)} {inside}/{source.name}"]
    for source in sorted((library / "asyncio").glob("*.py")):
        commands.append(f"write {source} {inside}/added/{source.name}")
    for source in sorted((library / "email").glob("*.py")):
        commands.append(f"rm {inside}/email/{source.name}")
    (work / "commands").write_text("\n".join(commands) + "\n")
    _run("debugfs", "-w", "-f", work / "commands", image)


def _sparse_copy(source: str, target: str) -> None:
    _run("cp", "--sparse=always", "--preserve=timestamps", source, target)
