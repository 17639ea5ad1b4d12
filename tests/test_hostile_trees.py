"""Restore writes nothing outside its target: whatever the tree says, and whatever swaps its folders for links meanwhile.

What lies outside is looked at whole, ctime included, so that even an attribute set there is seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import shutil
import signal
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from snapfs.repo.errors import SnapfsError
from snapfs.repo.model import Holes, Kind, Node, NodeType, Xattr
from snapfs.repo.restore import Overwrite, RestoreOptions, restore
from support import repositories
from support.hostile import Forge, node
from support.torture import Rounds

ROOT = os.geteuid() == 0
_EXCHANGE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)
FOLDERS = [
    b"",
    *(b"/%s" % a for a in (b"a", b"b", b"c")),
    *(b"/%s/%s" % (a, b) for a in (b"a", b"b") for b in (b"x", b"y")),
]


def exchange(top: int, path: bytes, link: bytes) -> None:
    """Swap a path below an open folder with a link, in one step; the path's own folders may be no links, or it would be the
    race itself that writes outside."""
    *above, name = path.split(b"/")
    fd = os.dup(top)
    try:
        for part in above:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        if _LIBC.renameat2(fd, name, -100, link, _EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2")
    finally:
        os.close(fd)


def seen(top: Path) -> dict[str, object]:
    """Everything there is to see below a folder."""
    found: dict[str, object] = {}
    for folder, names, files in os.walk(top):
        for path in (os.path.join(folder, name) for name in [".", *names, *files]):
            st = os.lstat(path)
            data = Path(path).read_bytes() if stat.S_ISREG(st.st_mode) else b""
            found[path] = (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ctime_ns,
                           os.listxattr(path, follow_symlinks=False), hashlib.sha256(data).digest())  # fmt: skip
    return found


def tree(forge: Forge) -> Node:
    """Folders as in FOLDERS, each with all that restore has a way of its own for."""
    small, large = forge.put(Kind.CONTENT, b"small" * 100), forge.put(Kind.CONTENT, os.urandom(700_000))

    def entries(turn: int) -> list[Node]:
        linked = {"size": 500, "blobs": ((small, 500),), "link": (0, 7), "links": len(FOLDERS)}
        found = [
            node(b"empty"), node(b"inline", size=3, data=b"abc", mode=0o4755), node(b"small", size=500, blobs=((small, 500),)),
            node(b"large", size=1_400_000, blobs=((large, 700_000),) * 2),
            node(b"sparse", size=800_000, blobs=((None, 100_000), (large, 700_000)), holes=Holes(100_000, ((0, 100_000),))),
            node(b"attributed", size=3, data=b"abc", xattrs=(Xattr(b"user.x", b"v"),)), node(b"linked", **linked),
            node(b"symlink", NodeType.SYMLINK, data=b"/etc/passwd", mode=0o777), node(b"fifo", NodeType.FIFO, mode=0o666),
        ]  # fmt: skip
        if ROOT and turn % 2:
            found.append(node(b"device", NodeType.CHARACTER, device=(1, 3), mode=0o666))
        return found

    def folder(path: bytes) -> Node:
        below = [folder(p) for p in FOLDERS if p and p.rpartition(b"/")[0] == path]
        return forge.directory(path.rpartition(b"/")[2], *entries(len(path)), *below)

    return folder(b"")


def populate(top: Path) -> None:
    for path in FOLDERS:
        here = top / os.fsdecode(path[1:])
        here.mkdir(parents=True, exist_ok=True)
        for name in ("inline", "small", "large", "linked", "other", "fifo"):
            (here / name).write_bytes(b"of somebody else")
        (here / "more").mkdir(exist_ok=True)
        (here / "more" / "file").write_bytes(b"of somebody else")


@contextlib.contextmanager
def swapping(target: Path, outside: Path, links: Path, seed: int) -> Iterator[None]:
    """A process that puts links to `outside` in the place of folders and files of `target`, and back again, all the time."""
    names = [
        path + end for path in FOLDERS for end in (b"", b"/more", b"/small", b"/linked", b"/fifo", b"/large")
    ][1:]
    links.mkdir()
    pairs = []
    for number, name in enumerate(names):
        link = os.fsencode(links) + b"/%d" % number
        os.symlink(os.fsencode(outside) + name, link)
        pairs.append((name[1:], link))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        racer = os.fork()
    if racer == 0:
        chance = random.Random(seed)
        top = os.open(target, os.O_PATH | os.O_DIRECTORY)
        while True:
            for pair in chance.sample(pairs, 6):
                with contextlib.suppress(OSError):
                    exchange(top, *pair)
                    if chance.random() < 0.9:
                        for _ in range(chance.randrange(200)):
                            os.getppid()
                        exchange(top, *pair)
    try:
        yield
    finally:
        os.kill(racer, signal.SIGKILL)
        os.waitpid(racer, 0)


class Yard:
    """A repository with the tree, and round after round a target, and what lies outside of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        forge = Forge(folder)
        self.root = tree(forge)
        forge.close()
        self.outside = folder / "outside"
        populate(self.outside)

    @contextlib.contextmanager
    def round(self, seed: int, there: bool) -> Iterator[Path]:
        here = Path(self.folder, "round")
        here.mkdir()
        target = here / "target"
        target.mkdir()
        if there:
            populate(target)
        before = seen(self.outside)
        with swapping(target, self.outside, here / "links", seed):
            yield target
        after = seen(self.outside)
        assert after == before, {path for path in {*before, *after} if before.get(path) != after.get(path)}
        shutil.rmtree(here)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    return Yard(tmp_path_factory.mktemp("yard"))


