"""The index never answers wrongly: right, missing, or IndexBroken.  It is always replaceable, and never in the way."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.repo import index as index_module
from snapfs.repo import index_build, index_folder
from snapfs.repo.errors import StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.index import FoundVolume, Index, IndexBroken
from snapfs.repo.index_environment import Environment
from snapfs.repo.index_rows import Rows
from snapfs.repo.model import BlobId, Kind, Location, VolumeKind
from snapfs.repo.sorted_runs import SortedRuns
from support import repositories, trees
from support.parts import KEYS

TAG = KEYS.index_tag
ONE, TWO = b"1" * 32, b"2" * 32


def blob(i: int) -> BlobId:
    return KEYS.blob_id(Kind.CONTENT, b"%d" % i)


def place(i: int, volume: int = 1) -> Location:
    return Location(volume, i, i // 100, 104 + i * 50, 20 + i, 4 * i, 10 + i)


def entries(count: int) -> list[tuple[BlobId, Location]]:
    return [(blob(i), place(i)) for i in range(count)]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(str(tmp_path / "index"), TAG)
    yield index
    index.close()


def test_what_goes_in_comes_out(index: Index, tmp_path: Path) -> None:
    assert index.add(ONE, VolumeKind.DATA, 4096, entries(500)) == 1
    assert index.count() == 500
    for i in range(500):
        assert index.get(blob(i)) == place(i)
        assert index.copies(blob(i)) == [place(i)]
    assert index.get(blob(500)) is None
    assert index.copies(blob(500)) == []
    assert sorted(index.entries()) == sorted((b[:16], at) for b, at in entries(500))
    index.close()
    again = Index(str(tmp_path / "index"), TAG)
    assert again.get(blob(7)) == place(7)
    assert again.volumes() == [(1, ONE, VolumeKind.DATA, 4096, True, True)]
    again.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    index = Index(str(tmp_path_factory.mktemp("index")), TAG)
    yield index
    index.close()


@settings(max_examples=50, deadline=None)
@given(
    at=st.builds(
        Location, st.just(1), st.integers(0, L.BLOBS_PER_VOLUME - 1), st.integers(0, L.FRAMES_PER_VOLUME - 1),
        st.integers(0, L.VOLUME_SIZE_LIMIT - 1), st.integers(16, L.FRAME_PLAIN_LIMIT + 16), st.integers(0, L.FRAME_PLAIN_LIMIT),
        st.integers(0, 2**24 - 1),
    )
)  # fmt: skip
def test_every_location_that_can_be_fits(shared: Index, at: Location) -> None:
    name = KEYS.blob_id(Kind.CONTENT, repr(at).encode())
    number = shared.add(name, VolumeKind.DATA, 1, [(name, at)])
    assert shared.get(name) == at._replace(volume=number)


def test_an_entry_moved_to_another_key_is_none(index: Index) -> None:
    index.add(ONE, VolumeKind.DATA, 1, entries(2))
    env, blobs = index._here._env, index._here._blobs
    with env.begin(write=True) as txn:
        value = txn.get(blob(0)[:16], db=blobs)
        txn.put(blob(1)[:16], value, db=blobs)
        txn.put(blob(2)[:16], value, db=blobs)
    assert index.copies(blob(0)) == [place(0)]
    assert index.copies(blob(1)) == [place(1)]
    assert index.copies(blob(2)) == []


def test_two_copies_of_a_blob(index: Index) -> None:
    index.add(ONE, VolumeKind.DATA, 1, [(blob(1), place(1))])
    index.add(TWO, VolumeKind.DATA, 1, [(blob(1), place(5)), (blob(2), place(6))])
    copies = {place(1), place(5, 2)}
    assert set(index.copies(blob(1))) == copies
    index.mark([ONE], usable=False)
    assert index.get(blob(1)) == place(5, 2)
    assert index.copies(blob(1)) == [place(5, 2), place(1)], "what is usable comes first"
    index.mark([TWO], usable=False)
    assert index.get(blob(1)) is None, "nothing new may rely on it"
    assert set(index.copies(blob(1))) == copies, "but it can be read"
    index.mark([ONE], usable=True)
    assert index.get(blob(1)) == place(1)
    assert index.get(blob(2)) is None


def test_a_volume_known_by_its_name_keeps_its_number(index: Index) -> None:
    assert [index.add(name, VolumeKind.DATA, 1, entries(3)) for name in (ONE, TWO, ONE)] == [1, 2, 1]
    assert len(index.copies(blob(0))) == 2
    assert index.volume(2).name == TWO
    with pytest.raises(IndexBroken):
        index.volume(3)


def test_two_processes_see_each_other_s_volumes(index: Index, tmp_path: Path) -> None:
    """Two environments of one file in one process are not allowed: a child stands in."""
    index.add(ONE, VolumeKind.DATA, 1, entries(3))
    run(tmp_path, "index.add(b'2' * 32, VolumeKind.DATA, 9, [(blob(50), place(50))])")
    assert index.copies(blob(50)) == [place(50, 2)]
    assert index.get(blob(50)) == place(50, 2)
    assert index.volume(2).size == 9


# ---- many volumes ------------------------------------------------------------------------------------------------------


def volumes(count: int, blobs: int) -> list[FoundVolume]:
    """Volume n, from 0, has `blobs` blobs of its own, and the first blob of all."""
    return [
        FoundVolume(
            b"%032d" % n,
            VolumeKind.DATA,
            n,
            [(blob(0), place(0)), *((blob(i), place(i)) for i in range(n * blobs + 1, (n + 1) * blobs + 1))],
            usable=n % 7 != 6,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("known", [0, 1, 30])
def test_many_volumes_at_once_are_as_one_by_one(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    monkeypatch.setattr(index_module, "BATCH", 64)
    monkeypatch.setattr(index_build, "BATCH", 64)
    monkeypatch.setattr(index_build, "SortedRuns", partial(SortedRuns, held=100))
    other = Index(str(tmp_path / "other"), TAG)
    found = volumes(30, 20)
    for one in found:
        other.add(one.name, one.kind, one.size, one.entries, one.usable)
    for one in found[:known]:
        index.add(one.name, one.kind, one.size, one.entries, one.usable)
    index.add_all(iter(found))
    for _ in range(2):
        assert sorted(index.volumes()) == sorted(other.volumes())
        assert list(index.entries()) == list(other.entries())
        assert index.losses() > 0
        assert len(index.copies(blob(0))) == 30
        assert index.get(blob(6 * 20 + 1)) is None, "in a volume that is not usable"
        assert index.add(b"more".ljust(32), VolumeKind.TREE, 1, []) == 31
        other.add(b"more".ljust(32), VolumeKind.TREE, 1, [])
        index.close()
        index = Index(str(tmp_path / "index"), TAG)
    index.close()
    other.close()


def test_an_index_that_is_built_takes_few_bytes_and_pages(index: Index) -> None:
    index.add_all(volumes(10, 2000))
    data = max(f for f in Path(index.folder).iterdir() if f.name.isdigit()) / "data.mdb"
    assert data.stat().st_blocks * 512 < 70 * index.count() + 65536


def test_a_build_that_ends_early_leaves_nothing(index: Index, tmp_path: Path) -> None:
    def broken_off() -> Iterator[FoundVolume]:
        yield from volumes(3, 5)
        raise StorageError("the disk is gone")

    with pytest.raises(StorageError):
        index.add_all(broken_off())
    assert (index.count(), index.volumes()) == (0, [])
    work = """
