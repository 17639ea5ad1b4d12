"""The verbs, their exit codes and their JSON."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from snapfs.cli import main
from snapfs.cli.main import ELSEWHERE, VERBS, group, unknown_verb
from snapfs.repo.index_environment import Environment, IndexBroken
from snapfs.repo.index_rows import Rows
from snapfs.repo.repository import Repository
from snapfs.repo.system import System
from support.cli import CHEAP, PASSWORD, Cli, command


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    (cli.source / "a").write_text("one")
    (cli.source / "sub").mkdir()
    (cli.source / "sub" / "b").write_text("two")
    return cli


# ---- help and mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(cli: Cli, verb: str) -> None:
    done = cli(verb, "--help").ok()
    assert "Example" in done.out
    assert f"snapfs {verb}" in done.out


def test_every_subcommand_explains_itself(cli: Cli) -> None:
    for verb in ("key", "repair"):
        commands = group.get_command(None, verb).commands  # type: ignore[arg-type,union-attr]
        for name in commands:
            assert "Example" in cli(verb, name, "--help").ok().out


def test_words_of_other_tools() -> None:
    assert unknown_verb("create") == '"create" is borg\'s word: use `snapfs backup`'
    assert "snapshots" in unknown_verb("snapshoot")
    assert "nothing to unlock" in unknown_verb("unlock")
    assert not set(ELSEWHERE) & set(VERBS)
    for word in [*ELSEWHERE, "zzz", "-"]:
        assert unknown_verb(word).isprintable()


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["backup", "--keep-last", "3"],
        ["backup"],
        ["backup", ""],
        ["backup", "--stdin", "x"],
        ["backup", "--stdin-filename", "x", "y"],
        ["backup", "-f", "--parent", "latest", "x"],
        ["backup", "--time", "yesterday", "x"],
        ["backup", "--time", "9999-12-31 23:59:59", "source"],
        ["backup", "--time", "1600-01-01", "source"],
        ["backup", "--volume-size", "big", "x"],
        ["backup", "--compression", "lots", "x"],
        ["backup", "--exclude-larger-than", "-1", "x"],
        ["backup", "no-such-path"],
        ["-q", "-v", "snapshots"],
        ["-r", "", "snapshots"],
        ["-r", "x", "--repository-file", "y", "snapshots"],
        ["-p", "x", "--password-command", "y", "snapshots"],
        ["ls"],
        ["ls", "last"],
        ["ls", "latest"],
        ["ls", "-0", "-l", "latest"],
        ["restore", "latest"],
        ["tag", "latest"],
        ["tag", "--set", "a", "--add", "b", "latest"],
        ["tag", "--add", "b"],
        ["tag", "--add", "b", ""],
        ["tag", "--set", "", "--host", "x", ""],
        ["forget", "--yes", ""],
        ["forget"],
        ["forget", "latest:/x"],
        ["forget", "--keep-last", "0", "--yes"],
        ["forget", "--keep-daily", "many", "--yes"],
        ["forget", "--keep-within", "1w", "--yes"],
        ["forget", "--keep-last", "1", "latest"],
        ["forget", "--unsafe-allow-remove-all", "--yes"],
        ["forget", "--group-by", "colour", "--keep-last", "1"],
        ["undelete"],
        ["undelete", ""],
        ["undelete", "nonsense"],
        ["undelete", "latest"],
        ["undelete", "3f2a"],
        ["snapshots", "--group-by", "colour"],
        ["snapshots", "--latest", "0"],
        ["init", "--generate-password"],
        ["mount", "--no-default-permissions", "x"],
    ],
)
def test_mistakes_are_one_line_and_exit_1(cli: Cli, args: list[str]) -> None:
    done = cli(*args)
    assert done.code == 1, done
    assert done.err.startswith(("snapfs: ", "error: "))
    assert "internal error" not in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2


def test_everything_on_stderr_is_json(cli: Cli) -> None:
    import json

    (cli.source / "large").write_bytes(os.urandom(100_000))
    cli.snapshot()
    (cli.folder / "word").write_bytes(PASSWORD)
    (cli.folder / "word").chmod(0o644)
    for args in (["snapshots"], ["backup", "source"], ["key", "add", "--new-password-file", "word"]):
        done = cli("--json", "-p", "word", *args).ok()
        kinds = {json.loads(line)["message_type"] for line in done.err.splitlines()}
        assert kinds == {"notice"}, done
    for volume in (cli.repo / "data").rglob("*"):
        if volume.is_file():
            volume.unlink()
    done = cli("check", "--json")
    assert done.code == 20
    assert {json.loads(line)["message_type"] for line in done.err.splitlines()} == {"error"}
    assert [line["message_type"] for line in done.lines][-2:] == ["affected", "summary"]
    for index in (cli.folder / "home").rglob("data.mdb"):
        index.write_bytes(b"no index")
    done = cli.process("find", "--json", "a")
    assert {json.loads(line)["message_type"] for line in done.stderr.splitlines()} <= {"notice"}, done


def test_what_another_run_wrote_is_no_reason_to_warn(cli: Cli) -> None:
    cli.snapshot()
    (cli.source / "c").write_text("three")
    assert cli.process("--cache-dir", cli.folder / "another", "backup", "source").returncode == 0
    assert cli.process("ls", "latest").stderr == b""


def test_damage_comes_with_advice(cli: Cli) -> None:
    cli.snapshot()
    for volume in (cli.repo / "trees").rglob("*"):
        if volume.is_file():
            volume.unlink()
    done = cli.process("ls", "latest")
    assert done.returncode == 20
    assert done.stderr.count(b"\n") == 1
    assert b"`snapfs check`" in done.stderr


def test_errors_as_json(cli: Cli) -> None:
    import json

    done = cli("ls", "--json", "latest")
    assert json.loads(done.err)["message_type"] == "exit_error"
    assert json.loads(done.err)["code"] == 1


def test_exit_codes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("-r", "nowhere", "snapshots").code == 10
    assert cli("-r", cli.source, "snapshots").code == 10
    assert cli("-r", cli.source / "a", "snapshots").code == 10
    assert cli("init").code == 1
    assert cli("-r", "sftp:host:/x", "snapshots").code == 1
    assert cli("--password-command", "echo wrong", "snapshots").code == 12
    assert cli("umount", cli.source).code == 24
    monkeypatch.delenv("SNAPFS_REPOSITORY")
    done = cli("snapshots")
    assert (done.code, done.err) == (
        1,
        "snapfs: no repository: name one with -r FOLDER, or set SNAPFS_REPOSITORY\n",
    )


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("boom"), 1, "internal error: RuntimeError: boom (please report"),
        (RecursionError(), 1, "internal error: RecursionError"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(5, "Input/output error", "x\n"), 1, "x\\n: Input/output error"),
    ],
)
def test_no_traceback_ever(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(main.Verbs, "get_command", fail)
    done = cli("ls", "latest")
    assert done.code == code
    assert words in done.err
    assert done.err.count("\n") == 1


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_before_and_behind_the_verb(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_REPOSITORY", "nowhere")
    cli("-r", cli.repo, "snapshots").ok()
    cli("snapshots", "-r", cli.repo).ok()
    cli("-r", "elsewhere", "snapshots", "-r", cli.repo).ok()
    (cli.folder / "name").write_text(f"{cli.repo}\n")
    cli("snapshots", "--repository-file", "name").ok()
    assert cli("snapshots").code == 10


def test_options_from_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPFS_BACKUP__EXCLUDE", "sub")
    monkeypatch.setenv("SNAPFS_HOST", "somebody")
    cli.snapshot()
    assert "/sub" not in cli("ls", "latest").out
    assert cli("snapshots", "--json").json[0]["hostname"] == "somebody"
    monkeypatch.setenv("SNAPFS_COMPRESSION", "lots")
    assert cli("backup", "source").code == 1


def test_borg_words_for_a_repository(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.snapshot()
    monkeypatch.delenv("SNAPFS_REPOSITORY")
    assert cli("ls", f"{cli.repo}::latest:{cli.source}").ok().out == "/a\n/sub\n/sub/b\n"
    cli("snapshots", f"{cli.repo}::").ok()


# ---- backup and the list of snapshots --------------------------------------------------------------------------------


def test_backup_summary(cli: Cli) -> None:
    first = cli("backup", "--json", "source").ok().lines[-1]
    assert first["message_type"] == "summary"
    assert (first["files_new"], first["total_files_processed"], first["total_bytes_processed"]) == (2, 2, 6)
    second = cli("backup", "--json", "source").ok().lines[-1]
    assert (second["files_new"], second["files_unmodified"]) == (0, 2)
    assert second["snapshot_id"] != first["snapshot_id"]
    assert "snapshot" in cli("backup", "source").ok().out
    assert "no snapshot was made" in cli("backup", "--skip-if-unchanged", "source").ok().out
    assert len(cli("snapshots", "--json").json) == 3


def test_backup_verbose_names_files(cli: Cli) -> None:
    assert f"new        {cli.source}/a, 3 B" in cli("backup", "-n", "-v", "source").ok().out.splitlines()
    items = [
        line
        for line in cli("backup", "--json", "-v", "source").lines
        if line["message_type"] == "verbose_status"
    ]
    assert {"action": "new", "item": f"{cli.source}/a"}.items() <= items[0].items() | items[1].items()


def test_unreadable_sources_are_named_and_exit_3(cli: Cli) -> None:
    done = cli("backup", "source", "missing\x1b")
    assert done.code == 3
    assert done.err == f"error: {cli.folder}/missing\\x1b: No such file or directory\n"
    assert len(cli("snapshots", "--json").json) == 1


def test_stdin(cli: Cli) -> None:
    done = cli.process("backup", "--stdin", "--stdin-filename", "dump.sql", input=b"hello")
    assert done.returncode == 0, done
    assert cli("ls", "latest").out == "/dump.sql\n"


def test_time_is_local(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.snapshot("--time", "2001-02-03 04:05:06")
    assert cli("snapshots", "--json").json[0]["time"] == "2001-02-03T04:05:06.000000000+00:00"


def test_snapshots_selected(cli: Cli) -> None:
    first = cli.snapshot("--host", "a", "--tag", "x,y")
    second = cli.snapshot("--host", "b", "--tag", "x")
    third = cli.snapshot("--host", "b")

    def ids(*args: str) -> list[str]:
        return [one["id"] for one in cli("snapshots", "--json", *args).ok().json]

    assert ids() == [first, second, third]
    assert ids("--host", "b") == [second, third]
    assert ids("--tag", "x,y") == [first]
    assert ids("--tag", "x") == [first, second]
    assert ids("--latest", "1") == [first, third]
    assert ids("latest~1", first[:10]) == [first, second]
    assert ids("--path", "source") == [first, second, third]
    assert ids("--path", "/nowhere") == []
    groups = cli("snapshots", "--json", "--group-by", "host").ok().json
    assert [len(one["snapshots"]) for one in groups] == [1, 2]
    assert cli("snapshots").out.splitlines()[-1] == "3 snapshots"
    assert cli("-q", "snapshots", "-c", "--host", "a").out.splitlines()[-1].startswith(first[:8])


def test_tags(cli: Cli) -> None:
    cli.snapshot("--tag", "x")

    def tags() -> list[str] | None:
        found: list[str] | None = cli("snapshots", "--json").json[0].get("tags")
        return found

    cli("tag", "--add", "y,z", "--remove", "x", "latest").ok()
    assert tags() == ["y", "z"]
    cli("tag", "--set", "w", "--tag", "y").ok()
    assert tags() == ["w"]
    cli("tag", "--set", "", "latest").ok()
    assert tags() is None


def test_forget_needs_a_yes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    first, second = cli.snapshot(), cli.snapshot()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    done = cli("forget", first[:10])
    assert done.code == 1
    assert "--yes" in done.err
    assert cli("forget", "--yes", first[:10], "0" * 20).code == 1  # one does not exist: none is forgotten
    cli("forget", "-n", first[:10]).ok()
    assert len(cli("snapshots", "--json").json) == 2
    cli("forget", "--yes", first[:10]).ok()
    assert [one["id"] for one in cli("snapshots", "--json").json] == [second]


# ---- looking into snapshots ------------------------------------------------------------------------------------------


def test_ls(cli: Cli) -> None:
    (cli.source / "l").symlink_to("a\n")
    os.mkfifo(cli.source / "f")
    cli.snapshot()
    inside = f"latest:{cli.source}"
    assert cli("ls", inside).out.split() == ["/a", "/f", "/l", "/sub", "/sub/b"]
    assert cli("ls", inside, "/sub").out.split() == ["/sub", "/sub/b"]
    assert cli("ls", inside, "/").out.split() == ["/a", "/f", "/l", "/sub"]
    assert cli("ls", inside, "--recursive", "/").out.split() == ["/a", "/f", "/l", "/sub", "/sub/b"]
    assert cli("ls", f"{inside}/a").out == "/a\n"
    assert cli("ls", inside, "--sort", "name", "--reverse").out.split()[0] == "/sub/b"
    line = cli("ls", "-l", inside).out.splitlines()[2]
    assert line.startswith("lrwxrwxrwx")
    assert line.endswith("/l -> a\\n")
    header, *nodes = cli("ls", "--json", inside).lines
    assert header["message_type"] == "snapshot"
    assert [(node["path"], node["type"]) for node in nodes][:3] == [
        ("/a", "file"),
        ("/f", "fifo"),
        ("/l", "symlink"),
    ]
    assert nodes[0]["permissions"].startswith("-rw")
    assert nodes[0]["size"] == 3


def test_check(cli: Cli) -> None:
    cli.snapshot()
    assert cli("check").ok().out
    assert cli("check", "--read-data", "--json").ok().lines[-1]["num_errors"] == 0
    for volume in (cli.repo / "data").rglob("*"):
        if volume.is_file():
            volume.unlink()
    cli("backup", "source").ok()


def test_repair_index(cli: Cli) -> None:
    cli.snapshot()
    cli("repair", "index").ok()
    cli("check").ok()


def test_repair_index_goes_on_where_a_write_of_the_index_fails_once(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It threw the old one away first, and then advised to run itself."""
    cli.snapshot()
    real, made = Environment.__init__, []

    def init(self: Environment, path: str, rows: Rows, *, durable: bool = True) -> None:
        made.append(path)
        if len(made) == 2:
            raise IndexBroken("mdb_txn_commit: Input/output error")
        real(self, path, rows, durable=durable)

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "__init__", init)
        cli("repair", "index").ok()
    assert len(made) > 2
    cli("check").ok()


