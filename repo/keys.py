"""The keys of an open repository, derived once from its bundle."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.repo.errors import Damaged, OldKeys
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import hkdf, keyed_hash, wipe
from snapfs.repo.format.envelope import Opener, parse_header
from snapfs.repo.format.records import Bundle, KeyEntry
from snapfs.repo.model import BlobId, Kind
from snapfs.repo.system import System


class Keys:
    """Ids, paging, the index's tags and the sealing keys.

    Ids and the chunker's key live as long as the repository; only sealing keys have epochs.  `epoch`: of those that seal what is
    written now; what earlier ones sealed is read with them.
    """

    def __init__(self, bundle: Bundle, where: str) -> None:
        if any(len(k.key) != L.KEY_SIZE for k in bundle.keys):
            raise Damaged("a key is not as long as keys are", where)
        self._keys = {(k.name, k.epoch): k.key for k in bundle.keys if k.name in L.NAMED_KEYS}
        self.epoch = max((epoch for _, epoch in self._keys), default=1)
        epochs = range(1, self.epoch + 1) if self.epoch <= L.EPOCHS_LIMIT else ()
        needed = {(name, epoch) for name in L.SEALING_KEYS for epoch in epochs}
        if not epochs or not needed | {(name, 1) for name in L.NAMED_KEYS} <= self._keys.keys():
            raise Damaged("a key is missing", where)
        self.rotations = tuple(k.key for k in bundle.keys if k.name == L.ROTATION)
        """Names of the events that ended the earlier epochs."""
        self.before_rotations = tuple(k.key for k in bundle.keys if k.name == L.BEFORE_ROTATION)
        """Names of the events that were the heads then: they count also where one of `rotations` is damaged."""
        id_key = self._keys[b"id", 1]
        self.blob_keys = {kind: hkdf(id_key, None, label) for kind, label in L.ID_LABELS.items()}
        self._snapshot = hkdf(id_key, None, L.SNAPSHOT_ID_LABEL)
        self.fingerprint = hkdf(id_key, None, L.FINGERPRINT_LABEL, 16)
        """Tells this repository from one that somebody made with the same id."""
        self.page = hkdf(id_key, None, L.PAGE_LABEL)
        self.chunker = self._keys[b"chunker", 1]
        self.index_tag = hkdf(self._keys[b"index", 1], None, L.INDEX_TAG_LABEL)

    @staticmethod
    def generate(system: System) -> tuple[KeyEntry, ...]:
        return tuple(KeyEntry(name, 1, system.salt()) for name in L.NAMED_KEYS)

    def next(self, system: System) -> tuple[KeyEntry, ...]:
        """New sealing keys, of the epoch after this."""
        return tuple(KeyEntry(name, self.epoch + 1, system.salt()) for name in L.SEALING_KEYS)

    def blob_id(self, kind: Kind, data: bytes | bytearray | memoryview) -> BlobId:
        return BlobId(keyed_hash(self.blob_keys[kind], data))

    def snapshot_id(self, record: bytes) -> bytes:
        return keyed_hash(self._snapshot, record)

    def wipe(self) -> None:
        """Nothing can be sealed or opened with these any more, nor with the bundle they came from."""
        derived = (*self.blob_keys.values(), self._snapshot, self.page, self.index_tag)
        keys = (*self._keys.values(), *derived)
        # First: whoever is late must not take for damage what he cannot open any more.
        self._keys, self.blob_keys = {}, {}
        for key in keys:
            wipe(key)

    def sealing(self, kind: int, epoch: int | None = None) -> bytes:
        """The named key that seals objects of this kind (L.DATA_VOLUME ...); None: of now."""
        epoch = self.epoch if epoch is None else epoch
        if not self._keys:
            raise RuntimeError("the repository was closed, and its keys were wiped")
        try:
            return self._keys[L.OBJECT_KEYS[kind], epoch]
        except KeyError:
            raise Damaged(f"no key of epoch {epoch}", "key bundle") from None

    def epochs(self) -> Iterator[int]:
        """All of them, the newest first."""
        return iter(range(self.epoch, 0, -1))

    def opener(self, kind: int, data: bytes, where: str, repository: bytes | None = None) -> Opener:
        """For an object that begins so, by the key of the epoch that its header says.

        Raises Damaged, UnsupportedFormat; OldKeys for an epoch after these keys: who knows the SHA-256 of the object can tell
        whether that is true, or a bit of the header flipped.
        """
        header = parse_header(data, where)
        if header.epoch > self.epoch and header.kind == kind and repository in (None, header.repository):
            raise OldKeys(
                f"{where}: sealed with keys of epoch {header.epoch}, and this password opens those up to {self.epoch}: "
                "use a password that was made since"
            )
        return Opener(self.sealing(kind, header.epoch), data, where, kind, repository)
