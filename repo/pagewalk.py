"""Walking directories page by page, so that a page that was seen before can be passed over whole.

Trees.walk sees entries only; here whoever walks decides at each page whether to go in, and learns on the way out whether
something below it was hit.  Depth is bounded by memory, not by Python's stack.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import RepositoryError
from snapfs.repo.format.records import Branch
from snapfs.repo.model import Below, Kind, Node
from snapfs.repo.pages import Page, PageReader
from snapfs.repo.trees import LEAF, Walked

_CACHED = 64


class _Open:
    __slots__ = ("hit", "id", "items", "level", "path")

    def __init__(self, page_id: bytes, path: bytes, level: int, items: Iterator[Branch | Node]) -> None:
        self.id = page_id
        self.path = path
        self.level = level
        self.items = items
        self.hit = False


class PageWalk:
    """Override enter, opened, leave and failed; the order is that of Trees.walk."""

    def __init__(self, blobs: BlobReader) -> None:
        self._pages = PageReader(blobs, Kind.DIRECTORY, LEAF, _CACHED)
        self._stack: list[_Open] = []
        self._passed = False

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        """Whether to go into this page of the directory at `path`; `below` is what its parent says of it."""
        return True

    def opened(self, page: bytes, path: bytes, found: Page[Node], below: Below) -> None:
        """A page was read.  RepositoryErrors raised here go to failed()."""

    def chosen(self, leaves: list[Node]) -> list[Node]:
        """Those of a page that are to be yielded, in their order."""
        return leaves

    def leave(self, page: bytes, path: bytes, hit: bool) -> None:
        """A page that was entered is done; `hit`: hit() was called for something in it or below it."""

    def failed(self, page: bytes, path: bytes, error: RepositoryError) -> None:
        """A page could not be read; it counts as hit if this returns."""
        raise error

    def hit(self) -> None:
        """Of the entry that was yielded last, or, within enter(), of the page asked about."""
        if self._stack:
            self._stack[-1].hit = True

    def pass_over(self) -> None:
        """Do not go into the directory that was yielded last."""
        self._passed = True

    def walk(self, node: Node, path: bytes = b"") -> Iterator[Walked]:
        """Everything below a directory whose pages are entered, parents first; `path` is put before all names."""
        self._stack.clear()
        stack = self._stack
        if node.root is not None:
            self._open(node.root, path, None, node.below or Below())
        while stack:
            top = stack[-1]
            item = next(top.items, None)
            if item is None:
                stack.pop()
                self.leave(top.id, top.path, top.hit)
                if top.hit:
                    self.hit()
            elif isinstance(item, Branch):
                self._open(item.id, top.path, top.level - 1, Below(item.nodes, item.files, item.size))
            else:
                here = top.path + b"/" + item.name
                self._passed = False
                yield Walked(here, item)
                if item.is_dir and item.root is not None and not self._passed:
                    self._open(item.root, here, None, item.below or Below())

    def _open(self, page_id: bytes, path: bytes, level: int | None, below: Below) -> None:
        if not self.enter(page_id, path, below):
            return
        try:
            found_level, page = self._pages.page(page_id, level)
            self.opened(page_id, path, page, below)
            items = iter(page.branches or ()) if page.leaves is None else iter(self.chosen(page.leaves))
        except RepositoryError as error:
            self.failed(page_id, path, error)
            self.leave(page_id, path, True)
            self.hit()
            return
        self._stack.append(_Open(page_id, path, found_level, items))