def test_reading_needs_no_home(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.snapshot()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, "/proc/nowhere")
    assert f"{cli.source}/a" in cli("ls", "latest").ok().out
    cli("--no-cache", "snapshots").ok()


def test_find(cli: Cli) -> None:
    first = cli.snapshot()
    (cli.source / "sub" / "b").unlink()
    second = cli.snapshot()
    assert cli("find", "-0", "b", "A", "-i").ok().out.split("\0") == [
        f"{first[:8]}:{cli.source}/a",
        f"{first[:8]}:{cli.source}/sub/b",
        f"{second[:8]}:{cli.source}/a",
        "",
    ]
    (found,) = cli("find", "--json", "b").ok().json
    assert (found["snapshot"], found["hits"], found["matches"][0]["path"]) == (
        first,
        1,
        f"{cli.source}/sub/b",
    )
    assert cli("find", "--json", "nothing").ok().json == []
    assert cli("find", "b", "-s", "latest").ok().out == ""
    assert cli("find", "-l", "b").ok().out.splitlines()[1].strip().startswith("-rw")
    assert cli("find", "[").code == 1


def test_diff(cli: Cli) -> None:
    cli.snapshot()
    (cli.source / "a").write_text("other")
    (cli.source / "new").mkdir()
    cli.snapshot()
    done = cli("diff", f"latest~1:{cli.source}", f"latest:{cli.source}").ok()
    assert done.out.splitlines()[:2] == ["M    /a", "+    /new/"]
    *changes, statistics = cli("diff", "--json", "latest~1", "latest").ok().lines
    assert [(change["modifier"], change["path"]) for change in changes] == [
        ("M", f"{cli.source}/a"),
        ("+", f"{cli.source}/new/"),
    ]
    assert (statistics["changed_files"], statistics["added"]["dirs"]) == (1, 1)
    assert cli("diff", "--exit-code", "latest~1", "latest").code == 23
    assert cli("diff", "--exit-code", "latest", "latest").code == 0


