"""Walks the sources depth-first, names in ascending order, and writes each directory when its last entry is done.

Held at any moment: for each open directory its sorted names, one unfinished page a level, and its place in the earlier
snapshots.  Directories are opened relative to their parents and never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from msgspec.structs import replace

from snapfs.repo.backup.files import Content, FileReader
from snapfs.repo.backup.nodes import by_descriptor, make_node, read_xattrs, reason
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.backup.parents import Earlier, EarlierDirectory
from snapfs.repo.backup.patterns import DirectoryRules
from snapfs.repo.backup.sources import Branching, Protected
from snapfs.repo.errors import SourceError
from snapfs.repo.model import BlobId, Kind, Node, NodeType
from snapfs.repo.packing import Putter
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.trees import DirectoryWriter

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LINKS = 4096
"""Hard-linked files whose content is remembered, so that another name of one is not read again."""


@dataclass
class Counts:
    directories: int = 0
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs_new: int = 0
    dirs_changed: int = 0
    dirs_unmodified: int = 0


class _Level:
    """A directory that is being walked."""

    def __init__(self, fd: int, path: bytes, node: Node, names: list[bytes], below: Branching | None,
                 rules: DirectoryRules | None, device: int, writer: DirectoryWriter, earlier: EarlierDirectory) -> None:  # fmt: skip
        self.fd = fd
        self.path = path
        """Without a slash at the end: the top is b""."""
        self.node = node
        self.names = names
        self.next = 0
        self.below = below
        """The names that count here, on the way to the sources; None within a source."""
        self.rules = rules
        self.device = device
        self.writer = writer
        self.earlier = earlier
        self.was: list[Earlier] = []


class Walker:
    """One walk.  `reached`: at least one source could be read."""

    def __init__(self, repository: Repository, options: BackupOptions, writer: Putter, reader: FileReader,
                 progress: Progress, checkpoint: Callable[[], None]) -> None:  # fmt: skip
        self._repository = repository
        self._options = options
        self._writer = writer
        self._reader = reader
        self._progress = progress
        self._checkpoint = checkpoint
        self._checkpoint_at = time.monotonic() + options.checkpoint_seconds
        self._excludes = options.excludes
        self._protected = Protected(repository)
        self._stack: list[_Level] = []
        self._links: OrderedDict[tuple[int, int], Content] = OrderedDict()
        self._ordinals: dict[int, int] = {}
        self._euid = os.geteuid()
        self.filesystems: list[bytes] = []
        self.counts = Counts()
        self.errors = 0
        self.with_xattrs = 0
        self.reached = False

    # ---- whole trees ---------------------------------------------------------------------------------------------

    def tree(self, top: Branching, earlier: Sequence[Node]) -> Node:
        """Walk from "/" along the sources' paths; returns the root's Node."""
        st = os.stat("/")
        root = replace(make_node(b"", st, with_atime=self._options.with_atime), root=None)
        self._enter(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), b"", root, top, st.st_dev, None, earlier)
        try:
            while True:
                level = self._stack[-1]
                if level.next < len(level.names):
                    name = level.names[level.next]
                    level.next += 1
                    self._entry(level, name)
                    if self._progress.interrupted or time.monotonic() > self._checkpoint_at:
                        self._pause()
                    continue
                node = self._leave()
                if not self._stack:
                    return node
        finally:
            for level in self._stack:
                os.close(level.fd)

    def stream(self, path: bytes, stream: BinaryIO) -> Node:
        """A snapshot of one file, read from a pipe, below directories that are made up."""
        now = self._options.time or self._repository.system.now()
        uid, gid = os.geteuid(), os.getegid()
        content = self._reader.stream(stream, uid)
        parts = path.strip(b"/").split(b"/")
        node = Node(parts[-1], NodeType.FILE, 0o600, uid, gid, self._options.user, None, now, now)
        node = _with_content(node, content)
        for name in [*reversed(parts[:-1]), b""]:
            writer = DirectoryWriter(self._put, self._repository.keys.page)
            writer.add(node)
            root, below = writer.finish()
            node = Node(name, NodeType.DIRECTORY, 0o755, uid, gid, self._options.user, None, now, now, root=root, below=below)
        self.reached = True
        self.counts.files_new += 1
        self.counts.directories = len(parts) - 1
        return node

    def so_far(self) -> Node | None:
        """The root's Node as if every open directory ended here: a checkpoint's."""
        child: Node | None = None
        for level in reversed(self._stack):
            writer = level.writer.clone()
            if child is not None:
                writer.add(child)
            root, below = writer.finish()
            child = replace(level.node, root=root, below=below)
        return child

    def _pause(self) -> None:
        self._checkpoint()
        if self._progress.interrupted:
            raise KeyboardInterrupt
        self._checkpoint_at = time.monotonic() + self._options.checkpoint_seconds

    # ---- directories ---------------------------------------------------------------------------------------------

    def _enter(self, fd: int, path: bytes, node: Node, below: Branching | None, device: int,
               rules: DirectoryRules | None, earlier: Sequence[Node]) -> None:  # fmt: skip
        if below is not None and not below.whole:
            names = sorted(below.names)
        else:
            below = None
            try:
                names = [os.fsencode(name) for name in os.listdir(fd)]
            except OSError as error:
                self._failed(path, f"cannot be listed: {reason(error)}")
                names = []
            if self._excludes:
                rules = self._excludes.directory(fd, path, names, rules)
                if rules.keep_only is not None:
                    names = [name for name in names if name in rules.keep_only]
            names.sort()
            self.reached = True
        writer = DirectoryWriter(self._put, self._repository.keys.page)
        self._stack.append(
            _Level(fd, path, node, names, below, rules, device, writer, EarlierDirectory(self._repository.blobs, earlier))
        )

    def _leave(self) -> Node:
        level = self._stack.pop()
        os.close(level.fd)
        root, below = level.writer.finish()
        node = replace(level.node, root=root, below=below)
        if self._stack:
            self._count_directory(node, level.was)
            raw = level.was[0].raw if level.was and level.was[0].node == node else None
            self._stack[-1].writer.add(node, raw)
            self._progress.item(level.path, "unchanged" if raw is not None else "changed" if level.was else "new")
        return node

    def _count_directory(self, node: Node, was: list[Earlier]) -> None:
        counts = self.counts
        counts.directories += 1
        if not was or not was[0].node.is_dir:
            counts.dirs_new += 1
        elif was[0].node == node:
            counts.dirs_unmodified += 1
        else:
            counts.dirs_changed += 1

    def _directory(self, level: _Level, name: bytes, path: bytes, st: os.stat_result, below: Branching | None, was: list[Earlier]) -> None:
        why = self._protected.reason(st)
        if why is not None:
            self._progress.notice(f"{path.decode('utf-8', 'backslashreplace')}: left out, it is {why}")
            return
        try:
            if below is not None and not below.whole:
                # On the way to a source a link is followed: what is stored is the directory the path goes through.
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=level.fd)
            else:
                fd = self._open(level.fd, name, st.st_uid, os.O_DIRECTORY)
        except OSError as error:
            self._failed(path, f"cannot be opened: {reason(error)}")
            return
        try:
            st = os.fstat(fd)
            node = make_node(name, st, with_atime=self._options.with_atime)
            node = self._with_xattrs(node, fd, path)
            device = st.st_dev if below is not None else level.device
            other = self._options.one_file_system and below is None and st.st_dev != level.device
        except BaseException:
            os.close(fd)
            raise
        self._enter(fd, path, node, Branching() if other else below, device, level.rules, [e.node for e in was])
        self._stack[-1].was = was

    # ---- entries -------------------------------------------------------------------------------------------------

    def _entry(self, level: _Level, name: bytes) -> None:
        path = level.path + b"/" + name
        below = level.below.names[name] if level.below is not None else None
        try:
            if below is not None and not below.whole:
                st = os.stat(name, dir_fd=level.fd)
            else:
                st = os.lstat(name, dir_fd=level.fd)
        except OSError as error:
            self._failed(path, reason(error))
            return
        is_dir = stat.S_ISDIR(st.st_mode)
        if below is None and self._excludes and self._left_out(level, name, path, st, is_dir):
            self._progress.item(path, "excluded")
            return
        was = level.earlier.take(name)
        if is_dir:
            self._directory(level, name, path, st, below, was)
            return
        if below is not None and not below.whole:
            self._failed(path, "is not a folder")
            return
        self.reached = True
        try:
            if stat.S_ISREG(st.st_mode):
                self._file(level, name, path, st, was)
            else:
                self._other(level, name, path, st, was)
        except OSError as error:
            self._failed(path, reason(error))

    def _left_out(self, level: _Level, name: bytes, path: bytes, st: os.stat_result, is_dir: bool) -> bool:
        return (
            self._excludes.excluded(path, is_dir)
            or (level.rules is not None and level.rules.excluded(name, is_dir))
            or (stat.S_ISREG(st.st_mode) and self._excludes.too_large(st.st_size))
        )

    def _other(self, level: _Level, name: bytes, path: bytes, st: os.stat_result, was: list[Earlier]) -> None:
        node = make_node(name, st, link=self._link(st, path), with_atime=self._options.with_atime)
        if stat.S_ISLNK(st.st_mode):
            node = replace(node, data=os.fsencode(os.readlink(name, dir_fd=level.fd)))
        node = self._with_xattrs(node, by_descriptor(level.fd, name), path)
        same = bool(was) and was[0].node == node
        level.writer.add(node, was[0].raw if same else None)
        self._progress.item(path, "unchanged" if same else "changed" if was else "new")

    def _file(self, level: _Level, name: bytes, path: bytes, st: os.stat_result, was: list[Earlier]) -> None:
        for earlier in was:
            if self._unchanged(earlier.node, st):
                self.counts.files_unmodified += 1
                self._reuse(level, name, path, st, earlier)
                return
        fd = self._open(level.fd, name, st.st_uid)
        try:
            node = self._read(fd, name, path, os.fstat(fd))
        finally:
            os.close(fd)
        level.writer.add(node)
        if was:
            self.counts.files_changed += 1
        else:
            self.counts.files_new += 1
        self._progress.item(path, "changed" if was else "new", node.size or 0)

    def _unchanged(self, earlier: Node, st: os.stat_result) -> bool:
        """The decided rule, and that everything the earlier entry needs is still in the repository."""
        if not (
            earlier.is_file and earlier.mtime == st.st_mtime_ns and earlier.size == st.st_size
            and earlier.ctime == st.st_ctime_ns and not earlier.changed
        ):  # fmt: skip
            return False
        known = self._writer.known
        if earlier.root is None and earlier.xattrs is None and earlier.holes is None:
            return all(blob is None or known(BlobId(blob)) for blob, _ in earlier.blobs or ())
        return all(known(BlobId(blob)) for _, blob in self._repository.contents.blobs(earlier))

    def _reuse(self, level: _Level, name: bytes, path: bytes, st: os.stat_result, earlier: Earlier) -> None:
        node = earlier.node
        fresh = make_node(name, st, link=self._link(st, path), with_atime=self._options.with_atime)
        raw = earlier.raw
        kept = (node.link, node.links, node.user, node.group, node.atime)
        if kept != (fresh.link, fresh.links, fresh.user, fresh.group, fresh.atime):
            node = replace(node, link=fresh.link, links=fresh.links, user=fresh.user, group=fresh.group, atime=fresh.atime)
            raw = None
        if node.xattrs is not None:
            self.with_xattrs += 1
        level.writer.add(node, raw)
        self._progress.advance(0, st.st_size)
        self._progress.item(path, "unchanged", st.st_size)

    def _read(self, fd: int, name: bytes, path: bytes, st: os.stat_result) -> Node:
        """Read a file; once more if it changed meanwhile; flagged if it changed again."""
        if not stat.S_ISREG(st.st_mode):
            raise OSError(0, "changed its type while it was read")
        link = self._link(st, path)
        key = (st.st_dev, st.st_ino)
        content = self._links.get(key) if link is not None else None
        changed = 0
        if content is None:
            content = self._reader.file(fd, st)
            after = os.fstat(fd)
            if _stamp(after) != _stamp(st):
                os.lseek(fd, 0, os.SEEK_SET)
                st = after
                content = self._reader.file(fd, st)
                if _stamp(os.fstat(fd)) != _stamp(st):
                    changed = 1
                    self._failed(path, "changed while it was read, twice: stored as it was read")
            if link is not None and not changed:
                self._links[key] = content
                if len(self._links) > _LINKS:
                    self._links.popitem(last=False)
        node = make_node(name, st, link=link, with_atime=self._options.with_atime)
        return self._with_xattrs(_with_content(replace(node, changed=changed), content), fd, path)

    # ---- small things --------------------------------------------------------------------------------------------

    def _open(self, dir_fd: int, name: bytes, owner: int, more: int = 0) -> int:
        if self._euid in (0, owner):
            with contextlib.suppress(PermissionError):
                return os.open(name, _FLAGS | more | os.O_NOATIME, dir_fd=dir_fd)
        return os.open(name, _FLAGS | more, dir_fd=dir_fd)

    def _with_xattrs(self, node: Node, target: int | str, path: bytes) -> Node:
        xattrs = read_xattrs(target, self._put, path, self._report)
        if xattrs is None:
            return node
        self.with_xattrs += 1
        return replace(node, xattrs=xattrs)

    def _link(self, st: os.stat_result, path: bytes) -> tuple[int, int] | None:
        if st.st_nlink < 2:
            return None
        ordinal = self._ordinals.get(st.st_dev)
        if ordinal is None:
            ordinal = self._ordinals[st.st_dev] = len(self.filesystems)
            self.filesystems.append(path)
        return ordinal, st.st_ino

    def _put(self, kind: Kind, data: bytes) -> BlobId:
        return self._writer.put(kind, data)

    def _failed(self, path: bytes, why: str) -> None:
        self._report(SourceError(path, why))

    def _report(self, error: SourceError) -> None:
        self.errors += 1
        self._progress.error(error)


def _with_content(node: Node, content: Content) -> Node:
    return replace(
        node, size=content.size, data=content.data, blobs=content.blobs, root=content.root, holes=content.holes
    )


def _stamp(st: os.stat_result) -> tuple[int, int, int]:
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns
