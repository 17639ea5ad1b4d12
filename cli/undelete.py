"""`snapfs undelete`: forgotten snapshots back into the list."""

from __future__ import annotations

from collections.abc import Sequence

import click

from snapfs.cli.check import affected_json, print_affected
from snapfs.cli.opening import adopt_repository, open_repository
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import count, document, out
from snapfs.cli.snapshots import all_named, print_table, snapshot_json
from snapfs.repo.errors import SnapshotNotFound, UsageError
from snapfs.repo.select import Filter, choose, find, is_name
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.undelete import undelete as run_undelete


@command()
@selection
@click.argument("ids", nargs=-1, type=BYTES, metavar="[ID]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only look whether they can be brought back.")
@click.option("-c", "--compact", is_flag=True, help="Shorter lines.")
def undelete(
    settings: Settings, ids: tuple[bytes, ...], wanted: Filter, dry_run: bool, compact: bool
) -> None:
    """Bring forgotten snapshots back: those named, or all that --host, --tag and --path choose.

    `snapfs snapshots --forgotten` lists them.  This looks first whether all that they need is there still; if not, what is gone
    is named, and nothing is changed.

    \b
    Examples:
      snapfs snapshots --forgotten
      snapfs undelete 3f2a 91bc
      snapfs undelete --host laptop
    """
    all_named(ids)
    if not ids and not wanted:
        raise UsageError(
            "which snapshots? name forgotten ones (`snapfs snapshots --forgotten` lists them), or choose some with --host, --tag "
            "or --path"
        )
    progress = reporter(settings)
    specs = adopt_repository(settings, *ids)
    with open_repository(settings, progress) as repository:
        shown = repository.snapshots()
        forgotten = repository.events.load().forgotten_snapshots
        found = (
            [_forgotten(forgotten, shown, spec, wanted) for spec in specs]
            if specs
            else choose(forgotten, wanted)
        )
        chosen = sorted(set(found), key=lambda s: (s.record.time, s.id))
        try:
            result = run_undelete(repository, chosen, dry_run=dry_run, progress=progress)
        finally:
            progress.close()
    if settings.json:
        affected_json(result)
    else:
        print_affected(result, "gone")
    if not result.ok:
        raise SnapshotNotFound(
            f"nothing was brought back: {count(max(result.affected_count, 1), 'file')} of "
            f"{count(len(chosen), 'snapshot')} cannot be read any more (prune, or damage, has taken what they need)"
        )
    if settings.json:
        done = [snapshot_json(snapshot) for snapshot in chosen]
        document({"message_type": "summary", "dry_run": dry_run, "undeleted_snapshots": done})
        return
    print_table(chosen, compact)
    if not chosen and not settings.quiet:
        out(f"no forgotten snapshots{wanted.describe()}")
    elif not settings.quiet:
        what = count(len(chosen), "snapshot")
        out(f"all of {what} is there still" if dry_run else f"brought back {what}")


def _forgotten(
    forgotten: Sequence[StoredSnapshot], shown: Sequence[StoredSnapshot], spec: bytes, wanted: Filter
) -> StoredSnapshot:
    """The one of this name.  Raises SnapshotNotFound, UsageError."""
    if is_name(spec) and not spec.startswith(b"latest"):
        digits = spec.decode().lower()
        if not any(snapshot.id.hex().startswith(digits) for snapshot in forgotten):
            listed = any(snapshot.id.hex().startswith(digits) for snapshot in shown)
            where = "it is in the list" if listed else "`snapfs snapshots --forgotten` lists them"
            raise SnapshotNotFound(f"no forgotten snapshot {digits}: {where}")
    return find(forgotten, spec, wanted)
