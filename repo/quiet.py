"""Moments in which nobody writes: the gate is shut, and no writer is past it (docs/concurrency.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from snapfs.repo.client import LeaseNote
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.storage.locks import Lease, Writer

GRACE = 24 * 3600 * 1_000_000_000
"""A lease without a lock that has not changed for so long (ns) is that of a dead writer."""
_LOOK = 0.2
"""Seconds between two looks at the leases, while the gate is shut."""


class Quiet:
    """For one who has a lease himself.  `in_the_way`: the writers that were met at the last look."""

    def __init__(self, repository: Repository, lease: Lease, patience: float, progress: Progress) -> None:
        """`patience`: seconds to wait for writers, in all."""
        self._repository = repository
        self._lease = lease
        self._deadline = time.monotonic() + patience
        self._progress = progress
        self.in_the_way: list[Writer] = []

    def is_free(self) -> bool:
        """Whether nobody would be in the way just now."""
        with self._repository.storage.locks.shut():
            self.in_the_way = self._writers()
        return not self.in_the_way

    @contextmanager
    def shut(self) -> Iterator[bool]:
        """The gate is shut; whether nobody is past it.  Raises KeyboardInterrupt when progress.interrupted is set."""
        with self._repository.storage.locks.shut():
            while True:
                if self._progress.interrupted:
                    raise KeyboardInterrupt
                self.in_the_way = self._writers()
                if not self.in_the_way or time.monotonic() >= self._deadline:
                    break
                time.sleep(_LOOK)
            yield not self.in_the_way

    def _writers(self) -> list[Writer]:
        """Whoever may be alive."""
        repository = self._repository
        locks, system, client = repository.storage.locks, repository.system, repository.client
        known = {note.name: note for note in client.remembered.leases}
        alive, notes = [], []
        for writer in locks.writers(but=self._lease):
            if not writer.held:
                note = known.get(writer.name)
                if note is None or (note.stamp, note.boot) != (writer.stamp, system.boot_id):
                    note = LeaseNote(writer.name, writer.stamp, system.boot_id, system.uptime())
                if system.uptime() - note.uptime >= GRACE:
                    locks.give_up(writer)
                    continue
                notes.append(note)
            alive.append(writer)
        if tuple(notes) != client.remembered.leases:
            client.remember(leases=notes)
        return alive
