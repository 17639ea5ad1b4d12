"""What a backup is asked to do, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from snapfs.repo.backup.patterns import Excludes
from snapfs.repo.model import Totals
from snapfs.repo.state import StoredSnapshot


class Stream(Protocol):
    """A pipe: `readinto` waits for some bytes and says how many came; 0 at the end."""

    def readinto(self, room: memoryview, /) -> int | None: ...


@dataclass(frozen=True)
class BackupOptions:
    """`paths` are made absolute; `time` is in ns, None for now; `parent` None picks the newest of the same
    host and paths."""

    paths: tuple[bytes, ...]
    host: bytes
    user: bytes
    excludes: Excludes = field(default_factory=Excludes.build)
    tags: tuple[bytes, ...] = ()
    time: int | None = None
    parent: StoredSnapshot | None = None
    force: bool = False
    """Read every file, whatever the parent says."""
    one_file_system: bool = False
    dry_run: bool = False
    skip_if_unchanged: bool = False
    with_atime: bool = False
    compression: str = "auto"
    volume_size: int | None = None
    stdin: Stream | None = None
    """Back up this stream as one file instead of `paths`."""
    stdin_filename: bytes = b"stdin"
    checkpoint_seconds: float = 900.0


@dataclass(frozen=True)
class BackupResult:
    snapshot: StoredSnapshot | None
    """None for a dry run, and when nothing had changed and --skip-if-unchanged was given."""
    totals: Totals
    errors: int
    parent: StoredSnapshot | None
    skipped: bool = False
