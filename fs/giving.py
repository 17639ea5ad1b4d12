"""Small files are given to the kernel when they are opened, so that it need not ask for their content.

The kernel takes it by FUSE_NOTIFY_STORE, and waits for pages that are locked.  Those of a read are locked until it is answered,
by the very thread that would wait.  So only files are given that nobody has open: every read belongs to an open file, and the
kernel tells of its end when the last one is answered (libfuse: fuse_lowlevel_notify_store).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pyfuse3

from snapfs.fs.answers import without_names
from snapfs.fs.entry import Entry
from snapfs.fs.patience import NotAtHand
from snapfs.fs.view import View
from snapfs.repo.model import KiB

log = logging.getLogger(__name__)

_SMALL = 64 * KiB


class Giving:
    """Belongs to the event loop.  `store`: (inode, offset, bytes); may raise OSError."""

    def __init__(self, view: View, store: Callable[[int, int, bytes], None] = pyfuse3.notify_store) -> None:
        self._view = view
        self._store = store
        self._inodes: dict[int, int] = {}
        """Of each handle."""
        self._open: dict[int, int] = {}
        """Inode -> how many handles it has."""

    def opened(self, handle: int, inode: int, entry: Entry) -> bool:
        """`inode`: the one the kernel knows.  Whether the content was at hand, and the kernel has it now."""
        self._inodes[handle] = inode
        count = self._open.get(inode, 0)
        self._open[inode] = count + 1
        size = entry.node.size or 0
        if count or not 0 < size <= _SMALL:
            return False
        try:
            self._store(inode, 0, self._view.read(entry.node, 0, size))
        except NotAtHand:
            return False
        except Exception as error:  # noqa: BLE001  the kernel asks then, and meets the same; to open it is no failure
            log.debug("not given: %s", without_names(error))
            return False
        return True

    def closed(self, handle: int) -> None:
        inode = self._inodes.pop(handle)
        count = self._open.pop(inode) - 1
        if count:
            self._open[inode] = count
