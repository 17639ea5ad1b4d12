"""restore(): the walk, the target and what happens when something goes wrong, put together.

One entry that fails is reported and the rest goes on.  A target that is full or read-only, and a repository that does not
answer at all, end it.
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

from snapfs.repo.errors import Damaged, RepositoryError, StorageError, TargetError, UsageError
from snapfs.repo.model import MiB, Node
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.repository import Repository
from snapfs.repo.restore.ahead import Ahead
from snapfs.repo.restore.directories import Directories, open_target
from snapfs.repo.restore.entries import Entries, Outcome
from snapfs.repo.restore.filling import Filling
from snapfs.repo.restore.folders import Chain, Folder
from snapfs.repo.restore.metadata import Metadata, strerror
from snapfs.repo.restore.options import RestoreOptions, RestoreResult
from snapfs.repo.restore.small import SmallFiles
from snapfs.repo.restore.verify import verify
from snapfs.repo.restore.walk import Do, Step, steps, stripped
from snapfs.repo.trees import bytes_of, files_of

_HOPELESS = {
    errno.ENOSPC: "free some space there, or choose another target",
    errno.EDQUOT: "free some space there, or choose another target",
    errno.EROFS: "choose another target",
}
_CACHE_BYTES = 64 * MiB
"""Frames are used in the order of the walk where one run wrote them all; after many, what is read ahead lies in a frame a file,
and has to stay until its turn."""
_ONE_VOLUME = (errno.EIO, errno.ENOENT, errno.EACCES, errno.EPERM)
"""Errors of the repository's storage that need not tell of more than one volume."""


def restore(
    repository: Repository, root: Node, target: bytes, options: RestoreOptions, progress: Progress = SILENT
) -> RestoreResult:
    """Restore what is below the directory `root` into the folder `target`, which is made if it is absent; another node goes
    into the folder under its own name.

    Entries that fail are TargetErrors given to progress.error() and counted.  Raises UsageError, TargetError if the target
    cannot be written at all (full, read-only, not a folder), RepositoryError if the repository cannot be read at all.
    """
    options.check(target)
    _refuse_repository(repository, target)
    workers = max(2, min(os.cpu_count() or 2, 8))
    frames = repository.blobs.frames
    before, frames.limit = frames.limit, min(frames.limit, _CACHE_BYTES)
    # One thread makes files: two would wait for one another at the directory they both fill, and burn what they wait.
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="restore") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="make") as maker,
    ):
        try:
            job = _Restore(repository, root, target, options, progress, pool, maker)
            job.run()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            frames.limit = before
    if options.verify and not options.dry_run:
        verify(repository, root, target, options, job.result, progress)
    return job.result


def _refuse_repository(repository: Repository, target: bytes) -> None:
    """Raises UsageError for a target in the repository: with --delete it would be gone, without it has strangers in it."""
    kept, here = os.fsencode(os.path.realpath(repository.storage.place)), os.path.realpath(target)
    if os.path.commonpath((kept, here)) == kept:
        raise UsageError("the target lies in the repository itself: choose another one")


