"""Live files as Nodes, in the order of raw names: the other side of `diff SNAPSHOT /path`.  Reads only; stores nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from snapfs.repo.backup.nodes import make_node, read_xattrs, reason
from snapfs.repo.content import Contents
from snapfs.repo.errors import SourceError
from snapfs.repo.model import TYPES, BlobId, Kind, Node, Xattr
from snapfs.repo.progress import Progress


class Live:
    """One live directory.  Paths are relative to it and begin with "/"; what cannot be read goes to progress.error."""

    def __init__(self, path: bytes, progress: Progress) -> None:
        self._path = path.rstrip(b"/") or b"/"
        self._progress = progress

    def root(self) -> Node:
        """Raises SourceError if it is no directory."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise SourceError(self._path, reason(error)) from error
        if not stat.S_ISDIR(found.st_mode):
            raise SourceError(
                self._path, "not a directory: a snapshot's directory is compared with another directory"
            )
        return make_node(b"", found)

    def children(self, path: bytes) -> Iterator[Node]:
        """The entries of a directory; only their names are held."""
        folder = self._path + path
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self._progress.error(SourceError(folder, reason(error)))
            return
        for name in names:
            node = self._node(folder + b"/" + name, name)
            if node is not None:
                yield node

    def same_content(self, path: bytes, contents: Contents, node: Node) -> bool:
        """Whether a live regular file holds what `node` does; False, and reported, where it cannot be read."""
        full = self._path + path
        try:
            with open(
                os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0
            ) as file:
                if node.blobs is None and node.root is None:
                    return file.read(len(node.data or b"") + 1) == (node.data or b"")
                for span in contents.spans(node):
                    # Spans end where blobs do, so nothing is read twice; long holes come in pieces.
                    for at in range(span.offset, span.offset + span.size, _PIECE):
                        size = min(_PIECE, span.offset + span.size - at)
                        wanted = bytes(size) if span.id is None else contents.read(node, at, size)
                        if _read(file.fileno(), at, size) != wanted:
                            return False
                return not file.seek(0, os.SEEK_END) > (node.size or 0)
        except OSError as error:
            self._progress.error(SourceError(full, reason(error)))
            return False

    def _node(self, full: bytes, name: bytes) -> Node | None:
        try:
            found = os.lstat(full)
            if stat.S_IFMT(found.st_mode) not in TYPES:
                return None
            linked = found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode)
            return make_node(
                name, found, link=(0, found.st_ino) if linked else None,
                size=found.st_size if stat.S_ISREG(found.st_mode) else None,
                data=os.readlink(full) if stat.S_ISLNK(found.st_mode) else None, xattrs=_xattrs(full, self._progress),
            )  # fmt: skip
        except FileNotFoundError:
            return None
        except OSError as error:
            self._progress.error(SourceError(full, reason(error)))
            return None


_PIECE = 4 * 1024 * 1024


def _xattrs(full: bytes, progress: Progress) -> tuple[Xattr, ...] | None:
    large: list[bytes] = []

    def keep(_: Kind, value: bytes | memoryview) -> BlobId:
        large.append(bytes(value))
        return BlobId(b"")

    found = read_xattrs(os.fsdecode(full), keep, full, progress.error)
    if found is None or not large:
        return found
    values = iter(large)
    return tuple(Xattr(x.name, next(values)) if x.value is None else x for x in found)


def _read(fd: int, offset: int, size: int) -> bytes:
    parts = []
    while size and (part := os.pread(fd, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
