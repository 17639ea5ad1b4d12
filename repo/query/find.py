"""Entries of snapshots whose names or paths match patterns, with restic's rules: a pattern fits any run of components, one that
begins with "/" fits from the top, and what fits a directory covers all below it.

Most pages are the same in most snapshots: pages in which nothing matched are remembered and not opened again.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from snapfs.repo.backup.globs import ANY, Rule, RuleList
from snapfs.repo.backup.patterns import parse_pattern, to_text
from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import UsageError
from snapfs.repo.model import Below, Node
from snapfs.repo.pagewalk import PageWalk

if TYPE_CHECKING:
    from snapfs.repo.repository import Repository
    from snapfs.repo.state import StoredSnapshot

_REMEMBERED = 65_536


class Match(NamedTuple):
    snapshot: StoredSnapshot
    path: bytes
    """Absolute, as in the snapshot."""
    node: Node


def find(repository: Repository, snapshots: Iterable[StoredSnapshot], patterns: Sequence[str], *, ignore_case: bool = False,
         oldest: int | None = None, newest: int | None = None) -> Iterator[Match]:  # fmt: skip
    """Matches in the order of snapshots and paths; `oldest` and `newest` bound the mtime (ns, both included).

    Raises UsageError for a bad pattern, Damaged where a directory cannot be read.
    """
    search = _Search(repository.blobs, _Patterns(patterns, ignore_case), oldest, newest)
    for snapshot in snapshots:
        for path, node in search.run(snapshot.record.root):
            yield Match(snapshot, path, node)


class _Patterns:
    def __init__(self, patterns: Sequence[str], fold: bool) -> None:
        if not patterns:
            raise UsageError("find needs at least one pattern")
        # "!" has no meaning here, and a name may begin with one.
        rules = [parse_pattern("\\" + p if p.startswith("!") else p, "find", fold) for p in patterns]
        self._fold = fold
        self._rules = RuleList(rules)
        self._starts = [_start(rule) for rule in rules] if all(rule.anchored for rule in rules) else None

    def match(self, path: bytes, is_dir: bool) -> bool:
        text = self._text(path)
        return self._rules.last(text, text.rpartition("/")[2], is_dir) >= 0

    def may_match_below(self, path: bytes) -> bool:
        """False where all patterns are anchored and none leads into this directory."""
        if self._starts is None or not path:
            return True
        names = self._text(path)[1:].split("/")
        return any(all(r.fullmatch(n) for r, n in zip(start, names, strict=False)) for start in self._starts)

    def _text(self, path: bytes) -> str:
        text = to_text(path)
        return text.lower() if self._fold else text


def _start(rule: Rule) -> list[re.Pattern[str]]:
    """What the first components must be."""
    known = rule.components[: rule.components.index(ANY)] if ANY in rule.components else rule.components
    return [re.compile(part.regex, re.DOTALL) for part in known]


class _Search(PageWalk):
    def __init__(
        self, blobs: BlobReader, patterns: _Patterns, oldest: int | None, newest: int | None
    ) -> None:
        super().__init__(blobs)
        self._patterns = patterns
        self._oldest = oldest
        self._newest = newest
        self._nothing: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        """Pages, with the hash of the path they were found at, below which nothing matched; used last at the end."""

    def run(self, root: Node) -> Iterator[tuple[bytes, Node]]:
        covered: bytes | None = None
        for path, node in self.walk(root):
            fits = covered is not None and path.startswith(covered)
            if not fits and self._patterns.match(path, node.is_dir):
                fits = True
                if node.is_dir:
                    covered = path + b"/"
            if fits and self._in_time(node):
                self.hit()
                yield path, node
            if not fits and node.is_dir and not self._patterns.may_match_below(path):
                self.pass_over()

    def _in_time(self, node: Node) -> bool:
        return (self._oldest is None or node.mtime >= self._oldest) and (
            self._newest is None or node.mtime <= self._newest
        )

    def enter(self, page: bytes, path: bytes, below: Below) -> bool:
        key = page, hash(path)
        if key in self._nothing:
            self._nothing.move_to_end(key)
            return False
        return True

    def leave(self, page: bytes, path: bytes, hit: bool) -> None:
        if not hit:
            self._nothing[page, hash(path)] = None
            if len(self._nothing) > _REMEMBERED:
                self._nothing.popitem(last=False)
