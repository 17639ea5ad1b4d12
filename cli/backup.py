"""`snapfs backup`."""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import datetime
from typing import Any

import click

from snapfs.cli.init import who
from snapfs.cli.opening import open_repository
from snapfs.cli.options import BYTES, MIB, SIZE, Settings, command, contradiction
from snapfs.cli.progress import Reporter, ending_gently, reporter
from snapfs.cli.render import SECOND, count, document, duration, iso, out, size, text
from snapfs.repo.backup.engine import backup as run_backup
from snapfs.repo.backup.files_from import files_from
from snapfs.repo.backup.options import BackupOptions, BackupResult
from snapfs.repo.backup.patterns import Excludes
from snapfs.repo.errors import BackupOnly, UsageError
from snapfs.repo.repository import Repository
from snapfs.repo.select import find, parse_tags

_UNREADABLE = 3
_FARTHEST = 1 << 63
"""Nanoseconds from 1970, either way, that fit into the record of a snapshot."""


@command()
@click.argument("paths", nargs=-1, type=BYTES)
@click.option(
    "-e", "--exclude", multiple=True, metavar="PATTERN", help="Leave out what fits (*.o, /home/*/cache)."
)
@click.option("--iexclude", multiple=True, metavar="PATTERN", help="The same, ignoring case.")
@click.option("--exclude-file", "--exclude-from", multiple=True, metavar="FILE", help="Patterns from a file.")
@click.option("--iexclude-file", multiple=True, metavar="FILE", help="The same, ignoring case.")
@click.option(
    "--exclude-if-present",
    multiple=True,
    metavar="NAME[:HEADER]",
    help="Leave out folders that hold such a file.",
)
@click.option("--exclude-caches", is_flag=True, help="Leave out folders marked with a CACHEDIR.TAG.")
@click.option("--exclude-larger-than", type=SIZE, metavar="SIZE", help="Leave out files over this size.")
@click.option("--git-ignore", is_flag=True, help="Leave out what .gitignore files say.")
@click.option("--files-from", multiple=True, metavar="FILE", help="Back up what the patterns in a file fit.")
@click.option(
    "--files-from-verbatim", multiple=True, metavar="FILE", help="Back up the paths in a file, one a line."
)
@click.option(
    "--files-from-raw",
    multiple=True,
    metavar="FILE",
    help="Back up the paths in a file, each ended by a NUL byte.",
)
@click.option("-x", "--one-file-system", is_flag=True, help="Stay on the file systems of the paths.")
@click.option("-n", "--dry-run", is_flag=True, help="Store nothing, only say what would be (-v: each file).")
@click.option("--stdin", is_flag=True, help="Back up what comes from standard input, as one file.")
@click.option("--stdin-filename", type=BYTES, metavar="NAME", help="Its name (default: stdin).")
@click.option("--skip-if-unchanged", is_flag=True, help="Make no snapshot equal to the last one.")
@click.option(
    "--tag", type=BYTES, multiple=True, metavar="TAG[,TAG...]", help="Tags of the snapshot; can be repeated."
)
@click.option("-H", "--host", type=BYTES, envvar="SNAPFS_HOST", help="The host's name (default: this one's).")
@click.option(
    "--time", "when", metavar="TIME", help='The snapshot\'s time: "2026-01-31 12:00:00" (default: now).'
)
@click.option("-f", "--force", is_flag=True, help="Read all files again, changed or not.")
@click.option(
    "--parent",
    type=BYTES,
    metavar="SNAPSHOT",
    help="Compare with this one (default: the last of host and paths).",
)
@click.option(
    "--compression",
    type=click.Choice(["auto", "off", "fastest", "better", "max"]),
    default="auto",
    envvar="SNAPFS_COMPRESSION",
    help="How hard to compress.",
)
@click.option("--with-atime", is_flag=True, help="Keep the times of last access, too.")
@click.option(
    "--volume-size",
    "--pack-size",
    type=MIB,
    envvar="SNAPFS_PACK_SIZE",
    metavar="MIB",
    help="Size of the files in data/, in MiB.",
)
def backup(settings: Settings, paths: tuple[bytes, ...], **given: Any) -> int:
    """Make a snapshot of files and folders.

    Only what changed since the last snapshot is read and stored.  Files that cannot be read are named, the rest is backed up,
    and the exit code is 3.

    \b
    Examples:
      snapfs backup ~/documents ~/photos
      snapfs backup / -x --exclude-caches -e /tmp --tag daily
      snapfs backup --git-ignore -n -v ~/src
      pg_dump shop | snapfs backup --stdin --stdin-filename shop.sql
    """
    progress = reporter(settings, job=True)
    if given["parent"] and given["force"]:
        contradiction(parent=True, force=True)
    excludes = _excludes(given)
    sources = _sources(paths, given, progress)
    when = None if given["when"] is None else parse_time(given["when"])
    if when is not None and not -_FARTHEST <= when < _FARTHEST:
        raise UsageError(f"--time {given['when']}: a snapshot's time lies between the years 1678 and 2262")
    tags = tuple(sorted({tag for tags in parse_tags(given["tag"]) for tag in tags}))
    begun = time.time_ns()
    with open_repository(settings, progress, backing_up=True) as repository:
        keys = repository.keys
        if not keys.can_read and given["parent"] is not None:
            raise BackupOnly(", and goes on from its own last snapshot, so there is no --parent")
        options = BackupOptions(
            paths=sources,
            host=given["host"] or (os.fsencode(socket.gethostname()) if keys.can_read else keys.host),
            user=os.fsencode(who()["user"]),
            excludes=excludes,
            tags=tags,
            time=when,
            parent=None if given["parent"] is None else find(repository.snapshots(), given["parent"]),
            force=given["force"],
            one_file_system=given["one_file_system"],
            dry_run=given["dry_run"],
            skip_if_unchanged=given["skip_if_unchanged"],
            with_atime=given["with_atime"],
            compression=given["compression"],
            volume_size=given["volume_size"],
            stdin=_Stdin() if given["stdin"] else None,
            stdin_filename=given["stdin_filename"] or b"stdin",
        )
        result = _run(repository, options, progress)
    if settings.json:
        document(_summary(result, begun, given["dry_run"]))
    elif not settings.quiet:
        _tell(result, given["dry_run"])
    return _UNREADABLE if result.errors else 0


