"""Is everything there that the snapshots refer to, and is it what was written?

Three looks, each in bounded memory: the events; the volumes (directories, or with `read_data` every byte: scrub.py); and the
snapshots' trees, each page of them once, asking the index for every blob.  A blob whose only copies lie in damaged volumes is
really read before it is called lost.  Where anything is lost, a second walk, only along the pages that lead there, names the
files.  Nothing is repaired here but the index; damaged volumes are marked in it so that the next backup stores their blobs anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from snapfs.repo.blobs import BlobReader
from snapfs.repo.content import Contents
from snapfs.repo.errors import BlobMissing, Damaged, RepositoryError
from snapfs.repo.index import IndexBroken
from snapfs.repo.marks import Marks
from snapfs.repo.model import Below, BlobId, Kind, Location, MiB, Node
from snapfs.repo.pages import Page
from snapfs.repo.pagewalk import PageWalk
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.scrub import Examiner, VolumeReport, fingerprint
from snapfs.repo.volumes import object_name

if TYPE_CHECKING:
    from snapfs.repo.events import StoredSnapshot
    from snapfs.repo.repository import Repository

LISTED = 10_000
"""Problems and affected files kept, at most, of each; all are counted."""


class Problem(NamedTuple):
    """Damage.  `kind`: event, volume, blob or tree; `where` names the object, the blob, or a path in a snapshot."""

    kind: str
    message: str
    where: str


class Affected(NamedTuple):
    """What cannot be read back whole.  `what`: content (attributes are part of it), or listing (of a directory)."""

    snapshot: str
    """8 hex digits."""
    path: bytes
    what: str


@dataclass
class CheckResult:
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    affected: list[Affected] = field(default_factory=list)
    affected_count: int = 0
    notes: list[str] = field(default_factory=list)
    """What is no damage: leftovers, volumes that nothing needs, an index that was corrected."""
    snapshots: int = 0
    volumes: int = 0
    blobs: int = 0
    """In all volumes."""
    pages: int = 0
    """Distinct directory pages walked."""
    bytes_stored: int = 0
    bytes_read: int = 0
    """Of volumes, with `read_data`."""
    bytes_plain: int = 0
    """Plaintext of all blobs."""

    @property
    def ok(self) -> bool:
        return not self.problem_count

    def add(self, kind: str, message: str, where: str) -> None:
        self.problem_count += 1
        if len(self.problems) < LISTED:
            self.problems.append(Problem(kind, message, where))

    def name(self, snapshot: str, path: bytes, what: str) -> None:
        self.affected_count += 1
        if len(self.affected) < LISTED:
            self.affected.append(Affected(snapshot, path or b"/", what))


def check(repository: Repository, *, read_data: bool = False, progress: Progress = SILENT) -> CheckResult:
    """Look at everything, `read_data`: at every byte.  Damage is in the result; raises only where the place itself fails."""
    try:
        return _Check(repository, read_data, progress).run()
    except IndexBroken as error:
        repository.synchronise(thorough=True)
        result = _Check(repository, read_data, progress).run()
        result.notes.append(f"the index was broken ({error}) and was rebuilt from the volumes")
        return result


class _Check:
    def __init__(self, repository: Repository, read_data: bool, progress: Progress) -> None:
        self._repository = repository
        self._read_data = read_data
        self._progress = progress
        self._result = CheckResult()
        self._gone: dict[bytes, tuple[str, str]] = {}
        """Volumes the index knew that are absent or of another size: name -> (path, why)."""

    def run(self) -> CheckResult:
        result, repository = self._result, self._repository
        state = repository.events.load()
        for text in state.problems:
            result.add("event", text, "events")
        self._leftovers()
        self._volumes()
        walk = _TreeCheck(repository, result)
        self._progress.phase("check snapshots", files=len(state.snapshots))
        for snapshot in state.snapshots:
            walk.check(snapshot)
            result.snapshots += 1
            self._progress.advance(files=1)
        if walk.damaged:
            self._progress.phase("name damaged files", files=len(state.snapshots))
            for snapshot in state.snapshots:
                walk.name(snapshot)
                self._progress.advance(files=1)
        self._absences(walk)
        repository.index.mark(walk.unreadable, False)
        return result

    def _leftovers(self) -> None:
        sizes = [size for _, size in self._repository.storage.list("tmp")]
        if sizes:
            self._result.notes.append(
                f"{len(sizes)} unfinished files ({sum(sizes)} bytes) in tmp/: of a backup that runs, or that was "
                "cut off; the next one sweeps them up"
            )

    def _volumes(self) -> None:
        repository, result = self._repository, self._result
        index = repository.index
        listing = repository.volumes.listing()
        for known in index.volumes():
            kind, size = listing.get(known.name, (known.kind, -1))
            if size != known.size:
                why = "missing" if size < 0 else f"{size} bytes long, it was {known.size}"
                self._gone[known.name] = object_name(kind, known.name), why
        repository.synchronise()
        total = sum(size for _, size in listing.values())
        self._progress.phase("check volumes", files=len(listing), bytes=total if self._read_data else None)
        examiner = Examiner(repository.volumes, repository.keys, self._read_data)
        listed = ((name, kind, size) for name, (kind, size) in sorted(listing.items()))
        prints: dict[bytes, int] = {}
        sound: set[bytes] = set()
        damaged: set[bytes] = set()
        for report in examiner.examine_all(listed):
            self._count(report)
            if report.problems:
                damaged.add(report.name)
            else:
                sound.add(report.name)
                prints[report.name] = report.fingerprint
        if self._index_disagrees(prints):
            index.reset()
            repository.synchronise(thorough=True)
            result.notes.append("the index disagreed with the volumes and was corrected")
        if damaged:
            index.mark(damaged, False)
        unusable = {v.name for v in index.volumes() if not v.usable and v.name in sound}
        if unusable and self._read_data:
            index.mark(unusable, True)
            result.notes.append(f"{len(unusable)} volumes found damaged earlier are sound now")
        elif unusable:
            result.notes.append(
                f"{len(unusable)} volumes were found damaged earlier; `check --read-data` reads them again"
            )

    def _count(self, report: VolumeReport) -> None:
        result = self._result
        for text in report.problems:
            path = object_name(report.kind, report.name)
            result.add("volume", text.removeprefix(f"{path}: "), path)
        result.volumes += 1
        result.blobs += report.blobs
        result.bytes_plain += report.plain
        result.bytes_stored += report.size
        result.bytes_read += report.size if self._read_data else 0
        self._progress.advance(files=1, bytes=report.size if self._read_data else 0)

    def _index_disagrees(self, prints: dict[bytes, int]) -> bool:
        """Whether the index says anything else of the sound volumes than their directories do."""
        index = self._repository.index
        sums = {volume.number: 0 for volume in index.volumes()}
        for key, at in index.entries():
            if at.volume not in sums:
                return True
            sums[at.volume] += fingerprint(key, at)
        names = {volume.name: volume.number for volume in index.volumes()}
        return any(name not in names or sums[names[name]] != value for name, value in prints.items())

    def _absences(self, walk: _TreeCheck) -> None:
        """A volume that is gone is damage if anything is lost that may have been in it."""
        known = {volume.name for volume in self._repository.index.volumes()}
        for name, (path, why) in self._gone.items():
            if name in walk.unreadable or (walk.homeless and name not in known):
                self._result.add("volume", why, path)
            else:
                self._result.notes.append(f"{path}: {why}; no snapshot needs anything that was only there")


class _TreeCheck(PageWalk):
    """Walks snapshots.  Marks are bits by place: pages and lists walked, those with damage below, blobs tried, blobs lost."""

    def __init__(self, repository: Repository, result: CheckResult) -> None:
        self._index = repository.index
        # A reader that never looks again: looking again may number the volumes anew, and the index was just compared.
        self._reader = BlobReader(repository.index, repository.volumes, repository.keys, lambda _: False, 16 * MiB)
        super().__init__(self._reader)
        self._contents = Contents(self._reader)
        self._result = result
        self._walked, self._below = Marks(), Marks()
        self._tried, self._lost = Marks(), Marks()
        self._naming = ""
        self._snapshot = ""
        self.damaged = False
        self.homeless = False
        """Something that is needed is in no volume the index knows."""
        self.unreadable: set[bytes] = set()
        """Names of volumes in which something that is needed cannot be read."""

    def check(self, snapshot: StoredSnapshot) -> None:
        self._naming, self._snapshot = "", snapshot.short
        self._run(snapshot)

    def name(self, snapshot: StoredSnapshot) -> None:
        """The second walk: names what the first found damaged."""
        self._naming = self._snapshot = snapshot.short
        self._run(snapshot)

    def _run(self, snapshot: StoredSnapshot) -> None:
        root = snapshot.record.root
        self._node(root, b"")
        for path, node in self.walk(root):
            if self._node(node, path):
                self.hit()

    # ---- pages ---------------------------------------------------------------------------------------------------

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        at = self._place(Kind.DIRECTORY, page, path)
        if at is None:
            self.hit()
            if self._naming:
                self._result.name(self._naming, path, "listing")
            return False
        if self._naming:
            return self._below.has_blob(at)
        if self._walked.add_blob(at):
            self._result.pages += 1
            return True
        if self._below.has_blob(at):
            self.hit()
        return False

    def opened(self, page: bytes, path: bytes, found: Page[Node], below: Below) -> None:
        if any(a >= b for a, b in zip(found.names, found.names[1:], strict=False)):
            raise Damaged("names out of order", page.hex()[:16])
        if found.nodes[-1] != below.nodes or found.bytes[-1] != below.size:
            raise Damaged("holds another number of files or bytes than its parent says", page.hex()[:16])

    def leave(self, page: bytes, path: bytes, hit: bool) -> None:
        if hit and (at := self._first(page)) is not None:
            self._below.add_blob(at)

    def failed(self, page: bytes, path: bytes, error: RepositoryError) -> None:
        self._report("tree", f"part of the listing cannot be read: {error}", path)
        if (at := self._first(page)) is not None:
            self._blame(at)
        if self._naming:
            self._result.name(self._naming, path, "listing")

    # ---- entries -------------------------------------------------------------------------------------------------

    def _node(self, node: Node, path: bytes) -> bool:
        """Whether anything of this node but its listing is lost."""
        if node.blobs is None and node.xattrs is None and (node.root is None or node.is_dir) and node.holes is None:
            return False
        bad = self._content(node, path)
        if bad and self._naming:
            self._result.name(self._naming, path, "content")
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
            self._result.add(kind, message, f"{self._snapshot}:{text}")
