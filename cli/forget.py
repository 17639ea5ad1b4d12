"""`snapfs forget`: snapshots out of the list, one by one or by a policy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from snapfs.cli.opening import adopt_repository, open_repository
from snapfs.cli.options import BYTES, Settings, command, grouping, selection_without_h
from snapfs.cli.policy import plan_json, policy_options, print_plan, too_few_left
from snapfs.cli.progress import Reporter, reporter
from snapfs.cli.prune import asking, finish
from snapfs.cli.prune import run as run_prune
from snapfs.cli.render import complain, count, document, out, size, text
from snapfs.cli.snapshots import all_named, print_table, snapshot_json
from snapfs.repo.errors import RepositoryError, StorageError, UsageError
from snapfs.repo.prune.engine import PruneOptions
from snapfs.repo.query.freed import freed
from snapfs.repo.repository import Repository
from snapfs.repo.retention import Group, Policy, plan, plan_without_policy
from snapfs.repo.select import Filter, choose, find, is_name
from snapfs.repo.state import State, StoredSnapshot


@command()
@selection_without_h
@click.argument("ids", nargs=-1, type=BYTES, metavar="[ID]...")
@policy_options
@click.option(
    "-g",
    "--group-by",
    callback=grouping,
    default="host,paths",
    metavar="WORDS",
    help='Apply the policy to each host,paths,tags by itself (default: host,paths; "": all as one).',
)
@click.option(
    "--unsafe-allow-remove-all",
    is_flag=True,
    help="Without a policy: forget all that --host, --tag or --path choose.",
)
@click.option(
    "--unsafe-allow-remove-most",
    is_flag=True,
    help="In a script: also if less than half of the days are left.",
)
@click.option("--prune", is_flag=True, help="Then free their space, as `snapfs prune` does.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("-c", "--compact", is_flag=True, help="Shorter lines.")
@click.option("--yes", is_flag=True, help="Do not ask.  Needed where there is no terminal.")
def forget(
    settings: Settings,
    ids: tuple[bytes, ...],
    wanted: Filter,
    policy: Policy,
    group_by: tuple[str, ...],
    unsafe_allow_remove_all: bool,
    unsafe_allow_remove_most: bool,
    prune: bool,
    dry_run: bool,
    compact: bool,
    yes: bool,
) -> int:
    """Remove snapshots from the list: those that are named, or all that no --keep option keeps.

    Without --prune, nothing is deleted from the disk by this, and no space becomes free: `snapfs undelete` brings them back.

    A policy is applied to each host and set of paths by itself.  Days, weeks and so on are those of this machine's time zone,
    and only those count of which there is a snapshot; the last one of each is kept.  What a removal frees is an estimate; it is
    made for --dry-run and before asking.

    \b
    Examples:
      snapfs forget -n --keep-smart
      snapfs forget --keep-daily 14 --keep-monthly unlimited --keep-tag keep --yes
      snapfs forget --host old-laptop --keep-last 1
      snapfs forget --keep-smart --prune --yes
      snapfs forget 3f2a 91bc
    """
    all_named(ids)
    if ids and policy:
        raise UsageError("name snapshots or say what to keep, not both")
    if not ids and not policy and not (unsafe_allow_remove_all and wanted):
        raise UsageError(
            "--unsafe-allow-remove-all is for all snapshots of a --host, --tag or --path: give one of these too"
            if unsafe_allow_remove_all
            else "forget what? name snapshots (`snapfs snapshots` lists them), or say what to keep, as in --keep-smart"
        )
    specs = adopt_repository(settings, *ids)
    for spec in specs:
        if not is_name(spec):
            raise UsageError(f"{text(spec)}: forget takes whole snapshots, by the first digits of their ids")
    progress = reporter(settings, job=prune)
    with open_repository(settings, progress) as repository:
        if specs:
            gone = _forget_named(settings, repository, specs, wanted, dry_run, compact, yes)
        else:
            words = group_by if policy else ()
            gone = _forget_by_policy(
                settings, repository, progress, wanted, policy, words, unsafe_allow_remove_most, dry_run, compact, yes
            )  # fmt: skip
        if not prune or dry_run or not gone:
            return 0
        result = run_prune(settings, repository, PruneOptions(), progress, asking(yes))
    return finish(settings, result)


def _forget_named(
    settings: Settings, repository: Repository, specs: Sequence[bytes], wanted: Filter, dry_run: bool, compact: bool, yes: bool
) -> int:  # fmt: skip
    """Returns how many are forgotten."""
    everything = repository.snapshots()
    # One that does not exist: nothing is forgotten.
    found = {find(everything, spec, wanted) for spec in specs}
    chosen = sorted(found, key=lambda s: (s.record.time, s.id))
    if not settings.json:
        if not settings.quiet:
            out("would forget:" if dry_run else "to forget:")
        print_table(chosen, compact)
    if not dry_run:
        _confirm(f"Forget {'this snapshot' if len(chosen) == 1 else f'these {len(chosen)} snapshots'}?", yes)
        repository.events.forget([snapshot.id for snapshot in chosen])
    if settings.json:
        document(
            {
                "message_type": "summary",
                "dry_run": dry_run,
                "removed_snapshots": [snapshot_json(s) for s in chosen],
            }
        )
    elif not dry_run and not settings.quiet:
        out(f"forgot {count(len(chosen), 'snapshot')}")
    return len(chosen)


def _forget_by_policy(
    settings: Settings,
    repository: Repository,
    progress: Reporter,
    wanted: Filter,
    policy: Policy,
    words: Sequence[str],
    remove_most: bool,
    dry_run: bool,
    compact: bool,
    yes: bool,
) -> int:
    """An empty policy: all that `wanted` chooses.  Returns how many are forgotten."""
    state, groups = _decide(repository, wanted, policy, words)
    going = _removed(groups)
    frees = None
    if going and (dry_run or (not yes and _can_ask())) and not settings.quiet:
        frees = _estimate(repository, state, going, progress)
    if not settings.json:
        print_plan(groups, words, frees, state.times, compact, settings.quiet)
    drastic = too_few_left(groups) if policy else ""
    if going and not dry_run:
        if drastic and yes and not remove_most:
            raise UsageError(
                f"{drastic}, so nothing was forgotten: look at it with --dry-run; if it is right, give "
                "--unsafe-allow-remove-most once"
            )
        total = sum(len(group.decisions) for group in groups)
        _confirm(
            f"{drastic + '. ' if drastic else ''}Forget {len(going)} of {count(total, 'snapshot')}?", yes
        )
        # Others may have made or forgotten some meanwhile: what goes must be what was shown, and be right still.
        still = {snapshot.id for snapshot in _removed(_decide(repository, wanted, policy, words)[1])}
        going = [snapshot for snapshot in going if snapshot.id in still]
        if going:
            repository.events.forget([snapshot.id for snapshot in going])
    if settings.json:
        document(plan_json(groups, words, frees))
    elif not settings.quiet:
        _print_end(going, frees, drastic, dry_run)
    return len(going)


def _print_end(
    going: Sequence[StoredSnapshot], frees: dict[bytes, int] | None, drastic: str, dry_run: bool
) -> None:
    if not going:
        out("nothing to remove")
    elif not dry_run:
        out(f"forgot {count(len(going), 'snapshot')}; `snapfs undelete` brings them back")
    else:
        about = (
            ""
            if frees is None
            else f"; about {size(sum(frees.values()))} of the repository are needed by them only"
        )
        out(f"would forget {count(len(going), 'snapshot')}{about}")
        if drastic:
            out(f"{drastic}: a script needs --unsafe-allow-remove-most for that")


def _decide(
    repository: Repository, wanted: Filter, policy: Policy, words: Sequence[str]
) -> tuple[State, list[Group]]:
    repository.snapshots()  # says what is wrong with the events
    state = repository.events.load()
    if policy and state.problems:
        # A forgotten snapshot that is back, because the event cannot be read, would take the place of one that is to stay.
        raise StorageError(
            f"{state.problems[0]}: which snapshots there are is not known for sure, so nothing was chosen; bring it back from a "
            "copy of the repository, or name the snapshots to forget"
        )
    chosen = choose(state.snapshots, wanted)
    if policy:
        return state, plan(chosen, policy, words, state.times, repository.system.now())
    return state, [plan_without_policy(chosen)] if chosen else []


def _removed(groups: Sequence[Group]) -> list[StoredSnapshot]:
    return [decision.snapshot for group in groups for decision in group.remove]


def _estimate(
    repository: Repository, state: State, going: Sequence[StoredSnapshot], progress: Reporter
) -> dict[bytes, int] | None:
    """Snapshot id -> bytes; None, and a notice, where the repository cannot be walked: that must not stop a forget."""
    gone = {snapshot.id for snapshot in going}
    try:
        found = freed(repository, [s for s in state.snapshots if s.id not in gone], going, progress=progress)
    except RepositoryError as error:
        progress.notice(f"what this would free cannot be said: {error}")
        return None
    finally:
        progress.close()
    return {snapshot.id: number for snapshot, number in zip(going, found, strict=True)}


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _confirm(question: str, yes: bool) -> None:
    """Ask on a terminal, refuse in a script."""
    if yes:
        return
    if not _can_ask():
        raise UsageError("nothing was forgotten: without a terminal to ask on, this needs --yes")
    complain(f"{question} [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was forgotten")
