"""What a check found, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

LISTED = 10_000
"""Problems and affected files kept, at most, of each; all are counted."""


class Problem(NamedTuple):
    """Damage.  `kind`: event, config, key, volume, parity, blob or tree; `where`: the object or blob, or a path in a snapshot."""

    kind: str
    message: str
    where: str


class Affected(NamedTuple):
    """What cannot be read back whole.  `what`: content (attributes are part of it), or listing (of a directory)."""

    snapshot: str
    """8 hex digits."""
    path: bytes
    what: str


@dataclass
class CheckResult:
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    affected: list[Affected] = field(default_factory=list)
    affected_count: int = 0
    notes: list[str] = field(default_factory=list)
    """What is no damage: leftovers, volumes that nothing needs, an index that was corrected."""
    missing_events: int = 0
    """Problems that are events which were here and are gone: a rollback."""
    newer_keys: int = 0
    """Volumes that newer keys sealed, which took the place of those in use: what looks lost may have been moved there."""
    snapshots: int = 0
    volumes: int = 0
    blobs: int = 0
    """In all volumes."""
    pages: int = 0
    """Distinct directory pages walked."""
    bytes_stored: int = 0
    volumes_read: int = 0
    """Of which every byte was read."""
    bytes_read: int = 0
    """Of volumes, with `read_data`."""
    bytes_plain: int = 0
    """Plaintext of all blobs."""

    @property
    def only_rolled_back(self) -> bool:
        """Nothing is damaged, and events are missing."""
        return 0 < self.missing_events == self.problem_count

    @property
    def ok(self) -> bool:
        return not self.problem_count

    def add(self, kind: str, message: str, where: str) -> None:
        self.problem_count += 1
        if len(self.problems) < LISTED:
            self.problems.append(Problem(kind, message, where))

    def name(self, snapshot: str, path: bytes, what: str) -> None:
        self.affected_count += 1
        if len(self.affected) < LISTED:
            self.affected.append(Affected(snapshot, path or b"/", what))

    def take(self, other: CheckResult) -> None:
        """Add what another look found: problems, affected files, snapshots and pages."""
        self.problem_count += other.problem_count
        self.problems += other.problems[: max(LISTED - len(self.problems), 0)]
        self.affected_count += other.affected_count
        self.affected += other.affected[: max(LISTED - len(self.affected), 0)]
        self.snapshots += other.snapshots
        self.pages += other.pages
