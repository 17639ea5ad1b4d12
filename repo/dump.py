"""Content as a stream: one file, or a directory as a tar archive.  Memory holds a few blobs, whatever the size.

Archives leave out sockets (tar has none; it is said) and write holes as zeros.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from snapfs.repo import tar
from snapfs.repo.content import Span
from snapfs.repo.errors import Damaged, UsageError
from snapfs.repo.marks import FirstComers
from snapfs.repo.model import BlobId, KiB, Kind, MiB, Node, NodeType
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.trees import Walked

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository

_THREADS = 2
_AHEAD = 4
_SMALL = 256 * KiB
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


def dump_tar(repository: Repository, node: Node, path: bytes, out: BinaryIO, progress: Progress = SILENT) -> None:
    """Write `node` (of any type but socket) and everything below it as a tar archive; names begin with `path`, less its slashes.

    Raises as dump_file; the archive is then cut off, without its end mark.
    """
    if node.type == NodeType.SOCKET:
        raise UsageError("a socket cannot be put into a tar archive")
    top = path.strip(b"/") or b"."
    with closing(FirstComers()) as links, ThreadPoolExecutor(_THREADS, thread_name_prefix="dump") as pool:

        def load(walked: Walked) -> bytes | None:
            return _small(repository, walked.node)

        for (name, entry), content in _ahead(pool, load, _entries(repository, node, top), 16 * _AHEAD):
            if entry.type == NodeType.SOCKET:
                progress.notice(f"{name.decode('utf-8', 'backslashreplace')}: a socket, left out: tar has none")
                continue
            first = None
            if entry.link is not None and not entry.is_dir:
                first = links.first(b"%d %d" % entry.link, name)
            out.write(tar.header(entry, name, repository.contents.xattrs(entry), first))
            if entry.is_file and first is None:
                for piece in (content,) if content is not None else dump_file(repository, entry):
                    out.write(piece)
                    progress.advance(bytes=len(piece))
                out.write(tar.padding(entry.size or 0))
            progress.advance(files=1)
    out.write(tar.END)


def _entries(repository: Repository, node: Node, top: bytes) -> Iterator[Walked]:
    yield Walked(top, node)
    if node.is_dir:
        below = b"" if top == b"." else top
        for path, entry in repository.trees.walk(node, below):
            yield Walked(path.lstrip(b"/"), entry)


def _small(repository: Repository, node: Node) -> bytes | None:
    """The content of a small file; None for any other node."""
    if not node.is_file or node.size is None or node.size > _SMALL:
        return None
    return repository.contents.read(node, 0, node.size)


def _pieces(span: Span, data: bytes | None) -> Iterator[bytes]:
    if data is None:
        for at in range(0, span.size, len(_ZEROS)):
            yield _ZEROS[: span.size - at]
    elif len(data) != span.length:
        raise Damaged("a blob of another length than the content list says", "content")
    else:
        yield data if span.size == span.length else data[span.skip : span.skip + span.size]


def _ahead(pool: ThreadPoolExecutor, load: Callable[[T], U], items: Iterable[T], window: int) -> Iterator[tuple[T, U]]:
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
