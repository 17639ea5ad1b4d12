"""Key slots: recovery keys, slots that are put back, and what is said, and not said, of a password that opens nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.errors import (
    Damaged,
    RepositoryError,
    RepositoryNotFound,
    StorageError,
    UsageError,
    WrongPassword,
)
from snapfs.repo.format import keyslot
from snapfs.repo.repository import Repository
from snapfs.repo.slots import sound_slot
from snapfs.repo.storage.base import Storage
from support import repositories as repos
from support.faults import KINDS, Calls, Fail, each
from support.repositories import CHEAP, PASSWORD

READER = Path(__file__).parent.parent / "docs" / "reader.py"


@pytest.fixture
def taken(tmp_path: Path) -> bytes:
    """A repository with one snapshot; returns the snapshot's id."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content of the file" * 50)
    repos.create(tmp_path)
    return repos.snapshot(tmp_path, source).id


def opened(folder: Path, password: bytes) -> Repository:
    return Repository.open(
        str(folder / "repository"), password, cache_dir=str(folder / "cache"), state_dir=str(folder / "state")
    )


def slots(folder: Path) -> list[Path]:
    return sorted((folder / "repository" / "keys").iterdir())


def exported(folder: Path) -> bytes:
    with repos.open_(folder) as repository:
        return repository.slots.export(repository.slots.current)


