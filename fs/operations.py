"""pyfuse3 <-> view: the requests of the kernel.

They are answered on the event loop if everything needed is in memory, else by a worker thread.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from snapfs.fs.ahead import OpenFile, ReadAhead
from snapfs.fs.answers import answering, unanswered
from snapfs.fs.attributes import A_MOMENT, BLOCK, FOREVER, attributes, nothing
from snapfs.fs.entry import Directory, Entry
from snapfs.fs.giving import Giving
from snapfs.fs.links import HeldLinks
from snapfs.fs.patience import NotAtHand
from snapfs.fs.view import View
from snapfs.repo.model import NodeType

_WORKERS = 8

T = TypeVar("T")


class Snapfs(pyfuse3.Operations):
    """The request handlers.  `start` must be called on the event loop before the first request."""

    supports_dot_lookup = False

    def __init__(
        self, view: View, *, owner_root: bool = False, enable_acl: bool = False, no_xattrs: bool = False
    ) -> None:
        self.enable_acl = enable_acl
        self._no_xattrs = no_xattrs
        self._view = view
        self._owner_root = owner_root
        self._links = HeldLinks()
        self._handles = itertools.count(1)
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, Directory] = {}
        self._read_ahead: ReadAhead | None = None
        self._giving = Giving(view)
        self._workers = trio.CapacityLimiter(_WORKERS)
        self._at_work = 0

    def start(self, nursery: trio.Nursery) -> None:
        self._read_ahead = ReadAhead(self._view, nursery)
        self._view.blobs.loop_thread = threading.get_ident()

    def busy(self) -> bool:
        """Whether worker threads are on their way to an answer.  Those that read ahead do not count: nobody waits for them."""
        return self._at_work > 0

    async def _ask(self, question: Callable[..., T], *args: Any) -> T:
        try:
            return question(*args)
        except NotAtHand:
            return await self._in_thread(question, *args)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        self._at_work += 1
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=self._workers)
        finally:
            self._at_work -= 1

    # ---- names and attributes ------------------------------------------------------------------------------------

    @answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._links.inode(parent_inode)
        entry = await self._ask(self._view.lookup, parent, name)
        lasting = self._view.is_lasting(parent)
        if entry is None:
            return nothing(
                FOREVER if lasting else 0
            )  # a new snapshot is there as soon as somebody asks for it
        shown = self._links.shown(entry)
        answer = self._attributes(entry, shown, FOREVER if lasting else A_MOMENT)
        self._links.hold(shown, entry)
        return answer

    @answering
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._entry(inode), inode, 0)

    @unanswered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._links.forget(inode_list)

    @answering
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        node = (await self._entry(inode)).node
        if node.type != NodeType.SYMLINK:
            raise FUSEError(errno.EINVAL)
        return node.data or b""

    async def _entry(self, inode: int) -> Entry:
        try:
            return self._view.entry(self._links.inode(inode))
        except NotAtHand:
            return await self._in_thread(self._view.entry, self._links.inode(inode))

    def _attributes(self, entry: Entry, shown: int, name_timeout: float) -> EntryAttributes:
        return attributes(entry, shown, name_timeout, self._owner_root)

    @answering
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if self._no_xattrs:
            raise FUSEError(errno.ENOSYS)  # the kernel then never asks again
        node = (await self._entry(inode)).node
        if node.xattrs is None:
            raise FUSEError(pyfuse3.ENOATTR)
        value = await self._ask(self._view.xattr, node, name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @answering
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if self._no_xattrs:
            raise FUSEError(errno.ENOSYS)
        names = (attribute.name for attribute in (await self._entry(inode)).node.xattrs or ())
        # As other file systems do: the kernel lets no one else read them, and `rsync -X` fails on a name without a value.
        return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]

    @answering
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        size, nodes = await self._ask(self._view.totals)
        to = StatvfsData()
        to.f_bsize = to.f_frsize = BLOCK
        to.f_blocks = -(-size // BLOCK)
        to.f_files = nodes
        to.f_namemax = 255
        return to

    # ---- directories ---------------------------------------------------------------------------------------------

    @answering
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        directory = await self._ask(self._view.directory, inode)
        handle = next(self._handles)
        self._directories[handle] = directory
        return handle

    @answering
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """The position after `.` is 1, after `..` 2, after the n-th entry n + 3: valid whatever is dropped from memory."""
        directory = self._directories[fh]
        inode = directory.entry.inode
        if start_id < 2:
            here = self._attributes(directory.entry, inode, 0)
            for position, name in ((1, b"."), (2, b"..")):
                if start_id < position and not pyfuse3.readdir_reply(token, name, here, position):
                    return
        timeout = FOREVER if self._view.is_lasting(inode) else A_MOMENT
        first = at = max(start_id - 2, 0)
        while True:
            try:
                run = await self._ask(directory.run, at)
            except Exception:
                if at > first:
                    return  # the kernel gets what there is, asks for more, and meets the error then
                raise
            if not run:
                return
            for name, entry in run:
                shown = self._links.shown(entry)
                answer = attributes(entry, shown, timeout, self._owner_root)
                if not pyfuse3.readdir_reply(token, name, answer, at + 3):
                    return
                self._links.hold(shown, entry)
                at += 1

    @unanswered
    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    # ---- files ---------------------------------------------------------------------------------------------------

    @answering
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise FUSEError(errno.EROFS)
        entry = await self._entry(inode)
        if not entry.node.is_file:
            raise FUSEError(errno.EINVAL)
        handle = next(self._handles)
        file = self._files[handle] = OpenFile(entry)
        if self._giving.opened(handle, inode, entry) and self._read_ahead is not None:
            self._read_ahead.was_read(file, 0, entry.node.size or 0, waited=False)
        return FileInfo(fh=handle, keep_cache=True)

    @answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file, waited = self._files[fh], False
        node = file.entry.node
        try:
            data = self._view.read(node, off, size)
        except NotAtHand:
            data, waited = await self._in_thread(self._view.read, node, off, size), True
        if self._read_ahead is not None:
            self._read_ahead.was_read(file, off, off + len(data), waited=waited)
        return data

    @unanswered
    async def release(self, fh: int) -> None:
        file = self._files.pop(fh, None)
        if file is None:
            return
        self._giving.closed(fh)
        if self._read_ahead is not None:
            self._read_ahead.closed(file)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # the kernel then never asks again


async def _refuse(self: Snapfs, *args: object) -> None:
    raise FUSEError(errno.EROFS)


for _name in ("setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write",
              "setxattr", "removexattr"):  # fmt: skip
    setattr(Snapfs, _name, _refuse)
