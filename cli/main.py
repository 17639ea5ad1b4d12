"""The command `snapfs`: finds the verb, and is the one place where errors become lines and exit codes.

Verbs are loaded when they are used, so that --help and --version answer at once; nothing of the engine is imported here.
Exit codes are restic's: 0 done, 1 failed, 3 some source files could not be read, 10 no repository, 11 locked, 12 wrong
password, 130 interrupted; and 13 a key that can only back up, 20 damage found, 24 mount problem, 25 put back to an older state,
26 old keys.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence

import click

import snapfs
from snapfs.cli.options import settings_options
from snapfs.cli.render import complain, flush, line
from snapfs.cli.start import begin_work
from snapfs.repo.dumps import no_core_dumps
from snapfs.repo.errors import Damaged, SnapfsError

VERBS = {
    "init": ("init", "Make a new repository"),
    "backup": ("backup", "Make a snapshot of files and folders"),
    "snapshots": ("snapshots", "List snapshots"),
    "ls": ("browse", "List the files in a snapshot"),
    "find": ("find", "Find files by name in all snapshots"),
    "diff": ("compare", "Show what differs between two snapshots, or a snapshot and a folder"),
    "mount": ("mount", "Show all snapshots as ordinary read-only folders"),
    "umount": ("mount", "Take a mount away"),
    "restore": ("restore", "Copy files out of a snapshot"),
    "dump": ("dump", "Print a file, or a folder as a tar archive"),
    "stats": ("stats", "Show sizes"),
    "check": ("check", "Verify that all snapshots can be read"),
    "parity": ("parity", "Keep what damaged volumes can be mended with, or stop that"),
    "repair": ("repair", "Mend what can be mended"),
    "tag": ("snapshots", "Change the tags of snapshots"),
    "forget": ("forget", "Remove snapshots from the list, by name or by a policy"),
    "undelete": ("undelete", "Bring forgotten snapshots back"),
    "prune": ("prune", "Free the space of forgotten snapshots"),
    "key": ("key", "Manage passwords and recovery keys"),
}
"""Verb -> (module of this package, what it does in one line)."""

ELSEWHERE = {
    "create": ("borg's", "backup"),
    "extract": ("borg's", "restore"),
    "list": ("borg's", "snapshots, or ls SNAPSHOT"),
    "info": ("borg's", "stats"),
    "delete": ("borg's", "forget ID"),
    "export-tar": ("borg's", "dump --archive tar SNAPSHOT /"),
    "change-passphrase": ("borg's", "key passwd"),
    "repo-create": ("borg 2's", "init"),
    "repo-list": ("borg 2's", "snapshots"),
    "repo-info": ("borg 2's", "stats"),
    "snapshot": ("kopia's", "backup, snapshots, restore or check"),
    "repository": ("kopia's", "init"),
    "show": ("kopia's", "dump"),
    "repoinfo": ("rustic's", "stats"),
    "rebuild-index": ("restic's", "repair index"),
    "unlock": ("restic's", ""),
    "break-lock": ("borg's", ""),
    "compact": ("borg's", "prune"),
    "maintenance": ("kopia's", "prune"),
    "copy": ("restic's", None),
    "transfer": ("borg 2's", None),
    "rewrite": ("restic's", None),
    "recreate": ("borg's", None),
    "recover": ("restic's", "undelete"),
    "generate": ("restic's", None),
    "completion": ("borg 2's", None),
    "unmount": ("", "umount"),
    "verify": ("", "check"),
    "version": ("", "--version"),
    "help": ("", "--help"),
}
"""Words of other tools -> (whose, ours; "": there is no need for it; None: there is none yet)."""


class Verbs(click.Group):
    """A group whose commands are known by name and loaded by need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"snapfs.cli.{VERBS[cmd_name][0]}")
        begin_work()
        command: click.Command = getattr(module, cmd_name)
        command.context_settings["auto_envvar_prefix"] = f"SNAPFS_{cmd_name.upper()}_"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            raise click.UsageError(unknown_verb(name))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in VERBS.items()])


