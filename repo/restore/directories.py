"""A directory's two moments: it is made or opened before anything goes into it, and finished when everything is there.

Until then it is its owner's alone, and the owner may write; its own mode, times and attributes come last.
"""

from __future__ import annotations

import errno
import os
import stat

from snapfs.repo.errors import TargetError
from snapfs.repo.model import Node
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.restore.entries import Outcome, verdict
from snapfs.repo.restore.folders import DIRECTORY, Folder, look, open_directory, remove
from snapfs.repo.restore.metadata import (
    ACL_ACCESS,
    ACL_DEFAULT,
    Metadata,
    Warn,
    drop_inherited,
    has_default_acl,
)  # fmt: skip
from snapfs.repo.restore.options import RestoreOptions


def open_target(path: bytes, options: RestoreOptions) -> Folder:
    """The folder everything goes into, made with its parents if it is absent.  Raises TargetError."""
    fresh = False
    try:
        if not os.path.isdir(path):
            if options.dry_run and not os.path.lexists(path):
                return Folder(b"", None, fresh=True)
            os.makedirs(path, exist_ok=True)
            fresh = True
        # The one link that is followed: whoever names the target may name it by a link.
        fd = os.open(path, DIRECTORY & ~os.O_NOFOLLOW)
    except OSError as error:
        reason = (
            "exists and is not a folder" if error.errno in (errno.EEXIST, errno.ENOTDIR) else error.strerror
        )
        raise TargetError(path, f"cannot be the target: {reason}") from error
    if fresh:
        drop_inherited(fd, ACL_ACCESS, ACL_DEFAULT)
    # Stripped of what is above them, folders of several origins become one: there may be something of that name.
    new = fresh and not options.strip_components
    return Folder(b"", fd, new, inherits=has_default_acl(fd), apply=fresh or options.root_metadata)


class Directories:
    def __init__(self, repository: Repository, target: bytes, options: RestoreOptions, metadata: Metadata,
                 progress: Progress, warn: Warn) -> None:  # fmt: skip
        self._trees = repository.trees
        self._options = options
        self._metadata = metadata
        self._progress = progress
        self._warn = warn
        self._target = os.path.realpath(target)
        self._kept = os.fsencode(os.path.realpath(repository.storage.place))
        """The repository itself: never deleted, even if it lies in the target."""

    def make(self, above: Folder, node: Node) -> Folder:
        """Make or open a directory.  Raises OSError."""
        there = None if above.fresh or above.fd is None else look(node.name, above.fd)
        if there is not None and above.fd is not None:
            decided = verdict(self._options.overwrite, node, node.name, above.fd, there)
            if stat.S_ISDIR(there.st_mode):
                return self._open(above.fd, node, decided)
            if decided is Outcome.SKIPPED:
                raise OSError(
                    errno.ENOTDIR, "something that is no folder stands there and is not to be overwritten"
                )
            if not self._options.dry_run:
                os.unlink(node.name, dir_fd=above.fd)
        if self._options.dry_run:
            return Folder(node.name, None, fresh=True)
        assert above.fd is not None
        os.mkdir(node.name, 0o700, dir_fd=above.fd)
        fd = os.open(node.name, DIRECTORY, dir_fd=above.fd)
        if above.inherits:
            drop_inherited(fd, ACL_ACCESS, ACL_DEFAULT)
        return Folder(node.name, fd, fresh=True)

    def _open(self, above: int, node: Node, decided: Outcome) -> Folder:
        if self._options.dry_run:
            return Folder(node.name, os.open(node.name, DIRECTORY, dir_fd=above), fresh=False)
        fd, before = open_directory(node.name, above)
        apply = decided is not Outcome.SKIPPED
        mode = None if apply else stat.S_IMODE(before.st_mode)
        return Folder(node.name, fd, False, inherits=has_default_acl(fd), apply=apply, mode=mode)

    def finish(self, folder: Folder, node: Node, path: bytes) -> None:
        """Everything in it is done: its metadata."""
        if folder.fd is None or self._options.dry_run:
            return
        if folder.apply:
            self._metadata.to_descriptor(folder.fd, node, path, was_there=not folder.fresh)
        elif folder.mode is not None:
            os.fchmod(folder.fd, folder.mode)

    def delete_others(self, folder: Folder, node: Node, path: bytes) -> int:
        """Remove what the snapshot's directory does not have, as far as it is selected; returns how many entries."""
        if folder.fd is None or folder.fresh:
            return 0
        deleted = 0
        with os.scandir(folder.fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                here = path + b"/" + name
                if self._trees.lookup(node, name) is None and self._selected(here, entry):
                    deleted += self._delete(folder.fd, name, here)
        return deleted

    def _selected(self, path: bytes, entry: os.DirEntry[str]) -> bool:
        is_dir = entry.is_dir(follow_symlinks=False)
        selection = self._options.selection
        return selection.included(path, is_dir) and not selection.excluded(path, is_dir)

    def _delete(self, above: int, name: bytes, path: bytes) -> int:
        whole = self._target.rstrip(b"/") + path
        if self._kept == whole or self._kept.startswith(whole + b"/"):
            self._progress.notice("the repository lies in the target: the folder it is in is not deleted")
            return 0
        removed = 1
        if not self._options.dry_run:
            try:
                removed = remove(name, above)
            except OSError as error:
                self._warn(path, f"not deleted: {error.strerror}")
                return 0
        self._progress.item(path, "deleted")
        return removed
