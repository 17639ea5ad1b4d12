"""The folders above the snapshots as entries: their inodes, and seeing which snapshots there are now.

What they hold is layout.py's subject.  A snapshot in them is entered by the view.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from snapfs.fs.entry import ROOT, Directory, Entry, Run, Stale
from snapfs.fs.layout import Folder, arrange
from snapfs.repo.model import Node, NodeType
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot

Path = tuple[bytes, ...]
_RELOAD_SECONDS = 1.0
_LOOK_SECONDS = 0.01
"""Less than a backup needs to end after its snapshot is there: whoever waited for it sees it."""


class Folders:
    """Use from any thread.  Methods raise Stale, RepositoryError, and whatever `must_not_wait` does before one that reads."""

    def __init__(
        self,
        repository: Repository,
        select: Callable[[StoredSnapshot], bool] | None,
        enter: Callable[[Path, StoredSnapshot], Entry],
        must_not_wait: Callable[[], None],
    ) -> None:
        """`enter`: the root of a snapshot that is shown in a folder."""
        self._repository = repository
        self._select = select
        self._enter = enter
        self._must_not_wait = must_not_wait
        self._started = time.time_ns()
        self._lock = threading.Lock()
        self._reloading = threading.Lock()
        self._paths: list[Path] = [()]
        """Of the folders and links; their inode is the position here plus ROOT."""
        self._inodes: dict[Path, int] = {(): ROOT}
        self._top = Folder()
        self._entries: dict[int, Entry] = {}
        """What was asked for since `_top` was arranged: `cp -a` through `latest` asks where it leads twice a file."""
        self._shown: Sequence[StoredSnapshot] | None = None
        self._reload_after = 0.0
        self._look_after = 0.0

    def entry(self, inode: int) -> Entry:
        self._reload()
        entry = self._entries.get(inode)
        if entry is None:
            path, entries = self._path_of(inode), self._entries
            entry = entries[inode] = self._entry(path, self._at(path))
        return entry

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        path = self._path_of(parent)
        here = self._at(path)
        child = here.entries.get(name) if isinstance(here, Folder) else None
        return None if child is None else self._entry((*path, name), child)

    def directory(self, inode: int) -> Directory:
        """Raises NotADirectoryError."""
        path = self._path_of(inode)
        folder = self._at(path)
        if not isinstance(folder, Folder):
            raise NotADirectoryError
        names = list(folder.entries.items())

        def runs(start: int) -> Iterator[Run]:
            if start < len(names):
                yield [(name, self._entry((*path, name), child)) for name, child in names[start:]]

        return Directory(self._entry(path, folder), runs)

    def _path_of(self, inode: int) -> Path:
        if not ROOT <= inode < ROOT + len(self._paths):
            raise Stale
        return self._paths[inode - ROOT]

    def _at(self, path: Path) -> Folder | StoredSnapshot | bytes:
        self._reload()
        here: Folder | StoredSnapshot | bytes = self._top
        for name in path:
            child = here.entries.get(name) if isinstance(here, Folder) else None
            if child is None:
                raise Stale
            here = child
        return here

    def _entry(self, path: Path, what: Folder | StoredSnapshot | bytes) -> Entry:
        if isinstance(what, StoredSnapshot):
            return self._enter(path[:-1], what)
        with self._lock:
            inode = self._inodes.get(path)
            if inode is None:
                self._paths.append(path)
                inode = self._inodes[path] = ROOT + len(self._paths) - 1
        name = path[-1] if path else b""
        owner = os.getuid(), os.getgid(), None, None
        if isinstance(what, bytes):
            node = Node(name, NodeType.SYMLINK, 0o777, *owner, self._started, self._started, data=what)
        else:
            changed = what.time or self._started
            node = Node(name, NodeType.DIRECTORY, 0o555, *owner, changed, changed)
        return Entry(inode, node, False)

    def _reload(self) -> None:
        """See which snapshots there are now, if the folder of events looks different, and once a second in any case."""
        now = time.monotonic()
        if now < self._look_after:
            return
        events = self._repository.events
        if now < self._reload_after and not events.may_have_changed():
            self._look_after = now + _LOOK_SECONDS
            return
        self._must_not_wait()
        with self._reloading:
            if time.monotonic() < self._reload_after and not events.may_have_changed():
                return
            shown = self._repository.snapshots()
            if shown is not self._shown:
                self._top = arrange([s for s in shown if self._select is None or self._select(s)])
                self._entries = {}
                self._shown = shown
            self._reload_after = time.monotonic() + _RELOAD_SECONDS