def test_diff_with_live_files(cli: Cli) -> None:
    cli.snapshot()
    assert cli("diff", "-q", "latest:", cli.source).ok().out == ""
    (cli.source / "sub" / "b").write_text("more")
    assert cli("diff", "-q", "latest:", "./source").ok().out == "M    /sub/b\n"
    assert cli("diff", "-q", f"latest:{cli.source}/sub", "./source/sub").ok().out == "M    /b\n"
    assert cli("diff", "latest:", "latest").code == 1
    assert cli("diff", "latest:", "/nowhere/at/all").code == 1


def test_dump(cli: Cli) -> None:
    import io
    import tarfile

    (cli.source / "a").write_bytes(b"\xff\n")
    cli.snapshot()
    assert cli.process("dump", "latest", f"{cli.source}/a").stdout == b"\xff\n"
    archive = cli.process("dump", f"latest:{cli.source}", "/").stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert [name for name in tar.getnames() if name.endswith("sub/b")]
    cli("dump", "latest", f"{cli.source}/a", "-t", "target").ok()
    assert (cli.folder / "target").read_bytes() == b"\xff\n"
    assert cli("dump", "latest", "/nothing", "-t", "other").code == 1
    assert not (cli.folder / "other").exists()


def test_dump_names_the_file_that_it_cannot_write(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.source / "large").write_bytes(os.urandom(3_000_000))
    cli.snapshot()
    large, a = f"{cli.source}/large", f"{cli.source}/a"
    no_space = "No space left on device: free some space there, or write to another place"
    for args, message in (
        ([large, "-t", "/dev/full"], f"/dev/full: {no_space}"),
        ([a, "-a", "tar", "-t", "/dev/full"], f"/dev/full: {no_space}"),
        ([a, "-t", "no/folder"], "no/folder: its folder does not exist: make it first (mkdir -p), or give another --target"),
        ([a, "-t", "source"], "source: is a folder: give the name of a file in it"),
    ):  # fmt: skip
        assert cli("dump", "latest", *args) == (1, "", f"snapfs: {message}\n")
    with open("/dev/full", "wb") as full:
        for args in ([large], [a], [str(cli.source)]):
            done = subprocess.run(
                command(["dump", "latest", *args]), stdout=full, stderr=subprocess.PIPE, check=False
            )
            assert (done.returncode, done.stderr.decode()) == (1, f"snapfs: standard output: {no_space}\n")

    def on_a_full_disk(**where: bytes) -> tuple[int, bytes]:
        fd, name = mkstemp(**where)
        os.close(fd)
        return os.open("/dev/full", os.O_WRONLY), name

    mkstemp = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", on_a_full_disk)
    (cli.folder / "there").write_text("before")
    names = sorted(os.listdir(cli.folder))
    for target in ("there", "new"):
        assert cli("dump", "latest", large, "-t", target) == (1, "", f"snapfs: {target}: {no_space}\n")
    assert sorted(os.listdir(cli.folder)) == names, "something was left behind"
    assert (cli.folder / "there").read_text() == "before"


