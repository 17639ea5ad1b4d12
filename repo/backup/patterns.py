"""Which entries of a source are left out: patterns, tag files, sizes and git's rules, put together for the walk.

The walk goes down from the top and does not enter what is left out, so a negated pattern cannot bring back what lies in an
excluded directory.  Patterns are restic's (a relative one fits any run of components, a match covers all that is below, the
last match decides); --exclude with --exclude-file is one list, --iexclude with --iexclude-file another, and either is enough.
Two differences from restic, because what is left out of a backup is missed late: an environment variable that is not set is an
error rather than nothing ("$DATA/*" would become "/*"), and of two tag files in a directory both are kept.

Not here: which file systems are entered (the walk knows devices), lists of what to back up (files_from.py).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from snapfs.repo.backup import gitignore
from snapfs.repo.backup.gitignore import NO_GIT_RULES, GitRules
from snapfs.repo.backup.globs import ANY, BadGlob, Component, Ranges, Rule, RuleList, component
from snapfs.repo.errors import UsageError

CACHE_TAG = (b"CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55")

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([*#$@!?0-9-])|([A-Za-z_][A-Za-z0-9_]*))")
_UNITS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def to_text(name: bytes) -> str:
    """What patterns are compared with: UTF-8, so that "?" is a character; bytes that are none stay one each."""
    return name.decode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def glob_component(glob: str) -> Component:
    """A glob for one name by the rules of Go's path.Match.  Raises BadGlob."""
    return component(glob, _read_class)


def _read_class(glob: str, at: int) -> tuple[bool, Ranges, int]:
    negated = glob.startswith("^", at)
    at += negated
    ranges: Ranges = []
    while not ranges or glob[at : at + 1] != "]":
        low, at = _class_char(glob, at)
        high = low
        if glob.startswith("-", at):
            high, at = _class_char(glob, at + 1)
        ranges.append((low, high))
    return negated, ranges, at + 1


def _class_char(glob: str, at: int) -> tuple[str, int]:
    char = glob[at : at + 1]
    if char in ("-", "]"):
        raise BadGlob(f'put a backslash before the "{char}" in [..]')
    if char == "\\":
        at += 1
        char = glob[at : at + 1]
    if not char:
        raise BadGlob('"[" has no "]" (a backslash before it makes it an ordinary character)')
    return char, at + 1


def parse_pattern(text: str, origin: str, fold: bool = False) -> Rule:
    """One pattern, "!" in front negates, `fold` makes it lower case.

    `origin` (an option, or file:line) goes into the UsageError of a bad one."""
    pattern = posixpath.normpath(text.removeprefix("!"))
    if fold:
        pattern = pattern.lower()
    anchored = pattern.startswith("/")
    globs = [glob for glob in pattern.split("/") if glob]
    if not anchored and all(glob == "**" for glob in globs):
        globs = ["*"]
    try:
        parts = [ANY if glob == "**" else glob_component(glob) for glob in globs]
    except BadGlob as error:
        raise UsageError(f"{printable(origin)}: bad pattern {printable(text)}: {error}") from None
    return Rule(tuple(parts), anchored, text.startswith("!"))


def decode_list(data: bytes) -> str:
    """A text file of patterns or paths: UTF-8 (or any bytes), or UTF-16 with a byte order mark."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return to_text(data.removeprefix(b"\xef\xbb\xbf"))


def read_patterns(path: str) -> list[tuple[str, str]]:
    """(pattern, "file:line") of a file of patterns: blank lines and # comments skipped, $VAR and ${VAR} replaced, $$ is $."""
    try:
        with open(path, "rb") as file:
            text = decode_list(file.read())
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot read patterns: {error.strerror}") from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            origin = f"{path}:{number}"
            found.append((_VARIABLE.sub(partial(_value, origin), line), origin))
    return found


def _value(origin: str, match: re.Match[str]) -> str:
    name = match[1] or match[2] or match[3] or ""
    if name == "$":
        return "$"
    value = os.environb.get(name.encode("utf-8", "surrogateescape"))
    if value is None:
        raise UsageError(
            f"{printable(origin)}: variable {printable(match[0])} is not set (write $$ for a dollar sign)"
        )
    return to_text(value)


def parse_tag(text: str) -> tuple[bytes, bytes]:
    """NAME[:HEADER] of --exclude-if-present."""
    name, _, header = text.partition(":")
    if not name or "/" in name or name in (".", ".."):
        raise UsageError(
            f"--exclude-if-present {printable(text)}: NAME[:HEADER] needs the plain name of a file"
        )
    return os.fsencode(name), os.fsencode(header)


def parse_size(text: str) -> int:
    """Bytes in "4096", "10k", "2G", "1t": units of 1024."""
    match = re.fullmatch(r"([0-9]+)([bkmgt]?)", text.strip().lower())
    if match is None:
        raise UsageError(f"{printable(text)} is not a size: give a number of bytes, or one with k, M, G or T")
    return int(match[1]) << 10 * _UNITS[match[2]]


