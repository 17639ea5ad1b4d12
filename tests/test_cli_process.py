"""The real entry point: how it starts, how it ends, what it says when something is wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.cli import Cli, command


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, monkeypatch, capsys)


def test_help_and_version_import_no_engine() -> None:
    program = (
        "import sys; from snapfs.cli.main import run; code = run([sys.argv[1]]); "
        "heavy = {'lmdb', 'rich', 'msgspec', 'cryptography', 'zstandard', 'pyfuse3', 'trio', 'logging'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    for word in ("--help", "--version", "-h", "nonsense"):
        done = subprocess.run(
            [sys.executable, "-c", program, word], capture_output=True, text=True, check=False
        )
        assert done.returncode == (word == "nonsense"), done


def test_version_starts_quickly() -> None:
    def once() -> float:
        """Seconds of processor time: a busy machine is not our fault."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command(["--version"]), check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.2


def test_init_backup_and_list(cli: Cli) -> None:
    (cli.source / "file").write_text("content")
    made = cli.process("init")
    assert made.returncode == 0, made
    assert b"cannot be recovered" in made.stdout
    assert cli.process("backup", cli.source).returncode == 0
    listed = cli.process("ls", "latest")
    assert f"{cli.source}/file".encode() in listed.stdout.splitlines()


@pytest.mark.parametrize("as_json", [False, True])
def test_state_that_cannot_be_written_is_one_line_and_no_failure(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    cli.create()
    cli.snapshot()
    (cli.folder / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.folder / "file"))
    done = cli.process("ls", "latest", *(["--json"] if as_json else []))
    assert done.returncode == 0, done
    said = [line for line in done.stderr.decode().splitlines() if "cannot write" in line]
    assert len(said) == 1, done
    line = said[0]
    if as_json:
        notice = json.loads(line)
        assert notice["message_type"] == "notice"
        line = f"snapfs: {notice['message']}"
    assert line.startswith(f"snapfs: cannot write {cli.folder}/file/snapfs/")
    assert "set XDG_STATE_HOME" in line


