"""Reads long sequences that are trees of small pages, as repo/page_writer.py writes them.

Every page sums up what lies below it, so the n-th entry, an offset or a name is found by bisection.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from operator import ge
from typing import Generic, NamedTuple, TypeVar

import msgspec

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import Damaged
from snapfs.repo.format import records
from snapfs.repo.format.records import Branch
from snapfs.repo.model import BlobId, Kind, MiB

T = TypeVar("T")
_CACHED_PAGES = 1024
_CACHED_BYTES = 8 * MiB
"""Of their records.  Decoded they take several times that; only pages far larger than any writer makes get there first."""


class Page(Generic[T]):
    """A decoded page: leaf entries, or branches; with running sums for bisection (each list begins with 0)."""

    __slots__ = ("branches", "bytes", "entries", "leaves", "names", "nodes")

    def __init__(self, leaves: list[T] | None, branches: list[Branch] | None, names: list[bytes],
                 entries: list[int], nodes: list[int], bytes_: list[int]) -> None:  # fmt: skip
        self.leaves = leaves
        self.branches = branches
        self.names = names
        self.entries = entries
        self.nodes = nodes
        self.bytes = bytes_


class Leaf(NamedTuple, Generic[T]):
    """How one kind of leaf entry is decoded, and what it counts for.  All for the entries of a page at once: these are the
    innermost loops of listing a mount."""

    decode: Callable[[Sequence[msgspec.Raw], str], list[T]]
    names: Callable[[list[T]], list[bytes]]
    """Ascending; none at all where entries have no names."""
    nodes: Callable[[list[T]], list[int]]
    bytes: Callable[[list[T]], list[int]]


class Found(NamedTuple, Generic[T]):
    """A leaf entry and what stands before it in the sequence: entries, nodes, bytes."""

    ordinal: int
    nodes_before: int
    bytes_before: int
    entry: T


class Run(NamedTuple, Generic[T]):
    """The leaf entries of one page from the `first`-th on, and what stands before the page in the sequence."""

    first: int
    ordinal: int
    nodes_before: int
    bytes_before: int
    entries: Sequence[T]
    page: Page[T]


class PageReader(Generic[T]):
    """Reads sequences of one kind, page by page, from any thread.  Keeps the pages used last."""

    def __init__(self, blobs: BlobReader, kind: Kind, leaf: Leaf[T], cached: int = _CACHED_PAGES) -> None:
        self._blobs = blobs
        self._kind = kind
        self._leaf = leaf
        self._cached = cached
        self._pages: OrderedDict[bytes, tuple[int, Page[T]]] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._size = 0
        self._lock = threading.Lock()

    def iterate(self, root: BlobId | bytes, start: int = 0) -> Iterator[Found[T]]:
        """The entries from the `start`-th on.  Raises Damaged where names do not ascend."""
        for run in self.runs(root, start):
            ordinal, nodes, size = run.ordinal, run.nodes_before, run.bytes_before
            page = run.page
            for i in range(run.first, len(run.entries)):
                yield Found(ordinal + i, nodes + page.nodes[i], size + page.bytes[i], run.entries[i])

    def runs(self, root: BlobId | bytes, start: int = 0) -> Iterator[Run[T]]:
        """The same entries, as many at once as stand in one page."""
        last: bytes | None = None
        for run in self._runs(*self.page(root), start, 0, 0, 0):
            names = run.page.names
            if names:
                if last is not None and names[0] <= last:
                    raise _disorder(names[0])
                last = names[-1]
            yield run

    def by_name(self, root: BlobId | bytes, name: bytes) -> Found[T] | None:
        def choose(page: Page[T]) -> int:
            i = bisect_right(page.names, name) - 1
            return i if i < 0 or page.leaves is None or page.names[i] == name else -1

        return self._descend(root, choose)

    def by_node(self, root: BlobId | bytes, number: int) -> Found[T] | None:
        """The entry that is, or holds below it, the `number`-th node of the sequence."""
        return self._by_sum(root, number, "nodes")

    def by_byte(self, root: BlobId | bytes, offset: int) -> Found[T] | None:
        """The entry that covers a byte offset."""
        return self._by_sum(root, offset, "bytes")

    def cached(self, root: BlobId | bytes) -> bool:
        """Whether the root page is at hand, so that a look-up has a chance of not reading."""
        with self._lock:
            return root in self._pages

    def page(self, page: BlobId | bytes, expected: int | None = None) -> tuple[int, Page[T]]:
        """(level, page).  Raises Damaged, also if the level is not the expected one."""
        with self._lock:
            got = self._pages.get(page)
            if got is not None:
                self._pages.move_to_end(page)
        if got is None:
            data = self._blobs.get(BlobId(page), self._kind)
            got = self._decode(data, page.hex()[:16])
            with self._lock:
                self._keep(page, got, len(data))
        if expected is not None and got[0] != expected:
            raise Damaged(f"page {page.hex()[:16]} is on the wrong level", "tree")
        return got

    def distinct(self, root: BlobId | bytes) -> Iterator[bytes | list[T]]:
        """Every page once, however often it is named: its id before it is read; then, if it is one of leaves, its entries."""
        known: dict[bytes, tuple[int, int, int, int]] = {}
        stack: list[tuple[bytes, tuple[int, int, int, int] | None]] = [(root, None)]
        while stack:
            page_id, said = stack.pop()
            found = known.get(page_id)
            if found is None:
                yield page_id
                level, page = self.page(page_id)
                found = known[page_id] = (level, page.entries[-1], page.nodes[-1], page.bytes[-1])
                if page.leaves is not None:
                    yield page.leaves
                stack += [
                    (b.id, (level - 1, b.entries, b.nodes, b.size)) for b in reversed(page.branches or ())
                ]
            if said is not None and found != said:
                raise Damaged(f"page {page_id.hex()[:16]} does not add up to what is said of it", "tree")

    def _keep(self, page_id: bytes, page: tuple[int, Page[T]], size: int) -> None:
        self._size += size - self._sizes.get(page_id, 0)
        self._pages[page_id], self._sizes[page_id] = page, size
        while len(self._pages) > self._cached or (self._size > _CACHED_BYTES and len(self._pages) > 1):
            old, _ = self._pages.popitem(last=False)
            self._size -= self._sizes.pop(old)

    def _decode(self, data: bytes, where: str) -> tuple[int, Page[T]]:
        page = records.decode_page(data, where)
        if page.level:
            branches = [records.decode_branch(raw, where) for raw in page.entries]
            return page.level, Page(
                None, branches, [b.first or b"" for b in branches], _running([b.entries for b in branches]),
                _running([b.nodes for b in branches]), _running([b.size for b in branches]),
            )  # fmt: skip
        leaf = self._leaf
        leaves = leaf.decode(page.entries, where)
        names = leaf.names(leaves)
        if any(map(ge, names, names[1:])):
            raise _disorder(next(name for last, name in pairwise(names) if name <= last))
        return 0, Page(
            leaves, None, names, list(range(len(leaves) + 1)),
            _running(leaf.nodes(leaves)), _running(leaf.bytes(leaves)),
        )  # fmt: skip

    def _below(self, level: int, branch: Branch) -> tuple[int, Page[T]]:
        """What a branch on this level names.  Its sums are compared: an entry must not be found at a place where it is not."""
        below = self.page(branch.id, level - 1)
        page = below[1]
        if (page.entries[-1], page.nodes[-1], page.bytes[-1]) != (branch.entries, branch.nodes, branch.size):
            raise Damaged(f"page {branch.id.hex()[:16]} does not add up to what is said of it", "tree")
        return below

    def _runs(
        self, level: int, page: Page[T], start: int, ordinal: int, nodes: int, size: int
    ) -> Iterator[Run[T]]:
        first = max(bisect_right(page.entries, start - ordinal) - 1, 0) if start > ordinal else 0
        if page.leaves is not None:
            if first < len(page.leaves):
                yield Run(first, ordinal, nodes, size, page.leaves, page)
            return
        assert page.branches is not None
        for i in range(first, len(page.branches)):
            below = self._below(level, page.branches[i])
            yield from self._runs(
                *below, start, ordinal + page.entries[i], nodes + page.nodes[i], size + page.bytes[i]
            )

    def _by_sum(self, root: BlobId | bytes, wanted: int, sums: str) -> Found[T] | None:
        rest = wanted

        def choose(page: Page[T]) -> int:
            nonlocal rest
            running: list[int] = getattr(page, sums)
            if not 0 <= rest < running[-1]:
                return -1
            i = bisect_right(running, rest) - 1
            rest -= running[i]
            return i

        return self._descend(root, choose)

    def _descend(self, root: BlobId | bytes, choose: Callable[[Page[T]], int]) -> Found[T] | None:
        ordinal, nodes, size = 0, 0, 0
        level, page = self.page(root)
        while True:
            i = choose(page)
            if i < 0:
                return None
            ordinal += page.entries[i]
            nodes += page.nodes[i]
            size += page.bytes[i]
            if page.leaves is not None:
                return Found(ordinal, nodes, size, page.leaves[i])
            assert page.branches is not None
            level, page = self._below(level, page.branches[i])


def _running(counts: list[int]) -> list[int]:
    return list(accumulate(counts, initial=0))


def _disorder(name: bytes) -> Damaged:
    return Damaged(f"entry {name!r} is out of order or twice there", "directory")
