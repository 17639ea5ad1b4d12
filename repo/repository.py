"""Open and close a repository: wires storage, keys, index, blobs, trees and events, and holds no algorithm of theirs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Self

import platformdirs

from snapfs.repo.blobs import CACHE_BYTES, BlobReader
from snapfs.repo.client import Client
from snapfs.repo.config import open_config, repository_id
from snapfs.repo.content import Contents
from snapfs.repo.creation import create, default_state_dir, state_name
from snapfs.repo.errors import BackupOnly, RepositoryError, RolledBack
from snapfs.repo.events import Events
from snapfs.repo.format import records
from snapfs.repo.format.keyslot import Cost
from snapfs.repo.format.records import Bundle, Config
from snapfs.repo.index import Index
from snapfs.repo.index_folder import retire
from snapfs.repo.inventory import synchronise
from snapfs.repo.keys import Keys
from snapfs.repo.model import VolumeKind
from snapfs.repo.own_events import OwnEvents
from snapfs.repo.own_pages import OwnPages
from snapfs.repo.packing import BlobWriter
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.slots import KeySlots, import_slot, open_with
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.locks import Lease
from snapfs.repo.system import System
from snapfs.repo.trees import Trees
from snapfs.repo.volumes import Volumes


class Repository:
    """An open repository.  The index is opened on first use, so a fork between open() and that is safe."""

    def __init__(self, storage: LocalStorage, config: Config, keys: Keys, bundle: Bundle, slot: str, client: Client,
                 index_folder: str | None, cache_bytes: int, progress: Progress, system: System) -> None:  # fmt: skip
        self.storage = storage
        self.id = config.repository
        self.config = config
        self.keys = keys
        self.client = client
        self.system = system
        self.cache_bytes = cache_bytes
        self.config_problem: str | None = None
        """What is wrong with the config's file, where its copy in the key slot is used."""
        self._index_folder = index_folder
        self._progress = progress
        self._said: set[str] = set()
        self.volumes = Volumes(storage, keys, self.id, lambda name: client.remember_damage([name]))
        events = Events if keys.can_read else OwnEvents
        self.events = events(storage, keys, self.id, client, system)
        self.slots = KeySlots(storage, self.id, bundle, slot, self.events, client, system)

    # ---- create and open -----------------------------------------------------------------------------------------

    create = staticmethod(create)

    @staticmethod
    def open(place: str, password: bytes | bytearray, *, cache_dir: str | None = None, state_dir: str | None = None,
             no_cache: bool = False, cache_bytes: int = CACHE_BYTES, progress: Progress = SILENT,
             system: System = System(), newest: bool = False, backing_up: bool = False) -> Repository:  # fmt: skip
        """Open with a password.  Raises RepositoryNotFound, WrongPassword, UnsupportedFormat, Damaged, StorageError, and
        BackupOnly for a password that can do nothing else, unless that is all that is asked for (`backing_up`).

        cache_dir and state_dir default to the XDG folders; neither needs to be writable.  `newest`: of several key slots that it
        opens, that with the newest keys, which takes a derivation for each slot there is.
        """
        storage = LocalStorage(place, progress.notice)
        try:
            return Repository._open(
                storage, password, cache_dir, state_dir, no_cache, cache_bytes, progress, system, newest, backing_up
            )  # fmt: skip
        except BaseException:
            storage.close()
            raise

    @staticmethod
    def _open(storage: LocalStorage, password: bytes | bytearray, cache_dir: str | None, state_dir: str | None, no_cache: bool,
              cache_bytes: int, progress: Progress, system: System, newest: bool, backing_up: bool) -> Repository:  # fmt: skip
        repository = repository_id(storage)
        here = state_name(repository, storage)
        # Absolute, as the storage is: a mount in the background does not stay in the working directory.
        state_dir = os.path.abspath(state_dir or default_state_dir())
        cache_dir = os.path.abspath(cache_dir or platformdirs.user_cache_dir("snapfs", appauthor=False))
        client = Client(os.path.join(state_dir, here), system, storage.real_path)
        slot, bundle = open_with(password, storage, repository, client.slot_hint, newest=newest)
        keys = Keys(bundle, f"keys/{slot[:8]}")
        if not keys.can_read:
            if not backing_up:
                raise BackupOnly
            # Of its own: who opens everything from the same account knows other things, and is another client.
            here += f"-{keys.client.hex()}"
            client = Client(os.path.join(state_dir, here), system, storage.real_path, keys.client)
        config, problem = open_config(storage, keys, bundle, repository)
        client.remember(slot=slot)
        index_folder = None if no_cache else os.path.join(cache_dir, here, _index_name(keys.epoch))
        opened = Repository(
            storage, config, keys, bundle, slot, client, index_folder, cache_bytes, progress, system
        )
        opened.config_problem = problem
        ended = (problem is not None or (not newest and opened.slots.has_others())) and opened._keys_ended()
        if ended and not newest:
            # An old slot of this password, put back or left by a rotation that was killed, must not hide the new one.
            return Repository._open(
                storage, password, cache_dir, state_dir, no_cache, cache_bytes, progress, system, True, backing_up
            )  # fmt: skip
        if problem is not None and not ended:
            progress.notice(f"the config cannot be used ({problem}): going on with the copy in the key slot")
        return opened

    def _keys_ended(self) -> bool:
        """Whether newer keys took the place of these, as far as the events can be read."""
        with contextlib.suppress(RepositoryError):  # which those say who need the events
            return self.events.load().closed is not None
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if "index" in self.__dict__:
            self.index.close()
        if (pages := self.__dict__.get("own_pages")) is not None:
            pages.close()
        self.storage.close()
        self.volumes.close()
        self.keys.wipe()

    # ---- what it is made of, opened when first used --------------------------------------------------------------

    @cached_property
    def index(self) -> Index:
        index = Index(self._index_folder, self.keys.index_tag)
        if self._index_folder is not None:
            for epoch in range(1, self.keys.epoch):
                retire(os.path.join(os.path.dirname(self._index_folder), _index_name(epoch)))
        self.__dict__["index"] = index  # synchronise() comes back here
        if not index.volumes():
            self.synchronise()
        return index

    @cached_property
    def own_pages(self) -> OwnPages | None:
        """What a machine that can only back up has of its own last snapshots."""
        if self.keys.can_read:
            return None
        return OwnPages(
            None if self._index_folder is None else os.path.dirname(self._index_folder), self.keys
        )

    def earlier(self, paths: Sequence[bytes]) -> State:
        """Where to look for snapshots that another one of these paths may go on from."""
        return self.events.load() if self.own_pages is None else self.own_pages.earlier(paths)

    @cached_property
    def blobs(self) -> BlobReader:
        if self.own_pages is not None:
            return self.own_pages
        return BlobReader(
            self.index, self.volumes, self.keys, self.synchronise, self.cache_bytes, self.note_damaged
        )

    @cached_property
    def trees(self) -> Trees:
        return Trees(self.blobs)

    @cached_property
    def contents(self) -> Contents:
        return Contents(self.blobs)

    @property
    def cache_folder(self) -> str | None:
        """Where the index lies, those of earlier keys, and what a machine that can only back up keeps: not to be backed up."""
        return None if self._index_folder is None else os.path.dirname(self._index_folder)

    def tell_what_is_forgotten(self) -> None:
        """To a machine that can only back up: where its index is gone, nothing brings it back."""
        if not self.keys.can_read and self.client.remembered.heads and not self.index.volumes():
            self._say_once(
                "what this machine knew of its earlier backups is gone (its cache was deleted or damaged), and its key cannot "
                "read it here: everything is stored once more; a prune with the whole key frees what is there twice"
            )

    @property
    def created_here(self) -> bool:
        """Whether this machine made it, and remembers that: else its snapshots may be anybody's."""
        return self.client.created(self.keys.fingerprint)

    def snapshots(self) -> list[StoredSnapshot]:
        """Complete and not forgotten, ascending by time.  What is wrong with the events is said once."""
        state = self.events.load()
        for said in (*state.problems, *state.notices):
            self._say_once(said)
        return state.snapshots

    def refuse_rollback(self, accept: bool = False) -> None:
        """Raise RolledBack if events are gone that were here; `accept`: take that for right, and remember it.

        What this machine cannot know, because it was not here before, is said.
        """
        state = self.events.load()
        for said in state.notices:
            self._say_once(said)
        if self.client.was_damaged:
            self._say_once(
                "what this machine remembered of this repository is damaged: it begins anew as a new client, and cannot tell "
                "whether the repository was put back to an older state since"
            )
        elif (
            self.client.is_new
            and not self.client.is_unreadable
            and not self.client.predecessors
            and state.snapshots
        ):
            self._say_once(
                "this machine uses this repository at this place for the first time: it cannot tell whether it was put back to "
                "an older state before now"
            )
        if state.missing:
            if not accept:
                raise RolledBack(list(state.missing.values()))
            self.events.accept()

    def _say_once(self, notice: str) -> None:
        if notice not in self._said:
            self._said.add(notice)
            self._progress.notice(notice)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Lease]:
        """For all who make a snapshot live: from here on, no volume is removed that is there afterwards, and the keys are not
        changed.  Entered before the volumes are looked at, left after the commit; leftovers of dead writers are swept.

        Raises OldKeys if the keys were changed."""
        lease = Lease(self.storage.locks)
        try:
            self.events.refuse_old_keys()
            self.storage.sweep()
            yield lease
        finally:
            lease.release()

    def writer(
        self, *, compression: str = "auto", volume_size: int | None = None, avoid: Collection[int] = ()
    ) -> BlobWriter:
        return BlobWriter(
            self.index, self.volumes, self.keys, self.id, self.system, self.client.id, compression=compression,
            volume_size=volume_size or self.config.volume_size, largest_blob=self.config.chunk_maximum, avoid=avoid,
            keep=None if self.own_pages is None else self.own_pages.keep,
        )  # fmt: skip

    def synchronise(self, thorough: bool = False, progress: Progress | None = None) -> bool:
        """Compare the index with the volumes there are; True if anything changed.  `thorough`: down to their directories."""
        damaged = self.client.remembered.damaged
        return synchronise(
            self.index, self.volumes, progress or self._progress, thorough, damaged, self.trusts,
            can_read=self.keys.can_read,
        )  # fmt: skip

    def trusts(self, kind: VolumeKind, name: bytes) -> bool:
        """Whether the directory of a volume may be relied on: not where somebody with keys of an earlier epoch may have made it
        after these were changed, and lists what does not read back.  Raises Damaged, UnsupportedFormat, StorageError."""
        if self.keys.epoch == 1 or name in self.events.state().listed:
            return True
        return self.volumes.opener(kind, name).epoch == self.keys.epoch

    def usable_volumes(self) -> dict[bytes, int]:
        """Name -> size of the volumes that may be relied on, as the index has them."""
        return {volume.name: volume.size for volume in self.index.volumes() if volume.usable}

    def vanished(self, volumes: Mapping[bytes, int]) -> list[bytes]:
        """Names of those (name -> size) that are not there any more, or in another size.  They are not relied on again."""
        listing = self.volumes.listing()
        gone = [name for name, size in volumes.items() if name not in listing or listing[name][1] != size]
        if gone:
            self.index.mark(gone, False)
        return gone

    def note_damaged(self, names: Iterable[bytes]) -> None:
        """No backup relies on these volumes any more: in the index, and where the loss of the index does not touch it."""
        names = set(names)
        self.client.remember_damage(names)
        self.index.mark(names, False)

    def note_sound(self, names: Iterable[bytes]) -> None:
        """These volumes were read whole, and are what was written."""
        names = set(names)
        self.index.mark(names, True)
        self.client.remember_damage(gone=names)

    # ---- passwords -----------------------------------------------------------------------------------------------

    def add_backup_only_key(
        self,
        password: bytes | bytearray,
        backs_up: str,
        *,
        cost: Cost = Cost(),
        label: str = "",
        host: str = "",
        user: str = "",
    ) -> str:
        """Make a key slot for a machine that can only back up, as the host of this name; returns the slot's name."""
        bundle = self.keys.backup_only(os.fsencode(backs_up), records.encode(self.config), self.system)
        return self.slots.add_backup_only(bundle, password, cost, label, host, user)

    @staticmethod
    def import_key(place: str, slot: bytes, progress: Progress = SILENT) -> tuple[str, bool]:
        """Put an exported key slot back: (its name, whether it was missing or damaged).  It needs no password.

        Raises RepositoryNotFound, UsageError if the slot is another repository's, Damaged, StorageError.
        """
        storage = LocalStorage(place, progress.notice)
        try:
            return import_slot(storage, repository_id(storage), slot)
        finally:
            storage.close()


def _index_name(epoch: int) -> str:
    """Of a folder for each epoch: what a process with old keys has entered is not trusted by one with new keys."""
    return "index" if epoch == 1 else f"index-{epoch}"