@pytest.mark.torture
def test_nothing_is_written_outside_while_folders_become_links(yard: Yard, rounds: Rounds) -> None:
    with repositories.open_(yard.folder) as repository:
        for seed in rounds.seeds(24):
            chance = random.Random(seed)
            options = RestoreOptions(
                delete=chance.random() < 0.5,
                overwrite=chance.choice(list(Overwrite)),
                verify=chance.random() < 0.2,
                untrusted=chance.random() < 0.2,
                root_metadata=chance.random() < 0.5,
                ownership_by_name=chance.random() < 0.3,
            )
            # What is in the way of a restore may end it; what it did until then is what counts.
            with (
                yard.round(seed, there=chance.random() < 0.7) as target,
                contextlib.suppress(SnapfsError, OSError),
            ):
                restore(repository, yard.root, os.fsencode(target), options)


def test_one_who_follows_links_is_caught(yard: Yard) -> None:
    """The same race, lost by one who writes by path: else it would be none."""

    def by_path(target: Path) -> None:
        for path in FOLDERS * 20:
            with contextlib.suppress(OSError):
                os.makedirs(os.fsencode(target) + path, exist_ok=True)
                with open(os.fsencode(target) + path + b"/small", "wb") as file:
                    file.write(b"written")

    for seed in range(50):
        try:
            with yard.round(seed, there=True) as target:
                by_path(target)
        except AssertionError:
            shutil.rmtree(yard.folder / "round")
            return
    raise AssertionError("50 rounds, and nothing was written outside")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("untrusted", [False, True])
def test_hostile_entries_stay_inside(tmp_path: Path, there: bool, untrusted: bool) -> None:
    """Links first, and then what would go through them: of the same snapshot, or of the target that was there."""
    forge = Forge(tmp_path)
    outside, target = tmp_path / "outside", tmp_path / "target"
    populate(outside)
    target.mkdir()
    out = os.fsencode(outside)
    if there:
        for name in ("A", "a", "b", "sub"):
            (target / name).symlink_to(outside)
    small = forge.put(Kind.CONTENT, b"x" * 500)
    linked = {"size": 500, "blobs": ((small, 500),), "link": (0, 1), "links": 3}
    files = [node(b"small", size=500, blobs=((small, 500),), mode=0o6777), node(b"linked", **linked)]
    root = forge.directory(
        b"", node(b"A", NodeType.SYMLINK, data=out, link=(0, 1), links=3), forge.directory(b"a", *files),
        node(b"b", NodeType.SYMLINK, data=out + b"/small", link=(0, 1), links=3),
        node(b"c", size=3, data=b"abc",
             xattrs=(Xattr(b"security.capability", b"\1\0\0\2" + bytes(16)), Xattr(b"trusted.t", b"t"))),
        node(b"e", NodeType.BLOCK, device=(8, 0)), node(b"f", NodeType.CHARACTER, device=(1, 1)),
        node(b"g", NodeType.SYMLINK, data=b"../" * 40 + b"etc"),
        forge.directory(b"sub", *files, forge.directory(b"more", *files)),
    )  # fmt: skip
    forge.close()
    before = seen(outside)
    with repositories.open_(tmp_path) as repository:
        for delete in (False, True):
            options = RestoreOptions(untrusted=untrusted, delete=delete)
            restore(repository, root, os.fsencode(target), options)
    assert seen(outside) == before
    modes = [
        os.lstat(os.path.join(folder, name)).st_mode for folder, _, names in os.walk(target) for name in names
    ]
    special = [
        mode
        for mode in modes
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) or (mode & 0o6000 and stat.S_ISREG(mode))
    ]
    assert not (special and untrusted), special
    if untrusted:
        assert os.listxattr(target / "c") == []


@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"/", b"../outside/small", b"/etc/x", b"a\0b", b"x" * 256]
)
def test_names_that_are_none(tmp_path: Path, name: bytes) -> None:
    forge = Forge(tmp_path)
    root = msgspec.structs.replace(forge.directory(b"", node(name), node(b"z")), name=b"")
    forge.close()
    populate(tmp_path / "outside")
    before = seen(tmp_path / "outside")
    with repositories.open_(tmp_path) as repository:
        result = restore(repository, root, os.fsencode(tmp_path / "target"), RestoreOptions())
    assert result.damaged == 1
    assert os.listdir(tmp_path / "target") == []
    assert seen(tmp_path / "outside") == before
