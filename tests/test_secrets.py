"""What must not be seen: names, contents and passwords in any file that snapfs writes, a key used twice with one nonce, which of
some files is stored."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import os
import random
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snapfs.cli.main import main
from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.format import envelope
from snapfs.repo.repository import Repository
from snapfs.repo.system import System
from support import repositories
from support.children import in_child
from support.cli import Cli
from support.faults import Calls, Fail
from support.memory import masked
from support.scene import folder as memory
from support.torture import Rounds
from support.trees import noise

_PR_GET_DUMPABLE = 3

# ---- canaries ----------------------------------------------------------------------------------------------------


def canary(what: str) -> str:
    return f"canary-{what}-{hashlib.sha256(what.encode()).hexdigest()[:20]}"


_PLANTED = "name folder small content attribute value target password tag host exclude"
CANARIES = {what: canary(what) for what in _PLANTED.split()}


def forms(text: str) -> Iterator[bytes]:
    """The ways in which a program may write it down."""
    data = text.encode()
    yield from (data, data.hex().encode(), data.hex().upper().encode(), text.encode("utf-16-le"), data[::-1])
    for skip in range(3):  # base64 of it, wherever in a longer text it stands
        yield base64.b64encode(b"\0" * skip + data)[4:-4]


def hits(top: Path) -> list[tuple[str, str]]:
    """(file, what) for every canary in the bytes or the name of a file below a folder."""
    found = []
    for folder, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(folder, name)
            data = (
                name.encode("utf-8", "surrogateescape")
                + b"\0"
                + (path.read_bytes() if path.is_file() else b"")
            )
            found += [
                (str(path), what)
                for what, text in CANARIES.items()
                if any(form in data for form in forms(text))
            ]
    return found


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    made = Cli(tmp_path, monkeypatch, capsys)
    monkeypatch.setattr("support.cli.PASSWORD", CANARIES["password"].encode())
    monkeypatch.setenv("SNAPFS_PASSWORD", CANARIES["password"])
    made.create()
    folder = made.source / CANARIES["folder"]
    folder.mkdir()
    (folder / CANARIES["name"]).write_text(CANARIES["small"])
    (folder / "large").write_text(CANARIES["content"] * 20_000)
    (folder / "link").symlink_to(CANARIES["target"])
    with contextlib.suppress(OSError):  # a file system that has none
        os.setxattr(folder / "large", f"user.{CANARIES['attribute']}", CANARIES["value"].encode() * 30)
    (made.folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(made.folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return made


def elsewhere(cli: Cli) -> list[tuple[str, str]]:
    return [
        hit
        for name in ("repo", "home", "tmp")
        if (cli.folder / name).exists()
        for hit in hits(cli.folder / name)
    ]


def test_no_name_content_or_password_is_in_any_file(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cli.source / CANARIES["folder"]
    more = ("--host", CANARIES["host"], "--tag", CANARIES["tag"], "--exclude", CANARIES["exclude"])
    for n in range(2):
        cli.snapshot(*more)
        (folder / f"{CANARIES['name']}{n}").write_bytes(noise(300_000, n))
    for args in (
        ["check", "--read-data"], ["ls", "-l", "latest"], ["find", CANARIES["name"]], ["stats", "--mode", "blobs-per-file"],
        ["diff", "latest", f"latest:{cli.source}"], ["snapshots"], ["dump", "--archive", "tar", "latest", "/", "-t", "out.tar"],
        ["restore", "latest", "-t", "back", "--verify"], ["tag", "--add", CANARIES["tag"] + "2", "latest"], ["repair", "index"],
        ["key", "list"], ["check"],
    ):  # fmt: skip
        assert cli(*args).code in (0, 1), args
    _by_a_machine_that_can_only_back_up(cli, monkeypatch)
    for where in (cli.repo, cli.repo / "tmp", cli.folder / "home"):  # what a failure leaves behind, too
        for nth in (1, 5, 12):
            with Calls(where, lambda number, kind, nth=nth: number == nth, Fail(28)).installed():
                cli("backup", str(cli.source), *more)
    assert elsewhere(cli) == []


def _by_a_machine_that_can_only_back_up(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own index and state lie beside the others."""
    with monkeypatch.context() as machine:
        machine.setitem(Repository.add_backup_only_key.__kwdefaults__, "cost", repositories.CHEAP)
        machine.setenv("SNAPFS_NEW_PASSWORD", CANARIES["password"] + "2")
        assert cli("key", "add", "--backup-only", CANARIES["host"]).code == 0
        machine.setenv("SNAPFS_PASSWORD", CANARIES["password"] + "2")
        for nth in (3, None):
            with Calls(cli.repo, lambda number, kind, nth=nth: number == nth, Fail(28)).installed():
                done = cli(
                    "backup", str(cli.source), "--tag", CANARIES["tag"], "--exclude", CANARIES["exclude"]
                )
            assert done.code == (0 if nth is None else 1), done
        assert cli("snapshots").code == 13