def test_a_recovery_key_opens_what_passwords_open(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        name, key = repository.slots.add_recovery(cost=CHEAP, host="host", user="user")
        assert repository.slots.add_recovery(cost=CHEAP)[1] != key
    for typed in (
        key,
        key.lower(),
        key.replace("-", ""),
        f" {key.replace('-', ' - ')} ",
        key.replace("0", "o"),
    ):
        with opened(tmp_path, typed.encode()) as repository:
            assert repository.slots.current == name
            assert [s.id for s in repository.snapshots()] == [taken]
            notes = {n: note for n, note in repository.slots.notes() if note is not None}
    assert sorted(note.is_recovery for note in notes.values()) == [False, True, True]
    assert (notes[name].host, notes[name].user) == ("host", "user")


def test_the_second_reader_takes_a_recovery_key_too(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        _, key = repository.slots.add_recovery(cost=CHEAP)
    for typed, code in ((key, 0), (key.lower().replace("-", "  ").replace("0", "o"), 0), (key[:-1], 12)):
        done = subprocess.run(
            [sys.executable, READER, tmp_path / "repository", "list"],
            env={**os.environ, "SNAPFS_PASSWORD": typed},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, taken.hex()[:8].encode() in done.stdout) == (code, code == 0)


def test_a_mistyped_recovery_key_is_told(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        key = repository.slots.add_recovery(cost=CHEAP)[1]
    wrong = key[:13] + ("0" if key[13] != "0" else "1") + key[14:]
    with pytest.raises(
        WrongPassword, match="read as a recovery key, there is a mistake in group 3"
    ) as caught:
        opened(tmp_path, wrong.encode())
    assert not any(group in str(caught.value) for group in wrong.split("-")), (
        "no part of a secret in a message"
    )


def test_a_recovery_key_is_not_changed_into_a_password(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        _, key = repository.slots.add_recovery(cost=CHEAP)
    with opened(tmp_path, key.encode()) as repository:
        with pytest.raises(UsageError, match="key add"):
            repository.slots.replace(b"new", cost=CHEAP)
        repository.slots.add(b"new", cost=CHEAP)
    for password in (key.encode(), b"new", PASSWORD):
        opened(tmp_path, password).close()


def test_a_removed_recovery_key_opens_nothing(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        name, key = repository.slots.add_recovery(cost=CHEAP)
        repository.slots.remove(name)
    with pytest.raises(WrongPassword, match=r"no key slot of this repository opens with it$"):
        opened(tmp_path, key.encode())


# ---- slots that are put back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["there", "lost", "damaged"])
@pytest.mark.parametrize("harm", ["folder lost", "slot lost", "slot damaged", "slot cut"])
def test_an_exported_slot_is_put_back(tmp_path: Path, taken: bytes, harm: str, config: str) -> None:
    slot, place = exported(tmp_path), tmp_path / "repository"
    (path,) = slots(tmp_path)
    if harm == "folder lost":
        shutil.rmtree(place / "keys")
    elif harm == "slot lost":
        path.unlink()
    else:
        path.write_bytes(slot[:-100] if harm == "slot cut" else slot[:300] + b"?" + slot[301:])
    if config == "lost":
        (place / "config").unlink()
    elif config == "damaged":
        (place / "config").write_bytes(b"?" + (place / "config").read_bytes()[1:])
    with pytest.raises((Damaged, WrongPassword), match="snapfs key import"):
        opened(tmp_path, PASSWORD)
    assert Repository.import_key(str(place), slot) == (path.name, True)
    assert Repository.import_key(str(place), slot) == (path.name, False)
    with opened(tmp_path, PASSWORD) as repository:
        assert [s.id for s in repository.snapshots()] == [taken]
        ((_, note),) = repository.slots.notes()
        assert note is not None, "who added it is known as before"
        result = check(repository, read_data=True)
        assert [problem.kind for problem in result.problems] == ([] if config == "there" else ["config"])


def test_a_slot_comes_back_after_its_password_was_removed(tmp_path: Path, taken: bytes) -> None:
    """As docs/security.md says: an exported slot is as good as one in keys/."""
    with repos.open_(tmp_path) as repository:
        name = repository.slots.add(b"another", cost=CHEAP)
        slot = repository.slots.export(name)
        repository.slots.remove(name)
    with pytest.raises(WrongPassword):
        opened(tmp_path, b"another")
    Repository.import_key(str(tmp_path / "repository"), slot)
    opened(tmp_path, b"another").close()


def test_a_slot_of_another_repository_is_refused(tmp_path: Path, taken: bytes) -> None:
    other = tmp_path / "other"
    other.mkdir()
    repos.create(other)
    before = slots(tmp_path)
    with pytest.raises(UsageError, match=r"this key slot is of the repository .* and here is"):
        Repository.import_key(str(tmp_path / "repository"), exported(other))
    assert slots(tmp_path) == before


def test_what_is_no_slot_is_refused(tmp_path: Path, taken: bytes) -> None:
    slot, place = exported(tmp_path), tmp_path / "repository"
    config = (place / "config").read_bytes()
    (event, *_) = (place / "events").iterdir()
    wild = slot[:104] + b"\xff\xff\xff\xff" + slot[108:]
    before = slots(tmp_path)
    for data in (b"", slot[:110], config, event.read_bytes(), wild):
        with pytest.raises(Damaged, match="the exported key slot"):
            Repository.import_key(str(place), data)
    assert slots(tmp_path) == before


def test_a_folder_without_a_repository_gets_no_slot(tmp_path: Path, taken: bytes) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(RepositoryNotFound):
            Repository.import_key(str(tmp_path / place), exported(tmp_path))
    assert os.listdir(tmp_path / "empty") == []


def test_a_damaged_slot_is_not_exported(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        other = repository.slots.add(b"another", cost=CHEAP)
        path = tmp_path / "repository" / "keys" / other
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(Damaged, match=f"keys/{other[:8]}"):
            repository.slots.export(other)


def test_a_full_disk_at_any_call_leaves_a_slot_or_none(tmp_path: Path, taken: bytes) -> None:
    slot, place = exported(tmp_path), tmp_path / "repository"
    (path,) = slots(tmp_path)
    for number in count(1):
        shutil.rmtree(place / "keys", ignore_errors=True)
        calls = Calls(place, each(KINDS, number), Fail(errno.ENOSPC))
        try:
            with calls.installed():
                Repository.import_key(str(place), slot)
        except StorageError:
            assert not path.exists() or path.read_bytes() == slot
            assert list((place / "tmp").iterdir()) == []
        else:
            assert not calls.hits, "it says that all is well, and a call failed"
            break
        Repository.import_key(str(place), slot)
        opened(tmp_path, PASSWORD).close()
    assert number > 6, "the seam is still there"


def test_a_recovery_key_that_could_not_be_made_takes_no_password_away(tmp_path: Path, taken: bytes) -> None:
    place = tmp_path / "repository"
    for number in count(1):
        calls = Calls(place, each(KINDS, number), Fail(errno.EIO))
        with repos.open_(tmp_path) as repository:
            try:
                with calls.installed():
                    _, key = repository.slots.add_recovery(cost=CHEAP)
            except RepositoryError:
                continue
            assert not calls.hits
            break
    assert number > 8, "the seam is still there"
    for password in (PASSWORD, key.encode()):
        with opened(tmp_path, password) as repository:
            assert check(repository).ok


# ---- what a password that opens nothing learns ---------------------------------------------------------------------


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The cost of every derivation; they are quick, since changed slots ask for up to 2 GiB."""
    calls: list[tuple[int, ...]] = []

    def recording(password: bytes, salt: bytes, *cost: int) -> bytes:
        calls.append(cost)
        return hashlib.sha256(repr((password, salt, cost)).encode()).digest()

    monkeypatch.setattr(keyslot, "argon2id", recording)
    return calls


def outcome(folder: Path, password: bytes, calls: list[tuple[int, ...]]) -> tuple[object, ...]:
    """All that one sees who tries a password: kind of error, exit code, words, and what took time."""
    calls.clear()
    try:
        opened(folder, password).close()
    except (WrongPassword, RepositoryError) as error:
        return type(error), error.exit_code, str(error), tuple(calls)
    return "opened", tuple(calls)


@pytest.mark.parametrize("named", ["as before", "for its bytes"])
def test_a_changed_slot_does_not_tell_the_right_password_from_a_wrong_one(
    tmp_path: Path, derivations: list[tuple[int, ...]], named: str
) -> None:
    """Whoever can change files could otherwise try passwords on one who knows none of it, or learn which slot is whose."""
    repos.create(tmp_path)
    (path,) = slots(tmp_path)
    sound = path.read_bytes()
    path.unlink()
    codes = set()
    for bit in [*range(116 * 8), *range(116 * 8, len(sound) * 8, 61)]:
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        name = path.name if named == "as before" else hashlib.sha256(data).hexdigest()
        changed = path.with_name(name)
        changed.write_bytes(data)
        right, wrong = (outcome(tmp_path, password, derivations) for password in (PASSWORD, b"wrong"))
        assert right == wrong, f"bit {bit}"
        assert right[0] != "opened", f"bit {bit}"
        codes.add(right[1])
        changed.unlink()
    assert codes == ({12} if named == "as before" else {12, 1}), "1: of a newer version, by its clear header"
    path.write_bytes(sound)
    assert outcome(tmp_path, PASSWORD, derivations)[0] == "opened"


def test_wrong_password_and_damaged_slot_are_one_error(
    tmp_path: Path, derivations: list[tuple[int, ...]]
) -> None:
    repos.create(tmp_path)
    (path,) = slots(tmp_path)
    wrong = outcome(tmp_path, b"wrong", derivations)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    damaged = outcome(tmp_path, PASSWORD, derivations)
    assert wrong[:2] == damaged[:2] == (WrongPassword, 12)
    assert str(damaged[2]).startswith(str(wrong[2])), (
        "the owner is told more: what anybody sees who has the folder"
    )
    assert "1 of 1 cannot be used, whatever the password is: keys/" in str(damaged[2])


def test_another_slot_opens_whatever_lies_beside_it(tmp_path: Path, taken: bytes) -> None:
    other, keys = tmp_path / "other", tmp_path / "repository" / "keys"
    other.mkdir()
    repos.create(other)
    foreign = exported(other)
    newer = exported(tmp_path)[:8] + b"\x02" + exported(tmp_path)[9:]
    for data in (foreign, newer, b"", b"?" * 70_000):
        (keys / hashlib.sha256(data).hexdigest()).write_bytes(data)
    (keys / "notes.txt").write_bytes(b"put here by somebody")
    shutil.rmtree(tmp_path / "state")  # which knows what slot to try first
    with opened(tmp_path, PASSWORD) as repository:
        result = check(repository)
        assert any("nobody said that he added the key slot" in note for note in result.notes)
    with pytest.raises(WrongPassword, match="4 of 5 cannot be used") as caught:
        opened(tmp_path, b"wrong")
    assert "notes" not in str(caught.value), "unknown files are ignored"
    for path in keys.iterdir():
        if path.name != exported_name(tmp_path):
            path.unlink()


def exported_name(folder: Path) -> str:
    return hashlib.sha256(exported(folder)).hexdigest()


def test_a_flipped_bit_in_the_id_of_the_config_locks_nobody_out_who_reads(
    tmp_path: Path, taken: bytes
) -> None:
    config = tmp_path / "repository" / "config"
    data = config.read_bytes()
    config.write_bytes(data[:30] + bytes((data[30] ^ 4,)) + data[31:])
    with pytest.raises(WrongPassword, match=r"of another repository .* than config .* move it away"):
        opened(tmp_path, PASSWORD)
    config.rename(tmp_path / "away")
    with opened(tmp_path, PASSWORD) as repository:
        assert [s.id for s in repository.snapshots()] == [taken]


def test_without_any_slot_that_is_said(tmp_path: Path, taken: bytes) -> None:
    (path,) = slots(tmp_path)
    path.rename(tmp_path / "away")
    with pytest.raises(Damaged, match="no key slot is left: put one back with `snapfs key import`"):
        opened(tmp_path, PASSWORD)


def test_a_slot_that_is_replaced_while_one_looks_is_no_wrong_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `key passwd` or `key rotate`: the new one is there before the old one goes, and was not when they were listed."""
    repos.create(tmp_path)
    keys = tmp_path / "repository/keys"
    (old,) = os.listdir(keys)
    with repos.open_(tmp_path) as repository:
        new = repository.slots.add(repos.PASSWORD, cost=repos.CHEAP)
    (keys / new).rename(tmp_path / new)

    def replaced(storage: Storage, name: str) -> bytes:
        if (tmp_path / new).exists():
            (tmp_path / new).rename(keys / new)
            (keys / old).unlink()
        return sound_slot(storage, name)

    monkeypatch.setattr("snapfs.repo.slots.sound_slot", replaced)
    with repos.open_(tmp_path) as repository:
        assert repository.slots.current == new
    with pytest.raises(WrongPassword):
        Repository.open(str(tmp_path / "repository"), b"another", no_cache=True)