def killed():
    index._folder.prepare()
    yield from volumes(3, 5)
    os.kill(os.getpid(), signal.SIGKILL)
index.add_all(killed())
"""
    index.close()
    assert run(tmp_path, work).returncode == -signal.SIGKILL
    assert list((tmp_path / "index").glob("new-*"))
    again = Index(str(tmp_path / "index"), TAG)
    assert (again.count(), again.volumes()) == (0, [])
    assert not list((tmp_path / "index").glob("new-*"))
    again.add_all(volumes(3, 5))
    assert len(again.volumes()) == 3
    again.close()


def test_readers_go_on_while_an_index_is_built(index: Index) -> None:
    """And a volume that is finished meanwhile is not lost with the environment that was there before."""
    started, seen = threading.Event(), []

    def slowly() -> Iterator[FoundVolume]:
        started.set()
        for one in volumes(5, 5):
            seen.append(index.get(blob(1)))
            yield one

    writer = threading.Thread(
        target=lambda: started.wait(10) and index.add(TWO, VolumeKind.DATA, 1, [(blob(99), place(99))])
    )
    writer.start()
    index.add_all(slowly())
    writer.join()
    assert seen == [None] * 5
    assert index.get(blob(1)) == place(1, 1)
    assert index.get(blob(99)) == place(99, 6)


def test_a_volume_is_entered_without_a_look_at_all_others(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add_all(volumes(200, 1))
    looks: list[bytes] = []
    real = Rows.indexed
    monkeypatch.setattr(Rows, "indexed", lambda rows, key, value: looks.append(key) or real(rows, key, value))
    for n in range(50):
        assert index.add(b"%032d" % (1000 + n), VolumeKind.DATA, 1, [(blob(n), place(n))]) == 201 + n
        assert len(index.volumes()) == 201 + n
        index.mark([b"%032d" % (1000 + n)], usable=False)
    assert looks == [], "they are known already"
    index.note_whole(ONE, 0)
    assert len(index.volumes()) == 250
    assert len(looks) == 250, "something was written: it may have been a volume"


def test_volumes_of_others_are_entered_in_few_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repositories.create(tmp_path)
    with repositories.open_(tmp_path, no_cache=True) as other:

        def fifty(begin: int) -> None:
            for n in range(begin, begin + 50):
                with other.writer() as writer:
                    writer.put(Kind.CONTENT, b"%d" % n)
                    writer.flush()

        fifty(0)
        with repositories.open_(tmp_path) as repository:
            assert repository.index.count() == 50
            transactions: list[Environment] = []
            real = Environment.writing
            monkeypatch.setattr(Environment, "writing", lambda env: transactions.append(env) or real(env))
            fifty(50)
            transactions.clear()
            repository.synchronise()
            assert repository.index.count() == 100
            assert len(transactions) == 1


@given(
    rows=st.lists(st.lists(st.binary(min_size=3, max_size=3), max_size=20), max_size=20),
    held=st.integers(1, 30),
)
def test_sorted_runs_are_sorted(rows: list[list[bytes]], held: int) -> None:
    with SortedRuns(tempfile.gettempdir(), 3, held) as runs:
        for some in rows:
            runs.add(some)
        assert list(runs) == sorted(row for some in rows for row in some)


def test_reset_begins_empty(index: Index, tmp_path: Path) -> None:
    index.add(ONE, VolumeKind.DATA, 1, entries(10))
    index.reset()
    assert index.count() == 0
    assert index.volumes() == []
    index.add(TWO, VolumeKind.TREE, 2, entries(2))
    index.close()
    again = Index(str(tmp_path / "index"), TAG)
    assert again.volumes() == [(2, TWO, VolumeKind.TREE, 2, True, True)], "a number is given once"
    again.close()


# ---- damage ------------------------------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path.insert(0, {tests!r})
from test_repo_index import *
index = Index({folder!r}, TAG)
{work}
index.close()
"""


