"""What the events of a repository add up to: its snapshots, their tags, who added which key slot, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from snapfs.repo.counting import Rotation
from snapfs.repo.doubts import Times
from snapfs.repo.format.records import Head
from snapfs.repo.model import Snapshot


class StoredSnapshot(NamedTuple):
    """A snapshot as it stands now."""

    id: bytes
    record: Snapshot
    tags: tuple[bytes, ...]
    """As of now: tag events may have changed what the record says."""
    client: bytes
    backup_only: bool = False
    """A machine made it that can only back up, or it was made of such a one: nobody else's earlier snapshot, and not to be
    trusted blindly."""

    @property
    def short(self) -> str:
        return self.id.hex()[:8]


class KeyNote(NamedTuple):
    """Who added a key slot, and when (ns)."""

    label: str
    host: str
    user: str
    time: int
    is_recovery: bool = False
    """Whether a recovery key opens it, and not a password that somebody chose."""
    epoch: int = 1
    """Of the newest keys in it."""
    backs_up: str | None = None
    """The host that it may back up, where it can do nothing else."""

    @property
    def kind(self) -> str:
        """For users."""
        if self.backs_up is not None:
            return "backup-only"
        return "recovery key" if self.is_recovery else "password"


@dataclass
class State:
    """What the events add up to."""

    snapshots: list[StoredSnapshot] = field(default_factory=list)
    """Complete and not forgotten, ascending by when they count as made."""
    checkpoints: list[StoredSnapshot] = field(default_factory=list)
    forgotten: frozenset[bytes] = frozenset()
    """Ids of snapshots that are not shown any more."""
    forgotten_snapshots: list[StoredSnapshot] = field(default_factory=list)
    """Those of them that are complete, in the same order: what an undelete may bring back."""
    unknown: int = 0
    """Events of types that this version does not know."""
    times: Times = field(default_factory=Times)
    """What is known of the times of snapshots besides what they state."""
    refused: dict[str, int] = field(default_factory=dict)
    """Why events of machines that can only back up do not count -> how many."""
    made: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Id -> when it counts as made (doubts.made)."""
    problems: list[str] = field(default_factory=list)
    """All that is wrong with the events; what is `missing` is among it."""
    missing: dict[bytes, str] = field(default_factory=dict)
    """Events that were here and are not (b"": all of them), and how that is known; without those whose loss was accepted."""
    accepted: tuple[bytes, ...] = ()
    """Names of missing events whose loss was accepted on this machine."""
    key_notes: dict[bytes, KeyNote] = field(default_factory=dict)
    heads: tuple[Head, ...] = ()
    newer: int = 0
    """Events that these keys do not open, but those that took their place."""
    late: int = 0
    """Events that do not count: sealed with keys that had been changed when they came."""
    rotations: list[Rotation] = field(default_factory=list)
    """Each time that the keys were changed, in order."""
    closed: Rotation | None = None
    """The keys that this process has were changed: nothing that they seal from then on counts."""
    listed: frozenset[bytes] = frozenset()
    """Names of events and volumes that were there when the keys were changed last."""
    notices: list[str] = field(default_factory=list)
    """What is to be said of all this, and is no damage."""
    sequence: int = 0
    """The highest sequence number of this client."""


def refused_events(refused: Mapping[str, int]) -> str:
    """What is said of them, in one line."""
    why = "; ".join(f"{number}: {why}" for why, number in sorted(refused.items()))
    return f"{sum(refused.values())} events that were sealed with a key that can only back up do not count ({why})"
