"""`snapfs parity`."""

from __future__ import annotations

from typing import Literal

import click

from snapfs.cli.opening import open_repository
from snapfs.cli.options import Settings, command
from snapfs.cli.progress import reporter
from snapfs.cli.render import complain, count, document, out, size
from snapfs.repo.errors import Damaged, UsageError
from snapfs.repo.repair.parity import ParityKept, drop_parity, keep_parity, look


@command()
@click.argument("switch", type=click.Choice(["on", "off"]), required=False)
@click.option("--read-data", is_flag=True, help="With on: compare the parity that is there with the volumes.")
def parity(settings: Settings, switch: Literal["on", "off"] | None, read_data: bool) -> int:
    """Keep parity beside the volumes, or stop that; without a word: show whether it is kept.

    With parity, a volume with a few bad sectors is still read whole, and `snapfs repair volumes` makes it what it was.  It takes
    2.3% of a volume of 64 MiB, and of small ones 4 KiB at least; it reaches as far as 1.4 MB of such a volume if that is damaged
    in one piece, and less if in many.  It helps against a disk that forgets, not against one that is gone: keep a second copy
    of the repository.

    on writes the parity of all volumes that have none, for which these are read; later backups write theirs themselves.  off
    removes it.

    \b
    Examples:
      snapfs parity
      snapfs parity on
      snapfs parity on --read-data
    """
    if read_data and switch != "on":
        raise UsageError("--read-data goes with `snapfs parity on`")
    progress = reporter(settings, job=True)
    with open_repository(settings, progress) as repository:
        try:
            if switch == "on":
                result = keep_parity(repository, read_data=read_data, progress=progress)
            else:
                result = drop_parity(repository) if switch == "off" else look(repository)
        finally:
            progress.close()
    for path in result.damaged:
        complain(f"damage: {path}: no parity can be made of it: run `snapfs repair volumes`, then this again")
    if settings.json:
        document(
            {
                "message_type": "summary",
                "kept": result.kept,
                "volumes": result.volumes,
                "volumes_with_parity": result.with_parity,
                "bytes_volumes": result.volume_bytes,
                "bytes_parity": result.parity_bytes,
                "written": result.written,
                "damaged_volumes": len(result.damaged),
            }
        )
    elif not settings.quiet:
        _print(result)
    return Damaged.exit_code if result.damaged else 0


def _print(result: ParityKept) -> None:
    if not result.kept:
        out("no parity is kept: `snapfs parity on` makes it")
        if result.parity_bytes:
            out(f"{size(result.parity_bytes)} of it are left: `snapfs parity off` removes them")
        return
    if result.written:
        out(f"wrote the parity of {count(result.written, 'volume')}")
    out(
        f"parity is kept: {result.with_parity:,} of {count(result.volumes, 'volume')} ({size(result.volume_bytes)}) have it, "
        f"in {size(result.parity_bytes)}"
    )
