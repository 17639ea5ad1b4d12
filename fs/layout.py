"""The folders above the snapshots, in restic's layout, which people and tools (httm) know:

    ids/<8 hex digits>          snapshots/<time>          hosts/<host>/<time>          tags/<tag>/<time>

with a symbolic link `latest` in every folder of times.  Pure: a list of snapshots in, folders out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from snapfs.repo.format.labels import NAME_LIMIT
from snapfs.repo.state import StoredSnapshot

LATEST = b"latest"
_SECOND = 1_000_000_000


@dataclass
class Folder:
    """`entries` by name, the oldest first; a value of bytes is the target of a symbolic link."""

    time: int = 0
    """Of the newest snapshot below, ns; 0 if there is none."""
    entries: dict[bytes, Folder | StoredSnapshot | bytes] = field(default_factory=dict)


def arrange(snapshots: Sequence[StoredSnapshot]) -> Folder:
    """The root folder for these snapshots, the oldest first."""
    hosts: dict[bytes, list[StoredSnapshot]] = {}
    tags: dict[bytes, list[StoredSnapshot]] = {}
    for snapshot in snapshots:
        hosts.setdefault(file_name(snapshot.record.host), []).append(snapshot)
        for tag in dict.fromkeys(map(file_name, snapshot.tags)):
            tags.setdefault(tag, []).append(snapshot)
    return _above({
        b"ids": _named((snapshot.short.encode(), snapshot) for snapshot in snapshots),
        b"snapshots": _by_time(snapshots),
        b"hosts": _above({name: _by_time(hosts[name]) for name in sorted(hosts)}),
        b"tags": _above({name: _by_time(tags[name]) for name in sorted(tags)}),
    })  # fmt: skip


def file_name(text: bytes) -> bytes:
    """A tag or host as the name of a folder: as restic does it."""
    name = text.replace(b"/", b"_").replace(b"\0", b"_")[:NAME_LIMIT]
    return {b"": b"_", b".": b"_", b"..": b"__"}.get(name, name)


def time_name(time: int) -> bytes:
    """RFC 3339 in local time, whole seconds: 2015-05-08T21:38:30+02:00."""
    try:
        return datetime.fromtimestamp(time // _SECOND, UTC).astimezone().isoformat().encode()
    except (OverflowError, ValueError, OSError):  # outside the years 1 to 9999
        return b"@%d" % (time // _SECOND)


def _by_time(snapshots: Sequence[StoredSnapshot]) -> Folder:
    folder = _named((time_name(snapshot.record.time), snapshot) for snapshot in snapshots)
    if folder.entries:
        folder.entries[LATEST] = next(reversed(folder.entries))
    return folder


def _named(pairs: Iterable[tuple[bytes, StoredSnapshot]]) -> Folder:
    """Equal names get -1, -2 ... in the order of the list."""
    folder, times = Folder(), [0]
    seen: dict[bytes, int] = {}
    for wanted, snapshot in pairs:
        seen[wanted] = count = seen.get(wanted, -1) + 1
        folder.entries[wanted + b"-%d" % count if count else wanted] = snapshot
        times.append(snapshot.record.time)
    folder.time = max(times)
    return folder


def _above(folders: dict[bytes, Folder]) -> Folder:
    return Folder(max((folder.time for folder in folders.values()), default=0), {**folders})
