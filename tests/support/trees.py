"""Source trees as a table of what is in them, made on the disk in one call.

    make(folder, {b"a/b": File(b"text", mode=0o600), b"a/link": Symlink(b"b"), b"a/other": Name(b"a/b")})

Directories on the way come by themselves.  What only root can make (devices, other owners, trusted attributes) is left out
for everybody else, so the same tests run as both; ROOT says which it is.  ODD has one of everything that backups lose.
"""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = os.geteuid() == 0
SECOND = 1_000_000_000
MEBI = 1 << 20

Attributes = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    mode: int | None = None
    mtime: int = 1_600_000_000 * SECOND + 123_456_789
    """ns since 1970."""
    owner: tuple[int, int] | None = None
    xattrs: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class File(_Entry):
    """`content` at the start; `pieces` at their offsets, with holes between; `size` where it is more than that."""

    content: bytes = b""
    pieces: Mapping[int, bytes] = field(default_factory=dict)
    size: int | None = None


@dataclass(frozen=True)
class Dir(_Entry):
    pass


@dataclass(frozen=True)
class Symlink(_Entry):
    target: bytes = b""


@dataclass(frozen=True)
class Name(_Entry):
    """One more name of an entry that stands further up in the table."""

    of: bytes = b""


@dataclass(frozen=True)
class Special(_Entry):
    """`kind`: stat.S_IFIFO, S_IFSOCK, S_IFCHR or S_IFBLK."""

    kind: int = 0
    device: tuple[int, int] = (0, 0)


Entry = File | Dir | Symlink | Name | Special
Tree = Mapping[bytes, Entry]


def make(folder: Path, tree: Tree) -> Path:
    """Make the tree in `folder`, which is made if absent; returns it."""
    top = os.fsencode(folder)
    os.makedirs(top, exist_ok=True)
    made = [(os.path.join(top, path), entry) for path, entry in tree.items() if ROOT or not _for_root(entry)]
    for path, entry in made:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _create(top, path, entry)
    for path, entry in made:
        if not isinstance(entry, Name):
            _dress(path, entry)
    for path, entry in reversed(
        made
    ):  # last, and from the inside out: everything above changes a directory's mtime
        if not isinstance(entry, Name):
            os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)
    return folder


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel takes it, from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _for_root(entry: Entry) -> bool:
    return (
        entry.owner is not None
        or (isinstance(entry, Special) and entry.kind in (stat.S_IFCHR, stat.S_IFBLK))
        or any(name.startswith(("trusted.", "security.")) for name in entry.xattrs)
        or (isinstance(entry, File) and entry.mode is not None and not entry.mode & stat.S_IRUSR)
    )


def _create(top: bytes, path: bytes, entry: Entry) -> None:
    match entry:
        case Dir():
            os.makedirs(path, exist_ok=True)
        case Symlink():
            os.symlink(entry.target, path)
        case Name():
            os.link(os.path.join(top, entry.of), path, follow_symlinks=False)
        case Special():
            os.mknod(path, entry.kind | 0o600, os.makedev(*entry.device))
        case File():
            with open(path, "wb", buffering=0) as f:
                f.write(entry.content)
                for offset, data in sorted(entry.pieces.items()):
                    f.seek(offset)
                    f.write(data)
                if entry.size is not None:
                    f.truncate(entry.size)


def _dress(path: bytes, entry: Entry) -> None:
    if entry.owner is not None:
        os.chown(path, *entry.owner, follow_symlinks=False)
    if (
        entry.mode is not None
    ):  # after chown, which clears setuid; before the attributes, as an ACL is part of the mode
        os.chmod(path, entry.mode)
    for name, value in entry.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)


_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER, _NOBODY = 1, 2, 4, 16, 32, 0xFFFFFFFF
_ACL = acl(
    (_USER_OBJ, 6, _NOBODY),
    (_USER, 4, 12345),
    (_GROUP_OBJ, 4, _NOBODY),
    (_MASK, 6, _NOBODY),
    (_OTHER, 0, _NOBODY),
)
_DEFAULT_ACL = acl(
    (_USER_OBJ, 7, _NOBODY),
    (_USER, 5, 12345),
    (_GROUP_OBJ, 5, _NOBODY),
    (_MASK, 7, _NOBODY),
    (_OTHER, 0, _NOBODY),
)
_CAP_NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

_NAMES = (
    b"plain", b" leading and trailing ", b"new\nline", b"tab\t", b"back\\slash", b'quo"te\'s', b"-rf", b"--", b"*?[a]",
    b"...", b".hidden", b"\x01\x1f\x7f", b"latin1-\xe9", b"invalid-\xff\xfe", "composed-\u00e9".encode(),
    "decomposed-e\u0301".encode(), "\u202egnp.exe".encode(), "\U0001f4be".encode(), b"n" * 255, b"A", b"a", b"con",
    b"nul.txt", b"semi;colon", b"$HOME", b"`id`", b"%s",
)  # fmt: skip
NAMES: Tree = {b"names/" + name: File(name) for name in _NAMES}

