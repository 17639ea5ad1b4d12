"""`snapfs prune` and what `stats` says of it: words, JSON, exit codes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from snapfs.repo.storage.locks import Lease, Locks
from support.cli import Cli
from support.trees import noise


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    made = Cli(tmp_path, monkeypatch, capsys)
    made.create()
    (made.source / "kept").write_bytes(noise(100_000, 1))
    (made.source / "gone").write_bytes(noise(900_000, 2))
    first = made.snapshot()
    (made.source / "gone").unlink()
    made.snapshot()
    made("forget", "--yes", first).ok()
    return made


def size(cli: Cli) -> int:
    return sum(path.stat().st_size for kind in ("data", "trees") for path in (cli.repo / kind).glob("??/*"))


def test_it_says_before_what_it_will_free_and_after_what_it_has_freed(cli: Cli) -> None:
    before = size(cli)
    raw = cli("stats", "--mode", "raw-data", "--json").ok().json
    assert raw["stored_size"] == before
    assert 800_000 < raw["unused_size"] < before
    assert "of which no snapshot needs" in cli("stats", "--mode", "raw-data").ok().out
    dry = cli("prune", "-n").ok().out
    assert "would remove" in dry
    assert size(cli) == before
    said = cli("prune", "--json", "-n").ok().lines[-1]
    assert said["dry_run"]
    assert said["unused_size"] == raw["unused_size"]
    assert said["bytes_freed"] == 0
    done = cli("prune", "--json", "--yes").ok().lines[-1]
    assert not done["dry_run"]
    assert done["bytes_to_free"] == said["bytes_to_free"]
    assert done["bytes_freed"] == before - size(cli) > 700_000
    assert abs(done["bytes_freed"] - raw["unused_size"]) < 0.1 * before
    assert "freed 0 B" in cli("prune", "--yes").ok().out
    cli("check", "--read-data").ok()


def test_without_a_terminal_it_wants_to_be_told(cli: Cli) -> None:
    before = size(cli)
    done = cli("prune")
    assert done.code == 1
    assert done.err == "snapfs: nothing was removed: without a terminal to ask on, this needs --yes\n"
    assert size(cli) == before
    cli("prune", "--yes").ok()
    cli("prune").ok()  # there is nothing to ask about


def test_what_a_backup_may_need_is_left_and_that_is_said(cli: Cli) -> None:
    lease = Lease(Locks(str(cli.repo)))
    done = cli("prune", "--yes")
    assert done.code == 11
    assert f"process {os.getpid()}" in done.err
    assert "--retry-lock" in done.err
    assert done.err.count("\n") == 1
    assert cli("prune", "--yes", "--json").lines[-1]["bytes_left"] > 0
    lease.release()
    cli("prune", "--yes").ok()


@pytest.mark.parametrize("given", ["110%", "x", "-5%", "5%%"])
def test_a_limit_that_is_none(cli: Cli, given: str) -> None:
    done = cli("prune", "-n", f"--max-unused={given}")
    assert done.code == 1
    assert "give a share" in done.err
    assert done.err.count("\n") == 1
    done = cli("prune", "-n", f"--max-scatter={given.replace('110', '-110')}")
    assert done.code == 1
    assert "give a share" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("given", ["5", "m", "x5m", "-1s", ""])
def test_a_time_that_is_none(cli: Cli, given: str) -> None:
    done = cli("prune", "-n", f"--retry-lock={given}")
    assert done.code == 1
    assert "30s, 5m or 2h" in done.err


def test_limits(cli: Cli) -> None:
    assert cli("prune", "-n", "--json", "--max-unused", "unlimited").ok().lines[-1]["volumes_to_rewrite"] == 0
    assert cli("prune", "-n", "--json", "--max-unused", "0").ok().lines[-1]["volumes_to_rewrite"] == 1
    assert (
        cli("prune", "-n", "--json", "--max-unused", "0", "--max-repack-size", "10k")
        .ok()
        .lines[-1]["volumes_to_rewrite"]
        == 0
    )
    assert cli("prune", "-n", "--json", "--max-unused", "2M").ok().lines[-1]["volumes_to_rewrite"] == 0


def test_it_says_what_is_scattered_and_puts_it_together(cli: Cli) -> None:
    for turn in range(5):
        for n in range(turn, 60, 9) if turn else range(60):
            (cli.source / f"text{n}").write_bytes(noise(4000, 100 * turn + n))
        cli.snapshot()
    cli("prune", "--yes").ok()
    assert cli("prune", "-n", "--json", "--max-scatter", "unlimited").ok().lines[-1]["volumes_scattered"] == 0
    said = cli("prune", "-n", "--max-scatter", "0%").ok().out
    found = re.search(
        r"because the newest snapshots lie scattered: .* opens ([0-9.]+) times .*, ([0-9.]+) then", said
    )
    assert found is not None, said
    assert float(found[1]) > 1.2 > 1.05 > float(found[2])
    done = cli("prune", "--yes", "--json", "--max-scatter", "0%").ok().lines[-1]
    assert done["volumes_scattered"] > 0
    assert (done["scatter"] > 1.2, done["scatter_after"] < 1.05) == (True, True)
    again = cli("prune", "-n", "--json", "--max-scatter", "0%").ok().lines[-1]
    assert again["volumes_to_rewrite"] == 0
    assert again["scatter"] < 1.05
    cli("check", "--read-data").ok()


def test_the_word_of_others(cli: Cli) -> None:
    assert "use `snapfs prune`" in cli("compact").err