def test_a_closed_pipe_is_no_error(cli: Cli) -> None:
    cli.create()
    for number in range(3000):
        (cli.source / f"{number:0100}").touch()
    cli.snapshot()
    with subprocess.Popen(
        command(["ls", "latest"]), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_stdout_is_said(cli: Cli) -> None:
    cli.create()
    with open("/dev/full", "wb") as full:
        for args in (
            ["snapshots"],
            ["snapshots", "--json"],
            ["key", "list"],
            ["backup", "--json", "-v", cli.source],
        ):
            done = subprocess.run(command(args), stdout=full, stderr=subprocess.PIPE, check=False)
            assert done.returncode == 1
            assert b"standard output: No space left on device" in done.stderr
            assert done.stderr.count(b"\n") == 1


def test_a_reader_that_goes_away_spoils_no_backup(cli: Cli) -> None:
    cli.create()
    for number in range(200):
        (cli.source / str(number)).write_text(str(number))
    with subprocess.Popen(
        command(["backup", "--json", "-v", cli.source]), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    assert cli("ls", f"latest:{cli.source}").ok().out.count("\n") == 200
    assert cli("snapshots", "--json").json[0]["summary"]["error_count"] == 0


def test_ctrl_c_ends_with_130(cli: Cli) -> None:
    cli.create()
    with subprocess.Popen(
        command(["backup", "--stdin"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(bytes(70000))  # more than a pipe holds: it is reading once this returns
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"snapfs: interrupted\n"
        process.wait()
    assert process.returncode == 130
    assert cli("snapshots", "--json").json == []


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal.  SIGTERM has one once snapfs is there: the interpreter sets none."""
    status = Path(f"/proc/{process}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("number", "milliseconds"),
    [
        (signal.SIGINT, range(0, 150, 5)),
        (signal.SIGTERM, range(0, 150, 25)),
        (signal.SIGHUP, range(0, 150, 25)),
    ],
)
def test_a_signal_at_any_moment_is_one_line_and_130(
    cli: Cli, number: signal.Signals, milliseconds: range
) -> None:
    cli.create()
    program = Path(sys.executable).with_name("snapfs")
    for delay in milliseconds:
        with subprocess.Popen(
            [program, "backup", "--stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:  # fmt: skip
            while not catches(process.pid, signal.SIGTERM):
                assert process.poll() is None, process.stderr
                time.sleep(0.0005)
            time.sleep(delay / 1000)
            process.send_signal(number)
            assert process.stderr is not None
            assert process.stderr.read() == b"snapfs: interrupted\n", f"after {delay} ms"
        assert process.returncode == 130, f"after {delay} ms"
    assert cli("snapshots", "--json").json == []


def test_signals_are_settled_before_anything_else_is_loaded() -> None:
    program = (
        "import __future__, os, re, signal, sys, types, typing; before = set(sys.modules); import snapfs.cli.start; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["snapfs", "snapfs.cli", "snapfs.cli.start"]


def test_a_signal_that_is_ignored_stays_ignored(cli: Cli) -> None:
    """As nohup, and a shell that starts something in the background, wish it."""
    cli.create()
    words = " ".join(map(str, command(["backup", "--stdin"])))
    with subprocess.Popen(["sh", "-c", f"trap '' INT HUP; exec {words}"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        while not catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.0005)
        for number in (signal.SIGINT, signal.SIGHUP):
            assert not catches(process.pid, number)
            process.send_signal(number)
        process.stdin.write(b"content")
        process.stdin.close()
        assert process.wait() == 0


def test_arguments_that_are_not_utf8(cli: Cli) -> None:
    cli.create()
    name = os.fsencode(cli.source) + b"/\xff\xfe"
    os.close(os.open(name, os.O_CREAT))
    done = cli.process("backup", name, "--tag", b"\xe4", "--host", b"\xf6")
    assert done.returncode == 0, done
    exact = cli.process("ls", "-0", "latest", env={**os.environ, "LC_ALL": "C"})
    assert name in exact.stdout.split(b"\0")
    assert cli.process("ls", b"latest:" + name).returncode == 0
    missing = cli.process("ls", b"latest:/\xff")
    assert (missing.returncode, missing.stderr) == (1, b"snapfs: /\\xff: no such path in the snapshot\n")


def test_closed_standard_streams(cli: Cli) -> None:
    cli.create()
    words = " ".join(map(str, command(["backup", cli.source])))
    assert subprocess.run(f"{words} <&- >&- 2>&-", shell=True, check=False).returncode == 0
    assert cli("check").code == 0


def test_a_stream_that_cannot_be_read_is_no_empty_one(cli: Cli) -> None:
    cli.create()
    words = " ".join(map(str, command(["backup", "--stdin"])))
    for redirection, why in (("<&-", b"closed"), ("0>nothing", b"Bad file descriptor")):
        done = subprocess.run(f"{words} {redirection}", shell=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done
        assert why in done.stderr
    assert cli("snapshots", "--json").json == []
    assert subprocess.run(f"{words} </dev/null", shell=True, capture_output=True, check=False).returncode == 0


def test_a_signal_while_loading_is_no_traceback() -> None:
    program = """if True:
        import os, signal, sys
        class Sender:
            def find_spec(self, name, path=None, target=None):
                if name == "click":
                    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        sys.meta_path.insert(0, Sender())
        from snapfs.cli.start import main
        main()
    """
    for name, more, said in (
        ("SIGINT", [], b"snapfs: interrupted\n"),
        ("SIGTERM", [], b"snapfs: interrupted\n"),
        ("SIGHUP", ["--json"], b'{"message_type": "exit_error", "code": 130, "message": "interrupted"}\n'),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, name, *more], capture_output=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (130, said), done
