"""Lists of path patterns of which the last match decides: the part that restic's exclude rules and git's have in common.

A pattern is a row of components.  "**" stands for any number of components, every other one is a glob for exactly one
name.  A list is compiled once into two dictionaries (plain names, plain paths) and two regular expressions, so that asking
costs a few lookups however many patterns there are.  Paths are str here, so that "?" is one character of whatever the
caller decoded to; a path is "" (the top) or "/name/name".

What a line of text means is not known here: patterns.py reads restic's dialect, gitignore.py git's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

Ranges = list[tuple[str, str]]
ClassReader = Callable[[str, int], tuple[bool, Ranges, int]]
"""(glob, position after "[") -> negated?, the (first, last) characters of its ranges, position after "]"."""


class BadGlob(ValueError):
    """A pattern that can match nothing as it is written; the message says why."""


class Component(NamedTuple):
    """A glob for one name: its regular expression, and the name itself if only one fits."""

    regex: str
    literal: str | None


ANY = Component("**", None)
"""Any number of components, none included."""


class Rule(NamedTuple):
    components: tuple[Component, ...]
    anchored: bool
    """Begins at the top; otherwise anywhere."""
    negated: bool
    """A match takes back what earlier rules said."""
    directories_only: bool = False


def component(glob: str, read_class: ClassReader) -> Component:
    """`glob` (no "/" in it) with *, ?, [..] and backslash; what stands in brackets is the dialect's.  Raises BadGlob."""
    runs: list[list[str]] = [[]]  # what stands between stars; each item is the expression of one character
    at = 0
    while at < len(glob):
        char, at = glob[at], at + 1
        if char == "*":
            runs.append([])
        elif char == "?":
            runs[-1].append("[^/]")
        elif char == "[":
            negated, ranges, at = read_class(glob, at)
            runs[-1].append(_class_regex(negated, ranges))
        elif char == "\\":
            if at == len(glob):
                raise BadGlob("nothing follows the backslash")
            runs[-1].append(re.escape(glob[at]))
            at += 1
        else:
            runs[-1].append(re.escape(char))
    first, *others = ("".join(run) for run in runs)
    if not others:
        return Component(first, None if re.search(r"[\\\[?]", glob) else glob)
    # Atomic groups: the earliest place for a run is always good enough, and "*a*a*a*b" stays quick on any name.
    return Component(
        first + "".join(f"(?>[^/]*?{run})" for run in others[:-1] if run) + "[^/]*" + others[-1], None
    )


def _class_regex(negated: bool, ranges: Ranges) -> str:
    body = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges if low <= high)
    if negated:
        return f"[^/{body}]"
    return f"(?!/)[{body}]" if body else "(?!)"


def _path_regex(rule: Rule) -> str:
    runs: list[str] = [""] if rule.anchored else ["", ""]
    for part in rule.components:
        if part is ANY:
            runs.append("")
        else:
            runs[-1] += "/" + part.regex
    first, *others = runs
    if not others:
        return first
    skip = "(?:/[^/]++)*"
    return first + "".join(f"(?>{skip}?{run}(?=/|\\Z))" for run in others[:-1] if run) + skip + others[-1]


class _Alternatives:
    """Regular expressions, each with its rule's number; the highest number that fits, in one call."""

    __slots__ = ("_fullmatch", "_numbers")

    def __init__(self, found: Sequence[tuple[int, str]]) -> None:
        last_first = sorted(found, reverse=True)
        self._numbers = [-1, *(number for number, _ in last_first)]
        self._fullmatch = re.compile("|".join(f"({regex})" for _, regex in last_first)).fullmatch

    def last(self, text: str) -> int:
        match = self._fullmatch(text)
        return self._numbers[match.lastindex or 0] if match else -1


class _Matcher:
    __slots__ = ("_name_globs", "_names", "_path_globs", "_paths")

    def __init__(self, rules: Iterable[tuple[int, Rule]]) -> None:
        self._names: dict[str, int] = {}
        self._paths: dict[str, int] = {}
        name_globs: list[tuple[int, str]] = []
        path_globs: list[tuple[int, str]] = []
        for number, rule in rules:
            literals = [part.literal for part in rule.components if part.literal is not None]
            plain = len(literals) == len(rule.components)
            if not rule.anchored and len(rule.components) == 1 and ANY not in rule.components:
                if plain:
                    self._names[literals[0]] = number
                else:
                    name_globs.append((number, rule.components[0].regex))
            elif rule.anchored and plain:
                self._paths["".join("/" + literal for literal in literals)] = number
            else:
                path_globs.append((number, _path_regex(rule)))
        self._name_globs = _Alternatives(name_globs) if name_globs else None
        self._path_globs = _Alternatives(path_globs) if path_globs else None

    def last(self, path: str, name: str) -> int:
        number = self._names.get(name, -1)
        if self._paths:
            number = max(number, self._paths.get(path, -1))
        if self._name_globs is not None:
            found = self._name_globs.last(name)
            number = found if found > number else number
        if self._path_globs is not None:
            found = self._path_globs.last(path)
            number = found if found > number else number
        return number


class RuleList:
    """Rules in the order they were given; immutable."""

    __slots__ = ("_directories", "_files", "_negated")

    def __init__(self, rules: Sequence[Rule]) -> None:
        numbered = list(enumerate(rules))
        self._negated = [rule.negated for rule in rules]
        self._directories = self._files = _Matcher(numbered)
        if any(rule.directories_only for rule in rules):
            self._files = _Matcher(pair for pair in numbered if not pair[1].directories_only)

    def __bool__(self) -> bool:
        return bool(self._negated)

    def last(self, path: str, name: str, is_dir: bool) -> int:
        """Number of the last rule that fits exactly this path (not one above it), or -1; `name` is its last component."""
        return (self._directories if is_dir else self._files).last(path, name)

    def verdict(self, number: int) -> bool | None:
        """What the rule of that number says: True leave out, False keep, None (number -1) nothing."""
        return None if number < 0 else not self._negated[number]