def unknown_verb(name: str) -> str:
    """What to say to a verb that does not exist."""
    if name not in ELSEWHERE:
        near = difflib.get_close_matches(name, [*VERBS, *ELSEWHERE], 1)
        ours = ELSEWHERE.get(near[0], ("", near[0]))[1] if near else None
        hint = f"did you mean `snapfs {ours}`?" if ours else "`snapfs --help` lists the commands"
        return f'no command "{name}": {hint}'
    whose, ours = ELSEWHERE[name]
    said = f'"{name}" is {whose} word' if whose else f'no command "{name}"'
    if ours is None:
        return f"{said}: this version of snapfs has nothing for it"
    if not ours:
        return f"{said}: with snapfs there is nothing to unlock, a dead process leaves no lock behind"
    return f"{said}: use `snapfs {ours}`"


@click.group(
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command explains itself: snapfs COMMAND --help",
)
@settings_options(hidden=False)
@click.version_option(snapfs.__version__, prog_name="snapfs", message="%(prog)s %(version)s")
def group() -> None:
    """Encrypted, deduplicating backups whose snapshots can be mounted as ordinary folders.

    \b
    Begin with:
      export SNAPFS_REPOSITORY=/media/disk/backup
      snapfs init
      snapfs backup ~/documents
      snapfs mount ~/past
    """


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code.  Never raises."""
    as_json = "--json" in args
    try:
        with group.make_context("snapfs", list(args)) as context:
            code = group.invoke(context)
        flush()
        return int(code or 0)
    except click.exceptions.Exit as done:
        return done.exit_code if _flushed() else 1
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0 if _flushed() else 1
    except click.ClickException as error:
        return _fail(_usage(error), 1, as_json)
    except Damaged as error:
        opens = not error.where.startswith(("keys", "config"))
        hint = (
            ": `snapfs check` names all that is damaged, and docs/guide.md says what to do" if opens else ""
        )
        return _fail(f"{error}{hint}", error.exit_code, as_json)
    except SnapfsError as error:
        return _fail(str(error), error.exit_code, as_json)
    except (click.Abort, KeyboardInterrupt):
        _flushed()
        return _fail("interrupted", 130, as_json)
    except BrokenPipeError:
        _drop_stdout()
        return 141
    except OSError as error:
        _flushed()
        name = "" if error.filename is None else f"{_name(error.filename)}: "
        return _fail(f"{name}{error.strerror or error}", 1, as_json)
    except MemoryError:
        return _fail("out of memory: close other programs, or give this one more", 1, as_json)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback reaches a user
        if os.environ.get("SNAPFS_DEBUG"):
            import traceback

            traceback.print_exc()
        about = f"{type(error).__name__}: {error}"[:300]
        return _fail(
            f"internal error: {about} (please report; SNAPFS_DEBUG=1 shows the traceback)", 1, as_json
        )


def _name(file: str | bytes | int) -> str:
    """Of an OSError's file; for bytes, str() would say b'...'."""
    return os.fsdecode(file) if isinstance(file, bytes) else str(file)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "snapfs"
    message = " ".join(error.format_message().split()).rstrip(".")
    return message if "`snapfs" in message else f"{message} (see `{path} --help`)"


def _fail(message: str, code: int, as_json: bool) -> int:
    message = line(message)
    if as_json:
        complain(json.dumps({"message_type": "exit_error", "code": code, "message": message}))
    else:
        complain(f"snapfs: {message}")
    return code


def _flushed() -> bool:
    try:
        flush()
    except OSError:
        _drop_stdout()
        return False
    return True


def _drop_stdout() -> None:
    """What is still to be written has no reader: without this, the interpreter would say so when it ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def main() -> int:
    """Put this process in order, and run its command line."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file that is opened must not take its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not os.environ.get("SNAPFS_DEBUG"):
        no_core_dumps()
    gc.freeze()
    gc.set_threshold(
        50_000, 20, 50
    )  # a tenth of an unchanged backup went into looking for cycles that are not made
    return run(sys.argv[1:])