def run(tmp_path: Path, work: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a broken page may end it."""
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "index"), work=work)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def look_up_all(folder: str, count: int) -> str:
    """A line on what an index that may be damaged answers: wrong, or right and how often."""
    right = missing = 0
    try:
        index = Index(folder, TAG)
        try:
            for i in range(count):
                found = index.get(blob(i))
                copies = index.copies(blob(i))
                if found not in (None, place(i)) or copies not in ([], [place(i)]):
                    return f"wrong: {i} {found} {copies}"
                right += found is not None
                missing += found is None
            for key, at in index.entries():
                if at.entry >= count or at != place(at.entry) or key != blob(at.entry)[:16]:
                    return f"wrong: {key.hex()} {at}"
        finally:
            index.close()
    except (IndexBroken, StorageError) as error:
        return f"broken: {error}"
    return f"right {right} missing {missing}"


FLIP = """
import os, signal, shutil, tempfile
data = open({folder!r} + "/00000001/data.mdb", "rb").read()
rng = random.Random({seed})
for n in range({rounds}):
    bad = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 50))):
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    folder = tempfile.mkdtemp(dir={scratch!r})
    os.mkdir(folder + "/00000001")
    open(folder + "/00000001/data.mdb", "wb").write(bad)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        line = "foreign error"
        try:
            line = look_up_all(folder, {count})
        except BaseException as error:
            line = "foreign error: " + repr(error)
        finally:
            os.write(writer, line.encode())
            os._exit(0)
    os.close(writer)
    said = open(reader, "rb").read().decode()
    status = os.waitpid(child, 0)[1]
    print(said or f"died of signal {{os.WTERMSIG(status)}}")
    shutil.rmtree(folder)
