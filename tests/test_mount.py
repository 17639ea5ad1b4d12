"""Real mounts: what tools see through the kernel, what damage does, how a mount begins and ends."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapfs.fs import mountpoint as points
from snapfs.fs.background import mount_in_background
from snapfs.fs.mount import MountOptions, mount
from snapfs.fs.mounts import Mount, obstacles
from snapfs.repo.errors import MountError, WrongPassword
from support import ordinary, repositories, trees
from support.cli import Cli
from support.mounts import NOBODY, device_for_everyone, finish, mounted, run_as, start
from support.same import differences, on_disk
from support.trees import Dir, File, Name

LARGE = trees.noise(12_000_000)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def make_home(home: Path, tree: trees.Tree) -> Path:
    trees.make(home / "source", tree)
    repositories.create(home)
    repositories.snapshot(home, home / "source")
    return home


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source that has one of everything, and a repository with one snapshot of it."""
    return make_home(tmp_path_factory.mktemp("odd"), {**trees.ODD, b"large": File(LARGE)})


@pytest.fixture(scope="module")
def odd_top(odd: Path) -> Iterator[Path]:
    """The source as it is seen in a mount of all snapshots."""
    with mounted(odd) as top:
        yield Path(f"{top}/snapshots/latest{odd}/source")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "replace")


def test_nothing_is_lost(odd: Path, odd_top: Path) -> None:
    assert differences(on_disk(odd / "source"), on_disk(odd_top)) == []


def test_nothing_is_lost_where_the_kernel_checks_permissions(odd: Path) -> None:
    """With allow_other the kernel reads ACLs itself."""
    with mounted(odd, part=os.fsencode(odd / "source"), allow_other=True) as top:
        assert differences(on_disk(odd / "source"), on_disk(top)) == []
        if os.geteuid() == 0 and os.stat(odd.parent).st_mode & 0o005 == 0o005:
            assert run_as(NOBODY, "cat", top / "modes/0400").returncode != 0


def test_link_counts_and_times(odd: Path, odd_top: Path) -> None:
    for name in ("links/one", "links/deep/three", "special/fifo", "links/soft"):
        want, got = os.lstat(odd / "source" / name), os.lstat(odd_top / name)
        assert got.st_nlink == want.st_nlink
        assert got.st_ctime_ns == want.st_ctime_ns
        assert got.st_atime_ns == want.st_mtime_ns


def test_cp_brings_everything_back(odd: Path, odd_top: Path, tmp_path: Path) -> None:
    run("cp", "-a", odd_top, tmp_path / "copy")
    assert differences(on_disk(odd / "source"), on_disk(tmp_path / "copy")) == []


def test_rsync_finds_nothing_to_do(odd: Path, odd_top: Path) -> None:
    assert run("rsync", "-aHAX", "-n", "-i", "--checksum", "--delete", f"{odd_top}/", f"{odd}/source/") == ""


def test_tar_reads_what_diff_finds_equal(odd: Path, odd_top: Path, tmp_path: Path) -> None:
    run("tar", "-cf", tmp_path / "t", "--exclude=./special", "-C", odd_top, ".")
    (tmp_path / "t.d").mkdir()
    run("tar", "-xf", tmp_path / "t", "-C", tmp_path / "t.d")
    run("diff", "-r", "--no-dereference", "-x", "special", odd_top, tmp_path / "t.d")


def test_reading_at_any_place(odd_top: Path) -> None:
    rng = random.Random(3)
    with open(odd_top / "large", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for _ in range(60):
            at, size = rng.randrange(len(LARGE) + 10), rng.choice((1, 4096, 70_000, 1_500_000))
            assert os.pread(f.fileno(), size, at) == LARGE[at : at + size]
            at = rng.randrange(len(LARGE))
            assert mapped[at : at + size] == LARGE[at : at + size]


def test_many_readers_at_once(odd: Path, odd_top: Path) -> None:
    names = [
        path.relative_to(odd / "source")
        for path in (odd / "source").rglob("*")
        if not path.is_symlink() and path.is_file()
    ]

    def same(seed: int) -> bool:
        mine = random.Random(seed).sample(names, len(names))
        return all((odd / "source" / name).read_bytes() == (odd_top / name).read_bytes() for name in mine)

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(same, range(12)))


