"""A snapshot of one file that comes through a pipe, below directories that are made up."""

from __future__ import annotations

import os

from snapfs.repo.backup.files import FileReader
from snapfs.repo.backup.options import Stream
from snapfs.repo.model import Node, NodeType
from snapfs.repo.page_writer import Put
from snapfs.repo.trees import DirectoryWriter


def piped(
    path: bytes, stream: Stream, reader: FileReader, put: Put, page_key: bytes, user: bytes, time: int
) -> Node:
    """Store all that `stream` gives as the file `path` (absolute); returns the root's Node.  `time` in ns."""
    uid, gid = os.geteuid(), os.getegid()
    content = reader.stream(stream, uid)
    *above, name = path.strip(b"/").split(b"/")
    node = Node(
        name, NodeType.FILE, 0o600, uid, gid, user, None, time, time,
        content.size, content.data, content.blobs, content.root,
    )  # fmt: skip
    for name in (*reversed(above), b""):
        writer = DirectoryWriter(put, page_key)
        writer.add(node)
        root, below = writer.finish()
        node = Node(
            name, NodeType.DIRECTORY, 0o755, uid, gid, user, None, time, time, root=root, below=below,
        )  # fmt: skip
    return node
