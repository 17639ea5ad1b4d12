"""`snapfs key export`, `import`: a key slot as a file or on paper, for the day when keys/ is lost."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time

import click

from snapfs.cli import opening
from snapfs.cli.opening import open_repository
from snapfs.cli.options import Settings, command
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, line, moment, out
from snapfs.repo.errors import UsageError
from snapfs.repo.format.armor import TEXT_LIMIT, armor, unarmor
from snapfs.repo.format.labels import MAGIC
from snapfs.repo.repository import Repository


def slot_named(repository: Repository, beginning: str) -> str:
    """The name of the key slot that begins so.  Raises UsageError unless it is one."""
    fitting = [name for name, _ in repository.slots.notes() if name.startswith(beginning.lower())]
    if len(fitting) != 1:
        many = f"fits {len(fitting)} passwords: give more digits" if fitting else "is none of the passwords"
        raise UsageError(f"{beginning} {many} (`snapfs key list` lists them)")
    return fitting[0]


def write_new(file: str, text: str) -> None:
    """Write a file that only its owner may read, durably; nothing is left of it if that fails.  Raises UsageError, OSError."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{file}: exists already, and is not overwritten") from None
    try:
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(fd)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(file)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, file) from error
        raise


@command()
@click.argument("file", metavar="FILE")
@click.argument("id", metavar="[ID]", required=False)
def export(settings: Settings, file: str, id: str | None) -> None:
    """Write a key slot to a new file, as text that can be printed: for the day when the folder keys/ is lost.

    It stays sealed: with its password, and only with it, it opens the repository.  Without an ID it is that of the password in
    use; "-" as FILE is standard output.

    \b
    Examples:
      snapfs key export /media/stick/documents.key
      snapfs key export - 4f1c | lp
    """
    with open_repository(settings, reporter(settings)) as repository:
        name = repository.slots.current if id is None else slot_named(repository, id)
        note = dict(repository.slots.notes()).get(name)
        kind = "recovery key" if note is not None and note.is_recovery else "password"
        about = f", {line(note.label)}" if note is not None and note.label else ""
        text = armor(
            repository.slots.export(name),
            (
                f"repository {repository.id.hex()}",
                f"exported {moment(time.time_ns())}",
                f"opened by its {kind} ({name[:8]}{about}), which is not in here.",
                "To put it back:  snapfs -r FOLDER key import THIS-FILE",
                "Typed from paper: the last four digits of a line are its checksum.",
            ),
        )
        if file == "-":
            if settings.json:
                document({"message_type": "key_exported", "id": name, "text": text})
            else:
                out(text.rstrip("\n"))
            return
        write_new(file, text)
        if settings.json:
            document({"message_type": "key_exported", "id": name, "file": os.path.abspath(file)})
        elif not settings.quiet:
            out(f"exported {name[:8]} to {shlex.quote(file)}: it opens the repository with its {kind} only")


@command(name="import")
@click.argument("file", metavar="FILE")
def import_key(settings: Settings, file: str) -> None:
    """Put a key slot back that `snapfs key export` wrote: keys/ may be lost or damaged.

    It needs no password, and makes no new one: the slot opens with the one it had.  "-" as FILE is standard input.

    \b
    Examples:
      snapfs key import /media/stick/documents.key
    """
    slot = _read(file)
    name, was_missing = Repository.import_key(opening.place(settings), slot, reporter(settings))
    if settings.json:
        document({"message_type": "key_imported", "id": name, "was_missing": was_missing})
    elif not settings.quiet:
        did = "put the key slot {} back" if was_missing else "the key slot {} is there already, and as it was"
        out(f"{did.format(name[:8])}: it opens with the password it had (try it: snapfs key list)")


def _read(file: str) -> bytes:
    """The slot in an exported file.  Raises UsageError."""
    try:
        if file == "-":
            text = sys.stdin.buffer.read(TEXT_LIMIT + 1)
        else:
            with open(file, "rb") as opened:
                text = opened.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if text.startswith(MAGIC):
        raise UsageError(
            f"{file}: a file of a repository, and no exported key slot: copy it into keys/ under the name it had"
        )
    if len(text) > TEXT_LIMIT:
        raise UsageError(f"{file}: too long for an exported key slot")
    try:
        return unarmor(text)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
