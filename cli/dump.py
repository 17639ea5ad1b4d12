"""`snapfs dump`: the content of a file, or a folder as an archive."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import click

from snapfs.cli import opening
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import named_stdout
from snapfs.repo.errors import UsageError
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
def dump(
    settings: Settings,
    snapshot: bytes,
    file: bytes,
    wanted: Filter,
    archive: str | None,
    target: bytes | None,
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
        _, _, root = opening.snapshot_at(repository, spec, wanted)
        node = repository.trees.resolve(root, file)
        as_tar = archive is not None or not node.is_file
        if target is None and as_tar and sys.stdout.isatty():
            raise UsageError(
                "an archive makes no sense on a terminal: give --target FILE, or pipe it to a program"
            )
        try:
            with _output(target) as output:
                if as_tar:
                    dump_tar(repository, node, file, output, progress)
                else:
                    for piece in dump_file(repository, node):
                        output.write(piece)
        finally:
            progress.close()


@contextlib.contextmanager
def _output(target: bytes | None) -> Iterator[BinaryIO]:
    """Where to write.  A file appears under its name when it is whole."""
    if target is None:
        try:
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as error:  # what the repository raises is none
            raise named_stdout(error) from error
    else:
        try:
            with _file(target) as opened:
                yield opened
        except OSError as error:  # neither without a name, nor with that of a temporary file
            raise OSError(error.errno, error.strerror, target) from error


@contextlib.contextmanager
def _file(target: bytes) -> Iterator[BinaryIO]:
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as device:
            yield device
        return
    fd, name = tempfile.mkstemp(prefix=b".snapfs-", dir=os.path.dirname(os.path.abspath(target)))
    try:
        with open(fd, "wb") as opened:
            yield opened
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
