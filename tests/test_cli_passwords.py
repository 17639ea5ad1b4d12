"""Where passwords come from, in which order, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs.cli import passwords
from snapfs.repo.errors import UsageError
from support.cli import PASSWORD, Cli


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(tmp_path, monkeypatch, capsys)
    monkeypatch.delenv("SNAPFS_PASSWORD")
    return cli


def given() -> bytes | None:
    return passwords.given("SNAPFS_")


def test_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given() is None
    monkeypatch.setenv("SNAPFS_PASSWORD", "a\udcff ")
    assert given() == b"a\xff "
    assert passwords.given("SNAPFS_NEW_") is None


def test_an_endless_file_is_no_password(cli: Cli) -> None:
    with pytest.raises(UsageError, match="too long"):
        passwords.given("SNAPFS_", file="/dev/zero")


def test_without_its_config_a_repository_opens_with_its_password(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.create()
    monkeypatch.setenv("SNAPFS_PASSWORD", os.fsdecode(PASSWORD))
    cli.snapshot()
    (cli.repo / "config").unlink()
    assert "going on with the copy" in cli("snapshots").ok().err
    monkeypatch.setenv("SNAPFS_PASSWORD", "another")
    assert cli("snapshots").code == 12


def test_files_lose_the_end_of_the_line_only(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cli.folder / "password"
    file.write_bytes(b" a\xff b \r\n")
    file.chmod(0o600)
    monkeypatch.setenv("SNAPFS_PASSWORD_FILE", str(file))
    assert given() == b" a\xff b "
    file.write_bytes(b"a\nb\n")
    with pytest.raises(UsageError, match="more than one line"):
        given()


def test_command_runs_without_a_shell(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_PASSWORD_COMMAND", "echo '$HOME; x'")
    assert given() == b"$HOME; x"
    for bad in ("false", "no-such-command-at-all", "'"):
        monkeypatch.setenv("SNAPFS_PASSWORD_COMMAND", bad)
        with pytest.raises(UsageError, match="password command"):
            given()


def test_descriptor(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret\n")
    os.close(writer)
    monkeypatch.setenv("SNAPFS_PASSWORD_FD", str(reader))
    assert given() == b"secret"
    for bad in ("x", "-1", str(reader)):
        monkeypatch.setenv("SNAPFS_PASSWORD_FD", bad)
        with pytest.raises(UsageError, match="descriptor"):
            given()


def test_two_words_contradict(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_PASSWORD", "a")
    monkeypatch.setenv("SNAPFS_PASSWORD_FILE", "b")
    with pytest.raises(UsageError, match="both set"):
        given()


def test_flags_win(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_PASSWORD", "environment")
    assert passwords.given("SNAPFS_", command="echo flag") == b"flag"
    assert passwords.given("SNAPFS_", empty=True) == b""


def test_empty_passwords_are_refused(cli: Cli) -> None:
    with pytest.raises(UsageError, match="--insecure-no-password"):
        passwords.given("SNAPFS_", command="echo")


def test_a_file_that_all_can_read_is_warned_of(cli: Cli) -> None:
    file = cli.folder / "password"
    file.write_text("secret")
    heard: list[str] = []
    file.chmod(0o600)
    assert passwords.given("SNAPFS_", str(file), notice=heard.append) == b"secret"
    assert not heard
    file.chmod(0o644)
    passwords.given("SNAPFS_", str(file), notice=heard.append)
    assert "chmod 600" in heard[0]


def test_no_terminal_to_ask_on(cli: Cli) -> None:
    done = cli.process("init", start_new_session=True, stdin=-3)
    assert done.returncode == 1
    assert done.stderr.startswith(b"snapfs: no password, and no terminal to ask for it")
    assert not cli.repo.exists()


def test_generated(cli: Cli) -> None:
    made = cli("init", "--generate-password").ok()
    password = made.out.splitlines()[0].removeprefix("password: ")
    assert len(password) >= 64
    assert len({passwords.generate() for _ in range(100)}) == 100
    assert password not in cli("--password-command", f"echo {password}", "snapshots").ok().out


def test_new_passwords_are_typed_twice(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter([b"one", b"other", b"same", b"same"])
    monkeypatch.setattr(passwords, "ask", lambda question, instead="": next(typed))
    assert passwords.ask_new("?", "--file") == b"same"


def test_a_typed_password_may_be_wrong_twice(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.create()
    from support.cli import PASSWORD

    typed = iter([b"one", b"other", PASSWORD])
    monkeypatch.setattr(passwords, "ask", lambda question, instead="": next(typed))
    cli("snapshots").ok()
    typed = iter([b"one", b"other", b"third", PASSWORD])
    done = cli("snapshots")
    assert done.code == 12


def test_keys(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_PASSWORD", "first")
    cli("init").ok()
    monkeypatch.setenv("SNAPFS_NEW_PASSWORD", "second")
    added = cli("key", "add", "--json", "--label", "two").ok().json["id"]
    assert [key["label"] for key in cli("key", "list", "--json").ok().json if key["id"] == added] == ["two"]
    cli("key", "passwd").ok()  # "first" becomes "second": now two slots open with it
    assert cli("key", "list").code == 12
    monkeypatch.setenv("SNAPFS_PASSWORD", "second")
    keys = cli("key", "list", "--json").ok().json
    assert len(keys) == 2
    (other,) = (key["id"] for key in keys if not key["current"])
    cli("key", "remove", other[:12]).ok()
    (last,) = cli("key", "list", "--json").ok().json
    assert cli("key", "remove", last["id"]).code == 1
    assert cli("key", "remove", "zz").code == 1
