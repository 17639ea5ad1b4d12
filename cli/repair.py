"""`snapfs repair index`, `volumes`, `snapshots`."""

from __future__ import annotations

import json

import click

from snapfs.cli.check import affected_json, print_affected
from snapfs.cli.opening import adopt_repository, open_repository
from snapfs.cli.options import BYTES, Settings, command, selection, settings_options
from snapfs.cli.progress import reporter
from snapfs.cli.render import complain, count, document, line, out, size
from snapfs.repo.errors import Damaged, UsageError
from snapfs.repo.repair.snapshots import MendedSnapshot, SnapshotsMended, repair_snapshots
from snapfs.repo.repair.volumes import MendedVolume, VolumesMended, repair_volumes
from snapfs.repo.select import Filter, choose, find


@click.group()
@settings_options(hidden=True)
def repair() -> None:
    """Mend what can be mended.

    Nothing is deleted: what is replaced is set aside, or stays where it is.  If you have a copy of the repository, copy the
    damaged files back from it instead.  Otherwise, in this order: `snapfs check --read-data`, a backup, `snapfs repair
    volumes`, `snapfs repair snapshots`.

    \b
    Examples:
      snapfs repair volumes
      snapfs repair snapshots -n
      snapfs repair index
    """


@command(name="index")
def index(settings: Settings) -> None:
    """Build the index anew from the volumes.

    The index is this machine's list of what is where in the repository.  A damaged or missing one is rebuilt without being
    asked; this is for when it is suspected of being wrong.

    \b
    Example:
      snapfs repair index
    """
    progress = reporter(settings, job=True)
    with open_repository(settings, progress) as repository:
        try:
            repository.synchronise(thorough=True, progress=progress)
        finally:
            progress.close()
        volumes = list(repository.index.volumes())
    unusable = sum(not volume.usable for volume in volumes)
    if settings.json:
        document({"message_type": "summary", "volumes": len(volumes), "damaged_volumes": unusable})
    elif not settings.quiet:
        out(f"rebuilt the index from {count(len(volumes), 'volume')}")
        if unusable:
            out(f"{count(unusable, 'volume')} damaged: `snapfs check` names the files")


@command(name="volumes")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what could be saved.")
def volumes(settings: Settings, ids: tuple[str, ...], dry_run: bool) -> int:
    """Make damaged volumes whole, or save what still opens in them, and set them aside.

    Without ids: the volumes that `snapfs check --read-data`, or reading, found damaged.  What its parity makes whole takes its
    own place.  Of the others, every piece that still opens is stored in new volumes, and they are moved to trash/ in the
    repository, where nothing looks; moving them back undoes it.  One that the disk cannot read stays in its place as long as it
    may hold something that is nowhere else.

    Files that cannot be given back are named, and the exit code is 20; without any it is 0.

    \b
    Examples:
      snapfs repair volumes
      snapfs repair volumes -n 63f909a6
    """
    progress = reporter(settings, job=True)
    if not all(ids):
        raise UsageError("an empty word names no volume")
    with open_repository(settings, progress) as repository:
        try:
            result = repair_volumes(repository, ids, dry_run=dry_run, progress=progress)
        finally:
            progress.close()
    if settings.json:
        _volumes_json(result, dry_run)
    else:
        _print_volumes(settings, result, dry_run)
    return Damaged.exit_code if result.found.affected_count or result.found.problem_count else 0


def _print_volumes(settings: Settings, result: VolumesMended, dry_run: bool) -> None:
    for volume in result.volumes:
        for problem in volume.problems:
            complain(f"damage: {volume.path}: {line(problem)}")
        if not settings.quiet:
            out(f"{volume.path}: {_saved(volume, dry_run)}")
    print_affected(result.found, "cannot be read now" if dry_run else "lost")
    if settings.quiet:
        return
    for path in result.sound:
        out(f"{path}: sound, nothing to do")
    if not result.volumes and not result.sound:
        out("no volume is known to be damaged: `snapfs check --read-data` looks at every byte of them")
    elif not dry_run and result.volumes:
        if not all(volume.whole for volume in result.volumes):
            out(f"stored {size(result.bytes_stored)} in new volumes")
        if result.found.affected_count:
            out(
                f"{count(result.found.affected_count, 'file')} of snapshots cannot be given back: run the backup again if the "
                "sources still have them, then `snapfs repair snapshots`"
            )
        else:
            out("nothing that a snapshot needs is lost")


