"""`forget` by a policy, `undelete`, and what they print."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from snapfs.cli import forget as module
from snapfs.repo.events import Events
from snapfs.repo.query.freed import freed
from snapfs.repo.query.stats import Mode, stats
from snapfs.repo.repository import Repository
from support.cli import PASSWORD, Cli


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    return cli


def grow(cli: Cli, *times: str, **more: str) -> list[str]:
    """A snapshot at each of these times, every one with a new file of 100,000 bytes; returns their ids."""
    made = []
    for when in times:
        (cli.source / f"new {len(os.listdir(cli.source))}").write_bytes(os.urandom(100_000))
        made.append(cli.snapshot("--time", f"{when} 12:00:00", *[f"--{k}={v}" for k, v in more.items()]))
    return made


def listed(cli: Cli, *args: str) -> list[str]:
    return [found["id"] for found in cli("snapshots", "--json", *args).ok().json]


WEEK = [f"2026-03-0{day}" for day in range(1, 8)]


def test_a_dry_run_says_what_is_kept_and_why_and_what_goes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    made = grow(cli, *WEEK, host="a")
    done = cli("forget", "-n", "--keep-last", "1", "--keep-daily", "4").ok()
    lines = done.out.splitlines()
    assert lines[0] == f"snapshots of host a; paths {cli.source}"
    kept, removed = lines.index("keep 4 snapshots:"), lines.index("remove 3 snapshots:")
    assert [line.split()[0] for line in lines[kept + 3 : kept + 7]] == [m[:8] for m in made[3:]]
    assert "last snapshot; daily snapshot" in lines[kept + 6]
    assert [line.split()[0] for line in lines[removed + 3 : removed + 6]] == [m[:8] for m in made[:3]]
    assert "Frees" in lines[removed + 1]
    assert lines[-1].startswith("would forget 3 snapshots; about ")
    assert listed(cli) == made
    assert "Paths" not in cli("forget", "-n", "-c", "--keep-last", "1").ok().out
    monkeypatch.setenv("SNAPFS_FORGET__KEEP_DAILY", "2")
    monkeypatch.setenv("SNAPFS_FORGET__KEEP_WITHIN", "3d")
    assert "remove 4 snapshots:" in cli("forget", "-n").ok().out


def test_a_policy_forgets_and_undelete_brings_back(cli: Cli) -> None:
    made = grow(cli, *WEEK)
    before = cli("ls", made[0], "--json").ok().out
    done = cli("forget", "--keep-smart", "--keep-daily", "5", "--yes").ok()
    assert "nothing to remove" in done.out, "--keep-smart keeps seven days"
    assert "forgot 3 snapshots" in cli("forget", "--keep-daily", "4", "--yes").ok().out
    assert listed(cli) == made[3:]
    assert listed(cli, "--forgotten") == made[:3]
    assert cli("undelete", made[3]).err.strip().endswith("it is in the list")
    assert "all of 1 snapshot is there still" in cli("undelete", "-n", made[0]).ok().out
    assert listed(cli) == made[3:]
    assert "brought back 1 snapshot" in cli("undelete", made[0]).ok().out
    assert cli("ls", made[0], "--json").ok().out == before
    done = cli("undelete", "--json", "--path", str(cli.source)).ok()
    assert [s["id"] for s in done.lines[-1]["undeleted_snapshots"]] == made[1:3]
    assert listed(cli) == made
    assert listed(cli, "--forgotten") == []
    assert "no forgotten snapshots" in cli("undelete", "--path", str(cli.source)).ok().out


def test_json_is_restics(cli: Cli) -> None:
    made = grow(cli, "2026-01-01", "2026-02-01", "2026-02-02", tag="x")
    (group,) = cli("forget", "-n", "--json", "--keep-monthly", "2").ok().json
    assert set(group) == {"tags", "host", "paths", "keep", "remove", "reasons"}
    assert (group["tags"], group["paths"]) == ([], [str(cli.source)])
    assert [s["id"] for s in group["keep"]] == [made[2], made[0]], "the newest first"
    assert [s["id"] for s in group["remove"]] == [made[1]]
    assert group["remove"][0]["frees"] > 0
    assert [(r["snapshot"]["id"], r["matches"]) for r in group["reasons"]] == [
        (made[2], ["monthly snapshot"]), (made[0], ["monthly snapshot"]),
    ]  # fmt: skip
    (group,) = cli("forget", "--json", "--yes", "--keep-monthly", "2", "--group-by", "tags").ok().json
    assert (group["tags"], group["host"], "frees" in group["remove"][0]) == (["x"], "", False)
    assert listed(cli) == [made[0], made[2]]


def test_groups_and_filters(cli: Cli) -> None:
    a = grow(cli, "2026-01-01", "2026-01-02", host="a")
    b = grow(cli, "2026-01-03", "2026-01-04", host="b", tag="keep")
    cli("forget", "--host", "a", "--keep-last", "1", "--yes").ok()
    assert listed(cli) == [a[1], *b]
    refused = cli("forget", "--keep-tag", "keep", "--yes")
    assert refused.code == 1
    assert "every snapshot of host a" in refused.err
    assert listed(cli) == [a[1], *b], "and of the other group nothing was forgotten either"
    cli("forget", "--keep-tag", "keep", "--group-by", "", "--yes").ok()
    assert listed(cli) == b
    assert cli("forget", "--unsafe-allow-remove-all", "--yes").code == 1
    (group,) = cli("forget", "--unsafe-allow-remove-all", "--host", "b", "-n", "--json").ok().json
    assert ([s["id"] for s in group["remove"]], group["keep"]) == (b[::-1], [])
    cli("forget", "--unsafe-allow-remove-all", "--host", "b", "--yes").ok()
    assert listed(cli) == []
    assert "nothing to remove" in cli("forget", "--keep-last", "3", "--yes").ok().out


def test_a_script_does_not_take_most_days_away_unless_told(cli: Cli) -> None:
    made = grow(cli, *WEEK[:5])
    refused = cli("forget", "--keep-last", "2", "--yes")
    assert refused.code == 1
    assert "of the 5 days of which there are snapshots, only 2 would be left" in refused.err
    assert listed(cli) == made
    assert "--unsafe-allow-remove-most" in cli("forget", "-n", "--keep-last", "2").ok().out.splitlines()[-1]
    cli("forget", "--keep-last", "3", "--yes").ok()
    cli("forget", "--keep-last", "1", "--yes", "--unsafe-allow-remove-most").ok()
    assert listed(cli) == made[-1:]


def test_a_clock_that_is_ahead_does_not_let_durations_take_all(cli: Cli) -> None:
    """The newest snapshot says ten years later, and so does the clock: nothing can tell, but somebody should look."""
    made = grow(cli, *WEEK)
    made += grow(cli, "2026-11-01")
    refused = cli("forget", "--keep-within", "30d", "--yes")
    assert refused.code == 1
    assert "only 1 would be left" in refused.err
    assert listed(cli) == made


def test_it_asks_on_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    made = grow(cli, *WEEK[:3])
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Terminal("n\n"))
        refused = cli("forget", "--keep-last", "1")
    assert "only 1 would be left. Forget 2 of 3 snapshots? [y/N]" in refused.err
    assert refused.code == 1
    assert "Frees" in refused.out
    assert listed(cli) == made
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Terminal("y\n"))
        cli("forget", "--keep-last", "1").ok()
    assert listed(cli) == made[2:]
    grow(cli, "2026-05-01")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "this needs --yes" in cli("forget", "--keep-last", "1").err


def test_what_others_did_while_it_asked_counts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody forgets the one that was to be kept: then what was to go stays."""
    made = grow(cli, "2026-03-01", "2026-03-02")

    def confirm(question: str, yes: bool) -> None:
        assert cli.process("forget", "--yes", made[1]).returncode == 0

    monkeypatch.setattr(module, "_confirm", confirm)
    cli("forget", "--keep-last", "1", "--yes").ok()
    assert listed(cli) == made[:1]


