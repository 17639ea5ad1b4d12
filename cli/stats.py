"""`snapfs stats`."""

from __future__ import annotations

import click

from snapfs.cli.opening import adopt_repository, open_repository
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import count, document, out, size
from snapfs.repo.query.stats import Mode
from snapfs.repo.query.stats import stats as run_stats
from snapfs.repo.select import Filter, choose, find


@command()
@selection
@click.argument("ids", nargs=-1, type=BYTES, metavar="[SNAPSHOT]...")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.RESTORE_SIZE.value,
    help="What to count (default: restore-size).",
)
def stats(settings: Settings, ids: tuple[bytes, ...], wanted: Filter, mode: str) -> None:
    """Show how much the snapshots hold: all, or those that are named or chosen.

    \b
    restore-size       what a restore of each would write
    files-by-contents  equal files once
    blobs-per-file     equal pieces of a file once
    raw-data           what they take in the repository

    \b
    Examples:
      snapfs stats latest
      snapfs stats --mode raw-data
    """
    names = [name for name in adopt_repository(settings, *ids) if name]
    progress = reporter(settings)
    with open_repository(settings, progress) as repository:
        everything = repository.snapshots()
        found = [find(everything, name, wanted) for name in names] or choose(everything, wanted)
        chosen = list({snapshot.id: snapshot for snapshot in found}.values())
        try:
            result = run_stats(repository, chosen, Mode(mode), progress=progress)
        finally:
            progress.close()
    if settings.json:
        ratio = (
            {"compression_ratio": round(result.plain / result.size, 4)}
            if result.size and result.plain
            else {}
        )
        document(
            {
                "mode": mode,
                "snapshots_count": result.snapshots,
                "total_file_count": result.files,
                "total_blob_count": result.blobs,
                "total_size": result.size,
                **({"total_uncompressed_size": result.plain} if result.plain else {}),
                **({"stored_size": result.stored, "unused_size": result.unused} if result.stored else {}),
                **ratio,
            }
        )
        return
    out(f"{mode} of {count(result.snapshots, 'snapshot')}:")
    if result.files:
        out(f"  entries: {result.files:,}")
    if result.blobs:
        out(f"  blobs:   {result.blobs:,}")
    out(f"  size:    {size(result.size)}")
    if result.plain and result.size:
        out(f"  before compression: {size(result.plain)} ({result.plain / result.size:.2f} times as much)")
    if result.stored:
        share = result.unused / result.stored
        out(
            f"  all volumes: {size(result.stored)}, of which no snapshot needs {size(result.unused)} ({share:.1%})"
        )
