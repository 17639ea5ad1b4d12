"""A repository with snapshots, a source that has changed since, and the commands that something happens to.

    scene.reset(verb); done = scene.run(verb, fault=...); scene.sound(verb, done.code)

`sound` is all that must hold afterwards, with no manual step: every committed snapshot reads back byte for byte, nothing else is
shown as one, whoever had a password gets in, this machine has not forgotten who it is, the same command can be run again,
the next backup reads back too, leftovers are swept, `check --read-data` finds nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.creation import README
from snapfs.repo.errors import WrongPassword
from snapfs.repo.parity import MARKER
from snapfs.repo.parity import README as PARITY_README
from snapfs.repo.repair.parity import look
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from support import same
from support.interpose import NO_FAULT, Commands, Done, Fault, one_line
from support.readable import flip
from support.trees import File, Name, Symlink, make, noise

PARTS = ("repository", "cache", "state", "target")
NOT_YET = "not yet/there"
"""Where init makes its repository: another place than that of the others, with a folder above it that has to be made too."""
VERBS = (
    "init",
    "first backup",
    "backup",
    "backup only",
    "forget",
    "policy",
    "undelete",
    "tag",
    "key add",
    "key passwd",
    "key remove",
    "key rotate",
    "repair index",
    "repair volumes",
    "parity on",
    "restore",
    "check",
    "prune",
)
FORGETS = re.compile("what this machine has seen of the repository is (not remembered|unknown)")
COMMANDS = {"first backup": "backup", "backup only": "backup", "policy": "forget"}
"""Verbs that are another command's.  "backup only": by a machine that can do nothing else, beside its whole key's user."""
BACKUPS = ("first backup", "backup", "backup only")
STATES = {
    "first backup": "bare",
    "backup only": "only",
    "prune": "aged",
    "repair volumes": "harmed",
    "parity on": "without parity",
}
"""What there is before a command, where it is not what there is before the others."""
PASSWORD, OTHER, NEW, ONLY = b"first", b"second", b"third", b"fourth"
_TREE = {
    b"big": File(noise(300_000, 1)),
    b"kept": File(noise(100_000, 2)),
    b"small/a": File(b"a" * 100),
    b"small/b": File(b"b" * 100, xattrs={"user.large": noise(2000, 3)}),
    b"small/link": Symlink(target=b"a"),
    b"small/name": Name(of=b"small/a"),
}
_LATER = {b"big": File(noise(250_000, 1) + noise(100_000, 4)), b"new/c": File(noise(60_000, 5))}


class Scene:
    """Below `home`: repository, cache, state, target; they are what faults happen to.  Leave it by close()."""

    def __init__(self, home: Path, source: Path) -> None:
        self.home = home
        self.said = ""
        """What the command wrote to standard error."""
        self.place = home / "repository"
        self._saved = source.parent / "saved"
        self.source = make(source, _TREE)
        self.commands = Commands(home, {
            "SNAPFS_REPOSITORY": str(home / "repository"), "SNAPFS_PASSWORD": PASSWORD.decode(), "TZ": "UTC",
            "SNAPFS_NEW_PASSWORD": NEW.decode(), "HOME": str(source.parent), "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
        })  # fmt: skip
        before = same.on_disk(self.source)
        self._run("init", "--parity")
        shutil.copytree(home / "repository", self._saved / "bare/repository")
        for name in ("data", "trees", "tmp", "locks"):  # some ways of copying leave empty folders out
            (self._saved / "bare/repository" / name).rmdir()
        self._run("key", "add", SNAPFS_NEW_PASSWORD=OTHER.decode())
        for _ in range(3):
            self._run("backup", self.source)
        with self.open() as repository:
            self.gone, self.oldest, self.kept = (s.id for s in repository.snapshots())
            self.other_key = next(n for n, _ in repository.slots.notes() if n != repository.slots.current)
            self._client = repository.client.id
        self._run("forget", "--yes", self.gone.hex())
        self.committed = {self.oldest: before, self.kept: before}
        self.save()
        self._harm()
        self._run("key", "add", "--backup-only", socket.gethostname(), SNAPFS_NEW_PASSWORD=ONLY.decode())
        self.only = {self._backed_up(SNAPFS_PASSWORD=ONLY.decode()): before}
        """By the machine that can do nothing else."""
        self.save("only")
        self.reset("")
        make(self.source, _LATER)
        (self.source / "small/a").unlink()
        self.now = same.on_disk(self.source)
        self.aged: dict[bytes, same.Tree] = {}
        """What prune finds besides."""
        self._age()
        self.reset("")

    def close(self) -> None:
        self.commands.__exit__()

    def _run(self, *args: str | Path, **env: str) -> None:
        done = self.commands.run(*args, **env)
        assert done.code == 0, done

    def _backed_up(self, **env: str) -> bytes:
        done = self.commands.run("backup", "--json", self.source, **env)
        assert done.code == 0, done
        return bytes.fromhex(json.loads(done.out.splitlines()[-1])["snapshot_id"])

    def _again(self, *args: str | Path, **env: str) -> Done:
        return self.commands.run(*args, SNAPFS_REPOSITORY=str(self.place), **env)

    def save(self, name: str = "") -> None:
        for part in PARTS[:3]:
            shutil.copytree(self.home / part, self._saved / name / part, dirs_exist_ok=True)

    def _harm(self) -> None:
        """A volume that its parity makes whole; and no parity at all."""
        self.harmed = max((self.place / "data").rglob("*"), key=lambda path: path.stat().st_size)
        shutil.copytree(self._saved / "repository", self._saved / "harmed/repository")
        flip(self._saved / "harmed" / self.harmed.relative_to(self.home), 8 * 20_000)
        shutil.copytree(self._saved / "repository", self._saved / "without parity/repository")
        shutil.rmtree(self._saved / "without parity/repository/parity")
        for part in PARTS[1:3]:
            for name in ("harmed", "without parity"):
                shutil.copytree(self._saved / part, self._saved / name / part)

    def _age(self) -> None:
        """What there is to prune: a volume that nothing needs, some that are needed in part, and one, all needed, in which the
        newest snapshot lies scattered."""
        time = os.stat(self.source).st_mtime_ns
        gone = []
        for names in (("mixed",), ("gone", "half"), ("half",), (), ("gone too",)):
            for name in names:
                (self.source / name).write_bytes(noise(150_000, sum(name.encode())))
            if not names:
                os.utime(self.source, ns=(time, time))
            tree = same.on_disk(self.source)
            made = self._backed_up()
            if names and names[0].startswith("gone"):
                gone.append(made.hex())
            else:
                self.aged[made] = tree
            if not names:
                self.later = made
            for name in names:
                (self.source / name).unlink()
        os.utime(self.source, ns=(time, time))
        assert self.aged[self.later] == self.now
        self._run("forget", "--yes", *gone)
        self.save("aged")

    # ---- before --------------------------------------------------------------------------------------------------

    def reset(self, verb: str) -> None:
        """What there is before the command.  The folder of the repository stays, so that it is still at the same place."""
        self.place = self.home / (NOT_YET if verb == "init" else "repository")
        for part in (*PARTS, Path(NOT_YET).parts[0]):
            place = self.home / part
            if place.is_dir() and part not in PARTS[:3]:
                shutil.rmtree(place)
            if part in PARTS[:3]:
                for entry in os.scandir(place):
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(
                        entry.path
                    )
                saved = self._saved / STATES.get(verb, "") / part
                if saved.is_dir():
                    shutil.copytree(saved, place, dirs_exist_ok=True)

    # ---- the command ---------------------------------------------------------------------------------------------

    def args(self, verb: str) -> list[str | Path]:
        more: dict[str, list[str | Path]] = {
            "backup": [self.source],
            "forget": ["--yes", self.oldest.hex()],
            "policy": ["--yes", "--keep-last", "1"],
            "undelete": [self.gone.hex()],
            "tag": ["--add", "t", self.kept.hex()],
            "init": ["--parity"],
            "repair volumes": [self.harmed.name],
            "key remove": [self.other_key],
            "key rotate": ["--yes"],
            "restore": [f"{self.kept.hex()}:{self.source}", "-t", self.home / "target"],
            "check": ["--read-data"],
            "prune": ["--yes", "--max-unused", "0", "--max-scatter", "0%"],
        }
        name = COMMANDS.get(verb, verb)
        return [*name.split(), *(more.get(verb) or more.get(name, []))]

    def run(self, verb: str, fault: Fault = NO_FAULT, log: Path | None = None, **more: Any) -> Done:
        password = (ONLY if verb == "backup only" else PASSWORD).decode()
        env = {"SNAPFS_REPOSITORY": str(self.place), "SNAPFS_PASSWORD": password, **more}
        done = self.commands.run(*self.args(verb), fault=fault, log=log, **env)
        self.said = done.err
        return done

    def calls(self, verb: str, what: int = 1) -> int:
        """How many calls it makes when nothing goes wrong."""
        self.reset(verb)
        done = self.run(verb, Fault(what=what))
        assert done.code == 0, done
        return done.calls

    # ---- afterwards ----------------------------------------------------------------------------------------------

    def open(self, password: bytes = PASSWORD) -> Repository:
        return Repository.open(
            str(self.place), password,
            cache_dir=str(self.home / "cache/snapfs"), state_dir=str(self.home / "state/snapfs"),
        )  # fmt: skip

    def read(self, repository: Repository, snapshot: StoredSnapshot) -> same.Tree:
        node = repository.trees.resolve(snapshot.record.root, os.fsencode(self.source))
        return same.in_snapshot(repository, node)

    def whole(self, verb: str, code: int, *, parity: bool = True) -> None:
        """Every committed snapshot is there and reads back, and so does whatever else is shown.  `parity`: that all volumes have
        theirs, if it ended well: not those of an earlier writer whose names a power cut took in part."""
        must = dict(self.committed) if verb != "first backup" else {}
        if verb == "prune":
            must |= self.aged
        if verb == "backup only":
            must |= self.only
        forgets = verb in ("forget", "policy")
        if forgets and code == 0:
            del must[self.oldest]
        may_go = {self.oldest} if forgets else set()
        with self.open(self._password(verb, code)) as repository:
            remembered = {head.name for head in repository.client.remembered.heads}
            problems = repository.events.load().problems
            assert problems == [], problems
            assert repository.client.id == self._client or verb == "first backup", (
                "this machine forgot who it is"
            )
            # A command does without its state file, and only forgets what it has seen; that it has to say.
            if (
                code == 0
                and verb != "backup only"
                and not remembered >= {head.name for head in repository.events.load().heads}
            ):
                assert FORGETS.search(self.said), "heads are forgotten, and nobody was told"
            shown = {s.id: s for s in repository.snapshots()}
            assert must.keys() - may_go <= shown.keys(), "a committed snapshot is gone"
            new = (
                shown.keys()
                - self.committed.keys()
                - must.keys()
                - ({self.gone} if verb == "undelete" else set())
            )
            assert not new or verb in BACKUPS, "something is shown that was never made"
            assert new or code or verb not in BACKUPS, "a snapshot that was said to be saved is gone"
            for key, snapshot in shown.items():
                known = {self.gone: self.committed[self.oldest], **self.aged, **self.only, **self.committed}
                source = known.get(key, self.now)
                found = same.differences(source, self.read(repository, snapshot))
                assert found == [], found
            if forgets and code == 0:
                assert self.oldest not in shown
            if verb == "undelete" and code == 0:
                assert self.gone in shown, "a snapshot that was said to be back is not"
            if verb == "tag" and code == 0:
                assert b"t" in shown[self.kept].tags
            if (
                verb == "repair volumes" and code == 0 and self.harmed.exists()
            ):  # else it is in trash/, and nothing is lost
                assert hashlib.sha256(self.harmed.read_bytes()).hexdigest() == self.harmed.name
            if code == 0 and parity and verb in (*BACKUPS, "parity on", "prune"):
                kept = look(repository)
                assert kept.with_parity == kept.volumes, "a volume has no parity"
        if verb == "restore" and code == 0:
            self._restored()

    def _restored(self, top: bool = True) -> None:
        """`top`: the target was made by the restore; one that was there keeps what it has."""
        want, got = self.committed[self.kept], same.on_disk(self.home / "target")
        if "restored as a file of its own" in self.said:  # that is told, as an owner is that cannot be set
            want, got = (
                {path: replace(seen, group=None) for path, seen in tree.items()} for tree in (want, got)
            )
        found = same.differences(want, got, top=top)
        assert found == [], found

    def _password(self, verb: str, code: int) -> bytes:
        """One that has to open the repository now.  Those that nothing was done to still do."""
        if verb == "key rotate":
            opening = [password for password in (NEW, PASSWORD, OTHER) if self._opens(password)]
            assert opening == [NEW] if code == 0 else opening, opening
            return opening[0]
        if code == 0 and verb.startswith("key"):
            assert self._opens(NEW) == (verb != "key remove")
            assert self._opens(OTHER) == (verb != "key remove"), (
                "a password that was removed opens it, or another does not"
            )
            assert self._opens(PASSWORD) == (verb != "key passwd")
            return NEW if verb == "key passwd" else PASSWORD
        if verb == "first backup":  # before there was another
            return PASSWORD
        assert self._opens(OTHER) or verb == "key remove"
        return PASSWORD if verb != "key passwd" or self._opens(PASSWORD) else NEW

    def _opens(self, password: bytes) -> bool:
        try:
            self.open(password).close()
        except WrongPassword:
            return False
        return True

    def sound(self, verb: str, code: int, *, parity: bool = True) -> None:
        """Everything that must hold after the command ended so: exit code, or anything else if it was killed."""
        if verb == "init":
            self._sound_init(code)
            return
        self.whole(verb, code, parity=parity)
        password = (ONLY if verb == "backup only" else self._password(verb, code)).decode()
        again = self._again(*self.args(verb), SNAPFS_PASSWORD=password)
        # What was done already is refused, in plain words.
        refused = {
            "forget": "no snapshot", "undelete": "no forgotten snapshot", "key remove": "is none of the passwords",
        }.get(verb)  # fmt: skip
        if again.code != 0:
            assert again.code == 1, again
            assert refused is not None, again
            assert refused in again.err, again
        if verb == "restore":
            self._restored(top=False)
        if verb == "prune":
            left = json.loads(
                self._again("prune", "-n", "--json", *self.args("prune")[2:]).out.splitlines()[-1]
            )
            assert (left["volumes_to_remove"], left["volumes_to_rewrite"]) == (0, 0), (
                "what was begun is not finished"
            )
        self.next_backup((NEW if verb in ("key passwd", "key rotate") else PASSWORD).decode())

    def next_backup(self, password: str = PASSWORD.decode()) -> None:
        done = self._again("backup", "--json", self.source, SNAPFS_PASSWORD=password)
        assert done.code == 0, done
        with self.open(password.encode()) as repository:
            made = json.loads(done.out.splitlines()[-1])["snapshot_id"]
            (newest,) = (
                s for s in repository.snapshots() if s.id.hex() == made
            )  # not by time: clocks jump here
            found = same.differences(self.now, self.read(repository, newest))
            assert found == [], found
            assert os.listdir(self.place / "tmp") == [], "leftovers were not swept"
            result = check(repository, read_data=True)
            assert result.ok, result.problems

    def _sound_init(self, code: int) -> None:
        again = self._again("init", "--parity")
        if code == 0:
            assert again.code == 1, "an init that said it was done has to be there"
            assert (self.place / "README.txt").read_text() == README
            assert (self.place / MARKER).read_text() == PARITY_README
            with self.open() as repository:
                assert [note is not None for _, note in repository.slots.notes()] == [True]
        if again.code != 0:
            assert again.code == 1, again
            assert "there is a repository here already" in again.err, again
        self.next_backup()
        with self.open() as repository:
            assert len(repository.slots.notes()) == 1

    def told(self, done: Done) -> None:
        """A failure is one line with a documented exit code."""
        assert one_line(done), done
        assert done.code in (0, 1, 3, 10, 20) or (done.code == 12 and "cannot be used" in done.err), done
        if done.code:
            assert done.err, done


def folder() -> str | None:
    """Where a scene lies: in memory if possible."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=folder()) as home:
        made = Scene(Path(home), tmp_path_factory.mktemp("scene") / "source")
        yield made
        made.close()
