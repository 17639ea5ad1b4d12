"""Make a new repository in an empty folder."""

from __future__ import annotations

import hashlib
import os

import platformdirs

from snapfs.repo.client import Client
from snapfs.repo.config import verify_config
from snapfs.repo.errors import RepositoryExists, StorageError
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.keyslot import Cost
from snapfs.repo.format.records import Bundle, Config
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.keys import Keys
from snapfs.repo.model import KiB, MiB
from snapfs.repo.parity import FOLDER, MARKER, Parity
from snapfs.repo.slots import KeySlots
from snapfs.repo.storage.local import FOLDERS, LocalStorage
from snapfs.repo.system import System

README = """\
This folder is a snapfs repository: encrypted, deduplicated backups.  Please change nothing in it.

    config    what kind of repository this is        data/    volumes with the content of files
    keys/     key slots, opened by passwords         trees/   volumes with directories
    events/   snapshots, tags and other events       tmp/     unfinished writes
    parity/   what damaged volumes can be mended with, if that is kept

To get at your files you need the password, or a recovery key, and snapfs:

    snapfs -r THIS-FOLDER mount SOME-EMPTY-FOLDER

If snapfs is gone: its source has docs/format.md, which says what every byte here means, and docs/reader.py, one file
that extracts any snapshot with nothing but Python and the packages cryptography, zstandard and blake3.

Every file in data/, trees/, events/ and keys/ is named by the SHA-256 of its bytes: `sha256sum` finds damage without a key.
"""


def create(place: str, password: bytes | bytearray, *, cost: Cost = Cost(), volume_size: int = L.VOLUME_SIZE,
           chunks: tuple[int, int, int] = (256 * KiB, MiB, 4 * MiB), label: str = "", host: str = "", user: str = "",
           parity: bool = False, remember_in: str | None = None, system: System = System()) -> bytes:  # fmt: skip
    """Make an empty repository in a folder that is absent, empty, or left half-made; returns its id (16 bytes).

    `parity`: whether it is kept; `remember_in`: the folder of states in which it is noted that this machine made it.
    The config is written last: before it is there, there is no repository.  Raises RepositoryExists, StorageError.
    """
    try:
        os.makedirs(place, 0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {place}: {error.strerror}", error.errno) from error
    storage = LocalStorage(place)
    _refuse_occupied(storage)
    storage.make_folders()
    repository = system.salt()[:16]
    config = records.check_config(
        Config(1, repository, (), (), (), *chunks, volume_size, system.now()), "new repository"
    )
    bundle = Bundle(1, 1, Keys.generate(system), records.encode(config))
    storage.put("README.txt", README.encode())
    if parity:
        Parity(storage).keep()
    elif Parity(storage).is_kept():  # one that was killed was to keep it
        storage.remove(MARKER)
    keys, nobody = Keys(bundle, "new repository"), Client(None, system)
    events = Events(storage, keys, repository, nobody, system)
    KeySlots(storage, repository, bundle, "", events, nobody, system).add(
        password, cost=cost, label=label, host=host, user=user
    )
    data = seal_record(keys.sealer(L.CONFIG, repository, system), bundle.config)
    storage.put("config", data, lambda back: verify_config(keys, back, bundle))
    if storage.read("config") != data:
        raise RepositoryExists(f"{place}: somebody else made a repository here at the same moment", place)
    if remember_in is not None:
        state = os.path.join(remember_in, state_name(repository, storage))
        Client(state, system, storage.real_path).remember(created=keys.fingerprint)
    storage.close()
    return repository


def default_state_dir() -> str:
    """Where this user's machine keeps what it remembers of repositories."""
    return platformdirs.user_state_dir("snapfs", appauthor=False)


def state_name(repository: bytes, storage: LocalStorage) -> str:
    """The name of the folder of what this machine remembers of a repository at this place."""
    return f"{repository.hex()}-{hashlib.sha256(storage.identity).hexdigest()[:16]}"


def _refuse_occupied(storage: LocalStorage) -> None:
    if storage.size("config") is not None:
        raise RepositoryExists(f"{storage.place}: there is a repository here already", storage.place)
    strangers = set(os.listdir(storage.place)) - {*FOLDERS, FOLDER, "README.txt"}
    if strangers or any(True for folder in ("data", "trees") for _ in storage.list(folder)):
        raise RepositoryExists(
            f"{storage.place}: the folder is not empty (it holds {sorted(strangers)[0] if strangers else 'volumes'!s}): "
            "choose an empty one", storage.place,
        )  # fmt: skip
    for folder in ("keys", "events"):  # left by an init that was killed: nobody can have used them
        for name, _ in list(storage.list(folder)):
            storage.remove(name)