class _Stdin:
    """Standard input, one system call at a time: sys.stdin.buffer does not notice a Ctrl-C between two of its reads."""

    def readinto(self, room: memoryview, /) -> int:
        try:
            return os.readv(sys.stdin.fileno(), [room])
        except OSError as error:
            raise UsageError(f"standard input cannot be read: {error.strerror}") from error


def _run(repository: Repository, options: BackupOptions, progress: Reporter) -> BackupResult:
    try:
        if options.stdin is not None:  # nothing of a stream that broke off is worth keeping
            return run_backup(repository, options, progress)
        with ending_gently(progress):
            return run_backup(repository, options, progress)
    finally:
        progress.close()


def _excludes(given: dict[str, Any]) -> Excludes:
    return Excludes.build(
        exclude=given["exclude"],
        iexclude=given["iexclude"],
        exclude_files=given["exclude_file"],
        iexclude_files=given["iexclude_file"],
        if_present=given["exclude_if_present"],
        caches=given["exclude_caches"],
        larger_than=given["exclude_larger_than"],
        git_ignore=given["git_ignore"],
    )


def _sources(paths: tuple[bytes, ...], given: dict[str, Any], progress: Reporter) -> tuple[bytes, ...]:
    lists = {name: given[name] for name in ("files_from", "files_from_verbatim", "files_from_raw")}
    if given["stdin"]:
        contradiction(stdin=True, **lists)
        if paths:
            raise UsageError("--stdin and paths contradict each other: what is to be backed up?")
        if sys.stdin.name == os.devnull:  # main() put it there; `< /dev/null` is called <stdin>
            raise UsageError("--stdin: standard input is closed, so there is nothing to back up")
        return ()
    if given["stdin_filename"] is not None:
        raise UsageError("--stdin-filename means nothing without --stdin")
    if any(not path for path in paths):
        raise UsageError("an empty path cannot be backed up")

    def unmatched(pattern: bytes) -> None:
        progress.notice(f"--files-from: nothing fits {text(pattern)}")

    listed = files_from(
        given["files_from"],
        given["files_from_verbatim"],
        given["files_from_raw"],
        sys.stdin.buffer,
        unmatched,
    )
    if not paths and not listed:
        if any(lists.values()):
            raise UsageError("nothing to back up: the lists of files name nothing")
        raise UsageError("nothing to back up: name at least one file or folder (snapfs backup ~/documents)")
    return (*paths, *listed)


def parse_time(given: str) -> int:
    """ "2026-01-31 12:00:00", "now", or ISO 8601, in local time unless it names an offset -> ns.  Raises UsageError."""
    if given == "now":
        return time.time_ns()
    try:
        when = datetime.fromisoformat(given.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f'--time {given}: not a time like "2026-01-31 12:00:00"') from None
    return int(when.replace(microsecond=0).timestamp()) * SECOND + when.microsecond * 1000


def _tell(result: BackupResult, dry_run: bool) -> None:
    totals = result.totals
    for what, new, changed, unmodified in (
        ("files", totals.files_new, totals.files_changed, totals.files_unmodified),
        ("folders", totals.dirs_new, totals.dirs_changed, totals.dirs_unmodified),
    ):
        out(f"{what + ':':<9} {new:>9,} new, {changed:>9,} changed, {unmodified:>9,} unmodified")
    added = f"{size(totals.bytes_added)} of new data"
    out(
        f"{'would add:' if dry_run else 'added:':<9} "
        + (added if dry_run else f"{added}, {size(totals.bytes_stored)} stored")
    )
    out(
        f"processed {count(totals.files, 'file')}, {size(totals.size)} in {duration(totals.duration / SECOND)}"
    )
    if result.errors:
        out(f"{count(result.errors, 'file')} could not be read properly: see the errors above")
    if result.snapshot is not None:
        out(f"snapshot {result.snapshot.short} saved")
    elif result.skipped:
        out("nothing has changed, so no snapshot was made")


def _summary(result: BackupResult, begun: int, dry_run: bool) -> dict[str, Any]:
    """restic's words."""
    totals = result.totals
    return {
        "message_type": "summary",
        **({"dry_run": True} if dry_run else {}),
        **totals_json(totals),
        "total_duration": round(totals.duration / SECOND, 3),
        "backup_start": iso(begun),
        "backup_end": iso(time.time_ns()),
        "error_count": result.errors,
        **({"snapshot_id": result.snapshot.id.hex()} if result.snapshot is not None else {}),
    }


def totals_json(totals: Any) -> dict[str, int]:
    """model.Totals in restic's words."""
    return {
        "files_new": totals.files_new,
        "files_changed": totals.files_changed,
        "files_unmodified": totals.files_unmodified,
        "dirs_new": totals.dirs_new,
        "dirs_changed": totals.dirs_changed,
        "dirs_unmodified": totals.dirs_unmodified,
        "data_blobs": totals.data_blobs,
        "tree_blobs": totals.tree_blobs,
        "data_added": totals.bytes_added,
        "data_added_packed": totals.bytes_stored,
        "total_files_processed": totals.files,
        "total_bytes_processed": totals.size,
    }
