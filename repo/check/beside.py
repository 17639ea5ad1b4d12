"""The snapshots' trees, walked in a thread of their own while the volumes are read.

For where other processes read the volumes and this one has nothing else to do (scrubbers.py).  What is found counts only where
the volumes are what the index says and nothing is lost; otherwise the trees are walked again, after the index was corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from snapfs.repo.check.treecheck import TreeCheck

if TYPE_CHECKING:
    from snapfs.repo.index import Index
    from snapfs.repo.state import StoredSnapshot


class WalkBeside:
    """As a block; ends with it at the latest, and sooner than its work where nobody took the result."""

    def __init__(
        self, index: Index, walk: TreeCheck, snapshots: Iterable[StoredSnapshot], *, at_once: bool
    ) -> None:
        """`at_once`: begin with the block, in a thread.  Else each part is done when it is asked for, where nothing is gained."""
        self._index = index
        self._walk = walk
        self._snapshots = snapshots
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trees") if at_once else None
        self._fingerprints: Future[dict[bytes, int]] | None = None
        self._walked: list[Future[None]] = []

    def __enter__(self) -> Self:
        if self._pool is not None:
            self._fingerprints = self._pool.submit(self._index.fingerprints)
            self._walked = [self._pool.submit(self._walk.check, snapshot) for snapshot in self._snapshots]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def fingerprints(self) -> dict[bytes, int]:
        """Index.fingerprints()."""
        return self._index.fingerprints() if self._fingerprints is None else self._fingerprints.result()

    def walked(self) -> Iterator[None]:
        """Goes on with each snapshot that is done.  Raises what walking it raised."""
        if self._pool is None:
            for snapshot in self._snapshots:
                self._walk.check(snapshot)
                yield
        for future in self._walked:
            yield future.result()

    def stop(self) -> None:
        if self._pool is not None:
            self._walk.stop()
            self._pool.shutdown(wait=True, cancel_futures=True)