def test_listing_goes_on_where_seekdir_says(tmp_path: Path) -> None:
    make_home(tmp_path, {b"many/%05d" % i: File(b"") for i in range(3000)})
    with mounted(tmp_path, part=os.fsencode(tmp_path / "source")) as top:
        assert sorted(os.listdir(top / "many")) == [f"{i:05}" for i in range(3000)]
        assert len(run("ls", "-a", "-f", top / "many").split()) == 3002
        assert run("find", top / "many", "-type", "f", "-name", "02999").count("\n") == 1
        assert len({entry.inode() for entry in os.scandir(top / "many")}) == 3000


def test_every_write_is_refused(odd_top: Path) -> None:
    file, folder = odd_top / "links/one", odd_top / "links"
    attempts: list[Callable[[], object]] = [
        lambda: file.open("r+b"), lambda: (folder / "new").touch(), lambda: os.truncate(file, 0),
        lambda: os.unlink(file), lambda: os.mkdir(folder / "d"), lambda: os.rmdir(folder / "deep"),
        lambda: os.rename(file, folder / "x"), lambda: os.link(file, folder / "x"), lambda: os.symlink("x", folder / "x"),
        lambda: os.mkfifo(folder / "x"), lambda: os.chmod(file, 0), lambda: os.chown(file, 0, 0),
        lambda: os.utime(file), lambda: os.setxattr(file, "user.x", b""), lambda: os.removexattr(file, "user.x"),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError) as caught:
        os.getxattr(file, "user.none")
    assert caught.value.errno == errno.ENODATA


