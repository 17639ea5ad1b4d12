"""`snapfs key rotate`: new keys for a repository."""

from __future__ import annotations

import sys

import click

from snapfs.cli import passwords
from snapfs.cli.init import who
from snapfs.cli.opening import open_newest
from snapfs.cli.options import Settings, command
from snapfs.cli.progress import Reporter, reporter
from snapfs.cli.prune import retry_lock_option
from snapfs.cli.render import complain, document, line, moment, out
from snapfs.repo.errors import UsageError, WrongPassword
from snapfs.repo.repository import Repository
from snapfs.repo.rotation import refuse_doubts
from snapfs.repo.rotation import rotate as change_keys
from snapfs.repo.state import KeyNote

_TRIES = 3


@command()
@click.option(
    "--keep-password-file",
    "keep",
    multiple=True,
    metavar="FILE",
    help="Another password (or recovery key) that is to open the repository afterwards, too.  May be given more than once.",
)
@click.option(
    "--change-password", is_flag=True, help="Ask for a new password in place of the one in use."
)  # fmt: skip
@click.option(
    "--new-password-file",
    metavar="FILE",
    help="Read that new password from a file.  [SNAPFS_NEW_PASSWORD_FILE]",
)
@retry_lock_option
@click.option("--yes", is_flag=True, help="Do not ask.  Needed where there is no terminal.")
def rotate(
    settings: Settings, keep: tuple[str, ...], change_password: bool, new_password_file: str | None, retry_lock: float, yes: bool
) -> None:  # fmt: skip
    """Seal everything from now on with new keys: after a password or a computer was stolen.

    Who had a password, or a copy of a key slot, can then read what was stored before, and nothing that comes.  Other passwords
    and recovery keys end, unless they are given here.  The past stays as it is: `snapfs prune --rewrite-old-keys`.

    While a backup runs, nothing is done: the exit code is then 11.

    \b
    Examples:
      snapfs key rotate --change-password
      snapfs key rotate --yes --keep-password-file /root/colleague --retry-lock 10m
    """
    progress = reporter(settings)
    repository, password = open_newest(settings, progress)
    with repository:
        refuse_doubts(repository)  # before anything is asked
        given = [passwords.from_file(file, progress.notice) for file in keep]
        kept = repository.slots.opened_by(given) if given else {}
        asks = not yes and sys.stdin is not None and sys.stdin.isatty()
        notes = {name: note for name, note in repository.slots.notes() if name != repository.slots.current}
        if asks:
            for name, note in notes.items():
                ends = note is not None and note.backs_up is not None  # whatever is typed
                if name not in kept and not ends:
                    kept |= _asked(repository, name, note)
        new_password = passwords.given("SNAPFS_NEW_", new_password_file, None, False, progress.notice)
        if new_password is None and change_password:
            new_password = passwords.ask_new("new password: ", "--new-password-file or SNAPFS_NEW_PASSWORD")
        ending = {name: note for name, note in notes.items() if name not in kept}
        _agree(settings, progress, ending, yes, asks)
        done = change_keys(
            repository,
            password,
            kept,
            new_password=new_password,
            patience=retry_lock,
            progress=progress,
            **who(),
        )
    if settings.json:
        document(
            {
                "message_type": "keys_rotated",
                "epoch": done.epoch,
                "id": done.slot,
                "kept": list(done.kept),
                "ended": list(done.ended),
            }
        )
    elif not settings.quiet:
        out(f"from now on everything is sealed with new keys; the password in use is now {done.slot[:8]}")
    if new_password is None:
        progress.notice(
            "the password is the same as before: whoever knows it opens the new keys, too (--change-password makes another)"
        )


def _named(name: str, note: KeyNote | None) -> str:
    if note is None:
        return name[:8]
    kind = note.kind if note.backs_up is None else f"{note.kind} key for {line(note.backs_up)}"
    label = f", {line(note.label)}" if note.label else ""
    return f"{name[:8]} ({kind}{label}, {line(note.user)} on {line(note.host)}, {moment(note.time)})"


def _asked(repository: Repository, name: str, note: KeyNote | None) -> dict[str, bytes | bytearray]:
    """The password of another slot, if whoever sits here knows it."""
    for _ in range(_TRIES):
        word = passwords.ask(f"to keep {_named(name, note)}, type it; else it ends [Enter]: ")
        if not word:
            break
        try:
            if name in (found := repository.slots.opened_by([word])):
                return found
            complain("that is another one's; please try again")
        except WrongPassword:
            complain("that opens no other key slot; please try again")
    return {}


def _agree(
    settings: Settings, progress: Reporter, ending: dict[str, KeyNote | None], yes: bool, asks: bool
) -> None:
    for name, note in sorted(ending.items()):
        progress.notice(f"this ends: {_named(name, note)}")
    if yes:
        return
    if not asks:
        raise UsageError("nothing was changed: without a terminal to ask on, this needs --yes")
    complain("Key slots that were exported earlier will open what was before only.  Change the keys? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was changed")