"""


def test_flipped_bits_never_give_a_wrong_place(tmp_path: Path) -> None:
    count = 400
    index = Index(str(tmp_path / "index"), TAG)
    index.add(ONE, VolumeKind.DATA, 4096, entries(count))
    index.close()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    work = FLIP.format(folder=str(tmp_path / "index"), seed=5, rounds=120, scratch=str(scratch), count=count)
    done = run(tmp_path, work)
    lines = done.stdout.splitlines()
    assert len(lines) == 120, done.stderr
    assert not [line for line in lines if line.startswith(("wrong", "foreign"))]
    assert any(f"right {count - 1}" in line for line in lines), "no flip hit a value: this tests nothing"
    died = [line for line in lines if line.startswith("died")]
    assert all(int(line.split()[-1]) in (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT) for line in died), (
        died
    )
    assert len(died) < 30


def test_cut_and_replaced_files(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    for bad in (b"", b"no database" * 1000, bytes(8192)):
        index = Index(str(folder), TAG)
        index.add(ONE, VolumeKind.DATA, 1, entries(50))
        index.close()
        newest = max(f for f in folder.iterdir() if f.name.isdigit())
        (newest / "data.mdb").write_bytes(bad)
        assert look_up_all(str(folder), 50) == "right 0 missing 50"


def test_a_damaged_stamp_is_no_stamp(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    for bad in (b"\xa5", b"", b"1 2 3"):
        index = Index(str(folder), TAG)
        index.add(ONE, VolumeKind.DATA, 1, entries(50))
        index.close()
        (folder / "stamp").write_bytes(bad)
        assert look_up_all(str(folder), 50) == "right 0 missing 50"


def test_a_stamp_that_cannot_be_read_is_no_stamp(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = Index(str(folder), TAG)
    index.add(ONE, VolumeKind.DATA, 1, entries(50))
    index.close()
    (folder / "stamp").unlink()
    (folder / "stamp").mkdir()
    assert look_up_all(str(folder), 50) == "right 0 missing 50"


def test_an_index_of_another_repository_is_thrown_away(tmp_path: Path) -> None:
    index = Index(str(tmp_path / "index"), TAG)
    index.add(ONE, VolumeKind.DATA, 1, entries(5))
    index.close()
    other = Index(str(tmp_path / "index"), bytes(32))
    assert other.count() == 0
    other.close()


DIE = "index.add(b'1' * 32, VolumeKind.DATA, 1, entries(300)); os.kill(os.getpid(), signal.SIGKILL)"


def test_after_a_killed_process_the_index_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[bool] = []
    true = index_folder.survives

    def survives(walk: Callable[[], None]) -> bool:
        walked.append(true(walk))
        return walked[-1]

    monkeypatch.setattr(index_folder, "survives", survives)
    assert run(tmp_path, DIE).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "index" / "open").iterdir())) == 1
    index = Index(str(tmp_path / "index"), TAG)
    assert walked == [True]
    assert index.get(blob(3)) == place(3)
    index.close()
    Index(str(tmp_path / "index"), TAG).close()
    assert walked == [True], "only once"
    assert list((tmp_path / "index" / "open").iterdir()) == []


def test_after_a_killed_process_a_broken_index_is_begun_anew(tmp_path: Path) -> None:
    assert run(tmp_path, DIE).returncode == -signal.SIGKILL
    data = tmp_path / "index" / "00000001" / "data.mdb"
    content = bytearray(data.read_bytes())
    for page in range(2 * 4096, len(content), 4096):
        content[page + 16 : page + 4096] = random.Random(page).randbytes(4080)
    data.write_bytes(content)
    index = Index(str(tmp_path / "index"), TAG)
    assert index.count() == 0
    assert not data.exists()
    index.close()


def test_an_open_index_of_a_living_process_is_no_reason_to_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[Callable[[], None]] = []
    monkeypatch.setattr(index_folder, "survives", lambda walk: not walked.append(walk))
    work = "print('open', flush=True); sys.stdin.read()"
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "index"), work=work)
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    Index(str(tmp_path / "index"), TAG).close()
    other.communicate("")
    assert other.returncode == 0
    assert not walked


# ---- where it lies -----------------------------------------------------------------------------------------------------


def test_without_a_folder_the_index_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_folder.tempfile, "tempdir", str(tmp_path))
    index = Index(None, TAG)
    index.add(ONE, VolumeKind.DATA, 1, entries(5))
    assert index.get(blob(2)) == place(2)
    assert Path(index.folder).parent == tmp_path
    index.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "read-only").mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(index_folder.tempfile, "tempdir", str(temporary))
    real = os.access
    monkeypatch.setattr(
        index_folder.os, "access", lambda path, mode: "read-only" not in str(path) and real(path, mode)
    )
    for folder in ("file/index", "read-only"):
        index = Index(str(tmp_path / folder), TAG)
        assert index.folder.startswith(str(temporary))
        index.add(ONE, VolumeKind.DATA, 1, entries(5))
        assert index.get(blob(2)) == place(2)
        index.close()
    assert list(temporary.iterdir()) == []


def test_files_are_for_their_owner(index: Index) -> None:
    for folder, _, files in os.walk(index.folder):
        assert os.stat(folder).st_mode & 0o077 == 0
        assert all(os.stat(os.path.join(folder, f)).st_mode & 0o077 == 0 for f in files)


def test_a_lost_or_damaged_index_is_rebuilt_from_the_volumes(tmp_path: Path) -> None:
    repositories.create(tmp_path)
    with repositories.open_(tmp_path) as repository:
        with repository.writer() as writer:
            ids = [writer.put(Kind.CONTENT, b"%d" % i * i) for i in range(1, 200)]
            writer.flush()
        right = sorted(repository.index.entries())
        folder = Path(repository.index.folder)
    newest = max(f for f in folder.iterdir() if f.name.isdigit())
    (newest / "data.mdb").write_bytes(b"rubbish" * 5000)
    for options in ({}, {"no_cache": True}):
        with repositories.open_(tmp_path, **options) as repository:
            assert sorted(repository.index.entries()) == right
            assert [repository.blobs.get(b, Kind.CONTENT) for b in ids] == [
                b"%d" % i * i for i in range(1, 200)
            ]


def test_a_thorough_look_builds_upon_nothing_that_was_there(tmp_path: Path) -> None:
    """In a tree with a damaged page, what is put is not always found again."""
    trees.make(tmp_path / "source", {b"f": trees.File(trees.noise(5000))})
    repositories.create(tmp_path)
    repositories.snapshot(tmp_path, tmp_path / "source")
    with repositories.open_(tmp_path) as repository:
        index = repository.index
        before, losses, old = {v.name: v.number for v in index.volumes()}, index.losses(), index._here
        rows = sorted(index.entries())
        repository.synchronise(thorough=True)
        assert index._here is not old
        assert {v.name: v.number for v in index.volumes()} == before
        assert sorted(index.entries()) == rows
        assert index.losses() != losses, "what was noted as whole before is not relied on"


@pytest.mark.parametrize("harm", ["flipped", "unreadable"])
def test_neither_does_it_where_a_volume_is_damaged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Of the volume whose directory does not read, what the old one knew is taken over, as far as its tags fit: nothing else
    says where its blobs are, and it may read again."""
    repositories.create(tmp_path)
    with repositories.open_(tmp_path) as repository:
        blobs = {}
        for turn in range(2):
            with repository.writer() as writer:
                for i in range(20):
                    data = trees.noise(30_000, turn * 100 + i)
                    blobs[writer.put(Kind.CONTENT, data)] = data
                writer.flush()
        index, storage = repository.index, repository.storage
        bad, good = index.volumes()
        rows = sorted(index.entries())
        # The old tree: a row of each volume does not say any more what was written.
        flipped = [
            next(key for key, at in rows if at.volume == number) for number in (bad.number, good.number)
        ]
        with index._here._env.begin(write=True, db=index._here._blobs) as txn:
            for key in flipped:
                value = txn.get(key)
                txn.delete(key)
                txn.put(key, value[:-1] + bytes((value[-1] ^ 1,)))
        name = f"data/{bad.name.hex()[:2]}/{bad.name.hex()}"
        if harm == "flipped":
            storage.close()
            data = bytearray(Path(storage.path(name)).read_bytes())
            data[-1] ^= 1
            Path(storage.path(name)).write_bytes(data)
        else:
            real = storage.read

            def read(path: str, offset: int = 0, length: int | None = None) -> bytes:
                if path == name and (length is None or offset + length > bad.size - 100):
                    raise StorageError("Input/output error", errno.EIO)
                return real(path, offset, length)

            monkeypatch.setattr(storage, "read", read)
        old = index._here
        repository.synchronise(thorough=True)
        assert index._here is not old
        assert {v.name: (v.number, v.usable) for v in index.volumes()} == {
            bad.name: (bad.number, False), good.name: (good.number, True)
        }  # fmt: skip
        found = sorted(index.entries())
        assert [row for row in found if row[1].volume == good.number] == [
            row for row in rows if row[1].volume == good.number
        ]
        assert {row for row in found if row[1].volume == bad.number} >= {
            row for row in rows if row[1].volume == bad.number and row[0] not in flipped
        }
        for blob, data in blobs.items():
            if harm == "flipped" or blob[:16] not in flipped:
                assert repository.blobs.get(blob, Kind.CONTENT) == data


