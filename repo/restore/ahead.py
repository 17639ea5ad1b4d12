"""Frames opened before they are needed: the writing thread finds the content of small files in memory.

Many small files share a frame, so what is asked for is frames, each once; a large file asks for its own (filling.py).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Executor

from snapfs.repo.errors import BlobMissing, Damaged, RepositoryError
from snapfs.repo.index import IndexBroken
from snapfs.repo.model import BlobId, Kind, Location, MiB
from snapfs.repo.repository import Repository
from snapfs.repo.restore.walk import Do, Step

LARGE = MiB
"""Files longer than that (bytes) are not read ahead."""
STEPS = 256
BYTES = 8 * MiB
_ASKED = 64
"""Frames remembered as asked for: not more than surely are in memory still."""
_PLACES = 4096


class Ahead:
    """Reads content, and knows which will be read next."""

    def __init__(self, repository: Repository, pool: Executor) -> None:
        self._index = repository.index
        self._blobs = repository.blobs
        self._blob_id = repository.keys.blob_id
        self._pool = pool
        self._asked: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._places: dict[bytes, Location] = {}
        """Of blobs whose turn comes soon, so that each is looked up once."""

    def steps(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps, each after its content was asked for: at most STEPS steps and BYTES bytes before its turn."""
        waiting: deque[tuple[Step, int]] = deque()
        size = 0
        for step in steps:
            node, weight = step.node, len(step.folder)
            if (
                step.do is Do.ENTRY
                and node.blobs is not None
                and node.size is not None
                and node.size <= LARGE
            ):
                weight += node.size
                for blob, _ in node.blobs:
                    if blob is not None:
                        self._ask(blob)
            waiting.append((step, weight))
            size += weight
            while waiting and (len(waiting) > STEPS or size > BYTES):
                ready, weight = waiting.popleft()
                size -= weight
                yield ready
        for ready, _ in waiting:
            yield ready

    def content(self, blob: bytes, length: int) -> bytes:
        """A blob of content, compared with its id.  From any thread.  Raises Damaged, BlobMissing, StorageError."""
        at = self._places.pop(blob, None)
        if at is not None:
            frame = self._blobs.frames.peek((at.volume, at.frame))
            if frame is not None:
                data = frame[at.offset : at.offset + at.length]
                if len(data) == length and self._blob_id(Kind.CONTENT, data) == blob:
                    return data
        try:
            data = self._blobs.get(BlobId(blob), Kind.CONTENT)
        except BlobMissing:
            raise
        except Damaged as error:
            raise Damaged(f"blob {blob.hex()[:16]} cannot be read: {error}") from error
        if len(data) != length:
            raise Damaged(f"blob {blob.hex()[:16]} is of another length than the content list says")
        return data

    def _ask(self, blob: bytes) -> None:
        # Whatever goes wrong here goes wrong again when the content is needed, and is told then.
        with contextlib.suppress(RepositoryError, IndexBroken):
            at = self._index.get(blob)
            if at is None:
                return
            if len(self._places) >= _PLACES:
                self._places.clear()
            self._places[blob] = at
            frame = (at.volume, at.frame)
            if frame in self._asked:
                return
            self._asked[frame] = None
            if len(self._asked) > _ASKED:
                self._asked.popitem(last=False)
            if self._blobs.frames.peek(frame) is None:
                self._pool.submit(self._open, BlobId(blob))

    def _open(self, blob: BlobId) -> None:
        with contextlib.suppress(RepositoryError):
            self._blobs.get(blob, Kind.CONTENT)