class _Restore:
    def __init__(self, repository: Repository, root: Node, target: bytes, options: RestoreOptions, progress: Progress,
                 pool: ThreadPoolExecutor, maker: ThreadPoolExecutor) -> None:  # fmt: skip
        self._repository = repository
        self._root = root
        self._target = target
        self._options = options
        self._progress = progress
        self.result = RestoreResult()
        self._chain = Chain(open_target(target, options))
        metadata = Metadata(
            repository.contents,
            options.ownership_by_name,
            options.untrusted,
            self._warn,
            self._attributes_lost,
            self._unowned,
        )
        self._ahead = Ahead(repository, pool)
        filling = Filling(repository, self._ahead, pool, progress)
        self._small = SmallFiles(options, self._ahead, maker, self._made, self._make_again)
        self._entries = Entries(options, self._chain, filling, metadata, self._warn)
        self._directories = Directories(repository, target, options, metadata, progress, self._stays)
        self._pending: list[Step] = []
        """Directories that were entered and are made when something in them is."""
        self._dead: int | None = None
        """Depth of a directory that could not be made: everything until its end is passed over."""

    def run(self) -> None:
        whole = not self._options.selection
        self._progress.phase(
            "restore", files_of(self._root) if whole else None, bytes_of(self._root) if whole else None
        )
        todo = steps(self._repository.trees, self._root, self._options.selection)
        if not self._options.dry_run:
            todo = self._ahead.steps(todo)
        try:
            for step in todo:
                if self._progress.interrupted:
                    raise KeyboardInterrupt
                self._step(step)
            self._small.flush()
        finally:
            self._small.give_up()
            self._chain.close()

    def _step(self, step: Step) -> None:
        if self._dead is not None:
            if step.do is Do.LEAVE and step.depth == self._dead:
                self._dead = None
            return
        if 0 < step.depth <= self._options.strip_components:
            if step.problem is not None:
                self._lost(step.path, step.problem)
            return
        try:
            if step.do is Do.LEAVE:
                self._leave(step)
            elif step.do is Do.ENTER:
                self._pending.append(step)
                if step.wanted:
                    self._make_pending()
            else:
                self._make_pending()
                if self._dead is None:
                    self._entry(step)
        except (OSError, OverflowError, ValueError) as error:
            self._failed(step.path, error)
        except RepositoryError as error:
            self._lost(step.path, error)

    def _entry(self, step: Step) -> None:
        node, path, result = step.node, step.path, self.result
        if self._small.takes(self._chain.top, node):
            self._small.add(self._chain.top, node, path)
            return
        at = b"" if node.link is None else stripped(step.folder, self._options.strip_components)
        outcome = self._entries.restore(self._chain.top, at, node, path)
        size = node.size or 0
        written = outcome in (Outcome.RESTORED, Outcome.UPDATED)
        if outcome is Outcome.LINKED:
            result.hard_links += 1
        elif not written:
            result.skipped_bytes += size
            result.skipped += outcome is Outcome.SKIPPED
            result.unchanged += outcome is Outcome.UNCHANGED
        elif node.is_file:
            result.files += 1
            result.bytes += size
        else:
            result.others += 1
        if node.is_file and (not written or self._options.dry_run):  # else Filling did
            self._progress.advance(1, size)
        self._progress.item(path, outcome.value, size)

    def _made(self, node: Node, path: bytes) -> None:
        self._progress.advance(1, node.size or 0)
        self._restored(node, path)

    def _restored(self, node: Node, path: bytes) -> None:
        size = node.size or 0
        self.result.files += 1
        self.result.bytes += size
        self._progress.item(path, Outcome.RESTORED.value, size)

    def _make_again(self, folder: Folder, node: Node, path: bytes) -> None:
        """A small file that did not go smoothly: whatever is wrong is met again, and said."""
        try:
            self._entries.make_file(folder, node.name, node, path)
        except (OSError, OverflowError, ValueError) as error:
            self._failed(path, error)
        except RepositoryError as error:
            self._lost(path, error)
        else:
            self._restored(node, path)

    def _finish(self, folder: Folder, node: Node, path: bytes) -> None:
        try:
            self._directories.finish(folder, node, path)
        except (OSError, OverflowError, ValueError) as error:
            self._failed(path, error)

    # ---- directories ---------------------------------------------------------------------------------------------

    def _make_pending(self) -> None:
        while self._pending:
            step = self._pending.pop(0)
            try:
                self._chain.push(self._directories.make(self._chain.top, step.node))
            except OSError as error:
                self._dead = step.depth
                self._pending.clear()
                self._failed(step.path, error)

    def _leave(self, step: Step) -> None:
        if step.problem is not None:
            self._lost(step.path, step.problem)
        if self._pending:
            self._pending.pop()
            return
        folder, path = self._chain.top, step.path
        try:
            if self._options.delete and step.problem is None and not folder.failed:
                self.result.deleted += self._directories.delete_others(folder, step.node, path)
        finally:
            self._chain.open_parent()
            if step.depth or not self._options.strip_components:
                self._small.leave(folder, lambda folder: self._finish(folder, step.node, path))
            if step.depth:
                self._chain.pop()
        if step.depth:
            self.result.directories += 1
            outcome = (
                Outcome.RESTORED if folder.fresh else Outcome.UPDATED if folder.apply else Outcome.UNCHANGED
            )
            self._progress.item(path, outcome.value)

    # ---- what goes wrong -----------------------------------------------------------------------------------------

    def _shown(self, path: bytes) -> bytes:
        below = stripped(path, self._options.strip_components)
        return os.path.join(self._target, below) if below else self._target

    def _failed(self, path: bytes, error: OSError | ValueError | OverflowError) -> None:
        if isinstance(error, OSError) and error.errno in _HOPELESS:
            raise TargetError(self._shown(path), f"{error.strerror}: {_HOPELESS[error.errno]}") from error
        reason = strerror(error)
        if isinstance(error, FileExistsError):
            reason = "another entry has this name already: does this file system tell upper from lower case?"
        self._report(path, reason)

    def _lost(self, path: bytes, error: RepositoryError, what: str = "lost") -> None:
        one = isinstance(error, Damaged) or (isinstance(error, StorageError) and error.errno in _ONE_VOLUME)
        if not one:
            raise error
        self.result.damaged += 1
        self._report(path, f"{what}, as the repository is damaged: {error}")

    def _attributes_lost(self, path: bytes, error: RepositoryError) -> None:
        self._lost(path, error, "extended attributes lost")

    def _stays(self, path: bytes, reason: str) -> None:
        """What --delete was to take away."""
        self.result.errors += 1
        self._progress.error(TargetError(self._shown(path), reason))

    def _report(self, path: bytes, reason: str) -> None:
        self._chain.top.failed = True
        self.result.errors += 1
        self._progress.error(TargetError(self._shown(path), reason))

    def _warn(self, path: bytes, reason: str) -> None:
        self.result.warnings += 1
        self._progress.error(TargetError(self._shown(path), reason))

    def _unowned(self) -> None:
        self._progress.notice(
            f"{os.fsdecode(self._target)!r} keeps no owners: files there belong to whoever mounted it"
        )
