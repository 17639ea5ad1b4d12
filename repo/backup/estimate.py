"""How much there is to do: what the parent snapshot had, or, without one and while somebody watches, a count
that runs ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from snapfs.repo.progress import Progress
from snapfs.repo.state import StoredSnapshot

_TELL_EVERY = 1000


class Estimate:
    """Tells `progress` the totals while the block runs."""

    def __init__(self, progress: Progress, paths: Sequence[bytes], parent: StoredSnapshot | None) -> None:
        self._progress = progress
        self._paths = paths
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if parent is not None:
            progress.total(parent.record.totals.files, parent.record.totals.size)
        elif progress.wants_totals:
            self._thread = threading.Thread(target=self._count, name="estimate", daemon=True)

    def __enter__(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _count(self) -> None:
        files = size = 0
        todo = list(self._paths)
        while todo and not self._stop.is_set():
            try:
                with os.scandir(todo.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            files += 1
                            size += entry.stat(follow_symlinks=False).st_size
                        if files % _TELL_EVERY == 0:
                            self._progress.total(files, size)
            except OSError:
                continue
        self._progress.total(files, size)
