"""Walks the sources depth-first, names in ascending order, and writes each directory when its last entry is done.

Held at any moment: for each open directory its sorted names, one unfinished page a level, and its place in the earlier
snapshots.  Directories are opened relative to their parents and never through a symbolic link.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from snapfs.repo.backup.entries import EntryReader
from snapfs.repo.backup.files import FileReader, Interruption, Status
from snapfs.repo.backup.level import Counts, Level, Seen
from snapfs.repo.backup.lookahead import Lookahead
from snapfs.repo.backup.nodes import make_node, reason
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.backup.parents import Earlier, EarlierDirectory, KeepingWriter
from snapfs.repo.backup.patterns import DirectoryRules
from snapfs.repo.backup.sources import Branching, Protected
from snapfs.repo.errors import SourceError
from snapfs.repo.format import labels as L
from snapfs.repo.model import Node
from snapfs.repo.packing import Putter
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository


class Walker:
    """One walk."""

    def __init__(self, repository: Repository, options: BackupOptions, writer: Putter, reader: FileReader,
                 progress: Progress, checkpoint: Callable[[], None], trusting: bool = False) -> None:  # fmt: skip
        """`trusting`: there is one earlier snapshot, and every blob of it is known to be there."""
        self._repository = repository
        self._options = options
        self._reader = reader
        self._progress = progress
        self._checkpoint = checkpoint
        self._checkpoint_at = time.monotonic() + options.checkpoint_seconds
        self._excludes = options.excludes
        self._protected = Protected(repository)
        self._stack: list[Level] = []
        self.entries = EntryReader(
            writer, reader, repository.contents, self._report, options.with_atime, trusting
        )
        self._trusting = trusting
        self.counts = Counts()
        self._lookahead = Lookahead(
            self.entries, reader, options.excludes, self.counts, progress, self._failed,
            passing=trusting and not options.with_atime,
        )  # fmt: skip
        self.errors = 0
        self.changed = False
        """A source is not what it was, metadata and all; the folders above do not count."""

    # ---- whole trees ---------------------------------------------------------------------------------------------

    def tree(self, top: Branching, earlier: Sequence[Node]) -> Node:
        """Walk from "/" along the sources' paths; returns the root's Node."""
        st = os.stat("/")
        root = make_node(b"", st, with_atime=self._options.with_atime)
        self._enter(
            os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            b"",
            root,
            top,
            top.whole,
            st.st_dev,
            None,
            earlier,
        )
        try:
            while True:
                level = self._stack[-1]
                if level.seen:
                    try:
                        self._entry(level, level.seen.popleft())
                    except Interruption:
                        pass  # amid a file, which the checkpoint does without
                    if self._progress.interrupted or time.monotonic() > self._checkpoint_at:
                        self._pause()
                elif level.looked or level.next < len(level.names):
                    self._lookahead.at_next(level)
                    if self._progress.interrupted:
                        self._pause()
                else:
                    node = self._leave()
                    if not self._stack:
                        return node
        finally:
            for level in self._stack:
                os.close(level.fd)

    def so_far(self) -> Node | None:
        """The root's Node as if every open directory ended here: a checkpoint's."""
        child: Node | None = None
        for level in reversed(self._stack):
            level.verify()
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

    def _enter(self, fd: int, path: bytes, node: Node, below: Branching | None, within: bool, device: int,
               rules: DirectoryRules | None, earlier: Sequence[Node]) -> None:  # fmt: skip
        named = below.names.keys() if below is not None else ()
        names = list(named)
        if within:
            try:
                names = [os.fsencode(name) for name in os.listdir(fd)]
            except OSError as error:
                self._failed(path, f"cannot be listed: {reason(error)}")
                names = []
            if self._excludes:
                rules = self._excludes.directory(fd, path, names, rules)
                if rules.keep_only is not None:
                    names = [name for name in names if name in rules.keep_only]
            if named:  # one that is not there is an error, as for any path that was named
                names = list({*names, *named})
            self.counts.reached = True
        names.sort()
        beside = EarlierDirectory(self._repository.blobs, earlier)
        writer = KeepingWriter(
            self.entries.put,
            self._repository.keys.page,
            self._repository.blobs,
            beside if self._trusting else None,
        )
        level = Level(fd, path, node, names, below if named else None, rules, device, writer, beside)
        level.within = within
        level.source = below is not None and below.whole
        self._stack.append(level)

    def _leave(self) -> Node:
        level = self._stack.pop()
        os.close(level.fd)
        level.verify()
        root, below = level.writer.finish()
        node = replace(level.node, root=root, below=below)
        if self._stack:
            raw = level.was[0].raw if level.was and level.was[0].node == node else None
            self._add(self._stack[-1], node, raw, level.was)
            action = "unchanged" if raw is not None else "changed" if level.was else "new"
            self.counts.directories += 1
            self.counts.dirs[action] += 1
            self.changed |= level.source and raw is None
            self._progress.item(level.path, action)
        return node

    def _directory(self, level: Level, name: bytes, path: bytes, st: Status, below: Branching | None, within: bool,
                   was: list[Earlier]) -> None:  # fmt: skip
        why = self._protected.reason(st)
        if why is not None:
            self._progress.notice(f"{path.decode('utf-8', 'backslashreplace')}: left out, it is {why}")
            return
        if len(self._stack) >= L.DEPTH_LIMIT:
            self._failed(path, f"more than {L.DEPTH_LIMIT:,} folders within one another")
            return
        whole = below is not None and below.whole
        try:
            if not (level.within or whole):
                # On the way to a source a link is followed: what is stored is the directory the path goes through.
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=level.fd)
            else:
                fd = self.entries.open(level.fd, name, st.st_uid, os.O_DIRECTORY)
        except OSError as error:
            self._failed(path, f"cannot be opened: {reason(error)}")
            return
        try:
            node, st = self.entries.directory(name, fd, path)
        except BaseException:
            os.close(fd)
            raise
        device = level.device if level.within and not whole else st.st_dev
        if self._options.one_file_system and st.st_dev != device:
            within = False  # a mount point is kept, what is mounted there is not, unless it was named
        rules = level.rules if level.within else None
        self._enter(fd, path, node, below, within, device, rules, [e.node for e in was])
        self._stack[-1].was = was

    # ---- entries -------------------------------------------------------------------------------------------------

    def _entry(self, level: Level, seen: Seen) -> None:
        name, path, st, was = seen.name, seen.path, seen.st, seen.was
        below = level.below.names.get(name) if level.below is not None else None
        if stat.S_ISDIR(st.st_mode):
            self._directory(level, name, path, st, below, seen.within, was)
            return
        if below is not None and below.names:
            self._failed(path, "is not a folder")  # and the paths that were named below it are not there
            if not seen.within:
                return
        try:
            if not stat.S_ISREG(st.st_mode):
                node, raw, action = self.entries.other(level.fd, name, path, st, was)
            else:
                if seen.same is not None:
                    node, raw, action = self.entries.reuse(path, st, seen.same)
                elif seen.read is not None:
                    node, raw, action = self.entries.small(name, seen.read, was)
                else:
                    node, raw, action = self.entries.file(level.fd, name, path, st, was)
                self.counts.files[action] += 1
        except OSError as error:
            self._failed(path, reason(error))
            return
        self.counts.reached = True
        self.changed |= below is not None and below.whole and raw is None
        self._add(level, node, raw, was)
        if node.is_file:
            # What was read has been told.
            self._progress.advance(1, st.st_size if action == "unchanged" else 0)
        self._progress.item(path, action, node.size or 0)

    def _add(self, level: Level, node: Node, raw: bytes | None, was: list[Earlier]) -> None:
        """`raw`: the encoding that the earlier snapshot has of it."""
        if raw is None or not level.writer.keep(was[0].ordinal):
            level.writer.add(node, raw)

    def _failed(self, path: bytes, why: str) -> None:
        self._report(SourceError(path, why))

    def _report(self, error: SourceError) -> None:
        self.errors += 1
        self.changed = True
        self._progress.error(error)
