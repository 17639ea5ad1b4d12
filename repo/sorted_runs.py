"""More rows than memory should hold, in order: sorted runs in one temporary file, merged while they are read."""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Self

_HELD = 1 << 17
"""Rows of a run: what is in memory while rows are added."""
_READ = 1 << 10
"""Rows read at once of each run."""


class SortedRuns:
    """Rows of equal length.  add() them all, then iterate once.  Raises OSError where the folder has no room."""

    def __init__(self, folder: str, row: int, held: int = _HELD) -> None:
        """`row`: bytes of a row; `held`: rows in memory, at most, beside those of one add()."""
        self._folder = folder
        self._row = row
        self._limit = held
        self._held: list[bytes] = []
        self._file: BinaryIO | None = None
        self._runs: list[tuple[int, int]] = []
        """(begin, end) in the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: Iterable[bytes]) -> None:
        self._held.extend(rows)
        if len(self._held) >= self._limit:
            self._spill()

    def __iter__(self) -> Iterator[bytes]:
        self._held.sort()
        return heapq.merge(self._held, *(self._read(begin, end) for begin, end in self._runs))

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  closed on leaving
        self._held.sort()
        data, begin = memoryview(b"".join(self._held)), self._runs[-1][1] if self._runs else 0
        self._held.clear()
        self._runs.append((begin, begin + len(data)))
        while data:
            data = data[self._file.write(data) :]

    def _read(self, begin: int, end: int) -> Iterator[bytes]:
        assert self._file is not None
        row, step = self._row, self._row * _READ
        for at in range(begin, end, step):
            data = os.pread(self._file.fileno(), min(step, end - at), at)
            if len(data) != min(step, end - at):
                raise OSError("a temporary file was cut short")
            for start in range(0, len(data), row):
                yield data[start : start + row]