TIMES: Tree = {
    f"times/{seconds}.{ns:09}".encode(): File(b"t", mtime=seconds * SECOND + ns)
    for seconds, ns in (
        (0, 0), (0, 1), (-1, 999_999_999), (-1, 0), (-2_000_000_000, 7), (2_147_483_647, 999_999_999), (2_147_483_648, 0),
        (4_294_967_296, 123_456_789), (12_000_000_000, 1),
    )
}  # fmt: skip

MODES: Tree = {
    f"modes/{mode:04o}".encode(): File(b"m", mode=mode)
    for mode in (0, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1644, 0o7777)
}

SIZES: Tree = {
    f"sizes/{size}".encode(): File(noise(size, size))
    for size in (
        0,
        1,
        63,
        64,
        65,
        4095,
        4096,
        16383,
        16384,
        65535,
        65536,
        65537,
        262143,
        262144,
        262145,
        1_000_003,
    )
}

SPARSE: Tree = {
    b"sparse/all hole": File(size=3 * MEBI),
    b"sparse/hole first": File(pieces={2 * MEBI: noise(70_000, 1)}),
    b"sparse/hole last": File(noise(70_000, 2), size=5 * MEBI),
    b"sparse/short holes": File(noise(8192, 3), pieces={16384 * k: noise(4096, k) for k in range(1, 40)}),
    b"sparse/long and short": File(
        noise(100_000, 4),
        pieces={4 * MEBI: noise(5000, 5), 4 * MEBI + 65536: noise(5000, 6)},
        size=9 * MEBI + 1,
    ),
    b"sparse/zeros, no hole": File(bytes(300_000)),
}

ODD: Tree = {
    **NAMES,
    **TIMES,
    **MODES,
    **SIZES,
    **SPARSE,
    b"dirs/empty": Dir(mtime=-5 * SECOND + 5),
    b"dirs/sticky": Dir(mode=0o1777),
    b"dirs/setgid": Dir(mode=0o2750, mtime=5_000_000_000 * SECOND + 1),
    b"dirs/deep/" + b"/".join(b"d%d" % n for n in range(40)): Dir(),
    b"links/one": File(noise(20_000, 7)),
    b"links/two": Name(of=b"links/one"),
    b"links/deep/three": Name(of=b"links/one"),
    b"links/target": File(b"x"),
    b"links/soft": Symlink(target=b"target", mtime=-1),
    b"links/soft again": Name(of=b"links/soft"),
    b"links/dangling": Symlink(target=b"no/such\xff\nplace"),
    b"links/long": Symlink(target=b"t" * 4000),
    b"links/absolute": Symlink(target=b"/"),
    b"links/loop": Symlink(target=b"loop"),
    b"special/fifo": Special(kind=stat.S_IFIFO, mode=0o640, mtime=1),
    b"special/fifo again": Name(of=b"special/fifo"),
    b"special/socket": Special(kind=stat.S_IFSOCK, mode=0o755),
    b"special/null": Special(kind=stat.S_IFCHR, device=(1, 3), mode=0o666),
    b"special/large numbers": Special(kind=stat.S_IFCHR, device=(511, 70_000)),
    b"special/disk": Special(kind=stat.S_IFBLK, device=(259, 300), mode=0o660),
    b"xattrs/few": File(b"x", xattrs={"user.a": b"1", "user.empty": b"", "user.bytes": bytes(range(256))}),
    b"xattrs/large": File(b"x", xattrs={"user.large": noise(3000, 8)}),
    b"xattrs/dir": Dir(xattrs={"user.on": b"a directory"}),
    b"xattrs/acl": File(b"x", mode=0o640, xattrs={"system.posix_acl_access": _ACL}),
    b"xattrs/default acl": Dir(xattrs={"system.posix_acl_default": _DEFAULT_ACL}),
    b"xattrs/capability": File(b"x", mode=0o755, xattrs={"security.capability": _CAP_NET_RAW}),
    b"xattrs/trusted": File(b"x", xattrs={"trusted.t": b"\0\xff"}),
    b"xattrs/trusted link": Symlink(target=b"few", xattrs={"trusted.l": b"on a link"}),
    b"owners/file": File(b"x", owner=(12345, 54321), mode=0o4755),
    b"owners/dir": Dir(owner=(4_000_000_000, 65534), mode=0o3777),
    b"owners/link": Symlink(target=b"file", owner=(1, 2)),
}
"""About a hundred entries of every kind, every odd name and time, 6 MB of content."""
