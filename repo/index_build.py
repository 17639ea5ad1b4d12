"""An index of many volumes at once, built beside the one in use, which stays as it is until the new one is complete.

Ids come in any order, and a page would be written again for nearly every one of them.  So all are sorted first, in a temporary
file; then each page is written once, and full.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from snapfs.repo.index_environment import Environment, IndexBroken, broken
from snapfs.repo.index_folder import IndexFolder
from snapfs.repo.index_rows import ROW, FoundVolume, IndexedVolume, Rows
from snapfs.repo.sorted_runs import SortedRuns

log = logging.getLogger(__name__)

BATCH = 1 << 15
"""Blobs entered in one transaction, at least, where there are many to enter."""


def build(folder: IndexFolder, rows: Rows, found: Iterable[tuple[int, FoundVolume]], old: Environment) -> str:
    """Make an environment of these volumes (number, volume) the newest; returns the folder of the one before it, to be removed.

    Of `old` nothing is taken over but what it knows of volumes that are not `whole`.  Raises IndexBroken, StorageError, and what
    `found` raises: then all stays as it was.
    """
    volumes, partly = [], set()
    with SortedRuns(folder.path, ROW) as runs:
        for number, one in found:
            volumes.append(IndexedVolume(number, one.name, one.kind, one.size, one.usable, one.verified))
            if not one.whole:
                partly.add(number)
            with broken(folder.path):
                runs.add(rows.blobs(number, one.entries))
        if partly:
            known = _known(old, rows, partly)
            while batch := list(islice(known, BATCH)):
                with broken(folder.path):
                    runs.add(batch)
        with broken(folder.path):
            path = folder.prepare()
            try:
                _fill(path, rows, iter(runs), volumes)
                return folder.publish(path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise


def _known(old: Environment, rows: Rows, numbers: Collection[int]) -> Iterator[bytes]:
    """What an environment, which may be damaged, has of these volumes: every row whose tag fits, as far as it can be walked."""
    try:
        most = old.most_blobs()
        for turn, (key, value) in enumerate(old.blobs()):
            if turn > most:
                raise IndexBroken("its pages form a circle")
            if rows.holder(key, value) in numbers:
                yield bytes(key) + bytes(value)
    except IndexBroken as error:
        log.info("%s: what it knew of volumes that cannot be read is lost in part", error)


def _fill(path: str, rows: Rows, sorted_rows: Iterator[bytes], volumes: list[IndexedVolume]) -> None:
    new = Environment(path, rows, durable=False)
    try:
        while batch := list(islice(sorted_rows, BATCH)):
            with new.writing() as writing:
                writing.put_blobs(batch)
        with new.writing() as writing:
            writing.put_volumes(volumes)
        new.sync()
    finally:
        new.close()