def test_the_mount_says_what_it_is(odd_top: Path) -> None:
    top = str(odd_top).partition("/snapshots/")[0]
    (line,) = (line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {top} " in line)
    assert " fuse.snapfs snapfs " in line
    assert {"ro", "nosuid", "nodev"} <= set(line.split(" ")[5].split(","))
    assert os.statvfs(odd_top).f_namemax == 255
    assert os.statvfs(odd_top).f_blocks > 0


def soon(question: Callable[[], bool]) -> bool:
    """Whether it comes true within seconds: the kernel may take folders of snapshots for unchanged for a second."""
    end = time.monotonic() + 5
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer


def test_snapshots_made_while_mounted_appear(tmp_path: Path) -> None:
    make_home(tmp_path, {b"file": File(b"one")})
    with mounted(tmp_path) as top:
        latest = Path(f"{top}/snapshots/latest{tmp_path}/source/file")
        assert latest.read_bytes() == b"one"
        first = os.listdir(top / "ids")
        trees.make(tmp_path / "source", {b"file": File(b"two")})
        second = repositories.snapshot(tmp_path, tmp_path / "source", tags=(b"t",), time=2**61)
        assert soon(lambda: latest.read_bytes() == b"two")
        assert sorted(os.listdir(top / "ids")) == sorted([*first, second.short])
        assert os.listdir(top / "tags") == ["t"]
        with repositories.open_(tmp_path) as repository:
            repository.events.forget([second.id])
        assert soon(lambda: latest.read_bytes() == b"one")
        assert os.listdir(top / "ids") == first
        assert soon(lambda: not (top / "ids" / second.short).exists())


@as_root
def test_owner_root(odd: Path) -> None:
    with mounted(odd, part=os.fsencode(odd / "source/owners"), owner_root=True) as top:
        assert {(s.st_uid, s.st_gid) for s in map(os.lstat, top.rglob("*"))} == {(0, 0)}


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has", [False, True])
def test_one_snapshot_is_asked_for_attributes_only_if_it_has_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has: bool
) -> None:
    """The kernel gives up asking for good: so only where nothing can come, and never in the folders of all snapshots."""
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    source, top = cli.source, tmp_path / "top"
    trees.make(source, {b"a": File(b"content"), b"b": File(b"other")})
    top.mkdir()
    if has:
        os.setxattr(source / "b", "user.kept", b"value")
    cli("backup", source).ok()
    for spec, below in ((f"latest:{source}", top), ("", top / f"snapshots/latest{source}")):
        assert cli.process("mount", top, *([spec] if spec else [])).returncode == 0
        try:
            if spec and not has:
                with pytest.raises(OSError, match=os.strerror(errno.ENOTSUP)):
                    os.listxattr(below / "b")
            else:
                assert os.listxattr(below / "b") == (["user.kept"] if has else [])
            run("cp", "-a", below, tmp_path / "copy")
            assert list(differences(on_disk(source), on_disk(tmp_path / "copy"))) == []
            run("rsync", "-aHAX", "--checksum", f"{below}/", tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
        finally:
            cli("umount", top).ok()


def test_damage_is_an_error_for_its_range_only(tmp_path: Path) -> None:
    make_home(tmp_path, {b"large": File(LARGE), b"small": File(trees.noise(30_000, 9))})
    (volume,) = (
        path
        for path in (tmp_path / "repository/data").rglob("*")
        if path.is_file() and path.stat().st_size > 7_000_000
    )
    with open(volume, "r+b") as f:
        f.seek(2_000_000)
        byte = f.read(1)
        f.seek(2_000_000)
        f.write(bytes([byte[0] ^ 1]))
    server = start(tmp_path, tmp_path / "mnt", part=os.fsencode(tmp_path / "source"), cache_bytes=1 << 20)
    try:
        bad = at = 0
        with open(tmp_path / "mnt/large", "rb", buffering=0) as f:
            while at < len(LARGE):
                try:
                    data = os.pread(f.fileno(), 65536, at)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    bad, at = bad + 4096, at + 4096
                    continue
                assert data == LARGE[at : at + len(data)] != b""
                at += len(data)
        assert 0 < bad <= 2 << 20  # one blob of at most 1 MiB, and what the kernel's read-ahead makes of it
        assert (tmp_path / "mnt/small").read_bytes() == trees.noise(30_000, 9)
    finally:
        server.terminate()
        said = finish(server)
    assert "read: input/output error" in said
    assert "large" not in said
    assert "Traceback" not in said


def test_a_lost_tree_volume_is_an_error_and_not_an_empty_folder(tmp_path: Path) -> None:
    make_home(tmp_path, {b"a/b": File(b"x")})
    with mounted(tmp_path) as top:
        shutil.rmtree(tmp_path / "repository/trees")
        (snapshot,) = (top / "ids").iterdir()
        with pytest.raises(OSError) as caught:
            os.listdir(snapshot)
        assert caught.value.errno == errno.EIO
        assert len(os.listdir(top / "ids")) == 1


# ---- beginning and ending --------------------------------------------------------------------------------------------


@as_root
def test_an_ordinary_user_mounts_through_fusermount() -> None:
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snapfs-test-", dir="/var/tmp")))
        stack.enter_context(device_for_everyone())
        os.chmod(home, 0o755)
        make_home(
            home,
            {
                b"a/file": File(b"mine"),
                b"secret": File(b"s", mode=0o000),
                b"dir": Dir(),
                b"b": Name(of=b"a/file"),
            },
        )
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        with mounted(home, user=NOBODY) as top:
            source = Path(f"{top}/snapshots/latest{home}/source")
            assert run_as(NOBODY, "diff", "-r", "-x", "secret", source, home / "source").returncode == 0
            assert (
                run_as(NOBODY, "cat", source / "secret").stdout == b"s"
            )  # whoever has the password may read everything
            assert run_as(NOBODY, "find", top, "-ls").returncode == 0
            with pytest.raises(PermissionError):
                os.listdir(top)  # root is another user to it
        server = start(home, home / "mnt", user=NOBODY)
        assert run_as(NOBODY, "fusermount3", "-u", home / "mnt").returncode == 0
        finish(server)


ORDINARY = """
export SNAPFS_REPOSITORY=$HOME/repository SNAPFS_PASSWORD=secret
id -u
snapfs init --quiet
mkdir source source/folder past
printf content > source/folder/file
ln source/folder/file source/hard
ln -s folder/file source/soft
printf hidden > source/closed
chmod 600 source/folder/file
snapfs backup --quiet source
chmod 000 source/closed
snapfs backup --quiet source || echo backup $?
snapfs mount past
trap 'fusermount3 -quz past || true' EXIT  # also after a failure: nothing is to go on serving
grep -q " $HOME/past .* fuse.snapfs " /proc/self/mountinfo
ls past past/snapshots/latest"$HOME"/source
stat -c '%a %U' past/snapshots/latest"$HOME"/source/folder/file
cp -a past/snapshots/latest"$HOME"/source copied
rsync -aHAX past/snapshots/latest"$HOME"/source/ synced/
for copy in copied synced past/snapshots/latest"$HOME"/source; do
    diff -r --no-dereference --exclude closed source "$copy"
    test "$(stat -c '%h %a %Y' "$copy/hard")" = "$(stat -c '%h %a %Y' source/hard)"
done
snapfs umount past
ls -A past
if grep " $HOME/past " /proc/self/mountinfo; then exit 1; fi
snapfs restore --quiet latest -t restored
diff -r --no-dereference --exclude closed source restored"$HOME"/source
snapfs --quiet check
echo all done
"""


def test_everything_works_for_an_ordinary_user() -> None:
    """The real command in processes of its own, none of which was ever root's."""
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir="/var/tmp") as folder:
        done = ordinary.shell(ORDINARY, Path(folder))
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    name = pwd.getpwuid(user).pw_name
    said = done.stdout.replace(folder, "~")
    assert done.returncode == 0, said
    for line in (
        f"{user}", "error: ~/source/closed: Permission denied", "backup 3", "hosts", "ids", "snapshots", "tags",
        "folder", "hard", "soft", f"600 {name}", "all done",
    ):  # fmt: skip
        assert line in said.splitlines(), said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_unmount(odd: Path, number: signal.Signals) -> None:
    server = start(odd, odd / "signalled")
    server.send_signal(number)
    finish(server)
    assert os.listdir(odd / "signalled") == []


