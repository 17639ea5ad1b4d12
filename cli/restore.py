"""`snapfs restore`."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from snapfs.cli import opening, trust
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import count, document, duration, out, size, text
from snapfs.repo.errors import UsageError
from snapfs.repo.restore import Overwrite, RestoreOptions, RestoreResult, Selection
from snapfs.repo.restore import restore as run_restore
from snapfs.repo.select import Filter

_FAILED, _DAMAGED = 1, 20


@command()
@selection
@click.argument("snapshot", type=BYTES, metavar="SNAPSHOT[:PATH]")
@click.option("-t", "--target", type=BYTES, required=True, metavar="FOLDER", help="Where to put it.")
@click.option("-i", "--include", multiple=True, metavar="PATTERN", help="Only what fits.")
@click.option("--iinclude", multiple=True, metavar="PATTERN", help="The same, ignoring case.")
@click.option("--include-file", multiple=True, metavar="FILE", help="Patterns from a file.")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Not what fits.")
@click.option("--iexclude", multiple=True, metavar="PATTERN", help="The same, ignoring case.")
@click.option("--exclude-file", multiple=True, metavar="FILE", help="Patterns from a file.")
@click.option(
    "--overwrite",
    type=click.Choice([word.value for word in Overwrite]),
    default=Overwrite.ALWAYS.value,
    help="What to do with files that are there (default: always).",
)
@click.option("--delete", is_flag=True, help="Remove from the target what the snapshot does not have.")
@click.option(
    "--sparse", is_flag=True, help="Accepted for restic's sake: holes are always restored as holes."
)
@click.option("--verify", is_flag=True, help="Read everything back afterwards and compare.")
@click.option("-n", "--dry-run", is_flag=True, help="Write nothing, only say what would be (-v: each file).")
@click.option("--ownership-by-name", is_flag=True, help="Owners by name, where this machine has the name.")
@click.option(
    "--strip-components",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Leave out the first N folders of each path.",
)
@trust.option
def restore(settings: Settings, snapshot: bytes, wanted: Filter, target: bytes, **given: Any) -> int:
    """Copy files out of a snapshot, with everything that is kept of them.

    Whole paths are restored below the target: /home/me/a becomes TARGET/home/me/a.  With SNAPSHOT:PATH, what is in PATH goes
    straight into the target.  As root, owners and devices are restored as well.

    \b
    Examples:
      snapfs restore latest -t /tmp/back
      snapfs restore latest:/home/me/documents -t ~/documents-of-yesterday
      snapfs restore 3f2a -t / -i /etc --dry-run -v
    """
    if not target:
        raise UsageError("--target is empty")
    given.pop("sparse")
    selected = {
        "include": given.pop("include"),
        "iinclude": given.pop("iinclude"),
        "include_files": given.pop("include_file"),
        "exclude": given.pop("exclude"),
        "iexclude": given.pop("iexclude"),
        "exclude_files": given.pop("exclude_file"),
    }
    overwrite = Overwrite(given.pop("overwrite"))
    Selection.build(**selected)  # a bad pattern is said before a password is asked for
    (spec,) = opening.adopt_repository(settings, snapshot) or [b""]
    progress = reporter(settings, job=True)
    begun = time.monotonic()
    with opening.open_repository(settings, progress) as repository:
        chosen, path, root = opening.snapshot_at(repository, spec, wanted)
        if not root.is_dir:
            if any(selected.values()):
                raise UsageError(f"{text(path)} is not a folder: with patterns, name the folder it is in")
            folder, _, name = path.rpartition(b"/")
            root = repository.trees.resolve(chosen.record.root, folder)
            selected["include"] = ["/" + _literal(name)]
        given["untrusted"] = trust.is_untrusted(given["untrusted"], repository, chosen, progress)
        options = RestoreOptions(selection=Selection.build(**selected), overwrite=overwrite, **given)
        if not (settings.json or settings.quiet):
            out(
                f"restoring {chosen.short}{'' if path == b'/' else ':' + text(path)} to {text(os.path.abspath(target))}"
            )
        try:
            result = run_restore(repository, root, target, options, progress)
        finally:
            progress.close()
    spent = time.monotonic() - begun
    if settings.json:
        _print_json(result, options, spent)
    elif not settings.quiet:
        _print(result, options, spent)
    return _DAMAGED if result.damaged else _FAILED if result.errors else 0


def _literal(name: bytes) -> str:
    """A pattern that fits this name only."""
    return "".join("\\" + char if char in "*?[]\\" else char for char in os.fsdecode(name))


def _print(result: RestoreResult, options: RestoreOptions, spent: float) -> None:
    done = "would restore" if options.dry_run else "restored"
    more = f", {count(result.others, 'other')}" if result.others else ""
    links = f", {count(result.hard_links, 'hard link')}" if result.hard_links else ""
    out(
        f"{done} {count(result.files, 'file')} ({size(result.bytes)}), {count(result.directories, 'folder')}{more}{links}"
        f" in {duration(spent)}"
    )
    if result.unchanged or result.skipped:
        out(
            f"{result.unchanged:,} were there already, {result.skipped:,} left as they are ({size(result.skipped_bytes)})"
        )
    if result.deleted:
        out(f"{'would delete' if options.dry_run else 'deleted'} {result.deleted:,}")
    if options.verify and not options.dry_run:
        out(f"verified {count(result.verified, 'file')}")
    if result.warnings:
        out(
            f"{count(result.warnings, 'owner, time or attribute', 'owners, times or attributes')} could not be restored"
        )
    if result.errors:
        out(f"{count(result.errors, 'error')}: see above")


def _print_json(result: RestoreResult, options: RestoreOptions, spent: float) -> None:
    document(
        {
            "message_type": "summary",
            "dry_run": options.dry_run,
            "seconds_elapsed": int(spent),
            "total_files": result.files
            + result.directories
            + result.others
            + result.unchanged
            + result.skipped,
            "files_restored": result.files + result.directories + result.others,
            "files_skipped": result.unchanged + result.skipped,
            "files_deleted": result.deleted,
            "files_verified": result.verified,
            "total_bytes": result.bytes + result.skipped_bytes,
            "bytes_restored": result.bytes,
            "bytes_skipped": result.skipped_bytes,
            "error_count": result.errors,
            "warning_count": result.warnings,
        }
    )
