"""Looks at what comes next in a directory: many entries at once, what is left out, what is unchanged, what small files hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from snapfs.repo.backup import _reading as reading
from snapfs.repo.backup.entries import SMALL_BYTES, EntryReader
from snapfs.repo.backup.files import FileReader, Status
from snapfs.repo.backup.level import LOOK, Counts, Level, Seen
from snapfs.repo.backup.nodes import reason
from snapfs.repo.backup.patterns import Excludes
from snapfs.repo.backup.sources import Branching
from snapfs.repo.errors import RepositoryError
from snapfs.repo.progress import Progress


class Lookahead:
    """`failed` is told (path, why) of what cannot be looked at; `passing`: unchanged files may be passed by a page at a time."""

    def __init__(self, entries: EntryReader, reader: FileReader, excludes: Excludes, counts: Counts, progress: Progress,
                 failed: Callable[[bytes, str], None], passing: bool) -> None:  # fmt: skip
        self._entries = entries
        self._reader = reader
        self._excludes = excludes
        self._counts = counts
        self._progress = progress
        self._failed = failed
        self._passing = passing

    def at_next(self, level: Level) -> None:
        """Look at the next entries, up to a directory, and read small files among them.

        Not further than a directory: when its turn is over, what was seen of the names behind it could be hours old.
        """
        if level.below is not None:
            self._one(level, level.below)
            return
        if not level.looked:
            names = level.names[level.next : level.next + LOOK]
            level.statuses = reading.look(level.fd, names)
            level.looked = names[: len(level.statuses)]
            level.next += len(level.looked)
            if self._excludes:
                self._drop_excluded(level)
        count = self._pass_unchanged(level) if self._passing else 0
        small: list[Seen] = []
        sizes: list[reading.Status] = []
        size = 0
        for name, st in zip(level.looked[count:], level.statuses[count:], strict=True):
            count += 1
            path = level.path + b"/" + name
            if isinstance(st, int):
                self._failed(path, os.strerror(st))
                continue
            seen = Seen(name, path, st, level.earlier.take(name))
            level.seen.append(seen)
            if not stat.S_ISREG(st.st_mode):
                continue
            seen.same = self._entries.unchanged(st, seen.was)
            if seen.same is None and st.st_nlink == 1 and self._reader.is_small(st):
                size += st.st_size
                if size > SMALL_BYTES:
                    break
                small.append(seen)
                sizes.append(st)
        del level.looked[:count], level.statuses[:count]
        if small:
            read = self._entries.read_small(level.fd, [s.name for s in small], sizes)
            for seen, seen.read in zip(small, read, strict=True):  # noqa: B007
                pass

    def _drop_excluded(self, level: Level) -> None:
        """Drop what is excluded from what was looked at."""
        looked = zip(level.looked, level.statuses, strict=True)
        level.looked, level.statuses = [], []
        for name, st in looked:
            path = level.path + b"/" + name
            if not isinstance(st, int) and self._left_out(level, name, path, st, stat.S_ISDIR(st.st_mode)):
                self._progress.item(path, "excluded")
            else:
                level.looked.append(name)
                level.statuses.append(st)

    def _pass_unchanged(self, level: Level) -> int:
        """Keep the first entries, as many as are unchanged files, without another look at each; returns how many."""
        earlier = level.earlier.only
        if earlier is None or not level.writer.keep(earlier.ordinal, 0):
            return 0
        ordinal = earlier.ordinal
        try:
            count, size, with_xattrs = earlier.pass_unchanged(level.looked, level.statuses)
        except RepositoryError:  # take() meets it, too
            return 0
        level.writer.keep(ordinal, count)
        self._entries.with_xattrs += with_xattrs
        self._counts.files["unchanged"] += count
        self._counts.reached |= count > 0
        self._progress.advance(count, size)
        if self._progress.wants_unchanged:
            for name, st in zip(level.looked[:count], level.statuses[:count], strict=True):
                self._progress.item(level.path + b"/" + name, "unchanged", st.st_size)  # type: ignore[union-attr]
        return count

    def _one(self, level: Level, below: Branching) -> None:
        """One name, where something below was named.  On the way to a source links are followed."""
        name = level.names[level.next]
        level.next += 1
        path, named = level.path + b"/" + name, below.names.get(name)
        whole = named is not None and named.whole
        within = level.within or whole
        try:
            st = os.stat(name, dir_fd=level.fd, follow_symlinks=not within)
        except OSError as error:
            self._failed(path, reason(error))
            return
        if (
            level.within
            and not whole
            and self._excludes
            and self._left_out(level, name, path, st, stat.S_ISDIR(st.st_mode))
        ):
            if named is None:
                self._progress.item(path, "excluded")
                return
            within = False  # kept only for what was named below it
        seen = Seen(name, path, st, level.earlier.take(name))
        seen.within = within
        if stat.S_ISREG(st.st_mode):
            seen.same = self._entries.unchanged(st, seen.was)
        level.seen.append(seen)

    def _left_out(self, level: Level, name: bytes, path: bytes, st: Status, is_dir: bool) -> bool:
        return (
            self._excludes.excluded(path, is_dir)
            or (level.rules is not None and level.rules.excluded(name, is_dir))
            or (stat.S_ISREG(st.st_mode) and self._excludes.too_large(st.st_size))
        )