def test_days_are_those_of_this_machine(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        cli.snapshot("--time", when)
        for when in ("2026-03-01 22:30:00", "2026-03-01 23:30:00", "2026-03-02 00:30:00")
    ]
    for zone, kept in (("UTC", made[1:]), ("XYZ-1", [made[0], made[2]]), ("XYZ-9", [made[2]])):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            (group,) = cli("forget", "-n", "--json", "--keep-daily", "unlimited").ok().json
        finally:
            monkeypatch.setenv("TZ", "UTC")
            time.tzset()
        # the oldest is kept too, where it is not the last of its day
        assert {s["id"] for s in group["keep"]} == {*kept, made[0]}


def test_another_client_s_forged_times_evict_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the password makes a snapshot at the end of each day, and says it is the one that has the real ones."""
    made = grow(cli, *WEEK, host="a")
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.folder / "elsewhere"))
    for path in cli.source.iterdir():
        path.unlink()
    (cli.source / "rubbish").write_text("x")
    forged = [cli.snapshot("--host", "a", "--time", f"{day} 23:00:00") for day in [*WEEK, *WEEK[:2]]]
    assert set(listed(cli)) > set(made)
    (group,) = cli("forget", "-n", "--json", "--keep-daily", "7").ok().json
    assert not set(made) & {s["id"] for s in group["keep"]}, "to the one who made them they are right"
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.folder / "home"))
    done = cli("forget", "-n", "--keep-daily", "7").ok()
    assert f"{forged[0][:8]} says 2026-03-01 23:00:00+00:00, but this machine first saw it at" in done.out
    cli("forget", "--keep-daily", "7", "--yes").ok()
    assert set(made) <= set(listed(cli))


def test_times_in_doubt_are_named(cli: Cli) -> None:
    made = grow(cli, "2026-03-01", "2099-01-01")
    done = cli("forget", "-n", "--keep-last", "1").ok()
    assert f"{made[1][:8]} says 2099-01-01 12:00:00+00:00, but that has not come yet" in done.out
    assert "last snapshot, not counting times in doubt" in done.out
    (group,) = cli("forget", "-n", "--keep-last", "1", "--json").ok().json
    assert [s.get("doubt") for s in group["keep"]] == ["future", None]


# ---- what would be freed -------------------------------------------------------------------------------------------------


def open_(cli: Cli) -> Repository:
    return Repository.open(str(cli.repo), PASSWORD)


def test_the_estimate_adds_up(cli: Cli) -> None:
    (cli.source / "shared").write_bytes(os.urandom(400_000))
    for n in range(300):
        (cli.source / f"small {n}").write_bytes(b"%d" % n * 30)
    grow(cli, *WEEK[:4])
    for n in range(0, 300, 2):  # half of the blobs of a frame are in the older ones only
        (cli.source / f"small {n}").unlink()
    grow(cli, WEEK[4])
    with open_(cli) as repository:
        everything = repository.snapshots()
        whole = stats(repository, everything, Mode.RAW_DATA).size
        assert abs(sum(freed(repository, [], everything)) - whole) <= len(everything)
        assert freed(repository, everything, everything) == [0] * 5
        each = [freed(repository, [s for s in everything if s is not one], [one])[0] for one in everything]
        # Every file of an older one is in the newer ones too; only the newest has one for itself.  What it has are pages of its
        # directory: one that changed, or all of them, as the key for cutting has it.
        assert all(size < 20_000 for size in each[:4])
        assert 100_000 < each[4] < 120_000
        newest = freed(repository, everything[:3], everything[:2:-1])
        assert 200_000 < newest[0] < 230_000, "what both have counts for the first"
        assert newest[1] < 20_000
        kept = stats(repository, everything[4:], Mode.RAW_DATA).size
        older = sum(freed(repository, everything[4:], everything[:4]))
        assert whole - kept < older < whole - kept + 30_000, "shares of frames that the newest needs as well"


def test_while_an_event_cannot_be_read_a_policy_chooses_nothing(cli: Cli) -> None:
    """A snapshot that was forgotten is shown again then, and would take the place of one that is to be kept."""
    made = grow(cli, *WEEK[:3])
    before = set(os.listdir(cli.repo / "events"))
    cli("forget", "--yes", made[2]).ok()
    (name,) = set(os.listdir(cli.repo / "events")) - before
    path = cli.repo / "events" / name
    good = path.read_bytes()
    path.write_bytes(good[:200] + bytes((good[200] ^ 1,)) + good[201:])
    for args in (["--keep-last", "2", "--yes"], ["--keep-last", "2", "--dry-run"]):
        done = cli("forget", *args)
        assert done.code == 1, done
        assert "nothing was chosen" in done.err.splitlines()[-1]
    path.write_bytes(good)
    assert listed(cli) == made[:2]
    cli("forget", "--yes", "--keep-last", "2").ok()
    assert listed(cli) == made[:2]


def test_damage_is_no_obstacle_to_forgetting(cli: Cli) -> None:
    made = grow(cli, *WEEK[:3])
    for volume in (cli.repo / "trees").rglob("*"):
        if volume.is_file():
            volume.unlink()
    cli("forget", "-n", "--keep-last", "2").ok()
    cli("forget", "--keep-last", "2", "--yes").ok()
    assert listed(cli) == made[1:]


# ---- undelete when something is gone -------------------------------------------------------------------------------------


def volumes(cli: Cli, part: str) -> set[Path]:
    return {path for path in (cli.repo / part).rglob("*") if path.is_file()}


def test_what_is_gone_is_named_and_nothing_changed(cli: Cli) -> None:
    first = grow(cli, "2026-03-01")[0]
    there = volumes(cli, "data")
    second = grow(cli, "2026-03-02")[0]
    cli("forget", "--yes", first, second).ok()
    (new,) = volumes(cli, "data") - there
    new.unlink()
    refused = cli("undelete", first, second)
    assert refused.code == 1
    assert refused.out.strip() == f"gone: {second[:8]}:{cli.source}/new 1 (content)"
    assert "nothing was brought back: 1 file of 2 snapshots cannot be read any more" in refused.err
    assert listed(cli) == []
    as_json = cli("undelete", "--json", second)
    assert as_json.lines[0]["message_type"] == "affected"
    cli("undelete", first).ok()
    assert listed(cli) == [first]


def test_what_goes_while_it_is_brought_back_is_noticed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a prune would that had looked before."""
    (only,) = grow(cli, "2026-03-01")
    cli("forget", "--yes", only).ok()
    publish = Events.undelete

    def slow(self: Events, ids: list[bytes]) -> None:
        publish(self, ids)
        for volume in volumes(cli, "data"):
            volume.unlink()

    monkeypatch.setattr(Events, "undelete", slow)
    assert cli("undelete", only).code == 1
    assert listed(cli) == []
    assert listed(cli, "--forgotten") == [only]


def test_forget_and_prune_in_one_go(cli: Cli) -> None:
    made = [cli.snapshot("--time", f"{day} 12:00:00")[:64] for day in WEEK[:1]]
    for day in WEEK[1:]:
        (cli.source / "other").write_bytes(os.urandom(3_000_000))
        made.append(cli.snapshot("--time", f"{day} 12:00:00"))
    volumes = len(list((cli.repo / "data").glob("??/*")))
    dry = cli("forget", "-n", "--keep-last", "1", "--prune", "--unsafe-allow-remove-most").ok()
    assert "would forget 6 snapshots" in dry.out
    assert len(list((cli.repo / "data").glob("??/*"))) == volumes
    done = cli("forget", "--keep-last", "1", "--prune", "--yes", "--unsafe-allow-remove-most").ok()
    assert "forgot 6 snapshots" in done.out
    assert "freed 1" in done.out, "about 15 MB"
    assert len(list((cli.repo / "data").glob("??/*"))) < volumes
    assert listed(cli) == made[6:]
    assert cli("check", "--read-data").ok()
    assert cli("undelete", made[3]).code == 1
