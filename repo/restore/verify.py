"""The target read back from the disk and compared with what the snapshot says: content by the ids of its blobs.

A file is looked at if it should be there as restored.  With --overwrite if-newer or never, one of another size or time was
kept on purpose and is passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from snapfs.repo.content import Span
from snapfs.repo.errors import RepositoryError, TargetError
from snapfs.repo.model import Kind, MiB, Node
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.restore.folders import DIRECTORY, Chain, Folder
from snapfs.repo.restore.options import Overwrite, RestoreOptions, RestoreResult
from snapfs.repo.restore.walk import Do, Step, steps, stripped
from snapfs.repo.trees import bytes_of, files_of

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ZEROS = bytes(MiB)


def verify(repository: Repository, root: Node, target: bytes, options: RestoreOptions, result: RestoreResult,
           progress: Progress) -> None:  # fmt: skip
    """Compare every regular file; differences are TargetErrors given to progress.error(), and counted in `result`."""
    whole = not options.selection
    progress.phase("verify", files_of(root) if whole else None, bytes_of(root) if whole else None)
    os.sync()  # what is still in memory only cannot be read back from the disk
    _Verify(repository, target, options, result, progress).run(root)


class _Verify:
    def __init__(self, repository: Repository, target: bytes, options: RestoreOptions, result: RestoreResult,
                 progress: Progress) -> None:  # fmt: skip
        self._repository = repository
        self._target = target
        self._options = options
        self._result = result
        self._progress = progress
        self._chain = Chain(Folder(b"", os.open(target, DIRECTORY & ~os.O_NOFOLLOW), fresh=False))
        self._absent: int | None = None
        """Depth of a directory that cannot be entered."""

    def run(self, root: Node) -> None:
        try:
            for step in steps(self._repository.trees, root, self._options.selection):
                self._step(step)
        finally:
            self._chain.close()

    def _step(self, step: Step) -> None:
        leaving = step.do is Do.LEAVE
        if self._absent is not None:
            if leaving and step.depth == self._absent:
                self._absent = None
        elif step.depth <= self._options.strip_components:
            return
        elif leaving:
            self._chain.pop()
        elif step.do is Do.ENTER:
            self._enter(step)
        elif step.node.is_file:
            self._file(step)

    def _enter(self, step: Step) -> None:
        above = self._chain.top.fd
        assert above is not None
        try:
            self._chain.push(
                Folder(step.node.name, os.open(step.node.name, DIRECTORY, dir_fd=above), fresh=False)
            )
        except OSError as error:
            self._absent = step.depth
            if step.wanted:
                self._unreadable(step, error)

    def _file(self, step: Step) -> None:
        above, node = self._chain.top.fd, step.node
        assert above is not None
        try:
            fd = os.open(node.name, _READ, dir_fd=above)
        except OSError as error:
            self._unreadable(step, error)
            return
        try:
            if not self._kept(node, os.fstat(fd)):
                if self._same(fd, node):
                    self._result.verified += 1
                else:
                    self._report(step, "read back, it is not what the snapshot says")
        except OSError as error:
            self._report(step, f"cannot be read back: {error.strerror}")
        except RepositoryError as error:
            self._report(step, f"cannot be compared: {error}")
        finally:
            os.close(fd)
        self._progress.advance(1, node.size or 0)

    def _kept(self, node: Node, there: os.stat_result) -> bool:
        chosen = self._options.overwrite in (Overwrite.IF_NEWER, Overwrite.NEVER)
        return chosen and (there.st_size, there.st_mtime_ns) != (node.size, node.mtime)

    def _same(self, fd: int, node: Node) -> bool:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != node.size:
            return False
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if node.blobs is None and node.root is None:
            return _read(fd, 0, node.size) == (node.data or b"")
        return all(self._same_span(fd, span) for span in self._repository.contents.spans(node))

    def _same_span(self, fd: int, span: Span) -> bool:
        if span.id is not None:
            data = _read(fd, span.offset, span.size)
            return len(data) == span.size and self._repository.keys.blob_id(Kind.CONTENT, data) == span.id
        return all(part == _ZEROS[: len(part)] for part in _parts(fd, span.offset, span.size))

    def _unreadable(self, step: Step, error: OSError) -> None:
        if isinstance(error, FileNotFoundError) and self._result.errors:
            return  # it was told why it is not there
        if isinstance(error, PermissionError):  # restored with a mode that keeps its own owner out
            path = os.fsdecode(self._shown(step))
            self._progress.notice(f"{path!r} cannot be verified: {error.strerror}")
            return
        self._report(step, f"cannot be read back: {error.strerror}")

    def _report(self, step: Step, reason: str) -> None:
        self._result.errors += 1
        self._progress.error(TargetError(self._shown(step), reason))

    def _shown(self, step: Step) -> bytes:
        return os.path.join(self._target, stripped(step.path, self._options.strip_components))


def _read(fd: int, offset: int, size: int) -> bytes:
    return b"".join(_parts(fd, offset, size))


def _parts(fd: int, offset: int, size: int) -> Iterator[bytes]:
    """`size` bytes from `offset`, fewer only at the end of the file."""
    while size:
        part = os.pread(fd, min(size, MiB), offset)
        if not part:
            return
        yield part
        offset += len(part)
        size -= len(part)
