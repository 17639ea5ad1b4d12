"""One entry that is no directory: reused from an earlier snapshot, or read.

The caller adds what comes back to the directory it writes.  Errors of the source are OSErrors here; the walk reports them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from snapfs.repo.backup import _reading as reading
from snapfs.repo.backup.files import Content, FileReader, Status
from snapfs.repo.backup.nodes import by_descriptor, group_name, make_node, read_xattrs, user_name
from snapfs.repo.backup.parents import Earlier
from snapfs.repo.backup.ticks import Ticks
from snapfs.repo.content import Contents
from snapfs.repo.errors import SourceError
from snapfs.repo.model import BlobId, Kind, MiB, Node, Xattr
from snapfs.repo.packing import Putter

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LINKS = 4096
"""Hard-linked files whose content is remembered, so that another name of one is not read again."""

SMALL_BYTES = MiB
"""Small files are read in groups of so many bytes at most."""

Report = Callable[[SourceError], None]
Small = tuple[reading.Status, bytes, bool]
"""The status of a file while it was open, its content, and whether its times may repeat."""
AGAIN, WRITTEN_MEANWHILE = 2, 1
"""Node.changed: its times may not tell a later write; it was written each time it was read."""


class Taken(NamedTuple):
    """An entry for the directory being written; `raw` is its encoding in an earlier snapshot, if it is the same."""

    node: Node
    raw: bytes | None
    action: str
    """new, changed or unchanged."""


class EntryReader:
    """Reads entries of the source.  `with_xattrs` counts those that have any; `filesystems` names the ordinals of hard links."""

    def __init__(
        self,
        writer: Putter,
        reader: FileReader,
        contents: Contents,
        report: Report,
        with_atime: bool,
        trusting: bool,
    ) -> None:
        """`trusting`: every blob of the earlier snapshot is known to be there."""
        self._writer = writer
        self._reader = reader
        self._contents = contents
        self._report = report
        self._with_atime = with_atime
        self._links: OrderedDict[tuple[int, ...], tuple[Content, int]] = OrderedDict()
        """Content by status, and when its reading began."""
        self._ordinals: dict[int, int] = {}
        self._euid = os.geteuid()
        self._buffer = bytearray()
        self._ticks = Ticks()
        self._trusting = trusting
        self.filesystems: list[bytes] = []
        self.with_xattrs = 0

    def unchanged(self, st: Status, was: Sequence[Earlier]) -> Earlier | None:
        """The earlier entry that tells all of a regular file, so that it need not be opened."""
        return next((earlier for earlier in was if self._unchanged(earlier.node, st)), None)

    def read_small(
        self, dir_fd: int, names: list[bytes], statuses: list[reading.Status]
    ) -> list[Small | None]:
        """Files below SMALL_BYTES in all, each FileReader.is_small, in one go; None for one that file() has to read."""
        if not self._buffer:
            self._buffer = bytearray(SMALL_BYTES)
        now, may_repeat = time.time_ns(), self._ticks.may_repeat
        found = reading.read_small(dir_fd, names, statuses, self._euid, self._buffer)
        return [None if one is None else (*one, may_repeat(one[0], now)) for one in found]

    def small(self, name: bytes, read: Small, was: Sequence[Earlier]) -> Taken:
        """A file that read_small has read."""
        st, data, may_repeat = read
        content = self._reader.whole(data, st.st_uid)
        node = make_node(
            name, st, with_atime=self._with_atime, size=content.size, data=content.data, blobs=content.blobs,
            changed=AGAIN if may_repeat else 0,
        )  # fmt: skip
        return Taken(node, None, "changed" if was else "new")

    def file(self, dir_fd: int, name: bytes, path: bytes, st: Status, was: Sequence[Earlier]) -> Taken:
        """Any regular file that is to be read."""
        fd = self.open(dir_fd, name, st.st_uid)
        try:
            return Taken(self._read(fd, name, path, st), None, "changed" if was else "new")
        finally:
            os.close(fd)

    def other(self, dir_fd: int, name: bytes, path: bytes, st: Status, was: Sequence[Earlier]) -> Taken:
        """A symbolic link, device, fifo or socket."""
        target = os.fsencode(os.readlink(name, dir_fd=dir_fd)) if stat.S_ISLNK(st.st_mode) else None
        xattrs = self.xattrs(by_descriptor(dir_fd, name), path)
        node = make_node(
            name, st, with_atime=self._with_atime, link=self._link(st, path), data=target, xattrs=xattrs
        )
        if was and was[0].node == node:
            return Taken(node, was[0].raw, "unchanged")
        return Taken(node, None, "changed" if was else "new")

    def directory(self, name: bytes, fd: int, path: bytes) -> tuple[Node, os.stat_result]:
        """An open directory, without what is in it."""
        st = os.fstat(fd)
        return make_node(name, st, with_atime=self._with_atime, xattrs=self.xattrs(fd, path)), st

    def open(self, dir_fd: int, name: bytes, owner: int, more: int = 0) -> int:
        """Open without following a link, blocking on a fifo, or touching the access time where that is allowed."""
        if self._euid in (0, owner):
            with contextlib.suppress(PermissionError):
                return os.open(name, _FLAGS | more | os.O_NOATIME, dir_fd=dir_fd)
        return os.open(name, _FLAGS | more, dir_fd=dir_fd)

    def put(self, kind: Kind, data: bytes) -> BlobId:
        return self._writer.put(kind, data)

    def xattrs(self, target: int | str, path: bytes) -> tuple[Xattr, ...] | None:
        found = read_xattrs(target, self.put, path, self._report)
        if found is not None:
            self.with_xattrs += 1
        return found

    def _unchanged(self, earlier: Node, st: Status) -> bool:
        """The decided rule, and that everything the earlier entry needs is still in the repository."""
        if (
            earlier.mtime != st.st_mtime_ns
            or earlier.size != st.st_size
            or earlier.ctime != st.st_ctime_ns
            or earlier.changed
            or not earlier.is_file
        ):
            return False
        if self._trusting:
            return True
        known = self._writer.known
        if earlier.root is None and earlier.xattrs is None and earlier.holes is None:
            return all(blob is None or known(BlobId(blob)) for blob, _ in earlier.blobs or ())
        return all(known(BlobId(blob)) for _, blob in self._contents.blobs(earlier))

    def reuse(self, path: bytes, st: Status, earlier: Earlier) -> Taken:
        """A file as an earlier snapshot has it."""
        node: Node = earlier.node
        raw: bytes | None = earlier.raw
        link = self._link(st, path) if st.st_nlink > 1 else None
        links = st.st_nlink if link is not None else None
        user, group = user_name(st.st_uid), group_name(st.st_gid)
        atime = st.st_atime_ns if self._with_atime else None
        if node.xattrs is not None:
            self.with_xattrs += 1
        # Owners and mode as they are seen from here, another user namespace say, which changes no time of a file.
        uid, gid, mode = st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)
        now = (link, links, user, group, atime, uid, gid, mode)
        if (node.link, node.links, node.user, node.group, node.atime, node.uid, node.gid, node.mode) != now:
            node = replace(
                node, link=link, links=links, user=user, group=group, atime=atime, uid=uid, gid=gid, mode=mode
            )
            raw = None
        return Taken(node, raw, "unchanged")

    def _read(self, fd: int, name: bytes, path: bytes, st: Status) -> Node:
        """Read a file; once more if it changed meanwhile; flagged if it changed again."""
        link = self._link(st, path) if st.st_nlink > 1 else None
        known = self._links.get(_stamp(st)) if link is not None else None
        content, now = known or (None, time.time_ns())
        changed = 0
        if content is None:
            content = self._reader.file(fd, st)
            after = os.fstat(fd)
            if _stamp(after) != _stamp(st):
                if not stat.S_ISREG(after.st_mode):
                    raise OSError(0, "became something else while it was read")
                os.lseek(fd, 0, os.SEEK_SET)
                st, now = after, time.time_ns()
                content = self._reader.file(fd, st)
                if _stamp(os.fstat(fd)) != _stamp(st):
                    changed = WRITTEN_MEANWHILE
                    self._report(SourceError(path, "changed while it was read, twice: stored as it was read"))
            if link is not None and not changed:
                self._links[_stamp(st)] = content, now
                if len(self._links) > _LINKS:
                    self._links.popitem(last=False)
        if not changed and self._ticks.may_repeat(st, now):
            changed = AGAIN
        return make_node(
            name, st, with_atime=self._with_atime, link=link, xattrs=self.xattrs(fd, path), changed=changed,
            size=content.size, data=content.data, blobs=content.blobs, root=content.root, holes=content.holes,
        )  # fmt: skip

    def _link(self, st: Status, path: bytes) -> tuple[int, int] | None:
        if st.st_nlink < 2:
            return None
        ordinal = self._ordinals.get(st.st_dev)
        if ordinal is None:
            ordinal = self._ordinals[st.st_dev] = len(self.filesystems)
            self.filesystems.append(path)
        return ordinal, st.st_ino


def _stamp(st: Status) -> tuple[int, ...]:
    # Mode and owners never change without ctime; but a bit of them may have flipped in memory while a large file was read.
    return (
        st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_mode, st.st_uid, st.st_gid
    )  # fmt: skip
