"""Whether every page and blob that snapshots refer to can be had: each page is walked once, each blob looked up in the index.

A blob whose only copies lie in volumes that are not to be relied on is really read before it is called lost.  Where anything
is lost, a second walk, only along the pages that lead there, names the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.repo.blobs import BlobReader
from snapfs.repo.check.findings import CheckResult
from snapfs.repo.content import Contents, names_blobs
from snapfs.repo.errors import BlobMissing, Damaged, RepositoryError
from snapfs.repo.marks import Marks
from snapfs.repo.model import Below, BlobId, Kind, Location, MiB, Node
from snapfs.repo.pages import Page
from snapfs.repo.pagewalk import PageWalk
from snapfs.repo.progress import Progress

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository
    from snapfs.repo.state import StoredSnapshot


class TreeCheck(PageWalk):
    """Walks snapshots.  Marks are bits by place: pages and lists walked, those with damage below, blobs tried, blobs lost."""

    def __init__(self, repository: Repository, progress: Progress) -> None:
        self._index = repository.index
        # A reader that never looks again: looking again may number the volumes anew, and the index was just compared.
        self._reader = BlobReader(
            repository.index, repository.volumes, repository.keys, lambda _: False, 16 * MiB
        )
        super().__init__(self._reader)
        self._contents = Contents(self._reader)
        self._progress = progress
        self.found = CheckResult()
        self._walked, self._below = Marks(), Marks()
        self._tried, self._lost = Marks(), Marks()
        self._naming = ""
        self._snapshot = ""
        self._root_hit = False
        self._stopped = False
        self.damaged = False
        self.hits = 0
        """Grows with every snapshot in which something is lost, also if an earlier one shares it."""
        self.homeless = False
        """Something that is needed is in no volume the index knows."""
        self.unreadable: set[bytes] = set()
        """Names of volumes in which something that is needed cannot be read."""

    def check(self, snapshot: StoredSnapshot) -> None:
        self._naming, self._snapshot = "", snapshot.short
        self.found.snapshots += 1
        self._run(snapshot)

    def name(self, snapshot: StoredSnapshot) -> None:
        """The second walk: names what the first found damaged."""
        self._naming = self._snapshot = snapshot.short
        self._run(snapshot)

    def stop(self) -> None:
        """Let check(), in whatever thread, end with KeyboardInterrupt."""
        self._stopped = True

    def is_whole(self, page: bytes) -> bool:
        """Whether a directory page that was walked, and everything below it, can be had."""
        at = self._first(page)
        return at is not None and not (self._below.has_blob(at) or self._lost.has_blob(at))

    def _run(self, snapshot: StoredSnapshot) -> None:
        root = snapshot.record.root
        self._root_hit = self._node(root, b"")
        for path, node in self.walk(root):
            if self._node(node, path):
                self.hit()
        self.hits += self._root_hit

    def hit(self) -> None:
        self._root_hit = True
        super().hit()

    # ---- pages ---------------------------------------------------------------------------------------------------

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        if self._stopped or self._progress.interrupted:
            raise KeyboardInterrupt
        at = self._place(Kind.DIRECTORY, page, path)
        if at is None:
            self.hit()
            if self._naming:
                self.found.name(self._naming, path, "listing")
            return False
        if self._naming:
            return self._below.has_blob(at)
        if self._walked.add_blob(at):
            self.found.pages += 1
            return True
        if self._below.has_blob(at):
            self.hit()
        return False

    def opened(self, page: bytes, path: bytes, found: Page[Node], below: Below) -> None:
        if found.leaves is None and any(a >= b for a, b in zip(found.names, found.names[1:], strict=False)):
            raise Damaged("names out of order", page.hex()[:16])
        if found.nodes[-1] != below.nodes or found.bytes[-1] != below.size:
            raise Damaged("holds another number of files or bytes than its parent says", page.hex()[:16])

    def chosen(self, leaves: list[Node]) -> list[Node]:
        """Nearly all are files with a blob or a few, and all of these are there: one question for a page of them."""
        blobs = [blob for node in leaves for blob, _ in node.blobs or () if blob is not None]
        if not self._index.holds(blobs):
            return leaves
        return [
            node
            for node in leaves
            if node.root is not None or node.xattrs is not None or node.holes is not None
        ]

    def leave(self, page: bytes, path: bytes, hit: bool) -> None:
        if hit and (at := self._first(page)) is not None:
            self._below.add_blob(at)

    def failed(self, page: bytes, path: bytes, error: RepositoryError) -> None:
        self._report("tree", f"part of the listing cannot be read: {error}", path)
        if (at := self._first(page)) is not None:
            self._blame(at)
        if self._naming:
            self.found.name(self._naming, path, "listing")

    # ---- entries -------------------------------------------------------------------------------------------------

    def _node(self, node: Node, path: bytes) -> bool:
        """Whether anything of this node but its listing is lost."""
        if not names_blobs(node):
            return False
        bad = self._content(node, path)
        if bad and self._naming:
            self.found.name(self._naming, path, "content")
        return bad

    def _content(self, node: Node, path: bytes) -> bool:
        bad = list_bad = False
        at = None
        try:
            for kind, blob in self._contents.blobs(node):
                place = self._place(kind, blob, path)
                if kind is Kind.LIST and blob == node.root:
                    at = place
                    if at is not None and not self._walked.add_blob(at):
                        list_bad = self._below.has_blob(at)
                        break
                if place is None:
                    bad = bad or kind in (Kind.XATTR, Kind.HOLES)
                    list_bad = list_bad or kind in (Kind.LIST, Kind.CONTENT)
                    if kind in (Kind.LIST, Kind.HOLES):
                        break
        except RepositoryError as error:
            self._report("tree", f"the list of its content cannot be read: {error}", path)
            list_bad = True
        if list_bad and at is not None:
            self._below.add_blob(at)
        return bad or list_bad

    # ---- blobs ---------------------------------------------------------------------------------------------------

    def _place(self, kind: Kind, blob: bytes, path: bytes) -> Location | None:
        """Where a blob can be read; None if nowhere, which is reported."""
        at = self._index.get(blob)
        if at is not None:
            return at
        at = self._first(blob)
        if at is None:
            self.homeless = True
            self._report("blob", str(BlobMissing(blob)), path)
            return None
        if self._tried.add_blob(at):
            try:
                self._reader.get(BlobId(blob), kind)
            except RepositoryError as error:
                self._lost.add_blob(at)
                self._blame(at)
                self._report("blob", f"{kind.name.lower()} {blob.hex()[:16]} cannot be read: {error}", path)
        if not self._lost.has_blob(at):
            return at
        self.damaged = True
        return None

    def _first(self, blob: bytes) -> Location | None:
        copies = self._index.copies(blob)
        return copies[0] if copies else None

    def _blame(self, at: Location) -> None:
        self.unreadable.add(self._index.volume(at.volume).name)

    def _report(self, kind: str, message: str, path: bytes) -> None:
        self.damaged = True
        if not self._naming:
            text = path.decode("utf-8", "backslashreplace") or "/"
            self.found.add(kind, message, f"{self._snapshot}:{text}")
