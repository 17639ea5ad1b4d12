"""One entry of the target: made, linked, left alone, or put in place of what has its name.

In a directory that this run made, an entry is made under its own name, and only if nothing has it.  Elsewhere a file is
written under a temporary name and renamed when it is complete, so that what was there stays until then, and a link that was
there is replaced, never written through.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from enum import Enum

from snapfs.repo.model import DEVICES, FORMATS, Node, NodeType
from snapfs.repo.restore.filling import Filling
from snapfs.repo.restore.folders import Chain, Folder, look, remove, temporary_name
from snapfs.repo.restore.metadata import ACL_ACCESS, Metadata, Warn, drop_inherited, strerror
from snapfs.repo.restore.options import Overwrite, RestoreOptions

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Outcome(Enum):
    """The words of Progress.item."""

    RESTORED = "restored"
    UPDATED = "updated"
    LINKED = "linked"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"


def verdict(overwrite: Overwrite, node: Node, name: bytes, above: int, there: os.stat_result) -> Outcome:
    """What to do about an entry that the target has already: UPDATED, UNCHANGED (metadata only) or SKIPPED."""
    if overwrite is Overwrite.NEVER:
        return Outcome.SKIPPED
    if overwrite is Overwrite.IF_NEWER:
        return Outcome.UPDATED if node.mtime > there.st_mtime_ns else Outcome.SKIPPED
    if overwrite is Overwrite.IF_CHANGED and _is_same(node, name, above, there):
        return Outcome.UNCHANGED
    return Outcome.UPDATED


def _is_same(node: Node, name: bytes, above: int, there: os.stat_result) -> bool:
    # Another number of names means that some of them are, or are not, to be this file: it is made anew.
    if stat.S_IFMT(there.st_mode) != FORMATS[NodeType(node.type)] or there.st_nlink != (node.links or 1):
        return False
    if node.is_file:
        return (there.st_size, there.st_mtime_ns) == (node.size, node.mtime)
    if node.type == NodeType.SYMLINK:
        return os.readlink(name, dir_fd=above) == node.data
    return node.device is None or (os.major(there.st_rdev), os.minor(there.st_rdev)) == node.device


@dataclass(slots=True)
class _Made:
    """The first name of a file that has several."""

    folder: bytes
    name: bytes
    identity: tuple[int, int]
    left: int
    """Names still to come; below 0: not known."""


class Entries:
    def __init__(
        self, options: RestoreOptions, chain: Chain, filling: Filling, metadata: Metadata, warn: Warn
    ) -> None:
        self._options = options
        self._chain = chain
        self._filling = filling
        self._metadata = metadata
        self._warn = warn
        self._made: dict[bytes, _Made] = {}
        """By Node.one_file.  The one table that grows, with the groups that still have names to come: no order of the walk
        tells which name of a file is the last, and to forget one would make two files of it."""

    def restore(self, folder: Folder, at: bytes, node: Node, path: bytes) -> Outcome:
        """Restore anything but a directory in `folder`, whose path in the target is `at` (asked for where there are hard links).

        Raises OSError, RepositoryError."""
        if self._options.untrusted and node.type in DEVICES:
            return Outcome.SKIPPED
        there = None if folder.fresh or folder.fd is None else look(node.name, folder.fd)
        outcome = Outcome.RESTORED
        if there is not None:
            assert folder.fd is not None
            outcome = verdict(self._options.overwrite, node, node.name, folder.fd, there)
        if self._options.dry_run or outcome is Outcome.SKIPPED:
            return outcome
        assert folder.fd is not None
        file = node.one_file
        if file is not None and self._link(file, folder, at, node, path, there):
            return Outcome.LINKED
        if outcome is Outcome.UNCHANGED:
            self._metadata.to_name(node.name, folder.fd, node, path, was_there=True)
        else:
            self._make(folder, node, path, there)
        if file is not None:
            self._remember(file, folder.fd, at, node)
        return outcome

    # ---- new ones ------------------------------------------------------------------------------------------------

    def _make(self, folder: Folder, node: Node, path: bytes, there: os.stat_result | None) -> None:
        assert folder.fd is not None
        make = self.make_file if node.is_file else self._make_special
        if there is None and (folder.fresh or not node.is_file):
            make(folder, node.name, node, path)
            return
        name = temporary_name()
        make(folder, name, node, path)
        self._put_in_place(folder.fd, name, node.name, there)

    def _put_in_place(self, above: int, made: bytes, name: bytes, there: os.stat_result | None) -> None:
        try:
            if there is not None and stat.S_ISDIR(there.st_mode):
                self._clear(name, above)
            os.rename(made, name, src_dir_fd=above, dst_dir_fd=above)
        except BaseException:
            os.unlink(made, dir_fd=above)
            raise

    def _clear(self, name: bytes, above: int) -> None:
        """Take away a directory that stands where something else belongs: an empty one, or any with --delete."""
        try:
            os.rmdir(name, dir_fd=above)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self._options.delete:
                raise OSError(
                    error.errno, "a folder that is not empty stands there: move it away, or use --delete"
                ) from error
            remove(name, above)

    def make_file(self, folder: Folder, name: bytes, node: Node, path: bytes) -> None:
        fd = os.open(name, CREATE, 0o600, dir_fd=folder.fd)
        try:
            try:
                if folder.inherits:
                    drop_inherited(fd, ACL_ACCESS)
                self._filling.fill(fd, node)
                self._metadata.to_descriptor(fd, node, path)
            finally:
                os.close(fd)
        except BaseException:  # a part of a file must not look like all of it
            os.unlink(name, dir_fd=folder.fd)
            raise

    def _make_special(self, folder: Folder, name: bytes, node: Node, path: bytes) -> None:
        above = folder.fd
        assert above is not None
        if node.type == NodeType.SYMLINK:
            os.symlink(node.data or b"", name, dir_fd=above)
        else:
            device = os.makedev(*node.device) if node.device is not None and node.type in DEVICES else 0
            os.mknod(name, FORMATS[NodeType(node.type)] | 0o600, device, dir_fd=above)
        try:
            self._metadata.to_name(name, above, node, path, was_there=folder.inherits)
        except BaseException:
            os.unlink(name, dir_fd=above)
            raise

    # ---- hard links ----------------------------------------------------------------------------------------------

    def _remember(self, file: bytes, above: int, at: bytes, node: Node) -> None:
        found = os.stat(node.name, dir_fd=above, follow_symlinks=False)
        left = (node.links or 0) - 1
        if left:
            self._made[file] = _Made(at, node.name, (found.st_dev, found.st_ino), left)

    def _link(
        self, file: bytes, folder: Folder, at: bytes, node: Node, path: bytes, there: os.stat_result | None
    ) -> bool:
        """Make this name another one of a file restored before; False if there is none, or if it takes no more names."""
        assert folder.fd is not None
        made = self._made.get(file)
        if made is None:
            return False
        if there is None or (there.st_dev, there.st_ino) != made.identity:
            try:
                self._link_to(made, folder, at, node.name, there)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                if error.errno != errno.EMLINK:
                    self._warn(path, f"not linked but restored as a file of its own: {strerror(error)}")
                return False
        made.left -= 1
        if made.left == 0:
            del self._made[file]
        return True

    def _link_to(
        self, made: _Made, folder: Folder, at: bytes, name: bytes, there: os.stat_result | None
    ) -> None:
        assert folder.fd is not None
        source = folder.fd if made.folder == at else self._chain.reach(made.folder)
        new = name if there is None else temporary_name()
        try:
            os.link(made.name, new, src_dir_fd=source, dst_dir_fd=folder.fd, follow_symlinks=False)
        finally:
            if source != folder.fd:
                os.close(source)
        found = os.stat(new, dir_fd=folder.fd, follow_symlinks=False)
        if (found.st_dev, found.st_ino) != made.identity:
            os.unlink(new, dir_fd=folder.fd)
            raise OSError(errno.ESTALE, "the other name was changed during the restore")
        if there is not None:
            self._put_in_place(folder.fd, new, name, there)
