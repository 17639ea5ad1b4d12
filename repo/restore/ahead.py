"""Frames opened before they are needed: the writing thread finds the content of small files in the cache.

Many small files share a frame, so what is asked for is frames, each once; a large file asks for its own (filling.py).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Executor

from snapfs.repo.errors import RepositoryError
from snapfs.repo.index import IndexBroken
from snapfs.repo.model import BlobId, Kind, MiB
from snapfs.repo.repository import Repository
from snapfs.repo.restore.filling import LARGE
from snapfs.repo.restore.walk import Do, Step

STEPS = 256
BYTES = 8 * MiB
_ASKED = 256


def ahead(repository: Repository, steps: Iterator[Step], pool: Executor) -> Iterator[Step]:
    """The same steps, each after its frames were asked for: at most STEPS steps and BYTES bytes of content before its turn."""
    waiting: deque[tuple[Step, int]] = deque()
    size = 0
    asked: OrderedDict[tuple[int, int], None] = OrderedDict()
    for step in steps:
        weight = len(step.folder)
        node = step.node
        if step.do is Do.ENTRY and node.blobs is not None and node.size is not None and node.size <= LARGE:
            weight += node.size
            for blob, _ in node.blobs:
                if blob is not None:
                    _ask(repository, BlobId(blob), pool, asked)
        waiting.append((step, weight))
        size += weight
        while waiting and (len(waiting) > STEPS or size > BYTES):
            ready, weight = waiting.popleft()
            size -= weight
            yield ready
    for ready, _ in waiting:
        yield ready


def _ask(
    repository: Repository, blob: BlobId, pool: Executor, asked: OrderedDict[tuple[int, int], None]
) -> None:
    # Whatever goes wrong here goes wrong again when the content is needed, and is told then.
    with contextlib.suppress(RepositoryError, IndexBroken):
        at = repository.index.get(blob)
        if at is None or (frame := (at.volume, at.frame)) in asked:
            return
        asked[frame] = None
        if len(asked) > _ASKED:
            asked.popitem(last=False)
        if repository.blobs.frames.peek(frame) is None:
            pool.submit(_open, repository, blob)


def _open(repository: Repository, blob: BlobId) -> None:
    with contextlib.suppress(RepositoryError):
        repository.blobs.get(blob, Kind.CONTENT)
