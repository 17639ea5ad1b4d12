"""git's ignore rules, for a walk that goes down from the top and never enters a directory that is ignored.

Each directory may hold a .gitignore for itself and below.  The deepest file that has an opinion on an entry decides, in a
file the last line that fits.  Rules begin anew at a directory that holds .git, with .git/info/exclude below all of them;
.git itself and what is in it are never ignored, as in git.  The user's own core.excludesFile is left out on purpose: what is
kept must follow from the source alone.

The package pathspec is not used: it answers for files, and errs for directories ("*" with "!*/", and "foo/**", would drop
whole trees from a backup).  tests/test_repo_gitignore.py compares this module with `git check-ignore`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass

from snapfs.repo.backup.globs import ANY, BadGlob, Ranges, Rule, RuleList, component

GIT = b".git"
GITIGNORE = b".gitignore"
MAX_RULES = 4 << 20
"""A longer .gitignore, in bytes, is taken for absent."""

_STARS = re.compile(r"([^*?\[\\]*[^*?\[\\/])\*\*+((?:\\?/.*)?)", re.DOTALL)
"""Plain characters, not a slash the last of them, and two or more stars before a slash or the end."""

_CLASSES = {
    "alnum": ["az", "AZ", "09"],
    "alpha": ["az", "AZ"],
    "blank": ["  ", "\t\t"],
    "cntrl": ["\0\x1f", "\x7f\x7f"],
    "digit": ["09"],
    "graph": ["!~"],
    "lower": ["az"],
    "print": [" ~"],
    "punct": ["!/", ":@", "[`", "{~"],
    "space": ["  ", "\t\n", "\r\r"],
    "upper": ["AZ"],
    "xdigit": ["09", "af", "AF"],
}


def read_small(path: bytes, limit: int, dir_fd: int) -> bytes | None:
    """At most `limit` bytes of a regular file below `dir_fd`; None if it is anything else or cannot be read.  Follows no
    symlink anywhere in `path`, and never waits for a fifo."""
    *directories, name = path.split(b"/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as opened:
        try:
            for directory in directories:
                dir_fd = os.open(directory, flags | os.O_DIRECTORY, dir_fd=dir_fd)
                opened.callback(os.close, dir_fd)
            fd = os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=dir_fd)
            file = opened.enter_context(open(fd, "rb"))
            return file.read(limit) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        except OSError:
            return None


def parse(data: bytes) -> RuleList:
    """The rules of a .gitignore; lines that git does not understand are dropped, as git does."""
    rules = []
    # git compares bytes, so one character must be one byte
    for line in data.removeprefix(b"\xef\xbb\xbf").decode("latin-1").split("\n"):
        if line and not line.startswith("#"):
            rules += _parse_line(_without_trailing_spaces(line.removesuffix("\r")))
    return RuleList(rules)


def _without_trailing_spaces(line: str) -> str:
    stripped = line.rstrip(" ")
    backslashes = len(stripped) - len(stripped.rstrip("\\"))
    return stripped + " " if backslashes % 2 and stripped != line else stripped


def _parse_line(line: str) -> list[Rule]:
    pattern = line.removeprefix("!")
    directories_only = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    anchored = "/" in pattern
    patterns = _split_stars(pattern.removeprefix("/")) if anchored else [pattern]
    try:
        return [_rule(one, anchored, line.startswith("!"), directories_only) for one in patterns]
    except BadGlob:
        return []


def _rule(pattern: str, anchored: bool, negated: bool, directories_only: bool) -> Rule:
    # two or more stars and nothing else: any number of directories, but only where there are others beside them
    parts = [
        ANY if anchored and len(glob) > 1 and not glob.strip("*") else component(glob, _read_class)
        for glob in _components(pattern)
    ]
    if parts[-1] is ANY:  # "a/**" is what is below a, not a itself
        parts.append(component("*", _read_class))
    while parts[0] is ANY:  # "**/a" is "a" anywhere, which is cheaper to look up
        anchored = False
        del parts[0]
    return Rule(tuple(parts), anchored, negated, directories_only)


def _split_stars(pattern: str) -> list[str]:
    """Patterns that together fit what git has an anchored one fit.

    git compares the plain characters in front by themselves, and takes "**" right behind them for any number of directories,
    which it is nowhere else within a name: "/src**" is all that begins with src and all below, and in "/a**/b" the stars may
    stand for nothing."""
    match = _STARS.fullmatch(pattern)
    if match is None:
        return [pattern]
    plain, rest = match[1], match[2]
    if not rest:
        return [f"{plain}*", f"{plain}*/**"]
    return [*_split_stars(plain + rest.removeprefix("\\")[1:]), f"{plain}*/**{rest}"]


def _components(pattern: str) -> list[str]:
    """What stands between slashes: "\\/" is one, too, and one in brackets parts nothing.  Raises BadGlob."""
    parts = [""]
    at = 0
    while at < len(pattern):
        end = at + 1
        if pattern[at] == "[":
            end = _read_class(pattern, end)[2]
        elif pattern[at] == "\\":
            end += 1
        piece = pattern[at:end]
        if piece in ("/", "\\/"):
            parts.append("")
        else:
            parts[-1] += piece
        at = end
    return parts


def _read_class(glob: str, at: int) -> tuple[bool, Ranges, int]:
    """A class as git's wildmatch reads it: "!" or "^" negates, a "]" in first place is literal, [:name:] is known."""
    negated = glob[at : at + 1] in ("!", "^")
    at += negated
    ranges: Ranges = []
    previous = ""  # what a following "-" would begin at; nothing after a range or a named class
    begin = at
    while at == begin or glob[at : at + 1] != "]":
        char = glob[at : at + 1]
        if char == "-" and previous and glob[at + 1 : at + 2] not in ("", "]"):
            at += 1 + (glob[at + 1] == "\\")
            high = glob[at : at + 1]
            ranges.append((previous, high))
            char, previous = high, ""
        elif glob.startswith("[:", at) and (end := glob.find("]", at + 2)) > at + 2 and glob[end - 1] == ":":
            name = glob[at + 2 : end - 1]
            if name not in _CLASSES:
                raise BadGlob(f"no class [:{name}:]")
            ranges += [(pair[0], pair[1]) for pair in _CLASSES[name]]
            at, previous = end, ""
        else:
            at += char == "\\"
            char = previous = glob[at : at + 1]
            ranges.append((char, char))
        if not char:
            raise BadGlob("[ is not closed")
        at += 1
    return negated, ranges, at + 1