@pytest.mark.parametrize("mode", ["restore-size", "files-by-contents", "blobs-per-file", "raw-data"])
def test_stats(cli: Cli, mode: str) -> None:
    (cli.source / "large").write_bytes(bytes(1000))
    cli.snapshot()
    found = cli("stats", "--json", "--mode", mode).ok().json
    assert found["snapshots_count"] == 1
    assert found["total_size"] > 0
    assert mode in cli("stats", "--mode", mode, "latest", "latest").ok().out


def test_restore(cli: Cli) -> None:
    cli.snapshot()
    cli("restore", f"latest:{cli.source}", "-t", "back").ok()
    assert (cli.folder / "back" / "sub" / "b").read_text() == "two"
    cli("restore", f"latest:{cli.source}/a", "-t", "one").ok()
    assert os.listdir(cli.folder / "one") == ["a"]
    cli("restore", "latest", "-t", "whole", "-i", "sub", "--verify").ok()
    assert (cli.folder / "whole" / str(cli.source).lstrip("/") / "sub" / "b").exists()
    (cli.folder / "back" / "stranger").touch()
    planned = cli("restore", f"latest:{cli.source}", "-t", "back", "--delete", "-n", "--json").ok().lines[-1]
    assert (planned["message_type"], planned["files_deleted"]) == ("summary", 1)
    assert (cli.folder / "back" / "stranger").exists()
    assert cli("restore", f"latest:{cli.source}/a", "-t", "x", "-i", "a").code == 1


