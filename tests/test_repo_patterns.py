"""What is left out of a backup: restic's pattern language, tag files, sizes, lists of paths."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from snapfs.repo.backup.files_from import files_from
from snapfs.repo.backup.patterns import CACHE_TAG, NO_RULES, DirectoryRules, Excludes, parse_size
from snapfs.repo.errors import UsageError


def excluded(path: str | bytes, *patterns: str, fold: bool = False) -> bool:
    rules = Excludes.build(iexclude=patterns) if fold else Excludes.build(exclude=patterns)
    return rules.excluded(os.fsencode(path), is_dir=False)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.go", "/a/b/test.go", True),
        ("*.c", "/a/b/test.go", False),
        ("*", "/a", True),
        ("**", "/a/b", True),
        ("b", "/a/b/c", True),
        ("b", "/a/bb", False),
        ("b", "/a/B", False),
        ("b/", "/a/b", True),
        ("b/c", "/a/b/c/d", True),
        ("b/d", "/a/b/c/d", False),
        ("/a", "/a/b", True),
        ("/b", "/a/b", False),
        ("/a/*", "/a", False),
        ("/a/*", "/a/b/c", True),
        ("//a///b/", "/a/b", True),
        ("/x/../a", "/a", True),
        ("./a", "/b/a", True),
        ("../a", "/b/a", False),
        ("/", "/a", True),
        ("/**", "/a", True),
        ("/a/**", "/a", True),
        ("/a/**", "/b", False),
        ("a/**/d", "/x/a/b/c/d/e", True),
        ("a/**/d", "/a/d", True),
        ("a/**/d", "/d/a", False),
        ("a/**/c/**/e", "/z/a/c/d/c/e", True),
        ("a/**/c*/**/e", "/a/b/x/e", False),
        ("**/a/b", "/a/b", True),
        ("a**c", "/abbc", True),
        ("a**c", "/a/c", False),
        ("a?c", "/aéc", True),
        ("a[é-ü]c", "/aöc", True),
        ("a[^b]c", "/abc", False),
        ("a[^b]c", "/axc", True),
        ("a[^b]c", "/a/c", False),
        ("a[!b]c", "/a!c", True),
        ("[a-cx-z]", "/y", True),
        ("[z-a]", "/z", False),
        (r"[\]\-]", "/-", True),
        (r"\*", "/*", True),
        (r"\*", "/a", False),
        ("a]", "/a]", True),
        ("*", "/new\nline", True),
        ("a", "/a\n", False),
        ("", "/a", False),
    ],
)
def test_one_pattern(pattern: str, path: str, expected: bool) -> None:
    assert excluded(path, pattern) is expected


def test_the_last_match_decides_and_a_match_covers_what_is_below() -> None:
    home = ["/home/bob/*", "!/home/bob/Documents", "*.o"]
    assert excluded("/home/bob/Music", *home)
    assert not excluded("/home/bob", *home)
    assert not excluded("/home/bob/Documents", *home)
    assert not excluded("/home/bob/Documents/a/b", *home)
    assert excluded("/home/bob/Documents/a/b.o", *home)
    assert not excluded("/home/bob/a.o", "*.o", "!a.o")
    assert excluded("/home/bob/a.o", "!a.o", "*.o")


def test_names_of_any_encoding() -> None:
    assert excluded(b"/a/caf\xe9", os.fsdecode(b"caf\xe9"))
    assert excluded(b"/a/caf\xe9", "caf?")
    assert not excluded(b"/a/caf\xe9", "café")
    assert excluded(b"/a/\xff\xfe", "*")


def test_iexclude_ignores_case_and_is_a_list_of_its_own() -> None:
    assert excluded("/a/ÉCOLE.JPG", "École.*", fold=True)
    assert not excluded("/a/ecole.jpg", "École.*", fold=True)
    rules = Excludes.build(exclude=["keep*"], iexclude=["!KEEP.me", "*.TMP"])
    assert rules.excluded(b"/keep.me", False)
    assert rules.excluded(b"/x.Tmp", False)


@pytest.mark.parametrize("pattern", ["[", "a/[b", "[]", "[]a]", "[a-]", "[-a]", "x\\", "!["])
def test_a_bad_pattern_is_named_with_its_origin(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        Excludes.build(exclude=[pattern])
    assert "--exclude:" in str(error.value)
    assert pattern in str(error.value)
    (tmp_path / "rules").write_text(f"# first\n{pattern}\n")
    with pytest.raises(UsageError, match="rules:2: bad pattern"):
        Excludes.build(exclude_files=[str(tmp_path / "rules")])


def test_exclude_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/srv/data")
    file = tmp_path / "rules"
    file.write_bytes(b"\xef\xbb\xbf# comment\r\n\n  $DATA/*  \r\n!${DATA}/keep\n$$x\n")
    rules = Excludes.build(exclude_files=[str(file)])
    assert rules.describe() == (b"--exclude=/srv/data/*", b"--exclude=!/srv/data/keep", b"--exclude=$x")
    assert rules.excluded(b"/srv/data/a", False)
    assert not rules.excluded(b"/srv/data/keep/b", False)
    file.write_bytes("größe\n".encode("utf-16"))
    assert Excludes.build(iexclude_files=[str(file)]).excluded("/GRÖSSE/größe".encode(), False)


def test_a_variable_that_is_not_set_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "rules").write_text("$NOWHERE/*\n")
    with pytest.raises(UsageError, match=r"rules:1: variable \$NOWHERE is not set"):
        Excludes.build(exclude_files=[str(tmp_path / "rules")])
    with pytest.raises(UsageError, match="cannot read patterns"):
        Excludes.build(exclude_files=[str(tmp_path / "missing")])


def test_a_hostile_pattern_does_not_hang() -> None:
    rules = Excludes.build(exclude=["*a" * 30 + "b", "/" + "**/a/" * 12 + "b"])
    begin = time.monotonic()
    assert not rules.excluded(b"/" + b"a" * 250, False)
    assert not rules.excluded(b"/a" * 500, False)
    assert time.monotonic() - begin < 2


def test_many_patterns_keep_their_order() -> None:
    many = (
        [f"/dir/{n}" for n in range(300)] + [f"n{n}*" for n in range(300)] + [f"x/**/{n}" for n in range(300)]
    )
    rules = Excludes.build(exclude=[*many, "!n17*"])
    assert rules.excluded(b"/dir/299/a", False)
    assert rules.excluded(b"/n16b", False)
    assert rules.excluded(b"/x/y/7", False)
    assert not rules.excluded(b"/n17b", False)
    assert not rules.excluded(b"/dir/300", False)


def directory(rules: Excludes, path: Path, parent: DirectoryRules | None = None) -> DirectoryRules:
    fd = os.open(path, os.O_RDONLY)
    try:
        return rules.directory(
            fd, os.fsencode(path), [os.fsencode(name) for name in os.listdir(path)], parent
        )
    finally:
        os.close(fd)


def test_tag_files(tmp_path: Path) -> None:
    rules = Excludes.build(if_present=[".nobackup", "tag:MAGIC"], caches=True)
    assert directory(rules, tmp_path) is NO_RULES
    (tmp_path / "tag").write_bytes(b"MAGI")
    (tmp_path / "CACHEDIR.TAG").write_bytes(b"Signature: none")
    assert directory(rules, tmp_path).keep_only is None
    (tmp_path / "tag").write_bytes(b"MAGIC and more")
    assert directory(rules, tmp_path).keep_only == frozenset({b"tag"})
    (tmp_path / "CACHEDIR.TAG").write_bytes(CACHE_TAG[1] + b"\n")
    (tmp_path / ".nobackup").symlink_to("nowhere")
    found = directory(rules, tmp_path)
    assert found.keep_only == frozenset({b"tag", b"CACHEDIR.TAG", b".nobackup"})
    assert found.excluded(b"other", False)
    assert not found.excluded(b"tag", False)


def test_a_header_is_read_from_regular_files_only(tmp_path: Path) -> None:
    rules = Excludes.build(if_present=["tag:MAGIC"])
    tag, real = tmp_path / "tag", tmp_path / "real"
    real.write_bytes(b"MAGIC")
    tag.symlink_to(real)
    assert directory(rules, tmp_path).keep_only is None
    tag.unlink()
    os.mkfifo(tag)
    assert directory(rules, tmp_path).keep_only is None
    tag.unlink()
    tag.mkdir()
    assert directory(rules, tmp_path).keep_only is None


@pytest.mark.parametrize("text", ["", ":x", "a/b", ".."])
def test_a_bad_tag(text: str) -> None:
    with pytest.raises(UsageError, match="--exclude-if-present"):
        Excludes.build(if_present=[text])


def test_sizes() -> None:
    assert [parse_size(text) for text in ("2048", "1k", "10K", "3m", "2G", "1t", "7b")] == [
        2048, 1024, 10240, 3 << 20, 2 << 30, 1 << 40, 7,
    ]  # fmt: skip
    for bad in ("", "k", "1x", "-1", "1 k", "1.5M", "٣"):
        with pytest.raises(UsageError, match="not a size"):
            parse_size(bad)
    rules = Excludes.build(larger_than=1024)
    assert not rules.too_large(1024)
    assert rules.too_large(1025)
    assert not Excludes.build().too_large(1 << 60)


def test_describe_and_truth() -> None:
    assert not Excludes.build()
    assert Excludes.build().describe() == ()
    rules = Excludes.build(["a"], ["B"], (), ["t:h"], True, 5, True)
    assert rules
    assert rules.describe() == (
        b"--exclude=a",
        b"--iexclude=B",
        b"--exclude-if-present=t:h",
        b"--exclude-caches",
        b"--exclude-larger-than=5",
        b"--git-ignore",
    )


def test_files_from_expands_globs(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".c.txt", "sub/d.txt", "[x]"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list").write_text(
        f"# all\n\n  {tmp_path}/*.txt \n{tmp_path}/s?b/*\n{tmp_path}/\\[x]\n{tmp_path}/no*\n"
    )
    missing: list[bytes] = []
    found = files_from(patterns=[str(tmp_path / "list")], unmatched=missing.append)
    top = os.fsencode(tmp_path)
    assert found == [top + end for end in (b"/.c.txt", b"/a.txt", b"/b.txt", b"/sub/d.txt", b"/[x]")]
    assert missing == [top + b"/no*"]


def test_files_from_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").touch()
    assert files_from(patterns=["-"], stdin=io.BytesIO(b"o*\n./one\n")) == [b"one", b"./one"]


def test_files_from_verbatim_and_raw(tmp_path: Path) -> None:
    assert files_from(verbatim=["-"], stdin=io.BytesIO(b" #a*\n\n\xff\n")) == [b" #a*", b"\xff"]
    assert files_from(verbatim=["-"], stdin=io.BytesIO(b"a\r\nb\r\n\r\n")) == [b"a", b"b"]
    assert files_from(raw=["-"], stdin=io.BytesIO(b"a\nb\0\xff\0")) == [b"a\nb", b"\xff"]


@pytest.mark.parametrize(
    ("option", "data", "message"),
    [
        ("raw", b"a\0b", "does not end with NUL"),
        ("raw", b"a\0\0", "number 2 is empty"),
        ("verbatim", b"a\0b\n", "NUL"),
        ("patterns", b"ok\na[\n", "-:2: bad pattern"),
    ],
)
def test_bad_lists(option: str, data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        files_from(**{option: ["-"]}, stdin=io.BytesIO(data))  # type: ignore[arg-type]


def test_list_files_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match="--files-from-raw /nowhere: No such file"):
        files_from(raw=["/nowhere"])
    with pytest.raises(UsageError, match="one --files-from option only"):
        files_from(raw=["-"], verbatim=["-"], stdin=io.BytesIO())
