"""Ignore rules against git itself: the walk must keep exactly what `git check-ignore` does not name."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.repo.backup.gitignore import MAX_RULES
from snapfs.repo.backup.patterns import DirectoryRules, Excludes

RULES = Excludes.build(git_ignore=True)
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def kept(top: Path) -> set[bytes]:
    """Paths below `top` that a walk keeps, `.git` aside."""
    found = set()

    def walk(path: bytes, parent: DirectoryRules | None) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            rules = RULES.directory(fd, path, [entry.name for entry in entries], parent)
        finally:
            os.close(fd)
        for entry in entries:
            is_dir = entry.is_dir(follow_symlinks=False)
            if entry.name != b".git" and not rules.excluded(entry.name, is_dir):
                found.add(os.path.relpath(entry.path, os.fsencode(top)))
                if is_dir:
                    walk(entry.path, rules)

    walk(os.fsencode(top), None)
    return found


def git_keeps(top: Path) -> set[bytes]:
    everything = {
        os.path.relpath(os.path.join(directory, name), os.fsencode(top))
        for directory, directories, files in os.walk(os.fsencode(top))
        for name in directories + files
    }
    everything = {path for path in everything if path.split(b"/")[0] != b".git"}
    answer = subprocess.run(
        ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "--stdin", "-z"],
        cwd=top, input=b"".join(path + b"\0" for path in sorted(everything)), capture_output=True, check=False,
    )  # fmt: skip
    assert answer.returncode in (0, 1), answer.stderr
    return everything - set(answer.stdout.split(b"\0"))


def plant(top: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)


@pytest.fixture(scope="module")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", top], check=True)
    return top / ".git"


TREE = dict.fromkeys(
    ["a", "b/a", "b/c/a", "b/c/d/x.o", "b/x.c", "foo/a/bar", "foo/bar", "x.o", " s ", "s", "#h", "!n", "caff\u00e0", "x1", "]",
     "-", "a\\", "new\n", "d/e/f.c", "d/e/f.o", "t\t"],
    b"",
)  # fmt: skip


@needs_git
@pytest.mark.parametrize(
    "lines",
    [
        b"*\n!*/\n!*.c\n", b"foo/**\n", b"foo/**/bar\n", b"**/c\n", b"**/c/\n", b"/a\n", b"a\n!/a\n", b"b/a\n", b"c/a\n", b"a/\n",
        b"b/*\n!b/c\n", b"b\n!b/a\n", b"*.o\r\n", b"\xef\xbb\xbfx.o\n", b"s \n", b"\\ s\\ \n", b" s\\  \n", b"\\#h\n", b"#h\n",
        b"\\!n\n", b"!n\n", b"caff\xc3\xa0\n", b"caff?\n", b"caff??\n", b"x[[:digit:]]\n", b"x[[:nope:]]\n", b"[]]\n", b"[]-]\n",
        b"[\\]]\n", b"[z-a]\n", b"[x-\\y]*\n", b"a\\\n", b"a\\\\\n", b"new*\n", b"new\n", b"[\n*.c", b"/\n", b"//a\n", b"a//\n",
        b"**\n!b\n!a\n", b"*/\n", b"/*/\n", b"/**/\n", b"***/a\n", b"b/***/a\n", b"t\t\n", b"t\n", b"[!a]\n", b"[^a]\n",
        b"x[:a]\n", b"x[[:digit:]\n", b"b\\/a\n", b"\\/a\n", b"**\\/c\n", b"[x/c]\n", b"b[/]a\n", b"b/[x/[^x]\n",
        b"b/[c/a\n", b"[!/]/a\n", b"*\n!/b**\n", b"/b**\n!/b**/a\n", b"/b**/c\n", b"*\n!/b**\\/c\n", b"a/b**\n", b"b**\n",
        b"/b**/**\n", b"/b**/**/c\n", b"*\n!/b***\n", b"*\n!/b**c\n", b"*\n!/b/**\n", b"/b**/\n", b"*\n!*/\n!/b**/\n",
    ],
)  # fmt: skip
def test_one_file(lines: bytes, empty_repository: Path, tmp_path: Path) -> None:
    plant(tmp_path, TREE)
    shutil.copytree(empty_repository, tmp_path / ".git")
    (tmp_path / ".gitignore").write_bytes(lines)
    assert kept(tmp_path) == git_keeps(tmp_path)


NAME = st.sampled_from(["a", "b", "ab", "a.c", "c"])
GLOB = st.one_of(
    NAME,
    st.sampled_from(
        ["*", "**", "a*", "*b", "?", "[ab]", "[!a]", "*.c", "\\a", "[b-c]", "a?*", "a**", "[a/b]"]
    ),
)
LINE = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "!"]), st.sampled_from(["", "", "/"]), st.lists(GLOB, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["", "", "/"]),
)  # fmt: skip
RULE_FILE = st.lists(LINE, max_size=5).map(lambda lines: "\n".join(lines).encode())


@needs_git
@settings(max_examples=60, deadline=None)
@given(
    paths=st.sets(st.lists(NAME, min_size=1, max_size=4).map("/".join), max_size=12),
    ignores=st.dictionaries(
        st.sampled_from([".gitignore", "a/.gitignore", "b/.gitignore", "a/b/.gitignore"]), RULE_FILE
    ),
    info=RULE_FILE,
)
def test_any_files(empty_repository: Path, paths: set[str], ignores: dict[str, bytes], info: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        shutil.copytree(empty_repository, top / ".git")
        plant(top, {path + "/file": b"" for path in paths} | ignores | {".git/info/exclude": info})
        assert kept(top) == git_keeps(top)


def test_outside_a_work_tree_and_in_nested_ones(tmp_path: Path) -> None:
    plant(tmp_path, {".gitignore": b"*.o\n", "a.o": b"", "sub/a.o": b"", "sub/a.c": b"", "tree/a.o": b"", "tree/b.o": b"",
                     "tree/.git/info/exclude": b"b.o\n"})  # fmt: skip
    assert kept(tmp_path) == {b".gitignore", b"sub", b"sub/a.c", b"tree", b"tree/a.o"}


def test_git_itself_is_never_ignored(tmp_path: Path) -> None:
    plant(tmp_path, {".git/HEAD": b"", ".git/logs/x": b"", ".gitignore": b"*\n"})
    fd = os.open(tmp_path, os.O_RDONLY)
    inner = os.open(tmp_path / ".git", os.O_RDONLY)
    try:
        top = os.fsencode(tmp_path)
        rules = RULES.directory(fd, top, [b".git", b".gitignore"], None)
        assert rules.excluded(b"other", False)
        assert not rules.excluded(b".git", True)
        inside = RULES.directory(inner, top + b"/.git", [b"HEAD", b"logs"], rules)
        assert not inside.excluded(b"HEAD", False)
        assert not RULES.directory(inner, top + b"/.git/logs", [b"x"], inside).excluded(b"x", False)
        assert not RULES.directory(inner, top + b"/.git/logs", [b"x"], None).excluded(b"x", False)
    finally:
        os.close(fd)
        os.close(inner)


def test_a_source_inside_a_work_tree_has_its_rules(tmp_path: Path) -> None:
    plant(tmp_path, {".git/info/exclude": b"*.log\n", ".gitignore": b"/sub/deep/*.o\n/a.o\n", "sub/.gitignore": b"!b.o\n",
                     "sub/deep/a.o": b"", "sub/deep/b.o": b"", "sub/deep/c.log": b"", "sub/deep/d": b""})  # fmt: skip
    assert kept(tmp_path / "sub" / "deep") == {b"b.o", b"d"}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    plant(tmp_path, {"real": b"*\n", "x": b""})
    (tmp_path / ".gitignore").symlink_to("real")
    assert b"x" in kept(tmp_path)
    (tmp_path / ".gitignore").unlink()
    os.mkfifo(tmp_path / ".gitignore")
    assert b"x" in kept(tmp_path)
    (tmp_path / ".gitignore").unlink()
    (tmp_path / ".gitignore").write_bytes(b"x\n" + b"#" * MAX_RULES)
    assert b"x" in kept(tmp_path)


def test_git_folder_behind_a_symlink_is_not_read(tmp_path: Path) -> None:
    plant(tmp_path, {"elsewhere/info/exclude": b"x\n", "top/x": b""})
    (tmp_path / "top" / ".git").symlink_to("../elsewhere")
    assert kept(tmp_path / "top") == {b"x"}
