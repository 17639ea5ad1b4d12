"""Every exception snapfs raises on purpose.  Facts are attributes; the message is one line: what failed, why, what to do.

    SnapfsError
    |-- UsageError              arguments that cannot be meant
    |-- WrongPassword           no key slot opens with this password
    |-- SnapshotNotFound        no snapshot, or no path in it, or more than one fits
    |-- RepositoryError         the repository cannot be used: stops a backup
    |   |-- RepositoryNotFound  there is no repository here
    |   |-- RepositoryExists    init where one already is
    |   |-- RepositoryLocked    another process holds it
    |   |-- BackupOnly          the key at hand can add backups, and do nothing else
    |   |-- RolledBack          events are gone that were here: an older state, or files were deleted
    |   |-- UnsupportedFormat   written by a newer snapfs, or with a feature this one lacks
    |   |   `-- OldKeys           sealed with keys that took the place of those this password opens
    |   |-- StorageError        the place itself failed: I/O error, full disk, no permission
    |   `-- Damaged             bytes are not what was written
    |       |-- BlobMissing     no volume holds a blob that something refers to
    |       `-- VolumeMissing   a volume that the index knows is not there
    |-- SourceError             one file of the source could not be read: reported, the rest goes on
    |-- TargetError             one file could not be restored: reported, the rest goes on
    `-- MountError              the mount could not be made or taken away

SourceError and RepositoryError are never mixed: a full repository disk must not look like an unreadable file.
"""

from __future__ import annotations

from collections.abc import Sequence


class SnapfsError(Exception):
    """Base of all; `exit_code` is the documented exit code of the command line."""

    exit_code = 1


class UsageError(SnapfsError):
    pass


class WrongPassword(SnapfsError):
    exit_code = 12


class SnapshotNotFound(SnapfsError):
    pass


class RepositoryError(SnapfsError):
    pass


class RepositoryNotFound(RepositoryError):
    exit_code = 10

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class RepositoryExists(RepositoryError):
    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class RepositoryLocked(RepositoryError):
    exit_code = 11


class BackupOnly(RepositoryError):
    exit_code = 13

    def __init__(self, what: str = "") -> None:
        super().__init__(
            f"this key can only back up{what}: for all but `snapfs backup`, use a password that opens the whole repository"
        )


class RolledBack(RepositoryError):
    """`missing`: what is known of each event that is gone."""

    exit_code = 25

    def __init__(self, missing: Sequence[str]) -> None:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        super().__init__(
            f"{missing[0]}{more}: bring the newer state back, or go on with this one and remember that: --accept-rollback"
        )
        self.missing = tuple(missing)


class UnsupportedFormat(RepositoryError):
    pass


class OldKeys(UnsupportedFormat):
    exit_code = 26


class StorageError(RepositoryError):
    """`errno` is that of the failed call, or None."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class Damaged(RepositoryError):
    """`where` names the object (a volume, an event, the config), with offset where one is known."""

    exit_code = 20

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class BlobMissing(Damaged):
    def __init__(self, blob: bytes, where: str = "") -> None:
        super().__init__(f"blob {blob.hex()[:16]} is in no volume", where)
        self.blob = blob


class VolumeMissing(Damaged):
    pass


class SourceError(SnapfsError):
    exit_code = 3

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"{path.decode('utf-8', 'backslashreplace')}: {reason}")
        self.path = path
        self.reason = reason


class TargetError(SnapfsError):
    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"{path.decode('utf-8', 'backslashreplace')}: {reason}")
        self.path = path
        self.reason = reason


class MountError(SnapfsError):
    exit_code = 24