def test_a_repository_of_others_is_not_trusted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one's own is, on the machine that made it, at another place too; what is left out is said, and can be had."""
    (cli.source / "tool").write_bytes(b"tool")
    (cli.source / "tool").chmod(0o4755)
    cli.snapshot()

    def restored(target: str, *args: str) -> tuple[int, bool]:
        done = cli("restore", f"latest:{cli.source}", "-t", target, *args).ok()
        said = [text for text in done.err.splitlines() if "not made on this machine" in text]
        assert all("--trusted" in text for text in said), done
        assert len(said) < 2, done
        mode = stat.S_IMODE((cli.folder / target / "tool").stat().st_mode)
        archived = cli("dump", f"latest:{cli.source}", "/", "-t", f"{target}.tar", *args).ok()
        with tarfile.open(cli.folder / f"{target}.tar") as archive:
            (tool,) = (m for m in archive if m.name.endswith("tool"))
            assert tool.mode == mode
        assert [text for text in archived.err.splitlines() if "--trusted" in text] == said
        return mode, bool(said)

    assert restored("own") == (0o4755, False)
    assert restored("own, not trusted", "--untrusted") == (0o755, False)
    shutil.copytree(cli.repo, cli.folder / "moved")
    monkeypatch.setenv("SNAPFS_REPOSITORY", str(cli.folder / "moved"))
    assert restored("at another place") == (0o4755, False)
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.folder / "new machine"))
    assert restored("new machine") == (0o755, True)
    assert restored("new machine, trusted", "--trusted") == (0o4755, False)
    monkeypatch.setenv("SNAPFS_RESTORE__UNTRUSTED", "0")
    monkeypatch.setenv("SNAPFS_DUMP__UNTRUSTED", "0")
    assert restored("new machine, for good") == (0o4755, False)


