"""What a restore is asked for, and what came of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from snapfs.repo.errors import UsageError
from snapfs.repo.restore.selection import EVERYTHING, Selection


class Overwrite(enum.StrEnum):
    """What happens to an entry that the target has already (restic's words)."""

    ALWAYS = "always"
    IF_CHANGED = "if-changed"
    """A file of the same size and mtime keeps its content; its metadata is restored."""
    IF_NEWER = "if-newer"
    """Only if the snapshot's mtime is later; else it is not touched."""
    NEVER = "never"


@dataclass(frozen=True)
class RestoreOptions:
    """Holes are always restored as holes, so there is no option for them."""

    selection: Selection = EVERYTHING
    overwrite: Overwrite = Overwrite.ALWAYS
    delete: bool = False
    """Remove what the snapshot does not have from directories that were restored without an error."""
    dry_run: bool = False
    verify: bool = False
    """Read the target back from the disk afterwards and compare it with the ids of the blobs."""
    ownership_by_name: bool = False
    """Owners by name where this machine knows the name, else by number."""
    strip_components: int = 0
    """Leave out so many leading components of every path, and entries that have no more."""
    untrusted: bool = False
    """Leave out setuid and setgid bits, devices, and security.* and trusted.* attributes."""
    root_metadata: bool = False
    """Give the metadata of the restored directory to the target even if the target was there before."""

    def check(self, target: bytes) -> None:
        """Raise UsageError for what contradicts itself, or would delete a whole system."""
        if self.strip_components < 0:
            raise UsageError("--strip-components must not be negative")
        if self.delete and self.strip_components:
            raise UsageError(
                "--delete and --strip-components do not go together: folders of several origins become one"
            )
        if self.delete and not self.selection and target.strip(b"/") == b"":
            raise UsageError(
                "--delete with the target / would remove this system: add --include or --exclude, or another target"
            )


@dataclass
class RestoreResult:
    """Counts of entries, sizes in bytes.  In a dry run: what would be."""

    files: int = 0
    """Regular files written."""
    directories: int = 0
    """Made, or given their metadata."""
    others: int = 0
    hard_links: int = 0
    """Further names of files written."""
    bytes: int = 0
    """Logical bytes of the files written."""
    unchanged: int = 0
    """Entries whose content was there already."""
    skipped: int = 0
    """Entries of the target that were kept as they are, and devices left out of an untrusted snapshot."""
    skipped_bytes: int = 0
    """Logical bytes of unchanged and skipped files."""
    deleted: int = 0
    verified: int = 0
    """Files read back and found to be what they should be."""
    errors: int = 0
    """Entries that could not be restored, or were not what they should be when read back.  Includes `damaged`."""
    warnings: int = 0
    """Attributes, owners or times that could not be restored."""
    damaged: int = 0
    """Entries lost to damaged or missing blobs of the repository (exit code 20)."""
