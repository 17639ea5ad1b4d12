"""Which snapshot is meant: `latest`, `latest~2`, the beginning of an id, `SNAP:folder`, the filters host, tag and path, and
groups of those that belong together.

Pure functions over the list of snapshots as events.State gives it (ascending by when they count as made); nothing here reads the
repository.
A filter decides what `latest` counts; an id means its snapshot whatever the filter says, as in restic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from snapfs.repo.errors import SnapshotNotFound, UsageError

if TYPE_CHECKING:
    from snapfs.repo.state import StoredSnapshot

_LATEST = re.compile(rb"latest(?:~([0-9]{1,9}))?")
_ID = re.compile(rb"[0-9a-fA-F]{1,64}")
_SHOWN = 4


@dataclass(frozen=True)
class Filter:
    """Empty fields let everything pass."""

    hosts: tuple[bytes, ...] = ()
    """Any of these."""
    tags: tuple[frozenset[bytes], ...] = ()
    """Any of these sets, whole.  The empty set: snapshots without tags."""
    paths: tuple[bytes, ...] = ()
    """All of these are among what was backed up; absolute."""

    def __bool__(self) -> bool:
        return bool(self.hosts or self.tags or self.paths)

    def fits(self, snapshot: StoredSnapshot) -> bool:
        tags, paths = set(snapshot.tags), snapshot.record.paths
        return (
            (not self.hosts or snapshot.record.host in self.hosts)
            and (not self.tags or any(wanted <= tags if wanted else not tags for wanted in self.tags))
            and all(path in paths for path in self.paths)
        )

    def describe(self) -> str:
        """ " of host a with tags x,y": what stands behind "no snapshot"."""
        words = []
        if self.hosts:
            words.append(" of host " + " or ".join(_text(host) for host in self.hosts))
        if self.tags:
            sets = (",".join(sorted(map(_text, tags))) or "(none)" for tags in self.tags)
            words.append(" with tags " + " or ".join(sets))
        if self.paths:
            words.append(" of " + " and ".join(_text(path) for path in self.paths))
        return "".join(words)


NO_FILTER = Filter()


class Spec(NamedTuple):
    """What a user wrote for a snapshot, taken apart."""

    repository: bytes | None
    """Of borg's REPOSITORY::SNAPSHOT."""
    name: bytes
    """latest, latest~N or hexadecimal digits; checked by `find`."""
    path: bytes | None
    """What stands behind the colon; None without one."""


def parse_tags(texts: Iterable[bytes]) -> tuple[frozenset[bytes], ...]:
    """--tag a,b --tag c: (a and b) or c.  An empty one stands for "no tags"."""
    return tuple(frozenset(tag.strip() for tag in text.split(b",") if tag.strip()) for text in texts)


def is_name(text: bytes) -> bool:
    """May this be the name of a snapshot?"""
    return bool(_LATEST.fullmatch(text) or _ID.fullmatch(text))


def parse_spec(text: bytes) -> Spec:
    """SNAP, SNAP:path or REPOSITORY::SNAP[:path].  Never raises: a name that is none is refused by `find`."""
    repository = None
    if b"::" in text and not is_name(text.partition(b":")[0]):
        repository, _, text = text.partition(b"::")
    name, colon, path = text.partition(b":")
    return Spec(repository or None, name, path if colon else None)


def choose(snapshots: Iterable[StoredSnapshot], wanted: Filter = NO_FILTER) -> list[StoredSnapshot]:
    """Those that pass the filter, in the same order."""
    return [snapshot for snapshot in snapshots if wanted.fits(snapshot)]


Key = tuple[tuple[bytes, ...], ...]
"""What the snapshots of a group have in common, a part for each word of GROUPS."""

GROUPS: Mapping[str, Callable[[StoredSnapshot], tuple[bytes, ...]]] = {
    "host": lambda snapshot: (snapshot.record.host,),
    "paths": lambda snapshot: tuple(sorted(snapshot.record.paths)),
    "tags": lambda snapshot: tuple(sorted(snapshot.tags)),
}
"""What snapshots can be grouped by."""


def grouped(
    snapshots: Iterable[StoredSnapshot], words: Sequence[str]
) -> list[tuple[Key, list[StoredSnapshot]]]:
    """Those that have equal values for all of these words of GROUPS, by ascending values; no words: one group."""

    def key(snapshot: StoredSnapshot) -> Key:
        return tuple(GROUPS[word](snapshot) for word in words)

    return [(value, list(group)) for value, group in groupby(sorted(snapshots, key=key), key)]


def find(snapshots: Sequence[StoredSnapshot], name: bytes, wanted: Filter = NO_FILTER) -> StoredSnapshot:
    """The one snapshot of this name.  Raises SnapshotNotFound if there is none or more than one, UsageError if `name` cannot be
    the name of a snapshot."""
    if match := _LATEST.fullmatch(name):
        return _latest(choose(snapshots, wanted), int(match[1] or 0), wanted)
    if not _ID.fullmatch(name):
        raise UsageError(
            f'"{_text(name)}" is not a snapshot: give latest, latest~N, or the first digits of an id '
            "(`snapfs snapshots` lists them)"
        )
    digits = name.decode().lower()
    fitting = [snapshot for snapshot in snapshots if snapshot.id.hex().startswith(digits)]
    if not fitting:
        raise SnapshotNotFound(f"no snapshot {digits}: `snapfs snapshots` lists them")
    if len(fitting) > 1:
        some = ", ".join(_abbreviated(snapshot, len(digits)) for snapshot in fitting[:_SHOWN])
        more = ", ..." if len(fitting) > _SHOWN else ""
        raise SnapshotNotFound(f"{digits} fits {len(fitting)} snapshots ({some}{more}): give more digits")
    return fitting[0]


def _latest(snapshots: Sequence[StoredSnapshot], back: int, wanted: Filter) -> StoredSnapshot:
    if not snapshots:
        raise SnapshotNotFound(f"there is no snapshot{wanted.describe()} yet: make one with `snapfs backup`")
    if back >= len(snapshots):
        raise SnapshotNotFound(
            f"no latest~{back}: there are {len(snapshots)} snapshots{wanted.describe()} (latest~0 is the latest)"
        )
    return snapshots[-1 - back]


def _abbreviated(snapshot: StoredSnapshot, given: int) -> str:
    return snapshot.id.hex()[: max(8, given + 4)]


def _text(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
