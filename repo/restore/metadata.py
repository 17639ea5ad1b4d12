"""Owner, extended attributes, mode and times, in the order in which none undoes another.

A change of owner clears setuid bits and capabilities, so it comes first; attributes of a file need it writable, so they come
before the mode, which also puts right what setting an ACL did to it; times come last.  What cannot be restored is told and
the rest goes on.  An ordinary user cannot give files away, which is no error (tar says nothing either), but then a setuid bit
would speak for the wrong user and is left out.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from functools import lru_cache, partial

from snapfs.repo.content import Contents
from snapfs.repo.errors import RepositoryError
from snapfs.repo.model import FORMATS, PRIVILEGED_XATTRS, UNPRIVILEGED_MODE, Node, NodeType
from snapfs.repo.restore.folders import by_descriptor

ACL_ACCESS, ACL_DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_OURS = (b"user.", ACL_ACCESS, ACL_DEFAULT, b"security.capability", b"trusted.")
"""Attributes of an entry that was there before which go if the snapshot has none of that name."""
_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
_HUGE = "a number this system cannot hold"

Warn = Callable[[bytes, str], None]
"""(path, what could not be restored and why)."""


@lru_cache(1024)
def _user_number(name: bytes) -> int | None:
    try:
        return pwd.getpwnam(os.fsdecode(name)).pw_uid
    except (KeyError, ValueError):
        return None


@lru_cache(1024)
def _group_number(name: bytes) -> int | None:
    try:
        return grp.getgrnam(os.fsdecode(name)).gr_gid
    except (KeyError, ValueError):
        return None


def strerror(error: OSError | ValueError | OverflowError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else _HUGE


def has_default_acl(fd: int) -> bool:
    try:
        return bool(os.getxattr(fd, ACL_DEFAULT))
    except OSError:
        return False


def drop_inherited(fd: int, *names: bytes) -> None:
    """Take away ACLs that a new entry took on from its directory."""
    for name in names:
        try:
            os.removexattr(fd, name)
        except OSError:  # it has none
            pass


class Metadata:
    """`lost` is told of attributes that the repository cannot give; `unowned` is called once, when root itself may not set
    owners: the file system keeps none."""

    def __init__(self, contents: Contents, by_name: bool, untrusted: bool, warn: Warn,
                 lost: Callable[[bytes, RepositoryError], None], unowned: Callable[[], None]) -> None:  # fmt: skip
        self._contents = contents
        self._by_name = by_name
        self._untrusted = untrusted
        self._warn = warn
        self._lost = lost
        self._unowned = unowned
        self._user = os.geteuid()
        self._said_unowned = False

    def to_descriptor(self, fd: int, node: Node, path: bytes, was_there: bool = False) -> None:
        """An open regular file or directory."""
        kept = self._own(partial(os.fchown, fd), node, path)
        if node.xattrs or was_there:
            self._attributes(fd, node, path, was_there)
        try:
            os.fchmod(fd, node.mode & kept)
        except OSError as error:
            self._warn(path, f"mode not restored: {strerror(error)}")
        try:
            os.utime(fd, ns=(node.mtime if node.atime is None else node.atime, node.mtime))
        except (OSError, OverflowError) as error:
            self._warn(path, f"times not restored: {strerror(error)}")

    def to_name(self, name: bytes, above: int, node: Node, path: bytes, was_there: bool = False) -> None:
        """Anything, by its name in an open directory; a link itself, never what it points to.  All is done to what the name
        means now, and only if that is of the node's type: another may have been put there.  Raises OSError."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) != FORMATS[NodeType(node.type)]:
                raise OSError(errno.ESTALE, "something else was put in its place")
            self._to_path(by_descriptor(fd), node, path, was_there)
        finally:
            os.close(fd)

    def _to_path(self, opened: bytes, node: Node, path: bytes, was_there: bool) -> None:
        kept = self._own(partial(os.chown, opened), node, path)
        if node.xattrs or was_there:
            self._attributes(opened, node, path, was_there)
        if node.type != NodeType.SYMLINK:
            try:
                os.chmod(opened, node.mode & kept)
            except OSError as error:
                self._warn(path, f"mode not restored: {strerror(error)}")
        times = (node.mtime if node.atime is None else node.atime, node.mtime)
        try:
            os.utime(opened, ns=times)
        except (OSError, OverflowError) as error:
            self._warn(path, f"times not restored: {strerror(error)}")

    def _own(self, chown: Callable[[int, int], None], node: Node, path: bytes) -> int:
        """Set the owner; returns the bits of the mode that may be set now."""
        kept = UNPRIVILEGED_MODE if self._untrusted else 0o7777
        uid, gid = node.uid, node.gid
        if self._by_name:
            user = None if node.user is None else _user_number(node.user)
            group = None if node.group is None else _group_number(node.group)
            uid, gid = uid if user is None else user, gid if group is None else group
        try:
            chown(uid, gid)
            return kept
        except (OSError, OverflowError) as error:
            if not isinstance(error, OSError) or error.errno not in _UNSUPPORTED:
                self._warn(path, f"owner not restored: {strerror(error)}")
                return kept & UNPRIVILEGED_MODE
        if self._user == 0 and not self._said_unowned:
            self._said_unowned = True
            self._unowned()
        if uid != self._user:
            kept &= ~stat.S_ISUID
        try:
            chown(-1, gid)
        except (OSError, OverflowError):
            kept &= ~stat.S_ISGID
        return kept

    def _attributes(self, where: int | bytes, node: Node, path: bytes, was_there: bool) -> None:
        if was_there:
            self._remove_others(where, node)
        attributes = self._contents.xattrs(node)
        while True:
            name = b""
            try:
                pair = next(attributes, None)
                if pair is None:
                    return
                name, value = pair
                if not (self._untrusted and name.startswith(PRIVILEGED_XATTRS)):
                    os.setxattr(where, name, value)
            except RepositoryError as error:
                self._lost(path, error)
                return
            except (OSError, ValueError) as error:
                shown = name.decode("utf-8", "backslashreplace")
                self._warn(path, f"extended attribute {shown} not restored: {strerror(error)}")

    @staticmethod
    def _remove_others(where: int | bytes, node: Node) -> None:
        expected = {attribute.name for attribute in node.xattrs or ()}
        try:
            found = [os.fsencode(name) for name in os.listxattr(where)]
        except OSError:  # a file system without any
            return
        for name in found:
            if name not in expected and name.startswith(_OURS):
                try:
                    os.removexattr(where, name)
                except OSError:  # not ours to remove
                    pass
