"""`snapfs mount` and `umount` through the real entry point."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cli import Cli


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    (cli.source / "a").write_text("one")
    cli.snapshot()
    (tmp_path / "past").mkdir()
    yield cli
    if os.path.ismount(tmp_path / "past"):
        cli.process("umount", tmp_path / "past")


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("options", [(), ("--no-cache",)])
def test_a_background_mount_closes_its_index(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    temporary = cli.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    past = cli.folder / "past"
    done = cli.process(*options, "mount", past)
    assert done.returncode == 0, done
    assert Path(f"{past}/snapshots/latest{cli.source}/a").read_text() == "one"

    def left() -> list[Path]:
        return [*temporary.iterdir(), *(cli.folder / "home").glob("snapfs/*/index/open/*")]

    assert left()
    assert cli.process("umount", past).returncode == 0
    until(lambda: not left())


def test_a_mount_hides_nothing_that_is_backed_up(cli: Cli) -> None:
    full, empty = cli.source / "full", cli.source / "empty"
    for folder in (full, empty):
        folder.mkdir()
    (full / "file").touch()
    for folder in (full, cli.source, cli.source.parent):
        done = cli("mount", folder)
        assert (done.code, "would hide" in done.err or "lie in one another" in done.err) == (24, True), done
    assert cli.process("mount", empty).returncode == 0
    cli("umount", empty).ok()


def test_umount_without_its_program(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    past = cli.folder / "past"
    assert cli.process("mount", past).returncode == 0
    with monkeypatch.context() as without:
        without.setenv("PATH", "")
        done = cli("umount", past)
    assert (done.code, done.err.count("\n")) == (24, 1), done
    cli("umount", past).ok()
