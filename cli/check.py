"""`snapfs check`."""

from __future__ import annotations

import json
from typing import Any

import click

from snapfs.cli.opening import open_repository
from snapfs.cli.options import Settings, command, contradiction
from snapfs.cli.progress import reporter
from snapfs.cli.render import complain, count, document, line, named, out, size, text
from snapfs.repo.check.engine import check as run_check
from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.subset import parse as parse_subset
from snapfs.repo.errors import Damaged, OldKeys, RolledBack


@command()
@click.option("--read-data", is_flag=True, help="Read every byte in the repository, too.")
@click.option(
    "--read-data-subset",
    metavar="N/T|X%|SIZE",
    help="Read a part of it: the n-th of t parts, or so much of it by chance.",
)
def check(settings: Settings, read_data: bool, read_data_subset: str | None) -> int:
    """Verify that all snapshots can be read.

    Without --read-data, this looks whether everything that the snapshots need is there; with it, whether every byte is what was
    written, which takes as long as reading the whole repository.  --read-data-subset divides that among several days: 1/7 to 7/7
    together read all, 5% or 2G some volumes by chance.  Damage is named with the files that it hits, and the exit code
    is 20; where nothing is damaged, but snapshots that were here are gone, it is 25; and 26 where what looks damaged to a
    password of old keys may have been sealed with newer ones.

    \b
    Examples:
      snapfs check
      snapfs check --read-data
      snapfs check --read-data-subset 3/7
    """
    contradiction(read_data=read_data, read_data_subset=read_data_subset is not None)
    wanted = read_data if read_data_subset is None else parse_subset(read_data_subset)
    progress = reporter(settings, job=True)
    with open_repository(settings, progress, even_rolled_back=True) as repository:
        try:
            result = run_check(repository, read_data=wanted, progress=progress)
        finally:
            progress.close()
    if settings.json:
        _print_json(result)
    else:
        _print(settings, result)
    if result.only_rolled_back:
        return RolledBack.exit_code
    if result.ok:
        return 0
    return OldKeys.exit_code if result.newer_keys else Damaged.exit_code


def _print(settings: Settings, result: CheckResult) -> None:
    for problem in result.problems:
        complain(f"damage: {line(problem.where)}: {line(problem.message)}")
    if result.problem_count > len(result.problems):
        complain(f"... and {result.problem_count - len(result.problems):,} more")
    print_affected(result)
    if settings.quiet:
        return
    for note in result.notes:
        out(f"note: {line(note)}")
    looked = f"{count(result.snapshots, 'snapshot')}, {count(result.volumes, 'volume')} ({size(result.bytes_stored)})"
    part = "" if result.volumes_read == result.volumes else f" in {count(result.volumes_read, 'volume')}"
    read = f"; read {size(result.bytes_read)}{part}" if result.volumes_read else ""
    out(f"checked {looked}, {count(result.blobs, 'blob')}{read}")
    if result.ok:
        out(
            "everything is there (--read-data looks at the content, too)"
            if not result.volumes_read and result.volumes
            else f"no damage found{' in what was read' if part else ''}"
        )
    else:
        out(
            f"damage found: {count(result.problem_count, 'problem')}, {count(result.affected_count, 'affected file')}"
        )
        if result.problem_count == sum(p.kind == "parity" and p.where != "parity" for p in result.problems):
            out("Nothing of the backups is damaged: `snapfs parity on --read-data` makes the parity anew.")
            return
        out(
            "What looks lost may have been sealed with newer keys meanwhile: check with a password that was made since."
            if result.newer_keys
            else "The next backup stores what it still finds in the sources again, `snapfs repair volumes` saves what still "
            "opens; the rest needs a copy of the repository."
        )


def print_affected(result: CheckResult, word: str = "affected") -> None:
    """The files that damage hits, one a line."""
    for affected in result.affected:
        out(f"{word}: {affected.snapshot}:{text(affected.path)} ({affected.what})")
    if result.affected_count > len(result.affected):
        out(f"... and {result.affected_count - len(result.affected):,} more files")


def affected_json(result: CheckResult) -> None:
    for affected in result.affected:
        document(
            {
                "message_type": "affected",
                "snapshot": affected.snapshot,
                **named("path", affected.path),
                "what": affected.what,
            }
        )


def _print_json(result: CheckResult) -> None:
    for problem in result.problems:
        error = {"message_type": "error", "kind": problem.kind, "message": problem.message}
        complain(json.dumps({**error, "where": problem.where}))
    affected_json(result)
    summary: dict[str, Any] = {
        "message_type": "summary",
        "num_errors": result.problem_count,
        "affected_files": result.affected_count,
        "notes": result.notes,
        "read_data": 0 < result.volumes_read == result.volumes,
        "snapshots": result.snapshots,
        "volumes": result.volumes,
        "volumes_read": result.volumes_read,
        "blobs": result.blobs,
        "bytes_stored": result.bytes_stored,
        "bytes_read": result.bytes_read,
    }
    document(summary)