def test_a_canary_is_seen(cli: Cli) -> None:
    assert {what for _, what in hits(cli.source)} >= {"name", "folder", "small", "content"}
    note = cli.folder / "tmp" / "note"
    for text in CANARIES.values():
        for form in forms(text):
            note.write_bytes(b"before" + form + b"after")
            assert hits(cli.folder / "tmp"), form
    note.unlink()
    assert elsewhere(cli) == []


def test_no_password_in_errors_and_tracebacks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.snapshot()

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("made up")

    for debug in ("", "1"):
        monkeypatch.setenv("SNAPFS_DEBUG", debug)
        for place in (
            "snapfs.repo.repository.open_with",
            "snapfs.repo.slots.open_slot",
            "snapfs.repo.format.keyslot.argon2id",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(place, fail)
                done = cli("snapshots")
                assert done.code == 1, done
                assert ("Traceback" in done.err) is bool(debug), done
                assert not any(
                    form in (done.out + done.err).encode() for form in forms(CANARIES["password"])
                ), done
    monkeypatch.setenv("SNAPFS_PASSWORD", CANARIES["password"] + "x")
    done = cli("snapshots")
    assert done.code == 12, done
    assert CANARIES["password"] not in done.err


@pytest.mark.parametrize("debug", ["", "1"])
def test_no_core_file_of_a_process_with_keys(monkeypatch: pytest.MonkeyPatch, debug: str) -> None:
    """Nor of those it forks; with SNAPFS_DEBUG there may be one."""
    monkeypatch.setenv("SNAPFS_DEBUG", debug)
    monkeypatch.setattr("sys.argv", ["snapfs", "umount"])

    def dumpable() -> int:
        found: int = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE)
        return found

    def process() -> None:
        assert dumpable() == 1
        assert main() == 1
        os._exit(10 * dumpable() + in_child(lambda: os._exit(dumpable())))

    assert in_child(process) == (11 if debug else 0)


# ---- nonces ------------------------------------------------------------------------------------------------------


class Collecting:
    """Stands for AESGCM where objects are sealed, and notes each key and nonce; in a file, so that forked processes do too."""

    book: int

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._real = AESGCM(key)
        self.decrypt = self._real.decrypt

    def encrypt(self, nonce: bytes, data: Any, more: bytes) -> bytes:
        os.write(self.book, hashlib.sha256(self._key + nonce).digest())
        return self._real.encrypt(nonce, data, more)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "book"
    Collecting.book = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    monkeypatch.setattr(envelope, "AESGCM", Collecting)
    yield path
    os.close(Collecting.book)


def noted(book: Path) -> tuple[int, int]:
    """How many seals, and how many of them with a key and nonce that were used before."""
    data = book.read_bytes()
    found = [data[at : at + 32] for at in range(0, len(data), 32)]
    return len(found), len(found) - len(set(found))


STUCK = System(entropy=lambda n: bytes(n), boot_id=b"the same")


def _work(folder: Path, source: Path, system: System, seed: int) -> None:
    """Backups into one repository: alone, by two forked processes, by a clone of the machine, and again after failures."""
    repositories.create(folder)

    def once(home: Path, number: int) -> None:
        (source / f"{home.name}{number}").write_bytes(noise(40_000, seed + number))
        with Repository.open(str(folder / "repository"), repositories.PASSWORD, cache_dir=str(home / "cache"),
                             state_dir=str(home / "state"), system=system) as repository:  # fmt: skip
            backup(repository, BackupOptions((os.fsencode(source),), host=b"h", user=b"u"))

    first, clone = folder / "first", folder / "clone"
    once(first, 0)
    shutil.copytree(first, clone)
    for number, home in enumerate((first, first, clone), 1):
        assert in_child(lambda home=home, number=number: once(home, number)) == 0
    for nth in (2, 6, 9, 14):
        with (
            Calls(folder / "repository", lambda number, kind, nth=nth: number == nth, Fail(5)).installed(),
            contextlib.suppress(Exception),
        ):
            once(first, 10 + nth)
    once(first, 20)
    with Repository.open(str(folder / "repository"), repositories.PASSWORD, state_dir=str(first / "state"), no_cache=True,
                         system=system) as repository:  # fmt: skip
        repository.slots.add(b"another", cost=repositories.CHEAP)
        repository.events.set_tags(repository.snapshots()[0].id, [b"t"])


