"""From lstat to Node: metadata, owners by name, extended attributes.  Content is files.py's subject."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from functools import cache

from snapfs.repo.backup._reading import Status
from snapfs.repo.errors import SourceError
from snapfs.repo.format import labels as L
from snapfs.repo.model import DEVICES, TYPES, Extent, Holes, Kind, Node, Xattr
from snapfs.repo.page_writer import Put

_EARLIEST, _LATEST = -(2**63), 2**64 - 1
_NO_XATTRS = (errno.ENOTSUP, errno.ENODATA, errno.ENOSYS)


@cache
def user_name(uid: int) -> bytes | None:
    """Of this machine, looked up once; None if it has none."""
    try:
        return os.fsencode(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return None


@cache
def group_name(gid: int) -> bytes | None:
    try:
        return os.fsencode(grp.getgrgid(gid).gr_name)
    except (KeyError, OverflowError):
        return None


def reason(error: OSError) -> str:
    return error.strerror or str(error)


def read_xattrs(
    target: int | str, put: Put, path: bytes, failed: Callable[[SourceError], None]
) -> tuple[Xattr, ...] | None:
    """Every readable extended attribute of an open file or, by path, of a name (links not followed); None if
    there is none."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            failed(SourceError(path, f"extended attributes cannot be listed: {reason(error)}"))
        return None
    if not names:
        return None
    found = []
    for name in sorted(os.fsencode(n) for n in names):
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NO_XATTRS:  # ENODATA: removed meanwhile
                failed(
                    SourceError(
                        path,
                        f"extended attribute {name.decode(errors='replace')} cannot be read: {reason(error)}",
                    )
                )
            continue
        if len(value) <= L.INLINE_XATTR:
            found.append(Xattr(name, value))
        else:
            found.append(Xattr(name, None, put(Kind.XATTR, value)))
    return tuple(found) or None


def make_node(name: bytes, st: os.stat_result | Status, *, with_atime: bool = False, link: tuple[int, int] | None = None,
              size: int | None = None, data: bytes | None = None, blobs: tuple[Extent, ...] | None = None,
              root: bytes | None = None, xattrs: tuple[Xattr, ...] | None = None, holes: Holes | None = None,
              changed: int = 0) -> Node:  # fmt: skip
    """A Node with all that lstat tells, and the content or target that the caller has read."""
    kind = TYPES[stat.S_IFMT(st.st_mode)]
    device = (os.major(st.st_rdev), os.minor(st.st_rdev)) if kind in DEVICES else None
    return Node(
        name, kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, user_name(st.st_uid), group_name(st.st_gid),
        _kept(st.st_mtime_ns), _kept(st.st_ctime_ns), size, data, blobs, root, device, xattrs, link, holes, None, changed,
        _kept(st.st_atime_ns) if with_atime else None, st.st_nlink if link is not None else None,
    )  # fmt: skip


def _kept(time: int) -> int:
    """A time in ns, or the nearest that a record holds, 1677-09-21 or 2554-07-21: other systems write 1601 for none."""
    return time if _EARLIEST <= time <= _LATEST else _EARLIEST if time < 0 else _LATEST


def by_descriptor(dir_fd: int, name: bytes) -> str:
    """A path to a name in an open directory, for the calls that take no dir_fd; the last component is not
    followed."""
    return f"/proc/self/fd/{dir_fd}/{os.fsdecode(name)}"
