"""--untrusted/--trusted: whether a snapshot's owners, bits and devices may lend rights to those who wrote it."""

from __future__ import annotations

import click

from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot

_LEFT_OUT = "setuid and setgid bits, devices and security attributes are left out"

option = click.option(
    "--untrusted/--trusted",
    default=None,
    help="No setuid bits, devices or security attributes (default: if this machine did not make the repository), or all.",
)


def is_untrusted(
    given: bool | None, repository: Repository, snapshot: StoredSnapshot, progress: Progress
) -> bool:
    """As the option says; where it was not given, by who wrote, which is then said."""
    if given is not None:
        return given
    if not repository.created_here:
        progress.notice(
            f"this repository was not made on this machine: {_LEFT_OUT}; if you trust all who write to it: --trusted"
        )
        return True
    if snapshot.backup_only:
        progress.notice(
            f"a machine that can only back up made this snapshot: {_LEFT_OUT}; if you trust that machine: --trusted"
        )
        return True
    return False