def test_a_number_is_given_once(tmp_path: Path) -> None:
    index = Index(str(tmp_path / "index"), TAG)
    try:
        assert [index.add(name, VolumeKind.DATA, 1, entries(2)) for name in (ONE, TWO)] == [1, 2]
        index.replace([FoundVolume(TWO, VolumeKind.DATA, 1, list(entries(2)), True)])
        assert [v.number for v in index.volumes()] == [2]
        assert index.add(b"3" * 32, VolumeKind.DATA, 1, entries(2)) == 3
        assert index.add(ONE, VolumeKind.DATA, 1, entries(2)) == 1
    finally:
        index.close()


def test_volumes_that_are_forgotten_leave_the_others_whole(index: Index) -> None:
    """Many blobs are in several of them: after a delete among equal keys, a cursor of LMDB took live rows with it."""
    shared = entries(3000)
    names = [bytes([n]) * 32 for n in range(1, 7)]
    for n, name in enumerate(names):
        index.add(name, VolumeKind.DATA, 4096, shared[n * 100 : n * 100 + 2000])
    gone = {names[0], names[2], names[5]}
    losses = index.losses()
    index.forget([*gone, b"x" * 32])
    assert {volume.name for volume in index.volumes()} == set(names) - gone
    assert index.losses() == losses + 3
    numbers = {volume.name: volume.number for volume in index.volumes()}
    for i in range(2500):
        want = {
            numbers[name] for n, name in enumerate(names) if name in numbers and n * 100 <= i < n * 100 + 2000
        }
        assert {at.volume for at in index.copies(blob(i))} == want, i
    assert index.count() == 3 * 2000


