"""`snapfs dump`: the content of a file, or a folder as an archive."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import click

from snapfs.cli import opening, trust
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.repo.errors import TargetError, UsageError
from snapfs.repo.query.dump import dump_file, dump_tar
from snapfs.repo.select import Filter


@command()
@selection
@click.argument("snapshot", type=BYTES, metavar="SNAPSHOT[:PATH]")
@click.argument("file", type=BYTES)
@click.option("-a", "--archive", type=click.Choice(["tar"]), help="Make an archive of a file, too.")
@click.option(
    "-t", "--target", type=BYTES, metavar="FILE", help="Write to this file instead of standard output."
)
@trust.option
def dump(
    settings: Settings,
    snapshot: bytes,
    file: bytes,
    wanted: Filter,
    archive: str | None,
    target: bytes | None,
    untrusted: bool | None,
) -> None:
    """Print the content of a file in a snapshot, or a folder as a tar archive.

    \b
    Examples:
      snapfs dump latest /home/me/notes.txt
      snapfs dump latest /home/me | tar -tv
      snapfs dump latest:/var/lib shop.sql | psql shop
    """
    (spec,) = opening.adopt_repository(settings, snapshot) or [b""]
    progress = reporter(settings)
    with opening.open_repository(settings, progress) as repository:
        chosen, _, root = opening.snapshot_at(repository, spec, wanted)
        node = repository.trees.resolve(root, file)
        as_tar = archive is not None or not node.is_file
        if target is None and as_tar and sys.stdout.isatty():
            raise UsageError(
                "an archive makes no sense on a terminal: give --target FILE, or pipe it to a program"
            )
        try:
            if as_tar:
                untrusted = trust.is_untrusted(untrusted, repository, chosen, progress)
            with _output(target) as output:
                if as_tar:
                    dump_tar(repository, node, file, output, progress, untrusted=bool(untrusted))
                else:
                    for piece in dump_file(repository, node):
                        output.write(piece)
        finally:
            progress.close()


@contextlib.contextmanager
def _output(target: bytes | None) -> Iterator[BinaryIO]:
    """Where to write.  A file appears under its name when it is whole.  Raises TargetError, which names it."""
    try:
        if target is None:
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif os.path.exists(target) and not os.path.isfile(target):
            with open(target, "wb") as device:
                yield device
        else:
            fd, name = tempfile.mkstemp(prefix=b".snapfs-", dir=os.path.dirname(os.path.abspath(target)))
            try:
                with open(fd, "wb") as opened:
                    yield opened
                os.replace(name, target)
            except BaseException:
                os.unlink(name)
                raise
    except BrokenPipeError:
        raise
    except OSError as error:  # of the output: reading fails with a RepositoryError
        raise TargetError(target or b"standard output", _advice(error, target is None)) from error


def _advice(error: OSError, stdout: bool) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}: free some space there, or write to another place"
    if stdout:
        return reason
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "its folder does not exist: make it first (mkdir -p), or give another --target"
    if error.errno == errno.EISDIR:
        return "is a folder: give the name of a file in it"
    return f"{reason}: give another --target"
