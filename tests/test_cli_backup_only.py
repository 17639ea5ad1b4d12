"""The command line with a key that can only back up: `backup` works, everything else is one line and exit code 13."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from snapfs.cli.main import VERBS
from snapfs.repo.repository import Repository
from support.cli import CHEAP, PASSWORD, Cli

COMMANDS = {
    "snapshots": [], "ls": ["latest"], "find": ["x"], "diff": ["latest", "latest"], "mount": ["MOUNT"],
    "restore": ["latest", "-t", "back"], "dump": ["latest", "/"], "stats": [], "check": ["--read-data"],
    "tag": ["--add", "x", "latest"],
    "forget": ["--yes", "latest"], "undelete": ["latest"], "prune": ["--yes"],
    "parity": [], "parity on": [], "parity off": [],
    "repair index": [], "repair volumes": [], "repair snapshots": [],
    "key list": [], "key add": [], "key passwd": [], "key remove": ["00"], "key recovery": [], "key export": ["file"],
}  # fmt: skip
NO_KEY = {"init", "umount", "key import", "backup"}
"""What needs none, and what it is for."""


class Made(NamedTuple):
    cli: Cli
    monkeypatch: pytest.MonkeyPatch

    def machine(self, at_work: bool = True) -> None:
        self.monkeypatch.setenv("SNAPFS_PASSWORD", "machine" if at_work else os.fsdecode(PASSWORD))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Made:
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    (cli.source / "file").write_bytes(b"content")
    os.chmod(cli.source / "file", 0o4755)
    monkeypatch.setitem(Repository.add_backup_only_key.__kwdefaults__, "cost", CHEAP)
    monkeypatch.setenv("SNAPFS_NEW_PASSWORD", "machine")
    done = cli("key", "add", "--backup-only", "web1", "--label", "attic").ok()
    assert "for web1" in done.out
    return Made(cli, monkeypatch)


def test_it_backs_up_under_its_own_name(made: Made) -> None:
    cli = made.cli
    made.machine()
    cli("backup", "-n", str(cli.source)).ok()
    first = cli.snapshot()
    done = cli("backup", "--host", "other", str(cli.source))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "backs up the host 'web1' and no other" in done.err
    cli("backup", "--host", "web1", str(cli.source)).ok()
    done = cli("backup", "--parent", "latest", str(cli.source))
    assert (done.code, done.err.count("\n")) == (13, 1), done
    assert "nothing has changed" in cli("backup", "--skip-if-unchanged", str(cli.source)).ok().out
    made.machine(False)
    listed = cli("snapshots", "--json").ok().json
    assert [s["hostname"] for s in listed] == ["web1", "web1"]
    assert listed[0]["id"] == first
    keys = cli("key", "list", "--json").ok().json
    assert [(k["label"], k["backsUp"]) for k in keys if k["kind"] == "backup-only"] == [("attic", "web1")]
    assert "backup-only (web1)" in cli("key", "list").ok().out


@pytest.mark.parametrize("as_json", [False, True])
def test_everything_else_is_one_line(made: Made, as_json: bool) -> None:
    cli = made.cli
    made.machine()
    cli.snapshot()
    (cli.folder / "mnt").mkdir()
    before = sorted(path.name for path in cli.repo.rglob("*"))
    for command, args in COMMANDS.items():
        words = [*command.split(), *(["--json"] if as_json else []), *args]
        done = cli(*[str(cli.folder / "mnt") if word == "MOUNT" else word for word in words])
        assert (done.code, done.out) == (13, ""), (command, done)
        assert done.err.count("\n") == 1, (command, done)
        assert "can only back up" in done.err, (command, done)
    assert sorted(path.name for path in cli.repo.rglob("*")) == before
    assert {name.split()[0] for name in (*COMMANDS, *NO_KEY)} == set(VERBS), "every verb was tried"


def test_its_snapshots_are_not_trusted(made: Made) -> None:
    """Setuid bits and the like come back only if it is said that they may."""
    cli = made.cli
    made.machine()
    cli.snapshot()
    made.machine(False)
    done = cli("restore", "latest", "-t", "back").ok()
    assert "a machine that can only back up made this snapshot" in done.err
    back = cli.folder / "back" / str(cli.source / "file").lstrip("/")
    assert back.stat().st_mode & 0o7777 == 0o755
    cli("restore", "--trusted", "latest", "-t", "trusted").ok()
    assert (cli.folder / "trusted" / str(cli.source / "file").lstrip("/")).stat().st_mode & 0o7777 == 0o4755


def test_its_key_is_removed(made: Made) -> None:
    cli = made.cli
    made.machine()
    kept = cli.snapshot()
    made.machine(False)
    (name,) = (k["id"] for k in cli("key", "list", "--json").json if k["kind"] == "backup-only")
    exported = cli("key", "export", "slot.txt", name[:8]).ok()
    assert exported.code == 0
    assert "removed the backup-only key" in cli("key", "remove", name[:8]).ok().out
    made.machine()
    assert cli("backup", str(cli.source)).code == 12
    cli("key", "import", "slot.txt").ok()
    cli("backup", str(cli.source)).ok()  # it cannot know
    made.machine(False)
    done = cli("snapshots", "--json").ok()
    assert [s["id"] for s in done.json] == [kept]
    assert (
        "1 events that were sealed with a key that can only back up do not count (1: its key was removed before)"
        in done.err
    )
    cli("check").ok()


def test_a_host_has_to_be_named(made: Made) -> None:
    for host in ("", " "):
        done = made.cli("key", "add", "--backup-only", host)
        assert (done.code, done.err.count("\n")) == (1, 1), done
