"""What a check says of parity: is it there for each volume, is it right, and would it mend what is damaged?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.repo.check.findings import CheckResult
from snapfs.repo.check.scrub import VolumeReport
from snapfs.repo.errors import StorageError
from snapfs.repo.model import VolumeKind
from snapfs.repo.parity import FOLDER, MISSING, object_name
from snapfs.repo.progress import Progress

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository


class ParityLook:
    """The parity of one repository.  Made after the volumes were listed: each of them had its parity before its name."""

    def __init__(self, repository: Repository, progress: Progress) -> None:
        self._volumes = repository.volumes
        self._progress = progress
        self.listing: dict[bytes, int] | None = None
        """{name of a volume: size of its parity}; None if none is kept here."""
        self._failed = ""
        self._missing = 0
        self._damaged: list[tuple[VolumeKind, bytes, int]] = []
        parity = repository.volumes.parity
        try:
            if parity.is_kept():
                self.listing = parity.listing()
        except StorageError as error:
            self._failed = str(error)

    def count(self, report: VolumeReport, result: CheckResult) -> None:
        if report.problems:
            self._damaged.append((report.kind, report.name, report.size))
        elif report.parity == MISSING:
            self._missing += 1
        elif report.parity:
            result.add("parity", report.parity, object_name(report.name))

    def tell(self, result: CheckResult) -> None:
        if self._failed:
            result.add("parity", self._failed, FOLDER)
        if self._missing:
            result.notes.append(
                f"{self._missing} of {result.volumes} volumes have no parity: `snapfs parity on` writes it"
            )
        if not self._damaged:
            return
        self._progress.phase("look at parity", len(self._damaged), sum(size for *_, size in self._damaged))
        whole = 0
        for kind, name, size in self._damaged:
            if self._progress.interrupted:
                raise KeyboardInterrupt
            whole += self._volumes.whole(kind, name)
            self._progress.advance(1, size)
        if whole:
            result.notes.append(
                f"{whole} of {len(self._damaged)} damaged volumes can be made whole from their parity: `snapfs repair volumes`"
            )