@pytest.mark.torture
@pytest.mark.parametrize("system", [System(), STUCK], ids=["ordinary", "stuck random source"])
def test_no_key_is_used_twice_with_one_nonce(
    tmp_path: Path, book: Path, system: System, rounds: Rounds
) -> None:
    before = 0
    for seed in rounds.seeds(2):
        source = tmp_path / "source"
        source.mkdir()
        (source / "a").write_bytes(noise(200_000, seed))
        (tmp_path / "round").mkdir()
        _work(tmp_path / "round", source, system, seed)
        seals, twice = noted(book)
        assert seals > before + 60
        assert twice == 0
        before = seals
        shutil.rmtree(source)
        shutil.rmtree(tmp_path / "round")


def test_a_salt_that_repeats_is_seen(tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "salt", lambda self, client=b"": bytes(32))
    source = tmp_path / "source"
    source.mkdir()
    with contextlib.suppress(Exception):
        _work(tmp_path, source, System(), 1)
    assert noted(book)[1] > 0


# ---- the game ----------------------------------------------------------------------------------------------------

FILES, LENGTH = 50, 2_000_000


def _objects(place: Path, data: bytes) -> dict[str, int]:
    """Names and sizes of all objects of a new repository that holds a folder with this one file."""
    (place / "source").mkdir(parents=True)
    (place / "source" / "file").write_bytes(data)
    repositories.create(place, chunks=(16 << 10, 64 << 10, 256 << 10))
    repositories.snapshot(place, place / "source")
    top = place / "repository"
    found = {
        str(p.relative_to(top)): p.stat().st_size
        for p in top.rglob("*")
        if p.is_file() and p.name != "README.txt" and p.parent.name != "locks"
    }
    shutil.rmtree(place)
    return found


@pytest.mark.torture
def test_nobody_tells_which_of_fifty_files_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds
) -> None:
    """Whoever knows all of them makes repositories of each, and compares sizes; names never come again.  Files of one length
    that do not compress: how far they do is visible in the sum, as docs/security.md says."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    place = Path(memory() or tmp_path, f"snapfs-game-{os.getpid()}")
    known = [_objects(place, noise(LENGTH, n)) for n in range(FILES)]
    names = Counter(name for found in known for name in found if name != "config")
    won, tried = 0.0, 0
    for seed in rounds.seeds(10):
        stored = random.Random(seed).randrange(FILES)
        seen = _objects(place, noise(LENGTH, stored))
        names.update(name for name in seen if name != "config")
        sizes = sorted(seen.values())
        fits = [n for n in range(FILES) if sorted(known[n].values()) == sizes] or list(range(FILES))
        won += (stored in fits) / len(fits)
        tried += 1
    assert set(names.values()) == {1}, "a name came twice"
    assert won / tried - 1 / FILES <= 0.05, known[0]


# ---- memory ------------------------------------------------------------------------------------------------------

WORDS = {"short": "canary horse battery 77", "long": "canary-horse-battery-77-" * 3}


def looked(*args: str | Path, typed: str = "") -> tuple[int, list[str], list[str]]:
    """Exit code and lines of a process that looks into its memory; `typed`: on its terminal, once it asks."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SNAPFS_")}
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _WITH_TERMINAL, *args], env=env | {"PYTHONPATH": str(Path(__file__).parent)},
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            if typed and select.select([ours], [], [], 60)[0]:
                os.write(ours, f"{typed}\n".encode())
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            os.close(ours)
    return process.returncode, out.decode().splitlines(), err.decode().splitlines()


_WITH_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from support.memory import main
sys.exit(main(*sys.argv[1:]))
"""


def test_memory_that_holds_it_is_seen() -> None:
    assert looked("control", masked(WORDS["short"].encode()).hex())[0] == 0


@pytest.mark.parametrize(
    ("way", "word"), [("file", "short"), ("file", "long"), ("command", "short"), ("terminal", "short")]
)
def test_a_second_after_opening_no_password_is_in_memory(
    cli: Cli, tmp_path: Path, way: str, word: str
) -> None:
    """As long as it did not come by the environment."""
    password = WORDS[word]
    Repository.create(str(tmp_path / "it"), password.encode(), cost=repositories.CHEAP)
    file = tmp_path / "word"
    file.write_text(password + "\n")
    file.chmod(0o600)
    args = {"file": ["-p", file], "command": ["--password-command", f"cat {file}"], "terminal": []}[way]
    hidden = masked(password.encode()).hex()
    code, _, said = looked(
        "password", hidden, "-r", tmp_path / "it", *args, "snapshots", typed="" if args else password
    )
    assert (code, said[said.index("looked") :]) == (0, ["looked", "0"]), said


def test_after_closing_no_key_is_in_memory(tmp_path: Path) -> None:
    """But for what BLAKE3 leaves on the stack of those keys that it is given."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(noise(300_000, 1))
    repositories.create(tmp_path)
    code, lines, said = looked("keys", tmp_path)
    assert (code, lines) == (0, ["6 of 6 keys are seen while it is open", "afterwards"]), said