def test_umount_names_those_who_keep_it_busy(odd: Path) -> None:
    top = odd / "busy"
    server = start(odd, top)
    with (
        open(next((top / "ids").iterdir()) / str(odd / "source/large")[1:], "rb"),
        pytest.raises(MountError) as caught,
    ):
        points.unmount(str(top))
    assert f"({os.getpid()})" in str(caught.value)
    points.unmount(str(top))
    finish(server)
    with pytest.raises(MountError, match="no snapfs mount"):
        points.unmount(str(top))


def test_they_are_named_where_the_way_there_is_a_link(odd: Path) -> None:
    (odd / "behind a link").mkdir()
    (odd / "link").symlink_to("behind a link")
    server = start(odd, odd / "behind a link/top")
    with (
        open(next((odd / "link/top/ids").iterdir()) / str(odd / "source/large")[1:], "rb"),
        pytest.raises(MountError, match=rf"\({os.getpid()}\)"),
    ):
        points.unmount(str(odd / "link/top"))
    points.unmount(str(odd / "link/top"))
    finish(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_asks_twice_for_its_end_gets_it_as_well(odd: Path, number: signal.Signals) -> None:
    """While the first waits for a read from a slow disk."""
    top = odd / "twice"
    server = start(odd, top, part=os.fsencode(odd / "source"), program="support.late")
    reader = threading.Thread(target=_read_somehow, args=(top / "large",))
    reader.start()
    time.sleep(0.3)
    for _ in range(2):
        server.send_signal(number)
        time.sleep(0.2)
    assert finish(server) == ""
    reader.join()
    assert os.listdir(top) == []


def _read_somehow(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.read_bytes()


def _first_of(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # one request, and no more
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def test_a_request_that_is_gone_again_holds_nobody_up(odd: Path) -> None:
    """Who asked was killed after the loop had seen the request and before it read it."""
    top, late = odd / "gone again", odd / "late"
    server = start(odd, top, part=os.fsencode(odd / "source"), program="support.late")
    read: list[int] = []
    reader = threading.Thread(target=lambda: read.append(len(_first_of(top / "large"))))
    reader.start()
    time.sleep(0.5)  # a worker is at it now
    late.touch()
    asking = subprocess.Popen(["stat", top / "nothing"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.15)
    asking.kill()
    asking.wait()
    late.unlink()
    reader.join(6)
    held_up = reader.is_alive()
    if held_up:
        os.listdir(top)  # lets it go on
        reader.join()
    server.terminate()
    finish(server)
    assert not held_up
    assert read == [100]


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[None]:
    run("mount", "-t", "tmpfs", "none", place)
    try:
        yield
    finally:
        run("umount", place)


@as_root
def test_umount_names_the_mount_that_stands_in_the_way(odd: Path) -> None:
    top = odd / "above" / "covered"
    top.parent.mkdir()
    server = start(odd, top)
    for place in (top / "ids", top, top.parent):
        with tmpfs(place), pytest.raises(MountError) as caught:
            points.unmount(str(top))
        assert f"{place} (tmpfs) is mounted in it or over it" in str(caught.value)
    with tmpfs(top), tmpfs(top), pytest.raises(MountError, match="tmpfs"):
        points.unmount(str(top))
    points.unmount(str(top))
    finish(server)


def test_which_mounts_stand_in_the_way() -> None:
    disk, home = Mount(1, 0, "/", "ext4"), Mount(2, 1, "/home", "ext4")
    ours = Mount(3, 2, "/home/me/past", "fuse.snapfs")
    inside, over = Mount(4, 3, "/home/me/past/ids", "tmpfs"), Mount(5, 3, "/home/me/past", "tmpfs")
    hiding, over_that = Mount(6, 2, "/home/me", "tmpfs"), Mount(7, 6, "/home/me", "nfs")
    beside, like_it = Mount(8, 2, "/home/me/pa", "tmpfs"), Mount(9, 2, "/home/me/past2", "fuse.snapfs")
    innocent = [disk, home, ours, beside, like_it]
    assert obstacles(ours, innocent) == []
    assert obstacles(ours, [*innocent, inside, over, hiding, over_that]) == [inside, over, hiding]
    assert obstacles(ours, [Mount(1, 1, "/", "ext4"), ours._replace(parent=1)]) == [], "a root on itself"


def test_after_a_crash_the_mountpoint_is_broken_and_not_empty(odd: Path) -> None:
    top = odd / "crashed"
    server = start(odd, top)
    server.kill()
    finish(server, -signal.SIGKILL)
    try:
        with pytest.raises(OSError) as caught:
            os.listdir(top)
        assert caught.value.errno == errno.ENOTCONN
        with repositories.open_(odd) as repository, pytest.raises(MountError, match="umount"):
            mount(repository, str(top))
    finally:
        points.unmount(str(top))
    assert os.listdir(top) == []


def test_places_that_cannot_be_mounted_on(odd: Path, odd_top: Path) -> None:
    mounted_at = str(odd_top).partition("/snapshots/")[0]
    with repositories.open_(odd) as repository:
        for place, reason in (
            (odd / "nowhere", "does not exist"), (odd / "source/large", "not a folder"), (mounted_at, "already"),
            (odd / "repository/data", "in one another"), (odd / "repository", "in one another"), (odd, "in one another"),
        ):  # fmt: skip
            with pytest.raises(MountError, match=reason):
                mount(repository, str(place))
        file = repository.trees.resolve(
            repository.snapshots()[0].record.root, os.fsencode(odd / "source/large")
        )
        (odd / "unused").mkdir(exist_ok=True)
        with pytest.raises(MountError, match="only a folder"):
            mount(repository, str(odd / "unused"), MountOptions(root=file))


# ---- in the background -----------------------------------------------------------------------------------------------


def test_in_the_background(odd: Path) -> None:
    top, log = odd / "background", odd / "mount.log"
    top.mkdir()

    def serve(ready: Callable[[], None]) -> None:
        with repositories.open_(odd) as repository:
            mount(repository, str(top), MountOptions(), ready)

    child = mount_in_background(serve, str(log))
    assert len(os.listdir(top / "ids")) == 1
    assert os.readlink(f"/proc/{child}/cwd") == "/", "else the disk of that folder could not be unmounted"
    points.unmount(str(top))
    assert os.waitpid(child, 0) == (child, 0)
    assert log.stat().st_mode & 0o777 == 0o600


def test_in_the_background_failures_are_told(odd: Path) -> None:
    def wrong(ready: Callable[[], None]) -> None:
        raise WrongPassword("wrong password")

    with pytest.raises(MountError, match="wrong password") as caught:
        mount_in_background(wrong, str(odd / "log"))
    assert caught.value.exit_code == WrongPassword.exit_code
    with pytest.raises(MountError, match="died"):
        mount_in_background(lambda ready: os._exit(3), str(odd / "log"))
    with pytest.raises(MountError, match="ZeroDivisionError"):
        mount_in_background(lambda ready: print(1 // 0), str(odd / "log"))
    assert threading.active_count() < 50
