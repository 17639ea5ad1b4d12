"""Which entries are restored: restic's include and exclude patterns, matched against paths below what is restored.

With includes only what fits is restored, with the directories above it; what fits an exclude is left out, all below it too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from snapfs.repo.backup.globs import ANY
from snapfs.repo.backup.patterns import Excludes, parse_pattern, read_patterns, to_text


class Selection:
    """Immutable.  True in a condition if it leaves anything out."""

    def __init__(
        self, includes: Excludes, prefixes: list[list[re.Pattern[str] | None]] | None, excludes: Excludes
    ) -> None:
        self._includes = includes
        self._prefixes = prefixes
        """Anchored includes, component by component, None for "**".  None instead of a list: an include fits anywhere."""
        self._excludes = excludes

    @classmethod
    def build(cls, include: Sequence[str] = (), iinclude: Sequence[str] = (), include_files: Sequence[str] = (),
              iinclude_files: Sequence[str] = (), exclude: Sequence[str] = (), iexclude: Sequence[str] = (),
              exclude_files: Sequence[str] = (), iexclude_files: Sequence[str] = ()) -> Selection:  # fmt: skip
        """The options as they came from the command line.  Raises UsageError."""
        exact = [(p, "--include") for p in include if p] + [
            q for f in include_files for q in read_patterns(f)
        ]
        folded = [(p, "--iinclude") for p in iinclude if p] + [
            q for f in iinclude_files for q in read_patterns(f)
        ]
        rules = [
            (parse_pattern(to_text(p.encode("utf-8", "surrogateescape")), origin), 0) for p, origin in exact
        ]
        rules += [(parse_pattern(to_text(p.encode("utf-8", "surrogateescape")), origin, fold=True), re.IGNORECASE)
                  for p, origin in folded]  # fmt: skip
        positive = [(rule, flag) for rule, flag in rules if not rule.negated]
        prefixes: list[list[re.Pattern[str] | None]] | None = None
        if all(rule.anchored for rule, _ in positive):
            prefixes = [
                [None if part is ANY else re.compile(part.regex, flag) for part in rule.components]
                for rule, flag in positive
            ]
        return cls(
            Excludes.build(exclude=[p for p, _ in exact], iexclude=[p for p, _ in folded]),
            prefixes,
            Excludes.build(exclude, iexclude, exclude_files, iexclude_files=iexclude_files),
        )

    def __bool__(self) -> bool:
        return bool(self._includes) or bool(self._excludes)

    def excluded(self, path: bytes, is_dir: bool) -> bool:
        """Left out, with all that is below; `path` is absolute."""
        return bool(self._excludes) and self._excludes.excluded(path, is_dir)

    def included(self, path: bytes, is_dir: bool) -> bool:
        """Asked for; whether it is excluded is another question."""
        return not self._includes or self._includes.excluded(path, is_dir)

    def may_hold(self, path: bytes) -> bool:
        """Whether anything below this directory can be asked for."""
        if self._prefixes is None:
            return True
        names = to_text(path).split("/")[1:]
        return any(_may_hold(prefix, names) for prefix in self._prefixes)


def _may_hold(prefix: list[re.Pattern[str] | None], names: list[str]) -> bool:
    for glob, name in zip(prefix, names, strict=False):
        if glob is None:
            return True
        if glob.fullmatch(name) is None:
            return False
    return True


EVERYTHING = Selection.build()
