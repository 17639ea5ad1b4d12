"""pyfuse3 <-> view: requests of the kernel, attributes, errnos.

Requests are answered on the event loop if everything needed is in memory, else by a worker thread.  Whatever goes wrong ends
in an errno: in pyfuse3 any exception but FUSEError would end the main loop, and with it the mount.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import stat
import threading
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from snapfs.fs.links import HeldLinks
from snapfs.fs.patience import NotAtHand
from snapfs.fs.view import Directory, Entry, Stale, View
from snapfs.repo.errors import BlobMissing, Damaged, RepositoryError
from snapfs.repo.model import MiB, NodeType

log = logging.getLogger(__name__)

FOREVER = 365 * 86400.0
A_MOMENT = 1.0
"""Seconds for which the kernel may take the folders above the snapshots, and `latest`, for unchanged.  With 0 it asks for
each part of each path again: seven look-ups for every file that `cp -a` copies."""
_AHEAD = 2 * MiB
_AHEAD_TASKS = 8
_WORKERS = 8
_BLOCK = 4096
_FORMATS = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.SYMLINK: stat.S_IFLNK,
    NodeType.CHARACTER: stat.S_IFCHR,
    NodeType.BLOCK: stat.S_IFBLK,
    NodeType.FIFO: stat.S_IFIFO,
    NodeType.SOCKET: stat.S_IFSOCK,
}

P = ParamSpec("P")
T = TypeVar("T")


def _answering(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn every exception into an errno.  Cancellation is none of `Exception` and passes."""

    @functools.wraps(handler)
    async def safe(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Stale:
            raise FUSEError(errno.ESTALE) from None
        except NotADirectoryError:
            raise FUSEError(errno.ENOTDIR) from None
        except Exception as error:
            log.error("%s: input/output error: %s", handler.__name__, _without_names(error))
            raise FUSEError(errno.EIO) from error

    return safe


def _without_names(error: Exception) -> str:
    """What went wrong, in words that name blobs and volumes, never files: the log may outlive the mount."""
    if isinstance(error, Damaged) and not isinstance(error, BlobMissing):
        return f"damaged: {error.where or 'tree'}"
    if isinstance(error, RepositoryError):
        return str(error)
    return "".join([type(error).__name__, "\n", *traceback.format_tb(error.__traceback__)]).rstrip()


@dataclass
class _OpenFile:
    entry: Entry
    next: int = 0
    """Where the last read ended."""
    ahead: int = 0
    """Up to where content was asked for ahead of the reader."""


class Snapfs(pyfuse3.Operations):
    """The request handlers.  `start` must be called on the event loop before the first request."""

    supports_dot_lookup = False

    def __init__(self, view: View, *, owner_root: bool = False, enable_acl: bool = False) -> None:
        self.enable_acl = enable_acl
        self._view = view
        self._owner_root = owner_root
        self._links = HeldLinks()
        self._handles = itertools.count(1)
        self._files: dict[int, _OpenFile] = {}
        self._directories: dict[int, Directory] = {}
        self._nursery: trio.Nursery | None = None
        self._workers = trio.CapacityLimiter(_WORKERS)
        self._ahead = trio.CapacityLimiter(2)
        self._at_work = 0

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._view.blobs.loop_thread = threading.get_ident()

    def busy(self) -> bool:
        """Whether worker threads are on their way to an answer."""
        return self._at_work > 0

    async def _ask(self, question: Callable[..., T], *args: Any) -> T:
        try:
            return question(*args)
        except NotAtHand:
            return await self._in_thread(self._workers, question, *args)

    async def _in_thread(self, limiter: trio.CapacityLimiter, work: Callable[..., T], *args: Any) -> T:
        self._at_work += 1
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=limiter)
        finally:
            self._at_work -= 1

    # ---- names and attributes ------------------------------------------------------------------------------------

    @_answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = self._links.inode(parent_inode)
        entry = await self._ask(self._view.lookup, parent, name)
        lasting = self._view.is_lasting(parent)
        if entry is None:
            nothing = EntryAttributes()
            nothing.entry_timeout = (
                FOREVER if lasting else 0
            )  # a new snapshot is there as soon as somebody asks for it
            return nothing
        timeout = FOREVER if lasting else A_MOMENT
        shown = self._links.shown(entry)
        attributes = self._attributes(entry, shown, timeout)
        self._links.hold(shown, entry)
        return attributes

    @_answering
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._entry(inode), inode, 0)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._links.forget(inode_list)

    @_answering
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        node = (await self._entry(inode)).node
        if node.type != NodeType.SYMLINK:
            raise FUSEError(errno.EINVAL)
        return node.data or b""

    async def _entry(self, inode: int) -> Entry:
        return await self._ask(self._view.entry, self._links.inode(inode))

    def _attributes(self, entry: Entry, shown: int, entry_timeout: float) -> EntryAttributes:
        node, to = entry.node, EntryAttributes()
        to.st_ino = shown
        to.entry_timeout = entry_timeout
        to.attr_timeout = FOREVER if entry.lasting else A_MOMENT
        to.st_mode = _FORMATS[NodeType(node.type)] | node.mode & 0o7777
        if not self._owner_root:
            to.st_uid = node.uid
            to.st_gid = node.gid
        to.st_mtime_ns = node.mtime
        to.st_ctime_ns = node.ctime
        to.st_atime_ns = node.mtime if node.atime is None else node.atime
        if node.link is not None and not node.is_dir:
            to.st_nlink = max(node.links or 0, 2)
        if node.is_file:
            size = node.size or 0
            to.st_size = size
            in_holes = 0 if node.holes is None else node.holes.total
            to.st_blocks = -(-max(size - in_holes, 0) // _BLOCK) * (_BLOCK // 512)
        elif node.is_dir:
            to.st_size = _BLOCK
        elif node.type == NodeType.SYMLINK:
            to.st_size = len(node.data or b"")
        elif node.device is not None:
            to.st_rdev = os.makedev(*node.device)
        return to

    @_answering
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        node = (await self._entry(inode)).node
        if node.xattrs is None:
            raise FUSEError(pyfuse3.ENOATTR)
        value = await self._ask(self._view.xattr, node, name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @_answering
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return [attribute.name for attribute in (await self._entry(inode)).node.xattrs or ()]

    @_answering
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        size, nodes = await self._ask(self._view.totals)
        to = StatvfsData()
        to.f_bsize = to.f_frsize = _BLOCK
        to.f_blocks = -(-size // _BLOCK)
        to.f_files = nodes
        to.f_namemax = 255
        return to

    # ---- directories ---------------------------------------------------------------------------------------------

    @_answering
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        directory = await self._ask(self._view.directory, inode)
        handle = next(self._handles)
        self._directories[handle] = directory
        return handle

    @_answering
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
        first = max(start_id - 2, 0)
        for ordinal in itertools.count(first):
            try:
                found = await self._ask(directory.peek, ordinal)
            except Exception:
                if ordinal > first:
                    return  # the kernel gets what there is, asks for more, and meets the error then
                raise
            if found is None:
                return
            name, entry = found
            shown = self._links.shown(entry)
            if not pyfuse3.readdir_reply(token, name, self._attributes(entry, shown, timeout), ordinal + 3):
                return
            self._links.hold(shown, entry)

    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    # ---- files ---------------------------------------------------------------------------------------------------

    @_answering
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise FUSEError(errno.EROFS)
        entry = await self._entry(inode)
        if not entry.node.is_file:
            raise FUSEError(errno.EINVAL)
        handle = next(self._handles)
        self._files[handle] = _OpenFile(entry)
        return FileInfo(fh=handle, keep_cache=True)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._files[fh]
        node = file.entry.node
        try:
            data = self._view.read(node, off, size)
        except NotAtHand:
            data = await self._in_thread(self._workers, self._view.read, node, off, size)
            if off == 0 and len(data) == node.size:
                self._in_background(self._view.load_after, file.entry.inode)
        end = off + len(data)
        if off == file.next and off:
            self._read_ahead(file, end)
        file.next = end
        return data

    def _read_ahead(self, file: _OpenFile, end: int) -> None:
        """One who reads in sequence has the next content loaded by a worker in the meantime."""
        file.ahead = max(file.ahead, end)
        if file.ahead <= end + _AHEAD // 2 and file.ahead < (file.entry.node.size or 0):
            start, file.ahead = file.ahead, end + _AHEAD
            self._in_background(self._view.load, file.entry.node, start, file.ahead - start)

    def _in_background(self, work: Callable[..., None], *args: Any) -> None:
        if (
            self._nursery is not None
            and self._ahead.borrowed_tokens + self._ahead.statistics().tasks_waiting < _AHEAD_TASKS
        ):
            self._nursery.start_soon(self._load_ahead, work, *args)

    async def _load_ahead(self, work: Callable[..., None], *args: Any) -> None:
        try:
            await self._in_thread(self._ahead, work, *args)
        except Exception as error:  # noqa: BLE001
            # The read that needs it will meet the same error and report it.
            log.debug("read-ahead: %s", _without_names(error))

    async def release(self, fh: int) -> None:
        self._files.pop(fh, None)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # the kernel then never asks again


async def _refuse(self: Snapfs, *args: object) -> None:
    raise FUSEError(errno.EROFS)


for _name in ("setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write",
              "setxattr", "removexattr"):  # fmt: skip
    setattr(Snapfs, _name, _refuse)
