"""The command line for tests: in this process for most, as a process of its own where that is what is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from snapfs.cli.main import run
from snapfs.repo.creation import default_state_dir
from snapfs.repo.format.keyslot import Cost
from snapfs.repo.repository import Repository
from snapfs.repo.slots import KeySlots

PASSWORD = b"p\xff ssword"
CHEAP = Cost(64, 1, 1)


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def ok(self) -> Done:
        assert self.code == 0, self
        return self


class Cli:
    """A home of its own, a repository `repo` and a folder `source`, all below `folder`.  What is sealed with a password in this
    process is derived at once, unless the command says what it may cost."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.repo = folder / "repo"
        self.source = folder / "source"
        self._capsys = capsys
        for name in [name for name in os.environ if name.startswith("SNAPFS_")]:
            monkeypatch.delenv(name)
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(name, str(folder / "home"))
        monkeypatch.setenv("SNAPFS_REPOSITORY", str(self.repo))
        monkeypatch.setenv("SNAPFS_PASSWORD", os.fsdecode(PASSWORD))
        monkeypatch.setenv("TZ", "UTC")
        monkeypatch.chdir(folder)
        for method in (
            Repository.create,
            KeySlots.add,
            KeySlots.replace,
            KeySlots.add_recovery,
        ):
            monkeypatch.setitem(method.__kwdefaults__, "cost", CHEAP)  # type: ignore[arg-type]
        self.source.mkdir()

    def create(self) -> None:
        """A repository whose password is derived at once."""
        Repository.create(str(self.repo), PASSWORD, cost=CHEAP, remember_in=default_state_dir())

    def __call__(self, *args: str | bytes | Path) -> Done:
        self._capsys.readouterr()
        code = run([os.fsdecode(arg) for arg in args])
        out, err = self._capsys.readouterr()
        return Done(code, out, err)

    def process(self, *args: str | bytes | Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Through the real entry point."""
        return subprocess.run(command(args), capture_output=True, check=False, **more)

    def snapshot(self, *args: str) -> str:
        """A backup of `source`; returns the snapshot's id."""
        done = self("backup", "--json", str(self.source), *args)
        assert done.code in (0, 3), done
        identity: str = done.lines[-1]["snapshot_id"]
        return identity


def command(args: Sequence[str | bytes | Path]) -> list[str | bytes | Path]:
    return [sys.executable, "-m", "snapfs.cli", *args]
