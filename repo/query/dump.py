"""Content as a stream: one file, or a directory as a tar archive.  Memory holds a few blobs, whatever the size.

Archives leave out sockets (tar has none; it is said) and write holes as zeros.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from msgspec.structs import replace

from snapfs.repo.content import Span
from snapfs.repo.errors import Damaged, UsageError
from snapfs.repo.marks import FirstComers
from snapfs.repo.model import (
    DEVICES,
    PRIVILEGED_XATTRS,
    UNPRIVILEGED_MODE,
    BlobId,
    Kind,
    MiB,
    Node,
    NodeType,
)
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.query import tar
from snapfs.repo.restore.ahead import Ahead
from snapfs.repo.restore.walk import Do, Step

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository

_THREADS = 2
_AHEAD = 4
_ZEROS = bytes(MiB)
T = TypeVar("T")
U = TypeVar("U")


def dump_file(repository: Repository, node: Node) -> Iterator[bytes]:
    """The bytes of a regular file, piece by piece.  Raises UsageError for any other node, Damaged, BlobMissing, StorageError."""
    if not node.is_file:
        raise UsageError("not a regular file: dump a directory as an archive instead")
    if node.blobs is None and node.root is None:
        yield node.data or b""
        return

    def load(span: Span) -> bytes | None:
        return None if span.id is None else repository.blobs.get(BlobId(span.id), Kind.CONTENT)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="dump") as pool:
        for span, data in _ahead(pool, load, repository.contents.spans(node), _AHEAD):
            yield from _pieces(span, data)


def dump_tar(
    repository: Repository,
    node: Node,
    path: bytes,
    out: BinaryIO,
    progress: Progress = SILENT,
    *,
    untrusted: bool = False,
) -> None:
    """Write `node` (of any type but socket) and everything below it as a tar archive; names begin with `path`, less its slashes.
    `untrusted`: without setuid and setgid bits, devices, and attributes that lend rights.

    Raises as dump_file; the archive is then cut off, without its end mark.
    """
    if node.type == NodeType.SOCKET:
        raise UsageError("a socket cannot be put into a tar archive")
    top = path.strip(b"/") or b"."
    with closing(FirstComers()) as links, ThreadPoolExecutor(_THREADS, thread_name_prefix="dump") as pool:
        ahead = Ahead(repository, pool)
        for name, entry in chain([(top, node)], _below(repository, node, b"" if top == b"." else top, ahead)):
            if progress.interrupted:
                raise KeyboardInterrupt
            if entry.type == NodeType.SOCKET:
                progress.notice(
                    f"{name.decode('utf-8', 'backslashreplace')}: a socket, left out: tar has none"
                )
                continue
            xattrs = repository.contents.xattrs(entry)
            if untrusted:
                if entry.type in DEVICES:
                    continue
                entry = replace(entry, mode=entry.mode & UNPRIVILEGED_MODE)
                xattrs = (pair for pair in xattrs if not pair[0].startswith(PRIVILEGED_XATTRS))
            file = entry.one_file
            first = None if file is None else links.first(file, name)
            out.write(tar.header(entry, name, xattrs, first))
            if entry.is_file and first is None:
                for piece in _content(repository, entry, ahead):
                    out.write(piece)
                    progress.advance(bytes=len(piece))
                out.write(tar.padding(entry.size or 0))
            progress.advance(files=1)
    out.write(tar.END)


def _below(repository: Repository, node: Node, top: bytes, ahead: Ahead) -> Iterator[tuple[bytes, Node]]:
    """(name in the archive, node) of everything below a directory; the content of small files is asked for ahead."""
    if not node.is_dir:
        return
    entries = repository.trees.walk(node, top)
    steps = (Step(Do.ENTRY, path[: -len(entry.name)], entry, 0) for path, entry in entries)
    for step in ahead.steps(steps):
        yield step.folder.lstrip(b"/") + step.node.name, step.node


def _content(repository: Repository, node: Node, ahead: Ahead) -> Iterator[bytes]:
    if node.blobs is not None and len(node.blobs) == 1 and (blob := node.blobs[0][0]) is not None:
        return iter((ahead.content(blob, node.blobs[0][1]),))
    return dump_file(repository, node)


def _pieces(span: Span, data: bytes | None) -> Iterator[bytes]:
    if data is None:
        for at in range(0, span.size, len(_ZEROS)):
            yield _ZEROS[: span.size - at]
    elif len(data) != span.length:
        raise Damaged("a blob of another length than the content list says", "content")
    else:
        yield data if span.size == span.length else data[span.skip : span.skip + span.size]


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[T], U], items: Iterable[T], window: int
) -> Iterator[tuple[T, U]]:
    """Each item with what `load` makes of it, in order; up to `window` are being loaded ahead."""
    running: deque[tuple[T, Future[U]]] = deque()
    try:
        for item in items:
            running.append((item, pool.submit(load, item)))
            if len(running) > window:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        for _, future in running:
            future.cancel()