def _saved(volume: MendedVolume, dry_run: bool) -> str:
    if volume.whole:
        return "could be made whole from its parity" if dry_run else "made whole from its parity"
    lost = "what else was in it is not known" if volume.lost is None else f"{volume.lost:,} lost"
    if dry_run:
        return f"{count(volume.saved, 'blob')} can be saved, {lost}"
    where = f"moved to {volume.aside}" if volume.aside else "left there, the disk cannot read all of it"
    return f"{count(volume.saved, 'blob')} saved, {lost}; {where}"


def _volumes_json(result: VolumesMended, dry_run: bool) -> None:
    for volume in result.volumes:
        for problem in volume.problems:
            error = {"message_type": "error", "kind": "volume", "message": problem, "where": volume.path}
            complain(json.dumps(error))
        document(
            {
                "message_type": "volume",
                "path": volume.path,
                "saved_blobs": volume.saved,
                "lost_blobs": 0 if volume.whole else volume.lost,
                "made_whole": volume.whole,
                "moved_to": volume.aside or None,
            }
        )
    affected_json(result.found)
    document(
        {
            "message_type": "summary",
            "dry_run": dry_run,
            "damaged_volumes": len(result.volumes),
            "sound_volumes": len(result.sound),
            "bytes_stored": result.bytes_stored,
            "affected_files": result.found.affected_count,
        }
    )


@command(name="snapshots")
@selection
@click.argument("ids", nargs=-1, type=BYTES, metavar="[SNAP]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be left out.")
@click.option("--forget", is_flag=True, help="Take the damaged snapshots out of the list.")
def snapshots(
    settings: Settings, ids: tuple[bytes, ...], wanted: Filter, dry_run: bool, forget: bool
) -> None:
    """Make new snapshots without the files that cannot be read.

    Each has the tag "repaired" and stands right behind the damaged one, which is not touched, and stays in the list unless
    --forget.  Each file that is left out is named.  This looks where `snapfs check` looks: run `snapfs check --read-data` first.

    \b
    Examples:
      snapfs repair snapshots -n
      snapfs repair snapshots --forget 3f2a
    """
    progress = reporter(settings, job=True)
    if not all(ids):
        raise UsageError("an empty word names no snapshot")
    specs = adopt_repository(settings, *ids)
    with open_repository(settings, progress) as repository:
        everything = repository.snapshots()
        chosen = [find(everything, name, wanted) for name in specs] if specs else choose(everything, wanted)
        try:
            result = repair_snapshots(
                repository, dict.fromkeys(chosen), forget=forget, dry_run=dry_run, progress=progress
            )
        finally:
            progress.close()
    if settings.json:
        _snapshots_json(result, dry_run)
    else:
        _print_snapshots(settings, result, dry_run)


def _print_snapshots(settings: Settings, result: SnapshotsMended, dry_run: bool) -> None:
    print_affected(result.left_out, "would leave out" if dry_run else "left out")
    if settings.quiet:
        return
    for mended in result.snapshots:
        out(f"{mended.original.short}: {_fate(mended)}")
    out(f"{count(result.whole, 'snapshot')} whole, {len(result.snapshots):,} damaged")


def _fate(mended: MendedSnapshot) -> str:
    if mended.hopeless:
        return "nothing of it can be read: no new snapshot, and it stays in the list"
    if mended.new is None:
        return "damaged"
    made = "had been mended before, as" if mended.was_there else "a new snapshot without what is lost:"
    return f"{made} {mended.new.short}{'; forgotten' if mended.forgotten else ''}"


def _snapshots_json(result: SnapshotsMended, dry_run: bool) -> None:
    affected_json(result.left_out)
    for mended in result.snapshots:
        document(
            {
                "message_type": "snapshot",
                "id": mended.original.id.hex(),
                "new_id": None if mended.new is None else mended.new.id.hex(),
                "forgotten": mended.forgotten,
                "hopeless": mended.hopeless,
            }
        )
    document(
        {
            "message_type": "summary",
            "dry_run": dry_run,
            "whole_snapshots": result.whole,
            "damaged_snapshots": len(result.snapshots),
            "affected_files": result.left_out.affected_count,
        }
    )


for one in (index, volumes, snapshots):
    repair.add_command(one)
