"""The keys of an open repository, derived once from its bundle."""

from __future__ import annotations

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import hkdf, keyed_hash
from snapfs.repo.format.records import Bundle, KeyEntry
from snapfs.repo.model import BlobId, Kind
from snapfs.repo.system import System


class Keys:
    """Ids, paging, the index's tags and the sealing keys.

    Ids and the chunker's key live as long as the repository; only sealing keys have epochs.
    """

    epoch = 1

    def __init__(self, bundle: Bundle, where: str) -> None:
        self._keys = {(k.name, k.epoch): k.key for k in bundle.keys}
        if any((name, 1) not in self._keys for name in L.NAMED_KEYS):
            raise Damaged("a key is missing", where)
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

    def blob_id(self, kind: Kind, data: bytes | bytearray | memoryview) -> BlobId:
        return BlobId(keyed_hash(self.blob_keys[kind], data))

    def snapshot_id(self, record: bytes) -> bytes:
        return keyed_hash(self._snapshot, record)

    def sealing(self, kind: int, epoch: int = 1) -> bytes:
        """The named key that seals objects of this kind (L.DATA_VOLUME ...)."""
        try:
            return self._keys[L.OBJECT_KEYS[kind], epoch]
        except KeyError:
            raise Damaged(f"no key of epoch {epoch}", "key bundle") from None
