"""The mounts of this namespace, as the kernel lists them, and which of them stand in the way of another's end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_TABLE = "/proc/self/mountinfo"


class Mount(NamedTuple):
    id: int
    parent: int
    """The id of the mount it is mounted on."""
    path: str
    kind: str
    """The type of the file system: ext4, fuse.snapfs ..."""


def all_mounts() -> list[Mount]:
    """Later ones over earlier ones."""
    with open(_TABLE, errors="surrogateescape") as f:
        return [_parse(line) for line in f]


def _parse(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    fields = before.split(" ")
    path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
    return Mount(int(fields[0]), int(fields[1]), path, after.split(" ")[0])


def obstacles(mount: Mount, mounts: Sequence[Mount]) -> list[Mount]:
    """What has to be unmounted before it: whatever is mounted in it, over it, or over a folder that leads to it."""
    by_id = {one.id: one for one in mounts}
    below = {mount.id}
    here = mount
    while here.parent in by_id and here.parent not in below:
        here = by_id[here.parent]
        below.add(here.id)
    return [
        one
        for one in mounts
        if one.id not in below and (one.parent == mount.id or (one.parent in below and _leads(one, mount)))
    ]


def _leads(one: Mount, to: Mount) -> bool:
    return to.path == one.path or to.path.startswith(one.path.rstrip("/") + "/")
