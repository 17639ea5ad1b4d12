"""`snapfs key recovery`, `export`, `import`, and what a key derivation may cost."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from snapfs.cli import recovery
from snapfs.repo.format import keyslot
from snapfs.repo.format.keyslot import Cost, parse_slot
from snapfs.repo.repository import Repository
from snapfs.repo.slots import KeySlots
from support.cli import CHEAP, PASSWORD, Cli, Done

_KEY = re.compile(r"(?:[0-9A-HJKMNP-TV-Z]{5}-){7}[0-9A-HJKMNP-TV-Z]{5}")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A repository with a file in its one snapshot."""
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    (cli.source / "file").write_bytes(b"content")
    cli.snapshot()
    return cli


def keys(cli: Cli) -> list[str]:
    return sorted(os.listdir(cli.repo / "keys"))


def test_a_recovery_key_opens_wherever_a_password_does(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = cli("key", "recovery").ok().out
    (key,) = _KEY.findall(sheet)
    (repository,) = {line.split()[1] for line in sheet.splitlines() if line.startswith("  repository")}
    assert len(repository) == 32
    assert str(cli.repo) in sheet
    assert max(map(len, sheet.splitlines())) <= max(80, len(str(cli.repo)) + 14)
    monkeypatch.setenv("SNAPFS_PASSWORD", key.lower().replace("-", "  "))
    listed = cli("key", "list", "--json").ok().json
    assert sorted((k["kind"], k["current"]) for k in listed) == [("password", False), ("recovery key", True)]
    assert any(re.match(r"\*\w{8} +recovery key", row) for row in cli("key", "list").ok().out.splitlines())
    monkeypatch.delenv("SNAPFS_PASSWORD")
    (cli.folder / "word").write_text(key.replace("-", "") + "\n")
    os.chmod(cli.folder / "word", 0o600)
    cli("-p", "word", "snapshots").ok()
    cli("--password-command", f"echo {key}", "restore", "latest", "-t", "back").ok()
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    done = cli("--password-command", f"echo {wrong}", "snapshots")
    assert (done.code, done.out) == (12, "")
    assert "mistake in group 8" in done.err
    assert key[-5:-1] not in done.err


def test_a_typed_recovery_key_may_be_wrong_twice(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    key = cli("key", "recovery", "-q").ok().out.strip()
    monkeypatch.delenv("SNAPFS_PASSWORD")
    typed = iter([key[1:].encode(), key.replace("-", "")[1:].encode(), key.lower().encode()])
    monkeypatch.setattr("snapfs.cli.passwords.ask", lambda question, instead="": next(typed))
    said = cli("snapshots").ok().err
    assert "mistake in group 1 (4 characters, not 5)" in said
    assert "39 characters, not 40: look at group" in said


def test_the_sheet_goes_into_a_new_file_of_mine(cli: Cli) -> None:
    done = cli("key", "recovery", "sheet.txt").ok()
    sheet = (cli.folder / "sheet.txt").read_text()
    (key,) = _KEY.findall(sheet)
    assert key not in done.out + done.err
    assert stat.S_IMODE(os.stat(cli.folder / "sheet.txt").st_mode) == 0o600
    before = keys(cli)
    again = cli("key", "recovery", "sheet.txt")
    assert (again.code, again.err) == (1, "snapfs: sheet.txt: exists already, and is not overwritten\n")
    assert (cli.folder / "sheet.txt").read_text() == sheet
    assert cli("key", "recovery", "no/such/folder").code == 1
    assert keys(cli) == before, "a key that nobody has seen opens nothing"
    said = cli("key", "recovery", "--json").ok()
    assert _KEY.fullmatch(said.json["recovery_key"])
    assert said.json["id"] in keys(cli)


def test_earlier_recovery_keys_are_named(cli: Cli) -> None:
    first = cli("key", "recovery", "--json").ok().json["id"]
    assert f"earlier recovery keys still open this repository: {first[:8]}" in cli("key", "recovery").ok().err
    done = cli("key", "remove", first).ok()
    assert done.out == f"removed the recovery key {first[:8]}\n"


@pytest.mark.parametrize("where", ["file", "standard output"])
def test_a_sheet_that_cannot_be_written_leaves_no_key(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = keys(cli)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.fsync
    if where == "file":
        monkeypatch.setattr(os, "fsync", lambda fd: full() if _is(fd, cli.folder / "sheet") else real(fd))
    else:
        monkeypatch.setattr(recovery, "out", full)
    done = cli("key", "recovery", *(["sheet"] if where == "file" else []))
    assert done.code == 1
    assert "No space left on device" in done.err
    assert not (cli.folder / "sheet").exists()
    assert keys(cli) == before


def _is(fd: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(fd), os.stat(path))


def test_the_recovery_key_is_not_changed_by_passwd(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_PASSWORD", cli("key", "recovery", "-q").ok().out.strip())
    monkeypatch.setenv("SNAPFS_NEW_PASSWORD", "new")
    before = keys(cli)
    done = cli("key", "passwd")
    assert done.code == 1
    assert "snapfs key add" in done.err
    assert keys(cli) == before


def test_init_says_that_there_are_recovery_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Cli(tmp_path, monkeypatch, capsys)("init").ok().out
    (line,) = [line for line in said.splitlines() if "key recovery" in line]
    assert line.endswith(f"snapfs -r {tmp_path / 'repo'} key recovery")


def test_export_and_import(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cli("key", "export", "mine.key").ok()
    (name,) = keys(cli)
    assert done.out.startswith(f"exported {name[:8]} to mine.key")
    assert stat.S_IMODE(os.stat(cli.folder / "mine.key").st_mode) == 0o600
    assert (cli.folder / "mine.key").read_text().isascii()
    assert cli("key", "export", "mine.key").code == 1
    printed = cli("key", "export", "-", name[:6]).ok().out
    assert (
        cli("key", "export", "-", "--json").ok().json["text"].splitlines()[-64:] == printed.splitlines()[-64:]
    )
    shutil.rmtree(cli.repo / "keys")
    lost = cli("snapshots")
    assert (lost.code, lost.err.count("\n")) == (20, 1)
    monkeypatch.delenv("SNAPFS_PASSWORD")  # it takes none
    assert cli("key", "import", "mine.key").ok().out.startswith(f"put the key slot {name[:8]} back")
    again = cli("key", "import", "mine.key", "--json").ok().json
    assert again == {"message_type": "key_imported", "id": name, "was_missing": False}
    os.unlink(cli.repo / "keys" / name)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    cli("key", "import", "-").ok()
    monkeypatch.setenv("SNAPFS_PASSWORD", "p\udcff ssword")
    cli("check", "--read-data").ok()


def test_what_cannot_be_imported(cli: Cli) -> None:
    cli("key", "export", "mine.key").ok()
    text = (cli.folder / "mine.key").read_text()
    (slot,) = (cli.repo / "keys").iterdir()
    for content, words in (
        (text.replace("\n  7  ", "\n  7  0", 1), "line 7 of the key slot"),
        ("", "does not begin with the line"),
        ("snapfs key slot 1\n" + "x" * 300_000, "too long"),
    ):
        (cli.folder / "bad.key").write_text(content)
        done = cli("key", "import", "bad.key")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert done.err.startswith("snapfs: bad.key: ")
        assert words in done.err
    assert "copy it into keys/" in cli("key", "import", slot).err
    assert cli("key", "import", "nowhere.key").err == "snapfs: nowhere.key: No such file or directory\n"
    (cli.folder / "other").mkdir()
    Repository.create(str(cli.folder / "other"), b"p\xff ssword", cost=CHEAP)
    done = cli("-r", "other", "key", "import", "mine.key")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "this key slot is of the repository" in done.err
    assert cli("-r", cli.source, "key", "import", "mine.key").code == 10


def test_what_a_derivation_costs_if_nobody_says_so() -> None:
    """In most tests it is next to nothing."""
    methods = [*vars(KeySlots).values(), Repository.create, Repository.add_backup_only_key]
    costs = [
        kw["cost"] for method in methods if (kw := getattr(method, "__kwdefaults__", None)) and "cost" in kw
    ]
    assert len(costs) == 5, "or this shows nothing"
    assert set(costs) == {(128 * 1024, 3, 4)}


def test_what_a_derivation_may_cost(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = keyslot.argon2id
    monkeypatch.setattr(keyslot, "argon2id", lambda password, salt, *cost: real(password, salt, *CHEAP))
    monkeypatch.setenv("SNAPFS_NEW_PASSWORD", "new")
    before = keys(cli)
    for args in (
        ["--kdf-memory", "63"],
        ["--kdf-memory", "65535k"],
        ["--kdf-memory", "2049"],
        ["--kdf-memory", "x"],
        ["--kdf-passes", "2"],
        ["--kdf-passes", "65"],
    ):
        for verb in ("add", "passwd"):
            done = cli("key", verb, *args)
            assert (done.code, done.err.count("\n")) == (1, 1), done
    assert keys(cli) == before
    name = cli("key", "add", "--kdf-memory", "64", "--kdf-passes", "4", "--json").ok().json["id"]
    assert parse_slot((cli.repo / "keys" / name).read_bytes(), "it")[1] == Cost(64 * 1024, 4, 4)
    changed = cli("key", "passwd", "--kdf-passes", "4", "--json").ok().json["id"]
    assert parse_slot((cli.repo / "keys" / changed).read_bytes(), "it")[1] == Cost(128 * 1024, 4, 4)
    monkeypatch.setenv("SNAPFS_PASSWORD", "new")
    cli("snapshots").ok()
    shutil.rmtree(cli.repo / "keys")  # the second reader would derive as they say


def test_new_keys_by_a_command_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cli.snapshot()
    cli("key", "export", "old.key").ok()
    (ended,) = json_lines(cli("key", "recovery", "--json").ok())
    (cli.folder / "colleague").write_text("friend\n")
    os.chmod(cli.folder / "colleague", 0o600)
    cli("key", "add", "--label", "friend", "--new-password-file", "colleague").ok()
    before = keys(cli)
    refused = cli("key", "rotate")
    assert (refused.code, keys(cli)) == (1, before)
    assert (
        refused.err.splitlines()[-1]
        == "snapfs: nothing was changed: without a terminal to ask on, this needs --yes"
    )
    wrong = cli("key", "rotate", "--yes", "--keep-password-file", "old.key")
    assert (wrong.code, keys(cli)) == (1, before), wrong
    (cli.folder / "nobody").write_text("nobody\n")
    os.chmod(cli.folder / "nobody", 0o600)
    wrong = cli("key", "rotate", "--yes", "--keep-password-file", "nobody")
    assert (wrong.code, keys(cli)) == (12, before), wrong
    done = cli("key", "rotate", "--yes", "--keep-password-file", "colleague", "--json").ok()
    assert (done.json["epoch"], done.json["ended"]) == (2, [ended["id"]])
    assert f"this ends: {ended['id'][:8]} (recovery key" in done.err
    assert "--change-password makes another" in done.err
    assert sorted(keys(cli)) == sorted([done.json["id"], *done.json["kept"]])
    assert [(k["label"], k["epoch"]) for k in cli("key", "list", "--json").ok().json if k["label"]] == [
        ("friend", 2)
    ]
    second = cli.snapshot()
    cli("-p", "colleague", "check").ok()
    # The old slot, put back: it reads what was, and writes nothing.
    new = {name: (cli.repo / "keys" / name).read_bytes() for name in keys(cli)}
    for name in new:
        os.unlink(cli.repo / "keys" / name)
    cli("key", "import", "old.key").ok()
    said = cli("snapshots", "--json").ok()
    assert second not in [s["id"] for s in said.json]
    assert first in [s["id"] for s in said.json]
    assert "the keys of this repository were changed on" in said.err
    for args in (["backup", "source"], ["forget", "--yes", first], ["tag", "--add", "t", first], ["prune", "--yes"],
                 ["key", "add", "--new-password-file", "nobody"], ["key", "rotate", "--yes"],
                 ["repair", "volumes"], ["repair", "snapshots"]):  # fmt: skip
        done = cli(*args)
        assert done.code == 26, (args, done)
        assert "use one that was made since" in done.err.splitlines()[-1], (args, done)
    for args in (
        ["check"],
        ["ls", "latest"],
        ["restore", "latest", "-t", "there"],
        ["stats"],
        ["key", "list"],
    ):
        cli(*args).ok()
    for name, data in new.items():
        (cli.repo / "keys" / name).write_bytes(data)
    assert any("password (old keys)" in row for row in cli("key", "list").ok().out.splitlines())
    done = cli("key", "rotate", "--yes", "--new-password-file", "nobody").ok()
    assert done.out.startswith("from now on everything is sealed with new keys")
    assert cli("snapshots").code == 12
    assert len(cli("-p", "nobody", "snapshots", "--json").ok().json) == 3
    cli("-p", "nobody", "prune", "--yes", "--rewrite-old-keys").ok()
    for path in [*cli.repo.glob("data/*/*"), *cli.repo.glob("trees/*/*")]:
        assert path.read_bytes()[20] == 3, "the epoch in its header"
    # To the old slot everything looks lost now, and is not.
    for name in keys(cli):
        os.unlink(cli.repo / "keys" / name)
    cli("key", "import", "old.key").ok()
    done = cli("check")
    assert (done.code, done.out.splitlines()[-1]) == (
        26,
        "What looks lost may have been sealed with newer keys meanwhile: check with a password that was made since.",
    )


def json_lines(done: Done) -> list[Any]:
    return done.lines


def test_no_new_keys_while_somebody_writes(cli: Cli) -> None:
    with (
        Repository.open(str(cli.repo), PASSWORD, state_dir=str(cli.folder / "s"), no_cache=True) as other,
        other.writing(),
    ):
        done = cli("key", "rotate", "--yes")
    assert done.code == 11
    assert f"process {os.getpid()}" in done.err
    cli("key", "rotate", "--yes", "--retry-lock", "1s").ok()


def test_passwords_to_be_kept_are_asked_one_by_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "colleague").write_text("friend\n")
    os.chmod(cli.folder / "colleague", 0o600)
    cli("key", "add", "--label", "friend", "--new-password-file", "colleague").ok()
    typed = iter([b"wrong", b"friend"])
    asked: list[str] = []
    monkeypatch.setattr(
        "snapfs.cli.passwords.ask", lambda question, instead="": asked.append(question) or next(typed)
    )
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    done = cli("key", "rotate", "--json").ok()
    assert (len(done.json["kept"]), done.json["ended"]) == (1, [])
    assert len(asked) == 2
    assert "friend" in asked[0]
    typed = iter([b""])
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert cli("key", "rotate").code == 1
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    typed = iter([b""])
    assert len(cli("key", "rotate", "--json").ok().json["ended"]) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