def test_a_repository_with_the_id_of_ones_own_is_not_trusted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id stands in the clear: one who has seen it can make another repository of that id, with keys of his own."""
    cli.snapshot()
    mine = Repository.open(str(cli.repo), PASSWORD, cache_dir=str(cli.folder / "c"), no_cache=True)
    with mine:
        identity = mine.id
        assert mine.created_here
    monkeypatch.setattr(System, "salt", lambda self, client=b"": identity + os.urandom(16))
    Repository.create(str(cli.folder / "theirs"), PASSWORD, cost=CHEAP)
    monkeypatch.undo()
    with Repository.open(
        str(cli.folder / "theirs"), PASSWORD, state_dir=str(cli.folder / "home" / "snapfs"), no_cache=True
    ) as theirs:
        assert theirs.id == identity
        assert not theirs.created_here


def test_damage_is_said_and_exits_20(cli: Cli) -> None:
    (cli.source / "large").write_bytes(os.urandom(100_000))
    cli.snapshot()
    for volume in (cli.repo / "data").rglob("*"):
        if volume.is_file():
            data = bytearray(volume.read_bytes())
            data[2000] ^= 1
            volume.write_bytes(data)
    done = cli("check", "--read-data")
    assert done.code == 20
    assert f"{cli.source}/large" in done.out
    assert cli("restore", "latest", "-t", "back").code == 20
    assert cli("dump", "latest", f"{cli.source}/large", "-t", "x").code == 20


def test_a_part_of_the_data_is_checked(cli: Cli) -> None:
    (cli.source / "large").write_bytes(bytes(100_000))
    cli.snapshot()
    assert "no damage found" in cli("check", "--read-data-subset", "1/1").ok().out
    done = cli("check", "--read-data-subset", "1%", "--json").ok().json
    assert (done["volumes_read"], done["volumes"], done["read_data"]) == (1, 2, False)
    assert "in what was read" in cli("check", "--read-data-subset", "1").ok().out
    for args in (
        ["--read-data", "--read-data-subset", "1/2"],
        ["--read-data-subset", "5/2"],
        ["--read-data-subset", ""],
    ):
        refused = cli("check", *args)
        assert (refused.code, refused.err.count("\n")) == (1, 1), refused
        assert "--read-data-subset" in refused.err


def test_repair_volumes_and_snapshots(cli: Cli) -> None:
    for name in "bcd":
        (cli.source / name).write_bytes(os.urandom(300_000))
    (cli.source / "\x1b[1m").write_bytes(os.urandom(300_000))
    first = cli.snapshot()[:8]
    assert "no volume is known to be damaged" in cli("repair", "volumes").ok().out
    volume = max(
        (path for path in (cli.repo / "data").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(volume.read_bytes())
    data[len(data) // 2] ^= 1
    volume.write_bytes(data)
    assert cli("check", "--read-data").code == 20
    done = cli("repair", "volumes", "-n")
    assert done.code == 20
    assert "can be saved, 1 lost" in done.out
    assert "cannot be read now: " + first in done.out
    done = cli("repair", "volumes", "--json", volume.name[:8])
    assert done.code == 20
    assert [line["message_type"] for line in done.lines] == ["volume", "affected", "summary"]
    assert (done.lines[0]["lost_blobs"], done.lines[0]["moved_to"]) == (
        1,
        f"trash/data/{volume.name[:2]}/{volume.name}",
    )
    assert done.lines[2]["affected_files"] == 1
    assert not volume.exists()
    done = cli("repair", "snapshots", "-n").ok()
    assert f"would leave out: {first}:" in done.out
    assert "0 snapshots whole, 1 damaged" in done.out
    done = cli("repair", "snapshots", "--forget", "latest").ok()
    assert f"left out: {first}:" in done.out
    assert "forgotten" in done.out
    (only,) = cli("snapshots", "--json").ok().json
    assert only["tags"] == ["repaired"]
    cli("check", "--read-data").ok()
    assert cli("repair", "snapshots", "--json").ok().json["whole_snapshots"] == 1
    for args in (
        ["volumes", "zz"],
        ["volumes", ""],
        ["snapshots", ""],
        ["snapshots", "nonsense"],
        ["volumes", "abcdef"],
    ):
        refused = cli("repair", *args)
        assert (refused.code, refused.err.count("\n")) == (1, 1), refused