@dataclass(frozen=True, slots=True)
class GitRules:
    """What git's rules say in one directory."""

    levels: tuple[tuple[RuleList, str], ...] = ()
    """The rules in force, deepest first, each with the path from its own directory to this one ("" or "/a/b")."""
    inside_git: bool = False

    def excluded(self, name: bytes, is_dir: bool) -> bool:
        if not self.levels or name == GIT:
            return False
        text = name.decode("latin-1")
        for rules, above in self.levels:
            verdict = rules.verdict(rules.last(f"{above}/{text}", text, is_dir))
            if verdict is not None:
                return verdict
        return False

    def enter(self, dir_fd: int, name: bytes, names: Collection[bytes]) -> GitRules:
        """The rules in the subdirectory `name`, open as `dir_fd`, which holds `names`."""
        if self.inside_git or name == GIT:
            return INSIDE_GIT
        below = f"/{name.decode('latin-1')}"
        levels = [(rules, above + below) for rules, above in self.levels]
        if GIT in names:
            levels = [(_read(GIT + b"/info/exclude", dir_fd), "")]
        if GITIGNORE in names:
            levels.insert(0, (_read(GITIGNORE, dir_fd), ""))
        return GitRules(tuple((rules, above) for rules, above in levels if rules))


NO_GIT_RULES = GitRules()
INSIDE_GIT = GitRules(inside_git=True)


def above(path: bytes) -> GitRules:
    """The rules that come from above a source: those of the work tree that its parent directory is in, if it is in one.
    `path` is absolute."""
    *parents, _ = path.rstrip(b"/").split(b"/")
    tops = [b"/".join(parents[: n + 1]) or b"/" for n in range(len(parents))]
    roots = [n for n, top in enumerate(tops) if os.path.lexists(os.path.join(top, GIT))]
    if GIT in parents:
        return INSIDE_GIT
    rules = NO_GIT_RULES
    for top in tops[roots[-1] :] if roots else []:
        try:
            fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return NO_GIT_RULES
        try:
            # every name that matters is tried: listing directories that are not backed up could take long
            rules = rules.enter(fd, os.path.basename(top), [n for n in (GIT, GITIGNORE) if _present(n, fd)])
        finally:
            os.close(fd)
    return rules


def _present(name: bytes, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _read(name: bytes, dir_fd: int) -> RuleList:
    data = read_small(name, MAX_RULES + 1, dir_fd)
    return parse(data) if data is not None and len(data) <= MAX_RULES else RuleList([])
