"""Reading damaged volumes with the help of their parity: what does not open as the disk has it is read once more."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from snapfs.repo.errors import Damaged, RepositoryError, StorageError
from snapfs.repo.model import MiB
from snapfs.repo.parity import Mender, Parity

T = TypeVar("T")
Read = Callable[[int, int], bytes]
"""(offset, length) -> bytes of one volume, fewer only at its end."""
log = logging.getLogger(__name__)

_MENDERS = 4
_WINDOW = MiB


class Mending:
    """The volumes of one repository that are read with the help of their parity.  Safe to use from several threads."""

    def __init__(self, parity: Parity, told: Callable[[bytes], None]) -> None:
        """`told`: is told once the name of a volume of which something was read that only its parity gave."""
        self._parity = parity
        self._told = told
        self._menders: OrderedDict[bytes, Mender] = OrderedDict()
        self._mended: set[bytes] = set()
        self._lock = threading.Lock()

    def helped(self, name: bytes, path: str, size: int, read: Read, work: Callable[[Read, int], T],
               mended: Callable[[Read, int], T]) -> T:  # fmt: skip
        """What `work` makes of a volume as the disk has it (of its `read`, and its `size`); where that is damaged, what `mended`
        makes of it as its parity has it.  Raises what `work` raises."""
        try:
            return work(read, size)
        except Damaged as error:
            damage = error
        try:
            mender = self._mender(name, path)
            if mender is None:
                raise damage
            found = mended(mender.read, mender.size)
        except RepositoryError:  # whatever is wrong with its parity, it is the volume that was asked for
            raise damage from None
        self._tell(name, path)
        return found

    def whole(self, name: bytes, path: str, write: Callable[[bytes], None]) -> bool:
        """Whether parity makes a damaged volume what its name says; `write` gets it, piece by piece."""
        digest, at = hashlib.sha256(), 0
        mender = self._mender(name, path)
        while mender is not None and at < mender.size:
            try:
                data = mender.read(at, _WINDOW)
            except Damaged:
                return False
            digest.update(data)
            write(data)
            at += len(data)
        return digest.digest() == name

    def was_needed(self, name: bytes) -> bool:
        """Whether something of this volume was read that only its parity gave."""
        return name in self._mended

    def forget(self, name: bytes) -> None:
        """It is sound now."""
        with self._lock:
            self._mended.discard(name)
            self._menders.pop(name, None)

    def _mender(self, name: bytes, path: str) -> Mender | None:
        """None: it has no parity, or none that can be read."""
        with self._lock:
            found = self._menders.get(name)
        if found is None:
            try:
                found = self._parity.mender(name, path)
            except StorageError as error:
                log.info("the parity of %s: %s", path, error)
        if found is not None:
            with self._lock:
                self._menders[name] = found
                self._menders.move_to_end(name)
                if len(self._menders) > _MENDERS:
                    self._menders.popitem(last=False)
        return found

    def _tell(self, name: bytes, path: str) -> None:
        with self._lock:
            if name in self._mended:
                return
            self._mended.add(name)
        log.warning(
            "%s is damaged, and was read with the help of its parity: look after that disk, and run `snapfs repair volumes`",
            path,
        )
        self._told(name)