class _Patterns:
    """One list of patterns, asked for whole paths."""

    def __init__(self, sources: Iterable[tuple[str, str]], fold: bool) -> None:
        self._fold = fold
        self._rules = RuleList([parse_pattern(text, origin, fold) for text, origin in sources])
        # What fits a directory covers all below it; asked once for each directory, as the walk comes by.
        self._covering = lru_cache(maxsize=64)(self._search)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excluded(self, text: str) -> bool:
        if self._fold:
            text = text.lower()
        directory, _, name = text.rpartition("/")
        last = self._rules.last(text, name, True)
        covering = self._covering(directory)
        return self._rules.verdict(last if last > covering else covering) is True

    def _search(self, directory: str) -> int:
        ends = [at for at, char in enumerate(directory) if char == "/"] + [len(directory)]
        starts = (directory[:end] for end in ends)
        return max(self._rules.last(path, path.rpartition("/")[2], True) for path in starts)


@dataclass(frozen=True, slots=True)
class DirectoryRules:
    """What holds in one directory beside the patterns."""

    keep_only: frozenset[bytes] | None = None
    """There is a tag file: only these names are kept.  None: all."""
    git: GitRules = NO_GIT_RULES

    def excluded(self, name: bytes, is_dir: bool) -> bool:
        if self.keep_only is not None:
            return name not in self.keep_only
        return self.git.excluded(name, is_dir)


NO_RULES = DirectoryRules()


class Excludes:
    """All exclude rules of one backup; immutable.  True in a condition if there are any."""

    def __init__(
        self,
        patterns: Sequence[_Patterns],
        tags: Sequence[tuple[bytes, bytes]],
        larger_than: int | None,
        git_ignore: bool,
        description: tuple[bytes, ...],
    ) -> None:
        self._patterns = [one for one in patterns if one]
        self._tags = tags
        self._larger_than = larger_than
        self._git_ignore = git_ignore
        self._description = description

    @classmethod
    def build(
        cls,
        exclude: Sequence[str] = (),
        iexclude: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        if_present: Sequence[str] = (),
        caches: bool = False,
        larger_than: int | None = None,
        git_ignore: bool = False,
        iexclude_files: Sequence[str] = (),
    ) -> Excludes:
        """The options as they came from the command line (`larger_than` in bytes).  Raises UsageError."""
        exact = _collect("--exclude", exclude, exclude_files)
        folded = _collect("--iexclude", iexclude, iexclude_files)
        tags = [parse_tag(text) for text in if_present]
        description = [f"--exclude={text}" for text, _ in exact] + [
            f"--iexclude={text}" for text, _ in folded
        ]
        description += [f"--exclude-if-present={text}" for text in if_present]
        if caches:
            tags.append(CACHE_TAG)
            description.append("--exclude-caches")
        if larger_than is not None:
            description.append(f"--exclude-larger-than={larger_than}")
        if git_ignore:
            description.append("--git-ignore")
        encoded = tuple(text.encode("utf-8", "surrogateescape") for text in description)
        return cls(
            [_Patterns(exact, fold=False), _Patterns(folded, fold=True)],
            tags,
            larger_than,
            git_ignore,
            encoded,
        )

    def __bool__(self) -> bool:
        return bool(self._description)

    def describe(self) -> tuple[bytes, ...]:
        """The rules as options; lines of pattern files stand as patterns, variables replaced."""
        return self._description

    def excluded(self, path: bytes, is_dir: bool) -> bool:
        """Do the patterns leave out this entry?  `path` is absolute; its ancestors count.

        Not to be asked for a source itself: what was named to be backed up is backed up (as in restic)."""
        if not self._patterns:
            return False
        text = path.decode("utf-8", "surrogateescape")
        if text.endswith("/"):
            text = text.rstrip("/")
        for patterns in self._patterns:  # noqa: SIM110 (asked for every entry, and any() costs twice as much)
            if patterns.excluded(text):
                return True
        return False

    def too_large(self, size: int) -> bool:
        """Is a regular file of that many bytes left out?"""
        return self._larger_than is not None and size > self._larger_than

    def directory(
        self, dir_fd: int, path: bytes, names: Collection[bytes], parent: DirectoryRules | None
    ) -> DirectoryRules:
        """The rules inside a directory that is being entered: absolute `path`, open as `dir_fd`, holding `names`.  `parent`
        is what this method gave for the directory above, None at the top of a source."""
        if not self._tags and not self._git_ignore:
            return NO_RULES
        kept = frozenset(
            tag for tag, header in self._tags if tag in names and _has_header(dir_fd, tag, header)
        )
        if not self._git_ignore:
            return DirectoryRules(kept) if kept else NO_RULES
        above = gitignore.above(path) if parent is None else parent.git
        return DirectoryRules(kept or None, above.enter(dir_fd, os.path.basename(path), names))


def _collect(option: str, patterns: Sequence[str], files: Sequence[str]) -> list[tuple[str, str]]:
    given = [(to_text(os.fsencode(text)), option) for text in patterns if text]
    return given + [pair for path in files for pair in read_patterns(path)]


def _has_header(dir_fd: int, tag: bytes, header: bytes) -> bool:
    """Without a header the name is enough, whatever it names, as in restic."""
    return not header or gitignore.read_small(tag, len(header), dir_fd) == header
