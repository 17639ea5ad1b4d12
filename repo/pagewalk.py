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
from snapfs.repo.trees import LEAF, Walked, check_depth

_CACHED = 64
_HELD = 48
"""Pages, from the newest back, whose entries are held; those of others are read again when their turn comes."""


class _Open:
    __slots__ = ("depth", "hit", "id", "items", "last", "length", "level")

    def __init__(
        self, page_id: bytes, length: int, depth: int, level: int, items: Iterator[Branch | Node]
    ) -> None:
        self.id = page_id
        self.length = length
        """Of the path of its directory, which the paths of all below begin with."""
        self.depth = depth
        self.level = level
        self.items: Iterator[Branch | Node] | None = items
        self.last: bytes | int = -1
        """The entry that was taken last: its name; on higher levels, its number."""
        self.hit = False


class PageWalk:
    """Override enter, opened, leave and failed; the order is that of Trees.walk."""

    def __init__(self, blobs: BlobReader) -> None:
        self._pages = PageReader(blobs, Kind.DIRECTORY, LEAF, _CACHED)
        self._stack: list[_Open] = []
        self._path = b""
        """Of the directory entered last."""
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
            self._open(node.root, path, 1, None, node.below or Below())
        while stack:
            top = stack[-1]
            if top.items is None:
                self._open_again(top)
            item = next(top.items, None)  # type: ignore[arg-type]
            if item is None:
                stack.pop()
                self.leave(top.id, self._path[: top.length], top.hit)
                if top.hit:
                    self.hit()
            elif isinstance(item, Branch):
                top.last += 1  # type: ignore[operator]
                below = Below(item.nodes, item.files, item.size)
                self._open(item.id, self._path[: top.length], top.depth, top.level - 1, below)
            else:
                here = self._path[: top.length] + b"/" + item.name
                top.last, self._passed = item.name, False
                yield Walked(here, item)
                if item.is_dir and item.root is not None and not self._passed:
                    self._open(item.root, here, top.depth + 1, None, item.below or Below())

    def _open(self, page_id: bytes, path: bytes, depth: int, level: int | None, below: Below) -> None:
        if not self.enter(page_id, path, below):
            return
        try:
            check_depth(depth)
            found_level, page = self._pages.page(page_id, level)
            self.opened(page_id, path, page, below)
            items = iter(page.branches or ()) if page.leaves is None else iter(self.chosen(page.leaves))
        except RepositoryError as error:
            self.failed(page_id, path, error)
            self.leave(page_id, path, True)
            self.hit()
            return
        self._path = path
        self._stack.append(_Open(page_id, len(path), depth, found_level, items))
        if len(self._stack) > _HELD:
            self._stack[-_HELD - 1].items = None

    def _open_again(self, top: _Open) -> None:
        page = self._pages.page(top.id, top.level)[1]
        if isinstance(top.last, int):
            top.items = iter((page.branches or ())[top.last + 1 :])
        else:
            after = top.last
            top.items = (node for node in self.chosen(page.leaves or []) if node.name > after)
