"""What the kernel is told of an entry, and for how long it may take that for unchanged."""

from __future__ import annotations

import os

from pyfuse3 import EntryAttributes

from snapfs.fs.entry import Entry
from snapfs.repo.model import FORMATS, NodeType

FOREVER = 365 * 86400.0
A_MOMENT = 1.0
"""Seconds for which the kernel may take the folders above the snapshots, and `latest`, for unchanged.  With 0 it asks for
each part of each path again: seven look-ups for every file that `cp -a` copies."""
BLOCK = 4096


def attributes(entry: Entry, shown: int, name_timeout: float, owner_root: bool) -> EntryAttributes:
    """`shown`: the inode to tell; `name_timeout`: for how long its name may be believed; `owner_root`: say it is root's."""
    node, to = entry.node, EntryAttributes()
    to.st_ino = shown
    to.entry_timeout = name_timeout
    to.attr_timeout = FOREVER if entry.lasting else A_MOMENT
    to.st_mode = FORMATS[node.type] | node.mode & 0o7777
    if not owner_root:
        to.st_uid = node.uid
        to.st_gid = node.gid
    to.st_mtime_ns = node.mtime
    to.st_ctime_ns = node.ctime
    to.st_atime_ns = node.mtime if node.atime is None else node.atime
    if node.link is not None and not node.is_dir:
        to.st_nlink = max(node.links or 0, 2)
    if node.is_file:
        size = node.size or 0
        to.st_size = size
        in_holes = 0 if node.holes is None else node.holes.total
        to.st_blocks = -(-max(size - in_holes, 0) // BLOCK) * (BLOCK // 512)
    elif node.is_dir:
        to.st_size = BLOCK
    elif node.type == NodeType.SYMLINK:
        to.st_size = len(node.data or b"")
    elif node.device is not None:
        to.st_rdev = os.makedev(*node.device)
    return to


def nothing(name_timeout: float) -> EntryAttributes:
    """That there is no such name."""
    to = EntryAttributes()
    to.entry_timeout = name_timeout
    return to
