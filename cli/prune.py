"""`snapfs prune`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from snapfs.cli.opening import open_repository
from snapfs.cli.options import SIZE, Settings, command
from snapfs.cli.progress import Reporter, ending_gently, reporter
from snapfs.cli.render import complain, count, document, out, size
from snapfs.repo.errors import RepositoryLocked, UsageError
from snapfs.repo.prune.engine import PruneOptions, PruneResult
from snapfs.repo.prune.engine import prune as run_prune
from snapfs.repo.prune.plan import Plan, Scatter, Unused, parse_scatter, parse_unused
from snapfs.repo.repository import Repository
from snapfs.repo.storage.locks import Writer

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _unused(ctx: click.Context, param: click.Parameter, value: str) -> Unused:
    try:
        return parse_unused(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


def _scatter(ctx: click.Context, param: click.Parameter, value: str) -> Scatter:
    try:
        return parse_scatter(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Seconds, from "30s", "5m" or "2h"."""
    number, unit = value[:-1], _SECONDS.get(value[-1:].lower())
    if value == "0":
        return 0
    if unit is None or not number.replace(".", "", 1).isdigit():
        raise click.BadParameter(f"{value!r}: give a time like 30s, 5m or 2h")
    return float(number) * unit


retry_lock_option = click.option(
    "--retry-lock",
    metavar="TIME",
    default="0",
    callback=_seconds,
    help="Wait so long (5m, 2h) for backups that run; new ones wait meanwhile.",
)


@command()
@click.option(
    "--max-unused",
    metavar="X%|SIZE|unlimited",
    default="5%",
    callback=_unused,
    help="So much of the repository may stay that nothing needs (default 5%).",
)
@click.option(
    "--max-repack-size", type=SIZE, metavar="SIZE", help="Rewrite volumes of so much in all, at most."
)
@click.option(
    "--max-scatter",
    metavar="X%|unlimited",
    default="15%",
    callback=_scatter,
    help="Reading the newest snapshots may open so much more than they hold (default 15%).",
)
@retry_lock_option
@click.option(
    "--rewrite-old-keys",
    is_flag=True,
    help="Rewrite all that is sealed with keys from before `snapfs key rotate`.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.  Needed where there is no terminal.")
def prune(
    settings: Settings, max_unused: Unused, max_repack_size: int | None, max_scatter: Scatter, retry_lock: float,
    rewrite_old_keys: bool, dry_run: bool, yes: bool,
) -> int:  # fmt: skip
    """Free the space of forgotten snapshots.

    Volumes that no snapshot needs are removed; those that are needed in a small part are rewritten without the rest, and many
    small ones are merged.  So are those in which the newest snapshots lie scattered among what only older ones need: what one
    reads together lies together then.  Forgotten snapshots cannot be brought back afterwards.

    Backups and mounts may run meanwhile.  While a backup runs nothing is removed: the exit code is then 11, and the next prune
    does it.

    \b
    Examples:
      snapfs prune -n
      snapfs prune --max-unused 10% --max-repack-size 20G
      snapfs prune --yes --retry-lock 10m
    """
    progress = reporter(settings, job=True)
    options = PruneOptions(
        max_unused, max_repack_size, max_scatter, retry_lock, dry_run=dry_run, old_keys=rewrite_old_keys
    )
    with open_repository(settings, progress) as repository:
        result = run(settings, repository, options, progress, asking(yes))
    return finish(settings, result)


def asking(yes: bool) -> Callable[[Plan], None]:
    """Asks on a terminal, refuses in a script."""

    def ask(plan: Plan) -> None:
        if yes or not (plan.remove or plan.rewrite):
            return
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("nothing was removed: without a terminal to ask on, this needs --yes")
        complain("Remove this for good? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("nothing was removed")

    return ask


def run(
    settings: Settings, repository: Repository, options: PruneOptions, progress: Reporter, ask: Callable[[Plan], None]
) -> PruneResult:  # fmt: skip
    """Prune, and say before what will be done."""

    def agreed(plan: Plan) -> bool:
        progress.close()
        if not settings.json and not settings.quiet:
            _announce(plan, "will")
        ask(plan)
        return True

    try:
        with ending_gently(progress):
            return run_prune(repository, options, progress, agreed)
    finally:
        progress.close()


def _announce(plan: Plan, will: str) -> None:
    share = f" ({plan.unused / plan.size:.1%})" if plan.size else ""
    out(
        f"{count(plan.volumes, 'volume')}, {size(plan.size)}; {size(plan.unused)}{share} is needed by no snapshot"
    )
    out(
        f"{will} remove {count(len(plan.remove), 'volume')} ({size(plan.removed)}), "
        f"rewrite {len(plan.rewrite):,} ({size(plan.read)}), and free about {size(plan.freed)}"
    )
    if plan.scattered:
        out(
            f"{len(plan.scattered):,} of them ({size(sum(use.volume.size for use in plan.scattered))}) because the newest "
            f"snapshots lie scattered: reading them opens {plan.scatter:.2f} times what they hold, {plan.scatter_left:.2f} then"
        )


def finish(settings: Settings, result: PruneResult) -> int:
    """Say what was done; returns the exit code."""
    plan = result.plan
    if settings.json:
        document(
            {
                "message_type": "summary",
                "dry_run": not result.done,
                "snapshots": result.snapshots,
                "total_size": plan.size,
                "unused_size": plan.unused,
                "volumes": plan.volumes,
                "volumes_to_remove": len(plan.remove),
                "volumes_to_rewrite": len(plan.rewrite),
                "bytes_to_remove": plan.removed,
                "bytes_to_rewrite": plan.read,
                "volumes_scattered": len(plan.scattered),
                "scatter": round(plan.scatter, 3),
                "scatter_after": round(plan.scatter_left, 3),
                "bytes_to_free": plan.freed,
                "volumes_removed": result.volumes_removed,
                "volumes_written": result.volumes_written,
                "bytes_removed": result.bytes_removed,
                "bytes_written": result.bytes_written,
                "bytes_freed": result.freed,
                "bytes_left": result.bytes_left,
                "unused_after": result.unused,
            }
        )
    elif not result.done:
        _announce(plan, "would")
    elif not settings.quiet:
        out(
            f"removed {count(result.volumes_removed, 'volume')}, wrote {result.volumes_written:,}; "
            f"freed {size(result.freed)}, {size(result.unused)} unused stays"
        )
    if plan.damaged and not settings.json:
        complain(
            f"snapfs: {count(plan.damaged, 'damaged volume')} left as they are: `snapfs repair volumes` first"
        )
    if not result.in_the_way:
        return 0
    who = ", ".join(sorted({_named(writer) for writer in result.in_the_way}))
    raise RepositoryLocked(
        f"{size(result.bytes_left)} left for the next prune, since a backup may need it: {who}; run it again when that is over, "
        "or with --retry-lock 10m"
    )


def _named(writer: Writer) -> str:
    if writer.here:
        return f"process {writer.process}"
    return f"process {writer.process} of another machine{'' if writer.held else ' (taken for dead after 24 hours)'}"
