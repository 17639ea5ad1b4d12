"""Two directories read side by side in the order of raw names, without opening any page that both have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import Damaged
from snapfs.repo.format.records import Branch
from snapfs.repo.model import Kind, Node
from snapfs.repo.pages import PageReader
from snapfs.repo.trees import LEAF, check_depth

_CACHED = 64
_ROOT = 1 << 30
"""Stands for the level of a root page, which is only known once it is open."""


def directory_pages(blobs: BlobReader) -> PageReader[Node]:
    return PageReader(blobs, Kind.DIRECTORY, LEAF, _CACHED)


class Front(Protocol):
    """One side of a directory: what comes next is an entry, or a page that nobody has opened yet."""

    name: bytes | None
    """First name of what comes next; None at the end."""
    node: Node | None
    branch: Branch | None
    level: int
    """Of the page that comes next, plus one; 0 for an entry."""

    def skip(self) -> None:
        """Past what comes next."""

    def open(self) -> None:
        """Open the page that comes next: its first entry is next then."""


class Paired(Protocol):
    def __call__(self, path: bytes, old: Node | None, new: Node | None, /) -> tuple[Front, Front]: ...


def side_by_side(a: Node, b: Node, paired: Paired) -> Iterator[tuple[bytes, Node | None, Node | None]]:
    """(path, node of a, node of b) of everything below two directories that is not equal page for page; parents first."""
    path = b""
    stack = [(0, _merge(*paired(b"", a, b)))]
    while stack:
        length, pairs = stack[-1]
        path = path[:length]
        pair = next(pairs, None)
        if pair is None:
            stack.pop()
            continue
        old, new = pair
        here = path + b"/" + (old or new).name  # type: ignore[union-attr]
        yield here, old, new
        below = (
            old if old is not None and old.is_dir else None,
            new if new is not None and new.is_dir else None,
        )
        if below[0] is not None or below[1] is not None:
            check_depth(len(stack) + 1)
            stack.append((len(here), _merge(*paired(here, *below))))
            path = here


def _merge(old: Front, new: Front) -> Iterator[tuple[Node | None, Node | None]]:
    while old.name is not None or new.name is not None:
        if new.name is None or (old.name is not None and old.name < new.name):
            if old.level:
                old.open()
            else:
                yield old.node, None
                old.skip()
        elif old.name is None or new.name < old.name:
            if new.level:
                new.open()
            else:
                yield None, new.node
                new.skip()
        elif old.branch is not None and new.branch is not None and old.branch.id == new.branch.id:
            old.skip()
            new.skip()
        elif old.level or new.level:
            if old.level >= new.level:
                old.open()
            else:
                new.open()
        else:
            yield old.node, new.node
            old.skip()
            new.skip()


class Seen(Protocol):
    def __call__(self, kind: Kind, blob: bytes, /) -> None: ...


class Stored:
    """A stored directory.  `seen` is told of each page opened."""

    def __init__(self, pages: PageReader[Node], node: Node | None, seen: Seen | None = None) -> None:
        self._pages = pages
        self._seen = seen
        self._stack: list[Iterator[Branch | Node]] = []
        self._levels: list[int] = []
        self._last = b""
        self.name: bytes | None = None
        self.node: Node | None = None
        self.branch: Branch | None = None
        self.level = 0
        if node is not None and node.root is not None:
            self.name, self.branch, self.level = b"", Branch(b"", 1, 0, node.root), _ROOT

    def skip(self) -> None:
        while self._stack:
            item = next(self._stack[-1], None)
            if item is None:
                self._stack.pop()
                self._levels.pop()
                continue
            if isinstance(item, Branch):
                self.name, self.node, self.branch, self.level = (
                    item.first or b"",
                    None,
                    item,
                    self._levels[-1],
                )
            else:
                if item.name <= self._last:
                    raise Damaged(f"entry {item.name!r} is out of order or twice there", "directory")
                self._last = item.name
                self.name, self.node, self.branch, self.level = item.name, item, None, 0
            return
        self.name = self.node = self.branch = None
        self.level = 0

    def open(self) -> None:
        assert self.branch is not None
        if self._seen is not None:
            self._seen(Kind.DIRECTORY, self.branch.id)
        level, page = self._pages.page(self.branch.id, self.level - 1 if self.level != _ROOT else None)
        self._stack.append(iter(page.branches if page.leaves is None else page.leaves))  # type: ignore[arg-type]
        self._levels.append(level)
        self.skip()


class Plain:
    """A directory that is a sorted row of nodes."""

    level = 0
    branch: Branch | None = None

    def __init__(self, nodes: Iterator[Node]) -> None:
        self._nodes = nodes
        self.skip()

    def skip(self) -> None:
        self.node: Node | None = next(self._nodes, None)
        self.name: bytes | None = None if self.node is None else self.node.name

    def open(self) -> None:
        raise AssertionError("there are no pages")
