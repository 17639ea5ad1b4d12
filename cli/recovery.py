"""`snapfs key recovery`: a key made for paper."""

from __future__ import annotations

import os
import shlex
import time

import click

from snapfs.cli.init import who
from snapfs.cli.keyfile import write_new
from snapfs.cli.opening import open_repository, place
from snapfs.cli.options import Settings, command
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, flush, moment, out
from snapfs.repo.format.recovery import GROUP, GROUPS

_SHEET = """\
snapfs recovery key
===================

  repository  {repository}
  at          {place}
  made        {made}, by {user} on {host}
  key slot    {slot}

{numbers}
  {key}

With this key everything in the repository can be read, as with its password.

To get files back:

  1. Install snapfs (or docs/reader.py of its source, which needs only Python).
  2. snapfs -r FOLDER mount EMPTY-FOLDER
  3. When it asks for the password, type the key.  Capitals, spaces and dashes
     do not matter.  There is no letter I, L, O or U in it: what looks like I or
     L is a one, what looks like O a zero.  If a character is wrong, snapfs says
     in which group.  Programs get it like a password: in a file, for instance.

To have a password again:   snapfs -r FOLDER key add
To try this sheet:          snapfs -r FOLDER key list    (it has the star)
If somebody saw it:         snapfs -r FOLDER key remove {short}

Keep it away from the computer and from the repository.
"""


@command()
@click.argument("file", metavar="[FILE]", required=False)
def recovery(settings: Settings, file: str | None) -> None:
    """Make a recovery key for paper: it opens the repository if every password is forgotten.

    Prints a sheet with the key, or writes it to FILE, which must not exist.  The key is random and shown this once; several may
    be made, `snapfs key list` names them, `snapfs key remove` takes one away.

    \b
    Examples:
      snapfs key recovery | lp
      snapfs key recovery /media/stick/recovery.txt
    """
    with open_repository(settings, reporter(settings)) as repository:
        others = [
            name[:8] for name, note in repository.slots.notes() if note is not None and note.is_recovery
        ]
        person = who()
        name, key = repository.slots.add_recovery(**person)
        sheet = _SHEET.format(
            repository=repository.id.hex(),
            place=os.path.abspath(place(settings)),
            made=moment(time.time_ns()),
            slot=name,
            short=name[:8],
            key=key,
            numbers="  " + " ".join(str(n).center(GROUP) for n in range(1, GROUPS + 1)).rstrip(),
            **person,
        )
        try:
            if file is not None:
                write_new(file, sheet)
            if settings.json:
                secret = {} if file is not None else {"recovery_key": key}
                document({"message_type": "key_added", "id": name} | secret)
            elif file is None:
                out(key if settings.quiet else sheet.rstrip())
            flush()
        except BaseException:  # a key that nobody has seen whole opens nothing
            repository.slots.remove(name)
            raise
    if settings.quiet or settings.json:
        return
    if file is not None:
        out(f"made the recovery key {name[:8]}: it is in {shlex.quote(file)}, and nowhere else.  Print it.")
    if others:
        reporter(settings).notice(f"earlier recovery keys still open this repository: {', '.join(others)}")