def test_a_number_is_not_given_again_after_its_volume_was_forgotten(tmp_path: Path) -> None:
    first = Index(str(tmp_path / "index"), TAG)
    assert first.add(ONE, VolumeKind.DATA, 4096, entries(10)) == 1
    assert first.add(TWO, VolumeKind.DATA, 4096, entries(10)) == 2
    first.forget([TWO])
    first.close()
    second = Index(str(tmp_path / "index"), TAG)
    assert second.add(b"3" * 32, VolumeKind.DATA, 4096, entries(10)) == 3
    second.close()


def test_memory_is_not_written_into_the_index(tmp_path: Path) -> None:
    """Pages of LMDB have unused room, which was whatever malloc had given out before."""
    canary = b"this was in the memory of the program"
    held = [bytearray(canary * (size // len(canary))) for size in range(2000, 40_000, 40)]
    del held
    index = Index(str(tmp_path / "index"), TAG)
    for n in range(20):
        rows = [
            (BlobId(random.Random(n * 1000 + m).randbytes(32)), Location(0, m, 1, 0, 9, m, 1))
            for m in range(200)
        ]
        index.add(bytes([n]) * 32, VolumeKind.DATA, 1000, rows)
        held = [bytearray(canary * 50) for _ in range(200)]
        del held
    index.close()
    for path in (tmp_path / "index").rglob("data.mdb"):
        assert canary not in path.read_bytes()
