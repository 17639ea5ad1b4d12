"""A repository in a folder of its own, made through the library where that is quicker, used through the program as people do."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Cost, Daemon, run, run_fed
from bench.tools import PASSWORD, Snapfs
from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions, BackupResult
from snapfs.repo.format import keyslot
from snapfs.repo.repository import Repository

CHEAP = keyslot.Cost(64, 1, 1)
"""A key derivation that takes no memory: the usual 128 MiB would hide what is to be seen here."""


class Place:
    def __init__(self, folder: Path, *, cost: keyslot.Cost = CHEAP, **options: Any) -> None:
        """The repository below `folder`, made if there is none; `options` as in Repository.create."""
        self.folder = folder
        self.tool = Snapfs(folder)
        if not self.tool.home.exists():
            self.tool.home.mkdir(parents=True)
            Repository.create(str(self.tool.repository), PASSWORD.encode(), cost=cost, **options)

    @property
    def caches(self) -> Path:
        return self.tool.home / "cache"

    def open(self) -> Repository:
        """The same index and state that the program uses."""
        return Repository.open(
            str(self.tool.repository),
            PASSWORD.encode(),
            cache_dir=str(self.caches / "snapfs"),
            state_dir=str(self.tool.home / "state" / "snapfs"),
        )

    def run(self, *arguments: str | Path) -> Cost:
        return run(self.tool.command(*arguments), self.tool.environment)

    def said(self, *arguments: str | Path) -> str:
        """What a command prints."""
        return subprocess.run(
            self.tool.command(*arguments),
            env=self.tool.environment,
            text=True,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout

    def fed(self, feed: Callable[[Callable[[bytes], object]], object], *arguments: str) -> Cost:
        """Run a command; `feed` is given what writes to its standard input."""
        return run_fed(feed, self.tool.command(*arguments), self.tool.environment)

    def newest(self) -> str:
        """The id of the newest snapshot."""
        return str(json.loads(self.said("snapshots", "--json"))[-1]["short_id"])

    @contextmanager
    def mounted(self, within: str = "snapshots", part: str | None = None) -> Iterator[tuple[Path, Daemon]]:
        """(top, daemon) once `within` the mount answers."""
        top = Path(tempfile.mkdtemp(prefix="mnt-", dir=self.folder))
        daemon = Daemon([*self.tool.mount(top, top), *([part] if part else [])], self.tool.environment)
        try:
            daemon.wait_until_mounted(top)
            os.stat(top / within)
            yield top, daemon
        finally:
            daemon.stop(top)
            top.rmdir()


def snapshot(repository: Repository, source: Path, when: int | None = None) -> BackupResult:
    """A backup in this process; `when` in ns."""
    return backup(repository, BackupOptions((os.fsencode(source),), host=b"host", user=b"user", time=when))


def interleaved(rounds: int, *runs: Callable[[], dict[str, Cost]]) -> list[dict[str, Cost]]:
    """What each step of each run cost, as medians: the runs take turns, so that a machine which drifts drifts for all of them."""
    found: list[list[dict[str, Cost]]] = [[] for _ in runs]
    for _ in range(rounds):
        for one, results in zip(runs, found, strict=True):
            results.append(one())
    return [{step: median(result[step] for result in results) for step in results[0]} for results in found]


def median(costs: Iterable[Cost]) -> Cost:
    """Of seconds; of memory the most."""
    all_ = list(costs)
    return Cost(
        statistics.median(c.wall for c in all_),
        statistics.median(c.cpu for c in all_),
        max(c.memory for c in all_),
    )


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def bytes_in(folder: Path) -> int:
    """As the disk counts them."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def say(text: str) -> None:
    print(text, flush=True)


# ---- tables ------------------------------------------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return (
        "".join("| " + " | ".join(line) + " |\n" for line in lines)
        .replace("| --- |", "|---|")
        .replace(" --- |", "---|")
    )


def seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def mib(value: float) -> str:
    return f"{value / 2**20:.0f}"


def ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else ""
