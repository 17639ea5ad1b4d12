"""A mount whose loop comes late and whose disk is slow: serve() as in support.mounts, for tests of what must not stop then."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from support import mounts

LATE, SLOW = 0.3, 1.0
"""Seconds between a request being seen and being read, where a file `late` is in the home; and of each read of the disk."""


def serve() -> None:
    import trio

    from snapfs.fs import eager
    from snapfs.fs.view import View
    from snapfs.repo.model import Node

    late = Path(json.loads(sys.argv[1])[0]) / "late"
    read = View.read

    async def until_readable(self: eager._EagerLowlevel, fd: int) -> None:
        await trio.lowlevel.wait_readable(fd)
        if late.exists():
            time.sleep(LATE)

    def slowly(self: View, node: Node, offset: int, size: int) -> bytes:
        data = read(self, node, offset, size)
        if threading.get_ident() != self.blobs.loop_thread:
            time.sleep(SLOW)
        return data

    eager._EagerLowlevel._until_readable = until_readable  # type: ignore[method-assign]
    View.read = slowly  # type: ignore[method-assign]
    mounts.serve()
